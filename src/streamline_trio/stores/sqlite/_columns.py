"""What the columns of a run say, derived from its document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import NamedTuple

from streamline_trio._core.documents import Head, Record, RunDoc, WaitKind, queued_in
from streamline_trio._core.status import SETTLED
from streamline_trio._core.store import Touched
from streamline_trio.stores._turns import waits_since

Value = str | bytes | int | None

WAITING_BITS: dict[WaitKind, int] = {"human": 1, "signal": 2, "timer": 4, "child": 8, "join": 16}


class Moving(NamedTuple):
    """The columns that some commits change."""

    status: str
    settled: bool
    version: str
    due_at: int | None
    errand_at: int | None
    worker: str | None
    attention: bool
    paused: bool
    dead_lettered: bool
    waiting: int
    since: int
    queue: str | None
    ticket: int | None


class Fixed(NamedTuple):
    """The columns that no commit changes."""

    workflow: str
    priority: int
    tenant: str | None
    user: str | None
    parent: str | None
    created_at: int


def moving(run: RunDoc) -> Moving:
    """The columns of the run as it is now."""
    head = run.head
    lease = head.lease
    return Moving(
        status=head.status,
        settled=head.status in SETTLED,
        version=head.version,
        due_at=head.due_at if lease is None else None,
        errand_at=head.errand_at,
        worker=_worker(head),
        attention=head.attention,
        paused=head.paused,
        dead_lettered=head.dead_lettered,
        waiting=_waiting(run.records),
        since=waits_since(run) or 0,
        queue=(queue := queued_in(head)),
        ticket=None if queue is None or head.slot is None else head.slot.ticket,
    )


def has_moved(before: RunDoc, after: RunDoc, touched: Touched | None = None) -> bool:
    """Whether an update changes any of the moving columns; `touched` is that of the update."""
    old, new = before.head, after.head
    if before.records is not after.records and _waits_for_else(before.records, after.records, touched):
        return True
    return _told(old) != _told(new) or (old.lease is not new.lease and _worker(old) != _worker(new))


_told = attrgetter(
    "status", "version", "due_at", "ready_at", "errand_at", "attention", "paused", "dead_lettered", "slot"
)


def _worker(head: Head) -> str | None:
    return None if head.lease is None else head.lease.worker


def fixed(run: RunDoc) -> Fixed:
    """The columns that come from the origin."""
    origin = run.origin
    parent = None if origin.parent is None else origin.parent.run
    return Fixed(origin.workflow, origin.priority, origin.tenant, origin.user, parent, origin.created_at)


def _waits_for_else(before: Mapping[str, Record], after: Mapping[str, Record], touched: Touched | None) -> bool:
    """Whether the kinds of open waits differ; records that were not touched are looked at where they decide."""
    if touched is None:
        return _waiting(before) != _waiting(after)
    keys = touched.get("records", ())
    old, new = _kinds(before, keys), _kinds(after, keys)
    return any(not _has_open(after, kind) for kind in old - new) or any(
        not _has_open(before, kind) for kind in new - old
    )


def _has_open(records: Mapping[str, Record], kind: WaitKind) -> bool:
    return any(record.kind == kind and record.is_open for record in records.values())


def _kinds(records: Mapping[str, Record], keys: Iterable[str]) -> set[WaitKind]:
    found = (records.get(key) for key in keys)
    return {record.kind for record in found if record is not None and record.is_open}


def _waiting(records: Mapping[str, Record]) -> int:
    bits = 0
    for record in records.values():
        if record.outcome is None:
            bits |= WAITING_BITS[record.kind]
    return bits
