"""Verbs on many runs: exactly those that match, in batches, whatever else happens meanwhile."""

# ruff: noqa: ARG002 - what happens around a call has the parameters of its protocol

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio

from streamline_trio import (
    BulkProgress,
    EngineError,
    MemoryStore,
    StepContext,
    StoreUnavailable,
    ValidationError,
    Workflow,
    open_engine,
)
from streamline_trio._core.store import PutSide, SideDoc, Update
from streamline_trio._runtime import bulk
from streamline_trio.testing import crash
from streamline_trio.testing._wrapped_store import Act, WrappedStore
from tests.crash.faulty_store import BrokenStore, ParkingStore
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, one_step

Context = StepContext[Any, Any]


class World:
    """A workflow that fails as long as the world is broken, and waits for people otherwise."""

    def __init__(self) -> None:
        self.is_broken = True
        self.calls: list[str] = []
        self.flow: Workflow[Any, Any] = one_step(self._step, attempts=1)

    async def _step(self, ctx: Context) -> Any:
        self.calls.append(ctx.run_id)
        if self.is_broken:
            raise ValueError("planned")
        return await ctx.wait("people") if ctx.input == "waits" else ctx.input


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def in_threes(monkeypatch) -> None:
    """So that a few runs make several batches."""
    monkeypatch.setattr(bulk, "_AT_ONCE", 3)


@in_virtual_time
async def test_what_matches_is_cancelled_and_nothing_else(world, in_threes):
    """Proves that `cancel_all` takes drafts, runs that are driven and parked ones, by any filters."""
    world.is_broken = False
    async with open_engine("memory:", world.flow) as engine:
        for number in range(4):
            await engine.start(world.flow, "waits", tags=["mine"])
            await engine.start(world.flow, "waits", tags=["theirs"])
            await engine.start(world.flow, number, delay=1000, tags=["mine"])
            await engine.start(world.flow, number, tags=["mine"])
        await idle()
        told: list[BulkProgress] = []
        assert await engine.cancel_all(tags=["mine"], reason="enough", on_progress=told.append) == 8
        assert [(one.seen, one.done) for one in told] == [(3, 3), (6, 6), (8, 8)]
        assert {run.cancel_reason for run in await engine.find(status="cancelled")} == {"enough"}
        assert await engine.count(status="waiting", tags=["theirs"]) == 4
        assert await engine.count(status="done") == 4
        assert await engine.cancel_all(tags=["mine"]) == 0
        assert await engine.cancel_all(status="done") == 0


@in_virtual_time
async def test_a_handler_that_runs_unwinds_before_its_run_is_cancelled():
    """Proves that `cancel_all` returns when it is durable, also for runs whose handlers have yet to unwind."""
    may_unwind = trio.Event()

    async def step(_ctx: Context) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(100):
                await may_unwind.wait()

    flow = one_step(step)
    async with open_engine("memory:", flow) as engine:
        run = await engine.start(flow)
        await idle()
        assert await engine.cancel_all(workflow=flow) == 1
        assert (await run.get()).status == "running"
        may_unwind.set()
        assert (await run.wait()).status == "cancelled"


@pytest.mark.parametrize("status", [None, "compensating", ["running", "compensating"]])
@in_virtual_time
async def test_what_undoes_its_steps_is_left_to_it_unless_it_is_named(status):
    """Proves that `cancel_all` leaves no payment half refunded by accident, only by name."""
    may_end = trio.Event()
    flow: Workflow[Any, Any] = Workflow("flow")

    @flow.step
    async def pay(_ctx):
        return 1

    @pay.compensate
    async def repay(_ctx):
        await may_end.wait()

    @flow.step(attempts=1)
    async def ship(_ctx):
        raise ValueError("planned")

    async with open_engine("memory:", flow) as engine:
        run = await engine.start(flow)
        assert (await at_rest(run)).status == "compensating"
        filters = {} if status is None else {"status": status}
        assert await engine.cancel_all(**filters) == (0 if status is None else 1)
        may_end.set()
        assert (await run.wait()).status == ("compensated" if status is None else "cancelled")


@in_virtual_time
async def test_parents_are_cancelled_before_their_children(in_threes):
    """Proves that no parent sees a child fail that goes with it: each of them is cancelled, and none has failed."""

    async def child_step(ctx: Context) -> Any:
        return await ctx.wait("people")

    async def parent_step(ctx: Context) -> Any:
        return await ctx.child(child, None)

    child: Workflow[Any, Any] = Workflow("child")
    child.add_step("step", child_step)
    parent = one_step(parent_step, attempts=1)
    async with open_engine("memory:", parent, child) as engine:
        for _ in range(5):
            await engine.start(parent)
        await idle()
        assert 5 <= await engine.cancel_all() <= 10, "children may have gone with their parents already"
        await idle()
        assert {run.status for run in await engine.find()} == {"cancelled"}


