"""Schedules as documents: what is decided by when, and what the verbs make of it."""

from typing import Any

import msgspec
import pytest
import whenever

from streamline_trio import Recurrence
from streamline_trio._core.schedule_verbs import asked_now, deleted, paused, unpaused, updated
from streamline_trio._core.schedules import (
    AT_ONCE,
    KEPT,
    FiringDoc,
    ScheduleDoc,
    advance,
    completed,
    due_at,
    key_of,
    run_id_of,
    scheduled_of,
    timed,
    with_due,
)

START = whenever.Instant.from_utc(2026, 1, 1).timestamp(unit="millisecond")
SECOND = 1000
DAY = 86_400 * SECOND
TEN_YEARS = 3652 * DAY
PATIENCE = 15 * SECOND


def schedule(every: Recurrence, **fields: Any) -> ScheduleDoc:
    doc = ScheduleDoc(
        id="s",
        incarnation=7,
        workflow="flow",
        input=b"\xc0",
        every=every,
        created_at=START,
        updated_at=START,
        anchor=START,
        after=START,
    )
    return with_due(msgspec.structs.replace(doc, **fields))


def at(doc: ScheduleDoc, now: int, *settled: str) -> ScheduleDoc:
    return advance(doc, now, until=now + PATIENCE, settled=frozenset(settled)).doc


def seconds(firings: Any) -> list[float]:
    return [(firing.at - START) / SECOND for firing in firings]


def carried_out(doc: ScheduleDoc) -> ScheduleDoc:
    return completed(doc, dict.fromkeys((firing.name for firing in doc.pending), None))


def test_a_firing_is_decided_once_and_left_to_who_decided_it():
    """Proves that a firing is given once, and to another worker only when the first one's time is up."""
    doc = schedule(Recurrence.every(10))
    assert advance(doc, START + 9999, until=0).doc is doc
    doc, firings = advance(doc, START + 10_000, until=START + 25_000)
    assert seconds(firings) == [10]
    assert (due_at(doc), doc.due) == (START + 20_000, START + 20_000)
    assert advance(doc, START + 15_000, until=0).firings == ()
    doc, firings = advance(doc, START + 20_000, until=START + 35_000)
    assert seconds(firings) == [20]
    doc, firings = advance(doc, START + 25_000, until=START + 40_000)
    assert seconds(firings) == [10], "whoever decided it has not said that it was carried out"
    assert due_at(doc) == START + 30_000


def test_what_was_carried_out_counts_once():
    """Proves that a firing that two workers carried out is counted once, whoever tells it, and however often."""
    doc = at(schedule(Recurrence.every(10)), START + 10_000)
    ends = {doc.pending[0].name: None}
    doc = completed(doc, ends)
    assert (doc.fired, doc.pending, doc.last_at) == (1, (), START + 10_000)
    assert completed(doc, ends) is doc


def test_ten_years_of_every_second_cost_what_is_made_up():
    """Proves that after ten years without a worker every missed second is counted and three are made up,
    at once.
    """
    doc = schedule(Recurrence.every(1, catch_up=3, misfire_grace=5))
    doc = at(doc, START + TEN_YEARS)
    assert doc.missed + len(doc.pending) == TEN_YEARS // SECOND
    late = [(START + TEN_YEARS - firing.at) / SECOND for firing in doc.pending]
    assert late == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert doc.due == START + TEN_YEARS + SECOND


def test_ten_years_of_every_minute_by_cron_are_not_walked():
    """Proves that a calendar's missed firings are counted up to a bound,
    and the newest are made up all the same.
    """
    doc = schedule(Recurrence.cron("* * * * *", "UTC", catch_up=2))
    doc = at(doc, START + TEN_YEARS + 500)
    assert [(START + TEN_YEARS - firing.at) / 60_000 for firing in doc.pending] == [2, 1, 0]
    assert 10_000 <= doc.missed < 10_010


