"""Broadcasts to many: what they cost, who goes on with them, and who takes them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
import trio

from streamline_trio import Engine, MemoryStore, RunHandle, Signal, SqliteStore, StepContext, Workflow, open_engine
from streamline_trio._core.broadcasts import decode_broadcast
from streamline_trio._core.store import PutSide
from streamline_trio._runtime.delivery import PAGE, sweep_broadcasts
from streamline_trio._runtime.emission import emit
from streamline_trio._runtime.starting import StartOptions, start
from streamline_trio.testing import WrappedStore, crash
from tests.integration.test_writes import Counting
from tests.scenarios.worlds import idle, in_virtual_time, one_step

Ctx = StepContext[Any, Any]
news = Signal("news", int)


def listening() -> Workflow[Any, Any]:
    async def listen(ctx: Ctx) -> int:
        return await ctx.wait_for(news)

    return one_step(listen)


def counting(store: Any) -> Any:
    """The store, which counts what is read and written."""
    return Counting(store)


async def waiting(engine: Engine, count: int) -> list[RunHandle]:
    """So many runs that wait, whose ids are in the order of their numbers."""
    handles = [await engine.start("flow", None, run_id=f"run-{number:05d}") for number in range(count)]
    while await engine.count(waiting="signal") < count:  # noqa: ASYNC110 - nothing but the store tells of it
        await trio.sleep(0.01)
    return handles


class Stopping(WrappedStore):
    """Stops before a page is loaded, until it may go on."""

    def __init__(self, inner: Any, page: int) -> None:
        super().__init__(inner)
        self.page: int | None = page
        self.pages: list[tuple[str, ...]] = []
        self.stopped = trio.Event()
        self.may_go = trio.Event()

    async def around(self, name: str, args: tuple[Any, ...], act: Callable[[], Any]) -> Any:
        if name == "load_many" and args[0]:
            self.pages.append(tuple(args[0]))
            if len(self.pages) - 1 == self.page:
                self.stopped.set()
                await self.may_go.wait()
        return await act()


@pytest.mark.deadline(200)
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_the_cost_grows_with_those_who_are_reached(kind, tmp_path):
    """Proves that a broadcast costs a read of ids, a read of runs and a few writes for each page of 100, however
    many wait: ten times the runs are ten times the calls."""
    calls: dict[int, int] = {}
    for count in (100, 1000):
        store = counting(MemoryStore() if kind == "memory" else SqliteStore(tmp_path / f"{count}.db"))
        async with open_engine(store, listening()) as engine:
            await waiting(engine, count)
            async with open_engine(store, worker=False) as client:
                await engine._machinery.crew.wait_empty()
                store.reads.clear()
                before = store.writes["Update"]
                await client.emit(news, 1)
                assert store.reads["load_many"] == count / PAGE
                assert store.reads["awaiting"] <= count / PAGE + 1
                assert store.reads["load"] == 0
                assert store.writes["Update"] - before >= count
                calls[count] = store.reads["load_many"] + store.reads["awaiting"]
    assert calls[1000] <= 10 * calls[100]


@in_virtual_time
async def test_what_concerns_nobody_is_not_stored():
    """Proves that a broadcast that nobody waits for costs two reads, and one whose id may come again a write."""
    store = counting(MemoryStore())
    async with open_engine(store, listening()) as engine:
        await idle()
        store.reads.clear()
        store.writes.clear()
        for _ in range(3):
            await engine.emit(news, 1)
        assert (dict(store.writes), dict(store.reads)) == ({}, {"sides": 3, "awaiting": 3})
        await engine.emit(news, 1, id="one")
        await idle()
        assert dict(store.writes) == {"PutSide": 1}


@in_virtual_time
async def test_nothing_is_kept_of_a_broadcast_that_nobody_can_repeat():
    """Proves that broadcasts without an id do not gather: once it has reached all, the document goes."""
    store = MemoryStore()
    async with open_engine(store, listening()) as engine:
        handles = await waiting(engine, 3)
        await engine.emit(news, 4)
        assert [await handle.result() for handle in handles] == [4] * 3
        await idle()
        assert await store.sides("broadcast") == []


@in_virtual_time
async def test_the_emitter_does_not_wait_for_all_of_many():
    """Proves that `emit` returns when the first thousand are reached, and that the rest are reached as well."""
    store = Stopping(MemoryStore(), 11)
    async with open_engine(store.inner, listening()) as engine, open_engine(store, worker=False) as client:
        handles = await waiting(engine, 1250)
        await client.emit(news, 5)
        await idle()
        assert await engine.count(status="done") == 1100
        store.may_go.set()
        assert await handles[-1].result() == 5
        await idle()
        assert await engine.count(status="done") == 1250


@in_virtual_time
async def test_a_crash_in_the_middle_loses_little():
    """Proves that another worker goes on where the deliverer had noted that it was, and nobody takes it twice."""
    store = MemoryStore(exclusive=False)
    entered: list[str] = []

    async def listen(ctx: Ctx) -> int:
        entered.append(ctx.run_id)
        return await ctx.wait_for(news)

    flow = one_step(listen)
    stopping = Stopping(store, 12)
    async with open_engine(store, flow) as engine:
        await waiting(engine, 1300)
        async with open_engine(stopping, worker=False) as client, trio.open_nursery() as nursery:
            nursery.start_soon(partial(client.emit, news, 6, id="one"))
            await stopping.stopped.wait()
            await crash(client)
        (side,) = await store.sides("broadcast")
        assert decode_broadcast(side.body).cursor == "run-00999"
        heir = Stopping(store, -1)
        async with open_engine(heir, flow):
            while await engine.count(status="done") < 1300:  # noqa: ASYNC110 - nothing but the store tells of it
                await trio.sleep(1)
        assert "run-00000" not in {run for page in heir.pages for run in page}
    assert len(entered) == 2 * 1300


@in_virtual_time
async def test_of_several_workers_one_goes_on():
    """Proves that workers which find a broadcast that was left behind do not all deliver it."""
    store = MemoryStore(exclusive=False)
    stopping = Stopping(store, 0)
    async with open_engine(store, listening(), lease=2.0) as engine:
        await waiting(engine, 300)
        async with open_engine(stopping, worker=False, lease=2.0) as client, trio.open_nursery() as nursery:
            nursery.start_soon(partial(client.emit, news, 6, id="one"))
            await stopping.stopped.wait()
            await crash(client)
        (side,) = await store.sides("broadcast")
        await store.write([PutSide("broadcast", side.key, side.revision, side.body, 0)])
        several = [Stopping(store, -1) for _ in range(4)]
        async with (
            open_engine(several[0], lease=2.0) as one,
            open_engine(several[1], lease=2.0) as two,
            open_engine(several[2], lease=2.0) as three,
            open_engine(several[3], lease=2.0) as four,
        ):
            async with trio.open_nursery() as nursery:
                for other in (one, two, three, four):
                    nursery.start_soon(sweep_broadcasts, other._machinery)
            while await engine.count(status="done") < 300:  # noqa: ASYNC110 - nothing but the store tells of it
                await trio.sleep(0.1)
        assert sum(bool(store.pages) for store in several) <= 1


@in_virtual_time
async def test_who_leaves_hands_a_broadcast_on():
    """Proves that an engine that is left in the middle stops after a page and lets others go on at once."""
    store = MemoryStore(exclusive=False)
    stopping = Stopping(store, 11)
    async with open_engine(store, listening()) as engine:
        await waiting(engine, 1500)
        async with trio.open_nursery() as nursery:
            async with open_engine(stopping, worker=False) as client:
                await client.emit(news, 6, id="one")
                await stopping.stopped.wait()
                nursery.start_soon(release, stopping)
            (side,) = await store.sides("broadcast")
            assert (side.due_at, decode_broadcast(side.body).cursor) == (0, "run-01199")
        await trio.sleep(30)
        assert await engine.count(status="done") == 1500


async def release(stopping: Stopping) -> None:
    await trio.sleep(0.5)
    stopping.may_go.set()


@in_virtual_time
async def test_who_begins_to_wait_meanwhile():
    """Proves what a wait does that opens while a broadcast is under way: it takes it if its run comes after those
    that are reached already, by id, and else not; a wait that opens when it is done never does."""
    store = MemoryStore()
    stopping = Stopping(store, 1)
    async with open_engine(store, listening()) as engine, open_engine(stopping, worker=False) as client:
        await waiting(engine, 250)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.emit, news, 6)
            await stopping.stopped.wait()
            passed = await engine.start("flow", None, run_id="a")
            ahead = await engine.start("flow", None, run_id="z")
            await idle()
            stopping.may_go.set()
        late = await engine.start("flow", None, run_id="zz")
        await idle()
        assert [(await run.get()).status for run in (passed, ahead, late)] == ["waiting", "done", "waiting"]
        assert await engine.count(status="done") == 251


@in_virtual_time
async def test_a_broadcast_of_the_release_before_is_delivered():
    """Proves that a broadcast that was stored without any of the newer fields goes out."""
    store = MemoryStore()
    old = {"signal": "news", "payload": b"\x07", "id": "one", "at": 0}
    async with open_engine(store, listening()) as engine:
        (handle,) = await waiting(engine, 1)
    await store.write([PutSide("broadcast", "\nnews\none", None, msgspec.msgpack.encode(old), 0)])
    async with open_engine(store, listening()) as engine:
        assert await engine.run(handle.id).result() == 7


@in_virtual_time
async def test_no_page_leaves_the_tenant():
    """Proves that every page of a broadcast is of the emission's tenant, and that those without one are another."""
    async with open_engine("memory:", listening()) as engine:
        machinery, flow = engine._machinery, engine._machinery.registry.resolve("flow")
        for number in range(250):
            options = StartOptions(run_id=f"run-{number:05d}", tenant="a" if number % 2 else None)
            await start(machinery, flow, None, options)
        await idle()
        await emit(machinery, news, 1, run=None, id=None, match=None, tenant="a")
        await idle()
        done = (await engine.find(status="done", limit=250)).items
        assert [run.tenant for run in done] == ["a"] * 125
        await engine.emit(news, 2)
        await idle()
        assert await engine.count(status="done") == 250
