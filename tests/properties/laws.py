"""What must be true of every change of a run, said without a look at how `decide` does it."""

from collections.abc import Sequence
from itertools import pairwise

from msgspec.structs import replace

from streamline_trio._core.codec import split
from streamline_trio._core.diff import changed
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.events import (
    Event,
    StepStarted,
    WorkflowCancelled,
    WorkflowCompensated,
    WorkflowCompensationFailed,
    WorkflowCompleted,
    WorkflowFailed,
)
from streamline_trio._core.happenings import Happening, Held, OutputPinned, Retried, Rewound, WentTo
from streamline_trio._core.status import (
    ACTIVE,
    FINISHED_STEP,
    RUN_TRANSITIONS,
    SETTLED,
    STEP_TRANSITIONS,
)
from streamline_trio.testing._laws import check_growth, leads

SETTLING: dict[type[Event], str] = {
    WorkflowCompleted: "done",
    WorkflowFailed: "failed",
    WorkflowCancelled: "cancelled",
    WorkflowCompensated: "compensated",
    WorkflowCompensationFailed: "compensation_failed",
}


def check_change(before: RunDoc, after: RunDoc, events: Sequence[Event], happening: Happening, now: int) -> None:
    """The laws of one commit."""
    check_growth(before, after)
    _check_hops(before, after, happening)
    _check_finished_stay(before, after, happening)
    _check_records_stay(before, after)
    _check_events(before, after, events, now)
    parts = split(before)
    for name, body in changed(before, after).items():
        if body is None:
            del parts[name]
        else:
            parts[name] = body
    assert parts == split(after), "the changes do not turn the one version into the other"


def _check_hops(before: RunDoc, after: RunDoc, happening: Happening) -> None:
    old, new = before.head.status, after.head.status
    assert leads(RUN_TRANSITIONS, old, new), f"no way leads from {old} to {new}"
    if old in SETTLED:
        if isinstance(happening, OutputPinned):
            assert new == old, "pinning an output moves no run"
        else:
            assert isinstance(happening, Rewound | Retried), "left rest without being asked to"
    for step_id in before.steps | after.steps:
        was, now = before.step(step_id).status, after.step(step_id).status
        assert leads(STEP_TRANSITIONS, was, now), f"no way leads from {was} to {now}"


def _check_finished_stay(before: RunDoc, after: RunDoc, happening: Happening) -> None:
    if isinstance(happening, Rewound | WentTo):
        return
    pinned = happening.step if isinstance(happening, OutputPinned) else None
    for step_id, step in before.steps.items():
        if step.status in FINISHED_STEP and step_id != pinned:
            now = after.steps[step_id]
            undone = replace(now, compensation=step.compensation)
            assert now is step or undone == step, "a finished step was touched"
            if step.compensation is not None and step.compensation.status == "done":
                assert now.compensation is step.compensation, "what is undone was undone again"


def _check_records_stay(before: RunDoc, after: RunDoc) -> None:
    """Records are of the current step, and an outcome is never another one."""
    if after.head.current_step != before.head.current_step:
        assert not after.records, "a step has the records of another"
        assert not after.pieces, "a step has the pieces of another"
    for path, piece in before.pieces.items():
        kept = after.pieces.get(path, piece)
        assert kept is piece or (not piece.done and kept.round > piece.round), "a piece went back"
    for key, record in before.records.items():
        same = after.records.get(key, record)
        if record.outcome is not None and same.ask == record.ask and same.outcome is not None:
            assert (same.outcome, same.value) == (record.outcome, record.value), "an outcome was replaced"


def _check_events(before: RunDoc, after: RunDoc, events: Sequence[Event], now: int) -> None:
    for event in events:
        told = (event.run_id, event.workflow, event.tenant, event.revision, event.at_millis)
        origin = after.origin
        assert told == (origin.id, origin.workflow, origin.tenant, after.head.revision, now)
    settling = [
        SETTLING[type(event)]
        for event in events
        if type(event) in SETTLING and not getattr(event, "compensating", False)
    ]
    settled = before.head.status in ACTIVE and after.head.status in SETTLED
    assert settling == ([after.head.status] if settled else [])
    if settled:
        assert type(events[-1]) in SETTLING, "something is told after the end"
    started = [event for event in events if isinstance(event, StepStarted)]
    assert len(started) <= (not before.head.paused), "something begins in a paused run, or two things in one write"
    for event in started:
        assert after.head.lease is not None
        assert (event.step, event.attempt) == (after.head.current_step, after.step(event.step).attempts)
    ranks = [_RANK[event.name] for event in events]
    assert all(one <= other for one, other in pairwise(ranks)), [event.name for event in events]


_ORDER = (
    ("workflow.paused", "workflow.unpaused", "workflow.retry", "workflow.rewound", "workflow.recovered"),
    ("workflow.migrated",),
    ("workflow.dead_lettered", "workflow.started"),
    ("step.completed", "step.skipped", "step.retry_scheduled", "step.waiting", "step.compensated", "engine.error"),
    ("step.failed", "workflow.waiting", "workflow.resumed"),
    ("step.started",),
    ("workflow.completed", "workflow.failed", "workflow.cancelled"),
    ("workflow.compensating",),
    ("workflow.compensated", "workflow.compensation_failed"),
)
_RANK = {name: rank for rank, names in enumerate(_ORDER) for name in names}


def is_of_holder(happening: Happening, run: RunDoc) -> bool:
    """Whether the happening names the lease that the run has."""
    lease = run.head.lease
    if not isinstance(happening, Held):
        return True
    return lease is not None and (lease.worker, lease.fence) == (happening.worker, happening.fence)
