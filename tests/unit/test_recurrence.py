"""Recurrences: what is refused, what is stored, and the occurrences of named days."""

import itertools
from datetime import UTC, datetime, time, timedelta, timezone
from enum import IntEnum
from typing import Any

import msgspec
import pytest
import whenever

from streamline_trio import Occurrence, Recurrence
from streamline_trio._core.codec import encode
from streamline_trio._core.cron import _days, _next_day
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.zones import LAST_SECOND

BERLIN = "Europe/Berlin"
NEW_YORK = "America/New_York"


def at(text: str) -> whenever.Instant:
    return whenever.Instant.parse_iso(text)


def following(rule: Recurrence, after: whenever.Instant, **given: Any) -> Occurrence:
    found = rule.next_after(after, **given)
    assert found is not None
    return found


def locals_of(rule: Recurrence, after: str, number: int) -> list[str]:
    return [each.local for each in itertools.islice(rule.occurrences(at(after)), number)]


ONE_OF_EACH = [
    Recurrence.daily("09:00", BERLIN),
    Recurrence.weekly(["mon", "fri"], "09:00:30", NEW_YORK, overlap="skip"),
    Recurrence.monthly(31, "00:00", BERLIN, catch_up=3, misfire_grace=0),
    Recurrence.cron("*/15 8-18 * * mon-fri", BERLIN, until=datetime(2030, 1, 1, tzinfo=UTC)),
    Recurrence.every(0.25, count=10, overlap="queue"),
]


@pytest.mark.parametrize("rule", ONE_OF_EACH, ids=lambda rule: rule.kind)
def test_a_recurrence_is_stored(rule):
    """S522: proves that rule and options come back from storage as they were."""
    assert msgspec.msgpack.decode(encode(rule), type=Recurrence) == rule
    assert len({rule, msgspec.json.decode(msgspec.json.encode(rule), type=Recurrence)}) == 1


def test_a_stored_rule_of_a_later_release_never_fires():
    """S521: proves that a kind which this release does not know is read, kept, and inert."""
    stored = encode({"kind": "hourly", "zone": BERLIN, "phase_of_moon": 3})
    rule = msgspec.msgpack.decode(stored, type=Recurrence)
    assert rule.next_after(at("2026-01-01T00:00:00Z")) is None
    assert msgspec.msgpack.decode(encode(rule), type=Recurrence).kind == "hourly"


def test_a_stored_zone_that_is_gone_is_told():
    """Proves that a zone which this machine lacks is an error by name, not a wrong time."""
    rule = msgspec.structs.replace(ONE_OF_EACH[0], zone="Mars/Olympus")
    with pytest.raises(ValidationError, match="'Mars/Olympus'"):
        rule.next_after(at("2026-01-01T00:00:00Z"))


@pytest.mark.parametrize("given", ["09:30", "09:30:00", time(9, 30), whenever.Time(9, 30)])
def test_times_of_the_day_come_in_several_types(given):
    """Proves that text and times of both libraries mean the same."""
    assert Recurrence.daily(given, BERLIN) == Recurrence.daily("09:30", BERLIN)


class Foreign(IntEnum):
    MONDAY = 0


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        ("mon", (1,)),
        ("Sunday", (7,)),
        (7, (7,)),
        (0, (7,)),
        (["FRI", "mon", 1], (1, 5)),
        (("sat", 7, 0), (6, 7)),
        (range(1, 6), (1, 2, 3, 4, 5)),
        (whenever.Weekday.WEDNESDAY, (3,)),
        ({whenever.Weekday.SUNDAY}, (7,)),
        ("3", (3,)),
    ],
)
def test_days_of_the_week_come_in_several_forms(days, expected):
    """S515: proves names, numbers (1 is Monday, 7 and 0 are Sunday), one or many, in any order."""
    assert Recurrence.weekly(days, "09:00", BERLIN).days == expected


