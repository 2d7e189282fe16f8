"""The first version of a run."""

from __future__ import annotations

import math

import msgspec

from streamline_trio._core.decide.turn import Decision, Turn
from streamline_trio._core.documents import Head, Lease, Origin, RunDoc
from streamline_trio._core.events import WorkflowStarted
from streamline_trio._core.plan import Plan


class StartRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What `start` was asked for, and the run's first state."""

    origin: Origin
    state: bytes
    start_at: int | None = None


def admit(request: StartRequest, plan: Plan, now: int, worker: str | None = None) -> Decision:
    """A new run: begun by `worker` in the same write, or a draft that waits for its time and a worker."""
    begins = now if request.start_at is None else request.start_at
    head = Head(
        version=plan.version,
        fingerprint=plan.fingerprint,
        status="draft",
        updated_at=now,
        revision=0,
        start_at=request.start_at,
        cancelled_by=plan.cancel_signals,
        deadline=None if plan.timeout is None else begins + math.ceil(plan.timeout * 1000),
    )
    turn = Turn(RunDoc(origin=request.origin, head=head, state=request.state), plan, now)
    if worker is not None:
        turn.to("running")
        turn.change(started_at=now, fence=1)
        turn.lease = Lease(worker=worker, fence=1)
        turn.emit(WorkflowStarted)
        turn.begin(plan.first, worker)
    return turn.build(request.origin.start_id)
