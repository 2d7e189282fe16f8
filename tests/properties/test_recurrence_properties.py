"""Recurrences in every zone of the database, against an oracle of the standard library."""

import itertools
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import hypothesis.strategies as st
import pytest
import whenever
from croniter import croniter
from hypothesis import assume, given
from msgspec.structs import replace

from streamline_trio import LocalTime, Occurrence, Recurrence
from streamline_trio._core.errors import ValidationError
from tests.properties.zone_oracle import (
    DAY,
    Rule,
    changes,
    expected,
    is_day_of_month,
    is_skipped,
    meaning,
    moment_of,
)

ZONES = sorted(available_timezones() & whenever.available_timezones())
Pair = tuple[Recurrence, Rule, ZoneInfo]

zones = st.sampled_from(ZONES)
early = st.builds(time, st.integers(0, 4), st.integers(0, 59), st.sampled_from([0, 0, 0, 1, 59]))
late = st.builds(time, st.integers(0, 23), st.sampled_from([0, 15, 30, 59]), st.sampled_from([0, 59]))
times = st.one_of(early, late, st.just(time()))
minutes = st.sets(st.sampled_from([0, 1, 15, 20, 30, 40, 45, 59]), min_size=1, max_size=4)
hours = st.one_of(st.just(set(range(24))), st.sets(st.integers(0, 23), min_size=1, max_size=5))
weekdays = st.sets(st.integers(1, 7), min_size=1)
days_of_month = st.one_of(st.integers(1, 31), st.sampled_from([28, 29, 30, 31, -1]))
seconds = st.integers(0, 86_399)


def listed(numbers: set[int]) -> str:
    return ",".join(map(str, sorted(numbers)))


@st.composite
def moments(draw: st.DrawFn, zone: ZoneInfo) -> datetime:
    """Often near a change of the clock."""
    year = draw(st.one_of(st.integers(1990, 2060), st.integers(1840, 2150)))
    near = changes(zone, year)
    at_change = draw(st.booleans())
    if near and at_change:
        return moment_of(draw(st.sampled_from(near)), zone) + timedelta(seconds=draw(st.integers(-1, 1)))
    day = draw(st.sampled_from(near)) if near else date(year, 1, 1) + DAY * draw(st.integers(0, 364))
    midnight = datetime.combine(day, time(), UTC)
    return midnight + timedelta(days=draw(st.integers(-2, 2)), seconds=draw(seconds))


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    """A recurrence, and the same rule for the oracle."""
    name = draw(zones)
    at = draw(times)
    kind = draw(st.sampled_from(["daily", "weekly", "monthly", "cron"]))
    zone = ZoneInfo(name)
    if kind == "daily":
        return Recurrence.daily(at, name), Rule(lambda _: True, (at,)), zone
    if kind == "weekly":
        days = draw(weekdays)
        return Recurrence.weekly(days, at, name), Rule(lambda day: day.isoweekday() in days, (at,)), zone
    if kind == "monthly":
        day = draw(days_of_month)
        return Recurrence.monthly(day, at, name), Rule(is_day_of_month(day), (at,)), zone
    return (*draw(crons(name)), zone)


@st.composite
def crons(draw: st.DrawFn, zone: str) -> tuple[Recurrence, Rule]:
    minute, hour = draw(minutes), draw(hours)
    week = draw(st.none() | weekdays)
    month = draw(st.none() | st.sets(st.integers(1, 28), min_size=1))

    def on(day: date) -> bool:
        if week is None and month is None:
            return True
        return (week is not None and day.isoweekday() in week) or (month is not None and day.day in month)

    fields = [listed(minute), listed(hour), "*" if month is None else listed(month), "*"]
    expr = " ".join([*fields, "*" if week is None else listed(week)])
    every = tuple(sorted(time(h, m) for h in hour for m in minute))
    return Recurrence.cron(expr, zone), Rule(on, every, beat=len(hour) == 24)


