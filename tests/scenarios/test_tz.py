"""Times of a place: runs that start at a local time, and the rules for what a clock skips or shows twice."""

import functools
import itertools
from collections import Counter
from typing import Any

import msgspec
import pytest
import whenever

from streamline_trio import (
    LocalTime,
    MemoryStore,
    Recurrence,
    Run,
    ScheduledStart,
    ValidationError,
    Workflow,
    open_engine,
    testing,
)
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, passing, settled

START = whenever.Instant.from_utc(2024, 1, 1)
NEW_YORK = "America/New_York"
LONDON = "Europe/London"


def at(text: str) -> whenever.Instant:
    return whenever.Instant.parse_iso(text)


def steps(*ids: str, calls: list[str] | None = None) -> Workflow[Any, Any]:
    workflow: Workflow[Any, Any] = Workflow("steps")
    passing(workflow, *ids, calls=calls)
    return workflow


async def drafted(time: LocalTime, *ids: str, **options: Any) -> Run:
    """The run as it is stored when it was just started at this time."""
    workflow = steps(*(ids or ("only",)))
    async with open_engine("memory:", workflow) as engine:
        return await at_rest(await engine.start(workflow, {"order": 7}, run_at=time, **options))


def drafted_in_2024(time: LocalTime, *ids: str, **options: Any) -> Run:
    return testing.run(functools.partial(drafted, time, *ids, **options), start=START)


def test_a_run_starts_at_a_local_time():
    """S489: proves a draft with zone, local time and the instant that is meant, and that it waits for it."""
    run = drafted_in_2024(LocalTime("2024-12-25 09:00:00", NEW_YORK))
    assert (run.status, run.due_at) == ("draft", at("2024-12-25T14:00:00Z"))
    assert run.scheduled == ScheduledStart(
        at=at("2024-12-25T14:00:00Z"), local="2024-12-25 09:00:00", zone=NEW_YORK, gap=False, fold=False
    )


def test_what_was_wanted_is_stored_beside_the_instant():
    """S490: proves that the local time is kept as it was given, without an offset, and the instant beside it."""
    run = drafted_in_2024(LocalTime("2024-07-15T14:30:00", LONDON))
    assert run.scheduled is not None
    assert (run.scheduled.local, run.scheduled.at) == ("2024-07-15T14:30:00", at("2024-07-15T13:30:00Z"))


def test_a_run_that_is_to_start_has_its_steps():
    """S491: proves that a draft shows every step as pending with no attempt, and the state made from the input."""
    run = drafted_in_2024(LocalTime("2024-01-01 00:01", "UTC"), "one", "two", "three")
    assert [(step.id, step.status, step.attempts) for step in run.steps.values()] == [
        (each, "pending", 0) for each in ("one", "two", "three")
    ]
    assert (run.status, run.state) == ("draft", {"order": 7})


def test_a_run_that_is_to_start_keeps_what_it_was_told():
    """S492: proves that user, tags, priority and meta are stored with the local time."""
    run = drafted_in_2024(
        LocalTime("2024-07-15 09:00", NEW_YORK), user="u-1", tags=["a", "b"], priority=3, meta={"campaign": "x"}
    )
    assert (run.user, run.tags, run.priority, run.meta) == ("u-1", ("a", "b"), 3, {"campaign": "x"})


@pytest.mark.parametrize(
    ("zone", "instant"),
    [
        (NEW_YORK, "2024-07-15T13:00:00Z"),
        ("America/Los_Angeles", "2024-07-15T16:00:00Z"),
        (LONDON, "2024-07-15T08:00:00Z"),
        ("Europe/Paris", "2024-07-15T07:00:00Z"),
        ("Asia/Tokyo", "2024-07-15T00:00:00Z"),
        ("Asia/Singapore", "2024-07-15T01:00:00Z"),
        ("Australia/Sydney", "2024-07-14T23:00:00Z"),
        ("Pacific/Auckland", "2024-07-14T21:00:00Z"),
        ("Asia/Kolkata", "2024-07-15T03:30:00Z"),
        ("Asia/Kathmandu", "2024-07-15T03:15:00Z"),
    ],
)
def test_one_local_time_is_another_instant_in_each_zone(zone, instant):
    """S493, S504: proves the instant of 09:00 in ten zones, among them offsets of half and quarter hours."""
    time = LocalTime("2024-07-15 09:00", zone)
    assert (time.instant, time.gap, time.fold) == (at(instant), False, False)