FEW = {"at": "09:00", "tz": BERLIN}
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    *((Recurrence.daily, {**FEW, "at": value}, "at") for value in ["25:00", "24:00", "9:00", "09:60", "09:00:60"]),
    *((Recurrence.daily, {**FEW, "at": value}, "at") for value in ["", "noon", "09:00 ", "09:00:00.5", 9, None]),
    *((Recurrence.daily, {**FEW, "at": value}, "at") for value in [time(9, tzinfo=UTC), time(9, microsecond=1)]),
    (Recurrence.daily, {**FEW, "at": whenever.Time(9, nanosecond=1)}, "at"),
    (Recurrence.daily, {**FEW, "at": time(9, fold=1)}, "at"),
    *((Recurrence.daily, {**FEW, "tz": value}, "tz") for value in ["", "Mars/Olympus", None, timezone.utc, "CEST"]),  # noqa: UP017
    *((Recurrence.weekly, {**FEW, "days": value}, "days") for value in [[], "", (), 9, 8, -1, "mo", "mon-fri"]),
    *((Recurrence.weekly, {**FEW, "days": value}, "days") for value in [None, True, [True], [None], 1.0, [[1]]]),
    *(
        (Recurrence.weekly, {**FEW, "days": value}, "days")
        for value in [Foreign.MONDAY, [Foreign.MONDAY], {"mon": 1, 9: 2}]
    ),
    *((Recurrence.monthly, {**FEW, "day": value}, "day") for value in [0, 32, -2, "1", 1.0, True, None]),
    *((Recurrence.cron, {"expr": value, "tz": BERLIN}, "expr") for value in ["", "not a cron", "* * * *", None, 5]),
    *((Recurrence.cron, {"expr": value, "tz": BERLIN}, "expr") for value in ["* * * * * *", "0 0 * * * 0 2026"]),
    *(
        (Recurrence.cron, {"expr": value, "tz": BERLIN}, "expr")
        for value in ["60 * * * *", "* 24 * * *", "* * 0 * *"]
    ),
    *(
        (Recurrence.cron, {"expr": value, "tz": BERLIN}, "expr")
        for value in ["* * * 13 *", "* * * * 8", "*/0 * * * *"]
    ),
    *((Recurrence.cron, {"expr": value, "tz": BERLIN}, "expr") for value in ["@reboot", "@often", "0 0 30 2 *"]),
    *(
        (Recurrence.cron, {"expr": value, "tz": BERLIN}, "expr")
        for value in ["R * * * *", "H H * * *", "0 0 r(1-9) * *"]
    ),
    *(
        (Recurrence.cron, {"expr": value, "tz": BERLIN}, "expr")
        for value in ["0 0 31 2,4,6 *", "L * * * *", "1," * 999, "0 0 * * 2#1,4"]
    ),
    *((Recurrence.cron, {"expr": "0 9 * * *", "tz": value}, "tz") for value in ["", "Mars/Olympus"]),
    *((Recurrence.every, {"seconds": value}, "seconds") for value in [0, -1, 0.0, -0.5, 0.0005, 1 / 3, None, "60"]),
    *(
        (Recurrence.every, {"seconds": value}, "seconds")
        for value in [float("nan"), float("inf"), True, timedelta(0)]
    ),
    *((Recurrence.daily, {**FEW, "count": value}, "count") for value in [0, -1, 1.0, True, "3"]),
    *((Recurrence.daily, {**FEW, "catch_up": value}, "catch_up") for value in [-1, 0.5, True, None]),
    *((Recurrence.daily, {**FEW, "overlap": value}, "overlap") for value in ["never", "", None, ["skip"]]),
    *((Recurrence.daily, {**FEW, "misfire_grace": value}, "misfire_grace") for value in [-1, None, float("nan")]),
    *((Recurrence.daily, {**FEW, "until": value}, "until") for value in [datetime(2026, 1, 1), "2026-01-01", 5]),  # noqa: DTZ001
]


@pytest.mark.parametrize(
    ("make", "given", "field"), REFUSED, ids=[f"{m.__name__} {g[f]!r:.30}" for m, g, f in REFUSED]
)
def test_what_is_malformed_is_refused_by_name(make, given, field):
    """S520: proves that each malformed rule is refused at the call, naming the parameter and the value."""
    with pytest.raises(ValidationError, match=rf"^{field}\b") as refused:
        make(**given)
    value = given[field]
    blamed = [value, *value] if isinstance(value, list | dict) else [value]
    assert any(repr(each)[:50] in str(refused.value) for each in blamed)


