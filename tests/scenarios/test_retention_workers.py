"""Retention and bulk verbs where several workers share a store: on memory, SQLite and MongoDB."""

from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
import trio

from streamline_trio import (
    Branch,
    InvalidState,
    Retention,
    RunNotFound,
    StepContext,
    Workflow,
    open_engine,
)
from streamline_trio._core.store import Delete
from streamline_trio._runtime.store_urls import store_from
from tests.crash.faulty_store import ParkingStore
from tests.scenarios.test_several_workers import all_at_once, opened, until
from tests.scenarios.test_several_workers import store as store  # noqa: PLC0414 - the fixture
from tests.scenarios.worlds import one_step

LONG = 60.0
Context = StepContext[Any, Any]


async def _step(ctx: Context) -> Any:
    if ctx.input == "fails":
        raise ValueError("planned")
    return ctx.input


flow = one_step(_step, attempts=1)


async def test_three_workers_remove_each_run_once(store):
    """S420: proves that with several workers each settled run goes once, and nothing else does."""
    large = "x" * 400_000
    async with opened(store, flow) as engines:
        for number in range(30):
            await (await engines[0].start(flow, large if number % 10 == 0 else number)).wait()
        waits = await engines[0].start(flow, 1, delay=1000)
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(
                open_engine(store(), flow, lease=1, poll_interval=0.1, retention=Retention(done=0.1))
            )
            for _ in range(3)
        ]

        async def are_gone() -> bool:
            return await engines[0].count(status="done") == 0

        with trio.fail_after(LONG):
            await until(are_gone)
        assert [run.id for run in await engines[0].find()] == [waits.id]
        stats = [await engine.stats() for engine in engines]
        assert sum(one.expired for one in stats) == 30


@pytest.mark.parametrize("first", ["retry", "removal"])
async def test_a_run_that_is_retried_while_it_is_swept_is_whole_or_gone(store, first):
    """Proves that a retry that races removal wins, and the run goes on, or finds no run: never half of one."""
    parking = ParkingStore(store_from(store()))
    is_broken = True

    async def step(_ctx: Context) -> int:
        if is_broken:
            raise ValueError("planned")
        return 7

    work = one_step(step, attempts=1)
    kept = Retention(failed=0.1)
    async with (
        open_engine(parking, work, lease=1, poll_interval=0.1, retention=kept) as sweeper,
        open_engine(store(), work, worker=False) as client,
    ):
        parking.close(lambda batch: any(isinstance(write, Delete) for write in batch))
        run = client.run((await sweeper.start(work)).id)
        with trio.fail_after(LONG):
            await parking.parked.wait()
            is_broken = False
            if first == "retry":
                await run.retry()
                parking.release()
                assert await run.result() == 7
            else:
                parking.release()

                async def is_gone() -> bool:
                    return await client.count() == 0

                await until(is_gone)
                with pytest.raises(RunNotFound):
                    await run.retry()


async def test_a_parent_that_is_retried_while_it_is_swept_has_its_branches(store):
    """Proves that a failed parent that is taken up in the last moment still reads every branch it joined."""
    is_broken = True

    async def parent_step(ctx: Context) -> Any:
        joined = await ctx.join({str(number): Branch(flow, number) for number in range(4)})
        if is_broken:
            raise ValueError("planned")
        return [branch.output for branch in joined.branches.values()]

    parent: Workflow[Any, Any] = Workflow("parent")
    parent.add_step("join", parent_step, attempts=1)
    parking = ParkingStore(store_from(store()))
    kept = Retention(failed=0.3, done=0.1)
    async with (
        open_engine(parking, parent, flow, lease=1, poll_interval=0.1, retention=kept) as sweeper,
        open_engine(store(), parent, flow, worker=False) as client,
    ):
        parking.close(lambda batch: any(isinstance(write, Delete) for write in batch))
        run = await sweeper.start(parent)
        with trio.fail_after(LONG):
            await parking.parked.wait()
            assert await client.count(workflow="flow") == 4, "none of them was asked to go before its parent"
            is_broken = False
            await client.run(run.id).retry()
            parking.release()
            assert await client.run(run.id).result() == [0, 1, 2, 3]


@pytest.mark.parametrize("verb", ["retry_all", "cancel_all"])
async def test_bulk_verbs_of_several_engines_at_once(store, verb):
    """Proves that engines that do the same to all runs at once do it to each run once."""
    calls = Counter[str]()
    is_broken = verb == "retry_all"

    async def step(ctx: Context) -> Any:
        calls[ctx.run_id] += 1
        if is_broken:
            raise ValueError("planned")
        return await ctx.wait("people") if verb == "cancel_all" else 1

    work = one_step(step, attempts=1)
    async with opened(store, work, count=3) as engines:
        runs = [await engines[number % 3].start(work) for number in range(15)]
        first = "failed" if is_broken else "waiting"

        async def all_are(status: str) -> bool:
            return await engines[0].count(status=status) == len(runs)  # type: ignore[arg-type]  # a status

        await until(partial(all_are, first))
        is_broken = False
        counts = await all_at_once(*(getattr(engine, verb) for engine in engines))
        assert not any(isinstance(count, InvalidState) for count in counts)
        assert sum(counts) >= len(runs)
        await until(partial(all_are, "done" if verb == "retry_all" else "cancelled"))
    assert set(calls.values()) == ({2} if verb == "retry_all" else {1})
