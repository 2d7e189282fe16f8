"""Drives one run for as long as it is leased to this worker: enter the handler, commit what happened, again."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import trio

from streamline_trio._core import payload
from streamline_trio._core.checking import storable_text
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import InvalidState, LeaseLost, StoreUnavailable, StreamlineError, ValidationError
from streamline_trio._core.events import StepProgress, StepStream
from streamline_trio._core.happenings import (
    AttemptFailed,
    CancelUnwound,
    DeadlinePassed,
    HandedBack,
    Happening,
    UndoFailed,
)
from streamline_trio._core.step import Step
from streamline_trio._core.store import AppendRows, RowKind, Touched
from streamline_trio._runtime.attempt import Attempt, describe_error
from streamline_trio._runtime.handler_scope import HandlerScope
from streamline_trio._runtime.outputs import Found
from streamline_trio._runtime.progress import ProgressEntry, progress_row
from streamline_trio._runtime.services import Services
from streamline_trio._runtime.threads import HandlerThreads
from streamline_trio._runtime.undoing import Undoing
from streamline_trio._runtime.writer import HolderGone, RunWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

AbortReason = Literal["cancel", "lost", "leave"]

_ROW_DELAY = 1.0
_ROWS_AT_ONCE = 100
_MAX_TOLD = 10_000


class LogEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line that a handler logged; `at` in milliseconds since the epoch."""

    at: int
    step: str
    attempt: int
    message: str
    data: dict[str, Any] = {}