@in_virtual_time
async def test_failed_runs_are_retried_once_each(world, in_threes):
    """Proves that `retry_all` takes up what failed, once, in the order it was created, though it may fail again."""
    async with open_engine("memory:", world.flow) as engine:
        runs = [await engine.start(world.flow, number) for number in range(7)]
        await idle()
        world.calls.clear()
        told: list[BulkProgress] = []
        assert await engine.retry_all(workflow="flow", on_progress=told.append) == 7
        await idle()
        assert sorted(world.calls) == sorted(run.id for run in runs), "those that failed again are left"
        assert told[-1] == BulkProgress(seen=7, done=7)
        world.is_broken = False
        assert await engine.retry_all(created_after=(await runs[0].get()).created_at) == 7
        await idle()
        assert await engine.count(status="done") == 7
        assert await engine.retry_all() == 0


@in_virtual_time
async def test_what_could_not_be_undone_is_tried_again():
    """Proves that `retry_all` takes up runs whose compensation failed, and `status` tells them apart."""
    is_broken = True
    flow: Workflow[Any, Any] = Workflow("flow")

    @flow.step
    async def pay(_ctx):
        return 1

    @pay.compensate(attempts=1)
    async def repay(_ctx):
        if is_broken:
            raise ValueError("planned")

    @flow.step(attempts=1)
    async def ship(_ctx):
        raise ValueError("planned")

    async with open_engine("memory:", flow) as engine:
        run = await engine.start(flow)
        assert (await run.wait()).status == "compensation_failed"
        is_broken = False
        assert await engine.retry_all(status="failed") == 0
        assert await engine.retry_all(status="compensation_failed") == 1
        assert (await run.wait()).status == "compensated"


@in_virtual_time
async def test_dead_letters_are_requeued_together():
    """S366: proves that dead letters are listed, counted and taken up again together, with fresh recoveries."""
    store, may_end = MemoryStore(), False

    async def step(_ctx: Context) -> str:
        if not may_end:
            await trio.sleep_forever()
        return "done"

    flow = one_step(step)
    other: Workflow[Any, Any] = Workflow("other")

    @other.step(attempts=1)
    async def fails(_ctx):
        raise ValueError("planned")

    async with open_engine(store, flow) as engine:
        ids = {(await engine.start(flow)).id for _ in range(3)}
        await idle()
        await crash(engine)
    async with open_engine(store, flow, other, max_recoveries=0) as engine:
        await (await engine.start(other)).wait()
        await idle()
        assert (await engine.stats()).dead_letters == 3
        assert {run.id for run in await engine.find(dead_lettered=True)} == ids
        may_end = True
        assert await engine.retry_all(dead_lettered=True) == 3
        await idle()
        assert {(await engine.get(run_id)).status for run_id in ids} == {"done"}
        assert (await engine.stats()).dead_letters == 0
        assert await engine.count(status="failed") == 1, "what is no dead letter was not meant"


@in_virtual_time
async def test_a_child_is_retried_by_its_parent():
    """Proves that `retry_all` does not do twice what a child does: its parent starts it anew. Or `parent` says."""
    calls: list[str] = []
    is_broken = True

    async def child_step(ctx: Context) -> int:
        calls.append(ctx.run_id)
        if is_broken:
            raise ValueError("planned")
        return 1

    async def parent_step(ctx: Context) -> Any:
        return await ctx.child(child, None)

    child: Workflow[Any, Any] = Workflow("child")
    child.add_step("step", child_step, attempts=1)
    parent = one_step(parent_step, attempts=1)
    async with open_engine("memory:", parent, child) as engine:
        run = await engine.start(parent)
        await idle()
        assert await engine.count(status="failed") == 2
        is_broken = False
        calls.clear()
        assert await engine.retry_all() == 1
        assert await run.result() == 1
        assert len(calls) == 1
        assert await engine.retry_all(parent=run) == 1


