"""A step context without an engine, for unit tests of one handler."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Never

import trio
import whenever
from typing_extensions import TypeVar

from streamline_trio import (
    OutputMissing,
    Step,
    StepContext,
    StepNotFound,
    ValidationError,
    Workflow,
)
from streamline_trio._core import payload
from streamline_trio._core import payload as payloads
from streamline_trio._core.checking import check_reason, is_text, is_whole
from streamline_trio._core.durations import instant_millis, instant_of, seconds_of, to_millis
from streamline_trio._core.signals import Signal, signal_name
from streamline_trio._core.step import step_id_of
from streamline_trio._core.tenancy import unique_name
from streamline_trio._runtime.limits import too_large
from streamline_trio._runtime.outputs import Found, OutputsView
from streamline_trio._runtime.state import with_fields
from streamline_trio._runtime.tokens import check_token
from streamline_trio.testing._fake_answers import Answers, AnswersLike, Asked, WentTo
from streamline_trio.testing._fake_composition import Emitted, Lines
from streamline_trio.testing._fake_joining import FakeJoins
from streamline_trio.testing._fake_people import FakePeople
from streamline_trio.testing._fake_task import OwnTask
from streamline_trio.testing._time import START

InputT = TypeVar("InputT", default=Any)
StateT = TypeVar("StateT", default=InputT)
OutputsT = TypeVar("OutputsT", default=Any)

_RAISE: Any = inspect.signature(StepContext[Any].output).parameters["default"].default
_LONGEST_KEY = 500
_LONGEST_NAME = 100
_INPUT: Any = object()
_NO_STEP = "step"
_CONTAINERS = (dict, list, tuple, set, frozenset, type(None))


class FakeContext(FakeJoins, FakePeople[InputT, StateT, OutputsT]):
    """A `StepContext` for unit tests: call a handler with it, and look at what it did.

    It needs no engine and no store. What a handler keeps is kept in the fake; sleeps end at once; waits are
    answered from `answers`, else `NotGiven` is raised. Values go through storage as in a run: a handler sees
    them rebuilt in their types, and what cannot be stored, or is larger than the step's `max_payload_bytes`, is
    refused. So is suspending where a run could not unwind the handler: in a shielded scope, or in another task.

    Args:
        step: the step whose handler is called, or its id.
        workflow: the workflow, or its id. With the workflow, values are rebuilt in its types, the state begins as
            it says, and steps that it does not have are refused with `StepNotFound`.
        input: the run's input.
        state: the run's state; without it, as in a run: what the workflow makes of the input, or a copy of it.
        outputs: of finished steps, by handle or id.
        history: earlier outputs, oldest first, by handle or id.
        answers: by name, reason or signal (each is taken once); several of one name as a list of pairs. An
            exception is raised, `WaitTimedOut` and `WaitWithdrawn` also as classes. A child is answered by its
            name or its workflow's id, with its output or a `ChildFailed`; a join by its name or as "join", with a
            `JoinResult` or a mapping of how its branches end, in that order: outputs, or exceptions.
        attempt: which call of the handler this is, from 1.
        checkpoints: what this step has saved in earlier attempts, by name.
        memos: what `once` remembers, by key.
        now: when the handler is called; sleeps move it on.
        run_id: the run's id.
        tenant: the tenant the run belongs to.
        meta: what the starter attached.
        cancelled_reason: why the run is being cancelled.

    Attributes:
        now: the instant it is now.
        asked: the suspensions that the handler asked for, in order.
        changes: the fields of each `set`.
        logs: the lines of `log`, with their data.
        told: what `progress` told: percent, message, data.
        frames: the frames of `stream`.
        heartbeats: how often `heartbeat` was called.
        emitted: the signals of `emit`.
        pins: the step and version of each `pin_output`.
    """

    def __init__(
        self,
        step: Step[Any] | str = _NO_STEP,
        *,
        workflow: Workflow[Any, Any] | str | None = None,
        input: Any = None,
        state: Any = _INPUT,
        outputs: Mapping[Any, Any] | None = None,
        history: Mapping[Any, Sequence[Any]] | None = None,
        answers: AnswersLike = (),
        attempt: int = 1,
        checkpoints: Mapping[str, Any] | None = None,
        memos: Mapping[str, Any] | None = None,
        now: datetime | whenever.Instant = START,
        run_id: str = "run",
        tenant: str | None = None,
        meta: Mapping[str, Any] | None = None,
        cancelled_reason: str | None = None,
    ) -> None:
        self.now: whenever.Instant = instant_of(instant_millis(now, what="now"))
        self.asked: list[Asked] = []
        self.changes: list[dict[str, Any]] = []
        self.logs: list[tuple[str, dict[str, Any]]] = []
        self.told: list[tuple[float | None, str | None, dict[str, Any]]] = []
        self.frames: list[Any] = []
        self.heartbeats: int = 0
        self.emitted: list[Emitted] = []
        self._definition = workflow if isinstance(workflow, Workflow) else None
        self._step_id = step_id_of(step)
        self._workflow_id = _workflow_id(workflow, step)
        self._attempt = _checked_attempt(attempt)
        known = None if step == _NO_STEP else self._known(step)
        self._limit = None if known is None else known.options.max_payload_bytes
        self._own_task = OwnTask(self._step_id, None if known is None else known.handler)
        self._run_id = run_id
        self._tenant = tenant
        self._meta = dict(meta or {})
        self._cancelled_reason = cancelled_reason
        self._answers = Answers(answers)
        self._lines = Lines(self._step_id, self._kept)
        self._once_locks: dict[str, trio.Lock] = {}
        self._set_data(input, state)
        self._outputs = {step_id_of(key): self._stored_output(key, value) for key, value in (outputs or {}).items()}
        self._set_history(history)
        self._checkpoints = _stored(checkpoints, "checkpoint")
        self._memos = _stored(memos, "memo")

    def _set_data(self, input: Any, state: Any) -> None:
        definition = self._definition
        if definition is None:
            self._input = payload.encode(input, what="input")
            self._input_decoder = _decoder_of(input)
        else:
            self._input = definition.input_payload(input)
            self._input_decoder = definition.input_decoder
        if definition is not None:
            self._state_decoder = definition.state_decoder(self._input)
        else:
            self._state_decoder = _decoder_of(input if state is _INPUT else state)
        if state is not _INPUT:
            self._state = payload.encode(state, what="state")
            self._state_decoder.decode(self._state, what="state")
        else:
            self._state = self._input if definition is None else definition.initial_state(self._input)

    def _known(self, step: Step[Any] | str) -> Step[Any] | None:
        """The handle, as far as it can be known; `StepNotFound` if the workflow has no such step."""
        step_id = step_id_of(step)
        if self._definition is not None and step_id not in self._definition.steps:
            raise StepNotFound(f"workflow {self._workflow_id} has no step {step_id!r}", step=step_id)
        if isinstance(step, Step):
            return step
        return None if self._definition is None else self._definition.steps[step_id]

    def _stored_output(self, step: Step[Any] | str, value: Any) -> tuple[bytes, payload.Decoder]:
        known, step_id = self._known(step), step_id_of(step)
        decoder = _decoder_of(value) if known is None else known.decoder
        what = f"the output of step {step_id}"
        stored = payload.encode(value, what=what)
        self._check_size(stored, None if known is None else known.options.max_payload_bytes, step_id, "the output")
        decoder.decode(stored, what=what)
        return stored, decoder

    def _check_size(self, stored: bytes, limit: int | None, step: str, what: str) -> None:
        if limit is not None and len(stored) > limit:
            raise too_large(len(stored), limit, self._run_id, step, what)

    @property
    def unused(self) -> list[str]:
        """The names of the answers that were not asked for."""
        return [key for key, _ in self._answers.left]

    # --- who and where -------------------------------------------------------------------------------------

    @property
    def run_id(self) -> str:
        """The id it was made with."""
        return self._run_id

    @property
    def workflow(self) -> str:
        """The workflow's id."""
        return self._workflow_id

    @property
    def version(self) -> str:
        """The version of the workflow it was made with."""
        return "1.0.0" if self._definition is None else self._definition.version

    @property
    def step_id(self) -> str:
        """The step's id."""
        return self._step_id

    @property
    def attempt(self) -> int:
        """The attempt it was made with."""
        return self._attempt

    @property
    def tenant(self) -> str | None:
        """The tenant it was made with."""
        return self._tenant

    @property
    def meta(self) -> dict[str, Any]:
        """What it was made with, as plain data."""
        plain: dict[str, Any] = payload.rebuild(self._meta, Any, what="meta")
        return plain

    @property
    def cancelled_reason(self) -> str | None:
        """The reason it was made with."""
        return self._cancelled_reason

    # --- data ----------------------------------------------------------------------------------------------

    @property
    def input(self) -> InputT:
        """The input, rebuilt in its type."""
        decoded: InputT = self._input_decoder.decode(self._input, what="input")
        return decoded

    @property
    def state(self) -> StateT:
        """The state as it is now, rebuilt in its type."""
        decoded: StateT = self._state_decoder.decode(self._state, what="state")
        return decoded

    async def set(self, **fields: Any) -> None:
        """Change fields of the state, and note them in `changes`."""
        await trio.lowlevel.checkpoint()
        self._state = with_fields(self._state, fields, self._state_decoder, what=f"state of {self._run_id}")
        self.changes.append(fields)

    def output(self, step: Step[Any] | str, default: Any = _RAISE) -> Any:
        """A given output; else `default`, or `OutputMissing` without one."""
        found = self._found(step_id_of(step))
        if found is not None:
            return found.value
        if default is _RAISE:
            step_id = step_id_of(step)
            raise OutputMissing(f"step {step_id} of run {self._run_id} has no output", step=step_id)
        return default

    @property
    def outputs(self) -> OutputsT:
        """The given outputs, as attributes and as a mapping; with the workflow, None for its other steps."""
        steps = tuple(self._outputs) if self._definition is None else tuple(self._definition.steps)
        view: Any = OutputsView(steps, self._found)
        return view  # type: ignore[no-any-return]  # reads like the declared outputs

    def _found(self, step: str) -> Found | None:
        if step not in self._outputs:
            return None
        stored, decoder = self._outputs[step]
        return Found(decoder.decode(stored, what=f"the output of step {step}"))

    def idempotency_key(self, scope: str | None = None) -> str:
        """The key that a run of this id gives in this step."""
        key = f"{unique_name(self._tenant, self._run_id)}:{self._step_id}"
        return key if scope is None else f"{key}:{scope}"

    # --- suspending ----------------------------------------------------------------------------------------

    async def sleep(self, seconds: float | timedelta) -> None:
        """Move `now` on, at once."""
        await self._sleep_until(self._millis() + to_millis(seconds_of(seconds, what="sleep")))

    async def sleep_until(self, instant: datetime | whenever.Instant | whenever.ZonedDateTime) -> None:
        """Move `now` on to the instant, at once."""
        await self._sleep_until(instant_millis(instant, what="sleep_until"))

    async def _sleep_until(self, millis: int) -> None:
        self._note(Asked(kind="timer", due_at=instant_of(millis)))
        await trio.lowlevel.checkpoint()
        self.now = max(self.now, instant_of(millis))

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
        """The answer given under the name or reason, rebuilt as `returns`; `NotGiven` without one."""
        check_reason(reason, "the reason of a wait")
        known = f"token-of-wait-{len(self.asked):04}" if token is None else check_token(token)
        asked = Asked(
            kind="human",
            name=name,
            reason=reason,
            due_at=self._times_out_at(timeout),
            meta=None if meta is None else dict(meta),
            token=known if on_token is not None or token is not None else None,
        )
        self._note(asked)
        await trio.lowlevel.checkpoint()
        if on_token is not None:
            await on_token(known)
        return self._answers.take(asked, returns, self._step_id)

    async def wait_for(
        self,
        signal: Signal[Any] | str,
        *,
        match: Mapping[str, Any] | None = None,
        timeout: float | timedelta | None = None,
        name: str | None = None,
    ) -> Any:
        """The answer given under the name or signal, if it fits `match`, in the signal's type; else `NotGiven`."""
        asked = Asked(
            kind="signal",
            name=name,
            signal=signal_name(signal),
            due_at=self._times_out_at(timeout),
            match=None if match is None else dict(match),
        )
        self._note(asked)
        await trio.lowlevel.checkpoint()
        return self._answers.take(asked, Any if isinstance(signal, str) else signal.type, self._step_id)

    async def goto(self, step: Step[Any] | str) -> Never:
        """Leave the handler by raising `WentTo`."""
        target = step_id_of(step)
        if self._definition is not None and target not in self._definition.steps:
            raise StepNotFound(f"cannot go to {target!r}: workflow {self.workflow} has no such step", step=target)
        self._lines.require_handler("goto")
        self._own_task.require_possible("goto", self._lines.frame.places)
        await trio.lowlevel.checkpoint()
        raise WentTo(target)

    def _note(self, asked: Asked) -> None:
        check_reason(asked.name, "the name of a wait", shortest=1)
        what = {"timer": "sleep", "human": "wait", "signal": "wait_for"}.get(asked.kind, asked.kind)
        self._own_task.require_possible(what, self._lines.frame.places)
        if asked.name is not None:
            self._lines.require_new(f"={asked.name}", asked.name)
        self._lines.frame.place()
        self.asked.append(asked)

    def _times_out_at(self, timeout: float | timedelta | None) -> whenever.Instant | None:
        if timeout is None:
            return None
        return instant_of(self._millis() + to_millis(seconds_of(timeout, what="timeout")))

    def _millis(self) -> int:
        return instant_millis(self.now, what="now")

    # --- parts of the step ---------------------------------------------------------------------------------

    async def scatter(  # pyright: ignore[reportIncompatibleMethodOverride] - it is that of the overloads together
        self,
        fns: Mapping[str, Callable[[], Any]],
        concurrency: int | None = None,
        returns: Any = Any,
        name: str | None = None,
    ) -> dict[str, Any]:
        """Call each function in turn, in the handler's own task; their results by key, rebuilt as `returns`."""
        self._own_task.require_possible("scatter", self._lines.frame.places)
        return await self._lines.scatter(fns, concurrency, returns, name)

    async def loop(  # pyright: ignore[reportIncompatibleMethodOverride] - it is that of the overloads together
        self,
        initial: Any,
        body: Callable[[Any, int], Any],
        max_iterations: int = 1000,
        name: str | None = None,
        returns: Any = Any,
    ) -> Any:
        """Call the body until it returns `Done`; its value, rebuilt as `returns`."""
        self._own_task.require_possible("loop", self._lines.frame.places)
        return await self._lines.loop(initial, body, max_iterations, name, returns)

    async def emit(self, signal: Signal[Any] | str, payload: Any = None, *, run: Any = None) -> None:
        """Note the signal in `emitted`, its payload as whoever takes it gets it."""
        type_ = Any if isinstance(signal, str) else signal.type
        what = f"the payload of signal {signal_name(signal)!r}"
        value = payloads.decoder(type_).decode(payloads.convert_input(payload, type_, what=what), what=what)
        target = None if run is None else str(getattr(run, "id", run))
        self.emitted.append(Emitted(signal=signal_name(signal), payload=value, run=target))
        await trio.lowlevel.checkpoint()

    def _kept(self, value: Any, what: str) -> bytes:
        stored = payload.encode(value, what=f"{what} of step {self._step_id}")
        self._check_size(stored, self._limit, self._step_id, what)
        return stored

    # --- keeping -------------------------------------------------------------------------------------------

    async def checkpoint(self, value: Any, name: str = "default") -> None:
        """Save a value under a name."""
        _check_text(name, _LONGEST_NAME, "a checkpoint's name")
        stored = payload.encode(value, what=f"checkpoint {name!r} of step {self._step_id}")
        self._check_size(stored, self._limit, self._step_id, "checkpoint")
        self._checkpoints[name] = stored
        await trio.lowlevel.checkpoint()

    def checkpoint_value(self, type_: Any = Any, name: str = "default", default: Any = None) -> Any:
        """What was given or saved under the name, rebuilt as `type_`; `default` if nothing."""
        if name not in self._checkpoints:
            return default
        return payload.decoder(type_).decode(self._checkpoints[name], what=f"checkpoint {name!r}")

    async def once(self, key: str, fn: Callable[[], Awaitable[Any] | Any], returns: Any = Any) -> Any:
        """What is remembered under the key, rebuilt as `returns`; else `fn` is called."""
        _check_text(key, _LONGEST_KEY, "once: a key")
        decoder, what = payload.decoder(returns), f"result of once({key!r})"
        async with self._once_locks.setdefault(key, trio.Lock()):
            if key not in self._memos:
                result = fn()
                if inspect.isawaitable(result):
                    result = await result
                stored = payload.encode(result, what=what)
                self._check_size(stored, self._limit, self._step_id, "once")
                decoder.decode(stored, what=what)
                self._memos[key] = stored
        return decoder.decode(self._memos[key], what=what)

    # --- telling -------------------------------------------------------------------------------------------

    def log(self, message: str, /, **data: Any) -> None:
        """Note the line in `logs`."""
        self.logs.append((message, data))

    def progress(self, percent: float | None = None, message: str | None = None, **data: Any) -> None:
        """Note it in `told`."""
        self.told.append((percent, message, data))

    def stream(self, frame: Any) -> None:
        """Note the frame in `frames`."""
        self.frames.append(frame)

    async def heartbeat(self) -> None:
        """Count it in `heartbeats`."""
        self.heartbeats += 1
        await trio.lowlevel.checkpoint()


def _workflow_id(workflow: Workflow[Any, Any] | str | None, step: Step[Any] | str) -> str:
    if isinstance(workflow, Workflow):
        return workflow.id
    if workflow is not None:
        return workflow
    return step.workflow_id if isinstance(step, Step) else "workflow"


def _checked_attempt(attempt: int) -> int:
    if not is_whole(attempt, 1):
        raise ValidationError(f"attempt= is a whole number of at least 1, not {attempt!r}")
    return attempt


def _decoder_of(value: Any) -> payload.Decoder:
    """Plain data stays plain; an object comes back as what it was."""
    return payload.decoder(Any if isinstance(value, _CONTAINERS) else type(value))


def _stored(values: Mapping[str, Any] | None, what: str) -> dict[str, bytes]:
    return {name: payload.encode(value, what=f"{what} {name!r}") for name, value in (values or {}).items()}


def _check_text(value: object, longest: int, what: str) -> None:
    if not is_text(value, longest):
        raise ValidationError(f"{what} has 1 to {longest} characters, not {value!r}")