class Driver:
    """The task that holds a run."""

    __slots__ = (
        "_done",
        "_ended",
        "_entered",
        "_must_leave",
        "_once_locks",
        "_over",
        "_rows",
        "_rows_timer",
        "_scope",
        "_state_decoder",
        "abort_reason",
        "is_done",
        "leaving",
        "services",
        "state",
        "threads",
        "workflow",
        "writer",
    )

    def __init__(
        self,
        services: Services,
        run: RunDoc,
        workflow: Workflow[Any, Any],
        threads: HandlerThreads,
        *,
        over: Callable[[Driver], None],
    ) -> None:
        self.services: Services = services
        self.workflow: Workflow[Any, Any] = workflow
        self.threads: HandlerThreads = threads
        self._over = over
        self._entered: Attempt | None = None
        self._must_leave = False
        self._ended: Attempt | None = None
        self._scope = HandlerScope()
        self.abort_reason: AbortReason | None = None
        self.leaving: bool = False
        self.state: bytes = run.state
        self.is_done: bool = False
        self._done: trio.Event | None = None
        self.writer: RunWriter = RunWriter(services, run, workflow.plan, noticed=self._noticed)
        self._state_decoder: payload.Decoder | None = None
        self._once_locks: dict[str, trio.Lock] | None = None
        self._rows: dict[RowKind, list[bytes]] = {}
        self._rows_timer = False

    @property
    def run(self) -> RunDoc:
        """The run as last committed or read."""
        return self.writer.run

    @property
    def state_decoder(self) -> payload.Decoder:
        """The decoder of the run's state."""
        if self._state_decoder is None:
            self._state_decoder = self.workflow.state_decoder(self.run.origin.input)
        return self._state_decoder

    # --- the task ------------------------------------------------------------------------------------------

    async def drive(self) -> None:
        """Until the run parks, settles, is handed back or lost. Raises nothing but what is a bug of ours."""
        try:
            while self.writer.is_held:
                happening = self._stop() or await self._enter()
                if happening is None:
                    break
                await self._commit_step(happening)
                self._forget_cancel()
        except (LeaseLost, HolderGone):
            pass
        except StoreUnavailable as error:
            self.services.report("a run was given up: its commit could not be confirmed", error, self.run)
        except Exception as error:  # noqa: BLE001 - one run must not end the engine
            await self._give_up(error)
        finally:
            self._scope.close()
            self._pack_rows()
            self.writer.close()
            self.is_done = True
            if self._done is not None:
                self._done.set()
            self._over(self)

    async def wait_done(self) -> None:
        """Until the run is no longer driven."""
        if self._done is None:
            self._done = trio.Event()
            if self.is_done:
                self._done.set()
        await self._done.wait()

    def _stop(self) -> Happening | None:
        """Why no step is to be entered now, if there is a reason."""
        head, writer = self.run.head, self.writer
        if head.cancel_requested:
            return CancelUnwound(worker=writer.worker, fence=writer.fence, release=self.leaving)
        if head.deadline is not None and head.deadline <= self.now():
            return DeadlinePassed(worker=writer.worker, fence=writer.fence, release=self.leaving)
        if self.leaving and self.abort_reason == "leave":
            return HandedBack(worker=writer.worker, fence=writer.fence)
        return None

    async def _enter(self) -> Happening | None:
        """Enter the current handler in a cancel scope; what is to be committed, None if nothing may be.

        The scope is for every reason to stop the handler; who cancelled it is remembered beside it.
        """
        step_id = self._stands_at
        attempt = self._entered = self._attempt(self.workflow.steps[step_id], self._scope.open(self._deadline()))
        happening: Happening | None = None
        try:
            with self._scope:
                happening = await attempt.enter()
        except Exception as error:  # noqa: BLE001 - what is left of a group, or a scope that was left open
            happening = attempt.failed(error)
        except (trio.Cancelled, BaseExceptionGroup) as error:
            if trio.current_effective_deadline() == -math.inf or _ends_the_process(error):
                raise
            happening = attempt.failed(_stray(step_id, error))
        finally:
            self._entered = None
            attempt.end()
        if self.workflow.hooks is not None and not self.is_undoing:
            self._ended = attempt
        return attempt.settle(happening)

    def _attempt(self, step: Step[Any], scope: trio.CancelScope) -> Attempt:
        if not self.is_undoing:
            return Attempt(self, step, scope)
        assert step.compensation is not None
        return Undoing(self, step, step.compensation, scope)

    @property
    def is_undoing(self) -> bool:
        """Whether the handlers that are entered now are compensations."""
        return self.run.head.status == "compensating"

    @property
    def _stands_at(self) -> str:
        """The step whose handler or compensation is to be entered."""
        head = self.run.head
        return head.undo[0] if self.is_undoing else head.current_step or ""

    def attempt_of(self, step_id: str) -> int:
        """Calls of the step's handler so far, or of its compensation."""
        step = self.run.step(step_id)
        if not self.is_undoing:
            return step.attempts
        return 0 if step.compensation is None else step.compensation.attempts

    def _deadline(self) -> float:
        """When the run's own timeout is up, on trio's clock."""
        deadline = self.run.head.deadline
        if deadline is None:
            return math.inf
        return trio.current_time() + max(deadline - self.now(), 0) / 1000

    async def _commit_step(self, happening: Happening) -> None:
        """Commit how an entry ended; what cannot be stored fails the attempt instead."""
        self._pack_rows()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended.ending()
        failure: StreamlineError | None = None
        try:
            await self.writer.commit(happening)
            if isinstance(happening, UndoFailed):
                self._log_failure(happening)
        except (LeaseLost, StoreUnavailable):
            raise
        except StreamlineError as error:
            if isinstance(happening, HandedBack | CancelUnwound | DeadlinePassed):
                raise
            failure, happening = error, self._as_failure(error, release=self.leaving)
            await self.writer.commit(happening)
        if ended is not None:
            await ended.tell(happening, failure)

    def _log_failure(self, happening: UndoFailed) -> None:
        compensation = self.run.step(happening.step).compensation
        if compensation is not None and compensation.status == "failed":
            error = happening.error
            self.services.logger.error(
                "run %s: step %s could not be undone: %s", self.run.origin.id, happening.step, error.message
            )

    def _forget_cancel(self) -> None:
        """A cancellation has taken effect, and what was done is to be undone here: that is not to be stopped."""
        if self.abort_reason == "cancel" and not self.run.head.cancel_requested:
            self.abort_reason = "leave" if self._must_leave else None

    async def _give_up(self, error: Exception) -> None:
        """A fault of ours: the run fails, rather than to stay leased to a worker that does not drive it."""
        self.services.report("the engine failed with a run", error, self.run)
        plain = StreamlineError(f"the engine failed with {type(error).__name__}")
        try:
            # What was in flight may have moved the run on: then the failure is one of the step it stands at now.
            with suppress(InvalidState):
                await self.writer.commit(self._as_failure(plain, release=True))
            if self.writer.is_held:
                await self.writer.commit(self._as_failure(plain, release=True))
        except (StreamlineError, HolderGone) as again:
            self.services.report("a run was given up", again, self.run)

    def _as_failure(self, error: StreamlineError, *, release: bool) -> AttemptFailed | UndoFailed:
        step = self._stands_at
        return (UndoFailed if self.is_undoing else AttemptFailed)(
            worker=self.writer.worker,
            fence=self.writer.fence,
            step=step,
            error=describe_error(error, step),
            retriable=False,
            release=release,
        )

    def _noticed(self, run: RunDoc, touched: Touched | None) -> None:
        """The run changed under us: a cancellation stops the handler, a lost lease too."""
        if not self.writer.is_held:
            if self.writer.lost:
                self.abort("lost")
        elif run.head.cancel_requested:
            self.abort("cancel")
        elif self._entered is not None:
            self._entered.noticed(run, None if touched is None else touched.get("records", ()))

    def abort(self, reason: AbortReason) -> None:
        """Stop the handler; what is written afterwards depends on the reason. Losing the lease beats all."""
        if self.abort_reason is None or reason == "lost":
            self.abort_reason = reason
        if reason == "leave":
            self._must_leave = True
        if reason == "lost":
            self.writer.lost = True
        if self._entered is not None:
            self._entered.abort()

    def leave(self) -> None:
        """Hand the run back at the end of the present step."""
        self.leaving = True

    # --- what the context asks for -------------------------------------------------------------------------

    def now(self) -> int:
        """Milliseconds since the epoch."""
        return self.services.clock.now()

    def mint_token(self) -> str:
        """A new unguessable token."""
        return self.services.chance.token()

    def max_payload(self, step: Step[Any]) -> int | None:
        """The limit on what the step stores, in bytes."""
        return step.options.max_payload_bytes

    async def commit(self, happening: Happening) -> RunDoc:
        """Commit what a handler makes durable."""
        try:
            return await self.writer.commit(happening)
        except HolderGone:
            raise LeaseLost(f"run {self.run.public_id} is no longer driven here") from None

    def output_of(self, step_id: str) -> Found | None:
        """A finished step's output."""
        doc = self.run.steps.get(step_id)
        if doc is None or doc.status != "done" or doc.output is None:
            return None
        step = self.workflow.steps.get(step_id)
        what = f"the output of step {step_id}"
        if step is None:
            return Found(payload.decoder(Any).decode(doc.output, what=what))
        return Found(step.decoder.decode(doc.output, what=what))

    def once_lock(self, key: str) -> trio.Lock:
        """Single flight per key of `once`."""
        if self._once_locks is None:
            self._once_locks = {}
        return self._once_locks.setdefault(key, trio.Lock())

    # --- rows and frames -----------------------------------------------------------------------------------

    def log(self, step: str, message: object, data: Mapping[str, Any]) -> None:
        """Buffer a log line; it goes out with the next commit, or soon."""
        attempt = self.attempt_of(step)
        self.services.logger.info("%s/%s: %s", self.run.origin.id, step, message)
        text = storable_text(message, _MAX_TOLD)
        entry = LogEntry(at=self.now(), step=step, attempt=attempt, message=text, data=dict(data))
        row = _encode_entry(entry)
        self._in_trio(lambda: self._add_row("log", row))

    def progress(self, step: str, percent: object, message: object, data: Mapping[str, Any]) -> None:
        """Publish progress; keep the last word."""
        entry = ProgressEntry(
            at=self.now(),
            step=step,
            attempt=self.attempt_of(step),
            percent=float(percent) if isinstance(percent, int | float) else None,
            message=None if message is None else storable_text(message, _MAX_TOLD),
            data=dict(data),
        )
        row = progress_row(entry)
        origin = self.run.origin
        event = StepProgress(
            run_id=self.run.public_id,
            workflow=origin.workflow,
            tenant=origin.tenant,
            revision=self.run.head.revision,
            at_millis=entry.at,
            step=step,
            percent=entry.percent,
            message=entry.message,
            data=dict(data),
        )

        def tell() -> None:
            self._rows["progress"] = [row]
            self._start_rows_timer()
            self.services.publisher.publish((event,))

        self._in_trio(tell)

    def stream(self, step: str, seq: int, frame: Any) -> None:
        """Publish a frame."""
        origin = self.run.origin
        event = StepStream(
            run_id=self.run.public_id,
            workflow=origin.workflow,
            tenant=origin.tenant,
            revision=self.run.head.revision,
            at_millis=self.now(),
            step=step,
            attempt=self.attempt_of(step),
            seq=seq,
            frame=frame,
        )
        self._in_trio(lambda: self.services.publisher.publish((event,)))

    def flush_rows(self) -> None:
        """Send buffered rows now."""
        self._pack_rows()
        self.writer.flush_rows()

    def _add_row(self, kind: RowKind, row: bytes) -> None:
        rows = self._rows.setdefault(kind, [])
        rows.append(row)
        if len(rows) >= _ROWS_AT_ONCE:
            self.flush_rows()
        else:
            self._start_rows_timer()

    def _start_rows_timer(self) -> None:
        if not self._rows_timer:
            self._rows_timer = True
            self.services.spawn(self._flush_later)

    async def _flush_later(self) -> None:
        """A long step's lines are seen while it runs; a run that ends sooner sends them with its commit."""
        with trio.move_on_after(_ROW_DELAY):
            await self.wait_done()
        self._rows_timer = False
        if not self.is_done:
            self.flush_rows()

    def _pack_rows(self) -> None:
        if not self._rows:
            return
        rows, self._rows = self._rows, {}
        for kind, lines in rows.items():
            keep = self.workflow.max_step_logs if kind == "log" else 1
            if lines and keep:
                self.writer.add_rows(AppendRows(self.run.origin.id, kind, tuple(lines), keep, self.writer.fence))

    def _in_trio(self, act: Callable[[], None]) -> None:
        """Do it in the trio thread: handlers in threads call the context too, perhaps when all is over."""
        try:
            trio.lowlevel.current_task()
        except RuntimeError:
            with suppress(trio.RunFinishedError):
                self.services.token.run_sync_soon(self._unless_done, act)
        else:
            self._unless_done(act)

    def _unless_done(self, act: Callable[[], None]) -> None:
        if not self.is_done:
            act()


def _ends_the_process(error: BaseException) -> bool:
    """Whether somebody wants the process to end, perhaps in a nursery of the handler."""
    if not isinstance(error, BaseExceptionGroup):
        return False
    # a group of any errors
    ends = error.subgroup((KeyboardInterrupt, SystemExit))  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return ends is not None


def _stray(step: str, error: BaseException) -> StreamlineError:
    """The failure of a handler that raises a cancellation which is nobody's."""
    failure = StreamlineError(f"step {step} raised trio.Cancelled, and no scope around it was cancelled", step=step)
    failure.__cause__ = error
    return failure


def _encode_entry(entry: LogEntry) -> bytes:
    """Telling never fails: what cannot be stored is told as text."""
    try:
        return payload.encode(entry, what="entry")
    except ValidationError:
        plain = {
            storable_text(key, _MAX_TOLD): storable_text(value, _MAX_TOLD) for key, value in entry.data.items()
        }
        return payload.encode(msgspec.structs.replace(entry, data=plain), what="entry")
