"""What people do to schedules, as pure functions of the document."""

from __future__ import annotations

from typing import Any

import msgspec

from streamline_trio._core.recurrence import Recurrence
from streamline_trio._core.schedules import FiringDoc, ScheduleDoc, with_due

_DEFINED = ("workflow", "version", "input", "every", "jitter", "priority", "user", "tags", "meta")


def differences(doc: ScheduleDoc, other: ScheduleDoc) -> list[str]:
    """In what their definitions differ, whatever has become of them since."""
    return [name for name in _DEFINED if getattr(doc, name) != getattr(other, name)]


def paused(doc: ScheduleDoc, reason: str | None, now: int) -> ScheduleDoc:
    """Nothing fires any more; what was waiting for an earlier run is left out."""
    if doc.paused:
        return doc
    return msgspec.structs.replace(
        doc, paused=True, pause_reason=reason, queued=(), skipped=doc.skipped + len(doc.queued), updated_at=now
    )


def unpaused(doc: ScheduleDoc, now: int) -> ScheduleDoc:
    """It goes on with what comes from now on: nothing of the time in between is made up, or counts as missed."""
    if not doc.paused:
        return doc
    return with_due(
        msgspec.structs.replace(doc, paused=False, pause_reason=None, after=max(doc.after, now), updated_at=now)
    )


def asked_now(doc: ScheduleDoc, now: int, until: int) -> tuple[ScheduleDoc, FiringDoc]:
    """One firing beside the rule, which moves nothing."""
    firing = FiringDoc(at=now, asked=doc.asked + 1, until=until, tries=int(until > now))
    return msgspec.structs.replace(doc, asked=firing.asked, pending=(*doc.pending, firing)), firing


def updated(doc: ScheduleDoc, changes: dict[str, Any], now: int) -> ScheduleDoc:
    """Other values for these fields. Another rule counts from now; other limits of the same rule only count on."""
    if all(getattr(doc, name) == value for name, value in changes.items()):
        return doc
    after = msgspec.structs.replace(doc, **changes, updated_at=now)
    if rule_of(after.every) != rule_of(doc.every):
        after = msgspec.structs.replace(after, anchor=now, after=max(doc.after, now), spent=0)
    return with_due(after)


def rule_of(every: Recurrence) -> Recurrence:
    """The rule alone, without its limits and what becomes of firings."""
    return msgspec.structs.replace(every, ends_at=None, count=None, overlap="allow", catch_up=0, misfire_grace=0.0)


def deleted(doc: ScheduleDoc, now: int) -> ScheduleDoc:
    """Gone for everybody. What remains for a while refuses those who still write to what they have read before."""
    return msgspec.structs.replace(doc, deleted_at=now, pending=(), queued=(), active=())
