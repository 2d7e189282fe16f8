"""When a worker should look at a run: one pure function of the run."""

from __future__ import annotations

from collections.abc import Iterable

from streamline_trio._core.documents import WANTS_SLOT, Head, Origin, Record, StepDoc
from streamline_trio._core.status import ACTIVE

NOW = 0
"""Due at once, by every clock: what is ready must not wait for a clock that is behind the one that made it so."""


def due_at(head: Head, step: StepDoc | None, records: Iterable[Record]) -> int | None:
    """The instant at which an unleased run wants a worker, or None if only the outside can move it.

    None while leased (the holder looks after it) and once settled. While paused, or without the slot it wants,
    only the run's own deadline counts. `step` is the current step, of a compensating run the one to undo; `records`
    are its suspensions.
    """
    if head.lease is not None or head.status not in ACTIVE:
        return None
    if head.paused or (head.slot is not None and head.slot.state in WANTS_SLOT):
        return head.deadline
    return _earliest(_wanted_at(head, step, records), head.deadline)


def due_since(origin: Origin, head: Head) -> int | None:
    """The due time as people read it: of what is due at once, since when it is."""
    if head.due_at != NOW:
        return head.due_at
    return origin.created_at if head.ready_at is None else head.ready_at


def _wanted_at(head: Head, step: StepDoc | None, records: Iterable[Record]) -> int | None:
    if (slot_at := _slot_of(head)) is not None:
        return slot_at
    if head.status == "draft":
        return NOW if head.start_at is None else head.start_at
    if head.status == "running":
        return NOW
    if head.status == "compensating":
        return _undo_at(step)
    if step is not None and step.status == "pending":
        return step.retry_at
    return min((r.due_at for r in records if r.outcome is None and r.due_at is not None), default=None)


def _slot_of(head: Head) -> int | None:
    """When its throttle is to be asked whether the run may begin, if that has been settled."""
    throttle = head.throttle
    if throttle is None or throttle.stage == "begun" or head.status not in _BEGINNING:
        return None
    return throttle.slot_at


_BEGINNING = frozenset({"draft", "running"})


def _undo_at(step: StepDoc | None) -> int:
    """When the next compensation is to begin: at once, unless it failed before."""
    compensation = None if step is None else step.compensation
    return NOW if compensation is None or compensation.retry_at is None else compensation.retry_at


def _earliest(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)
