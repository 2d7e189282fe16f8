"""What must be true of every stored version of a run, and of every two that follow each other.

Said without a look at how the engine does it; an `AssertionError` says which law is broken.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from msgspec.structs import replace

from streamline_trio._core.codec import join, split
from streamline_trio._core.documents import KEPT_COMMITS, WANTS_SLOT, Record, RunDoc, StepDoc, open_tokens
from streamline_trio._core.plan import Plan
from streamline_trio._core.status import ACTIVE, FINISHED_STEP, SETTLED

TURNED_BACK = ("compensating", "compensated", "compensation_failed", "cancelled")
"""Statuses of runs that may have failed before, and may not."""


def check_state(run: RunDoc, plan: Plan) -> None:
    """The laws of one stored version."""
    _check_codec(run)
    _check_lease(run)
    _check_due(run)
    _check_rest(run)
    _check_steps(run, plan)
    _check_waits(run)
    _check_marks(run)
    _check_undoing(run)
    _check_slot(run)


def can_move_by_itself(run: RunDoc) -> bool:
    """Whether time alone brings it on, if workers live: not settled, not paused, no wait without an end."""
    if run.head.status in SETTLED or run.head.paused or _wants_slot(run):
        return False
    return not waits_on_outside(run)


def _wants_slot(run: RunDoc) -> bool:
    return run.head.slot is not None and run.head.slot.state in WANTS_SLOT


def waits_on_outside(run: RunDoc) -> bool:
    """Parked on waits that no time ends, with no deadline of its own."""
    step = run.step(run.head.current_step or "")
    if run.head.status != "waiting" or step.status != "waiting" or run.head.deadline is not None:
        return False
    return all(record.due_at is None for record in open_records(run))


def open_records(run: RunDoc) -> list[Record]:
    return [record for record in run.records.values() if record.outcome is None]


def _check_codec(run: RunDoc) -> None:
    assert join(split(run), run.id) == run, "what is read does not equal what was written"


def _check_lease(run: RunDoc) -> None:
    head = run.head
    assert not head.attention or head.lease is not None, "attention is asked of nobody"
    if head.lease is None:
        return
    if head.status == "compensating":
        undone = run.step(head.undo[0]).compensation
        assert undone is not None, "leased without a compensation that runs"
        assert undone.status == "running", "leased without a compensation that runs"
    else:
        assert head.status == "running", "leased without running"
        assert run.step(head.current_step or "").status == "running", "leased without a running step"
    assert head.lease.fence == head.fence >= 1
    assert head.due_at is None, "leased and due"


def _check_due(run: RunDoc) -> None:
    """`due_at`, once more: when a worker can bring the run on."""
    head = run.head
    if head.lease is not None or head.status in SETTLED:
        assert head.due_at is None
        return
    reasons = [] if head.deadline is None else [head.deadline]
    if not head.paused and not _wants_slot(run):
        step = run.step(head.current_step or "")
        if (slot_at := _slot_of_throttle(run)) is not None:
            reasons.append(slot_at)
        elif head.status == "draft":
            reasons.append(0 if head.start_at is None else head.start_at)
        elif head.status == "running":
            assert head.ready_at is not None, "ready since never"
            reasons.append(0)
        elif head.status == "compensating":
            compensation = run.step(head.undo[0]).compensation
            reasons.append(0 if compensation is None else compensation.retry_at or 0)
        elif step.status == "pending":
            assert step.retry_at is not None, "waits for a retry that never comes"
            reasons.append(step.retry_at)
        else:
            reasons += [record.due_at for record in open_records(run) if record.due_at is not None]
    assert head.due_at == min(reasons, default=None)
    if can_move_by_itself(run):
        assert head.due_at is not None, "nobody would ever look at a run that could go on"


def _slot_of_throttle(run: RunDoc) -> int | None:
    """When its throttle is to be asked, of a run that waits to begin."""
    throttle = run.head.throttle
    waits = throttle is not None and throttle.stage != "begun" and run.head.status in {"draft", "running"}
    return throttle.slot_at if throttle is not None and waits else None


def _check_rest(run: RunDoc) -> None:
    head = run.head
    assert (head.ended_at is not None) == (head.status in SETTLED)
    turned_back = head.status in TURNED_BACK
    assert turned_back or (head.error is not None) == (head.status == "failed")
    assert not head.dead_lettered or turned_back or head.status == "failed"
    if head.status in SETTLED:
        assert not head.paused
        assert head.ready_at is None
        assert not open_records(run), "a settled run waits"
        assert not run.pieces or head.status == "failed", "parts are kept of a step that nobody can take up again"
    if head.status == "done":
        assert head.current_step is None
        assert not run.records
    if head.status == "draft":
        assert (head.started_at, head.fence) == (None, 0)
        if run.origin.forked_from is None:
            assert head.current_step is None
            assert not run.steps
        else:
            assert head.current_step == run.origin.forked_from.step
            assert all(step.status in {"done", "skipped"} for step in run.steps.values())


def _check_steps(run: RunDoc, plan: Plan) -> None:
    head, known = run.head, {step.id for step in plan.steps}
    for step_id, step in run.steps.items():
        if step_id not in known:
            assert step.status in FINISHED_STEP, "a step that the definition lacks is to go on"
            continue
        assert step.failures <= plan.step(step_id).retry.attempts, "more failures than the limit"
        assert step.status == "skipped" or step.failures <= step.attempts
        assert step.status not in {"running", "waiting"} or step_id == head.current_step
        assert step.status not in {"running", "waiting"} or head.status in ACTIVE, "a settled run's step goes on"
        assert (step.retry_at is not None) <= (step.status == "pending" and head.status == "waiting")
        assert (step.status == "done") == (step.output is not None)
        assert (step.status == "failed") <= (step.error is not None and step.ended_at is not None)
        assert (step.status in {"done", "skipped"}) <= (step.ended_at is not None)
        _check_history(step, plan.step(step_id).keep_outputs)
    positions = [step.position for step in run.steps.values() if step.status == "done"]
    assert len(set(positions)) == len(positions), "two steps finished at once"
    assert all(0 < position <= head.finished for position in positions)
    last = max(positions, default=None)
    told = None if head.output_step is None else run.steps[head.output_step].position
    assert told == last, "the run's output is not that of the step that finished last"
    assert all(key.partition("/")[0] in run.steps for key in run.checkpoints)


def _check_history(step: StepDoc, keep: int) -> None:
    assert len(step.history) <= keep, "more outputs are kept than shall be"
    versions = [kept.version for kept in step.history]
    assert versions == [*range(versions[0], versions[0] + len(versions))] if versions else True, (
        "versions are missing"
    )
    assert all(one.output != other.output for one, other in pairwise(step.history)), "an output is kept twice"
    if step.pinned is not None:
        assert [kept.output for kept in step.history if kept.version == step.pinned] == [step.output]


def _check_waits(run: RunDoc) -> None:
    head = run.head
    tokens = open_tokens(run)
    assert len(set(tokens)) == len(tokens), "two open waits share a token"
    assert all(not record.tokens for record in run.records.values() if record.outcome is not None)
    if head.status == "waiting":
        step = run.step(head.current_step or "")
        assert step.status in {"pending", "waiting"}
        assert step.retry_at is not None or open_records(run), "parked on nothing"
    if (run.records or run.pieces) and head.status in ACTIVE:
        assert head.current_step is not None
    assert [*run.inbox] == sorted(run.inbox), "the inbox is not in order of arrival"


def _check_marks(run: RunDoc) -> None:
    head = run.head
    assert len(set(head.commits)) == len(head.commits) <= KEPT_COMMITS
    assert head.cancel_requested <= (head.lease is not None or head.status in SETTLED)
    assert (head.pause_reason is not None) <= head.paused


def _check_slot(run: RunDoc) -> None:
    """Nothing goes on without the slot it needs, and what has settled needs none."""
    slot = run.head.slot
    if slot is None:
        return
    assert run.head.lease is None or slot.state == "held", "goes on without its slot"
    assert run.head.status not in SETTLED or slot.state in {"left", "asked"}, "has settled with its slot"
    assert slot.state != "left" or run.head.status in SETTLED, "goes on, and has given its slot back"
    assert slot.state != "later" or run.head.status == "draft", "has begun before it asked for a slot"


def _check_undoing(run: RunDoc) -> None:
    """What is to be undone is a step that did something, in the order of their ends; what is undone is not."""
    head = run.head
    assert (head.status == "compensating") <= bool(head.undo), "compensating, and nothing is left to undo"
    assert not head.undo or head.status in {"compensating", "cancelled"}
    begun = {step_id: step.compensation for step_id, step in run.steps.items() if step.compensation is not None}
    for step_id in head.undo:
        assert run.steps[step_id].status in {"done", "failed", "pending"}
        assert step_id not in begun or begun[step_id].status in {"pending", "running"}
    positions = [run.steps[step_id].position for step_id in head.undo if run.steps[step_id].status == "done"]
    assert positions == sorted(positions, reverse=True), "undone out of order"
    assert not begun or head.status in TURNED_BACK
    for step_id, compensation in begun.items():
        assert compensation.failures <= compensation.attempts or compensation.status == "failed"
        assert (compensation.status in {"done", "failed"}) == (compensation.ended_at is not None)
        assert compensation.status != "running" or (step_id == head.undo[0] and head.status == "compensating")
        assert compensation.retry_at is None or (step_id == head.undo[0] and compensation.status == "pending")
        assert compensation.status in {"done", "failed"} or step_id in head.undo, "neither undone nor to be undone"
    failed = any(compensation.status == "failed" for compensation in begun.values())
    assert head.status != "compensated" or not failed
    assert head.status != "compensation_failed" or failed
    assert head.status not in {"compensating", "compensated", "compensation_failed"} or head.deadline is None


def check_growth(before: RunDoc, after: RunDoc) -> None:
    old, new = before.head, after.head
    assert new.revision == old.revision + 1, "the revision did not grow by one"
    assert new.updated_at >= old.updated_at, "the time of the last change went back"
    taken = new.lease is not None and new.lease != old.lease
    assert new.fence == old.fence + taken, "the fence grows by claims and by nothing else"
    input_now = after.origin.input if old.debounce is not None and old.status == "draft" else before.origin.input
    assert after.origin == replace(before.origin, input=input_now), "the origin was changed"


def leads(table: Mapping[Any, frozenset[Any]], source: str, target: str) -> bool:
    """In at most three hops, as many as one write carries a step over (done, pending, running, failed)."""
    reached = {source}
    for _ in range(3):
        reached |= {after for at in reached for after in table[at]}
    return target in reached
