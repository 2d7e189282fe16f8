"""Workers of several versions on one store, each with a connection of its own: on memory, SQLite and MongoDB."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio

from streamline_trio import Engine, MemoryStore, Run, Workflow, open_engine
from streamline_trio.stores.mongo import _stream
from streamline_trio.testing import crash, parked
from tests.scenarios.versioned import Context, asking, replace, unchanged, version
from tests.scenarios.worlds import passing

LEASE = 1.0
LONG = 30.0
RUNS = 12
Store = Callable[[], Any]


@pytest.fixture(params=["memory", "sqlite", "mongodb"])
def store(request, tmp_path, monkeypatch) -> Store:
    """What each engine opens to reach the same runs."""
    if request.param == "memory":
        shared = MemoryStore(exclusive=False)
        return lambda: shared
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path}/runs.db"
    monkeypatch.setattr(_stream, "PATIENCE", 0.05)
    url = request.getfixturevalue("databases").url()
    return lambda: url


def opened(store: Store, *flows: Workflow[Any, Any], **options: Any) -> AbstractAsyncContextManager[Engine]:
    return open_engine(store(), *flows, **{"lease": LEASE, "poll_interval": 0.1, **options})


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(LONG):
        while not await holds():  # noqa: ASYNC110 - it is for what no event tells of
            await trio.sleep(0.02)


def renamed(asked: list[str], driven: list[str]) -> Workflow[Any, Any]:
    """A version whose steps have other names."""

    async def migrate(run: Run) -> Run:
        asked.append(run.id)
        await trio.sleep(0.05)  # both are asked before either has committed
        steps = {"start": run.steps["first"], "approve": run.steps["ask"]}
        return replace(run, steps=steps, current_step="approve", state={"by": len(asked)})

    flow = version("2.0.0", migrate=migrate)
    passing(flow, "start")

    @flow.step
    async def approve(ctx: Context) -> Any:
        return await ctx.wait("go?")

    @flow.step
    async def end(ctx: Context) -> list[Any]:
        driven.append(ctx.run_id)
        return [ctx.output("start"), ctx.output("approve")]

    return flow


async def test_two_workers_migrate_each_run_once(store):
    """Proves that of two workers that would take the same runs over one does each, by one write, and drives it."""
    asked, driven, migrated = list[str](), list[str](), list[str]()
    async with opened(store, old := asking()) as first:
        handles = [await first.start(old) for _ in range(RUNS)]
        for handle in handles:
            await parked(handle)
    async with opened(store, worker=False) as client:
        for handle in handles:
            await client.run(handle.id).resume("yes")
        one, other = renamed(asked, driven), renamed(asked, driven)
        async with opened(store, one) as this, opened(store, other) as that:
            for engine in (this, that):
                engine.on("workflow.migrated", lambda event: migrated.append(event.run_id))
            with trio.fail_after(LONG):
                for handle in handles:
                    run = await client.run(handle.id).wait()
                    assert (run.status, run.output) == ("done", ["first", "yes"])
                    assert (run.version, run.fence, run.recoveries) == ("2.0.0", 2, 0)
    assert sorted(driven) == sorted(migrated) == sorted(handle.id for handle in handles)
    assert set(asked) == set(driven)


async def test_a_dead_worker_of_the_old_version_is_replaced(store):
    """Proves that runs of a crashed worker, parked, running or not begun, are taken over by the next version."""

    def working(number: str, migrate: Any = None) -> Workflow[Any, Any]:
        flow = version(number, migrate=migrate)

        @flow.step(attempts=1)
        async def work(ctx: Context) -> str:
            if ctx.input == "park":
                await ctx.wait("go?")
            if ctx.input == "hold" and ctx.version == "1.0.0":
                await trio.sleep_forever()
            return ctx.version

        return flow

    async with opened(store, old := working("1.0.0")) as doomed, opened(store, worker=False) as client:
        holding = [await doomed.start(old, "hold") for _ in range(3)]
        waiting = await doomed.start(old, "park")
        await parked(waiting)
        later = await doomed.start(old, "draft", delay=1.5)
        async with opened(store, working("2.0.0", unchanged)) as heir:
            await crash(doomed)
            with trio.fail_after(LONG):
                for handle in holding:
                    run = await heir.run(handle.id).wait()
                    assert (run.output, run.recoveries, run.steps["work"].attempts) == ("2.0.0", 1, 2)
                assert (await heir.run(later.id).wait()).output == "2.0.0"
            assert (await client.get(waiting.id)).version == "1.0.0", "it is not due"
            await client.run(waiting.id).resume("yes")
            with trio.fail_after(LONG):
                assert await heir.run(waiting.id).result() == "2.0.0"


async def test_a_worker_of_the_old_version_that_comes_back_is_preferred(store):
    """Proves that nothing is migrated from the moment on at which a live worker has the version again."""
    asked = list[str]()

    def migrate(run: Run) -> Run | None:
        asked.append(run.id)
        return None if len(asked) == 1 else run

    async with opened(store, old := asking()) as first:
        handles = [await first.start(old) for _ in range(2)]
        for handle in handles:
            await parked(handle)
    async with opened(store, asking("2.0.0", migrate=migrate)) as engine:
        await engine.run(handles[0].id).resume("yes")

        async def is_refused() -> bool:
            return asked == [handles[0].id]

        await until(is_refused)
        async with opened(store, asking()):
            await engine.run(handles[1].id).resume("yes")
            with trio.fail_after(LONG):
                for handle in handles:
                    assert (await engine.run(handle.id).wait()).version == "1.0.0"
    assert asked == [handles[0].id]


async def test_what_nobody_can_run_is_released_and_waits(store):
    """Proves that runs of a dead worker whose code nobody has fall due, are counted, and go on with the code."""

    def holding() -> Workflow[Any, Any]:
        flow: Workflow[Any, Any] = Workflow("held")

        @flow.step(attempts=1)
        async def hold(ctx: Context) -> int:
            if ctx.attempt == 1:
                await trio.sleep_forever()
            return ctx.attempt

        return flow

    async with opened(store, flow := holding()) as doomed:
        handles = [await doomed.start(flow) for _ in range(3)]
        async with opened(store, asking()) as other:
            await crash(doomed)

            async def are_released() -> bool:
                return [(one.workflow, one.runs) for one in (await other.stats()).unclaimable] == [("held", 3)]

            await until(are_released)
            async with opened(store, holding()) as heir:
                with trio.fail_after(LONG):
                    for handle in handles:
                        run = await heir.run(handle.id).wait()
                        assert (run.status, run.output, run.recoveries) == ("done", 2, 1)
            assert (await other.stats()).unclaimable == ()


async def test_two_workers_release_a_run_once(store):
    """Proves that workers which find the same dead one count the recovery of each of its runs once."""
    flow: Workflow[Any, Any] = Workflow("held")

    @flow.step
    async def hold(_ctx: Context) -> None:
        await trio.sleep_forever()

    async with opened(store, flow) as doomed:
        handles = [await doomed.start(flow) for _ in range(RUNS)]
        async with opened(store, asking()) as one, opened(store, asking()) as _other:
            await crash(doomed)

            async def are_released() -> bool:
                return sum(missing.runs for missing in (await one.stats()).unclaimable) == RUNS

            await until(are_released)
            await trio.sleep(2 * LEASE)
            for handle in handles:
                run = await one.get(handle.id)
                assert (run.status, run.lease, run.recoveries) == ("running", None, 1)