def test_an_unknown_option_is_a_type_error():
    """Proves that a misspelt option is not taken silently."""
    misspelt: Any = {"catchup": 1}
    with pytest.raises(TypeError, match="catchup"):
        Recurrence.daily("09:00", BERLIN, **misspelt)


def test_clamped_months_do_not_drift():
    """S517: proves that the 31st becomes the last day of short months, leap years too, and the 31st again."""
    rule = Recurrence.monthly(31, "12:00", "UTC")
    assert [text[:10] for text in locals_of(rule, "2027-12-31T12:00:00Z", 5)] == [
        "2028-01-31",
        "2028-02-29",
        "2028-03-31",
        "2028-04-30",
        "2028-05-31",
    ]
    assert locals_of(rule, "2026-01-31T12:00:00Z", 2) == ["2026-02-28 12:00:00", "2026-03-31 12:00:00"]
    assert locals_of(rule, "2100-02-01T00:00:00Z", 1) == ["2100-02-28 12:00:00"]


@pytest.mark.parametrize(("day", "february"), [(28, 28), (29, 28), (30, 28), (-1, 28), (1, 1)])
def test_days_of_the_month_in_a_short_month(day, february):
    """Proves the clamping of each late day, and that -1 is the last one."""
    assert (
        locals_of(Recurrence.monthly(day, "00:00", "UTC"), "2026-01-31T12:00:00Z", 1)[0][5:10]
        == f"02-{february:02}"
    )


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        ("0 0 L * *", ["2026-01-31", "2026-02-28"]),
        ("0 0 * * 5#2", ["2026-01-09", "2026-02-13"]),
        ("0 0 * * L5", ["2026-01-30", "2026-02-27"]),
        ("0 0 15W * *", ["2026-01-15", "2026-02-16"]),
        ("0 0 ? feb SUN", ["2026-02-01", "2026-02-08"]),
        ("0 0 13 * fri", ["2026-01-02", "2026-01-09", "2026-01-13"]),
        ("0 0 * * 7", ["2026-01-04"]),
        ("0 0 * * fri-mon", ["2026-01-02", "2026-01-03", "2026-01-04", "2026-01-05", "2026-01-09"]),
        ("0 0 29 2 *", ["2028-02-29", "2032-02-29"]),
        ("@weekly", ["2026-01-04"]),
        ("  0   0 1 * * ", ["2026-02-01"]),
    ],
)
def test_cron_days(expr, expected):
    """Proves what the documented forms of the day fields mean."""
    found = locals_of(Recurrence.cron(expr, "UTC"), "2026-01-01T00:00:00Z", len(expected))
    assert found == [f"{day} 00:00:00" for day in expected]


def test_asking_leaves_no_trace():
    """Proves that the reader of an expression, which all threads share, does not change when it is asked."""
    shared = vars(_days("0 0 1 * *"))
    before = dict(shared)
    assert locals_of(Recurrence.cron("7 5 1 * *", "UTC"), "2031-05-05T00:00:00Z", 1) == ["2031-06-01 05:07:00"]
    assert shared == before


def test_leap_days_skip_the_century():
    """Proves that 29 February by cron passes over 2100, and by month is 28 February there."""
    assert locals_of(Recurrence.cron("0 0 29 2 *", "UTC"), "2096-03-01T00:00:00Z", 1) == ["2104-02-29 00:00:00"]


def test_a_beat_keeps_going_where_times_of_the_day_fire_once():
    """Proves that an expression for every hour fires twice in a doubled hour, one with hours once."""
    beat = Recurrence.cron("*/30 * * * *", NEW_YORK)
    named = Recurrence.cron("*/30 0-22 * * *", NEW_YORK)
    after, until = at("2026-11-01T04:59:00Z"), at("2026-11-01T07:00:00Z")
    assert [each.at for each in beat.between(after, until)] == [
        at(f"2026-11-01T{text}:00Z") for text in ("05:00", "05:30", "06:00", "06:30", "07:00")
    ]
    assert [(str(each.at)[11:16], each.fold) for each in named.between(after, until)] == [
        ("05:00", True),
        ("05:30", True),
        ("07:00", False),
    ]


