"""A MongoDB server that dies and comes back under two workers; clocks that differ; a pool that is too small."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pymongo
import pytest
import trio

from streamline_trio import StepContext, Workflow, open_engine
from streamline_trio._core.store import Insert
from streamline_trio._runtime.clock import WallClock
from streamline_trio.stores.mongo import MongoStore, _stream
from streamline_trio.testing import WrappedStore
from streamline_trio.testing._conformance_base import sample
from tests.mongo_server import Server, needs_own_server, private
from tests.scenarios.worlds import one_step
from tests.stores.mongo_opening import hurry

TIMEOUT = 0.5


@pytest.fixture
def server() -> Iterator[Server]:
    with private() as server:
        yield server


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stream, "PATIENCE", 0.05)


class Journey:
    """A workflow of three steps; the second is under way when the server dies. Notes the effects of its steps."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.effects: Counter[tuple[str, str]] = Counter()
        self.under_way: set[str] = set()
        self.all_under_way = trio.Event()
        self.stopped: set[str] = set()
        self.all_stopped = trio.Event()
        self.go_on = trio.Event()
        self.workflow: Workflow[Any, Any] = Workflow("journey")
        for step in (self.pack, self.travel, self.arrive):
            self.workflow.add_step(step.__name__, step)

    async def pack(self, ctx: StepContext[Any, Any]) -> str:
        self.effects[ctx.run_id, ctx.step_id] += 1
        return "packed"

    async def travel(self, ctx: StepContext[Any, Any]) -> str:
        self.under_way.add(ctx.run_id)
        if len(self.under_way) == self.number:
            self.all_under_way.set()
        try:
            await self.go_on.wait()
        except trio.Cancelled:
            self.stopped.add(ctx.run_id)
            if len(self.stopped) == self.number:
                self.all_stopped.set()
            raise
        self.effects[ctx.run_id, ctx.step_id] += 1
        return "travelled"

    async def arrive(self, ctx: StepContext[Any, Any]) -> str:
        self.effects[ctx.run_id, ctx.step_id] += 1
        return "arrived"


@needs_own_server
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["restart", "crash"])
async def test_the_server_comes_back_under_running_workers(server, how):
    """Steps that end while it is gone are committed when it is back: each run is done, each effect came once."""
    url = server.url.replace("/?", "/journeys?")
    stores = [MongoStore(url), MongoStore(url)]
    journey = Journey(10)
    async with (
        open_engine(stores[0], journey.workflow, poll_interval=0.1) as one,
        open_engine(stores[1], journey.workflow, poll_interval=0.1) as other,
        one.events("scheduler.circuit_open") as outages,
        other.events("scheduler.circuit_open") as other_outages,
    ):
        hurry(TIMEOUT, *stores)
        handles = [await engine.start(journey.workflow) for engine in (one, other) for _ in range(5)]
        await journey.all_under_way.wait()
        await trio.to_thread.run_sync(server.stop, how)
        journey.go_on.set()
        with trio.fail_after(10):
            await anext(outages)
            await anext(other_outages)
        await trio.to_thread.run_sync(server.start)
        for handle in handles:
            assert await handle.result() == "arrived"
            assert (await handle.get()).recoveries == 0
    assert set(journey.effects.values()) == {1}
    assert len(journey.effects) == 30


@needs_own_server
async def test_an_outage_longer_than_a_lease(server):
    """Workers stop what they cannot commit; back again, they take it up: no finished step is repeated."""
    url = server.url.replace("/?", "/journeys?")
    stores = [MongoStore(url), MongoStore(url)]
    journey = Journey(6)
    async with (
        open_engine(stores[0], journey.workflow, poll_interval=0.1, lease=3) as one,
        open_engine(stores[1], journey.workflow, poll_interval=0.1, lease=3) as other,
    ):
        workers = {one.worker_id, other.worker_id}
        hurry(TIMEOUT, *stores)
        handles = [await engine.start(journey.workflow) for engine in (one, other) for _ in range(3)]
        await journey.all_under_way.wait()
        await trio.to_thread.run_sync(server.stop)
        with trio.fail_after(10):
            await journey.all_stopped.wait()
        journey.go_on.set()
        await trio.to_thread.run_sync(server.start)
        for handle in handles:
            assert await handle.result() == "arrived"
            run = await handle.get()
            assert run.recoveries == 1
        assert not workers & {one.worker_id, other.worker_id}
    assert set(journey.effects.values()) == {1}


class Ahead(WallClock):
    """A clock that differs from the machine's by so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._millis = int(seconds * 1000)

    def now(self) -> int:
        return super().now() + self._millis


class Looked(WrappedStore):
    """Tells when its engine has looked at the other workers so often."""

    def __init__(self, inner: Any, times: int) -> None:
        super().__init__(inner)
        self._left = times
        self.enough = trio.Event()

    @property
    def exclusive(self) -> bool:
        return False

    async def around(self, name: str, args: tuple[Any, ...], act: Any) -> Any:
        found = await act()
        if name == "sides" and args[0] == "worker" and len(found) == 3:
            self._left -= 1
            if not self._left:
                self.enough.set()
        return found


async def test_clocks_a_minute_apart_steal_nothing(databases):
    """For more than a lease workers look at one whose clock differs by a minute: they take nothing from it."""
    url = databases.url()
    calls: list[str] = []
    go_on = trio.Event()

    async def handler(ctx: StepContext[Any, Any]) -> str:
        calls.append(ctx.run_id)
        await go_on.wait()
        return "done"

    flow = one_step(handler)
    early, late = (Looked(MongoStore(url), 5) for _ in range(2))  # three in a lease
    opening = partial(open_engine, poll_interval=0.1, lease=2)
    async with (
        opening(url, flow) as one,
        opening(early, flow, clock=Ahead(60)) as ahead,
        opening(late, flow, clock=Ahead(-60)) as behind,
    ):
        engines = [one, ahead, behind]
        workers = [engine.worker_id for engine in engines]
        handles = [await engine.start(flow) for engine in engines]
        with trio.fail_after(20):
            await early.enough.wait()
            await late.enough.wait()
        assert [(await engine.stats()).driving for engine in engines] == [1, 1, 1]
        go_on.set()
        for handle in handles:
            assert await behind.run(handle.id).result() == "done"
            run = await handle.get()
            assert (run.recoveries, run.steps["step"].attempts) == (0, 1)
        assert [engine.worker_id for engine in engines] == workers
    assert sorted(calls) == sorted(handle.id for handle in handles)


@pytest.mark.parametrize("options", ["", "maxPoolSize=2&waitQueueTimeoutMS=5000"], ids=["calls", "connections"])
async def test_a_pool_that_is_too_small_only_takes_longer(databases, options):
    """A hundred calls at a time through one place, or one connection beside the change stream: all end well."""
    flow = one_step(_answer)
    url = databases.url(options)
    client: pymongo.MongoClient[Any] = pymongo.MongoClient(url)
    with client:
        store = MongoStore(client.get_default_database(), pool_size=16 if options else 1)
        async with open_engine(store, flow, poll_interval=0.1) as engine:
            await store.write([Insert(sample("r1", workflow="other"))])
            found: list[Any] = []

            async def load() -> None:
                found.append(await store.load("r1"))

            async def run() -> None:
                found.append(await (await engine.start(flow)).result())

            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    for _ in range(50):
                        nursery.start_soon(load)
                        nursery.start_soon(run)
            assert found.count("done") == 50
            assert len(found) == 100


async def _answer(_ctx: Any) -> str:
    return "done"
