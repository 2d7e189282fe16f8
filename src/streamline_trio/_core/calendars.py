"""Rules on the wall calendar, without any zone: on which days, at which times of the day.

Days are counted from 1970-01-01, wall-clock times in seconds from its midnight. What a zone makes of such a time is
in `occurrences`.
"""

from __future__ import annotations

from bisect import bisect_right
from calendar import monthrange
from collections.abc import Callable
from datetime import date
from functools import partial
from typing import NamedTuple

DAY_SECONDS = 86_400
LAST_DAY_OF_MONTH = -1
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_WEEK = 7
_EPOCH_WEEKDAY = 4  # 1970-01-01 was a Thursday
_DECEMBER = 12

NextDay = Callable[[int], int | None]
"""The first day at or after this one; None: there is none."""


class Calendar(NamedTuple):
    """Every day that `next_day` gives, at each of `times` (seconds of the day, ascending).

    `every_hour`: the times are no times of the day but a beat through all its hours.
    """

    next_day: NextDay
    times: tuple[int, ...]
    every_hour: bool = False


def daily_calendar(time: int) -> Calendar:
    """Every day at this second."""
    return Calendar(_every_day, (time,))


def weekly_calendar(days: tuple[int, ...], time: int) -> Calendar:
    """On these days of the week (1 is Monday, 7 Sunday) at this second."""
    to_next = tuple(min((day - weekday) % _WEEK for day in days) for weekday in range(_WEEK))
    return Calendar(partial(_day_of_week, to_next), (time,))


def monthly_calendar(day: int, time: int) -> Calendar:
    """On this day of the month at this second; a shorter month has it on its last day, and -1 is the last day."""
    return Calendar(partial(_day_of_month, day), (time,))


def wall_after(calendar: Calendar, wall: int) -> int | None:
    """The first wall-clock time of the calendar after this one; None: there is none."""
    today, second = divmod(wall, DAY_SECONDS)
    day = calendar.next_day(today)
    if day == today:
        place = bisect_right(calendar.times, second)
        if place < len(calendar.times):
            return today * DAY_SECONDS + calendar.times[place]
        day = calendar.next_day(today + 1)
    return None if day is None else day * DAY_SECONDS + calendar.times[0]


def remembering(next_day: NextDay) -> NextDay:
    """The same, for one walk forward: until a day that was found is passed, it is not searched for again."""
    since, found = 0, -1

    def remembered(day: int) -> int | None:
        nonlocal since, found
        if since <= day <= found:
            return found
        answer = next_day(day)
        if answer is not None:
            since, found = day, answer
        return answer

    return remembered


def _every_day(day: int) -> int:
    return day


def _day_of_week(to_next: tuple[int, ...], day: int) -> int:
    return day + to_next[(day + _EPOCH_WEEKDAY) % _WEEK]


def _day_of_month(wanted: int, day: int) -> int:
    today = date.fromordinal(day + _EPOCH_ORDINAL)
    year, month = today.year, today.month
    target = _clamped(wanted, year, month)
    if target < today.day:
        year, month = (year, month + 1) if month < _DECEMBER else (year + 1, 1)
        target = _clamped(wanted, year, month)
    return date(year, month, target).toordinal() - _EPOCH_ORDINAL


def _clamped(wanted: int, year: int, month: int) -> int:
    longest = monthrange(year, month)[1]
    return longest if wanted == LAST_DAY_OF_MONTH else min(wanted, longest)
