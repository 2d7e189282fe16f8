"""A new run that begins in the middle: what came before is taken from another run."""

from __future__ import annotations

import math

import msgspec

from streamline_trio._core.decide import slotting
from streamline_trio._core.decide.pacing import first_throttle
from streamline_trio._core.decide.turn import Decision, Turn
from streamline_trio._core.documents import ForkedFrom, Head, RunDoc, SlotDoc, StepDoc
from streamline_trio._core.plan import Plan
from streamline_trio._core.status import FINISHED_STEP, RUN_STATUSES

_replace = msgspec.structs.replace
_ALLOWED = tuple(status for status in RUN_STATUSES if status != "draft")


class ForkRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The step to begin at, the ids of the new run, and the slot that it asks for if it needs one."""

    from_step: str
    id: str
    start_id: int
    slot: SlotDoc | None = None


def fork(run: RunDoc, request: ForkRequest, plan: Plan, now: int) -> Decision:
    """The first version of a run that begins at the step: a draft that is due now, or once it has its slot.

    It has the origin of `run` (without idempotency key and parent), its state, its version, and of the steps
    before that are done or skipped the outputs, checkpoints and memos; nothing of later ones, of waits and signals.
    Raises `StepNotFound`, and `InvalidState` if `run` has not come to that step or has undone one before it.
    """
    target = plan.index(request.from_step)
    before = {step.id for step in plan.steps[:target]}
    steps = {step_id: step for step_id, step in run.steps.items() if step_id in before}
    _require_forkable(Turn(run, plan, now), request.from_step, target, steps)
    kept = {step_id: _replace(step, copied=True) for step_id, step in steps.items() if step.status in FINISHED_STEP}
    last = max(((step.position, step_id) for step_id, step in kept.items() if step.status == "done"), default=None)
    head = Head(
        version=run.head.version,
        fingerprint=run.head.fingerprint,
        status="draft",
        updated_at=now,
        revision=0,
        deadline=None if plan.timeout is None else now + math.ceil(plan.timeout * 1000),
        current_step=request.from_step,
        cancelled_by=plan.cancel_signals,
        finished=0 if last is None else last[0],
        output_step=None if last is None else last[1],
        slot=request.slot,
        throttle=None if run.head.throttle is None else first_throttle(run.head.throttle.bucket, look_at=None),
    )
    origin = _replace(
        run.origin,
        id=request.id,
        start_id=request.start_id,
        created_at=now,
        idempotency_key=None,
        parent=None,
        scheduled=None,
        emission="",
        forked_from=ForkedFrom(run=run.origin.id, step=request.from_step),
    )
    first = RunDoc(
        origin=origin,
        head=head,
        state=run.state,
        steps=kept,
        checkpoints={key: value for key, value in run.checkpoints.items() if key.partition("/")[0] in kept},
        memos={key: memo for key, memo in run.memos.items() if memo.step in kept},
    )
    turn = Turn(first, plan, now)
    if request.slot is not None:
        slotting.send_admission(turn, request.slot)
    return turn.build(request.start_id)


def _require_forkable(turn: Turn, from_step: str, target: int, steps: dict[str, StepDoc]) -> None:
    if turn.status == "draft":
        raise turn.invalid("fork", "it has not begun", *_ALLOWED)
    reached = turn.current_step or turn.plan.first
    known = {step.id for step in turn.plan.steps}
    if turn.status != "done" and reached in known and turn.plan.index(reached) < target:
        raise turn.invalid("fork", f"it has not reached step {from_step}", *_ALLOWED)
    undone = [step_id for step_id, step in steps.items() if step.compensation is not None]
    if undone:
        raise turn.invalid("fork", f"step {undone[0]} before {from_step} has been undone", *_ALLOWED)
