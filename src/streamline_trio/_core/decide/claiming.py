"""A worker takes a run: the write that makes it the holder also does what the run was due for.

That write begins the step or the attempt, fires the timer, records that a wait timed out, or settles a run that
was cancelled, overran its deadline or crashed too often. No handler sees an outcome that is not committed.
"""

from __future__ import annotations

from streamline_trio._core.decide import compensating, slotting
from streamline_trio._core.decide.pacing import meet_throttle, pass_throttle
from streamline_trio._core.decide.stepping import overdue
from streamline_trio._core.decide.suspending import fire
from streamline_trio._core.decide.turn import Turn
from streamline_trio._core.documents import ErrorDoc, Lease
from streamline_trio._core.errors import StepNotFound, VersionMismatch
from streamline_trio._core.events import (
    StepFailed,
    WorkflowDeadLettered,
    WorkflowRecovered,
    WorkflowResumed,
    WorkflowStarted,
)
from streamline_trio._core.happenings import Claimed, LeaseLapsed
from streamline_trio._core.status import ACTIVE

DEAD_LETTERED = "dead_lettered"
_CLAIMABLE = ("draft", "running", "waiting", "compensating")


def claimed(turn: Turn, happening: Claimed) -> None:
    """Take an unleased run that is due, or one whose worker is certainly gone."""
    if happening.begins_at is not None:
        turn.now = happening.begins_at
    _require_claimable(turn, happening)
    lost = turn.lease
    turn.lease = None
    if lost is not None:
        _recover(turn, lost, happening)
        if turn.status not in ACTIVE or turn.goes_on_undoing:
            return
    if turn.cancel_requested:
        turn.settle_cancelled(turn.head.cancel_reason)
    elif turn.status == "compensating":
        turn.goes_on_undoing = True
    elif turn.is_overdue:
        turn.settle_failed(overdue(turn))
    elif turn.paused or slotting.join_queue(turn, happening.slot) or meet_throttle(turn, happening):
        turn.release()
    elif not _knows_current_step(turn):
        _settle_mismatch(turn)
    else:
        pass_throttle(turn, happening)
        _take(turn, happening.worker)


def _require_claimable(turn: Turn, happening: Claimed) -> None:
    if turn.status not in ACTIVE:
        raise turn.invalid("claim", "it is settled", *_CLAIMABLE)
    if turn.lease is not None:
        if not happening.lease_dead:
            raise turn.invalid("claim", "a worker holds it", *_CLAIMABLE)
    elif turn.head.due_at is None or (turn.head.due_at > turn.now and not _is_seen_to(turn, happening)):
        raise turn.invalid("claim", "it is not due", *_CLAIMABLE)


def _is_seen_to(turn: Turn, happening: Claimed) -> bool:
    """Whether it is due only in case that its starter, who claims it, had not come back to it."""
    throttle = turn.head.throttle
    return happening.begins_at is not None and throttle is not None and throttle.stage == "new"


def lapsed(turn: Turn, happening: LeaseLapsed) -> None:
    """Give up the lease of a worker that is gone, for whoever has the code; counted as any recovery is."""
    lost = turn.lease
    if turn.status not in ACTIVE or lost is None or lost.worker != happening.lost:
        raise turn.invalid("release", f"worker {happening.lost} does not hold it", "running")
    turn.lease = None
    _recover(turn, lost, happening)
    if turn.status not in ACTIVE:
        return
    if turn.is_overdue and not turn.cancel_requested:
        turn.settle_failed(overdue(turn))
    elif turn.cancel_requested:
        turn.settle_cancelled(turn.head.cancel_reason)
    else:
        turn.release()


def _recover(turn: Turn, lost: Lease, happening: Claimed | LeaseLapsed) -> None:
    recoveries, streak = turn.head.recoveries + 1, turn.head.streak + 1
    turn.change(recoveries=recoveries, streak=streak)
    turn.emit(WorkflowRecovered, worker=happening.worker, lost_worker=lost.worker, recoveries=recoveries)
    if turn.status == "compensating":
        compensating.recover(turn, lost, happening)
        return
    step_id = turn.current()
    if turn.step(step_id).status == "running":
        turn.note_crash(step_id, lost.worker)
    if streak > happening.max_recoveries and not turn.cancel_requested:
        text = f"run {turn.run.public_id} was recovered {streak - 1} times in a row without progress"
        turn.emit(WorkflowDeadLettered, recoveries=recoveries)
        turn.change(dead_lettered=True)
        _fail_current(turn, ErrorDoc(code=DEAD_LETTERED, message=text, type="DeadLettered", step=step_id))


def _fail_current(turn: Turn, error: ErrorDoc) -> None:
    """Fail the run and its current step, also one that is pending."""
    step_id = turn.current()
    if turn.step(step_id).status == "pending":
        step = turn.move_step(step_id, "failed", error=error, ended_at=turn.now, retry_at=None)
        turn.emit(StepFailed, step=step_id, attempt=step.attempts, code=error.code, message=error.message)
    turn.settle_failed(error)


def _knows_current_step(turn: Turn) -> bool:
    step_id = turn.current_step
    if step_id is None:
        return True
    try:
        turn.plan.index(step_id)
    except StepNotFound:
        return False
    return True


def _settle_mismatch(turn: Turn) -> None:
    text = (
        f"workflow {turn.plan.workflow} {turn.plan.version} has no step {turn.current_step},"
        f" where run {turn.run.public_id} stands"
    )
    _fail_current(
        turn,
        ErrorDoc(code=VersionMismatch.code, message=text, type="VersionMismatch", step=turn.current_step),
    )


def _take(turn: Turn, worker: str) -> None:
    if turn.status == "draft":
        _start(turn, worker)
    elif turn.status == "waiting":
        _wake(turn, worker)
    else:
        _continue(turn, worker)
    turn.lease = Lease(worker=worker, fence=turn.head.fence + 1)
    turn.change(fence=turn.head.fence + 1, attention=False, ready_at=None)
    if turn.changed("fingerprint") != turn.plan.fingerprint:
        turn.change(fingerprint=turn.plan.fingerprint, cancelled_by=turn.plan.cancel_signals)


def _start(turn: Turn, worker: str) -> None:
    turn.to("running")
    _note_start(turn)
    turn.begin(turn.current_step or turn.plan.first, worker)


def _note_start(turn: Turn) -> None:
    if turn.head.started_at is None:
        turn.change(started_at=turn.now)
        turn.emit(WorkflowStarted)


def _wake(turn: Turn, worker: str) -> None:
    """A retry is due, or a wait."""
    step_id = turn.current()
    step = turn.step(step_id)
    turn.to("running")
    if step.status == "pending":
        turn.begin(step_id, worker)
        return
    if not fire(turn):
        raise turn.invalid("claim", "none of its waits is due", *_CLAIMABLE)
    turn.move_step(step_id, "running", worker=worker)
    turn.emit(WorkflowResumed, step=step_id)


def _continue(turn: Turn, worker: str) -> None:
    """The run is ready: its next step has not begun, or its handler is to be entered again."""
    step_id = turn.current()
    _note_start(turn)
    if turn.step(step_id).status == "pending":
        turn.begin(step_id, worker)
