"""What may be said of a schedule, checked where it is said, in the form that is stored."""

from __future__ import annotations

from typing import Any

from streamline_trio._core import payload as payloads
from streamline_trio._core.definition import Workflow
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.naming import TAG_RULE, is_tag
from streamline_trio._core.recurrence import Recurrence
from streamline_trio._core.schedules import MOST_MADE_UP
from streamline_trio._runtime.starting import StartOptions


def checked_rule(every: object) -> Recurrence:
    """The rule, if it is one that a schedule can have."""
    if not isinstance(every, Recurrence):
        raise ValidationError(f"every must be a Recurrence, not {every!r:.200}", what="every")
    if every.catch_up > MOST_MADE_UP:
        raise ValidationError(
            f"every: a schedule makes up at most {MOST_MADE_UP} missed firings, not catch_up={every.catch_up}",
            what="catch_up",
        )
    return every


def check_schedule_id(id: object) -> None:
    """Raise `ValidationError` unless this may be the id of a schedule."""
    if not is_tag(id):
        raise ValidationError(f"the id of a schedule has {TAG_RULE}, not {id!r:.200}", what="id")


def checked_input(workflow: Workflow[Any, Any], value: Any) -> bytes:
    """The input as it is stored; a run of it could be started now."""
    stored = workflow.input_payload(value)
    workflow.initial_state(stored)
    return stored


def stored_options(options: StartOptions) -> dict[str, Any]:
    """Those that a schedule has, by the names of its fields."""
    return {
        "priority": options.priority,
        "user": options.user,
        "tags": tuple(dict.fromkeys(options.tags)),
        "meta": None if not options.meta else payloads.encode(dict(options.meta), what="meta"),
    }
