"""What happened to a run, when, by which worker and in which attempt: told from the stored run."""

from __future__ import annotations

from typing import Literal

import msgspec
import whenever

from streamline_trio._core.documents import CompensationDoc, RunDoc, StepDoc, Try
from streamline_trio._core.durations import instant_of
from streamline_trio._core.rollback import in_undo_order
from streamline_trio._core.status import SETTLED

EntryKind = Literal[
    "created",
    "forked",
    "started",
    "attempt",
    "failed",
    "crashed",
    "waited",
    "waiting",
    "retrying",
    "done",
    "skipped",
    "compensating",
    "compensated",
    "compensation_failed",
    "replaced",
    "pinned",
    "settled",
]
MAX_ENTRIES = 1000


class TimelineEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened; `ended_at` is None for what lasts or has no length.

    `replaced` is an output that goto or rewind has put into the history; a wait whose step has ended or was reset
    without it is `dropped`.
    """

    at: whenever.Instant
    kind: EntryKind
    ended_at: whenever.Instant | None = None
    step: str | None = None
    attempt: int | None = None
    worker: str | None = None
    detail: str = ""


def timeline(run: RunDoc) -> list[TimelineEntry]:
    """In order of time; bounded: of each step the last tries and waits are known, of all that the last 1,000."""
    head = run.head
    created = _entry(run.origin.created_at, "created")
    entries = [created]
    forked_from = run.origin.forked_from
    if forked_from is not None:
        detail = f"from run {forked_from.run} at step {forked_from.step}"
        entries.append(_entry(run.origin.created_at, "forked", step=forked_from.step, detail=detail))
    if head.started_at is not None:
        entries.append(_entry(head.started_at, "started"))
    for step_id, step in run.steps.items():
        entries.extend(_of_step(step_id, step))
    undone = (step_id for step_id, step in run.steps.items() if step.compensation is not None)
    for step_id in in_undo_order(run.steps, undone):
        entries.extend(_of_compensation(step_id, run.steps[step_id].compensation))
    for record in run.records.values():
        if record.is_open:
            what = record.signal or record.name or record.reason or record.kind
            entries.append(_entry(record.opened_at, "waiting", step=head.current_step, detail=what))
    if head.status in SETTLED and head.ended_at is not None:
        entries.append(_entry(head.ended_at, "settled", detail=head.status))
    entries.sort(key=lambda entry: entry.at.timestamp(unit="nanosecond"))
    return entries if len(entries) <= MAX_ENTRIES else [created, *entries[1 - MAX_ENTRIES :]]


def _of_step(step_id: str, step: StepDoc) -> list[TimelineEntry]:
    entries = [_of_try(step_id, tried) for tried in step.tries]
    entries += [
        _entry(
            wait.opened_at,
            "waited",
            ended_at=wait.resolved_at,
            step=step_id,
            detail=f"{wait.name}: {wait.outcome}",
        )
        for wait in step.waits
    ]
    if step.started_at is not None and step.status in {"running", "waiting", "done", "skipped"}:
        kind: EntryKind = "done" if step.status == "done" else "attempt"
        entries.append(
            _entry(
                step.started_at,
                "skipped" if step.status == "skipped" else kind,
                ended_at=step.ended_at,
                step=step_id,
                attempt=step.attempts,
                worker=step.worker,
            )
        )
    entries += [
        _entry(kept.at, "replaced", step=step_id, attempt=kept.attempts, detail=f"output {kept.version}")
        for kept in step.history
    ]
    if step.pinned_at is not None:
        entries.append(_entry(step.pinned_at, "pinned", step=step_id, detail=f"output {step.pinned}"))
    if step.retry_at is not None:
        entries.append(_entry(step.retry_at, "retrying", step=step_id, attempt=step.attempts + 1))
    return entries


def _of_try(step_id: str, tried: Try, detail: str = "") -> TimelineEntry:
    return _entry(
        tried.started_at,
        tried.outcome,
        ended_at=tried.ended_at,
        step=step_id,
        attempt=tried.attempt,
        worker=tried.worker,
        detail=detail + tried.message,
    )


def _of_compensation(step_id: str, compensation: CompensationDoc | None) -> list[TimelineEntry]:
    if compensation is None:
        return []
    entries = [_of_try(step_id, tried, "compensation: ") for tried in compensation.tries]
    if compensation.retry_at is not None:
        entries.append(
            _entry(
                compensation.retry_at,
                "retrying",
                step=step_id,
                attempt=compensation.attempts + 1,
                detail="compensation",
            )
        )
    kind = _UNDOING.get(compensation.status)
    if kind is not None:
        at = compensation.ended_at if compensation.started_at is None else compensation.started_at
        entries.append(
            _entry(
                at or 0,
                kind,
                ended_at=compensation.ended_at,
                step=step_id,
                attempt=compensation.attempts,
                worker=compensation.worker,
                detail="" if compensation.error is None else compensation.error.message,
            )
        )
    return entries


_UNDOING: dict[str, EntryKind] = {
    "running": "compensating",
    "done": "compensated",
    "failed": "compensation_failed",
}


def _entry(
    at: int,
    kind: EntryKind,
    *,
    ended_at: int | None = None,
    step: str | None = None,
    attempt: int | None = None,
    worker: str | None = None,
    detail: str = "",
) -> TimelineEntry:
    return TimelineEntry(
        at=instant_of(at),
        kind=kind,
        ended_at=None if ended_at is None else instant_of(ended_at),
        step=step,
        attempt=attempt,
        worker=worker,
        detail=detail,
    )
