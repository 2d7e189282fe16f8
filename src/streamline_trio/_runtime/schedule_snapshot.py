"""What callers see of a stored schedule."""

from __future__ import annotations

from typing import Any

import msgspec
import whenever

from streamline_trio._core import payload as payloads
from streamline_trio._core.definition import Workflow
from streamline_trio._core.durations import instant_of
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.recurrence import Recurrence
from streamline_trio._core.recurrence_options import Overlap
from streamline_trio._core.schedules import ScheduleDoc
from streamline_trio._core.tenancy import public_id


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule, as it was stored when it was read; durations in seconds.

    `next_at` is when it fires next, jitter included: None while it is paused, and when it has come to its end.
    `last_at` is the occurrence that fired last, `last_run` the run that was started last. Of all occurrences that
    have passed, `fired` have started a run, `missed` were missed and not made up (what passed in a pause is not
    counted, and of one long outage at most 10,000 of a calendar), `skipped` met an earlier run, and `failed` could
    not start one, for the last time with `last_error`. `waiting` are those that wait for an earlier run. `version`
    None: the highest that a worker has.
    """

    id: str
    workflow: str
    version: str | None
    input: Any
    every: Recurrence
    jitter: float
    overlap: Overlap
    catch_up: int
    misfire_grace: float
    paused: bool
    pause_reason: str | None
    next_at: whenever.Instant | None
    last_at: whenever.Instant | None
    last_run: str | None
    last_error: str | None
    fired: int
    missed: int
    skipped: int
    failed: int
    waiting: int
    tenant: str | None
    created_at: whenever.Instant
    updated_at: whenever.Instant
    priority: int
    user: str | None
    tags: tuple[str, ...]
    meta: dict[str, Any]


def view_of(doc: ScheduleDoc, workflow: Workflow[Any, Any] | None) -> Schedule:
    """The public snapshot of a stored schedule; the input in the type of the workflow, where that is known."""
    return Schedule(
        id=doc.id,
        workflow=doc.workflow,
        version=doc.version,
        input=_input_of(doc, workflow),
        every=doc.every,
        jitter=doc.jitter / 1000,
        overlap=doc.every.overlap,
        catch_up=doc.every.catch_up,
        misfire_grace=doc.every.misfire_grace,
        paused=doc.paused,
        pause_reason=doc.pause_reason,
        next_at=None if doc.paused else _instant(doc.due),
        last_at=_instant(doc.last_at),
        last_run=None if doc.last_run is None else public_id(doc.last_run),
        last_error=doc.last_error,
        fired=doc.fired,
        missed=doc.missed,
        skipped=doc.skipped,
        failed=doc.failed,
        waiting=len(doc.queued),
        tenant=doc.tenant,
        created_at=instant_of(doc.created_at),
        updated_at=instant_of(doc.updated_at),
        priority=doc.priority,
        user=doc.user,
        tags=doc.tags,
        meta={} if doc.meta is None else msgspec.msgpack.decode(doc.meta),
    )


def _input_of(doc: ScheduleDoc, workflow: Workflow[Any, Any] | None) -> Any:
    """The input in the workflow's type; as plain data where that is unknown, or has changed."""
    what = f"the input of schedule {doc.id!r}"
    if workflow is not None:
        try:
            return payloads.decoder(workflow.input_type).decode(doc.input, what=what)
        except ValidationError:
            return payloads.decoder(Any).decode(doc.input, what=what)
    return payloads.decoder(Any).decode(doc.input, what=what)


def _instant(millis: int | None) -> whenever.Instant | None:
    return None if millis is None else instant_of(millis)
