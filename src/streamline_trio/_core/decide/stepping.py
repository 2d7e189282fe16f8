"""What the holder reports of a step: it finished, was skipped, failed, or goes to another step.

Each of these ends with `go_on`, which in the same write settles the run, begins the next step, or gives the
lease back. So no stored state lies between the end of one step and the beginning of the next.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import msgspec

from streamline_trio._core.decide.archiving import archived
from streamline_trio._core.decide.turn import Turn
from streamline_trio._core.documents import FAILED_OUTCOMES, ErrorDoc, StepDoc
from streamline_trio._core.durations import to_millis
from streamline_trio._core.errors import RunTimeout
from streamline_trio._core.events import StepCompleted, StepRetryScheduled, StepSkipped
from streamline_trio._core.happenings import (
    AttemptFailed,
    CancelUnwound,
    DeadlinePassed,
    Finished,
    HandedBack,
    Skipped,
    WentTo,
)

_replace = msgspec.structs.replace


def finished(turn: Turn, happening: Finished) -> None:
    """running -> done, and on."""
    turn.require_held(happening)
    step = turn.require_running(happening.step)
    position = turn.changed("finished") + 1
    turn.move_step(
        happening.step,
        "done",
        output=happening.output,
        error=None,
        ended_at=turn.now,
        position=position,
    )
    turn.change(finished=position, output_step=happening.step, streak=0)
    duration = None if step.started_at is None else max(0, turn.now - step.started_at) / 1000
    turn.emit(StepCompleted, step=happening.step, attempt=step.attempts, duration=duration)
    _leave_step(turn)
    go_on(turn, turn.plan.after(happening.step), happening.worker, release=happening.release)


def skipped(turn: Turn, happening: Skipped) -> None:
    """running -> skipped, and on."""
    turn.require_held(happening)
    turn.require_running(happening.step)
    _skip(turn, happening.step)
    turn.emit(StepSkipped, step=happening.step)
    turn.change(streak=0)
    _leave_step(turn)
    go_on(turn, turn.plan.after(happening.step), happening.worker, release=happening.release)


def went_to(turn: Turn, happening: WentTo) -> None:
    """Forward: the origin is skipped. Back, or to itself: target to origin are reset and run again."""
    turn.require_held(happening)
    turn.require_running(happening.step)
    origin, target = turn.plan.index(happening.step), turn.plan.index(happening.target)
    if origin < target:
        _skip(turn, happening.step)
        reset_steps(turn, (happening.target,))
    else:
        reset_steps(turn, turn.plan.between(happening.target, happening.step))
    turn.emit(StepSkipped, step=happening.step, goto=happening.target)
    turn.change(streak=0)
    _leave_step(turn)
    go_on(turn, happening.target, happening.worker, release=happening.release)


def attempt_failed(turn: Turn, happening: AttemptFailed) -> None:
    """running -> pending until its retry is due, or failed together with the run."""
    turn.require_held(happening)
    turn.require_running(happening.step)
    step = turn.note_failure(happening.step, happening.error)
    if _must_stop(turn):
        return
    policy = turn.plan.step(happening.step).retry
    if not happening.retriable or step.failures >= policy.attempts:
        turn.settle_failed(happening.error)
        return
    _schedule_retry(turn, step, happening)


def _schedule_retry(turn: Turn, step: StepDoc, happening: AttemptFailed) -> None:
    policy = turn.plan.step(happening.step).retry
    delay = to_millis(policy.delay_after(step.failures, happening.roll))
    retry_at = turn.now + delay
    turn.emit(
        StepRetryScheduled,
        step=happening.step,
        attempt=step.attempts,
        attempts=policy.attempts,
        retry_at_millis=retry_at,
        code=happening.error.code,
        message=happening.error.message,
    )
    forget_failed_outcomes(turn)
    if delay == 0:
        turn.move_step(happening.step, "pending")
        go_on(turn, happening.step, happening.worker, release=happening.release)
        return
    turn.move_step(happening.step, "pending", retry_at=retry_at)
    turn.to("waiting")
    turn.release()


def handed_back(turn: Turn, happening: HandedBack) -> None:
    """The lease goes back; the attempt neither counts nor ends."""
    turn.require_held(happening)
    if not _must_stop(turn):
        turn.release()


def cancel_unwound(turn: Turn, happening: CancelUnwound) -> None:
    """The handler is gone, so the cancellation takes effect."""
    turn.require_held(happening)
    turn.settle_cancelled(turn.head.cancel_reason)


def deadline_passed(turn: Turn, happening: DeadlinePassed) -> None:
    """The handler is gone, so the run's own timeout takes effect; a cancellation asked before it wins.

    The holder's monotonic clock decides, which may be a little ahead of the wall clock.
    """
    turn.require_held(happening)
    if not _must_stop(turn):
        turn.settle_failed(overdue(turn))


def go_on(turn: Turn, target: str | None, worker: str, *, release: bool) -> None:
    """Settle, begin the target, or give the lease back, whichever it is time for."""
    if turn.cancel_requested:
        turn.settle_cancelled(turn.head.cancel_reason)
    elif target is None:
        turn.settle_done()
    elif turn.is_overdue:
        turn.current_step = target
        turn.settle_failed(overdue(turn))
    elif turn.paused or release:
        turn.current_step = target
        turn.release()
    else:
        turn.begin(target, worker)


def overdue(turn: Turn) -> ErrorDoc:
    """The error of a run that took longer than its workflow's timeout."""
    limit = turn.plan.timeout
    text = f"run {turn.run.public_id} exceeded its timeout" + ("" if limit is None else f" of {limit:g} s")
    return ErrorDoc(code=RunTimeout.code, message=text, type="RunTimeout", step=turn.current_step)


