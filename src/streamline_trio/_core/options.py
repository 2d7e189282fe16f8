"""The options of a step: what may be given, what is checked, what holds in the end.

A step's own option wins over the workflow's `defaults`, and these over the built-in ones.
"""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Literal, TypeAlias, TypedDict, TypeVar

from typing_extensions import Unpack

from streamline_trio._core.durations import DAY, Duration, seconds_of
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.naming import ID_RULE, is_id
from streamline_trio._core.refusal import refusal
from streamline_trio._core.retry import RetryPolicy, backoff_factor
from streamline_trio._core.retry_on import RetryOn, RetryRule
from streamline_trio._core.signature import takes_one_argument

StateT = TypeVar("StateT")

Condition: TypeAlias = Callable[[StateT], bool | Awaitable[bool]]
"""A predicate over the run's state, sync or async."""

Backoff: TypeAlias = Literal["exponential", "linear", "fixed"] | float

MAX_ATTEMPTS = 1000
MAX_DELAY = 366 * DAY
MAX_KEPT_OUTPUTS = 1000


class StepSettings(TypedDict, Generic[StateT], total=False):
    """The options of a step that has its id already."""

    attempts: int
    retry_delay: Duration
    backoff: Backoff
    max_retry_delay: Duration
    jitter: float
    retry_on: RetryRule
    timeout: Duration | None
    keep_outputs: int
    skip_if: Condition[StateT] | None
    run_if: Condition[StateT] | None
    returns: Any
    max_payload_bytes: int | None


class StepOptionsDict(StepSettings[StateT], total=False):
    """The options of a step, its id among them."""

    id: str


Given: TypeAlias = Mapping[str, Any]
"""Options by name, as the user wrote them or, once checked, in their final form."""


class StepOptions:
    """Options for all steps of a workflow: ``Workflow(..., defaults=StepOptions(attempts=5))``.

    They are checked when a workflow takes them, so that the error can name it.
    """

    __slots__ = ("given",)

    def __init__(self, **options: Unpack[StepSettings[Any]]) -> None:
        self.given: Given = {**options}

    def __repr__(self) -> str:
        return f"StepOptions({_listed(self.given)})"


class StepSpec:
    """A handler with its options, for the `steps` map: ``{"parse": StepSpec(parse, attempts=5)}``."""

    __slots__ = ("given", "handler")

    def __init__(self, handler: Callable[[Any], Any], /, **options: Unpack[StepSettings[Any]]) -> None:
        self.handler: Callable[[Any], Any] = handler
        self.given: Given = {**options}

    def __repr__(self) -> str:
        return f"StepSpec({', '.join(filter(None, (repr(self.handler), _listed(self.given))))})"


_ANY_ERROR = RetryOn(Exception)


@dataclass(frozen=True, kw_only=True)
class ResolvedOptions:
    """What holds for one step; durations in seconds."""

    attempts: int = 3
    retry_delay: float = 1.0
    backoff: float = 2.0
    max_retry_delay: float = 60.0
    jitter: float = 0.3
    retry_on: RetryOn = _ANY_ERROR
    timeout: float | None = None
    keep_outputs: int = 0
    skip_if: Condition[Any] | None = None
    run_if: Condition[Any] | None = None
    max_payload_bytes: int | None = None

    @cached_property
    def retry(self) -> RetryPolicy:
        """The numbers of these options that say when to try again."""
        return RetryPolicy(
            attempts=self.attempts,
            delay=self.retry_delay,
            factor=self.backoff,
            max_delay=self.max_retry_delay,
            jitter=self.jitter,
        )


def resolved(*layers: Given) -> ResolvedOptions:
    """Lay checked options over the built-in ones, a later layer over an earlier one."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer)
    for name in _NOT_RESOLVED:
        merged.pop(name, None)
    return ResolvedOptions(**merged)


def checked(options: Given, *, workflow: str, step: str | None = None) -> dict[str, Any]:
    """The options in their final form; a `DefinitionError` names the first bad one.

    Without `step` they are the defaults of the workflow, which cannot hold `id` or `returns`.
    """
    final: dict[str, Any] = {}
    for name, value in options.items():
        check = _CHECKS.get(name)
        if check is None or (step is None and name in _NOT_RESOLVED):
            raise refusal(_unknown(name, step), workflow=workflow, step=step, option=name)
        try:
            final[name] = check(value)
        except (ValidationError, TypeError) as fault:
            raise refusal(str(fault), workflow=workflow, step=step, option=name) from fault
    return final


def checked_option(name: str, value: object) -> Any:
    """One option of this name in its final form; `ValidationError` or `TypeError` says what is wrong with it."""
    return _CHECKS[name](value)


_NOT_RESOLVED = ("id", "returns")


def _unknown(name: str, step: str | None) -> str:
    if step is None and name in _NOT_RESOLVED:
        return "belongs to one step and cannot be a default of all"
    near = difflib.get_close_matches(name, _CHECKS, n=1)
    return "there is no such option" + (f"; {near[0]!r} is meant, perhaps" if near else "")


def _listed(given: Given) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in given.items())


def whole(value: object, *, least: int, most: int | None = None) -> int:
    """The value when it is a whole number in these bounds, else a `ValidationError`."""
    bounds = f"of {least} or more" if most is None else f"from {least} to {most}"
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValidationError(f"must be a whole number {bounds}, not {value!r}")
    if most is not None and value > most:
        raise ValidationError(f"must be a whole number {bounds}, not {value!r}")
    return value


def truth(value: object) -> bool:
    """The value when it is True or False, else a `ValidationError`."""
    if not isinstance(value, bool):
        raise ValidationError(f"must be True or False, not {value!r}")
    return value


def limit(value: Any) -> float | None:
    """A timeout in seconds, or None for none; else a `ValidationError`."""
    if value is None:
        return None
    seconds = seconds_of(value, what="it")
    if seconds == 0:
        raise ValidationError(f"must be longer than nothing, not {value!r}")
    return seconds


def payload_limit(value: object) -> int | None:
    """A number of bytes, or None for no limit; else a `ValidationError`."""
    return None if value is None else whole(value, least=1)


def _id(value: object) -> object:
    if not is_id(value):
        raise ValidationError(f"must be {ID_RULE}, not {value!r}")
    return value


def _attempts(value: object) -> int:
    return whole(value, least=1, most=MAX_ATTEMPTS)


def _kept_outputs(value: object) -> int:
    return whole(value, least=0, most=MAX_KEPT_OUTPUTS)


def _delay(value: Any) -> float:
    seconds = seconds_of(value, what="it")
    if seconds > MAX_DELAY:
        raise ValidationError(f"must be at most 366 days, not {value!r}")
    return seconds


def _jitter(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValidationError(f"must be a number from 0 to 1, not {value!r}")
    return float(value)


def _condition(value: object) -> object:
    if value is None:
        return None
    if not callable(value) or not takes_one_argument(value):
        raise ValidationError(f"must be a function of the state, not {value!r}")
    return value


def _as_is(value: object) -> object:
    return value


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "id": _id,
    "attempts": _attempts,
    "retry_delay": _delay,
    "backoff": backoff_factor,
    "max_retry_delay": _delay,
    "jitter": _jitter,
    "retry_on": RetryOn,
    "timeout": limit,
    "keep_outputs": _kept_outputs,
    "skip_if": _condition,
    "run_if": _condition,
    "returns": _as_is,
    "max_payload_bytes": payload_limit,
}