@pytest.mark.parametrize(
    ("local", "zone", "instant"),
    [
        ("2024-07-15 08:00", "Pacific/Honolulu", "2024-07-15T18:00:00Z"),
        ("2024-07-15 18:00", "Asia/Tokyo", "2024-07-15T09:00:00Z"),
        ("2024-07-20 14:30", "UTC", "2024-07-20T14:30:00Z"),
        ("2024-06-15 09:00", NEW_YORK, "2024-06-15T13:00:00Z"),
        ("2024-12-25 10:00", "America/Los_Angeles", "2024-12-25T18:00:00Z"),
        ("2024-03-10 02:30", "America/Phoenix", "2024-03-10T09:30:00Z"),
        ("2024-03-31 02:30", "Asia/Singapore", "2024-03-30T18:30:00Z"),
        ("2024-03-10 01:59", NEW_YORK, "2024-03-10T06:59:00Z"),
        ("2024-03-10 01:00", NEW_YORK, "2024-03-10T06:00:00Z"),
        ("2024-03-10 03:00", NEW_YORK, "2024-03-10T07:00:00Z"),
        ("2024-03-31 02:30", LONDON, "2024-03-31T01:30:00Z"),
        ("2024-11-03 00:59", NEW_YORK, "2024-11-03T04:59:00Z"),
        ("2024-11-03 02:00", NEW_YORK, "2024-11-03T07:00:00Z"),
        ("2024-11-03 03:00", NEW_YORK, "2024-11-03T08:00:00Z"),
    ],
)
def test_ordinary_times_are_not_flagged(local, zone, instant):
    """S504, S505, S507, S508, S510: proves times in every season, and right beside gap and fold, without a flag."""
    time = LocalTime(local, zone)
    assert (time.instant, time.gap, time.fold) == (at(instant), False, False)


@pytest.mark.parametrize(
    ("local", "zone", "instant", "flag"),
    [
        ("2024-03-10 02:30", NEW_YORK, "2024-03-10T07:30:00Z", "gap"),
        ("2024-03-10 02:00", NEW_YORK, "2024-03-10T07:00:00Z", "gap"),
        ("2024-03-31 01:30", LONDON, "2024-03-31T01:30:00Z", "gap"),
        ("2024-10-06 02:15", "Australia/Lord_Howe", "2024-10-05T15:45:00Z", "gap"),
        ("2024-11-03 01:30", NEW_YORK, "2024-11-03T05:30:00Z", "fold"),
        ("2024-10-27 01:30", LONDON, "2024-10-27T00:30:00Z", "fold"),
    ],
)
def test_gap_and_fold_are_told_on_the_run(local, zone, instant, flag):
    """S508: proves that a run starts after the gap or in the first of two, and that `Run.scheduled` tells which."""
    run = drafted_in_2024(LocalTime(local, zone))
    assert run.due_at == at(instant)
    assert run.scheduled == ScheduledStart(
        at=at(instant), local=local, zone=zone, gap=flag == "gap", fold=flag == "fold"
    )


def test_a_bad_local_time_writes_nothing():
    """S503: proves that a bad zone or time raises where it is written, before any engine sees it."""
    for zone in ("Invalid/Zone", "", "Not/A/Timezone"):
        with pytest.raises(ValidationError, match="zone"):
            LocalTime("2024-07-15 09:00", zone)
    assert LocalTime("2024-07-15 09:00", NEW_YORK).zone == NEW_YORK


@in_virtual_time
async def test_a_local_time_and_a_delay_exclude_each_other():
    """Proves that two answers to when a run starts are refused."""
    workflow = steps("only")
    async with open_engine("memory:", workflow) as engine:
        with pytest.raises(ValidationError, match="run_at exclude each other"):
            await engine.start(workflow, None, delay=1, run_at=LocalTime("2030-01-01 00:00", "UTC"))


@in_virtual_time
async def test_a_local_time_in_the_past_starts_at_once():
    """S499: proves that a time long ago, and the present one, begin with the insert, and that it is kept."""
    for past in (LocalTime("2020-01-01 00:00", NEW_YORK), LocalTime("2026-01-01 00:00", "UTC")):
        run = await settled(steps("only"), run_at=past)
        assert (run.status, run.started_at) == ("done", run.created_at)
        assert run.revision == 2  # never a draft: the insert begins the step
        assert run.scheduled is not None
        assert run.scheduled.local == past.local


