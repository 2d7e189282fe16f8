"""Durable schedules through a whole engine: what fires, what people can do about it, and what goes wrong."""

import functools
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
import trio
import whenever

from streamline_trio import (
    Debounce,
    Engine,
    InvalidState,
    LocalTime,
    MemoryStore,
    Recurrence,
    Run,
    Schedule,
    ScheduleNotFound,
    SchedulerError,
    StepContext,
    ValidationError,
    Workflow,
    WorkflowNotFound,
    open_engine,
    testing,
)
from streamline_trio._core.schedules import KEPT, SCHEDULES, FiringDoc, ScheduleDoc, run_id_of
from streamline_trio._core.store import PutSide
from streamline_trio.testing._time import START
from tests.properties.zone_oracle import Rule, expected, is_day_of_month
from tests.scenarios.worlds import idle, in_virtual_time, one_step

HOUR, DAY = 3600.0, 86_400.0
YEAR = 365 * DAY
Context = StepContext[Any, Any]


class Job(msgspec.Struct):
    name: str
    cents: int = 0


def job(*, seconds: float = 0.0, **options: Any) -> Workflow[Any, Any]:
    """A workflow that takes so long and returns its input."""
    workflow: Workflow[Any, Any] = Workflow("job", **options)

    @workflow.step(attempts=1)
    async def work(ctx: Context) -> Any:
        if seconds:
            await ctx.sleep(seconds)
        return ctx.input

    return workflow


def instant(text: str) -> whenever.Instant:
    return whenever.Instant.parse_iso(text)


async def all_runs(engine: Engine) -> list[Run]:
    """Every run, the oldest first."""
    page = await engine.find(sort="created_at", limit=10_000)
    assert page.cursor is None
    return page.items


def offsets(runs: list[Run]) -> list[float]:
    """When they were started, in seconds from the start of the test."""
    return [(run.created_at - START).total("seconds") for run in runs]


def at_start(text: str) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """The async test as a plain one on skipped time that begins at this instant."""

    def decorate(test: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: object, **kwargs: object) -> None:
            testing.run(functools.partial(test, *args, **kwargs), start=instant(text))

        return run

    return decorate


# --- what fires ----------------------------------------------------------------------------------------------


@in_virtual_time
async def test_each_firing_is_one_run_with_what_the_schedule_says():
    """S523, S530: proves one run for each firing, with its input, tenant and all, and the next one always set."""
    workflow = job(input=Job, tags=["own"])
    async with open_engine("memory:", workflow) as engine:
        made = await engine.schedule(
            workflow,
            Job("nightly", 5),
            every=Recurrence.daily("03:00", "UTC"),
            id="nightly",
            tenant="org-A",
            user="u",
            tags=["a", "own"],
            priority=7,
            meta={"k": [1]},
        )
        assert (made.next_at, made.last_at, made.fired) == (START.add(hours=3), None, 0)
        await trio.sleep(3 * DAY)
        runs = await all_runs(engine)
        assert offsets(runs) == [3 * HOUR, DAY + 3 * HOUR, 2 * DAY + 3 * HOUR]
        for run in runs:
            assert (run.status, run.input, run.output) == (
                "done",
                Job("nightly", 5),
                {"name": "nightly", "cents": 5},
            )
            assert (run.tenant, run.user, run.priority, run.meta) == ("org-A", "u", 7, {"k": [1]})
            assert run.tags == ("own", "a")
            assert run.scheduled is not None
            assert (run.scheduled.at, run.scheduled.schedule) == (run.created_at, "nightly")
        now = await engine.schedules.get("nightly", tenant="org-A")
        assert (now.fired, now.last_run, now.next_at) == (3, runs[-1].id, START.add(hours=75))
        assert (now.last_at, now.missed, now.skipped, now.failed) == (runs[-1].created_at, 0, 0, 0)


@pytest.mark.parametrize("ends", [{"count": 2}, {"until": START.add(hours=30)}])
@in_virtual_time
async def test_nothing_fires_after_the_last_one(ends):
    """S524: proves that `count` and `until` end the schedule, which stays to be read,
    and that nothing polls then.
    """
    workflow = job()
    async with open_engine("memory:", workflow) as engine:
        await engine.schedule(workflow, every=Recurrence.daily("03:00", "UTC", **ends), id="s")
        await trio.sleep(YEAR)
        assert await engine.count() == 2
        over = await engine.schedules.get("s")
        assert (over.next_at, over.fired) == (None, 2)
        assert await engine.schedules.preview("s") == []