class BusyStore(WrappedStore):
    """With `arrive` set, three runs more arrive whenever somebody asks for a page of runs."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.arrive: Callable[[], Awaitable[object]] | None = None

    async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
        if name == "find" and self.arrive is not None:
            for _ in range(3):
                await trio.sleep(0.01)
                await self.arrive()
            await trio.sleep(0.01)
        return await act()


@pytest.mark.parametrize("verb", ["cancel_all", "retry_all", "delete"])
@in_virtual_time
async def test_it_ends_though_runs_keep_arriving(world, verb, in_threes):
    """Proves that what is created after the call began is not its business, so that it comes to an end."""
    world.is_broken = verb != "cancel_all"
    store = BusyStore(MemoryStore())
    async with open_engine(store, world.flow) as engine:
        for _ in range(5):
            await engine.start(world.flow, "waits")
        await idle()
        store.arrive = partial(engine.start, world.flow, "waits")
        seen: list[BulkProgress] = []
        with trio.fail_after(10):
            assert await getattr(engine, verb)(on_progress=seen.append) == 5
        assert seen[-1].seen == 5
        assert await engine.count() > (5 if verb == "delete" else 10)


@in_virtual_time
async def test_a_run_that_changes_meanwhile_is_passed_over(world):
    """Proves that what somebody does to runs between the page and the verb stops neither them nor the others."""
    store = ParkingStore(MemoryStore())
    world.is_broken = False
    async with open_engine(store, world.flow) as engine, open_engine(store.inner, worker=False) as client:
        runs = [await engine.start(world.flow, "waits") for _ in range(3)]
        await idle()
        store.close(lambda batch: any(isinstance(write, Update) for write in batch))
        counted: list[int] = []

        async def cancel() -> None:
            counted.append(await engine.cancel_all())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel)
            await store.parked.wait()
            await client.run(runs[0].id).cancel("faster")
            assert await client.delete(status="cancelled") == 1
            await client.run(runs[1].id).pause()
            store.release()
        assert counted == [2]
        await idle()
        assert await engine.count() == 2


@in_virtual_time
async def test_a_run_whose_key_is_taken_is_passed_over(world):
    """Proves that `retry_all` leaves a run whose idempotency key an active run holds, and takes the others."""
    async with open_engine("memory:", world.flow) as engine:
        for number in range(2):
            await engine.start(world.flow, "waits", idempotency_key=f"key {number}")
        await idle()
        world.is_broken = False
        await engine.start(world.flow, "waits", idempotency_key="key 0")
        await idle()
        assert await engine.retry_all() == 1


@in_virtual_time
async def test_a_run_that_cannot_be_decided_is_reported_and_passed_over(world):
    """Proves that a run whose definition nobody has any more keeps no other from being taken up, and is told."""
    store = MemoryStore()
    gone: Workflow[Any, Any] = Workflow("gone")

    @gone.step(attempts=1)
    async def fails(_ctx):
        raise ValueError("planned")

    async with open_engine(store, world.flow, gone) as engine:
        await (await engine.start(gone)).wait()
        await (await engine.start(world.flow, 1)).wait()
    for side in await store.sides("definition"):
        if "gone" in side.key:
            await store.write([_without(side)])
    heard: list[Any] = []
    async with open_engine(store, world.flow) as engine:
        engine.on("engine.error", heard.append)
        world.is_broken = False
        assert await engine.retry_all() == 1
        await idle()
        assert len(heard) == 1
        assert isinstance(heard[0], EngineError)
        assert "retry_all passes over run" in heard[0].context


def _without(side: SideDoc) -> PutSide:
    return PutSide(side.kind, side.key, side.revision, None)


@pytest.mark.parametrize("verb", ["cancel_all", "retry_all", "delete"])
@in_virtual_time
async def test_a_store_that_fails_is_told_and_a_second_call_does_the_rest(world, verb, in_threes):
    """Proves that `StoreUnavailable` in the middle leaves nothing half done: called again it does what is left."""
    world.is_broken = verb != "cancel_all"
    store = BrokenStore(MemoryStore(), lambda name, _args: name == "write")
    async with open_engine(store, world.flow, lease=3) as engine:
        runs = [await engine.start(world.flow, "waits") for _ in range(8)]
        await idle()

        def break_after_two_batches(progress: BulkProgress) -> None:
            store.broken = progress.seen >= 6

        with pytest.raises(StoreUnavailable):
            await getattr(engine, verb)(on_progress=break_after_two_batches)
        store.broken = False
        await trio.sleep(60)
        world.is_broken = False
        await getattr(engine, verb)()
        await idle()
        expected = {"cancel_all": "cancelled", "retry_all": "waiting"}
        if verb == "delete":
            assert await engine.count() == 0
        else:
            assert {(await run.get()).status for run in runs} == {expected[verb]}


@in_virtual_time
async def test_what_the_callback_raises_ends_the_verb(world, in_threes):
    """Proves that a callback that raises stops the verb after its batch, and the caller sees the error itself."""
    async with open_engine("memory:", world.flow) as engine:
        for _ in range(8):
            await engine.start(world.flow)
        await idle()

        def stop(progress: BulkProgress) -> None:
            raise LookupError(f"enough after {progress.seen}")

        with pytest.raises(LookupError, match="enough"):
            await engine.delete(on_progress=stop)
        assert await engine.count() == 5


@pytest.mark.parametrize("verb", ["cancel_all", "retry_all", "delete"])
@in_virtual_time
async def test_a_filter_that_is_unknown_is_refused(verb):
    """Proves that a mistyped filter does not mean every run."""
    async with open_engine("memory:") as engine:
        with pytest.raises(ValidationError, match="unknown filters"):
            await getattr(engine, verb)(worklow="flow")


@in_virtual_time
async def test_stats_count_what_this_engine_did(world):
    """Proves that claims and recoveries are counted by the engine that made them, and by no other."""
    store = MemoryStore()
    world.is_broken = False
    flow = one_step(_forever)
    async with open_engine(store, flow) as engine:
        await engine.start(flow)
        await engine.start(flow, delay=5)
        await trio.sleep(10)
        stats = await engine.stats()
        assert (stats.claims, stats.recoveries, stats.driving, stats.running) == (1, 0, 2, 2)
        await crash(engine)
    async with open_engine(store, flow) as engine, open_engine(store, worker=False) as client:
        await idle()
        stats = await engine.stats()
        assert (stats.claims, stats.recoveries) == (2, 2)
        assert stats.commits >= 2
        assert ((await client.stats()).claims, (await client.stats()).running) == (0, 2)


async def _forever(_ctx: Context) -> None:
    await trio.sleep_forever()