@in_virtual_time
async def test_a_run_starts_at_its_instant_and_not_before():
    """Proves that a run in the gap begins exactly when the clock shows the time later by the gap."""
    run = await settled(steps("only"), run_at=LocalTime("2026-03-29 02:30", "Europe/Berlin"))
    assert run.started_at == at("2026-03-29T01:30:00Z")
    assert run.scheduled is not None
    assert run.scheduled.gap


@pytest.mark.parametrize(
    ("local", "zone", "instant"),
    [
        ("2024-01-02 00:00:00", NEW_YORK, "2024-01-02T05:00:00Z"),
        ("2024-12-31 23:59:59", "Pacific/Auckland", "2024-12-31T10:59:59Z"),
        ("2024-02-29 12:00:00", "UTC", "2024-02-29T12:00:00Z"),
        ("2025-01-01 00:00:00", "UTC", "2025-01-01T00:00:00Z"),
    ],
)
def test_the_edges_of_the_calendar(local, zone, instant):
    """S500: proves midnight, the last second of a year, a leap day, and a year ahead."""
    run = drafted_in_2024(LocalTime(local, zone))
    assert run.scheduled is not None
    assert (run.due_at, run.scheduled.local) == (at(instant), local)


@in_virtual_time
async def test_ten_at_once():
    """S501: proves that ten starts at local times have ten ids, and each its own instant."""
    workflow = steps("only")
    async with open_engine("memory:", workflow) as engine:
        runs = [
            await engine.start(workflow, None, run_at=LocalTime(f"2026-02-{day:02} 09:00", "Europe/Berlin"))
            for day in range(1, 11)
        ]
        due = [(await run.get()).due_at for run in runs]
    assert len({run.id for run in runs}) == len(set(due)) == 10


@in_virtual_time
async def test_a_run_that_is_to_start_can_be_cancelled():
    """S496: proves that a draft with a local time is cancelled at once, with its end, and never begins."""
    workflow = steps("only")
    async with open_engine("memory:", workflow) as engine:
        run = await engine.start(workflow, None, run_at=LocalTime("2026-02-01 09:00", "Europe/Berlin"))
        await run.cancel()
        after = await run.wait()
    assert (after.status, after.steps["only"].attempts) == ("cancelled", 0)
    assert after.ended_at is not None


@in_virtual_time
async def test_two_workers_begin_it_once():
    """S502: proves that a draft due at a local time is run by one of two workers, once."""
    calls: list[str] = []
    workflow, store = steps("only", calls=calls), MemoryStore(exclusive=False)
    async with open_engine(store, workflow) as one, open_engine(store, workflow) as other:
        run = await one.start(workflow, None, run_at=LocalTime("2026-01-01 00:00:03", "UTC"))
        assert (await other.run(run.id).wait()).status == "done"
        await idle()
    assert calls == ["only"]


def test_ordinary_days_are_a_day_apart():
    """S511: proves exactly 24 hours between neighbours in Chicago's July."""
    found = Recurrence.daily("08:00", "America/Chicago").between(
        at("2024-07-01T00:00:00Z"), at("2024-07-06T00:00:00Z")
    )
    gaps = [two.at - one.at for one, two in itertools.pairwise(found)]
    assert (len(found), set(gaps)) == (5, {whenever.TimeDelta(hours=24)})


def test_the_offset_is_that_of_the_zone_not_of_the_season_of_the_machine():
    """S512: proves that summer and winter times of one rule differ by the hour that New York moves."""
    found = Recurrence.monthly(1, "12:00", NEW_YORK).between(at("2024-01-01T00:00:00Z"), at("2024-12-31T00:00:00Z"))
    assert Counter(str(each.at)[11:16] for each in found) == {"17:00": 4, "16:00": 8}


def test_the_next_day():
    """S513: proves that right after a daily firing the next is tomorrow's, number 2 of the rule."""
    rule, anchor = Recurrence.daily("09:00", "UTC"), at("2026-06-10T08:00:00Z")
    found = rule.next_after(at("2026-06-10T09:00:05Z"), anchor=anchor)
    assert found is not None
    assert (found.at, rule.number(found.at, anchor=anchor)) == (at("2026-06-11T09:00:00Z"), 2)


