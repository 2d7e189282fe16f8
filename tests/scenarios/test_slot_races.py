"""Slots that several engines give out, one of which dies: on memory, SQLite and MongoDB."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import trio

from streamline_trio import (
    Concurrency,
    ConcurrencyLimitReached,
    MemoryStore,
    RunHandle,
    StepContext,
    StoreUnavailable,
    Workflow,
    open_engine,
)
from streamline_trio._runtime.store_urls import store_from
from streamline_trio.stores.mongo import _stream
from streamline_trio.testing import crash
from tests.scenarios.gauge import Gauge

LEASE = 1.0
LONG = 50.0
LIMIT = 3
STARTS = 40
Context = StepContext[Any, Any]


@pytest.fixture(params=["memory", "sqlite", "mongodb"])
def store(request, tmp_path, monkeypatch) -> Callable[[], Any]:
    """What each engine opens to reach the same runs."""
    if request.param == "memory":
        shared = MemoryStore(exclusive=False)
        return lambda: shared
    if request.param == "sqlite":
        return lambda: store_from(f"sqlite:///{tmp_path}/runs.db")
    monkeypatch.setattr(_stream, "PATIENCE", 0.05)
    url = request.getfixturevalue("databases").url()
    return lambda: store_from(url)


class Crowd:
    """A workflow with few slots, and how many of its handlers run now."""

    def __init__(self, when_full: Any) -> None:
        self.inside: Counter[str] = Counter()
        self.most = 0
        self.flow: Workflow[Any, Any] = Workflow("flow", concurrency=Concurrency(LIMIT, when_full=when_full))

        @self.flow.step
        async def work(ctx: Context) -> Any:
            self.inside[ctx.run_id] += 1
            self.most = max(self.most, len(self.inside))
            try:
                await trio.sleep(0.02)
            finally:
                self.inside[ctx.run_id] -= 1
                self.inside = +self.inside
            return ctx.input


@pytest.mark.parametrize("dies", [False, True])
async def test_parallel_starts_through_two_engines(store, dies):
    """S258, S262: forty runs for three slots, started through two engines of which one may die, all come to an end.

    At every instant no more than three of them hold a slot, and none is left without.
    """
    crowd = Crowd("queue")
    gauge = Gauge(store())
    with trio.fail_after(LONG):
        async with open_engine(gauge, crowd.flow, lease=LEASE, poll_interval=0.1) as stays:
            other = Gauge(store(), seen=gauge)
            async with (
                open_engine(other, crowd.flow, lease=LEASE, poll_interval=0.1) as mortal,
                trio.open_nursery() as nursery,
            ):

                async def start(number: int) -> None:
                    engine = mortal if number % 2 else stays
                    try:
                        await engine.start(crowd.flow, number, run_id=f"r{number:02}")
                    except StoreUnavailable:
                        assert dies

                for number in range(STARTS):
                    nursery.start_soon(start, number)
                if dies:
                    while sum(run.head.status == "done" for run in gauge.runs.values()) < 5:  # noqa: ASYNC110 - the store tells nobody
                        await trio.sleep(0.005)
                    await crash(mortal)
                    nursery.cancel_scope.cancel()
            for run_id in list(gauge.runs):
                assert (await stays.run(run_id).wait()).status == "done"
            while any(run.outbox for run in gauge.runs.values()):  # noqa: ASYNC110 - as above
                await trio.sleep(0.05)
            assert dies or len(gauge.runs) == STARTS
            assert (await stays.stats()).slots == {}
    gauge.check_at_rest()
    assert max(gauge.most.values()) <= LIMIT
    assert crowd.most <= LIMIT


async def test_refusals_through_two_engines(store):
    """W31: of many starts at once through two engines three go on; whoever is refused leaves nothing behind."""
    crowd = Crowd("reject")
    gauge = Gauge(store())
    with trio.fail_after(LONG):
        async with (
            open_engine(gauge, crowd.flow, lease=LEASE, poll_interval=0.1) as one,
            open_engine(Gauge(store(), seen=gauge), crowd.flow, lease=LEASE, poll_interval=0.1) as two,
        ):
            came: list[Any] = []

            async def start(number: int) -> None:
                try:
                    came.append(await (one if number % 2 else two).start(crowd.flow, number))
                except ConcurrencyLimitReached as refused:
                    came.append(refused)

            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(start, number)
            handles = [handle for handle in came if isinstance(handle, RunHandle)]
            assert len(handles) >= LIMIT
            for handle in handles:
                assert (await handle.wait()).status == "done"
            assert await one.count() == len(handles)
            while any(run.outbox for run in gauge.runs.values()):  # noqa: ASYNC110 - the store tells nobody
                await trio.sleep(0.05)
    gauge.check_at_rest()
    assert max(gauge.most.values()) <= LIMIT