ZONES = [
    "America/New_York",
    "Europe/London",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Africa/Casablanca",
    "Europe/Dublin",
    "Europe/Berlin",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "America/St_Johns",
    "America/Sao_Paulo",
    "America/Havana",
    "Asia/Gaza",
    "Africa/Cairo",
    "Pacific/Auckland",
    "Pacific/Chatham",
    "Antarctica/Troll",
    "America/Santiago",
    "Asia/Tehran",
    "UTC",
]


@at_start("2026-01-01T00:00:00Z")
async def test_a_year_in_twenty_zones():
    """Proves every firing of a year, daily in twenty zones, by an oracle of the standard library,
    on skipped time.
    """
    workflow = job()
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    async with open_engine("memory:", workflow) as engine:
        for place, zone in enumerate(ZONES):
            rule = Recurrence.daily(time(place % 4, 30 if place % 2 else 0), zone)
            await engine.schedule(workflow, zone, every=rule, id=zone)
        await trio.sleep(YEAR + 1)
        runs = await all_runs(engine)
        for place, zone in enumerate(ZONES):
            plain = Rule(lambda _: True, (time(place % 4, 30 if place % 2 else 0),))
            due = expected(plain, ZoneInfo(zone), begin, begin + timedelta(days=365))
            assert fired(runs, zone) == [(e.at, e.local, e.gap, e.fold) for e in due]
            assert (await engine.schedules.get(zone)).fired == len(due)
        assert {run.status for run in runs} == {"done"}


def fired(runs: list[Run], schedule: str) -> list[tuple[datetime, str, bool, bool]]:
    found = [run for run in runs if run.scheduled is not None and run.scheduled.schedule == schedule]
    assert all(run.scheduled is not None and run.created_at == run.scheduled.at for run in found)
    return [(s.at.to_stdlib(), s.local, s.gap, s.fold) for run in found if (s := run.scheduled) is not None]


def told(runs: list[Run]) -> list[tuple[str, str]]:
    """The instant of each run, and the local time it stands for, marked in gap and fold."""
    return [
        (run.created_at.format_iso(), f"{s.local}{' gap' * s.gap}{' fold' * s.fold}")
        for run in runs
        if (s := run.scheduled) is not None
    ]


async def followed(rule: Recurrence, days: float) -> list[tuple[str, str]]:
    workflow = job()
    async with open_engine("memory:", workflow) as engine:
        await engine.schedule(workflow, every=rule, id="s")
        await trio.sleep(days * DAY)
        return told(await all_runs(engine))


