"""Buckets that a death, or a race, has left with more or less than they should hold."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from streamline_trio import Concurrency, MemoryStore, Workflow, open_engine
from streamline_trio._core.slots import SLOTS, SlotBucket, encode_bucket
from streamline_trio._core.store import Applied, PutSide
from streamline_trio.testing import WrappedStore
from streamline_trio.testing._wrapped_store import Act
from tests.scenarios.gauge import Gauge
from tests.scenarios.worlds import idle, in_virtual_time

BUCKET = "\nflow\n"


def flow_of(limit: int) -> Workflow[Any, Any]:
    flow: Workflow[Any, Any] = Workflow("flow", concurrency=Concurrency(limit))

    @flow.step
    async def step(_ctx: Any) -> None:
        await trio.sleep(1)

    return flow


async def queued(store: Any, flow: Workflow[Any, Any], count: int) -> list[Any]:
    """Drafts that stand in line with nobody looking after them: their outboxes are empty."""
    async with open_engine(store, flow, worker=False) as client:
        full = SlotBucket(holders={f"b{n}": 1 for n in range(flow.plan.concurrency.limit)}, limit=1)  # type: ignore[union-attr]
        assert await store.write([PutSide(SLOTS, BUCKET, None, encode_bucket(full))]) == [Applied()]
        handles = [await client.start(flow) for _ in range(count)]
        await idle()
        side = await store.side(SLOTS, BUCKET)
        assert await store.write([PutSide(SLOTS, BUCKET, side.revision, None)]) == [Applied()]
        return [await store.load(handle.id) for handle in handles]


@pytest.mark.parametrize("exclusive", [True, False])
@in_virtual_time
async def test_who_came_in_and_was_not_told_is_told(exclusive):
    """Proves that an entry whose process died before it told the run is found, and the run told."""
    store = MemoryStore(exclusive=exclusive)
    flow = flow_of(1)
    (run,) = await queued(store, flow, 1)
    body = encode_bucket(SlotBucket(holders={run.id: run.head.slot.acquisition}, untold=(run.id,), limit=1))
    assert await store.write([PutSide(SLOTS, BUCKET, None, body, 1)]) == [Applied()]
    async with open_engine(store, flow, lease=3, poll_interval=1) as engine:
        assert (await engine.run(run.id).wait(timeout=20)).status == "done"
        await trio.sleep(1)
        assert await store.side(SLOTS, BUCKET) is None


@pytest.mark.parametrize("exclusive", [True, False])
@in_virtual_time
async def test_an_entry_that_is_there_for_nothing_is_taken_out(exclusive):
    """Proves that an untold entry of a run that is gone blocks the line for no longer than it may be on its way."""
    store = MemoryStore(exclusive=exclusive)
    flow = flow_of(1)
    (run,) = await queued(store, flow, 1)
    body = encode_bucket(SlotBucket(holders={"gone": 1}, untold=("gone",), limit=1))
    assert await store.write([PutSide(SLOTS, BUCKET, None, body, 1)]) == [Applied()]
    async with open_engine(store, flow, lease=3, poll_interval=1) as engine:
        assert (await engine.run(run.id).wait(timeout=20)).status == "done"


@in_virtual_time
async def test_many_free_slots_are_filled_at_once():
    """Proves that one look lets in as many as there are slots for, however many pages that takes."""
    store = MemoryStore()
    flow = flow_of(250)
    runs = await queued(store, flow, 240)
    async with open_engine(store, flow) as engine:
        began = trio.current_time()
        await (await engine.start(flow)).wait()
        for run in runs:
            assert (await engine.run(run.id).wait(timeout=20)).status == "done"
        assert trio.current_time() - began < 3


class Interrupted(WrappedStore):
    """Has something happen just before a bucket is written."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.before: Callable[[], Awaitable[object]] | None = None

    async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
        changes = name == "write" and any(isinstance(write, PutSide) and write.kind == SLOTS for write in args[0])
        if changes and self.before is not None:
            before, self.before = self.before, None
            await before()
        return await act()


@in_virtual_time
async def test_who_leaves_the_line_while_it_comes_in_blocks_nobody():
    """Proves that a run that is cancelled between the look at the queue and the write of the bucket leaves it."""
    gauge = Gauge(MemoryStore())
    flow = flow_of(1)
    runs = await queued(gauge, flow, 2)
    store = Interrupted(gauge)
    async with open_engine(gauge, flow, worker=False) as other, open_engine(store, flow) as engine:

        async def cancel() -> None:
            await other.run(runs[0].id).cancel()
            await trio.sleep(0.5)

        store.before = cancel
        last = await engine.start(flow)
        assert (await last.wait(timeout=20)).status == "done"
        assert (await engine.get(runs[0].id)).status == "cancelled"
        assert (await engine.run(runs[1].id).wait(timeout=20)).status == "done"
        await idle()
    gauge.check_at_rest()
    assert store.before is None


@in_virtual_time
async def test_an_entry_that_came_too_late_is_taken_out_at_once():
    """Proves that one let in after it has settled and given its slot back, by one that slept, leaves again."""
    gauge = Gauge(MemoryStore())
    flow = flow_of(1)
    (run,) = await queued(gauge, flow, 1)
    body = encode_bucket(SlotBucket(holders={"gone": 1}, untold=("gone",), limit=1))
    assert await gauge.write([PutSide(SLOTS, BUCKET, None, body, 1 << 45)]) == [Applied()]
    store = Interrupted(gauge)
    async with open_engine(gauge, flow, worker=False) as other:

        async def cancel() -> None:
            await other.run(run.id).cancel()
            await trio.sleep(0.5)

        store.before = cancel
        async with open_engine(store, flow) as engine:
            assert store.before is None
            assert await gauge.side(SLOTS, BUCKET) is None
            assert (await (await engine.start(flow)).wait(timeout=20)).status == "done"
            await idle()
    gauge.check_at_rest()


@in_virtual_time
async def test_a_bucket_that_was_made_anew_is_not_overwritten():
    """Proves that a process that slept while its bucket was emptied, removed and made anew cannot undo that."""
    gauge = Gauge(MemoryStore())
    flow = flow_of(2)
    store = Interrupted(gauge)
    async with open_engine(gauge, flow) as other, open_engine(store, flow, worker=False) as engine:
        first = await other.start(flow)

        async def all_change() -> None:
            await first.wait()
            await trio.sleep(3)  # the other engine lets the late one in meanwhile
            assert await gauge.side(SLOTS, BUCKET) is None
            await other.start(flow)

        store.before = all_change
        late = await engine.start(flow)
        assert (await late.wait(timeout=20)).status == "done"
        await trio.sleep(5)
    gauge.check_at_rest()