def seen(found: list[Occurrence]) -> list[tuple[datetime, str, bool, bool]]:
    return [(each.at.to_stdlib(), each.local, each.gap, each.fold) for each in found]


@given(data=st.data(), pair=pairs(), length=st.integers(1, 40))
def test_occurrences_are_those_of_the_oracle(data, pair, length):
    """Proves local time, instant, gap and fold of each occurrence, in every zone, mostly where clocks change."""
    rule, plain, zone = pair
    after = data.draw(moments(zone))
    until = after + timedelta(days=min(length, 3) if rule.kind == "cron" else length)
    found = rule.between(after, until)
    assert seen(found) == [(e.at, e.local, e.gap, e.fold) for e in expected(plain, zone, after, until)]
    assert all(each.zone == str(zone) for each in found)


@given(data=st.data(), pair=pairs())
def test_every_way_to_ask_gives_the_same(data, pair):
    """Proves that occurrences strictly increase, and are the same one by one, from any of them, and between."""
    rule, _, zone = pair
    after = data.draw(moments(zone))
    found = list(itertools.islice(rule.occurrences(after), 12))
    assert all(one.at < two.at for one, two in itertools.pairwise(found))
    last: Any = after
    for each in found:
        assert rule.next_after(last) == each
        assert rule.next_after(each.at.subtract(milliseconds=1)) == each
        last = each.at
    place = data.draw(st.integers(0, 10))
    assert list(itertools.islice(rule.occurrences(found[place].at, anchor=after), 11 - place)) == found[place + 1 :]
    assert rule.between(after, found[-1].at) == found


@given(data=st.data(), pair=pairs(), count=st.integers(1, 10))
def test_count_and_until_are_exact(data, pair, count):
    """Proves that `count` keeps the first so many from the anchor, however it is asked, and `until` its part."""
    rule, _, zone = pair
    anchor = data.draw(moments(zone))
    found = list(itertools.islice(rule.occurrences(anchor), count + 3))
    counted = replace(rule, count=count)
    ended = replace(rule, ends_at=found[count].at.timestamp(unit="millisecond"))
    assert list(counted.occurrences(anchor, anchor=anchor)) == found[:count]
    assert list(ended.occurrences(anchor, anchor=anchor)) == found[: count + 1]
    place = data.draw(st.integers(0, count + 2))
    assert counted.number(found[place].at, anchor=anchor) == place + 1
    for passed in (None, place + 1):
        rest = counted.occurrences(found[place].at, anchor=anchor, passed=passed)
        assert list(rest) == found[place + 1 : count]


@given(data=st.data(), zone=zones, at=times)
def test_a_daily_rule_fires_once_a_day(data, zone, at):
    """Proves exactly one occurrence for each day that the zone's clock shows, and none for one that it skips."""
    known = ZoneInfo(zone)
    first = data.draw(moments(known))
    found = list(itertools.islice(Recurrence.daily(at, zone).occurrences(first), 60))
    days = [date.fromisoformat(each.local[:10]) for each in found]
    between = [days[0] + DAY * n for n in range((days[-1] - days[0]).days + 1)]
    assert days == [day for day in between if not is_skipped(day, known)]


@given(data=st.data(), zone=zones, day=days_of_month, at=times)
def test_clamped_months_never_drift(data, zone, day, at):
    """Proves one occurrence a month over years, each on the day that is wanted or the last of its month."""
    known = ZoneInfo(zone)
    first = data.draw(moments(known))
    found = list(itertools.islice(Recurrence.monthly(day, at, zone).occurrences(first), 50))
    fits = is_day_of_month(day)
    days = [date.fromisoformat(each.local[:10]) for each in found]
    assert all(fits(each) for each in days)
    between = [days[0] + DAY * n for n in range((days[-1] - days[0]).days + 1)]
    assert days == [each for each in between if fits(each) and not is_skipped(each, known)]


