"""A handle on one run: what callers do with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, overload

import msgspec
import trio
import whenever

from streamline_trio._core import payload
from streamline_trio._core.approvals import approval, rejection
from streamline_trio._core.checking import check_reason, is_text
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.durations import instant_of, seconds_of
from streamline_trio._core.errors import OutputMissing, RunCancelled, RunFailed, StoreUnavailable, ValidationError
from streamline_trio._core.events import StepStream
from streamline_trio._core.happenings import (
    Answered,
    CancelAsked,
    PauseAsked,
    Retried,
    Rewound,
    UnpauseAsked,
    Withdrawn,
)
from streamline_trio._core.status import SETTLED
from streamline_trio._core.step import Step, step_id_of
from streamline_trio._core.store import RowKind
from streamline_trio._core.tenancy import public_id, tenant_of
from streamline_trio._runtime.driver import LogEntry
from streamline_trio._runtime.driving import drive
from streamline_trio._runtime.forking import fork
from streamline_trio._runtime.history import pinning
from streamline_trio._runtime.metrics import RunMetrics, run_metrics
from streamline_trio._runtime.progress import ProgressEntry
from streamline_trio._runtime.snapshot import Run
from streamline_trio._runtime.tenancy import Place, Scope, no_run, scope_of
from streamline_trio._runtime.timeline import TimelineEntry, timeline
from streamline_trio._runtime.tree import RunTree, tree_of

if TYPE_CHECKING:
    from streamline_trio._runtime.machinery import Machinery

T = TypeVar("T")

_NOT_GIVEN: Any = object()
_LONGEST_WAIT = 10_000


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line that a handler logged."""

    at: whenever.Instant
    step: str
    attempt: int
    message: str
    data: dict[str, Any] = {}


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run is: `done` of `total` steps are done, `percent` is rounded.

    `step`, `reported`, `message`, `data` and `at` are what a handler told last by `ctx.progress`, if any did.
    """

    percent: int
    done: int
    total: int
    step: str | None = None
    reported: float | None = None
    message: str | None = None
    data: dict[str, Any] = {}
    at: whenever.Instant | None = None


_decode_progress = msgspec.msgpack.Decoder(ProgressEntry).decode
_decode_log = msgspec.msgpack.Decoder(LogEntry).decode


class RunHandle:
    """One run of one engine. Making a handle reads nothing; every verb works on what is stored."""

    def __init__(self, machinery: Machinery, run_id: str, scope: Scope) -> None:
        self.id = run_id
        self._machinery = machinery
        self._place = Place(machinery.services, run_id, scope)

    @property
    def tenant(self) -> str | None:
        """The tenant in whose scope the handle was made, or whose run was started by making it."""
        return self._place.scope.tenant

    def __repr__(self) -> str:
        return f"<RunHandle {self.id}>" if self.tenant is None else f"<RunHandle {self.id} of {self.tenant}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunHandle) and other.id == self.id and other.tenant == self.tenant

    def __hash__(self) -> int:
        return hash(self.id)

    # --- reading -------------------------------------------------------------------------------------------

    async def get(self) -> Run:
        """The run as it is stored now. Raises `RunNotFound`. A cancel point."""
        return await self._machinery.view(await self._load())

    async def wait(self, timeout: float | timedelta | None = None) -> Run:
        """The run, once it has settled, which is after its compensation.

        Raises `TimeoutError` after `timeout` seconds. A cancel point.
        """
        return await self._machinery.view(await self._settled(timeout))

    async def result(self, timeout: float | timedelta | None = None) -> Any:
        """The output of the last step that ran, once the run is done.

        Raises `RunFailed` or `RunCancelled`, which carry the run, or `TimeoutError`; also after what it did was
        undone. A cancel point.
        """
        settled = await self._settled(timeout)
        if settled.head.status == "done":
            return self._machinery.output(settled)
        run = await self._machinery.view(settled)
        if run.error is None or run.status == "cancelled":
            reason = f": {run.cancel_reason}" if run.cancel_reason else ""
            raise RunCancelled(f"run {self.id} was cancelled{reason}", run=run)
        raise RunFailed(f"run {self.id} of {run.workflow} failed: {run.error.message}", run=run)

    @overload
    async def output(self, step: Step[T]) -> T: ...
    @overload
    async def output(self, step: str) -> Any: ...
    async def output(self, step: Step[Any] | str) -> Any:
        """A finished step's output, rebuilt in its type; `OutputMissing`. A cancel point."""
        step_id = step_id_of(step)
        run = await self._load()
        doc = run.steps.get(step_id)
        if doc is None or doc.status != "done" or doc.output is None:
            raise OutputMissing(f"step {step_id} of run {self.id} has no output", step=step_id)
        known = step if isinstance(step, Step) else self._known_step(run, step_id)
        decoder = payload.decoder(Any) if known is None else known.decoder
        return decoder.decode(doc.output, what=f"the output of step {step_id}")

    async def logs(self) -> list[LogLine]:
        """The lines that handlers logged, oldest first, at most the workflow's `max_step_logs`."""
        run = await self._load()
        return [_log_line(_decode_log(row)) for row in await self._rows(run, "log")]

    async def progress(self) -> Progress:
        """How many steps are done, and what handlers told last by `ctx.progress`. Raises `RunNotFound`."""
        stored = await self._load()
        run = await self._machinery.view(stored)
        done = sum(step.status == "done" for step in run.steps.values())
        told = [_decode_progress(row) for row in await self._rows(stored, "progress")]
        progress = Progress(percent=round(100 * done / len(run.steps)), done=done, total=len(run.steps))
        if not told:
            return progress
        last = told[-1]
        return msgspec.structs.replace(
            progress,
            step=last.step,
            reported=last.percent,
            message=last.message,
            data=last.data,
            at=instant_of(last.at),
        )

    async def _rows(self, run: RunDoc, kind: RowKind) -> list[bytes]:
        """The stored rows, with those that wait in a driver here."""
        machinery = self._machinery
        driver = machinery.crew.drivers.get(run.id)
        if driver is not None:
            driver.flush_rows()
            await machinery.services.committer.flushed()
        store = machinery.services.store
        return await machinery.services.read(lambda: store.rows(run.id, kind))

    async def metrics(self) -> RunMetrics:
        """How often and how long the run's steps ran and waited, and the run as a whole; up to now."""
        machinery = self._machinery
        run = await self._load()
        return run_metrics(run, await machinery.plan_of(run), machinery.services.clock.now())

    async def timeline(self) -> list[TimelineEntry]:
        """What happened when, by which worker and attempt; bounded per step."""
        return timeline(await self._load())

    async def tree(self, *, depth: int = 10, limit: int = 1000) -> RunTree:
        """The run with its children, theirs, and so on: so many levels below it, and so many runs in all.

        What is farthest away is left out, and told by `truncated`. Raises `RunNotFound`. A cancel point.
        """
        return await self._place.do(lambda key: tree_of(self._machinery, key, depth=depth, limit=limit))

    async def stream(self) -> AsyncIterator[Any]:
        """The frames that handlers of this run stream, while this process drives it; ends when it settles."""
        publisher = self._machinery.services.publisher
        includes = self._place.scope.includes
        async with publisher.subscribe("step.stream", "workflow.*", run=self.id, includes=includes) as events:
            run = await self._load()
            if run.head.status in SETTLED:
                return
            async for event in events:
                if event.tenant != run.origin.tenant:
                    continue
                if isinstance(event, StepStream):
                    yield event.frame
                elif event.name in _SETTLING and not getattr(event, "compensating", False):
                    return

    # --- verbs ---------------------------------------------------------------------------------------------

    async def resume(
        self, payload: Any = _NOT_GIVEN, *, step: str | Step[Any] | None = None, wait: str | None = None
    ) -> None:
        """Answer the one open wait (of `step`). A human wait needs a payload, which must fit what it returns.

        Where several are open, as in a scatter, `wait` says which: by its name, or its key as `pending` lists it.
        Raises `InvalidState` when nothing waits or several are meant, `ValidationError` for a payload that does not
        fit (the wait stays open). Durable when it returns; a cancel point; atomic.
        """
        given = None if payload is _NOT_GIVEN else _encoded(payload, self.id)
        await self._act(Answered(payload=given, step=_step_id(step), wait=_wait_name(wait)))

    async def approve(
        self, data: Any = None, *, step: str | Step[Any] | None = None, wait: str | None = None
    ) -> None:
        """Approve what the run (the step) waits for. `InvalidState`; `ValidationError` for data that does not fit.

        As `resume` it answers the one open wait, durably. A wait that is no approval takes it only if what it
        returns has the form of an approval.
        """
        await self._act(
            Answered(payload=approval(data), step=_step_id(step), wait=_wait_name(wait), verb="approve")
        )

    async def reject(
        self, reason: str | None = None, *, step: str | Step[Any] | None = None, wait: str | None = None
    ) -> None:
        """Reject what the run (the step) waits for, as `approve` does. `InvalidState`, `ValidationError`."""
        await self._act(
            Answered(payload=rejection(reason), step=_step_id(step), wait=_wait_name(wait), verb="reject")
        )

    async def withdraw(
        self, reason: str | None = None, *, step: str | Step[Any] | None = None, wait: str | None = None
    ) -> None:
        """End the one open human wait without an answer: it raises `WaitWithdrawn` in the handler."""
        check_reason(reason, "the reason of a withdrawal")
        await self._act(Withdrawn(step=_step_id(step), wait=_wait_name(wait), reason=reason))

    async def cancel(self, reason: str | None = None) -> None:
        """Cancel the run; durable when it returns. No-op on a settled run.

        A run that no living worker holds is settled at once; a running handler is cancelled and the run settles
        when it has unwound. With `compensate_on_cancel` what it did is undone first, and to cancel it again changes
        nothing. A run that is compensating because it failed settles as cancelled, and what is not undone by then
        stays so.
        """
        check_reason(reason, "the reason of a cancellation")
        await self._act(CancelAsked(reason=reason, stops_undoing=True))

    async def pause(self, reason: str | None = None) -> None:
        """Let nothing more begin and no wait time out; a handler that runs ends its step.

        No-op on a run that is paused already, and on a settled one: it may just have settled by itself.
        """
        check_reason(reason, "the reason of a pause")
        await self._act(PauseAsked(reason=reason))

    async def unpause(self) -> None:
        """Let the run go on; never answers a wait. No-op if it is not paused."""
        await self._act(UnpauseAsked())

    async def rewind(self, to: str | Step[Any]) -> None:
        """Reset a step and all after it, and go on from there. `InvalidState`, `StepNotFound`."""
        await self._act(Rewound(to=step_id_of(to)))

    async def retry(self) -> None:
        """Give a failed or dead-lettered run fresh attempts at what failed; repeated, a no-op.

        Of a `compensation_failed` run only what could not be undone is tried again. `InvalidState` for any other
        run.
        """
        await self._act(Retried())

    async def fork(self, from_step: str | Step[Any]) -> RunHandle:
        """Start another run that begins at a step this run has come to, with what it has of the steps before.

        The new run has the same input, tenant, user, tags, meta, priority and version, the state as it is now, and
        the outputs, checkpoints and `once` results of earlier steps; no idempotency key, no signals. Each call
        makes one more. Durable when it returns; atomic; a cancel point. Raises `StepNotFound`, and `InvalidState`
        for a draft, a step that the run has not come to, or one after a step that has been undone. If the
        acknowledgement is lost (`StoreUnavailable`), the fork may be there.
        """
        step = step_id_of(from_step)
        return handle_of(self._machinery, await self._place.do(lambda key: fork(self._machinery, key, step)))

    async def pin_output(self, version: int, step: str | Step[Any]) -> None:
        """Make an output of a finished step's history its output again; idempotent.

        Steps that have read the present output are not run again. The output that is replaced is not added to the
        history. Raises `StepNotFound`, `ValidationError` for a version that is not there, and `InvalidState` for a
        step that is not done or a run that is cancelled. Durable when it returns; atomic; a cancel point.
        """
        await self._act(pinning(version, step_id_of(step)))

    async def drive(self) -> Run:
        """Claim the run and drive it here until it parks or settles; the run as it then is.

        Does nothing with a run that is settled, paused or not due. `InvalidState` when a worker elsewhere holds
        it. When cancelled it hands the run back.
        """
        await self._place.do(lambda key: drive(self._machinery, key))
        return await self.get()

    async def _act(self, happening: Any) -> RunDoc:
        return await self._place.do(lambda key: self._machinery.act(key, happening))

    async def _load(self) -> RunDoc:
        return await self._place.do(self._machinery.load)

    async def _settled(self, timeout: float | timedelta | None) -> RunDoc:
        return await self._place.do(lambda key: self._settled_at(key, timeout))

    async def _settled_at(self, key: str, timeout: float | timedelta | None) -> RunDoc:
        machinery = self._machinery
        driver = machinery.crew.drivers.get(key)
        driven = driver is not None and driver.writer.is_held
        if timeout is None:
            return await machinery.watcher.wait(key, driven=driven)
        seconds = seconds_of(timeout, what="timeout")
        with trio.move_on_after(seconds):
            return await machinery.watcher.wait(key, driven=driven)
        return await self._settled_late(key, seconds)

    async def _settled_late(self, key: str, seconds: float) -> RunDoc:
        """The time is up: the run if it has settled meanwhile, else an error that says how it stands."""
        try:
            run = await self._machinery.services.store.load(key)
        except StoreUnavailable:
            run = None
        if run is not None and run.head.status in SETTLED:
            return run
        status = "" if run is None else f" and is {run.head.status}"
        raise TimeoutError(f"run {self.id} timed out: it did not settle within {seconds:g} s{status}")

    def _known_step(self, run: RunDoc, step_id: str) -> Step[Any] | None:
        workflow = self._machinery.registry.workflow_for(run)
        return None if workflow is None else workflow.steps.get(step_id)


