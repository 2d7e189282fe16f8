"""When workers look for runs and what they find: S321 to S327, S331, S339, S346 to S348.

The original polls; here a worker sleeps until something is due. So there are no metrics of polls: what can be
counted is how often it asks its store.
"""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
import trio

from streamline_trio import MemoryStore, SqliteStore, StepContext, Workflow, open_engine
from streamline_trio._core.store import Route
from streamline_trio._runtime.claimer import BATCH
from streamline_trio.testing._wrapped_store import Act, WrappedStore
from tests.scenarios.worlds import idle, in_virtual_time, one_step

Context = StepContext[Any, Any]
DAY = 86_400


class Asked(WrappedStore):
    """Counts the calls, and keeps how many runs were asked for and how many claims were sent at once."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.calls: Counter[str] = Counter()
        self.limits: list[int] = []
        self.batches: list[int] = []
        self.pause = 0.0

    async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
        self.calls[name] += 1
        if name == "due":
            self.limits.append(args[2])
            await trio.sleep(self.pause)
        if name == "write":
            self.batches.append(len(args[0]))
        return await act()


@in_virtual_time
async def test_a_worker_asks_only_when_something_is_due() -> None:
    """S321 to S324: proves that a worker asks nothing while nothing is due, however long that is, asks a few times
    for each timer, and asks nothing any more once the last one is gone."""

    async def nap(ctx: Context) -> None:
        await ctx.sleep(60)

    flow, store = one_step(nap), Asked(MemoryStore())
    async with open_engine(store, flow) as engine:
        await idle()
        at_first = store.calls["due"]
        await trio.sleep(DAY)
        assert store.calls["due"] == at_first
        handle = await engine.start(flow)
        assert (await handle.wait()).status == "done"
        assert store.calls["due"] - at_first <= 4
        other = await engine.start(flow)
        await trio.sleep(1)
        await other.cancel()
        await idle()
        asked = store.calls["due"]
        await trio.sleep(DAY)
        assert store.calls["due"] - asked <= 1  # it slept until the timer that was cancelled
    asked = store.calls["due"]
    await trio.sleep(DAY)
    assert store.calls["due"] == asked


@in_virtual_time
async def test_many_sleepers_are_woken_each_in_time() -> None:
    """S325: proves that sleepers cost a look each when their time comes, and none in between."""
    woken: list[float] = []

    async def nap(ctx: Context) -> None:
        await ctx.sleep(ctx.input)
        woken.append(trio.current_time() - began)

    flow, store = one_step(nap), Asked(MemoryStore())
    async with open_engine(store, flow) as engine:
        began = trio.current_time()
        handles = [await engine.start(flow, 100.0 * (number + 1)) for number in range(15)]
        for handle in handles:
            await handle.wait()
    assert woken == pytest.approx([100.0 * (number + 1) for number in range(15)], abs=0.5)
    assert store.calls["due"] <= 3 * 15 + 5


@in_virtual_time
async def test_no_page_is_larger_than_its_limit() -> None:
    """S327: proves that 500 due runs are taken in pages of at most a hundred, and all of them."""

    async def handler(_ctx: Context) -> None: ...

    flow, store = one_step(handler), Asked(MemoryStore())
    async with open_engine(store, flow, worker=False) as client:
        for _ in range(500):
            await client.start(flow)
    async with open_engine(store, flow) as engine:
        await idle()
        assert await engine.count(status="done") == 500
    # One more than a page shows whether more is due.
    assert max(store.limits) == BATCH + 1
    assert store.calls["due"] >= 5


@in_virtual_time
async def test_starts_timers_and_retries_stand_in_one_queue() -> None:
    """S331: proves that one question finds what is to be started, woken and tried again."""

    async def handler(ctx: Context) -> None:
        if ctx.input == "sleep":
            await ctx.sleep(10)
        elif ctx.input == "fail" and ctx.attempt == 1:
            raise ValueError("no")

    flow, store = one_step(handler, retry_delay=10, jitter=0), Asked(MemoryStore())
    async with open_engine(store, flow) as engine:
        for value in ("sleep", "fail"):
            await engine.start(flow, value)
        await engine.start(flow, "start", delay=10)
        await idle()
        assert await engine.count(status=["waiting", "draft"]) == 3
        now = engine._machinery.services.clock.now()
        found = await store.due([Route(flow.id, flow.version)], now + 10_100, 9)
        assert len(found) == 3
        await trio.sleep(11)
        assert await engine.count(status="done") == 3


async def test_a_child_beside_a_worker_that_does_not_know_its_parent(tmp_path: Any) -> None:
    """S339: proves that a worker that knows only the child does not disturb one that knows both."""
    child: Workflow[Any, Any] = Workflow("child")
    parent: Workflow[Any, Any] = Workflow("parent")

    @child.step
    async def double(ctx: Context) -> int:
        return 2 * int(ctx.input)

    @parent.step
    async def ask(ctx: Context) -> dict[str, Any]:
        return {"result": await ctx.child(child, 21)}

    url = f"sqlite:///{tmp_path}/runs.db"
    both = open_engine(url, child, parent, poll_interval=0.1)
    async with open_engine(url, child, poll_interval=0.1), both as engine:
        assert await (await engine.start(parent)).result(timeout=30) == {"result": 42}


@in_virtual_time
async def test_leaving_during_a_look_ends_it() -> None:
    """S346: proves that a worker that is left while it looks does not look again."""

    async def handler(_ctx: Context) -> None: ...

    flow, store = one_step(handler), Asked(MemoryStore())
    async with open_engine(store, flow) as engine:
        await idle()
        store.pause = 5
        engine._machinery.claimer.wake()
        await trio.sleep(1)
        before = store.calls["due"]
    await trio.sleep(DAY)
    assert store.calls["due"] == before


@in_virtual_time
async def test_drafts_come_in_the_order_of_their_times() -> None:
    """S347: proves that delayed starts that have fallen due are begun the earliest first, one page after the other,
    and none that is paused or not yet due."""
    begun: list[str] = []

    async def handler(ctx: Context) -> None:
        begun.append(ctx.run_id)
        await trio.sleep(0.1)

    flow, store = one_step(handler), MemoryStore()
    async with open_engine(store, flow, worker=False) as client:
        for number in range(25):
            await client.start(flow, run_id=f"r{number:02}", delay=60 - number)
        paused = await client.start(flow, run_id="paused", delay=1)
        await paused.pause()
        await client.start(flow, run_id="later", delay=DAY)
    await trio.sleep(100)
    async with open_engine(store, flow, max_concurrent_runs=1, drain_timeout=0):
        await trio.sleep(10)
    assert begun == [f"r{number:02}" for number in reversed(range(25))]


async def test_what_is_found_is_whole(tmp_path: Any) -> None:
    """S348: proves that runs are found with nested input, tags and times as they were given."""
    given = {"list": [1, [2, {"deep": None}]], "at": datetime(2026, 3, 29, tzinfo=UTC), "text": "ü", "n": 1.5}

    async def handler(_ctx: Context) -> None: ...

    flow = one_step(handler)
    store = SqliteStore(tmp_path / "runs.db")
    async with open_engine(store, flow, worker=False) as client:
        handle = await client.start(flow, given, tags=["x", "y"])
        whole = await store.load(handle.id)
        assert await store.due([Route(flow.id, flow.version)], 1, 9) == [whole]
        run = await handle.get()
    assert run.tags == ("x", "y")
    assert {**run.input, "at": None} == {**given, "at": None}
