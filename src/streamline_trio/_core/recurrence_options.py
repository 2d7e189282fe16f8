"""What may be given to a recurrence, checked where it is given; each message names the parameter and the value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import time
from enum import Enum
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar, get_args

import whenever

from streamline_trio._core.calendars import LAST_DAY_OF_MONTH
from streamline_trio._core.checking import is_whole
from streamline_trio._core.durations import AwareInstant, Duration, instant_millis, seconds_of, to_millis
from streamline_trio._core.errors import ValidationError

Overlap: TypeAlias = Literal["allow", "skip", "queue"]
"""What happens to a firing while the run of an earlier one is active: it starts too, is left out, or waits."""

WallTime: TypeAlias = str | time | whenever.Time
"""A time of the day: "HH:MM", "HH:MM:SS", or a time without fractions of a second."""

Day: TypeAlias = str | int | whenever.Weekday
"""A day of the week: its English name or the first three letters, or its number: 1 is Monday, 7 (and 0) Sunday."""

MAX_NUMBER = 1 << 53
_LONGEST_MONTH = 31
_SUNDAY = 7
_TIME = re.compile(r"(\d\d):(\d\d)(?::(\d\d))?", re.ASCII)
_DAY_NAMES = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_NUMBER_OF_DAY = {
    spelling: number for number, name in enumerate(_DAY_NAMES, 1) for spelling in (name, name[:3], str(number))
}
_NOISE = 1e-6

ValueT = TypeVar("ValueT")


class RecurrenceOptions(TypedDict, total=False):
    """What every recurrence takes beside its rule."""

    until: AwareInstant | None
    count: int | None
    overlap: Overlap
    catch_up: int
    misfire_grace: Duration


class Limits(TypedDict):
    """The options in the form that is stored."""

    ends_at: int | None
    count: int | None
    overlap: Overlap
    catch_up: int
    misfire_grace: float


def limits(
    *,
    until: AwareInstant | None = None,
    count: int | None = None,
    overlap: Overlap = "allow",
    catch_up: int = 0,
    misfire_grace: Duration = 60.0,
) -> Limits:
    """The options in the form that is stored, else a `ValidationError`."""
    if count is not None and not is_whole(count, 1, MAX_NUMBER):
        raise _wrong("count", "a whole number of 1 or more", count)
    if overlap not in get_args(Overlap):
        raise _wrong("overlap", "'allow', 'skip' or 'queue'", overlap)
    if not is_whole(catch_up, 0, MAX_NUMBER):
        raise _wrong("catch_up", "a whole number of 0 or more", catch_up)
    return {
        "ends_at": None if until is None else instant_millis(until, what="until", down=True),
        "count": count,
        "overlap": overlap,
        "catch_up": catch_up,
        "misfire_grace": seconds_of(misfire_grace, what="misfire_grace"),
    }


def second_of_day(at: object) -> int:
    """The second of the day that `at` names."""
    if isinstance(at, str):
        return _parsed_time(at)
    if isinstance(at, time) and at.tzinfo is None and not at.microsecond and not at.fold:
        return _second(at)
    if isinstance(at, whenever.Time) and not at.nanosecond:
        return _second(at)
    raise _wrong("at", "'HH:MM', 'HH:MM:SS' or a time without zone and fractions of a second", at)


def _parsed_time(text: str) -> int:
    found = _TIME.fullmatch(text)
    if found:
        try:
            hour, minute, second = (int(part) for part in found.groups("0"))
            return _second(time(hour, minute, second))
        except ValueError as error:
            raise ValidationError(f"at is {text!r}, but {error}", what="at") from error
    raise _wrong("at", "'HH:MM' or 'HH:MM:SS'", text)


def _second(at: time | whenever.Time) -> int:
    return (at.hour * 60 + at.minute) * 60 + at.second


def days_of_week(days: Day | Iterable[Day]) -> tuple[int, ...]:
    """The days, each once, from 1 (Monday) to 7 (Sunday)."""
    given: Sequence[Any] = [days] if _is_one(days) or not isinstance(days, Iterable) else list(days)
    if not given:
        raise _wrong("days", "one day of the week or more", days)
    return tuple(sorted({_day_of_week(day) for day in given}))


def _is_one(days: object) -> bool:
    return isinstance(days, str | int | Enum)


def _day_of_week(day: object) -> int:
    """The number of the day; enumerations of other libraries are refused, since they may count from elsewhere."""
    if isinstance(day, whenever.Weekday):
        return day.value
    if isinstance(day, str):
        number = _NUMBER_OF_DAY.get(day.strip().lower())
        if number is not None:
            return number
    elif isinstance(day, int) and not isinstance(day, Enum) and is_whole(day, 0, _SUNDAY):
        return day or _SUNDAY
    raise _wrong("days", "days of the week, by name or from 1 (Monday) to 7 (Sunday)", day)


def day_of_month(day: object) -> int:
    """The day as it is stored."""
    if isinstance(day, int) and (is_whole(day, 1, _LONGEST_MONTH) or day == LAST_DAY_OF_MONTH):
        return day
    raise _wrong("day", "a day of the month from 1 to 31, or -1 for the last", day)


def interval_millis(seconds: Duration) -> int:
    """The interval in whole milliseconds; what is not whole would drift."""
    exact = seconds_of(seconds, what="seconds") * 1000.0
    millis = to_millis(exact / 1000.0)
    if millis < 1:
        raise _wrong("seconds", "longer than nothing", seconds)
    if abs(exact - millis) > max(_NOISE, exact * 1e-15):
        raise _wrong("seconds", "a whole number of milliseconds, so that no firing drifts", seconds)
    return millis


def _wrong(what: str, wanted: str, value: object) -> ValidationError:
    return ValidationError(f"{what} must be {wanted}, not {value!r:.200}", what=what)
