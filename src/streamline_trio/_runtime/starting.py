"""Starting a run: one insert, which already begins the first step if there is a worker with a free place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import whenever

from streamline_trio._core import payload
from streamline_trio._core.checking import is_mapping, is_text, is_whole
from streamline_trio._core.decide import StartRequest, cause_of
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import Origin, Scheduled
from streamline_trio._core.durations import instant_millis, seconds_of, to_millis
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.local_time import LocalTime, scheduled
from streamline_trio._core.naming import TAG_RULE, is_tag
from streamline_trio._core.tenancy import MARK, check_tenant, stored_id
from streamline_trio._runtime.admission import begin
from streamline_trio._runtime.machinery import Machinery
from streamline_trio._runtime.pacing import check_debounced, debounced, paced
from streamline_trio._runtime.slot_wishes import slot_for

_MAX_KEY = 500
_MAX_RUN_ID = 200
_MAX_PRIORITY = 100


class FiredBy(msgspec.Struct, frozen=True, kw_only=True):
    """What a schedule says of a run that it starts: its id, so that it is started once, and its time."""

    run_id: str
    scheduled: Scheduled


class StartOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What may be said beside the workflow and its input; `fired_by` is for schedules, in place of id and time.

    `again_since`: the broadcast or firing of this instant may have been seen to before.
    """

    idempotency_key: str | None = None
    priority: int = 0
    delay: float | timedelta | None = None
    run_at: datetime | whenever.Instant | whenever.ZonedDateTime | LocalTime | None = None
    user: str | None = None
    tags: Sequence[str] = ()
    meta: Mapping[str, Any] | None = None
    run_id: str | None = None
    tenant: str | None = None
    emission: str = ""
    fired_by: FiredBy | None = None
    again_since: int | None = None


async def start(machinery: Machinery, workflow: Workflow[Any, Any], value: Any, options: StartOptions) -> str:
    """The stored id of the new run, or of the active one that holds the same key."""
    request = _request(machinery, workflow, value, options)
    if request.debounce is not None:
        return await machinery.debounces.start(workflow, request, options.again_since)
    return await begin(machinery, workflow, request)


def _request(machinery: Machinery, workflow: Workflow[Any, Any], value: Any, options: StartOptions) -> StartRequest:
    """Everything is checked before anything is written."""
    chance, now = machinery.services.chance, machinery.services.clock.now()
    check(f"start of {workflow.id}", options)
    check_debounced(workflow, options)
    stored = workflow.input_payload(value)
    fired_by = options.fired_by
    asked = _scheduled(options, now) if fired_by is None else fired_by.scheduled
    origin = Origin(
        id=fired_by.run_id
        if fired_by is not None
        else stored_id(options.tenant, options.run_id or chance.run_id(now)),
        workflow=workflow.id,
        start_id=chance.commit_id(),
        created_at=now,
        input=stored,
        tenant=options.tenant,
        priority=options.priority,
        user=options.user,
        tags=tuple(dict.fromkeys((*workflow.tags, *options.tags))),
        meta=None if not options.meta else payload.encode(dict(options.meta), what="meta"),
        idempotency_key=options.idempotency_key,
        scheduled=asked,
        emission=options.emission,
    )
    start_at = asked.at if asked is not None and asked.at > now else None
    is_later = start_at is not None or workflow.rules.debounce is not None
    slot = slot_for(machinery.services, workflow, origin, is_later=is_later, attended=True)
    request = StartRequest(
        origin=origin,
        state=workflow.initial_state(stored),
        start_at=start_at,
        slot=slot,
        causes=cause_of(origin),
    )
    return debounced(paced(request, workflow, attended=slot is None), workflow)


def _scheduled(options: StartOptions, now: int) -> Scheduled | None:
    if options.delay is not None:
        return Scheduled(at=now + to_millis(seconds_of(options.delay, what="delay")))
    if isinstance(options.run_at, LocalTime):
        return scheduled(options.run_at)
    if options.run_at is not None:
        return Scheduled(at=instant_millis(options.run_at, what="run_at"))
    return None


def check(where: str, options: StartOptions) -> None:
    """Raise `ValidationError` for an option that cannot be meant; `where` begins the message."""
    if options.delay is not None and options.run_at is not None:
        raise ValidationError(f"{where}: delay and run_at exclude each other")
    if not is_whole(options.priority, -_MAX_PRIORITY, _MAX_PRIORITY):
        raise ValidationError(f"{where}: priority is a whole number from -100 to 100, not {options.priority!r}")
    _check_text(options.idempotency_key, f"{where}: idempotency_key", _MAX_KEY)
    _check_text(options.run_id, f"{where}: run_id", _MAX_RUN_ID)
    if options.run_id is not None and MARK in options.run_id:
        raise ValidationError(f"{where}: run_id cannot contain {MARK!r}")
    if options.tenant is not None:
        check_tenant(options.tenant)
    _check_text(options.user, f"{where}: user", _MAX_KEY)
    if isinstance(options.tags, str) or not all(is_tag(tag) for tag in options.tags):
        raise ValidationError(f"{where}: tags are texts of {TAG_RULE}, not {options.tags!r}")
    if options.meta is not None and not is_mapping(options.meta):
        raise ValidationError(f"{where}: meta is a mapping, not {options.meta!r}")


def _check_text(value: str | None, what: str, longest: int) -> None:
    if value is not None and not is_text(value, longest):
        raise ValidationError(f"{what} has 1 to {longest} characters, not {value!r}")