CHANGES = {
    "New York skips 02:30, that day only": (
        "2026-03-07T12:00:00Z",
        Recurrence.daily("02:30", "America/New_York"),
        [
            ("2026-03-08T07:30:00Z", "2026-03-08 02:30:00 gap"),
            ("2026-03-09T06:30:00Z", "2026-03-09 02:30:00"),
            ("2026-03-10T06:30:00Z", "2026-03-10 02:30:00"),
        ],
    ),
    "New York shows 01:30 twice": (
        "2026-10-31T12:00:00Z",
        Recurrence.daily("01:30", "America/New_York"),
        [
            ("2026-11-01T05:30:00Z", "2026-11-01 01:30:00 fold"),
            ("2026-11-02T06:30:00Z", "2026-11-02 01:30:00"),
            ("2026-11-03T06:30:00Z", "2026-11-03 01:30:00"),
        ],
    ),
    "London skips 01:30": (
        "2026-03-28T12:00:00Z",
        Recurrence.daily("01:30", "Europe/London"),
        [
            ("2026-03-29T01:30:00Z", "2026-03-29 01:30:00 gap"),
            ("2026-03-30T00:30:00Z", "2026-03-30 01:30:00"),
            ("2026-03-31T00:30:00Z", "2026-03-31 01:30:00"),
        ],
    ),
    "Lord Howe moves by half an hour": (
        "2026-10-02T16:00:00Z",
        Recurrence.daily("02:15", "Australia/Lord_Howe"),
        [
            ("2026-10-03T15:45:00Z", "2026-10-04 02:15:00 gap"),
            ("2026-10-04T15:15:00Z", "2026-10-05 02:15:00"),
            ("2026-10-05T15:15:00Z", "2026-10-06 02:15:00"),
        ],
    ),
    "Apia had no 30 December 2011": (
        "2011-12-29T00:00:00Z",
        Recurrence.daily("12:00", "Pacific/Apia"),
        [
            ("2011-12-29T22:00:00Z", "2011-12-29 12:00:00"),
            ("2011-12-30T22:00:00Z", "2011-12-31 12:00:00"),
            ("2011-12-31T22:00:00Z", "2012-01-01 12:00:00"),
        ],
    ),
    "Morocco leaves summer time for Ramadan": (
        "2026-02-14T12:00:00Z",
        Recurrence.daily("02:30", "Africa/Casablanca"),
        [
            ("2026-02-15T01:30:00Z", "2026-02-15 02:30:00 fold"),
            ("2026-02-16T02:30:00Z", "2026-02-16 02:30:00"),
            ("2026-02-17T02:30:00Z", "2026-02-17 02:30:00"),
        ],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_where_clocks_change(change):
    """S529: proves firings over a change of the clock, with what each run is told of it,
    and none lost or doubled.
    """
    start, rule, due = CHANGES[change]
    found = testing.run(functools.partial(followed, rule, 3.0), start=instant(start))
    if "Morocco" in change and "fold" not in found[0][1]:
        due = [(due[0][0], due[0][1].removesuffix(" fold")), *due[1:]]
    assert found == due


@at_start("2027-12-01T00:00:00Z")
async def test_month_days_are_clamped_and_do_not_drift():
    """S517: proves the 31st over a leap year: 29 February, and the 31st again in March."""
    workflow = job()
    async with open_engine("memory:", workflow) as engine:
        await engine.schedule(workflow, every=Recurrence.monthly(31, "09:00", "Europe/Berlin"), id="s")
        await trio.sleep(15 * 31 * DAY)
        due = expected(
            Rule(is_day_of_month(31), (time(9),)),
            ZoneInfo("Europe/Berlin"),
            datetime(2027, 12, 1, tzinfo=UTC),
            datetime(2027, 12, 1, tzinfo=UTC) + timedelta(days=15 * 31),
        )
        runs = await all_runs(engine)
        assert fired(runs, "s") == [(e.at, e.local, e.gap, e.fold) for e in due]
        days = [datetime.fromisoformat(local).date() for _, local, *_ in fired(runs, "s")]
        assert date(2028, 2, 29) in days
        assert date(2029, 2, 28) in days
        assert date(2028, 3, 31) in days


@in_virtual_time
async def test_jitter_puts_firings_off_and_says_so():
    """Proves that a firing comes up to the jitter late, at the time that `next_at` tells,
    for its own occurrence.
    """
    workflow = job()
    async with open_engine("memory:", workflow) as engine:
        made = await engine.schedule(workflow, every=Recurrence.every(HOUR), id="s", jitter=600)
        await trio.sleep(10 * HOUR + 600)
        runs = await all_runs(engine)
        assert runs[0].created_at == made.next_at
        late = [offset - HOUR * (place + 1) for place, offset in enumerate(offsets(runs))]
        assert len(runs) == 10
        assert all(0 <= each <= 600 for each in late)
        assert len({round(each) for each in late}) > 5
        assert [run.scheduled.at for run in runs if run.scheduled] == [START.add(hours=n) for n in range(1, 11)]


@in_virtual_time
async def test_a_schedule_costs_a_handful_of_store_calls_a_firing():
    """S321, S322,
    S323: proves that nothing polls on a store of one's own: a month of one schedule is 30 x 5 calls.
    """

    class Counted(MemoryStore):
        calls = 0

        async def write(self, batch: Any) -> Any:
            Counted.calls += 1
            return await super().write(batch)

        async def sides(self, *args: Any, **kwargs: Any) -> Any:
            Counted.calls += 1
            return await super().sides(*args, **kwargs)

        async def next_due(self, routes: Any) -> Any:
            Counted.calls += 1
            return await super().next_due(routes)

    workflow = job()
    async with open_engine(Counted(), workflow) as engine:
        await trio.sleep(YEAR)
        assert Counted.calls < 20
        Counted.calls = 0
        await engine.schedule(workflow, every=Recurrence.daily("12:00", "UTC"), id="s")
        await trio.sleep(30 * DAY)
        assert await engine.count(status="done") == 30
        assert Counted.calls <= 30 * 10


# --- what was missed -----------------------------------------------------------------------------------------


async def after_downtime(hours: float, **options: Any) -> tuple[list[float], Schedule]:
    """What fires when a worker comes back after so many hours, of a schedule of every hour."""
    workflow, store = job(), MemoryStore()
    async with open_engine(store, workflow) as engine:
        await engine.schedule(workflow, every=Recurrence.every(HOUR, **options), id="s")
    await trio.sleep(hours * HOUR)
    async with open_engine(store, workflow) as engine:
        await idle()
        runs = await all_runs(engine)
        due = sorted((run.scheduled.at - START).total("hours") for run in runs if run.scheduled)
        return due, await engine.schedules.get("s")


@pytest.mark.parametrize(
    ("hours", "options", "due", "missed"),
    [
        (10.5, {}, [], 10),
        (10.5, {"catch_up": 3}, [8, 9, 10], 7),
        (10.5, {"catch_up": 30}, list(range(1, 11)), 0),
        (10.01, {}, [10], 9),
        (10.01, {"catch_up": 1}, [9, 10], 8),
        (10.5, {"misfire_grace": 3 * HOUR}, [8, 9, 10], 7),
        (10.5, {"misfire_grace": 3 * HOUR, "catch_up": 1}, [7, 8, 9, 10], 6),
        (10.5, {"catch_up": 4, "count": 2}, [7, 8], 6),
        (10.5, {"catch_up": 3, "until": START.add(hours=5)}, [3, 4, 5], 2),
        (87_600.5, {"catch_up": 2}, [87_599, 87_600], 87_598),
    ],
)
@in_virtual_time
async def test_what_was_missed(hours, options, due, missed):
    """Proves which firings are made up after downtime, ten years of it too, that the rest counts as missed."""
    found, schedule = await after_downtime(hours, **options)
    assert found == due
    assert (schedule.fired, schedule.missed) == (len(due), missed)


@in_virtual_time
async def test_clients_never_fire():
    """Proves that an engine without a worker fires nothing, and that the next worker does."""
    workflow, store = job(), MemoryStore()
    async with open_engine(store, workflow, worker=False) as client:
        await client.schedule(workflow, every=Recurrence.every(HOUR), id="s")
        await trio.sleep(HOUR + 10)
        assert await client.count() == 0
        async with open_engine(store, workflow):
            await idle()
            assert offsets(await all_runs(client)) == [HOUR + 10]
            await trio.sleep(HOUR)
            assert await client.count() == 2


@in_virtual_time
async def test_a_worker_without_the_workflow_leaves_it_to_those_who_have_it():
    """Proves that such a worker writes nothing, looks no more than once, and that one with the code fires later."""
    workflow, store = job(), MemoryStore()
    async with open_engine(store, workflow, worker=False) as client:
        await client.schedule(workflow, every=Recurrence.every(HOUR), id="s")
        async with open_engine(store, one_step(work_of_others)) as other:
            await trio.sleep(HOUR + 1)
            side = (await store.sides(SCHEDULES))[0]
            assert (side.revision, await client.count()) == (1, 0)
            handle = await other.schedules.run_now("s")
            async with open_engine(store, workflow):
                await idle()
                assert (await handle.get()).status == "done"
                assert await client.count() == 2
            with pytest.raises(WorkflowNotFound):
                await other.schedules.update("s", input=3)


async def work_of_others(_ctx: Context) -> None: ...


@in_virtual_time
async def test_the_highest_version_that_a_worker_has_is_fired_unless_one_is_named():
    """Proves that a deploy moves a schedule to the new version, and that one that names its version stays there."""
    store = MemoryStore()
    async with open_engine(store, job(version="1.0.0")) as engine:
        await engine.schedule("job", every=Recurrence.every(HOUR), id="moves")
        await engine.schedule("job", every=Recurrence.every(HOUR), id="stays", version="1.0.0")
        with pytest.raises(WorkflowNotFound):
            await engine.schedule("job", every=Recurrence.every(HOUR), version="3")
    async with open_engine(store, job(version="10.0.0"), job(version="9.0.0"), job(version="1.0.0")) as engine:
        await engine.schedule("job", every=Recurrence.every(HOUR), id="moves")
        await trio.sleep(1.5 * HOUR)
        versions = {run.scheduled.schedule: run.version for run in await all_runs(engine) if run.scheduled}
        assert versions == {"moves": "10.0.0", "stays": "1.0.0"}


# --- overlap -------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_overlap_allow():
    """Proves that runs of one schedule are active side by side unless it says otherwise."""
    workflow = job(seconds=2.5 * HOUR)
    async with open_engine("memory:", workflow) as engine:
        await engine.schedule(workflow, every=Recurrence.every(HOUR), id="s")
        await trio.sleep(3.2 * HOUR)
        assert (await engine.stats()).by_status["waiting"] == 3


@in_virtual_time
async def test_overlap_skip():
    """S531: proves that a firing is left out and counted while a run of before has not settled, and none after."""
    workflow = job(seconds=2.5 * HOUR)
    async with open_engine("memory:", workflow) as engine:
        await engine.schedule(workflow, every=Recurrence.every(HOUR, overlap="skip"), id="s")
        await trio.sleep(8.2 * HOUR)
        assert offsets(await all_runs(engine)) == [1 * HOUR, 4 * HOUR, 7 * HOUR]
        assert (await engine.schedules.get("s")).skipped == 5


@in_virtual_time
async def test_overlap_queue():
    """S531: proves that one firing waits for the run of before, begins as that settles,
    and later ones are left out.
    """
    workflow = job(seconds=2.5 * HOUR)
    async with open_engine("memory:", workflow) as engine:
        await engine.schedule(workflow, every=Recurrence.every(HOUR, overlap="queue"), id="s")
        await trio.sleep(3.2 * HOUR)
        waiting = await engine.schedules.get("s")
        assert (waiting.waiting, waiting.skipped) == (1, 1)
        await trio.sleep(5 * HOUR)
        runs = await all_runs(engine)
        assert offsets(runs) == [1 * HOUR, 3.5 * HOUR, 6 * HOUR]
        occurrences = [(run.scheduled.at - START).total("hours") for run in runs if run.scheduled]
        assert occurrences == [1, 2, 4]


@in_virtual_time
async def test_a_queue_survives_a_restart_and_a_deleted_run():
    """Proves that what waits goes on behind another engine,
    and when the run it waits for is deleted or cancelled.
    """
    workflow, store = job(seconds=10 * HOUR), MemoryStore()
    async with open_engine(store, workflow) as engine:
        await engine.schedule(workflow, every=Recurrence.every(HOUR, overlap="queue"), id="s")
        await trio.sleep(2.5 * HOUR)
        assert await engine.count() == 1
    async with open_engine(store, workflow) as engine:
        await idle()
        assert await engine.count() == 1
        await engine.run((await all_runs(engine))[0].id).cancel()
        await idle()
        assert [run.status for run in await all_runs(engine)] == ["cancelled", "waiting"]


@in_virtual_time
async def test_a_failed_run_is_settled():
    """Proves that a run that failed stands in nobody's way, and what is in its saga does, until that has ended."""
    workflow: Workflow[Any, Any] = Workflow("job")

    async def work(_ctx: Context) -> None: ...
    async def undo(_ctx: Context) -> None:
        await trio.sleep(1.5 * HOUR)

    async def fail(_ctx: Context) -> None:
        raise ValueError("planned")

    workflow.add_step("work", work).compensate(undo)
    workflow.add_step("fail", fail, attempts=1)
    async with open_engine("memory:", workflow) as engine:
        await engine.schedule(workflow, every=Recurrence.every(HOUR, overlap="skip"), id="s")
        await trio.sleep(4.2 * HOUR)
        assert offsets(await all_runs(engine)) == [1 * HOUR, 3 * HOUR]


# --- what people do ------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_schedule_may_be_declared_again():
    """Proves that the same schedule under the same id is that one, whatever has become of it, and no other is."""
    workflow = job()
    rule = Recurrence.daily("12:00", "Europe/Berlin")
    async with open_engine("memory:", workflow) as engine:
        first = await engine.schedule(workflow, {"a": 1}, every=rule, id="s", tags=["x"])
        await trio.sleep(2 * DAY)
        await engine.schedules.pause("s", "holiday")
        again = await engine.schedule(workflow, {"a": 1}, every=rule, id="s", tags=["x"])
        assert (again.created_at, again.fired, again.paused) == (first.created_at, 2, True)
        with pytest.raises(InvalidState, match=r"input, every differ.*update") as caught:
            await engine.schedule(workflow, {"a": 2}, every=Recurrence.every(5), id="s", tags=["x"])
        assert caught.value.action == "schedule"
        one, two = [await engine.schedule(workflow, every=rule) for _ in range(2)]
        assert one.id != two.id
        assert (await engine.schedule(workflow, every=rule, id="s", tenant="t")).created_at != first.created_at


@in_virtual_time
async def test_pause_and_unpause():
    """Proves that nothing fires in a pause, that nothing of it is made up, and that both may be repeated."""
    workflow = job()
    async with open_engine("memory:", workflow) as engine:
        await engine.schedule(workflow, every=Recurrence.every(HOUR, catch_up=50), id="s")
        await trio.sleep(1.5 * HOUR)
        for reason in ("why", "another"):
            stopped = await engine.schedules.pause("s", reason)
            assert (stopped.paused, stopped.pause_reason, stopped.next_at) == (True, "why", None)
        await trio.sleep(10 * HOUR)
        assert await engine.count() == 1
        for _ in range(2):
            goes_on = await engine.schedules.unpause("s")
            assert (goes_on.paused, goes_on.pause_reason, goes_on.next_at) == (False, None, START.add(hours=12))
        await trio.sleep(1 * HOUR)
        assert offsets(await all_runs(engine)) == [HOUR, 12 * HOUR]
        assert (await engine.schedules.get("s")).missed == 0


@in_virtual_time
async def test_run_now():
    """Proves that a run can be had at once, paused or not, and that it moves and counts nothing."""
    workflow = job(input=Job)
    async with open_engine("memory:", workflow) as engine:
        made = await engine.schedule(workflow, Job("x"), every=Recurrence.every(HOUR, count=1), id="s", tags=["t"])
        await engine.schedules.pause("s")
        await trio.sleep(60)
        handles = [await engine.schedules.run_now("s") for _ in range(2)]
        assert len({handle.id for handle in handles}) == 2
        run = await handles[0].wait()
        assert (run.status, run.input, run.tags) == ("done", Job("x"), ("t",))
        assert run.scheduled is not None
        assert (run.scheduled.at, run.scheduled.schedule) == (START.add(seconds=60), "s")
        after = await engine.schedules.unpause("s")
        assert (after.fired, after.last_at, after.last_run) == (0, None, handles[1].id)
        assert after.next_at == made.next_at
        await trio.sleep(2 * HOUR)
        assert await engine.count() == 3


@in_virtual_time
async def test_firings_of_a_debounced_workflow_name_the_run_that_they_went_into():
    """Proves that `run_now` and `last_run` give the draft that was pending, and that `skip` waits for its end."""
    flow = job(debounce=Debounce(100))
    async with open_engine("memory:", flow) as engine:
        own = engine.scoped("a")
        await own.schedule(flow, 5, every=Recurrence.every(60, overlap="skip"), id="s")
        pending = await own.start(flow, 3)
        await trio.sleep(90)
        assert (await own.schedules.get("s")).last_run == pending.id
        assert (await own.schedules.run_now("s")).id == pending.id
        await trio.sleep(40)
        schedule = await own.schedules.get("s")
        assert (schedule.last_run, schedule.fired, schedule.skipped) == (pending.id, 1, 1)
        assert [(run.id, run.input) for run in await own.find()] == [(pending.id, 5)]


@in_virtual_time
async def test_update():
    """S494: proves that a schedule is moved to another time and zone under its id, and all else can be changed."""
    workflow = job(input=Job)
    async with open_engine("memory:", workflow) as engine:
        rule = Recurrence.daily("09:00", "America/New_York", count=3)
        await engine.schedule(workflow, Job("x"), every=rule, id="s", user="u", meta={"k": 1})
        moved = await engine.schedules.update("s", every=Recurrence.daily("10:00", "America/New_York", count=1))
        assert moved.next_at == START.add(hours=15)
        moved = await engine.schedules.update("s", every=Recurrence.daily("10:00", "America/Los_Angeles", count=1))
        assert (moved.id, moved.next_at, moved.user) == ("s", START.add(hours=18), "u")
        changed = await engine.schedules.update(
            "s", input=Job("y"), jitter=5, priority=3, user=None, tags=["b"], meta=None
        )
        assert (changed.input, changed.jitter, changed.priority) == (Job("y"), 5.0, 3)
        assert (changed.user, changed.tags, changed.meta) == (None, ("b",), {})
        assert await engine.schedules.update("s") == changed
        await trio.sleep(2 * DAY)
        (run,) = await all_runs(engine)
        assert (run.input, run.priority, run.user, run.tags, run.meta) == (Job("y"), 3, None, ("b",), {})


@in_virtual_time
async def test_other_limits_count_on_and_another_rule_counts_afresh():
    """Proves what `update` makes of `count`: a firing of before counts on under the same rule alone."""
    workflow = job()
    async with open_engine("memory:", workflow) as engine:
        await engine.schedule(workflow, every=Recurrence.every(HOUR, count=3), id="s")
        await trio.sleep(1.5 * HOUR)
        assert (await engine.schedules.update("s", every=Recurrence.every(HOUR, count=1))).next_at is None
        assert (await engine.schedules.update("s", every=Recurrence.every(HOUR, count=2))).next_at is not None
        other = await engine.schedules.update("s", every=Recurrence.every(2 * HOUR, count=1))
        assert (other.next_at, other.fired) == (START.add(hours=3, minutes=30), 1)


@in_virtual_time
async def test_only_schedules_can_be_moved():
    """S495, S497: proves that every verb on an unknown id, also a run's and a deleted one's,
    is ScheduleNotFound.
    """
    workflow = job()
    async with open_engine("memory:", workflow) as engine:
        run = await engine.start(workflow, run_at=LocalTime("2030-01-01 09:00", "UTC"))
        await engine.schedule(workflow, every=Recurrence.every(HOUR), id="gone")
        await engine.schedule(workflow, every=Recurrence.every(HOUR), id="other's", tenant="t")
        await engine.schedules.delete("gone")
        for id in ("missing", run.id, "gone", "other's"):
            for verb in ("get", "pause", "unpause", "run_now", "update", "delete", "preview"):
                with pytest.raises(ScheduleNotFound) as caught:
                    await getattr(engine.schedules, verb)(id)
                assert caught.value.status == 404


@in_virtual_time
async def test_what_is_to_start_is_told_from_what_recurs():
    """S498: proves that runs that wait for their time are found as drafts with that time, and schedules apart."""
    workflow, other = job(), one_step(work_of_others)
    async with open_engine("memory:", workflow, other) as engine:
        for day in (10, 15, 20):
            await engine.start(workflow, run_at=LocalTime(f"2026-06-{day} 12:00", "UTC"))
        await engine.schedule(workflow, every=Recurrence.monthly(15, "12:00", "UTC"), id="a")
        await engine.schedule(other, every=Recurrence.monthly(16, "12:00", "UTC"), id="b")
        await engine.schedule(other, every=Recurrence.monthly(16, "12:00", "UTC"), id="c", tenant="t")
        await engine.schedules.pause("b")
        drafts = (await engine.find(status="draft", sort="created_at")).items
        low, high = instant("2026-06-14T00:00:00Z"), instant("2026-06-16T00:00:00Z")
        assert [run.due_at for run in drafts if run.due_at and low <= run.due_at <= high] == [
            instant("2026-06-15T12:00:00Z")
        ]
        assert len(drafts) == 3
        schedules = engine.schedules
        assert [s.id for s in await schedules.find()] == ["a", "b", "c"]
        assert [s.id for s in await schedules.find(workflow=other)] == ["b", "c"]
        assert [s.id for s in await schedules.find(workflow="job", paused=False)] == ["a"]
        assert [s.id for s in await schedules.find(paused=True)] == ["b"]
        assert [s.id for s in await schedules.find(tenant="t")] == ["c"]
        first = await schedules.find(limit=2)
        assert [s.id for s in first] == ["a", "b"]
        last = await schedules.find(limit=2, cursor=first.cursor)
        assert ([s.id for s in last], last.cursor) == (["c"], None)


@in_virtual_time
async def test_a_schedule_made_anew_is_another_one():
    """Proves that a deleted schedule fires no more, and that one of its id starts runs of its own, at once."""
    workflow, store = job(), MemoryStore()
    async with open_engine(store, workflow) as engine:
        await engine.schedule(workflow, 1, every=Recurrence.every(HOUR), id="s")
        await trio.sleep(1.5 * HOUR)
        await engine.schedules.delete("s")
        assert (await engine.schedules.find()).items == []
        await trio.sleep(HOUR)
        again = await engine.schedule(workflow, 2, every=Recurrence.every(HOUR), id="s")
        assert (again.fired, again.next_at) == (0, START.add(hours=3, minutes=30))
        await trio.sleep(1.5 * HOUR)
        assert [run.input for run in await all_runs(engine)] == [1, 2]
        await engine.schedules.delete("s")
        await trio.sleep(KEPT / 1000 + 1)
        assert await store.sides(SCHEDULES) == []


@in_virtual_time
async def test_preview():
    """Proves that the next occurrences are told with gap and fold, as far as they will come,
    and from now in a pause.
    """
    workflow = job()
    async with open_engine("memory:", workflow) as engine:
        await engine.schedule(workflow, every=Recurrence.daily("02:30", "Europe/Berlin", count=90), id="s")
        await trio.sleep(2.5 * DAY)
        found = await engine.schedules.preview("s", 100)
        assert len(found) == 87
        assert [each.local for each in found if each.gap] == ["2026-03-29 02:30:00"]
        await engine.schedules.pause("s")
        await trio.sleep(10 * DAY)
        assert (await engine.schedules.preview("s", 1))[0].local == "2026-01-14 02:30:00"
        assert await engine.schedules.preview("s", 0) == []


BAD: dict[str, Any] = {
    "every": {"every": "daily"},
    "catch_up": {"every": Recurrence.every(60, catch_up=10_001)},
    "jitter": {"jitter": -1},
    "id": {"id": ""},
    "priority": {"priority": 101},
    "user": {"user": ""},
    "tenant": {"tenant": ""},
    "tags": {"tags": "abc"},
    "meta": {"meta": 5},
    "input": {"input": {"cents": "many"}},
}


@pytest.mark.parametrize("field", BAD)
@in_virtual_time
async def test_what_is_malformed_is_refused_and_nothing_is_stored(field):
    """S520: proves that a bad rule or argument raises at the call, names the field, and writes nothing."""
    workflow = job(input=Job)
    arguments = {"input": Job("x"), "every": Recurrence.every(60), **BAD[field]}
    async with open_engine("memory:", workflow) as engine:
        with pytest.raises(ValidationError, match=rf"{field}\b"):
            await engine.schedule(workflow, **arguments)
        with pytest.raises(WorkflowNotFound):
            await engine.schedule("unknown", every=Recurrence.every(60))
        assert (await engine.schedules.find()).items == []
        with pytest.raises(ValidationError):
            await engine.schedules.find(limit=0)
        with pytest.raises(ValidationError):
            await engine.schedules.find(cursor="é")
        for verb in (engine.schedules.preview("s", -1), engine.schedules.pause("s", 5), engine.schedules.get("")):  # type: ignore[arg-type]  # the point
            with pytest.raises(ValidationError):
                await verb


# --- what goes wrong -----------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_firing_that_cannot_start_is_told_and_the_schedule_goes_on():
    """Proves that input which no longer fits is counted and told, at each firing, and that later ones may start."""
    store = MemoryStore()
    async with open_engine(store, job(version="1")) as engine:
        await engine.schedule("job", {"cents": "five"}, every=Recurrence.every(HOUR), id="s")
    heard: list[Any] = []
    async with open_engine(store, job(version="2", input=Job)) as engine:
        engine.on("scheduler.error", heard.append)
        await trio.sleep(2.5 * HOUR)
        broken = await engine.schedules.get("s")
        assert (broken.fired, broken.failed, broken.input) == (0, 2, {"cents": "five"})
        assert "ValidationError" in (broken.last_error or "")
        with pytest.raises(ValidationError):
            await engine.schedules.run_now("s")
        await engine.schedules.update("s", input=Job("x"))
        await trio.sleep(HOUR)
        assert (await engine.schedules.get("s")).fired == 1
    assert len(heard) == 3
    assert isinstance(heard[0], SchedulerError)
    assert (heard[0].schedule, heard[0].workflow) == ("s", "job")
    assert heard[0].occurrence_millis == START.add(hours=1).timestamp(unit="millisecond")


@in_virtual_time
async def test_a_run_of_that_id_that_is_not_ours_is_not_taken_for_it():
    """Proves that a run somebody else has started under the very id is never adopted: the firing has failed."""
    workflow = job()
    store = MemoryStore()
    async with open_engine(store, workflow) as engine:
        await engine.schedule(workflow, every=Recurrence.every(HOUR), id="s")
        doc = msgspec.msgpack.decode((await store.sides(SCHEDULES))[0].body, type=ScheduleDoc)
        run_id = run_id_of(doc, FiringDoc(at=doc.anchor + 3_600_000))
        await engine.start(workflow, "mine", run_id=run_id)
        await trio.sleep(1.5 * HOUR)
        after = await engine.schedules.get("s")
        assert (after.fired, after.failed, await engine.count()) == (0, 1, 1)


@in_virtual_time
async def test_a_schedule_that_does_not_decode_harms_no_other():
    """Proves that it is reported once, left alone, not listed, and that others fire as ever."""
    workflow, store = job(), MemoryStore()
    errors: list[Any] = []
    async with open_engine(store, workflow) as engine:
        engine.on("engine.error", errors.append)
        await store.write([PutSide(SCHEDULES, "\nbad", None, b"\x00", 1)])
        await engine.schedule(workflow, every=Recurrence.every(HOUR), id="s")
        await trio.sleep(5.5 * HOUR)
        assert (await engine.schedules.get("s")).fired == 5
        assert len(errors) == 1
        assert [s.id for s in await engine.schedules.find()] == ["s"]


@in_virtual_time
async def test_a_rule_of_a_newer_release_stays_inert():
    """S521: proves that a stored rule of an unknown kind is shown, fires nothing, and is changed by nobody here."""
    workflow, store = job(), MemoryStore()
    async with open_engine(store, workflow) as engine:
        await engine.schedule(workflow, every=Recurrence.every(HOUR), id="s")
        side = (await store.sides(SCHEDULES))[0]
        doc = msgspec.msgpack.decode(side.body)
        body = msgspec.msgpack.encode({**doc, "every": {"kind": "hourly"}})
        await store.write([PutSide(SCHEDULES, side.key, side.revision, body, side.due_at)])
        await trio.sleep(5 * HOUR)
        assert await engine.count() == 0
        assert (await engine.schedules.get("s")).every.kind == "hourly"
        with pytest.raises(InvalidState, match="newer release"):
            await engine.schedules.pause("s")
        assert (await store.sides(SCHEDULES))[0].body == body
        await engine.schedules.delete("s")


@in_virtual_time
async def test_a_run_that_was_fired_just_now_is_not_deleted():
    """Proves that runs of a schedule stay for an hour,
    so that no worker that stood still starts one of them again.
    """
    workflow = job()
    async with open_engine("memory:", workflow) as engine:
        await engine.schedule(workflow, every=Recurrence.every(HOUR, count=1), id="s")
        await engine.start(workflow)
        await trio.sleep(1.5 * HOUR)
        assert await engine.delete() == 1
        await trio.sleep(HOUR)
        assert await engine.delete() == 1