def test_skipped_times_meet_shown_ones_in_order():
    """Proves that shifted firings mingle in order with real ones, and that two at one instant are one."""
    rule = Recurrence.cron("*/20 0-22 * * *", "Australia/Lord_Howe")
    found = rule.between(at("2026-10-03T15:00:00Z"), at("2026-10-03T16:00:00Z"))
    assert [(str(each.at)[11:16], each.local[11:16], each.gap) for each in found] == [
        ("15:10", "01:40", False),
        ("15:30", "02:00", True),
        ("15:40", "02:40", False),
        ("15:50", "02:20", True),
        ("16:00", "03:00", False),
    ]
    both = Recurrence.cron("0,30 2,3 * * *", BERLIN)
    shown = both.between(at("2026-03-29T00:00:00Z"), at("2026-03-29T12:00:00Z"))
    assert [(each.local[11:16], each.gap) for each in shown] == [("03:00", False), ("03:30", False)]


@pytest.mark.parametrize(
    ("expr", "change", "expected"),
    [
        ("30 2 * * *", "2026-03-08T07:00:00Z", "2026-03-08T07:30:00Z"),
        ("0 2 * * *", "2026-03-08T07:00:00Z", "2026-03-09T06:00:00Z"),
        ("30 1 * * *", "2026-11-01T06:00:00Z", "2026-11-02T06:30:00Z"),
        ("0 1 * * *", "2026-11-01T06:00:00Z", "2026-11-02T06:00:00Z"),
        ("30 * * * *", "2026-11-01T06:00:00Z", "2026-11-01T06:30:00Z"),
    ],
)
def test_the_very_moment_of_a_change(expr, change, expected):
    """Proves that asking at the instant at which a clock moves loses nothing that it skips and doubles nothing."""
    assert following(Recurrence.cron(expr, NEW_YORK), at(change)).at == at(expected)


def test_a_gap_over_midnight_belongs_to_the_day_that_was_wanted():
    """Proves that a Saturday time skipped by a gap up to midnight fires on Sunday, and the Sunday one as well."""
    rule = Recurrence.daily("23:30", "America/Nuuk")
    found = rule.between(at("2026-03-28T00:00:00Z"), at("2026-03-30T12:00:00Z"))
    assert [(each.local, str(each.at), each.gap) for each in found] == [
        ("2026-03-27 23:30:00", "2026-03-28T01:30:00Z", False),
        ("2026-03-28 23:30:00", "2026-03-29T01:30:00Z", True),
        ("2026-03-29 23:30:00", "2026-03-30T00:30:00Z", False),
    ]


def test_a_day_that_is_shown_twice_fires_once():
    """Proves that Kwajalein's second 30 September 1969 has no second firing."""
    found = Recurrence.daily("12:00", "Pacific/Kwajalein").between(
        at("1969-09-29T00:00:00Z"), at("1969-10-03T00:00:00Z")
    )
    assert [each.local[:10] for each in found] == sorted({each.local[:10] for each in found})
    assert sum(each.fold for each in found) == 1


def test_a_skipped_day_has_no_occurrence():
    """Proves that rules for Samoa's missing Friday pass over it, whatever their kind."""
    after, until = at("2011-12-30T09:59:00Z"), at("2011-12-31T09:59:00Z")
    shown = [each.local for each in Recurrence.daily("09:00", "Pacific/Apia").between(after, until)]
    assert shown == ["2011-12-31 09:00:00"]
    assert Recurrence.weekly("fri", "09:00", "Pacific/Apia").between(after, until) == []
    assert Recurrence.monthly(30, "09:00", "Pacific/Apia").between(after, until) == []
    assert Recurrence.cron("0 9 30 12 *", "Pacific/Apia").between(after, until) == []


def test_an_interval_is_counted_from_its_anchor():
    """Proves that the n-th firing is exactly n intervals after the anchor, however late it is asked for."""
    rule, anchor = Recurrence.every(0.1), at("2026-01-01T00:00:00Z")
    late = anchor.add(seconds=1e9 + 0.05)
    found = following(rule, late, anchor=anchor)
    assert found.at == anchor.add(seconds=1e9 + 0.1)
    assert (found.local, found.zone, found.gap, found.fold) == ("2057-09-09 01:46:40.100", "UTC", False, False)
    assert rule.number(found.at, anchor=anchor) == 10_000_000_001
    assert following(rule, anchor.subtract(seconds=1e6), anchor=anchor).at == anchor.add(milliseconds=100)


