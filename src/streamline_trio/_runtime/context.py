"""What a handler sees of its run: the step context."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Generic, overload

import msgspec
import trio
from typing_extensions import TypeVar

from streamline_trio._core import payload
from streamline_trio._core.checking import is_text
from streamline_trio._core.errors import (
    LeaseLost,
    OutputMissing,
    StreamlineError,
    ValidationError,
)
from streamline_trio._core.happenings import CheckpointSaved, Memoized, StateSet
from streamline_trio._core.step import Step, step_id_of
from streamline_trio._core.tenancy import unique_name
from streamline_trio._runtime.approvals import Approvals
from streamline_trio._runtime.composition import Composition
from streamline_trio._runtime.history import Histories
from streamline_trio._runtime.joining import Joins
from streamline_trio._runtime.limits import check_size
from streamline_trio._runtime.outputs import OutputsView
from streamline_trio._runtime.state import with_fields

InputT = TypeVar("InputT", default=Any)
StateT = TypeVar("StateT", default=InputT)
OutputsT = TypeVar("OutputsT", default=Any)
T = TypeVar("T")
D = TypeVar("D")

_RAISE: Any = object()
_LONGEST_KEY = 500
_LONGEST_NAME = 100


class StepContext(Approvals, Composition, Joins, Histories, Generic[InputT, StateT, OutputsT]):
    """One entry of one step's handler. Valid while the handler runs, in its task and its children.

    Methods that write are durable when they return and raise `LeaseLost` when the run is no longer this
    worker's. `sleep`, `sleep_until`, `wait`, `wait_for`, `child`, `join` and `goto` unwind the handler; after the
    wait it is called again from its first line and gets what is recorded at once. `scatter` and `loop` divide a
    step into parts that are kept one by one, and may suspend one by one.
    """

    __slots__ = ()

    # --- who and where -------------------------------------------------------------------------------------

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

        Crashed calls count; re-entries after a wait and calls handed back by a drain do not. In a compensation:
        calls of that.
        """
        return self._suspender.ended_attempt or self._driver.attempt_of(self._step.id)

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
        """A key for calls to the outside: the same over attempts and recoveries, another after goto or rewind.

        Runs of several tenants that have the same id have different keys.
        """
        step = self._driver.run.step(self._step.id)
        key = f"{unique_name(self.tenant, self.run_id)}:{step.keyed or self._step.id}"
        key += f"~{step.generation}" if step.generation else ""
        return key if scope is None else f"{key}:{scope}"

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


def _check_name(name: str) -> None:
    if not is_text(name, _LONGEST_NAME):
        raise ValidationError(f"a checkpoint's name has 1 to {_LONGEST_NAME} characters, not {name!r}")