def handle_of(machinery: Machinery, stored: str) -> RunHandle:
    """A handle on the run that is stored under this id."""
    return RunHandle(machinery, public_id(stored), scope_of(tenant_of(stored)))


def place_of(machinery: Machinery, run: RunHandle | str, scope: Scope) -> Place:
    """The place of a run that a caller names within a scope; `RunNotFound` for a handle that is not of it."""
    if isinstance(run, str):
        return Place(machinery.services, run, scope)
    place = run._place  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - of this module
    if scope.confined and place.scope.confined and place.scope.tenant != scope.tenant:
        raise no_run(run.id)
    return Place(machinery.services, run.id, place.scope if place.scope.confined else scope)


_SETTLING = frozenset(
    {
        "workflow.completed",
        "workflow.failed",
        "workflow.cancelled",
        "workflow.compensated",
        "workflow.compensation_failed",
    }
)


def _encoded(value: Any, run_id: str) -> bytes:
    return payload.encode(value, what=f"the answer for run {run_id}")


def _wait_name(wait: str | None) -> str | None:
    if wait is not None and not is_text(wait, _LONGEST_WAIT):
        raise ValidationError(f"a wait is told by its name or key, not by {wait!r}")
    return wait


def _step_id(step: str | Step[Any] | None) -> str | None:
    return None if step is None else step_id_of(step)


def _log_line(entry: LogEntry) -> LogLine:
    return LogLine(
        at=instant_of(entry.at),
        step=entry.step,
        attempt=entry.attempt,
        message=entry.message,
        data=entry.data,
    )
