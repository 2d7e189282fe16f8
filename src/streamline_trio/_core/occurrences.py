"""When a calendar's wall-clock times come round in a zone: every firing once, in order, none lost.

Each time of the calendar fires once a day it names, when the clock of the zone shows it:

- A time that the clock skips (a gap) fires later by the length of the gap, that day only. Where that is a time of
  the calendar too, the two are one firing.
- A time that the clock shows twice (a fold) fires the first time. Only a calendar that fires in every hour of the
  day is no set of times but a beat, and fires both times: nobody expects an hour of silence of it.
- A whole day that the clock skips (Apia had no 2011-12-30) does not fire.

The walk goes from stretch to stretch of one offset. In a stretch after a gap, the skipped times fire as if the old
offset still held, which is the same as later by the gap; in a stretch after a fold, the clock shows new times once
the old offset's have been reached.
"""

# No postponed annotations: they would be looked up in the package whose name the public classes here bear.

from collections.abc import Iterator
from heapq import merge
from operator import attrgetter
from typing import NamedTuple

import msgspec
import whenever

from streamline_trio._core.calendars import DAY_SECONDS, Calendar, remembering, wall_after
from streamline_trio._core.durations import instant_of
from streamline_trio._core.zones import FIRST_SECOND, LAST_SECOND, Stretch, stretches, wall_text


class Occurrence(msgspec.Struct, frozen=True, kw_only=True):
    """One firing of a recurrence."""

    at: whenever.Instant
    """When it fires."""
    local: str
    """The wall-clock time that the rule names: "2026-03-29 02:30:00"; in a gap the clock never shows it."""
    zone: str
    """Whose wall clock."""
    gap: bool = False
    """The clock skips this time: it fires later by the length of the gap."""
    fold: bool = False
    """The clock shows this time twice."""


class Firing(NamedTuple):
    """An occurrence as numbers: `at` in milliseconds since the epoch, `wall` the same on the wall clock."""

    at: int
    wall: int
    gap: bool
    fold: bool


def occurrence(firing: Firing, zone: str) -> Occurrence:
    """The firing as users see it."""
    return Occurrence(
        at=instant_of(firing.at),
        local=wall_text(firing.wall),
        zone=zone,
        gap=firing.gap,
        fold=firing.fold,
    )


def firings(calendar: Calendar, zone: str, after: int) -> Iterator[Firing]:
    """The firings later than this millisecond since the epoch, in order; lazily, up to the year 9987."""
    after = max(after // 1000, FIRST_SECOND)
    if after >= LAST_SECOND:
        return
    calendar = calendar._replace(next_day=remembering(calendar.next_day))
    for stretch in stretches(zone, after):
        if wall_after(calendar, max(after, stretch.start) + stretch.before) is None:
            return  # else it would be searched for in each stretch of eight thousand years
        shown = _shown(calendar, stretch, after)
        if after < stretch.start + stretch.offset - stretch.before:
            shown = merge(shown, _skipped(calendar, stretch, after), key=_AT)
        for firing in shown:
            if firing.at > _LAST:
                return
            yield firing


def interval_firings(interval: int, anchor: int, after: int) -> Iterator[Firing]:
    """The firings of an interval that are later than `after`, which is not before its anchor; in milliseconds."""
    at = anchor + ((after - anchor) // interval + 1) * interval
    while at <= _LAST:
        yield Firing(at, at, gap=False, fold=False)
        at += interval


_LAST = LAST_SECOND * 1000
_AT = attrgetter("at")


def _shown(calendar: Calendar, stretch: Stretch, after: int) -> Iterator[Firing]:
    """The firings of times that the clock shows in this stretch."""
    start, end, before, offset, following = stretch
    first = start + offset
    if before > offset and not calendar.every_hour:
        first = start + before
    wall = wall_after(calendar, max(after + offset, first - 1))
    while wall is not None and wall < end + offset:
        fold = wall < start + before or wall >= end + following
        yield Firing((wall - offset) * 1000, wall * 1000, gap=False, fold=fold)
        wall = wall_after(calendar, wall)


def _skipped(calendar: Calendar, stretch: Stretch, after: int) -> Iterator[Firing]:
    """The firings of times that the clock skips at the beginning of this stretch."""
    start, _, before, offset, _ = stretch
    first, end = start + before, start + offset
    wall = wall_after(calendar, max(after + before, first - 1))
    while wall is not None and wall < end:
        if not _is_skipped_day(wall, first, end) and not _names(calendar, wall + offset - before):
            yield Firing((wall - before) * 1000, wall * 1000, gap=True, fold=False)
        wall = wall_after(calendar, wall)


def _is_skipped_day(wall: int, first: int, end: int) -> bool:
    """Whether the whole day of this time is in the gap."""
    midnight = wall - wall % DAY_SECONDS
    return first <= midnight and midnight + DAY_SECONDS <= end


def _names(calendar: Calendar, wall: int) -> bool:
    return wall_after(calendar, wall - 1) == wall
