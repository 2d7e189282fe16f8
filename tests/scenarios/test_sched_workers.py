"""Schedules with several workers on one store, each with a connection of its own: memory, SQLite and MongoDB."""

from collections import Counter
from functools import partial
from typing import Any

import pytest
import trio

from streamline_trio import InvalidState, Recurrence, ScheduleNotFound, Workflow, open_engine
from tests.scenarios.test_several_workers import all_at_once, opened, store, until

__all__ = ["store"]

WORKERS = 4


def job(calls: list[str]) -> Workflow[Any, Any]:
    workflow: Workflow[Any, Any] = Workflow("job")

    @workflow.step
    async def work(ctx: Any) -> None:
        calls.append(ctx.run_id)
        await trio.sleep(0.01)

    return workflow


async def test_each_firing_is_one_run(store):
    """S502: proves that of four workers one starts the run of each firing, also of schedules that fire at once."""
    calls: list[str] = []
    workflow = job(calls)
    async with opened(store, workflow, count=WORKERS) as engines:
        rule = Recurrence.every(0.25, count=4, misfire_grace=600)
        await all_at_once(*(partial(e.schedule, workflow, every=rule, id=f"s{n}") for n, e in enumerate(engines)))

        async def over() -> bool:
            schedules = await engines[0].schedules.find()
            return (
                all(schedule.fired == 4 for schedule in schedules) and await engines[0].count(status="done") == 16
            )

        await until(over)
        runs = (await engines[0].find(limit=100)).items
    fired = Counter((run.scheduled.schedule, run.scheduled.at) for run in runs if run.scheduled is not None)
    assert (len(fired), set(fired.values())) == (16, {1})
    assert set(Counter(calls).values()) == {1}


async def test_a_schedule_declared_by_every_engine_is_one(store):
    """Proves that programs that declare the same schedule at once make one,
    and of two unlike ones one is refused.
    """
    workflow = job([])
    async with opened(store, workflow, count=WORKERS) as engines:
        rule = Recurrence.daily("12:00", "UTC")
        made = await all_at_once(*(partial(e.schedule, workflow, every=rule, id="same") for e in engines))
        assert len({schedule.created_at for schedule in made}) == 1
        made = await all_at_once(
            *(partial(e.schedule, workflow, n, every=rule, id="s") for n, e in enumerate(engines))
        )
        assert sum(isinstance(each, InvalidState) for each in made) == WORKERS - 1
        assert len((await engines[0].schedules.find()).items) == 2


async def test_verbs_at_once_all_take_effect(store):
    """Proves that pause, update and run_now from four engines at once lose nothing of each other."""
    workflow = job([])
    async with opened(store, workflow, count=WORKERS) as engines:
        await engines[0].schedule(workflow, every=Recurrence.daily("12:00", "UTC"), id="s")
        outcomes = await all_at_once(
            partial(engines[0].schedules.pause, "s", "why"),
            partial(engines[1].schedules.update, "s", tags=["x"]),
            partial(engines[2].schedules.update, "s", input=5),
            *(partial(e.schedules.run_now, "s") for e in engines),
        )
        for handle in outcomes[3:]:
            assert (await handle.wait()).status == "done"
        assert len({handle.id for handle in outcomes[3:]}) == WORKERS
        now = await engines[3].schedules.get("s")
        assert (now.paused, now.tags, now.input) == (True, ("x",), 5)
        assert await engines[0].count() == WORKERS


async def test_nothing_fires_after_a_pause_or_a_deletion_has_returned(store):
    """Proves that once pause returned no later occurrence starts, whichever worker was about to,
    nor after delete.
    """
    workflow = job([])
    async with opened(store, workflow, count=WORKERS) as engines:
        await engines[0].schedule(workflow, every=Recurrence.every(0.05), id="s")
        await until(lambda: has_fired(engines[0], 3))
        paused = await engines[1].schedules.pause("s")
        await trio.sleep(0.3)
        runs = (await engines[0].find(limit=1000)).items
        assert all(run.scheduled and run.scheduled.at <= paused.updated_at for run in runs)
        count = len(runs)
        await engines[2].schedules.unpause("s")
        await until(lambda: has_fired(engines[0], count + 2))
        await engines[3].schedules.delete("s")
        await trio.sleep(0.3)
        left = await engines[0].count()
        await trio.sleep(0.3)
        assert await engines[0].count() == left
        with pytest.raises(ScheduleNotFound):
            await engines[0].schedules.get("s")


async def has_fired(engine: Any, times: int) -> bool:
    return bool(await engine.count() >= times)


async def test_a_queue_is_one_after_the_other_among_workers(store):
    """S531: proves that with overlap "queue" no two runs of a schedule are ever active together,
    on four workers.
    """
    active = 0
    most = 0
    workflow: Workflow[Any, Any] = Workflow("job")

    @workflow.step
    async def work(_ctx: Any) -> None:
        nonlocal active, most
        active += 1
        most = max(most, active)
        await trio.sleep(0.1)
        active -= 1

    async with opened(store, workflow, count=WORKERS) as engines:
        rule = Recurrence.every(0.05, overlap="queue", count=5, misfire_grace=60)
        await engines[0].schedule(workflow, every=rule, id="s")

        async def over() -> bool:
            return (await engines[0].schedules.get("s")).fired == 5

        await until(over)
    assert most == 1


async def test_what_another_process_schedules_is_seen(store):
    """Proves that a worker fires what a client on a connection of its own has scheduled, moved and unpaused."""
    workflow = job([])
    async with (
        opened(store, workflow, count=1) as (worker,),
        open_engine(store(), workflow, worker=False) as client,
    ):
        await client.schedule(workflow, every=Recurrence.every(3600), id="s")
        await client.schedules.pause("s")
        await client.schedules.update("s", every=Recurrence.every(0.1, count=1))
        await client.schedules.unpause("s")
        await until(lambda: has_fired(worker, 1))
