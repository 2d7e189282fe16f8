"""Durations and instants at the edge of the engine: seconds and whole milliseconds inside.

Durations come in as a number of seconds or a `timedelta`, instants as an aware `datetime`
or one of whenever's exact types. Stored instants are milliseconds since the Unix epoch,
rounded up, so that nothing fires before the time it was asked for.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import whenever

from streamline_trio._core.errors import ValidationError

Duration: TypeAlias = float | timedelta
"""Seconds, or a `timedelta`."""

AwareInstant: TypeAlias = datetime | whenever.Instant | whenever.ZonedDateTime | whenever.OffsetDateTime
"""A moment that means the same everywhere."""

DAY = 86_400.0
MAX_SECONDS = 366_000 * DAY
"""The longest duration taken: a thousand years."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_NANOS_PER_MILLI = 1_000_000
_NOISE = 1e-6


def seconds_of(value: Duration, *, what: str, negative: bool = False) -> float:
    """The seconds of a duration; `what` names it in the `ValidationError` of a bad one.

    Refused are other types, booleans, what is not finite, more than a thousand years and,
    unless `negative` is true, what is below zero.
    """
    seconds = _as_seconds(value)
    if seconds is None:
        raise ValidationError(f"{what} must be a number of seconds or a timedelta, not {value!r}", what=what)
    if not abs(seconds) <= MAX_SECONDS:
        raise ValidationError(f"{what} must be finite and at most a thousand years, not {value!r}", what=what)
    if seconds < 0 and not negative:
        raise ValidationError(f"{what} must not be negative, but is {value!r}", what=what)
    return seconds


def _as_seconds(value: object) -> float | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def to_millis(seconds: float) -> int:
    """Whole milliseconds, rounded up; more than nothing stays more than nothing.

    The noise of binary fractions is cut off first: 0.1 + 0.2 seconds are 300 ms, not 301.
    """
    exact = seconds * 1000.0
    nearest = round(exact)
    noise = max(_NOISE, 2.0 * math.ulp(exact))
    millis = nearest if abs(exact - nearest) <= noise else math.ceil(exact)
    return max(1, millis) if seconds > 0 else millis


def instant_millis(value: AwareInstant, *, what: str, down: bool = False) -> int:
    """Milliseconds since the Unix epoch, rounded up, or `down`: the end of what lasts up to this instant.

    `what` names the instant in the `ValidationError` that a naive `datetime` or another
    type gives.
    """
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise ValidationError(f"{what} must be an aware datetime, but {value!r} has no time zone", what=what)
        return (value - _EPOCH) // _MILLISECOND if down else -((_EPOCH - value) // _MILLISECOND)
    if isinstance(value, whenever.Instant | whenever.ZonedDateTime | whenever.OffsetDateTime):  # pyright: ignore[reportUnnecessaryIsInstance]
        nanos = value.timestamp(unit="nanosecond")
        return nanos // _NANOS_PER_MILLI if down else -(-nanos // _NANOS_PER_MILLI)
    raise ValidationError(f"{what} must be an aware datetime or a whenever.Instant, not {value!r}", what=what)


def instant_of(millis: int) -> whenever.Instant:
    """The instant that this many milliseconds since the Unix epoch stand for."""
    try:
        return whenever.Instant.from_timestamp(millis, unit="millisecond")
    except (ValueError, OverflowError) as error:
        raise ValidationError(f"{millis} ms is outside the years 1 to 9999") from error
