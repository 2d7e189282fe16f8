"""The first version of a run."""

from __future__ import annotations

import math
from hashlib import blake2b

import msgspec

from streamline_trio._core.decide import slotting
from streamline_trio._core.decide.outbox import PATIENCE
from streamline_trio._core.decide.pacing import fires_at, first_debounce, first_throttle
from streamline_trio._core.decide.turn import Decision, Turn
from streamline_trio._core.documents import WANTS_SLOT, Head, Lease, Origin, RunDoc, SlotDoc, ThrottleDoc
from streamline_trio._core.events import WorkflowStarted
from streamline_trio._core.plan import Plan

_REVISIONS = 0x3FFF_FFFF


class StartRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What `start` was asked for, and the run's first state.

    `throttle` is the bucket in which it must pass, `debounce` the key of its window; `attended`: whoever inserts it
    asks for its slot. `causes`: the broadcasts and firings behind the starts that became this one.
    """

    origin: Origin
    state: bytes
    start_at: int | None = None
    slot: SlotDoc | None = None
    throttle: str | None = None
    debounce: str | None = None
    attended: bool = False
    causes: tuple[int, ...] = ()


def admit(request: StartRequest, plan: Plan, now: int, worker: str | None = None) -> Decision:
    """A new run: begun by `worker` in the same write, or a draft that waits for its time, its slot and a worker."""
    debounce = None if request.debounce is None else first_debounce(request.debounce, plan, now, request.causes)
    start_at = request.start_at if debounce is None else fires_at(debounce, plan, now)
    begins = now if start_at is None else start_at
    head = Head(
        version=plan.version,
        fingerprint=plan.fingerprint,
        status="draft",
        updated_at=now,
        revision=_before_first(request.slot),
        start_at=start_at,
        slot=request.slot,
        cancelled_by=plan.cancel_signals,
        deadline=None if plan.timeout is None else begins + math.ceil(plan.timeout * 1000),
        throttle=_throttle(request, plan, now),
        debounce=debounce,
    )
    turn = Turn(RunDoc(origin=request.origin, head=head, state=request.state), plan, now)
    if request.slot is not None:
        if request.slot.state in WANTS_SLOT:
            slotting.send_admission(turn, request.slot)
    elif worker is not None:
        assert head.throttle is None, "its throttle has not been asked"
        assert debounce is None, "its window has just opened"
        turn.to("running")
        turn.change(started_at=now, fence=1)
        turn.lease = Lease(worker=worker, fence=1)
        turn.emit(WorkflowStarted)
        turn.begin(plan.first, worker)
    return turn.build(request.origin.start_id)


def cause_of(origin: Origin) -> tuple[int, ...]:
    """What tells a start by a broadcast or a firing from all others, as it follows from the run's id."""
    if not origin.emission and (origin.scheduled is None or not origin.scheduled.schedule):
        return ()
    return (int.from_bytes(blake2b(origin.id.encode(), digest_size=7).digest(), "big"),)


def has_same_cause(stored: Origin, asked: Origin) -> bool:
    """Whether the run of this id is ours, or that of the same broadcast or firing: who repeats it adopts the run.

    Each try has a `start_id` of its own, since who finds that in a doubtful insert drives the run.
    """
    if stored.start_id == asked.start_id:
        return True
    if asked.emission:
        return asked.emission == stored.emission
    was, fired = stored.scheduled, asked.scheduled
    if was is None or fired is None or not fired.schedule:
        return False
    return (was.schedule, was.at) == (fired.schedule, fired.at)


def _before_first(slot: SlotDoc | None) -> int:
    """The revision that its first one follows.

    A draft whose starter waits is removed if it gets no slot, and may be started again under its id: each begins
    somewhere else, or what was decided on the one before would be a valid commit on this one.
    """
    return slot.acquisition & _REVISIONS if slot is not None and slot.attended else 0


def _throttle(request: StartRequest, plan: Plan, now: int) -> ThrottleDoc | None:
    if request.throttle is None:
        assert plan.throttle is None, "a run of a throttled workflow begins only by its throttle"
        return None
    return first_throttle(request.throttle, look_at=now + PATIENCE if request.attended else None)
