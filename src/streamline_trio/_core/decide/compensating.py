"""The run undoes its steps, one after the other, newest first.

`Turn.settle_failed` and `Turn.settle_cancelled` turn the run back and list the steps in `undo`. Whatever turns it
back, or ends the compensation of a step, goes through `go_on` in the same write: it begins the next compensation,
settles the run, or gives the lease back. So no stored state lies between a failure and the undoing, nor between
two compensations; and who dies in between leaves a run that another worker claims like any other.
"""

from __future__ import annotations

import msgspec

from streamline_trio._core.decide.turn import Turn
from streamline_trio._core.documents import KEPT_TRIES, CompensationDoc, ErrorDoc, Lease, Try
from streamline_trio._core.durations import to_millis
from streamline_trio._core.errors import VersionMismatch
from streamline_trio._core.events import (
    EngineError,
    StepCompensated,
    WorkflowCompensated,
    WorkflowCompensating,
    WorkflowCompensationFailed,
    WorkflowRetry,
)
from streamline_trio._core.happenings import (
    Claimed,
    HandedBack,
    Happening,
    Held,
    LeaseLapsed,
    UndoFailed,
    Undone,
)
from streamline_trio._core.rollback import in_undo_order

_replace = msgspec.structs.replace
_PENDING = CompensationDoc()


def undone(turn: Turn, happening: Undone) -> None:
    """The compensation is done, and on; a cancellation that was asked meanwhile takes effect after it."""
    turn.require_held(happening)
    compensation = require_entered(turn, happening.step)
    _put(turn, happening.step, _replace(compensation, status="done", ended_at=turn.now, error=None))
    turn.emit(StepCompensated, step=happening.step, attempt=compensation.attempts)
    if turn.cancel_requested:
        turn.undo = turn.undo[1:]
        turn.settle_cancelled(turn.head.cancel_reason)
    else:
        _leave(turn)


def undo_failed(turn: Turn, happening: UndoFailed) -> None:
    """The compensation is tried again later, or has failed for good: then it is the turn of the next one."""
    turn.require_held(happening)
    compensation = require_entered(turn, happening.step)
    error = happening.error
    compensation = _replace(
        compensation,
        status="pending",
        failures=compensation.failures + 1,
        error=error,
        tries=_with_try(turn, compensation, "failed", happening.worker, error),
    )
    _put(turn, happening.step, compensation)
    how = turn.plan.compensations.get(happening.step)
    if turn.cancel_requested:
        turn.settle_cancelled(turn.head.cancel_reason)
    elif how is None or not happening.retriable or compensation.failures >= how.retry.attempts:
        _give_up(turn, happening.step, error)
    else:
        delay = to_millis(how.retry.delay_after(compensation.failures, happening.roll))
        _put(turn, happening.step, _replace(compensation, retry_at=turn.now + delay if delay else None))
        turn.goes_on_undoing = True


def recover(turn: Turn, lost: Lease, happening: Claimed | LeaseLapsed) -> None:
    """The compensation that was under way ended with its worker; too many such ends in a row, and it has failed."""
    step_id = turn.undo[0]
    compensation = turn.step(step_id).compensation or _PENDING
    if compensation.status == "running":
        tries = _with_try(turn, compensation, "crashed", lost.worker)
        _put(turn, step_id, _replace(compensation, status="pending", tries=tries))
    streak = turn.changed("streak")
    if streak > happening.max_recoveries and not turn.cancel_requested:
        text = f"the compensation of step {step_id} was recovered {streak - 1} times in a row without progress"
        _give_up(turn, step_id, ErrorDoc(code="dead_lettered", message=text, type="DeadLettered", step=step_id))


def go_on(turn: Turn, happening: Happening) -> None:
    """Begin what is next to be undone, settle if nothing is left, or leave it to the next worker."""
    worker = _who_goes_on(turn, happening)
    if worker is not None:
        _pass_over_unknown(turn)
    if not turn.undo:
        _settle(turn)
    elif worker is None or _is_too_early(turn):
        turn.release()
    else:
        if isinstance(happening, Claimed):
            fence = turn.head.fence + 1
            turn.lease = Lease(worker=worker, fence=fence)
            turn.change(fence=fence, attention=False, ready_at=None)
        _begin(turn, turn.undo[0], worker)


