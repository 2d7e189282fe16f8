"""When a worker should look at a run: one pure function of the run."""

from __future__ import annotations

from collections.abc import Iterable

from streamline_trio._core.documents import Head, Origin, Record, StepDoc
from streamline_trio._core.status import ACTIVE


def due_at(origin: Origin, head: Head, step: StepDoc | None, records: Iterable[Record]) -> int | None:
    """The instant at which an unleased run wants a worker, or None if only the outside can move it.

    None while leased (the holder looks after it) and once settled. While paused only the run's own deadline
    counts. `step` is the current step, `records` are its suspensions.
    """
    if head.lease is not None or head.status not in ACTIVE:
        return None
    if head.paused:
        return head.deadline
    return _earliest(_wanted_at(origin, head, step, records), head.deadline)


def _wanted_at(origin: Origin, head: Head, step: StepDoc | None, records: Iterable[Record]) -> int | None:
    if head.status == "draft":
        return origin.created_at if head.start_at is None else head.start_at
    if head.status == "running":
        return head.ready_at
    if step is not None and step.status == "pending":
        return step.retry_at
    return min((r.due_at for r in records if r.outcome is None and r.due_at is not None), default=None)


def _earliest(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)
