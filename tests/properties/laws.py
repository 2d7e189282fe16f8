"""What must be true of every change of a run, said without a look at how `decide` does it."""

from collections.abc import Sequence
from itertools import pairwise

from streamline_trio._core.codec import split
from streamline_trio._core.diff import changed
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.events import (
    Event,
    StepStarted,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowFailed,
)
from streamline_trio._core.happenings import Happening, Held, Retried, Rewound, WentTo
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
        assert isinstance(happening, Rewound | Retried), "left rest without being asked to"
    for step_id in before.steps | after.steps:
        was, now = before.step(step_id).status, after.step(step_id).status
        assert leads(STEP_TRANSITIONS, was, now), f"no way leads from {was} to {now}"


def _check_finished_stay(before: RunDoc, after: RunDoc, happening: Happening) -> None:
    if isinstance(happening, Rewound | WentTo):
        return
    for step_id, step in before.steps.items():
        if step.status in FINISHED_STEP:
            assert after.steps[step_id] is step, "a finished step was touched"


def _check_records_stay(before: RunDoc, after: RunDoc) -> None:
    """Records are of the current step, and an outcome is never another one."""
    if after.head.current_step != before.head.current_step:
        assert not after.records, "a step has the records of another"
    for key, record in before.records.items():
        kept = after.records.get(key, record)
        if record.outcome is not None and kept.ask == record.ask and kept.outcome is not None:
            assert (kept.outcome, kept.value) == (record.outcome, record.value), "an outcome was replaced"


def _check_events(before: RunDoc, after: RunDoc, events: Sequence[Event], now: int) -> None:
    for event in events:
        told = (event.run_id, event.workflow, event.tenant, event.revision, event.at_millis)
        origin = after.origin
        assert told == (origin.id, origin.workflow, origin.tenant, after.head.revision, now)
    settling = [SETTLING[type(event)] for event in events if type(event) in SETTLING]
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
    ("step.completed", "step.skipped", "step.retry_scheduled", "step.waiting"),
    ("step.failed", "workflow.waiting", "workflow.resumed"),
    ("step.started",),
    ("workflow.completed", "workflow.failed", "workflow.cancelled"),
)
_RANK = {name: rank for rank, names in enumerate(_ORDER) for name in names}


def is_of_holder(happening: Happening, run: RunDoc) -> bool:
    """Whether the happening names the lease that the run has."""
    lease = run.head.lease
    if not isinstance(happening, Held):
        return True
    return lease is not None and (lease.worker, lease.fence) == (happening.worker, happening.fence)