def retry(turn: Turn) -> None:
    """Give the compensations that failed fresh attempts, in the order they had; the others are done."""
    failed = (one for one, step in turn.steps.items() if step.compensation and step.compensation.status == "failed")
    turn.undo = in_undo_order(turn.steps, failed)
    for step_id in turn.undo:
        tries = (turn.step(step_id).compensation or _PENDING).tries
        _put(turn, step_id, CompensationDoc(tries=tries))
    turn.to("compensating")
    turn.change(ended_at=None, streak=0, retried=True)
    turn.ready()
    turn.emit(WorkflowRetry, step=turn.undo[0])
    turn.emit(WorkflowCompensating, steps=turn.undo)


def require_entered(turn: Turn, step_id: str) -> CompensationDoc:
    """The compensation of this step, which must be the one that runs."""
    compensation = turn.step(step_id).compensation
    if turn.status != "compensating" or compensation is None or compensation.status != "running":
        raise turn.invalid("report on", f"step {step_id} is not being compensated", "compensating")
    return compensation


def _who_goes_on(turn: Turn, happening: Happening) -> str | None:
    """The worker that holds or takes the run; None if nothing may begin, or nobody is there to begin it."""
    if not isinstance(happening, Held | Claimed) or isinstance(happening, HandedBack):
        return None
    return None if turn.paused or getattr(happening, "release", False) else happening.worker


def _is_too_early(turn: Turn) -> bool:
    compensation = turn.step(turn.undo[0]).compensation
    return compensation is not None and compensation.retry_at is not None and compensation.retry_at > turn.now


def _begin(turn: Turn, step_id: str, worker: str) -> None:
    """Call the compensation; one that was handed back is only entered again."""
    compensation = turn.step(step_id).compensation or _PENDING
    if compensation.status == "running":
        return
    begun = _replace(
        compensation,
        status="running",
        attempts=compensation.attempts + 1,
        started_at=turn.now,
        ended_at=None,
        retry_at=None,
        worker=worker,
    )
    _put(turn, step_id, begun)


def _pass_over_unknown(turn: Turn) -> None:
    """The code may have changed: what it does not know how to undo has failed, for people to look at."""
    while turn.undo and turn.undo[0] not in turn.plan.compensations:
        step_id = turn.undo[0]
        text = f"workflow {turn.plan.workflow} {turn.plan.version} has no compensation of step {step_id}"
        _give_up(
            turn, step_id, ErrorDoc(code=VersionMismatch.code, message=text, type="VersionMismatch", step=step_id)
        )


def _give_up(turn: Turn, step_id: str, error: ErrorDoc) -> None:
    compensation = turn.step(step_id).compensation or _PENDING
    _put(turn, step_id, _replace(compensation, status="failed", error=error, ended_at=turn.now, retry_at=None))
    turn.emit(EngineError, context=f"compensation-{step_id}", error=f"{error.code}: {error.message}")
    _leave(turn)


def _leave(turn: Turn) -> None:
    turn.undo = turn.undo[1:]
    turn.goes_on_undoing = True
    turn.change(streak=0)


def _settle(turn: Turn) -> None:
    failed = (one for one, step in turn.steps.items() if step.compensation and step.compensation.status == "failed")
    left = in_undo_order(turn.steps, failed)
    if left:
        turn.settle("compensation_failed")
        turn.emit(WorkflowCompensationFailed, steps=left)
    else:
        turn.settle("compensated")
        turn.emit(WorkflowCompensated)


def _put(turn: Turn, step_id: str, compensation: CompensationDoc) -> None:
    turn.put_step(step_id, _replace(turn.step(step_id), compensation=compensation))


def _with_try(
    turn: Turn, compensation: CompensationDoc, outcome: str, worker: str, error: ErrorDoc | None = None
) -> tuple[Try, ...]:
    ended = Try(
        attempt=compensation.attempts,
        worker=worker,
        started_at=turn.now if compensation.started_at is None else compensation.started_at,
        ended_at=turn.now,
        outcome="crashed" if outcome == "crashed" else "failed",
        code=error.code if error else "",
        message=error.message if error else "",
    )
    return (*compensation.tries, ended)[-KEPT_TRIES:]
