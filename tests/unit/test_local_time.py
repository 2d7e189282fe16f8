"""A time on the wall clock of a place, as an instant."""

import copy
import pickle
from datetime import UTC, datetime

import pytest
import whenever

from streamline_trio import LocalTime
from streamline_trio._core.documents import Scheduled
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.local_time import scheduled


def at(text: str) -> whenever.Instant:
    return whenever.Instant.parse_iso(text)


@pytest.mark.parametrize(
    ("local", "zone", "instant", "flag"),
    [
        ("2026-03-29 02:30", "Europe/Berlin", "2026-03-29T01:30:00Z", "gap"),
        ("2026-03-29T02:30:00", "Europe/Berlin", "2026-03-29T01:30:00Z", "gap"),
        ("2026-03-29 03:30", "Europe/Berlin", "2026-03-29T01:30:00Z", ""),
        ("2026-10-25 02:30", "Europe/Berlin", "2026-10-25T00:30:00Z", "fold"),
        ("2026-10-25 03:00", "Europe/Berlin", "2026-10-25T02:00:00Z", ""),
        ("2026-10-04 02:00", "Australia/Lord_Howe", "2026-10-03T15:30:00Z", "gap"),
        ("2026-10-04 02:29:59", "Australia/Lord_Howe", "2026-10-03T15:59:59Z", "gap"),
        ("2026-10-04 02:30", "Australia/Lord_Howe", "2026-10-03T15:30:00Z", ""),
        ("2026-04-05 01:45", "Australia/Lord_Howe", "2026-04-04T14:45:00Z", "fold"),
        ("2011-12-30 09:00", "Pacific/Apia", "2011-12-30T19:00:00Z", "gap"),
        ("2018-11-04 00:00", "America/Sao_Paulo", "2018-11-04T03:00:00Z", "gap"),
        ("2018-02-17 23:30", "America/Sao_Paulo", "2018-02-18T01:30:00Z", "fold"),
        ("2026-03-29 01:30", "Europe/Dublin", "2026-03-29T01:30:00Z", "gap"),
        ("2026-10-25 01:30", "Europe/Dublin", "2026-10-25T00:30:00Z", "fold"),
        ("2026-02-15 02:30", "Africa/Casablanca", "2026-02-15T01:30:00Z", "fold"),
        ("2026-03-22 02:30", "Africa/Casablanca", "2026-03-22T02:30:00Z", "gap"),
        ("1844-12-31 12:00", "Asia/Manila", "1845-01-01T03:56:08Z", "gap"),
        ("2026-03-29 02:30", "UTC", "2026-03-29T02:30:00Z", ""),
    ],
)
def test_the_zone_says_which_instant_is_meant(local, zone, instant, flag):
    """Proves that skipped times are shifted, the first of doubled ones is taken, and both are flagged."""
    time = LocalTime(local, zone)
    assert (time.instant, time.gap, time.fold) == (at(instant), flag == "gap", flag == "fold")
    assert (time.local, time.zone) == (local, zone)


@pytest.mark.parametrize(
    ("local", "text"),
    [
        (datetime(2026, 3, 29, 2, 30), "2026-03-29 02:30:00"),  # noqa: DTZ001 - a wall-clock time
        (whenever.PlainDateTime(2026, 3, 29, 2, 30), "2026-03-29 02:30:00"),
        ("2026-03-29 02:30", "2026-03-29 02:30"),
    ],
)
def test_wall_clock_times_come_in_several_types(local, text):
    """Proves that text and naive times mean the same; text is kept as it was given."""
    time = LocalTime(local, "Europe/Berlin")
    assert (time.local, time.instant) == (text, at("2026-03-29T01:30:00Z"))
    assert time == LocalTime("2026-03-29T02:30:00", "Europe/Berlin")


def test_instants_are_whole_milliseconds_rounded_up():
    """Proves that a fraction of a millisecond never makes a run early."""
    assert LocalTime("2026-06-01 00:00:00.0001", "UTC").instant == at("2026-06-01T00:00:00.001Z")


def test_equal_times_are_the_same_time_of_the_same_clock():
    """Proves that equality and hash go by what is meant: not by the text, and not by the instant alone."""
    gap = LocalTime("2026-03-29 02:30", "Europe/Berlin")
    assert len({gap, LocalTime("2026-03-29 02:30:00", "Europe/Berlin")}) == 1
    assert gap != LocalTime("2026-03-29 03:30", "Europe/Berlin")
    assert gap != LocalTime("2026-03-29 02:30", "Europe/Paris")
    assert gap != "2026-03-29 02:30"


def test_a_local_time_does_not_change():
    """Proves that it is frozen, and that copies of every kind are equal."""
    time = LocalTime("2026-03-29 02:30", "Europe/Berlin")
    with pytest.raises(AttributeError, match="does not change"):
        time.zone = "UTC"
    with pytest.raises(AttributeError, match="does not change"):
        del time.local
    assert repr(time) == "LocalTime('2026-03-29 02:30', 'Europe/Berlin')"
    assert pickle.loads(pickle.dumps(time)) == copy.deepcopy(time) == eval(repr(time)) == time  # noqa: S301, S307


def test_it_is_kept_with_a_run_as_told():
    """Proves what the document of a run holds of a local time."""
    assert scheduled(LocalTime("2026-03-29 02:30", "Europe/Berlin")) == Scheduled(
        at=1_774_747_800_000, local="2026-03-29 02:30", zone="Europe/Berlin", gap=True
    )


@pytest.mark.parametrize(
    "local",
    [
        "",
        "2026-03-29",
        "02:30",
        "2026-03-29 2:30",
        "2026-02-30 02:30",
        "2026-03-29 25:00",
        "2026-03-29 02:30Z",
        "2026-03-29 02:30+01:00",
        "2026-03-29 02:30\n",
        "٢٠٢٦-03-29 02:30",
        datetime(2026, 3, 29, 2, 30, tzinfo=UTC),
        datetime(2026, 10, 25, 2, 30, fold=1),  # noqa: DTZ001 - a wall-clock time
        whenever.Instant.from_utc(2026, 3, 29),
        1_774_747_800,
        None,
        "0001-01-01 00:00",
        "9999-12-31 23:59",
    ],
)
def test_what_is_no_wall_clock_time_is_refused(local):
    """Proves that an offset, an instant, a fold, another form or an impossible time is refused by name."""
    zone = "Asia/Tokyo" if str(local).startswith("0001") else "America/New_York"
    with pytest.raises(ValidationError, match=r"^local\b"):
        LocalTime(local, zone)


@pytest.mark.parametrize(
    "zone",
    [
        "",
        "Invalid/Zone",
        "Not/A/Timezone",
        "Berlin",
        "EST5EDT4",
        "right/Europe/Berlin",
        "localtime",
        "a\0b",
        "\ud800",
        "../etc/passwd",
        "/usr/share/zoneinfo/UTC",
        "x" * 1000,
        None,
        1,
        UTC,
    ],
)
def test_what_is_no_zone_is_refused(zone):
    """S503: proves that a zone is a name of the IANA database and nothing else, least of all a path."""
    with pytest.raises(ValidationError, match=r"^zone\b"):
        LocalTime("2026-03-29 02:30", zone)


def test_a_zone_is_spelt_as_in_the_database():
    """Proves that a name only this file system would find is refused, and the right spelling is told."""
    with pytest.raises(ValidationError, match="there is no time zone 'Europe/berlin'; 'Europe/Berlin' is meant"):
        LocalTime("2026-03-29 02:30", "Europe/berlin")
