"""What a workflow says about its starts: how many at a time, how often, after what, and what ends them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypedDict, cast

import msgspec

from streamline_trio._core.checking import is_a, is_mapping, is_text
from streamline_trio._core.durations import DAY, Duration, seconds_of
from streamline_trio._core.errors import StreamlineError, ValidationError
from streamline_trio._core.options import whole
from streamline_trio._core.signals import Signal, signal_name
from streamline_trio._core.signature import takes_one_argument

KeyFunction: TypeAlias = Callable[[Any], str | int]
"""Gives the bucket of a run from its input."""

WhenFull: TypeAlias = Literal["queue", "reject"]

MAX_LIMIT = 10_000
MAX_WINDOW = 366 * DAY
MAX_KEY = 500


@dataclass(frozen=True)
class Concurrency:
    """At most `limit` runs at a time hold a slot, per `key` of the input; without a key, per workflow and tenant.

    A slot is held from admission until the run settles, also while it waits, is paused or undoes its steps. When
    all are taken, further runs `queue` (higher priority first, then in order of arrival) or are refused
    (`"reject"`) with `ConcurrencyLimitReached`.
    """

    limit: int
    key: KeyFunction | None = None
    when_full: WhenFull = "queue"


@dataclass(frozen=True)
class Throttle:
    """At most `limit` runs begin in any `window` (seconds), per `key` of the input; excess starts are put off."""

    limit: int
    window: Duration
    key: KeyFunction | None = None


@dataclass(frozen=True)
class Debounce:
    """Starts that follow each other within `window` (seconds) become one run, with the input of the last of them.

    It begins when no start of its `key` has come for a window, or `max_wait` seconds after the first of them.
    """

    window: Duration
    key: KeyFunction | None = None
    max_wait: Duration | None = None


@dataclass(frozen=True)
class Trigger:
    """A broadcast `signal` starts a run, once per emission in the whole cluster.

    Its input is the payload, or `input(payload)`. Its tenant is the emission's, or `tenant`: a text, or a function
    of the payload.
    """

    signal: Signal[Any] | str
    input: Callable[[Any], Any] | None = None
    tenant: str | Callable[[Any], str | None] | None = None


@dataclass(frozen=True)
class CancelOn:
    """An emitted `signal` cancels runs: the one it is addressed to, or of a broadcast those that match.

    `match` maps fields of the payload to fields of the input that must be equal; without it a broadcast cancels
    every run of the workflow.
    """

    signal: Signal[Any] | str
    match: Mapping[str, str] = field(default_factory=dict[str, str])


class ConcurrencyPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The stored form of a `Concurrency`."""

    limit: int
    when_full: WhenFull = "queue"


class ThrottlePlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The stored form of a `Throttle`; the window in seconds."""

    limit: int
    window: float


class DebouncePlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The stored form of a `Debounce`, in seconds."""

    window: float
    max_wait: float | None = None


class CancelPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The stored form of a `CancelOn`; `match` maps fields of the payload to fields of the input."""

    signal: str
    match: dict[str, str] = {}


@dataclass(frozen=True, kw_only=True)
class StartRules:
    """All of them, in their final form: durations in seconds, each given by itself as one of several."""

    concurrency: Concurrency | None = None
    throttle: Throttle | None = None
    debounce: Debounce | None = None
    triggers: tuple[Trigger, ...] = ()
    cancel_on: tuple[CancelOn, ...] = ()

    def plans(self) -> StartPlans:
        """Their stored forms."""
        limit, rate, quiet = self.concurrency, self.throttle, self.debounce
        return StartPlans(
            concurrency=None if limit is None else ConcurrencyPlan(limit=limit.limit, when_full=limit.when_full),
            throttle=None if rate is None else ThrottlePlan(limit=rate.limit, window=_final(rate.window)),
            debounce=None
            if quiet is None
            else DebouncePlan(
                window=_final(quiet.window), max_wait=None if quiet.max_wait is None else _final(quiet.max_wait)
            ),
            triggered_by=tuple(sorted({signal_name(trigger.signal) for trigger in self.triggers})),
            cancel_on=tuple(
                CancelPlan(signal=signal_name(rule.signal), match=dict(rule.match)) for rule in self.cancel_on
            ),
        )


class StartPlans(TypedDict):
    """The stored forms of a workflow's rules, as fields of its plan."""

    concurrency: ConcurrencyPlan | None
    throttle: ThrottlePlan | None
    debounce: DebouncePlan | None
    triggered_by: tuple[str, ...]
    cancel_on: tuple[CancelPlan, ...]