@given(zone=zones, data=st.data(), at=times)
def test_local_times_are_those_of_the_oracle(zone, data, at):
    """Proves instant, gap and fold of a single local time in every zone, mostly where clocks change."""
    known = ZoneInfo(zone)
    wall = datetime.combine(data.draw(moments(known)).date(), at)
    meant = meaning(wall, known)
    found = LocalTime(wall, zone)
    assert (found.instant.to_stdlib(), found.gap, found.fold) == (meant.at, meant.gap, meant.second is not None)


@given(
    interval=st.integers(1, 10**12),
    anchor=st.integers(-(10**12), 10**13),
    later=st.integers(-(10**9), 10**14),
)
def test_an_interval_is_arithmetic(interval, anchor, later):
    """Proves that the n-th firing of an interval is n intervals after its anchor, in whole milliseconds."""
    assume(anchor + later + 2 * interval < 250_000_000_000_000)
    start = whenever.Instant.from_timestamp(anchor, unit="millisecond")
    after = whenever.Instant.from_timestamp(anchor + later, unit="millisecond")
    rule = Recurrence.every(timedelta(milliseconds=interval))
    found = rule.next_after(after, anchor=start)
    assert found is not None
    number = rule.number(found.at, anchor=start)
    assert found.at == start.add(milliseconds=number * interval)
    assert number == max(1, later // interval + 1)


FIELDS = [
    ["*", "*/7", "0", "5,50", "10-20/3", "58-2"],
    ["*", "*/5", "0", "1,23", "8-18", "22-2"],
    ["*", "?", "L", "1", "31", "15W", "1-7", "*/10", "13,L"],
    ["*", "2", "feb", "jan-mar", "*/4", "2,12"],
    ["*", "?", "0", "7", "mon", "fri-mon", "5#2", "L5", "1-5"],
]


@given(fields=st.tuples(*map(st.sampled_from, FIELDS)), second=st.integers(0, 3_800_000_000))
def test_without_a_zone_cron_is_what_croniter_says(fields, second):
    """Proves that asking croniter for days only, and adding the times of the day, gives what it gives by itself."""
    expr = " ".join(fields)
    start = datetime(1971, 1, 1, tzinfo=UTC) + timedelta(seconds=second)
    try:
        rule = Recurrence.cron(expr, "UTC")
    except ValidationError:
        with pytest.raises(ValueError, match="failed to find next date"):
            croniter(expr, start.replace(tzinfo=None)).get_next()
        return
    theirs = croniter(expr, start.replace(tzinfo=None), ret_type=datetime)
    found = itertools.islice(rule.occurrences(start), 5)
    assert [each.local for each in found] == [str(theirs.get_next()) for _ in range(5)]


@given(
    expr=st.text(st.sampled_from("0123456789*/,-#?LWlwhRr @mondyjanfebsu\t"), max_size=20) | st.text(max_size=20)
)
def test_no_text_breaks_the_reading_of_cron(expr):
    """Proves that an expression is taken, and then fires, or is refused: nothing else is raised."""
    try:
        rule = Recurrence.cron(expr, "Europe/Berlin")
    except ValidationError:
        return
    assert rule.next_after(datetime(2026, 1, 1, tzinfo=UTC)) is not None


@pytest.mark.parametrize("at", [time(0), time(2, 30)], ids=str)
def test_every_change_of_every_zone(at):
    """Proves the daily occurrences around each change of a clock from 2024 to 2027, whatever chance draws above."""
    every_day = Rule(lambda _: True, (at,))
    seen_changes = 0
    for name in ZONES:
        zone, rule = ZoneInfo(name), Recurrence.daily(at, name)
        for change in itertools.chain.from_iterable(changes(zone, year) for year in range(2024, 2028)):
            moment = moment_of(change, zone)
            oracle = expected(every_day, zone, moment - DAY, moment + 2 * DAY)
            for after in (moment - DAY, moment - timedelta(seconds=1), moment):
                rest = [(e.at, e.local, e.gap, e.fold) for e in oracle if e.at > after]
                assert seen(rule.between(after, moment + 2 * DAY)) == rest, (name, after)
            seen_changes += 1
    assert seen_changes > 1000
