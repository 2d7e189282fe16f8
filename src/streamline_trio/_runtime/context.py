"""What a handler sees of its run: the step context."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, Never, overload

import msgspec
import trio
import whenever
from typing_extensions import TypeForm, TypeVar

from streamline_trio._core import payload
from streamline_trio._core.checking import check_reason, is_text
from streamline_trio._core.definition import Workflow
from streamline_trio._core.durations import instant_millis, seconds_of, to_millis
from streamline_trio._core.errors import (
    LeaseLost,
    OutputMissing,
    StepNotFound,
    StreamlineError,
    ValidationError,
    WaitTimedOut,
    WaitWithdrawn,
)
from streamline_trio._core.happenings import Ask, CheckpointSaved, Memoized, StateSet, WaitOpened
from streamline_trio._core.shapes import describe
from streamline_trio._core.signals import Signal, signal_name
from streamline_trio._core.step import Step, step_id_of
from streamline_trio._runtime.limits import check_size
from streamline_trio._runtime.outputs import OutputsView
from streamline_trio._runtime.state import with_fields
from streamline_trio._runtime.suspension import Goto, Suspender
from streamline_trio._runtime.tokens import check_token, digest_of

if TYPE_CHECKING:
    from streamline_trio._runtime.driver import Driver

InputT = TypeVar("InputT", default=Any)
StateT = TypeVar("StateT", default=InputT)
OutputsT = TypeVar("OutputsT", default=Any)
T = TypeVar("T")
D = TypeVar("D")

_RAISE: Any = object()
_LONGEST_KEY = 500
_LONGEST_NAME = 100


class StepContext(Generic[InputT, StateT, OutputsT]):
    """One entry of one step's handler. Valid while the handler runs, in its task and its children.

    Methods that write are durable when they return and raise `LeaseLost` when the run is no longer this
    worker's. `sleep`, `sleep_until`, `wait`, `wait_for` and `goto` unwind the handler; after the wait it is
    called again from its first line and gets what is recorded at once.
    """

    __slots__ = ("__weakref__", "_driver", "_frames", "_step", "_suspender", "_workflow")

    def __init__(self, driver: Driver, step: Step[Any], suspender: Suspender) -> None:
        self._driver = driver
        self._step = step
        self._suspender = suspender
        self._workflow: Workflow[Any, Any] = driver.workflow
        self._frames = 0

    # --- who and where -------------------------------------------------------------------------------------

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._driver.run.origin.id

    @property
    def workflow(self) -> str:
        """The workflow's id."""
        return self._driver.run.origin.workflow

    @property
    def version(self) -> str:
        """The version of the workflow that the run is on."""
        return self._driver.run.head.version

    @property
    def step_id(self) -> str:
        """The step's id."""
        return self._step.id

    @property
    def attempt(self) -> int:
        """Calls of this handler since the last reset by goto, rewind or retry, this one included.

        Crashed calls count; re-entries after a wait and calls handed back by a drain do not.
        """
        return self._driver.run.step(self._step.id).attempts

    @property
    def tenant(self) -> str | None:
        """The tenant the run belongs to."""
        return self._driver.run.origin.tenant

    @property
    def meta(self) -> dict[str, Any]:
        """What the starter attached, as plain data."""
        meta = self._driver.run.origin.meta
        return {} if meta is None else msgspec.msgpack.decode(meta)

    @property
    def cancelled_reason(self) -> str | None:
        """Why the run is being cancelled; None while it is not (or no reason was given)."""
        return self._driver.run.head.cancel_reason

    # --- data ----------------------------------------------------------------------------------------------

    @property
    def input(self) -> InputT:
        """The run's input, rebuilt from storage in its declared type."""
        decoded: InputT = self._workflow.input_decoder.decode(self._driver.run.origin.input, what="input")
        return decoded

    @property
    def state(self) -> StateT:
        """The run's state, rebuilt from storage at each access: changing the object changes nothing durable."""
        decoder = self._driver.state_decoder
        decoded: StateT = decoder.decode(self._driver.state, what="state")
        return decoded

    async def set(self, **fields: Any) -> None:
        """Change fields of the state. Durable when it returns, also if the step fails later.

        Raises `ValidationError` if a field is unknown or its value does not fit. Atomic; calls of one step at
        the same time do not lose each other's fields. A cancel point.
        """
        self._require_current()
        decoder = self._driver.state_decoder
        state = with_fields(self._driver.state, fields, decoder, what=f"state of {self.run_id}")
        self._driver.state = state
        try:
            await self._driver.commit(StateSet(state=state, **self._held))
        except StreamlineError:
            self._driver.state = self._driver.run.state
            raise

    @overload
    def output(self, step: Step[T]) -> T: ...
    @overload
    def output(self, step: Step[T], default: D) -> T | D: ...
    @overload
    def output(self, step: str, default: Any = ...) -> Any: ...
    def output(self, step: Step[Any] | str, default: Any = _RAISE) -> Any:
        """A finished step's output, rebuilt in its declared type.

        Unfinished, skipped or unknown: `default`, or `OutputMissing` without one.
        """
        step_id = step_id_of(step)
        found = self._driver.output_of(step_id)
        if found is not None:
            return found.value
        if default is _RAISE:
            raise OutputMissing(f"step {step_id} of run {self.run_id} has no output", step=step_id)
        return default

    @property
    def outputs(self) -> OutputsT:
        """All outputs by step: `ctx.outputs.fetch` (None until the step is done), also as a mapping."""
        view: Any = OutputsView(tuple(self._workflow.steps), self._driver.output_of)
        return view  # type: ignore[no-any-return]  # reads like the declared outputs

    def idempotency_key(self, scope: str | None = None) -> str:
        """A key for calls to the outside: the same over attempts and recoveries, another after goto or rewind."""
        generation = self._driver.run.step(self._step.id).generation
        key = f"{self.run_id}:{self._step.id}" + (f"~{generation}" if generation else "")
        return key if scope is None else f"{key}:{scope}"

    # --- suspending ----------------------------------------------------------------------------------------

    async def sleep(self, seconds: float | timedelta) -> None:
        """Park for a while, of any length; no task or timer stays in the worker. Raises nothing but on misuse."""
        millis = to_millis(seconds_of(seconds, what="sleep"))
        await self._sleep(self._driver.now() + millis)

    async def sleep_until(self, instant: datetime | whenever.Instant | whenever.ZonedDateTime) -> None:
        """Park until an instant; one that has passed ends the sleep at once."""
        await self._sleep(instant_millis(instant, what="sleep_until"))

    async def _sleep(self, due_at: int) -> None:
        await self._suspend(self._ask("timer", None, "timer", due_at=due_at))

    @overload
    async def wait(
        self,
        reason: str,
        *,
        returns: TypeForm[T],
        timeout: float | timedelta | None = None,
        name: str | None = None,
        token: str | None = None,
        meta: Mapping[str, Any] | None = None,
        on_token: Callable[[str], Awaitable[object]] | None = None,
    ) -> T: ...
    @overload
    async def wait(
        self,
        reason: str,
        *,
        timeout: float | timedelta | None = None,
        name: str | None = None,
        token: str | None = None,
        meta: Mapping[str, Any] | None = None,
        on_token: Callable[[str], Awaitable[object]] | None = None,
    ) -> Any: ...
    async def wait(
        self,
        reason: str,
        *,
        returns: Any = Any,
        timeout: float | timedelta | None = None,
        name: str | None = None,
        token: str | None = None,
        meta: Mapping[str, Any] | None = None,
        on_token: Callable[[str], Awaitable[object]] | None = None,
    ) -> Any:
        """Park until a person answers; the payload, rebuilt as `returns`.

        With `on_token` a token is minted (or `token` is taken, at least 16 characters): `on_token(token)` is
        awaited once the wait is durable and before it parks, at least once; after a crash again, with a further
        valid token. Only digests of tokens are stored. Raises `WaitTimedOut` after `timeout` seconds and
        `WaitWithdrawn`; neither is retried unless `retry_on` names it.
        """
        decoder = payload.decoder(returns)
        check_reason(reason, "the reason of a wait")
        ask = self._ask(
            "human",
            name,
            f"human\n{reason}",
            due_at=self._deadline(timeout),
            reason=reason,
            shape=None if returns is Any else describe(returns),
            meta=None if meta is None else payload.encode(dict(meta), what="meta of the wait"),
            token=None if token is None else digest_of(check_token(token)),
        )
        value = await self._suspend(ask, token=token, on_token=on_token)
        return decoder.decode(value, what=f"the answer to {reason!r}")

    @overload
    async def wait_for(
        self,
        signal: Signal[T],
        *,
        match: Mapping[str, Any] | None = None,
        timeout: float | timedelta | None = None,
        name: str | None = None,
    ) -> T: ...
    @overload
    async def wait_for(
        self,
        signal: str,
        *,
        match: Mapping[str, Any] | None = None,
        timeout: float | timedelta | None = None,
        name: str | None = None,
    ) -> Any: ...
    async def wait_for(
        self,
        signal: Signal[Any] | str,
        *,
        match: Mapping[str, Any] | None = None,
        timeout: float | timedelta | None = None,
        name: str | None = None,
    ) -> Any:
        """Park until the signal comes; its payload.

        A signal that was addressed to this run before is not lost: the oldest one that fits is taken. `match`
        compares fields of the payload. Raises `WaitTimedOut`.
        """
        type_ = Any if isinstance(signal, str) else signal.type
        wanted = signal_name(signal)
        ask = self._ask(
            "signal",
            name,
            f"signal\n{wanted}",
            due_at=self._deadline(timeout),
            signal=wanted,
            match=None if match is None else payload.encode(dict(match), what="match"),
            shape=None if type_ is Any else describe(type_),
        )
        value = await self._suspend(ask)
        return payload.decoder(type_).decode(value, what=f"signal {wanted!r}")

    async def goto(self, step: Step[Any] | str) -> Never:
        """Leave this step and go on at another one.

        Back, or to itself: all steps from the target up to and including this one are reset and run again.
        Forward: this step counts as skipped, those between stay pending. `StepNotFound` for an unknown target.
        """
        target = step_id_of(step)
        if target not in self._workflow.steps:
            raise StepNotFound(f"cannot go to {target!r}: workflow {self.workflow} has no such step", step=target)
        self._suspender.require_possible("goto")
        await self._suspender.unwind(Goto(target))

    def _deadline(self, timeout: float | timedelta | None) -> int | None:
        if timeout is None:
            return None
        return self._driver.now() + to_millis(seconds_of(timeout, what="timeout"))

    def _ask(self, kind: Any, name: str | None, ask: str, **fields: Any) -> Ask:
        check_reason(name, "the name of a wait", shortest=1)
        self._suspender.require_possible({"timer": "sleep", "human": "wait"}.get(kind, "wait_for"))
        return Ask(
            key=self._suspender.key_of(kind, name),
            kind=kind,
            ask=ask,
            place=self._suspender.place(),
            name=name or "",
            **fields,
        )

    async def _suspend(
        self,
        ask: Ask,
        *,
        token: str | None = None,
        on_token: Callable[[str], Awaitable[object]] | None = None,
    ) -> bytes:
        """The outcome's payload: at once if it is recorded, else after unwinding."""
        record = self._suspender.recorded(self._driver.run, ask)
        if on_token is not None and (record is None or (record.outcome is None and not record.told)):
            ask = await self._tell_token(ask, token, on_token)
            record = self._driver.run.records.get(ask.key)
        if record is not None and record.outcome is not None:
            await trio.lowlevel.checkpoint()
            return self._outcome(ask, record.outcome, record.value, record.note)
        return await self._suspender.unwind(msgspec.structs.replace(ask, told=on_token is not None))

    async def _tell_token(self, ask: Ask, token: str | None, on_token: Callable[[str], Awaitable[object]]) -> Ask:
        """Open the wait so that it can be answered, and pass its token on."""
        known = self._driver.mint_token() if token is None else token
        ask = msgspec.structs.replace(ask, token=digest_of(known))
        await self._driver.commit(WaitOpened(step=self._step.id, ask=ask, **self._held))
        await on_token(known)
        return ask

    def _outcome(self, ask: Ask, outcome: str, value: bytes | None, note: str | None) -> bytes:
        title = ask.name or ask.reason or ask.signal
        if outcome == "timed_out":
            raise WaitTimedOut(f"nobody answered {title!r} in time", step=self._step.id, wait=title)
        if outcome == "withdrawn":
            text = f"the wait {title!r} was withdrawn" + (f": {note}" if note else "")
            raise WaitWithdrawn(text, step=self._step.id, wait=title, reason=note)
        return payload.NULL if value is None else value

    # --- keeping -------------------------------------------------------------------------------------------

    async def checkpoint(self, value: Any, name: str = "default") -> None:
        """Save a value of this step under a name; survives attempts and crashes. A cancel point, atomic."""
        _check_name(name)
        stored = payload.encode(value, what=f"checkpoint {name!r} of step {self._step.id}")
        check_size(stored, self._driver.max_payload(self._step), self._driver, self._step.id, "checkpoint")
        await self._driver.commit(CheckpointSaved(step=self._step.id, name=name, value=stored, **self._held))

    def checkpoint_value(self, type_: Any = Any, name: str = "default", default: Any = None) -> Any:
        """What this step saved last under the name, rebuilt as `type_`; `default` if nothing."""
        stored = self._driver.run.checkpoints.get(f"{self._step.id}/{name}")
        if stored is None:
            return default
        return payload.decoder(type_).decode(stored, what=f"checkpoint {name!r}")

    async def once(self, key: str, fn: Callable[[], Awaitable[T] | T], returns: Any = Any) -> T:
        """Call `fn` once in the life of the run; its remembered result ever after, in any step.

        Two calls with one key at the same time call `fn` once. If `fn` raises, nothing is remembered. If the
        process dies after `fn` and before its result is stored, `fn` is called again. Rewind forgets what the
        steps it resets have remembered; goto and retry do not.
        """
        if not is_text(key, _LONGEST_KEY):
            raise ValidationError(f"once: a key has 1 to {_LONGEST_KEY} characters, not {key!r}")
        self._require_current()
        decoder = payload.decoder(returns)
        async with self._driver.once_lock(key):
            memo = self._driver.run.memos.get(key)
            if memo is None:
                result: Any = fn()
                if inspect.isawaitable(result):
                    result = await result
                stored = payload.encode(result, what=f"result of once({key!r})")
                check_size(stored, self._driver.max_payload(self._step), self._driver, self._step.id, "once")
                decoder.decode(stored, what=f"result of once({key!r})")
                run = await self._driver.commit(Memoized(step=self._step.id, key=key, value=stored, **self._held))
                memo = run.memos.get(key)
                if memo is None:  # somebody took the run for dead since, and rewound it
                    raise LeaseLost(f"run {self.run_id} went on elsewhere", run_id=self.run_id, step=self._step.id)
                # Not ours, if a call that was cancelled while it was being stored was first.
                stored = memo.value
            else:
                await trio.lowlevel.checkpoint()
                stored = memo.value
        decoded: T = decoder.decode(stored, what=f"result of once({key!r})")
        return decoded

    # --- telling -------------------------------------------------------------------------------------------

    def log(self, message: str, /, **data: Any) -> None:
        """Keep a line with the run (the last `max_step_logs` of them). Never fails, never blocks."""
        if not self._suspender.ended:
            self._driver.log(self._step.id, message, data)

    def progress(self, percent: float | None = None, message: str | None = None, **data: Any) -> None:
        """Tell how far the step is; the last word is kept. Never fails, never blocks."""
        if not self._suspender.ended:
            self._driver.progress(self._step.id, percent, message, data)

    def stream(self, frame: Any) -> None:
        """Send a frame to whoever listens in this process; never stored. Never fails, never blocks."""
        frames, self._frames = self._frames, self._frames + 1
        if not self._suspender.ended:
            self._driver.stream(self._step.id, frames, frame)

    async def heartbeat(self) -> None:
        """Say that the handler is alive: stores waiting log lines. A cancel point; never fails otherwise.

        The lease does not need it: the worker keeps it whatever the handler does.
        """
        if not self._suspender.ended:
            self._driver.flush_rows()
        await trio.lowlevel.checkpoint()

    def _require_current(self) -> None:
        """A thread that was abandoned, or a task left in the background, writes nothing any more."""
        if self._suspender.ended:
            raise LeaseLost(
                f"this call of step {self._step.id} of run {self.run_id} has ended: its context is void",
                run_id=self.run_id,
                step=self._step.id,
            )

    @property
    def _held(self) -> dict[str, Any]:
        self._require_current()
        return {"worker": self._driver.writer.worker, "fence": self._driver.writer.fence}


def _check_name(name: str) -> None:
    if not is_text(name, _LONGEST_NAME):
        raise ValidationError(f"a checkpoint's name has 1 to {_LONGEST_NAME} characters, not {name!r}")