def concurrency_of(value: object) -> Concurrency | None:
    """The option in its final form, or a `ValidationError`."""
    if value is None:
        return None
    given: Concurrency = _as(value, Concurrency)
    _check_limit(given.limit)
    _check_function(given.key, "its key", "the input")
    if given.when_full not in ("queue", "reject"):
        raise ValidationError(f"its when_full must be 'queue' or 'reject', not {given.when_full!r}")
    return given


def throttle_of(value: object) -> Throttle | None:
    """The option in its final form, or a `ValidationError`."""
    if value is None:
        return None
    given = _as(value, Throttle)
    _check_limit(given.limit)
    _check_function(given.key, "its key", "the input")
    return Throttle(given.limit, _seconds(given.window, "its window"), given.key)


def debounce_of(value: object) -> Debounce | None:
    """The option in its final form, or a `ValidationError`."""
    if value is None:
        return None
    given = _as(value, Debounce)
    _check_function(given.key, "its key", "the input")
    window = _seconds(given.window, "its window")
    longest = None if given.max_wait is None else _seconds(given.max_wait, "its max_wait")
    if longest is not None and longest < window:
        raise ValidationError(f"its max_wait must not be shorter than its window, but {longest} s < {window} s")
    return Debounce(window, given.key, longest)


def triggers_of(value: object) -> tuple[Trigger, ...]:
    """The triggers (one, several or None given), or a `ValidationError`."""
    if value is None:
        return ()
    triggers = tuple(_as(one, Trigger) for one in _many(value, Trigger))
    for trigger in triggers:
        signal_name(trigger.signal)
        _check_function(trigger.input, "its input", "the payload")
        if not isinstance(trigger.tenant, str):
            _check_function(trigger.tenant, "its tenant", "the payload")
    return triggers


def cancel_on_of(value: object) -> tuple[CancelOn, ...]:
    """Signals, names and `CancelOn`s as `CancelOn`s, or a `ValidationError`."""
    return tuple(_cancel_on(one) for one in _many(value, Signal, str, CancelOn))


def _cancel_on(given: object) -> CancelOn:
    if not isinstance(given, CancelOn):
        signal_name(cast("Any", given))
        return CancelOn(cast("Any", given))
    signal_name(given.signal)
    match: Any = given.match
    if not is_mapping(match) or not all(is_text(name, MAX_KEY) for pair in match.items() for name in pair):
        raise ValidationError(f"its match must map payload fields to input fields, not {match!r}")
    return CancelOn(given.signal, dict(match))


def bucket_name(value: object, *, what: str) -> str:
    """What a key function gave, as text; `ValidationError` for what is neither a text nor a whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and is_text(value, MAX_KEY):
        return value
    raise ValidationError(
        f"{what}: the key must be a whole number or a text of 1 to {MAX_KEY} characters, not {repr(value)[:100]}"
    )


def call_key(key: KeyFunction | None, input: object, *, what: str) -> str | None:
    """The bucket that the key function gives for an input; None without one. `ValidationError` when it fails."""
    if key is None:
        return None
    try:
        found: object = key(input)
    except StreamlineError:
        raise
    except Exception as error:
        raise ValidationError(f"{what}: the key function failed: {error!r}") from error
    return bucket_name(found, what=what)


def _as(value: object, type_: type[Any]) -> Any:
    if not is_a(value, type_):
        raise ValidationError(f"must be a {type_.__name__}(...), not {value!r}")
    return value


def _many(value: object, *types: type[Any]) -> tuple[object, ...]:
    if isinstance(value, types):
        return (value,)
    if not isinstance(value, Iterable):
        raise ValidationError(f"must be one or several of {', '.join(t.__name__ for t in types)}, not {value!r}")
    return tuple(cast("Iterable[object]", value))


def _check_limit(limit: object) -> None:
    try:
        whole(limit, least=1, most=MAX_LIMIT)
    except ValidationError as fault:
        raise ValidationError(f"its limit {fault}") from fault


def _seconds(value: Any, what: str) -> float:
    seconds = seconds_of(value, what=what)
    if not 0 < seconds <= MAX_WINDOW:
        raise ValidationError(f"{what} must be longer than nothing and at most 366 days, not {value!r}")
    return seconds


def _final(seconds: Duration) -> float:
    return seconds_of(seconds, what="it")


def _check_function(value: object, what: str, of: str) -> None:
    if value is not None and not (callable(value) and takes_one_argument(value)):
        raise ValidationError(f"{what} must be a function of {of}, not {value!r}")
