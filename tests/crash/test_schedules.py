"""Schedules under every mishap: workers that die at any write, stores that fail at any call, processes killed."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from streamline_trio import (
    Engine,
    MemoryStore,
    Recurrence,
    Retention,
    ScheduleNotFound,
    SqliteStore,
    StepContext,
    Store,
    StoreUnavailable,
    Workflow,
    open_engine,
)
from streamline_trio._core.schedules import SCHEDULES
from streamline_trio._core.store import Insert, PutSide
from streamline_trio.testing import CrashAt, FailCall, LoseLeaseAt, Mishap, WrappedStore, crash, sweep
from tests.crash.faulty_store import ParkingStore
from tests.crash.scenes import virtual
from tests.crash.worker_process import Ledger, Site, worker_process, workflows

STORES: dict[str, Callable[[], Store]] = {
    "memory": MemoryStore,
    "shared memory": lambda: MemoryStore(exclusive=False),
}
MISHAPS: dict[str, Sequence[type[Mishap]]] = {
    "memory": [FailCall, CrashAt, LoseLeaseAt],
    "shared memory": [CrashAt, LoseLeaseAt],
}
"""Where workers poll, the calls that could fail are too many."""
SELDOM: dict[str, Any] = {"poll_interval": 20.0, "lease": 60.0}
Context = StepContext[Any, Any]


def job(seconds: float = 0.0) -> Workflow[Any, Any]:
    workflow: Workflow[Any, Any] = Workflow("job")

    @workflow.step
    async def work(ctx: Context) -> None:
        if seconds:
            await ctx.sleep(seconds)

    return workflow


async def fired(engine: Engine) -> list[tuple[float, str]]:
    """The occurrence of each run, in seconds from the first, and how the run stands."""
    runs = (await engine.find(sort="created_at")).items
    found = sorted((run.scheduled.at, run.status) for run in runs if run.scheduled is not None)
    return [((at - found[0][0]).total("seconds"), status) for at, status in found]


@pytest.mark.parametrize(
    ("kind", "overlap"), [("memory", "allow"), ("memory", "skip"), ("memory", "queue"), ("shared memory", "allow")]
)
def test_each_firing_is_one_run_whatever_goes_wrong(kind, overlap):
    """Proves exactly one run for each firing when a worker dies at any write,
    or the store fails before or after any.
    """
    workflow = job(1.0)

    async def scenario(engine: Engine) -> object:
        await engine.schedule(workflow, every=Recurrence.every(100, count=2, overlap=overlap), id="s")
        await trio.sleep(290)
        over = await engine.schedules.get("s")
        return await fired(engine), over.fired, over.missed, over.skipped, over.failed, over.next_at

    played = sweep(scenario, workflow, mishaps=MISHAPS[kind], store=STORES[kind], **SELDOM)
    assert {type(mishap) for mishap in played} == set(MISHAPS[kind])


def test_a_run_that_waits_for_the_one_before_survives_everything():
    """Proves that of two occurrences, of which the second waits, each has its run, one after the other, always."""
    workflow = job(150.0)

    async def scenario(engine: Engine) -> object:
        await engine.schedule(workflow, every=Recurrence.every(100, count=2, overlap="queue"), id="s")
        await trio.sleep(600)
        runs = sorted((await engine.find()).items, key=lambda run: run.created_at)
        assert runs[0].ended_at is not None
        assert runs[1].created_at >= runs[0].ended_at
        return await fired(engine), (await engine.schedules.get("s")).fired

    sweep(scenario, workflow, mishaps=MISHAPS["memory"], store=MemoryStore, **SELDOM)


def test_what_is_made_up_is_made_up_once():
    """Proves that three missed firings of a pause in work become three runs, and no more,
    whoever dies meanwhile.
    """
    workflow = job()

    async def scenario(engine: Engine) -> object:
        rule = Recurrence.every(10, catch_up=3, misfire_grace=1, until=(await now(engine)).add(seconds=100))
        await engine.schedule(workflow, every=rule, id="s")
        await engine.schedules.pause("s")
        await engine.schedules.unpause("s")
        await trio.sleep(200)
        over = await engine.schedules.get("s")
        return over.fired + over.missed, len(await fired(engine)) == over.fired

    sweep(scenario, workflow, mishaps=[CrashAt], store=MemoryStore, **SELDOM)


async def now(engine: Engine) -> Any:
    handle = await engine.start("job")
    run = await handle.get()
    return run.created_at


@pytest.mark.parametrize("kind", STORES)
def test_run_now_is_one_run_whatever_goes_wrong(kind):
    """Proves that a run that was asked for is started once, by whomever, if the call returned,
    also on failing calls.
    """
    workflow = job()

    async def scenario(engine: Engine) -> object:
        await engine.schedule(workflow, every=Recurrence.daily("12:00", "UTC"), id="s")
        handle = await engine.schedules.run_now("s")
        assert (await handle.wait(60)).status == "done"
        await trio.sleep(100)
        return len(await fired(engine)), (await engine.schedules.get("s")).last_run == handle.id

    sweep(scenario, workflow, mishaps=MISHAPS[kind], store=STORES[kind], **SELDOM)


def test_on_sqlite_too(tmp_path):
    """Proves the same on files, with real time: one run for each of two firings, whatever happens to the worker."""
    workflow, numbers = job(), iter(range(10_000))

    async def scenario(engine: Engine) -> object:
        await engine.schedule(workflow, every=Recurrence.every(0.05, count=2), id="s")
        with trio.fail_after(20):
            while len(await fired(engine)) < 2 or (await engine.schedules.get("s")).fired < 2:  # noqa: ASYNC110 - other workers write it
                await trio.sleep(0.02)
        return await engine.count(), (await engine.schedules.get("s")).missed

    sweep(
        scenario,
        workflow,
        mishaps=[CrashAt],
        store=lambda: SqliteStore(tmp_path / f"{next(numbers)}.db"),
        lease=0.5,
    )


# --- at chosen points ----------------------------------------------------------------------------------------


def of_a_run(batch: list[Any]) -> bool:
    return any(isinstance(write, Insert) for write in batch)


def of_a_schedule(batch: list[Any]) -> bool:
    return any(isinstance(write, PutSide) and write.kind == SCHEDULES for write in batch)


@virtual
async def test_a_worker_that_dies_between_decision_and_start_is_replaced_within_a_lease():
    """Proves that a firing that was decided and not started is started by the next worker, for its occurrence."""
    workflow, inner = job(), MemoryStore()
    store = ParkingStore(inner)
    async with open_engine(store, workflow, lease=9.0) as first:
        await first.schedule(workflow, every=Recurrence.every(100), id="s")
        store.close(of_a_run)
        with trio.fail_after(200):
            await store.parked.wait()
        await crash(first)
        store.release()
    async with open_engine(inner, workflow, lease=9.0) as second:
        assert await second.count() == 0
        await trio.sleep(10)
        assert await fired(second) == [(0.0, "done")]
        await trio.sleep(100)
        assert await fired(second) == [(0.0, "done"), (100.0, "done")]
        assert (await second.schedules.get("s")).fired == 2


class Noting(WrappedStore):
    """What became of a firing cannot be written."""

    inserted = False

    async def around(self, name: str, args: tuple[Any, ...], act: Any) -> Any:
        if name == "write" and self.inserted and of_a_schedule(args[0]):
            raise StoreUnavailable("no answer")
        self.inserted = self.inserted or (name == "write" and of_a_run(args[0]))
        return await act()


@pytest.mark.parametrize("exclusive", [True, False])
@virtual
async def test_a_run_is_kept_until_its_firing_is_noted(exclusive):
    """Proves that retention leaves the run of a firing that a dead worker could not note, however old it is."""
    calls: list[str] = []
    workflow: Workflow[Any, Any] = Workflow("job")

    @workflow.step
    async def work(ctx: Context) -> None:
        calls.append(ctx.run_id)

    inner = MemoryStore(exclusive=exclusive)
    async with open_engine(Noting(inner), workflow) as first:
        await first.schedule(workflow, every=Recurrence.every(100, count=1), id="s")
        await trio.sleep(110)
        while await fired(first) != [(0.0, "done")]:  # noqa: ASYNC110 - once the store has let it through
            await trio.sleep(1)
        await crash(first)
    done = len(calls)
    await trio.sleep(2 * 3600)
    kept = Retention(done=60)
    async with open_engine(inner, workflow, retention=kept) as one, open_engine(inner, workflow, retention=kept):
        await trio.sleep(600)
        assert (await one.schedules.get("s")).fired == 1
        assert await one.count() == 0, "then it goes"
        assert len(calls) == done


@virtual
async def test_a_firing_that_is_taken_up_again_does_not_begin_its_run_again():
    """Proves that a worker that finds the run of a dead one after a doubtful insert adopts it and drives none."""
    calls: list[str] = []
    workflow: Workflow[Any, Any] = Workflow("job")

    @workflow.step
    async def work(ctx: Context) -> None:
        calls.append(ctx.run_id)

    class Doubtful(WrappedStore):
        """The first insert of a run has no answer."""

        failed = False

        async def around(self, name: str, args: tuple[Any, ...], act: Any) -> Any:
            if name == "write" and of_a_run(args[0]) and not self.failed:
                self.failed = True
                raise StoreUnavailable("no answer")
            return await act()

    inner = MemoryStore()
    async with open_engine(Noting(inner), workflow, lease=9.0) as first:
        await first.schedule(workflow, every=Recurrence.every(100, count=1), id="s")
        await trio.sleep(110)
        assert await fired(first) == [(0.0, "done")]
        await crash(first)
    doubtful = Doubtful(inner)
    async with open_engine(doubtful, workflow, lease=9.0) as second:
        await trio.sleep(30)
        assert doubtful.failed
        assert (await second.schedules.get("s")).fired == 1
        assert await fired(second) == [(0.0, "done")]
        assert len(calls) == 1


@virtual
async def test_an_engine_that_leaves_finishes_the_firing_it_has_begun():
    """Proves that a firing under way when the engine is left has its run and is noted,
    so that nobody has to wait.
    """
    workflow, inner = job(), MemoryStore()
    store = ParkingStore(inner)
    async with open_engine(inner, workflow, worker=False) as client:
        async with trio.open_nursery() as nursery:
            leave = trio.Event()

            async def engine() -> None:
                async with open_engine(store, workflow):
                    await leave.wait()

            nursery.start_soon(engine)
            await client.schedule(workflow, every=Recurrence.every(100, count=1), id="s")
            store.close(of_a_schedule)
            with trio.fail_after(200):
                await store.parked.wait()
            leave.set()
            await trio.testing.wait_all_tasks_blocked()
            store.release()
        assert (await client.schedules.get("s")).fired == 1
        assert len(await fired(client)) == 1


@virtual
async def test_a_late_worker_does_not_bring_back_what_was_deleted():
    """Proves that a worker that stood still over a deletion of its schedule, made anew since,
    starts no run of it.
    """
    workflow, inner = job(), MemoryStore()
    store = ParkingStore(inner)
    async with open_engine(store, workflow) as late, open_engine(inner, workflow, worker=False) as client:
        await client.schedule(workflow, every=Recurrence.every(100), id="s")
        store.close(of_a_schedule)
        with trio.fail_after(200):
            await store.parked.wait()
        await client.schedules.delete("s")
        await client.schedule(workflow, "new", every=Recurrence.every(1000), id="s")
        store.release()
        await trio.sleep(500)
        assert await late.count() == 0
        await trio.sleep(600)
        assert [run.input for run in await late.find()] == ["new"]


@virtual
async def test_a_store_that_is_away_while_schedules_fall_due():
    """Proves that an outage over a firing delays it, that it fires once the store answers,
    and that it counts once.
    """
    workflow = job()

    class Away(MemoryStore):
        away = False

        async def sides(self, *args: Any, **kwargs: Any) -> Any:
            from streamline_trio import StoreUnavailable

            if self.away and args[:1] == (SCHEDULES,):
                raise StoreUnavailable("planned")
            return await super().sides(*args, **kwargs)

    store = Away()
    async with open_engine(store, workflow) as engine:
        await engine.schedule(workflow, every=Recurrence.every(100), id="s")
        await trio.sleep(95)
        store.away = True
        await trio.sleep(30)
        assert await engine.count() == 0
        store.away = False
        await trio.sleep(10)
        assert len(await fired(engine)) == 1
        with pytest.raises(ScheduleNotFound):
            await engine.schedules.get("other")


# --- processes -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("seed", [1])
async def test_processes_that_fire_are_killed_at_any_instant(tmp_path: Path, seed: int):
    """Proves that of every firing there is one run, and of each run each step, over SIGKILLs of all who fire."""
    site, ledger, chance = Site(f"sqlite:///{tmp_path}/runs.db", tmp_path), Ledger(tmp_path), random.Random(seed)
    options: dict[str, Any] = {"lease": 1.0, "poll_interval": 0.1}
    async with open_engine(site.url, *workflows(ledger), worker=False, **options) as client:
        for number in range(3):
            rule = Recurrence.every(0.2, count=20, misfire_grace=600)
            await client.schedule("chain", every=rule, id=f"s{number}")
        for _ in range(3):
            async with worker_process(site, **options) as one, worker_process(site, **options) as other:
                await trio.sleep(chance.uniform(0.0, 0.5))
                one.kill()
                await trio.sleep(chance.uniform(0.0, 0.3))
                other.kill()
        async with worker_process(site, **options), worker_process(site, **options):
            with trio.fail_after(60):
                while await client.count(status="done") < 60 or not await is_over(client):  # noqa: ASYNC110 - by others
                    await trio.sleep(0.1)
        assert await client.count() == 60
        occurrences = Counter(
            (run.scheduled.schedule, run.scheduled.at)
            for run in await client.find(limit=100)
            if run.scheduled is not None
        )
        assert set(occurrences.values()) == {1}
        assert len(occurrences) == 60


async def is_over(engine: Engine) -> bool:
    return all(schedule.fired == 20 and schedule.next_at is None for schedule in await engine.schedules.find())
