"""Seconds, milliseconds and instants at the edge."""

# ruff: noqa: ARG002 - stand-ins have the parameters of their protocol

import math
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from fractions import Fraction
from zoneinfo import ZoneInfo

import pytest
import whenever
from hypothesis import given
from hypothesis import strategies as st

from streamline_trio._core.durations import MAX_SECONDS, instant_millis, instant_of, seconds_of, to_millis
from streamline_trio._core.errors import ValidationError


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(0, 0.0), (3, 3.0), (0.25, 0.25), (timedelta(minutes=2), 120.0), (timedelta(microseconds=1), 1e-6)],
)
def test_a_duration_is_a_number_or_a_timedelta(value, seconds):
    """Proves that numbers are seconds and that timedeltas are taken as they are."""
    assert seconds_of(value, what="timeout") == seconds


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (True, "number of seconds or a timedelta"),
        ("3", "number of seconds or a timedelta"),
        (None, "number of seconds or a timedelta"),
        (math.nan, "finite"),
        (math.inf, "finite"),
        (10**400, "finite"),
        (MAX_SECONDS * 1.01, "a thousand years"),
        (-1, "not be negative"),
        (timedelta(seconds=-1), "not be negative"),
    ],
)
def test_a_bad_duration_is_refused_by_name(value, why):
    """Proves that what is not a usable duration is refused, naming what it was for."""
    with pytest.raises(ValidationError, match=f"^timeout must.*{why}"):
        seconds_of(value, what="timeout")


def test_a_negative_duration_may_be_allowed():
    """Proves that a caller may take negative durations, still bounded."""
    assert seconds_of(-2.5, what="shift", negative=True) == -2.5
    with pytest.raises(ValidationError):
        seconds_of(-math.inf, what="shift", negative=True)


@pytest.mark.parametrize(
    ("seconds", "millis"),
    [(0, 0), (0.3, 300), (0.1 + 0.2, 300), (1.1, 1100), (0.0001, 1), (1e-12, 1), (0.0011, 2), (-1.5, -1500)],
)
def test_milliseconds_are_rounded_up_without_noise(seconds, millis):
    """Proves that rounding is upwards, but not because of binary fractions."""
    assert to_millis(seconds) == millis


@given(st.integers(0, 10**14))
def test_whole_milliseconds_come_back(millis):
    """Proves that every whole number of milliseconds survives the way through seconds."""
    assert to_millis(millis / 1000) == millis


@given(st.floats(0, MAX_SECONDS))
def test_milliseconds_are_never_early(seconds):
    """Proves that rounding adds less than a millisecond and takes away nothing but noise."""
    exact = Fraction(seconds) * 1000
    assert exact - Fraction(1, 100) <= to_millis(seconds) < exact + 1 + Fraction(1, 100)


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 3, 29, 1, 30, tzinfo=UTC),
        datetime(2026, 3, 29, 3, 30, tzinfo=ZoneInfo("Europe/Berlin")),
        datetime(2026, 3, 28, 20, 30, tzinfo=timezone(timedelta(hours=-5))),
        whenever.Instant.from_utc(2026, 3, 29, 1, 30),
        whenever.ZonedDateTime(2026, 3, 29, 3, 30, tz="Europe/Berlin"),
        whenever.OffsetDateTime(2026, 3, 29, 3, 30, offset=whenever.TimeDelta(hours=2)),
    ],
)
def test_every_exact_type_is_the_same_instant(value):
    """Proves that one moment gives one number, however it is written."""
    assert instant_millis(value, what="run_at") == 1_774_747_800_000


def test_an_instant_is_rounded_up():
    """Proves that parts of a millisecond never make an instant early, before 1970 neither."""
    start = datetime(1970, 1, 1, tzinfo=UTC)
    micro = timedelta(microseconds=1)
    assert [instant_millis(start + n * micro, what="x") for n in (-1001, -1000, -1, 0, 1)] == [
        -1,
        -1,
        0,
        0,
        1,
    ]
    assert instant_millis(whenever.Instant.from_timestamp(1, unit="nanosecond"), what="x") == 1


class _Nowhere(tzinfo):
    def utcoffset(self, dt):
        return None

    def dst(self, dt):
        return None

    def tzname(self, dt):
        return None


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 1, 1),  # noqa: DTZ001 - a naive one is the point
        datetime(2026, 1, 1, tzinfo=_Nowhere()),
        whenever.PlainDateTime(2026, 1, 1),
        1_774_747_800,
        "2026-01-01T00:00:00Z",
        None,
    ],
)
def test_what_is_no_exact_instant_is_refused_by_name(value):
    """Proves that naive and untyped times are refused, naming what they were for."""
    with pytest.raises(ValidationError, match=r"^run_at must be an aware datetime"):
        instant_millis(value, what="run_at")


@given(st.integers(-62_135_596_800_000, 253_402_300_799_999))
def test_milliseconds_become_an_instant_and_come_back(millis):
    """Proves that every stored instant of the years 1 to 9999 can be shown and taken again."""
    assert instant_millis(instant_of(millis), what="x") == millis


def test_an_instant_out_of_range_is_refused():
    """Proves that a number no calendar knows is a validation error, not a crash."""
    for millis in (10**18, -(10**18), 10**40):
        with pytest.raises(ValidationError, match="outside the years"):
            instant_of(millis)