def reset_steps(turn: Turn, step_ids: Collection[str]) -> None:
    """Make steps pending as if they had not run: a new generation, no output but in the history, no checkpoints."""
    begun = {step_id for step_id in step_ids if step_id in turn.steps}
    if not begun:
        return
    for step_id in begun:
        step = turn.steps[step_id]
        turn.put_step(
            step_id,
            StepDoc(
                generation=step.generation + 1,
                tries=step.tries,
                waits=step.waits,
                history=archived(turn, step_id),
            ),
        )
    if turn.changed("output_step") in begun:
        turn.change(output_step=last_done(turn))
    turn.drop("checkpoints", [key for key in turn.checkpoints if key.partition("/")[0] in begun])


def last_done(turn: Turn) -> str | None:
    """The id of the step that finished last, of those whose output still stands."""
    done = [(step.position, step_id) for step_id, step in turn.steps.items() if step.status == "done"]
    return max(done)[1] if done else None


def forget_failed_outcomes(turn: Turn, *, approvals: bool = False) -> None:
    """A wait that timed out or was withdrawn is asked afresh by the attempt that follows a failure.

    An approval is told its outcome as a value, which attempts keep; only `retry` asks for that too.
    """
    failed = [key for key, record in turn.records.items() if record.outcome in FAILED_OUTCOMES]
    turn.drop("records", [key for key in failed if approvals or not turn.records[key].approval])


def restart_deadline(turn: Turn) -> None:
    """A run that is taken up again has its whole timeout before it."""
    limit = turn.plan.timeout
    if turn.head.deadline is not None and limit is not None:
        turn.change(deadline=turn.now + math.ceil(limit * 1000))


def _must_stop(turn: Turn) -> bool:
    """Settle instead of going on, if the run was cancelled or its deadline has passed."""
    if turn.cancel_requested:
        turn.settle_cancelled(turn.head.cancel_reason)
        return True
    if turn.is_overdue:
        turn.settle_failed(overdue(turn))
        return True
    return False


def _skip(turn: Turn, step_id: str) -> None:
    turn.move_step(step_id, "skipped", attempts=0, error=None, started_at=turn.now, ended_at=turn.now)


def _leave_step(turn: Turn) -> None:
    turn.drop_records(keep_outcomes=False)
