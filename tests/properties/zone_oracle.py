"""What a wall-clock time means in a zone, worked out from the standard library alone.

It shares nothing with the code under test: gaps and folds are found by round trips through UTC, and the occurrences
of a rule by looking at every day and time of it.
"""

import dataclasses
import functools
from calendar import monthrange
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

DAY = timedelta(days=1)
REACH = 4  # days; no clock is ever put farther


@dataclasses.dataclass(frozen=True)
class Meaning:
    """The instant that a wall-clock time names; `second` is when it is shown again."""

    at: datetime
    gap: bool
    second: datetime | None = None


def meaning(wall: datetime, zone: ZoneInfo) -> Meaning:
    passes = [wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)]
    shown = sorted({at for at in passes if at.astimezone(zone).replace(tzinfo=None, fold=0) == wall})
    if not shown:
        return Meaning(passes[0], gap=True)  # PEP 495: of a skipped time fold=0 takes the offset before the gap
    return Meaning(shown[0], gap=False, second=shown[1] if len(shown) > 1 else None)


@functools.cache
def is_skipped(day: date, zone: ZoneInfo) -> bool:
    """Whether the clock shows no quarter of an hour of this day."""
    times = [datetime.combine(day, time()) + timedelta(minutes=15) * n for n in range(96)]
    return all(meaning(each, zone).gap for each in times)


@functools.lru_cache(maxsize=4096)
def changes(zone: ZoneInfo, year: int) -> list[date]:
    """The days of the year on which the offset changes, at UTC."""
    first = datetime(year, 1, 1, tzinfo=UTC)
    offsets = [(first + DAY * n).astimezone(zone).utcoffset() for n in range(367)]
    return [(first + DAY * n).date() for n in range(366) if offsets[n] != offsets[n + 1]]


def moment_of(change: date, zone: ZoneInfo) -> datetime:
    """The first second of the new offset, on a day of `changes`."""
    low = datetime.combine(change, time(), UTC)
    high, before = low + DAY, low.astimezone(zone).utcoffset()
    while high - low > timedelta(seconds=1):
        middle = low + timedelta(seconds=(high - low) // timedelta(seconds=2))
        low, high = (middle, high) if middle.astimezone(zone).utcoffset() == before else (low, middle)
    return high


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which days, which times of the day (naive), and whether it fires in every hour."""

    on: Callable[[date], bool]
    times: tuple[time, ...]
    beat: bool = False

    def walls(self, first: date, last: date) -> Iterator[datetime]:
        for n in range((last - first).days + 1):
            day = first + DAY * n
            if self.on(day):
                yield from (datetime.combine(day, each) for each in self.times)


@dataclasses.dataclass(frozen=True, order=True)
class Expected:
    at: datetime
    local: str
    gap: bool
    fold: bool


def expected(rule: Rule, zone: ZoneInfo, after: datetime, until: datetime) -> list[Expected]:
    """The occurrences later than `after` and not later than `until`."""
    found: dict[datetime, Expected] = {}
    for wall in rule.walls(after.date() - DAY * REACH, until.date() + DAY * REACH):
        meant = meaning(wall, zone)
        if meant.gap and is_skipped(wall.date(), zone):
            continue
        known = found.get(meant.at)
        if known is None or known.gap:
            found[meant.at] = Expected(meant.at, str(wall), gap=meant.gap, fold=meant.second is not None)
        if rule.beat and meant.second is not None:
            found[meant.second] = Expected(meant.second, str(wall), gap=False, fold=True)
    return sorted(each for each in found.values() if after < each.at <= until)


def is_day_of_month(wanted: int) -> Callable[[date], bool]:
    """Whether a date is the day, or the last one of a month that is too short; -1: the last."""

    def on(day: date) -> bool:
        longest = monthrange(day.year, day.month)[1]
        return day.day == (longest if wanted == -1 else min(wanted, longest))

    return on