@pytest.mark.parametrize("rule", ONE_OF_EACH, ids=lambda rule: rule.kind)
def test_nothing_fires_up_to_the_anchor(rule):
    """Proves that what is asked for before the anchor is what comes after it."""
    anchor = at("2026-05-31T12:00:00Z")
    assert rule.next_after(at("2020-01-01T00:00:00Z"), anchor=anchor) == rule.next_after(anchor)


def test_until_is_included_and_after_is_not():
    """S519: proves both ends: a firing at `until` counts, one at `after` is over; down to the microsecond."""
    rule = Recurrence.daily("12:00", "UTC", until=datetime(2026, 6, 10, 12, tzinfo=UTC))
    assert following(rule, at("2026-06-10T11:59:59.999999Z")).at == at("2026-06-10T12:00:00Z")
    assert rule.next_after(at("2026-06-10T12:00:00Z")) is None
    early = Recurrence.daily("12:00", "UTC", until=at("2026-06-10T11:59:59.999999Z"))
    assert early.next_after(at("2026-06-10T00:00:00Z")) is None


def test_count_ends_after_so_many():
    """S519: proves that `count` is the number of firings since the anchor, whether they are counted or told."""
    rule, anchor = Recurrence.daily("09:00", BERLIN, count=3), at("2026-06-10T12:00:00Z")
    found = list(rule.occurrences(anchor, anchor=anchor))
    assert [each.local[:10] for each in found] == ["2026-06-11", "2026-06-12", "2026-06-13"]
    assert list(rule.occurrences(found[0].at, anchor=anchor)) == found[1:]
    assert list(rule.occurrences(found[0].at, anchor=anchor, passed=1)) == found[1:]
    assert rule.next_after(found[2].at, anchor=anchor) is None
    assert rule.next_after(found[0].at, passed=3) is None
    assert [rule.number(each.at, anchor=anchor) for each in found] == [1, 2, 3]
    assert rule.number(anchor, anchor=anchor) == 0


@pytest.mark.parametrize("passed", [-1, 1.0, True])
def test_a_number_that_is_none_is_refused(passed):
    """Proves that `passed` is checked like what comes from outside."""
    with pytest.raises(ValidationError, match="passed"):
        Recurrence.every(1).next_after(at("2026-01-01T00:00:00Z"), passed=passed)


@pytest.mark.parametrize("rule", ONE_OF_EACH, ids=lambda rule: rule.kind)
@pytest.mark.parametrize("year", ["0001-01-01", "9987-12-31", "9999-12-31"])
def test_the_ends_of_time_are_no_error(rule, year):
    """Proves that the first and last years give occurrences or none, never an exception."""
    forever = msgspec.structs.replace(rule, count=None, ends_at=None)
    assert (forever.next_after(at(f"{year}T00:00:00Z")) is None) == (year > "9")
    last = whenever.Instant.from_timestamp(LAST_SECOND)
    shortly_before = last.subtract(hours=0 if rule.kind == "every" else 24 * 70, seconds=1)
    assert all(each.at <= last for each in forever.occurrences(shortly_before))
    assert forever.next_after(last) is None
    assert forever.next_after(at("9999-12-31T23:59:59Z")) is None


def test_a_rare_day_is_searched_for_once():
    """Proves that a leap day years ahead is not searched for anew at each change of the clock until then."""
    rule = Recurrence.cron("0 1 29 2 *", BERLIN)
    asked = _next_day.cache_info().misses
    assert following(rule, at("2040-03-01T00:00:00Z")).local == "2044-02-29 01:00:00"
    assert _next_day.cache_info().misses - asked <= 2


def test_a_stored_expression_that_never_fires_is_soon_told():
    """Proves that an expression which no day fits any more is not searched for through all years."""
    never = Recurrence(kind="cron", expression="0 0 30 2 *", zone=BERLIN)
    asked = _next_day.cache_info().misses
    assert never.next_after(at("2026-01-01T00:00:00Z")) is None
    assert _next_day.cache_info().misses - asked <= 2


def test_a_naive_instant_is_refused():
    """Proves that a time without a zone is no instant."""
    with pytest.raises(ValidationError, match="after"):
        Recurrence.every(1).next_after(datetime(2026, 1, 1))  # noqa: DTZ001
