"""Recurrence: a rule for when something happens again and again, as data, and its occurrences.

    kind      time   days   day   expression   interval   zone
    daily      x                                           x
    weekly     x      x                                    x
    monthly    x             x                             x
    cron                              x                    x
    every                                         x

Everything here is pure: where time matters it is an argument. The anchor is the moment the schedule was created:
only what is later counts, and an interval is measured from it.
"""

# No postponed annotations: they would be looked up in the package whose name the public classes here bear.

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice, takewhile
from typing import Self

from typing_extensions import Unpack

from streamline_trio._core.calendars import (
    Calendar,
    daily_calendar,
    monthly_calendar,
    weekly_calendar,
)
from streamline_trio._core.checking import is_whole
from streamline_trio._core.cron import checked_expression, cron_calendar
from streamline_trio._core.documents import Doc
from streamline_trio._core.durations import AwareInstant, Duration, instant_millis
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.occurrences import Firing, Occurrence, firings, interval_firings, occurrence
from streamline_trio._core.recurrence_options import (
    Day,
    Overlap,
    RecurrenceOptions,
    WallTime,
    day_of_month,
    days_of_week,
    interval_millis,
    limits,
    second_of_day,
)
from streamline_trio._core.zones import checked_zone


class Recurrence(Doc, frozen=True, kw_only=True, repr_omit_defaults=True):
    """When something happens again and again, made by `daily`, `weekly`, `monthly`, `cron` or `every`.

    Wall-clock times stay what they are all year. A time that the clock skips fires later by the length of the gap,
    that day only; a time that it shows twice fires once, the first time. Options of all rules: `until` (the last
    instant at which it may fire), `count` (how often it fires at most), `overlap` (what becomes of a firing while
    the run of an earlier one is active: "allow", "skip" or "queue"), `catch_up` (how many missed firings are made
    up) and `misfire_grace` (seconds; a firing less late than this is not missed). Everything malformed is a
    `ValidationError`.

    The fields are the stored form, with instants in milliseconds. A `kind` that this release does not know never
    fires.
    """

    kind: str
    zone: str = "UTC"
    time: int = 0
    days: tuple[int, ...] = ()
    day: int = 0
    expression: str = ""
    interval: int = 0
    ends_at: int | None = None
    count: int | None = None
    overlap: Overlap = "allow"
    catch_up: int = 0
    misfire_grace: float = 60.0

    @classmethod
    def daily(cls, at: WallTime, tz: str, **options: Unpack[RecurrenceOptions]) -> Self:
        """Every day at this time of the zone: ``Recurrence.daily("09:00", "Europe/Berlin")``."""
        return cls(kind="daily", time=second_of_day(at), zone=checked_zone(tz, what="tz"), **limits(**options))

    @classmethod
    def weekly(cls, days: Day | Iterable[Day], at: WallTime, tz: str, **options: Unpack[RecurrenceOptions]) -> Self:
        """On one or several days of the week: ``Recurrence.weekly(["mon", "fri"], "09:00", "Europe/Berlin")``.

        Days are English names ("mon", "Monday") or numbers: 1 is Monday, 7 (and 0) Sunday.
        """
        return cls(
            kind="weekly",
            days=days_of_week(days),
            time=second_of_day(at),
            zone=checked_zone(tz, what="tz"),
            **limits(**options),
        )

    @classmethod
    def monthly(cls, day: int, at: WallTime, tz: str, **options: Unpack[RecurrenceOptions]) -> Self:
        """On this day of every month: ``Recurrence.monthly(31, "18:00", "Europe/Berlin")``.

        A shorter month has it on its last day, and the next one on the day that is wanted; -1 is the last day.
        """
        return cls(
            kind="monthly",
            day=day_of_month(day),
            time=second_of_day(at),
            zone=checked_zone(tz, what="tz"),
            **limits(**options),
        )

    @classmethod
    def cron(cls, expr: str, tz: str, **options: Unpack[RecurrenceOptions]) -> Self:
        """By a cron expression of five fields: ``Recurrence.cron("*/15 8-18 * * mon-fri", "Europe/Berlin")``.

        Minute, hour, day of the month, month, day of the week, with lists, ranges, steps, names, `?`, `L`, `W` and
        `#`, or a nickname (`@daily`). Where both days are restricted, either is enough. An expression that fires in
        every hour of the day also fires in the hour that the clock shows twice, both times.
        """
        return cls(
            kind="cron", expression=checked_expression(expr), zone=checked_zone(tz, what="tz"), **limits(**options)
        )

    @classmethod
    def every(cls, seconds: Duration, **options: Unpack[RecurrenceOptions]) -> Self:
        """At a fixed interval, of whole milliseconds, from the anchor: the n-th firing is n intervals after it."""
        return cls(kind="every", interval=interval_millis(seconds), **limits(**options))

    def next_after(
        self, after: AwareInstant, *, anchor: AwareInstant | None = None, passed: int | None = None
    ) -> Occurrence | None:
        """The first occurrence later than `after` and the anchor (which is `after` unless given), or None.

        Only `count` needs the number of occurrences up to `after`: it is counted unless `passed` tells it.
        """
        return next(self.occurrences(after, anchor=anchor, passed=passed), None)

    def occurrences(
        self, after: AwareInstant, *, anchor: AwareInstant | None = None, passed: int | None = None
    ) -> Iterator[Occurrence]:
        """The occurrences later than `after`, in order, each made when it is asked for; as `next_after`."""
        return (occurrence(each, self.zone) for each in self._firings(after, anchor, passed))

    def between(
        self, after: AwareInstant, until: AwareInstant, *, anchor: AwareInstant | None = None
    ) -> list[Occurrence]:
        """The occurrences later than `after` and not later than `until`, in order; as `next_after`."""
        last = instant_millis(until, what="until", down=True)
        found = takewhile(lambda each: each.at <= last, self._firings(after, anchor, None))
        return [occurrence(each, self.zone) for each in found]

    def number(self, at: AwareInstant, *, anchor: AwareInstant) -> int:
        """How many occurrences there are later than the anchor and not later than `at`, if `count` ends none.

        The number of an occurrence, from 1. It walks over them: a microsecond each; an interval is computed.
        """
        first = instant_millis(anchor, what="anchor", down=True)
        return self._number(instant_millis(at, what="at", down=True), first)

    def _firings(self, after: AwareInstant, anchor: AwareInstant | None, passed: int | None) -> Iterator[Firing]:
        later = instant_millis(after, what="after", down=True)
        first = later if anchor is None else instant_millis(anchor, what="anchor", down=True)
        if passed is not None and not is_whole(passed, 0):
            raise ValidationError(f"passed must be a whole number of 0 or more, not {passed!r}", what="passed")
        found = self._until(later, first)
        if self.count is None:
            return found
        before = self._number(later, first) if passed is None else passed
        return islice(found, max(0, self.count - before))

    def _number(self, last: int, first: int) -> int:
        if self.kind == "every":
            ends = last if self.ends_at is None else min(last, self.ends_at)
            return max(0, (ends - first) // self.interval)
        return sum(1 for _ in takewhile(lambda each: each.at <= last, self._until(first, first)))

    def _until(self, after: int, anchor: int) -> Iterator[Firing]:
        found = self._endless(max(after, anchor), anchor)
        last = self.ends_at
        return found if last is None else takewhile(lambda each: each.at <= last, found)

    def _endless(self, after: int, anchor: int) -> Iterator[Firing]:
        if self.kind == "every":
            return interval_firings(self.interval, anchor, after)
        calendar = _calendar(self.kind, self.time, self.days, self.day, self.expression)
        return iter(()) if calendar is None else firings(calendar, self.zone, after)


@lru_cache(maxsize=1024)
def _calendar(kind: str, time: int, days: tuple[int, ...], day: int, expression: str) -> Calendar | None:
    """The rule on the wall calendar; None for a kind of a later release."""
    match kind:
        case "daily":
            return daily_calendar(time)
        case "weekly":
            return weekly_calendar(days, time)
        case "monthly":
            return monthly_calendar(day, time)
        case "cron":
            return cron_calendar(expression)
        case _:
            return None


def firings_after(rule: Recurrence, after: int, anchor: int) -> Iterator[Firing]:
    """The firings later than `after` and the anchor, in milliseconds; `count` ends none."""
    return rule._until(after, anchor)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - for this package only


def number_between(rule: Recurrence, after: int, until: int, anchor: int, at_most: int) -> int:
    """How many firings are later than `after` and not later than `until`; an interval is computed, others counted.

    What has to be counted is counted up to `at_most`.
    """
    if until <= after:
        return 0
    if rule.kind == "every":
        number = rule._number  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - for this package only
        return number(max(until, anchor), anchor) - number(max(after, anchor), anchor)
    found = takewhile(lambda each: each.at <= until, firings_after(rule, after, anchor))
    return sum(1 for _ in islice(found, at_most))


def is_known(rule: Recurrence) -> bool:
    """Whether this release knows this kind of rule."""
    return rule.kind in _KINDS


_KINDS = frozenset({"daily", "weekly", "monthly", "cron", "every"})
