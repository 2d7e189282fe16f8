"""How a step is undone: the handler and its options, checked as those of a step are."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict

import msgspec

from streamline_trio._core.durations import Duration
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.options import Backoff, Given, checked_option
from streamline_trio._core.plan import CompensationPlan
from streamline_trio._core.refusal import refusal
from streamline_trio._core.retry import RetryPolicy
from streamline_trio._core.signature import read_handler


class CompensationSettings(TypedDict, total=False):
    """The options of a compensation; those that a step has too mean the same."""

    attempts: int
    retry_delay: Duration
    backoff: Backoff
    max_retry_delay: Duration
    jitter: float
    timeout: Duration | None
    when: Literal["finished", "started"]


class Compensation(msgspec.Struct, frozen=True, kw_only=True):
    """The handler that undoes a step, and what is stored of it."""

    handler: Callable[[Any], Any]
    is_async: bool
    plan: CompensationPlan
    state_type: Any


_DEFAULTS: Mapping[str, Any] = {
    "attempts": 3,
    "retry_delay": 1.0,
    "backoff": 2.0,
    "max_retry_delay": 60.0,
    "jitter": 0.3,
    "timeout": None,
    "when": "finished",
}


def read_compensation(handler: Callable[[Any], Any], given: Given, *, workflow: str, step: str) -> Compensation:
    """The compensation as it was given; `DefinitionError` names the step and the option that is wrong."""
    options = checked_compensation(given, workflow=workflow, step=step)
    info = read_handler(handler, workflow=workflow, step=step, returns=Any)
    retry = RetryPolicy(
        attempts=options["attempts"],
        delay=options["retry_delay"],
        factor=options["backoff"],
        max_delay=options["max_retry_delay"],
        jitter=options["jitter"],
    )
    plan = CompensationPlan(retry=retry, timeout=options["timeout"], when=options["when"])
    return Compensation(handler=handler, is_async=info.is_async, plan=plan, state_type=info.state_type)


def checked_compensation(given: Given, *, workflow: str, step: str) -> dict[str, Any]:
    """All options in their final form, those that were not given by their defaults."""
    final = dict(_DEFAULTS)
    for name, value in given.items():
        if name not in _DEFAULTS:
            raise refusal(_unknown(name), workflow=workflow, step=step, option=name)
        try:
            final[name] = _when(value) if name == "when" else checked_option(name, value)
        except (ValidationError, TypeError) as fault:
            raise refusal(f"of its compensation: {fault}", workflow=workflow, step=step, option=name) from fault
    return final


def _when(value: object) -> object:
    if value not in ("finished", "started"):
        raise ValidationError(f"must be 'finished' or 'started', not {value!r}")
    return value


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, _DEFAULTS, n=1)
    return "a compensation has no such option" + (f"; {near[0]!r} is meant, perhaps" if near else "")
