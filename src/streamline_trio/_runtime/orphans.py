"""Children whose parents no longer want them, and those that are still needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from streamline_trio._core.broadcasts import BROADCASTS, decode_broadcast, is_pending
from streamline_trio._core.documents import Parent, RunDoc
from streamline_trio._core.errors import DataCorruption
from streamline_trio._core.schedules import KEPT, SCHEDULES, ScheduleDoc, key_of, run_id_of
from streamline_trio._core.status import SETTLED
from streamline_trio._core.store import Corrupt
from streamline_trio._core.tenancy import public_id

if TYPE_CHECKING:
    from streamline_trio._runtime.services import Services


_decode = msgspec.msgpack.Decoder(ScheduleDoc).decode

_GOING_ON = ("draft", "running", "waiting")


async def orphans_among(services: Services, runs: Iterable[RunDoc | Corrupt]) -> dict[str, str]:
    """Of the drafts, those whose parent no longer waits for them, each with the reason; one read at most.

    A child may be stored long after it was asked for, by a worker that was taken for dead. Since its parent is read
    after the child, and its parent's end cancels what is stored by then, none begins for nothing.
    """
    drafts = [(run, parent) for run in runs if isinstance(run, RunDoc) and (parent := _parent_of_draft(run))]
    if not drafts:
        return {}
    parents = await _parents(services, [parent for _, parent in drafts])
    reasons = {run.id: _reason(parent, parents.get(parent.run)) for run, parent in drafts if parent.run in parents}
    return {run_id: reason for run_id, reason in reasons.items() if reason is not None}


async def deletable(services: Services, runs: Sequence[RunDoc]) -> list[RunDoc]:
    """Those of which nobody needs anything any more."""
    now = services.clock.now()
    done = [run for run in runs if run.head.errand_at is None and not _may_be_fired_again(run, now)]
    parents = await _parents(services, [run.origin.parent for run in done if run.origin.parent is not None])
    unwanted = [run for run in done if not _is_needed(run.origin.parent, parents)]
    fired = await _under_way(services, unwanted)
    return [run for run in unwanted if run.id not in fired and not await _may_be_repeated(services, run)]


async def _under_way(services: Services, runs: Iterable[RunDoc]) -> set[str]:
    """Ids of runs of firings that are not noted yet: who takes one up again, however late, must find its run."""
    asked = [(run.origin.scheduled, run.origin.tenant) for run in runs if run.origin.scheduled is not None]
    keys = {key_of(scheduled.schedule, tenant) for scheduled, tenant in asked if scheduled.schedule}
    found: set[str] = set()
    for key in sorted(keys):
        side = await services.read(lambda key=key: services.store.side(SCHEDULES, key))  # type: ignore[misc]  # a lambda with a default
        if side is not None:
            with suppress(msgspec.DecodeError, ValueError):
                doc = _decode(side.body)
                found.update(run_id_of(doc, firing) for firing in doc.pending)
    return found


async def _may_be_repeated(services: Services, run: RunDoc) -> bool:
    """Whether the broadcast that started it is not done: who goes on with that must find the run."""
    key = run.origin.emission
    if not key:
        return False
    side = await services.read(lambda: services.store.side(BROADCASTS, key))
    return side is not None and is_pending(decode_broadcast(side.body), run.origin.workflow)


async def with_active_parents(services: Services, runs: Iterable[RunDoc]) -> set[str]:
    """Ids of those whose parents go on; one read at most."""
    asked = [(run.id, run.origin.parent) for run in runs if run.origin.parent is not None]
    parents = await _parents(services, [parent for _, parent in asked])
    return {run_id for run_id, parent in asked if _goes_on(parents.get(parent.run))}


def _goes_on(run: RunDoc | None) -> bool:
    """Whether it may still see how its children end; one that undoes what it did does not look any more."""
    return run is not None and run.head.status in _GOING_ON and not run.head.cancel_requested


def _may_be_fired_again(run: RunDoc, now: int) -> bool:
    """A worker that stood still while it started the run of a firing would start it again, were it gone."""
    scheduled, debounce = run.origin.scheduled, run.head.debounce
    if debounce is not None and debounce.causes and now < run.head.updated_at + KEPT:
        return True
    return scheduled is not None and bool(scheduled.schedule) and now < run.origin.created_at + KEPT


def _is_needed(parent: Parent | None, parents: dict[str, RunDoc | None]) -> bool:
    if parent is None:
        return False
    if parent.run not in parents:
        return True  # it cannot be read
    known = parents[parent.run]
    if known is None:
        return False
    return known.head.status not in SETTLED or _is_kept_for_retry(parent, known)


def _is_kept_for_retry(parent: Parent, known: RunDoc) -> bool:
    """Whether a failed run has a join that is over, whose outputs are read from its branches when it is retried."""
    record = known.records.get(parent.key)
    return (
        record is not None and record.kind == "join" and record.group == parent.group and record.outcome == "value"
    )


def _parent_of_draft(run: RunDoc) -> Parent | None:
    parent = run.origin.parent
    return parent if run.head.status == "draft" and parent is not None and parent.group else None


async def _parents(services: Services, asked: Iterable[Parent]) -> dict[str, RunDoc | None]:
    """The parents by id, None for one that is gone; one that does not decode is not among them."""
    ids = list(dict.fromkeys(parent.run for parent in asked))
    if not ids:
        return {}
    found = dict(zip(ids, await services.read(lambda: services.store.load_many(ids)), strict=True))
    for run_id in [run_id for run_id, run in found.items() if run is None]:
        try:
            found[run_id] = await services.read(lambda run_id=run_id: services.store.load(run_id))  # type: ignore[misc]  # a lambda with a default
        except DataCorruption:
            del found[run_id]
    return found


def _reason(asked: Parent, parent: RunDoc | None) -> str | None:
    """Why the child is not wanted any more, if it is not."""
    name = f"its parent, run {public_id(asked.run)},"
    if parent is None:
        return None if asked.detached else f"{name} is gone"
    if parent.head.status == "cancelled" or parent.head.cancel_requested:
        return f"{name} is cancelled"
    if asked.detached:
        return None
    record = parent.records.get(asked.key)
    if record is None or record.group != asked.group or not record.is_open:
        return f"{name} no longer waits for it"
    return None
