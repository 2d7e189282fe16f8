"""Cron expressions, as croniter reads them, on the wall calendar.

Five fields: minute, hour, day of the month, month, day of the week (0 and 7 are Sunday), with lists, ranges (also
over the end: 22-2), steps, names of months and days, `?` for `*` in the two day fields, `L` (the last day of the
month), `15W` (the weekday nearest to the 15th), `5#2` (the second Friday), `L5` (the last Friday), and the
nicknames `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly`, `@annually`. Where day of the month
and day of the week are both restricted, either is enough. Seconds and years are refused, and so are `H` and `R`,
whose meaning is not in the expression.

croniter is asked only which days match; it knows nothing of zones here, and the minutes of a day are always the
same.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache, partial

from croniter import croniter

from streamline_trio._core.calendars import DAY_SECONDS, Calendar
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.zones import EPOCH_DAY

_NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_FIELDS = 5
_LONGEST = 500
_HOURS = 24
_BY_HASH_OR_CHANCE = re.compile(r"(^|,)[hr]", re.IGNORECASE | re.ASCII)
_PROBE = (datetime(2000, 1, 1) - EPOCH_DAY).days  # noqa: DTZ001 - the wall clock has no zone
_SECOND = timedelta(seconds=1)


def checked_expression(expression: object) -> str:
    """The expression as it is kept, else a `ValidationError`, also for one that never fires."""
    if not isinstance(expression, str) or len(expression) > _LONGEST:
        raise ValidationError(f"expr must be a cron expression, not {expression!r:.200}", what="expr")
    kept = " ".join(expression.split())
    if cron_calendar(kept).next_day(_PROBE) is None:
        raise ValidationError(f"expr never fires: {expression!r}", what="expr")
    return kept


@lru_cache(maxsize=1024)
def cron_calendar(expression: str) -> Calendar:
    """The calendar of the expression; a `ValidationError` for a bad one."""
    fields = _NICKNAMES.get(expression.lower(), expression).split()
    if len(fields) != _FIELDS:
        raise ValidationError(
            f"expr must have five fields (minute, hour, day, month, day of week), not {expression!r}", what="expr"
        )
    if any(_BY_HASH_OR_CHANCE.search(field) for field in fields):
        raise ValidationError(f"expr must say its times itself, without H and R: {expression!r}", what="expr")
    minutes, hours = _expanded(fields, expression)
    days = ("0", "0", *fields[2:])
    times = tuple(hour * 3600 + minute * 60 for hour in hours for minute in minutes)
    return Calendar(partial(_next_day, " ".join(days)), times, every_hour=len(hours) == _HOURS)


def _expanded(fields: list[str], expression: str) -> tuple[list[int], list[int]]:
    try:
        found, _ = croniter.expand(" ".join(fields))
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        raise ValidationError(f"expr is no cron expression: {expression!r} ({error})", what="expr") from error
    return _numbers(found[0], 60), _numbers(found[1], _HOURS)


def _numbers(found: Sequence[int | str], whole: int) -> list[int]:
    numbers = {each for each in found if isinstance(each, int)}
    return list(range(whole)) if "*" in found else sorted(numbers)


@lru_cache(maxsize=1024)
def _days(expression: str) -> croniter[datetime]:
    return croniter(expression, EPOCH_DAY, ret_type=datetime)


@lru_cache(maxsize=16_384)
def _next_day(expression: str, day: int) -> int | None:
    """The first matching day; the copy keeps threads apart, since asking changes what is asked."""
    asked = copy.copy(_days(expression))
    try:
        found = asked.get_next(start_time=EPOCH_DAY + timedelta(days=day) - _SECOND)
    except (ValueError, OverflowError):  # no day in 50 years, or the calendar ends
        return None
    return int((found - EPOCH_DAY).total_seconds()) // DAY_SECONDS
