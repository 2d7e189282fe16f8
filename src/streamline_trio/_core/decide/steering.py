"""What operators and clients ask of a run: cancel, pause, unpause, rewind, retry.

They need no code of the workflow. On a leased run they only record what is asked; the holder does it. A verb
that already took effect changes nothing (the function returns False).
"""

from __future__ import annotations

import msgspec

from streamline_trio._core.decide import compensating, slotting
from streamline_trio._core.decide.pacing import enter_again
from streamline_trio._core.decide.stepping import forget_failed_outcomes, reset_steps, restart_deadline
from streamline_trio._core.decide.turn import Turn
from streamline_trio._core.events import (
    WorkflowPaused,
    WorkflowRetry,
    WorkflowRewound,
    WorkflowUnpaused,
)
from streamline_trio._core.happenings import CancelAsked, PauseAsked, Retried, Rewound, TakenUp, UnpauseAsked
from streamline_trio._core.status import SETTLED

_replace = msgspec.structs.replace


def cancel_asked(turn: Turn, happening: CancelAsked) -> bool:
    """Settle an unleased run at once; ask the holder of a leased one. What undoes its steps is left alone."""
    if turn.status in SETTLED or (turn.cancel_requested and turn.lease is not None and not happening.lease_dead):
        return False
    if turn.status == "compensating" and (not happening.stops_undoing or turn.head.error is None):
        return False  # what it undoes because it was cancelled is not left half undone by who cancels it again
    reason = turn.head.cancel_reason if turn.cancel_requested else happening.reason
    if turn.lease is not None and not happening.lease_dead:
        turn.cancel_requested = True
        turn.change(cancel_requested=True, cancel_reason=reason, attention=True)
        return True
    turn.settle_cancelled(reason)
    return True


def pause_asked(turn: Turn, happening: PauseAsked) -> bool:
    """Let nothing more begin; a handler that runs ends its step first."""
    if turn.status in SETTLED or turn.paused:
        return False
    turn.paused = True
    turn.change(pause_reason=happening.reason, attention=turn.lease is not None)
    turn.emit(WorkflowPaused, reason=happening.reason)
    return True


def unpause_asked(turn: Turn, _happening: UnpauseAsked) -> bool:
    """Let the run go on; answers no wait."""
    if not turn.paused:
        return False
    turn.paused = False
    turn.change(pause_reason=None, attention=turn.lease is not None)
    turn.emit(WorkflowUnpaused)
    return True


def rewound(turn: Turn, happening: Rewound) -> None:
    """Reset the target and all later steps; the run is ready to go on from the target."""
    target = turn.plan.index(happening.to)
    _require_rewindable(turn, happening, target)
    slotting.take_up(turn, happening)
    steps = frozenset(step.id for step in turn.plan.steps[target:])
    reset_steps(turn, steps)
    turn.drop("memos", [key for key, memo in turn.memos.items() if memo.step in steps])
    turn.drop_records(keep_outcomes=False)
    turn.current_step = happening.to
    turn.emit(WorkflowRewound, step=happening.to)
    _take_up_again(turn, happening)


def retried(turn: Turn, happening: Retried) -> bool:
    """Give what failed fresh attempts; everything that succeeded stays. Once: until it settles again."""
    if turn.status not in SETTLED and turn.head.retried:
        return False
    if turn.status == "compensation_failed":
        slotting.take_up(turn, happening)
        compensating.retry(turn)
        return True
    if turn.status != "failed":
        raise turn.invalid("retry", "it has not failed", "failed", "compensation_failed")
    slotting.take_up(turn, happening)
    step_id = turn.current_step = _reached(turn)
    if step_id in turn.steps:
        if turn.step(step_id).status == "failed":
            turn.move_step(step_id, "pending", ended_at=None, retry_at=None)
        turn.put_step(step_id, _replace(turn.step(step_id), attempts=0, failures=0, error=None))
    forget_failed_outcomes(turn, approvals=True)
    _make_memos(turn)
    turn.emit(WorkflowRetry, step=step_id)
    _take_up_again(turn, happening)
    turn.change(retried=True)
    return True


def _make_memos(turn: Turn) -> None:
    """Attempts count from 1 again: what is recorded belongs to none of the coming ones."""
    for key, record in list(turn.records.items()):
        turn.put_record(key, _replace(record, attempt=0))


def _require_rewindable(turn: Turn, happening: Rewound, target: int) -> None:
    allowed = ("done", "failed", "running", "waiting")
    if turn.status not in allowed:
        why = "it has not begun" if turn.status == "draft" else "it is past going back"
        raise turn.invalid("rewind", why, *allowed)
    if turn.lease is not None and not happening.lease_dead:
        raise turn.invalid(
            "rewind", "a step is running: pause it and wait for the step to end", "done", "failed", "waiting"
        )
    if turn.lease is not None and turn.cancel_requested:
        raise turn.invalid("rewind", "it is being cancelled", "done", "failed", "waiting")
    reached = _reached(turn)
    if turn.status != "done" and _is_known(turn, reached) and turn.plan.index(reached) < target:
        raise turn.invalid("rewind", f"it has not reached step {happening.to}", *allowed)


def _reached(turn: Turn) -> str:
    """The step where the run stands; one that failed before it began stands at the first."""
    return turn.current_step or turn.plan.first


def _is_known(turn: Turn, step_id: str) -> bool:
    return any(step.id == step_id for step in turn.plan.steps)


def _take_up_again(turn: Turn, happening: TakenUp) -> None:
    turn.to("running")
    turn.lease = None
    turn.cancel_requested = False
    turn.change(
        error=None,
        ended_at=None,
        cancel_requested=False,
        cancel_reason=None,
        dead_lettered=False,
        retried=False,
        streak=0,
        attention=False,
    )
    turn.ready()
    restart_deadline(turn)
    enter_again(turn, happening)