def test_what_is_missed_depends_on_the_grace():
    """Proves that a firing as late as the grace fires and a later one is missed, and that a second is the least."""
    for grace, late, fires in [(60, 60_000, 1), (60, 60_001, 0), (0, 1000, 1), (0, 1001, 0)]:
        doc = at(schedule(Recurrence.daily("12:00", "UTC", misfire_grace=grace)), START + DAY // 2 + late)
        assert (len(doc.pending), doc.missed) == (fires, 1 - fires)


def test_many_firings_come_in_portions():
    """Proves that a long grace fires all of an hour of seconds, in portions that fall due at once, none twice."""
    doc, found, now = schedule(Recurrence.every(1, misfire_grace=3600)), list[float](), START + 350 * SECOND
    while doc.due is not None and doc.due <= now:
        doc, firings = advance(doc, now, until=now + PATIENCE)
        assert len(firings) <= AT_ONCE
        found += seconds(firings)
        doc = carried_out(doc)
    assert found == list(range(1, 351))
    assert (doc.fired, doc.missed) == (350, 0)


def test_count_is_of_firings_and_not_of_what_was_missed_or_skipped():
    """Proves that `count` ends the schedule after so many firings, and that neither miss nor skip uses one up."""
    doc = schedule(Recurrence.every(10, count=2, overlap="skip", misfire_grace=1))
    doc = carried_out(at(doc, START + 45_000 - 4000))
    assert (doc.fired, doc.missed, doc.spent) == (1, 3, 1)
    doc = at(doc, START + 50_000)
    assert (doc.skipped, doc.due) == (1, START + 60_000)
    doc = carried_out(at(doc, START + 60_000, *doc.active))
    assert (doc.fired, doc.due, due_at(doc)) == (2, None, None)


def test_count_ends_a_turn_that_finds_more_to_fire():
    """Proves that a worker which comes late, and may fire several at once, fires no more than `count` says."""
    doc, firings = advance(schedule(Recurrence.every(10, count=2)), START + 50_000, until=START + 65_000)
    assert seconds(firings) == [10, 20]
    assert (doc.spent, doc.due) == (2, None)


@pytest.mark.parametrize("overlap", ["allow", "skip", "queue"])
def test_overlap(overlap):
    """Proves what becomes of firings while the run of the first is active, and when it has settled."""
    doc = carried_out(at(schedule(Recurrence.every(10, overlap=overlap)), START + 10_000))
    run = run_id_of(doc, FiringDoc(at=START + 10_000))
    for number in (2, 3, 4):
        doc = carried_out(at(doc, START + number * 10_000))
    expected = {"allow": (4, 0, 0), "skip": (1, 3, 0), "queue": (1, 2, 1)}[overlap]
    assert (doc.fired, doc.skipped, len(doc.queued)) == expected
    assert doc.active == (() if overlap == "allow" else (run,))
    if overlap == "queue":
        assert due_at(doc) == 0, "whoever looks sees whether it may begin"
        assert at(doc, START + 41_000) is doc
        doc, firings = advance(doc, START + 41_000, until=START + 60_000, settled={run})
        assert seconds(firings) == [20]
        assert seconds(doc.queued) == []


def test_as_many_wait_as_catch_up_allows():
    """Proves that of what was missed with overlap "queue" one begins and the others wait, one after the other."""
    doc = at(schedule(Recurrence.every(10, overlap="queue", catch_up=3)), START + 1000 * SECOND)
    begun = seconds(doc.pending)
    while doc.pending:
        doc = carried_out(doc)
        doc = at(doc, START + 1000 * SECOND, *doc.active)
        begun += seconds(doc.pending)
    assert begun == [910, 920, 930, 940]
    assert (doc.fired, doc.skipped, doc.missed) == (4, 6, 90)


def test_jitter_keeps_the_order_and_is_the_same_for_everybody():
    """Proves that jitter is in its bounds, the same at each look, spread out,
    and never past the next occurrence.
    """
    doc = schedule(Recurrence.every(10), jitter=30_000)
    found = [next(timed(doc, START + number * 10_000)) for number in range(200)]
    later = [fires_at - firing.at for firing, fires_at in found]
    assert all(0 <= each < 10_000 for each in later)
    assert len(set(later)) > 190
    assert [fires_at for _, fires_at in found] == sorted({fires_at for _, fires_at in found})
    wide = schedule(Recurrence.daily("12:00", "UTC"), jitter=30_000)
    spread = [next(timed(wide, START + number * DAY)) for number in range(200)]
    assert all(0 <= fires_at - firing.at <= 30_000 for firing, fires_at in spread)
    assert max(fires_at - firing.at for firing, fires_at in spread) > 25_000


def test_jitter_does_not_fire_early():
    """Proves that a firing put off by jitter is not decided before, and not missed because of it."""
    doc = schedule(Recurrence.daily("12:00", "UTC", misfire_grace=1), jitter=3_600_000)
    assert doc.due is not None
    assert doc.due > START + DAY // 2
    assert at(doc, doc.due - 1) is doc
    assert len(at(doc, doc.due + 1000).pending) == 1
    assert at(doc, doc.due + 1001).missed == 1


def test_a_pause_makes_no_burst():
    """Proves that nothing fires in a pause, that unpause goes on with the next firing,
    and that nothing is missed.
    """
    doc = paused(schedule(Recurrence.every(10, catch_up=100, misfire_grace=1000)), "holiday", START + 1)
    assert (due_at(doc), at(doc, START + DAY)) == (None, doc)
    doc = unpaused(doc, START + DAY + 5000)
    assert doc.due == START + DAY + 10_000
    doc = at(doc, START + DAY + 10_000)
    assert (seconds(doc.pending), doc.missed) == ([86_410], 0)
    assert unpaused(doc, START) is doc


def test_what_was_decided_before_a_pause_is_carried_out():
    """Proves that a firing that its worker left is taken up in a pause,
    while one that waits for a run is dropped.
    """
    doc = carried_out(at(schedule(Recurrence.every(10, overlap="queue")), START + 10_000))
    doc = paused(at(doc, START + 20_000), None, START + 20_001)
    assert (doc.queued, doc.skipped, due_at(doc)) == ((), 1, None)
    doc = paused(at(schedule(Recurrence.every(10)), START + 10_000), None, START + 10_001)
    assert due_at(doc) == START + 10_000 + PATIENCE
    assert seconds(advance(doc, START + 10_000 + PATIENCE, until=START + DAY).firings) == [10]


def test_another_rule_counts_afresh_and_other_limits_do_not():
    """Proves that `count` goes on over a change of limits, and begins anew with another rule, from now on."""
    doc = carried_out(at(schedule(Recurrence.every(10, count=3)), START + 10_000))
    same = updated(doc, {"every": Recurrence.every(10, count=2)}, START + 11_000)
    assert (same.spent, same.due, same.fired) == (1, START + 20_000, 1)
    assert updated(doc, {"every": Recurrence.every(10, count=1)}, START + 11_000).due is None
    other = updated(doc, {"every": Recurrence.every(7, count=3)}, START + 11_000)
    assert (other.spent, other.due, other.fired) == (0, START + 18_000, 1)
    assert updated(doc, {"every": Recurrence.every(10, count=3)}, START + 11_000) is doc
    ahead = updated(at(doc, START + 20_000), {"every": Recurrence.every(1)}, START + 15_000)
    assert ahead.due == START + 21_000, "what a worker whose clock is ahead has decided is not decided again"


def test_a_firing_that_is_asked_for_moves_nothing():
    """Proves that it stands beside the rule: other firings, counts and times are as they were."""
    doc = schedule(Recurrence.every(10, count=1))
    after, firing = asked_now(doc, START + 3000, START + 20_000)
    again, second = asked_now(after, START + 3000, START + 20_000)
    assert run_id_of(again, firing) != run_id_of(again, second)
    assert (again.due, again.spent, again.after) == (doc.due, 0, doc.after)
    done = carried_out(again)
    assert (done.fired, done.last_at, done.last_run) == (0, None, run_id_of(again, second))
    assert scheduled_of(doc, firing).at == START + 3000


def test_later_firings_heed_a_run_that_was_asked_for():
    """Proves that with overlap "skip" the rule leaves a firing out while a run that was asked for is active."""
    after, _ = asked_now(schedule(Recurrence.every(10, overlap="skip")), START + 3000, START + 20_000)
    assert at(after, START + 10_000).skipped == 1
    assert at(carried_out(after), START + 10_000).skipped == 1


def test_a_run_is_named_by_its_firing_alone():
    """Proves that no two tenants, schedules, incarnations, occurrences or requests share a run."""
    doc, firing = schedule(Recurrence.every(10)), FiringDoc(at=START)
    others = [
        (msgspec.structs.replace(doc, tenant="t"), firing),
        (msgspec.structs.replace(doc, id="t"), firing),
        (msgspec.structs.replace(doc, incarnation=8), firing),
        (doc, FiringDoc(at=START + 1)),
        (doc, FiringDoc(at=START, asked=1)),
    ]
    names = {run_id_of(*each) for each in [(doc, firing), *others]}
    assert len(names) == 6
    same = msgspec.structs.replace(doc, after=START + DAY, every=Recurrence.every(3), input=b"\xc2")
    assert run_id_of(same, FiringDoc(at=START, gap=True, until=9)) == run_id_of(doc, firing)


def test_keys_tell_tenants_apart():
    """Proves that no id of one tenant is a schedule of another, whatever characters they hold."""
    keys = {key_of(id_, tenant) for id_ in ("a", "a b", "t") for tenant in (None, "", "a", "a\n", "a\\n", "\n")}
    assert len(keys) == 18


def test_a_deleted_schedule_keeps_its_place_for_a_while():
    """Proves that what remains of it fires nothing, has nothing to be carried out, and falls due to be removed."""
    doc = deleted(at(schedule(Recurrence.every(10)), START + 10_000), START + 11_000)
    assert (due_at(doc), doc.pending) == (START + 11_000 + KEPT, ())
    assert at(doc, START + DAY) is doc


def test_a_rule_of_a_newer_release_is_left_alone():
    """S521: proves that a stored rule of an unknown kind fires nothing and is not touched,
    also with firings left.
    """
    doc = at(schedule(Recurrence.every(10)), START + 10_000)
    doc = msgspec.structs.replace(doc, every=Recurrence(kind="hourly"))
    assert at(doc, START + DAY) is doc


def test_what_is_stored_is_read_back():
    """Proves that a schedule with everything in it survives msgpack, and that an unknown field is no obstacle."""
    doc = at(schedule(Recurrence.cron("5 4 * * *", "Europe/Berlin", count=3), jitter=5, tags=("a",)), START + DAY)
    stored = msgspec.msgpack.encode(doc)
    assert msgspec.msgpack.decode(stored, type=ScheduleDoc) == doc
    newer = msgspec.msgpack.encode({**msgspec.msgpack.decode(stored), "field": 1})
    assert msgspec.msgpack.decode(newer, type=ScheduleDoc) == doc