def test_the_next_of_several_days_of_the_week():
    """S515: proves that after a Wednesday comes the Friday, and that Sunday is 0 as well as 7."""
    wednesday = at("2026-06-10T09:00:00Z")
    found = Recurrence.weekly(["mon", "fri"], "09:00", "UTC").next_after(wednesday)
    sunday = Recurrence.weekly(0, "09:00", "UTC").next_after(wednesday)
    assert found is not None
    assert sunday is not None
    assert (found.at, sunday.at) == (at("2026-06-12T09:00:00Z"), at("2026-06-14T09:00:00Z"))
    assert Recurrence.weekly(7, "09:00", "UTC") == Recurrence.weekly(0, "09:00", "UTC")


def test_cron_in_the_zone_of_the_rule():
    """S518: proves that Monday 09:00 by cron is New York's Monday, 13:00 UTC in summer."""
    found = Recurrence.cron("0 9 * * 1", NEW_YORK).next_after(at("2026-06-10T12:00:00Z"))
    assert found is not None
    assert found.at == at("2026-06-15T13:00:00Z")


def test_a_shifted_time_is_itself_again_the_next_day():
    """Proves that a 02:30 rule is at 03:30 on the day of the gap only, over years of them."""
    found = Recurrence.daily("02:30", NEW_YORK).between(at("2024-01-01T00:00:00Z"), at("2029-01-01T00:00:00Z"))
    shifted = [each for each in found if each.gap]
    assert len(shifted) == 5
    assert {each.local[11:] for each in found} == {"02:30:00"}
    assert {str(each.at.to_tz(NEW_YORK).time()) for each in shifted} == {"03:30:00"}
    assert {str(each.at.to_tz(NEW_YORK).time()) for each in found if not each.gap} == {"02:30:00"}


def test_a_daily_job_fires_once_when_the_hour_is_doubled():
    """S529: proves one firing at 01:30 on the day New York's clock goes back, the first, and the next a day on."""
    found = Recurrence.daily("01:30", NEW_YORK).between(at("2026-10-31T12:00:00Z"), at("2026-11-02T12:00:00Z"))
    assert [(each.at, each.fold) for each in found] == [
        (at("2026-11-01T05:30:00Z"), True),
        (at("2026-11-02T06:30:00Z"), False),
    ]


def test_ramadan_moves_the_clock_twice_in_spring():
    """Proves that Casablanca's extra changes for Ramadan neither double nor lose a daily firing."""
    found = Recurrence.daily("02:30", "Africa/Casablanca").between(
        at("2026-01-01T00:00:00Z"), at("2026-12-31T00:00:00Z")
    )
    assert len(found) == len({each.local for each in found}) == 364
    assert [each.local[:10] for each in found if each.fold] == ["2026-02-15"]
    assert [each.local[:10] for each in found if each.gap] == ["2026-03-22"]


def test_winter_time_as_the_exception():
    """Proves that Dublin, whose law has negative daylight saving in winter, is treated as London is."""
    after, until = at("2026-01-01T00:00:00Z"), at("2027-01-01T00:00:00Z")
    dublin, london = (Recurrence.daily("01:30", zone).between(after, until) for zone in ("Europe/Dublin", LONDON))
    assert [(each.at, each.gap, each.fold) for each in dublin] == [
        (each.at, each.gap, each.fold) for each in london
    ]


def test_the_chain_ends():
    """S519: proves that `count` and `until` end the occurrences, and that `until` itself still counts."""
    first = at("2026-06-10T09:00:00Z")
    one = Recurrence.daily("09:00", "UTC", count=1)
    assert one.next_after(first, anchor=first.subtract(seconds=1)) is None
    three = Recurrence.daily("09:00", "UTC", count=3)
    assert three.next_after(first.add(hours=48), anchor=first.subtract(seconds=1)) is None
    until = Recurrence.daily("09:00", "UTC", until=at("2026-06-10T12:00:00Z"))
    assert until.next_after(first) is None
    assert until.next_after(first.subtract(seconds=1)) is not None


def test_what_is_stored_of_a_rule_is_plain_data():
    """S522: proves that a rule with its count is stored and read back through JSON as through msgpack."""
    rule = Recurrence.daily("09:00", LONDON, count=30)
    assert (rule.kind, rule.count) == ("daily", 30)
    assert msgspec.json.decode(msgspec.json.encode(rule), type=Recurrence) == rule
