"""Time zones: which instant a wall-clock time names, and the stretches of time over which an offset stays.

A wall-clock time is counted like an instant, in seconds since 1970-01-01 00:00, but on the clock on the wall: wall
minus offset is the instant. Where a zone's offset grows, the clock jumps forward and times are skipped (a gap);
where it shrinks, times are shown twice (a fold). Only offsets count here: what a zone calls summer (Dublin calls
winter the exception) changes nothing.

whenever reads the zones: from the machine's own database (PYTHONTZPATH, else the usual directories), else from the
package tzdata. The names that are taken are those of the database itself, in its own spelling.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import cache
from typing import Literal, NamedTuple

import whenever

from streamline_trio._core.durations import instant_millis
from streamline_trio._core.errors import ValidationError

EPOCH_DAY = datetime(1970, 1, 1)  # noqa: DTZ001 - the wall clock has no zone
FIRST_SECOND = -62_000_000_000
"""In the year 5: from here to `LAST_SECOND` every offset leaves years that a `datetime` can hold."""
LAST_SECOND = 253_000_000_000
"""In the year 9987."""

_LONGEST_ZONE = 100
_ENDLESS = 1 << 62


class Stretch(NamedTuple):
    """A time over which a zone keeps one offset: from `start` up to, not including, `end`.

    `before` and `after` are the offsets of the neighbours; all in seconds.
    """

    start: int
    end: int
    before: int
    offset: int
    after: int


class Resolved(NamedTuple):
    """The instant that a wall-clock time names, in milliseconds, and whether it was skipped or is shown twice."""

    at: int
    gap: bool
    fold: bool


def checked_zone(zone: object, *, what: str) -> str:
    """The name of the zone, else a `ValidationError`; `what` names the parameter.

    Spelling counts, since the name may be read on a machine whose file system tells `berlin` from `Berlin`.
    """
    if isinstance(zone, str) and len(zone) <= _LONGEST_ZONE:
        names = _names()
        if zone in names:
            return zone
        near = difflib.get_close_matches(zone, names, n=1)
        hint = f"; {near[0]!r} is meant, perhaps" if near else ""
        raise ValidationError(f"{what}: there is no time zone {zone!r}{hint}", what=what)
    raise ValidationError(f"{what} must be the name of a time zone, not {zone!r:.200}", what=what)


@cache
def _names() -> frozenset[str]:
    return frozenset(whenever.available_timezones())


def wall_text(wall: int) -> str:
    """The wall-clock time, given in milliseconds, as people write it: 2026-03-29 02:30:00."""
    return (EPOCH_DAY + timedelta(milliseconds=wall)).isoformat(" ", "milliseconds" if wall % 1000 else "seconds")


def resolve(local: datetime, zone: str, *, what: str) -> Resolved:
    """The instant that the naive `local` names in the zone, rounded up to whole milliseconds.

    A time in a gap is shifted forward by the gap; of a time that is shown twice it is the first.
    """
    plain = whenever.PlainDateTime(
        local.year,
        local.month,
        local.day,
        local.hour,
        local.minute,
        local.second,
        nanosecond=local.microsecond * 1000,
    )
    try:
        meant = _at(plain, zone, "compatible")
        gap = _at(plain, zone, "earlier") != meant
        fold = _at(plain, zone, "later") != meant
    except whenever.TimeZoneNotFoundError as error:
        raise _no_such_zone(zone) from error
    except (ValueError, OverflowError) as error:
        raise ValidationError(f"{what}: {local} is outside the years 1 to 9999 in {zone}", what=what) from error
    return Resolved(instant_millis(meant, what=what), gap, fold)


def _at(
    plain: whenever.PlainDateTime, zone: str, which: Literal["compatible", "earlier", "later"]
) -> whenever.ZonedDateTime:
    """The moment; compatible is the later one in a gap and the earlier one in a fold."""
    return plain.assume_tz(zone, disambiguation=which)  # pyright: ignore[reportUnknownMemberType] - SYSTEM_TZ


def stretches(zone: str, second: int) -> Iterator[Stretch]:
    """The stretch that contains this second since the epoch, and those after it."""
    offset, change = _offset_and_change(zone, second)
    start, before = _last_change(zone, second, offset)
    while change is not None:
        following, next_change = _offset_and_change(zone, change)
        yield Stretch(start, change, before, offset, following)
        start, before, offset, change = change, offset, following, next_change
    yield Stretch(start, _ENDLESS, before, offset, offset)


def _offset_and_change(zone: str, second: int) -> tuple[int, int | None]:
    """The offset at this second, and when the zone's rules change next."""
    local = _in_zone(zone, second)
    change = local.next_transition()
    return _offset(local), None if change is None else change.timestamp()


def _last_change(zone: str, second: int, offset: int) -> tuple[int, int]:
    """When this stretch began, and the offset before it; without a beginning, long ago with the same offset."""
    change = _in_zone(zone, second + 1).prev_transition()
    if change is None:
        return -_ENDLESS, offset
    start = change.timestamp()
    return start, _offset(_in_zone(zone, start - 1))


def _offset(local: whenever.ZonedDateTime) -> int:
    return int(local.offset.total("seconds"))


def _in_zone(zone: str, second: int) -> whenever.ZonedDateTime:
    try:
        return whenever.Instant.from_timestamp(second).to_tz(zone)  # pyright: ignore[reportUnknownMemberType] - SYSTEM_TZ
    except whenever.TimeZoneNotFoundError as error:
        raise _no_such_zone(zone) from error


def _no_such_zone(zone: str) -> ValidationError:
    return ValidationError(f"the time zone database of this machine has no {zone!r}", what="tz")
