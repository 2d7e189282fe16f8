"""Slots when processes die and store calls fail: at every point, never one run too many and none left behind."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import trio

from streamline_trio import (
    Concurrency,
    ConcurrencyLimitReached,
    Engine,
    MemoryStore,
    NonRetriable,
    RunHandle,
    SqliteStore,
    StepContext,
    Store,
    Workflow,
)
from streamline_trio.testing import CrashAt, FailCall, LoseLeaseAt, play, sweep
from tests.scenarios.gauge import Gauge

Context = StepContext[Any, Any]
LONG = 15.0
"""Longer than an errand is left to who committed it, with the time until somebody looks."""


class Places:
    """Fresh stores, each watched; the last one is the one of the present play."""

    def __init__(self, make: Callable[[], Store], *mishaps: Any) -> None:
        self.make = make
        self.mishaps = mishaps
        self.gauge = Gauge(make())

    @property
    def options(self) -> dict[str, Any]:
        """For a sweep."""
        return {"mishaps": self.mishaps, "store": self, "poll_interval": 1.0}

    def __call__(self) -> Any:
        self.gauge = Gauge(self.make())
        return self.gauge


@pytest.fixture(params=["exclusive", "shared"])
def places(request) -> Places:
    """On a shared store most calls are looks for work, which would make a sweep of failing calls long."""
    if request.param == "exclusive":
        return Places(MemoryStore, FailCall, CrashAt, LoseLeaseAt)
    return Places(lambda: MemoryStore(exclusive=False), CrashAt)


def queueing(limit: int = 1) -> Workflow[Any, Any]:
    flow: Workflow[Any, Any] = Workflow("flow", concurrency=Concurrency(limit))

    @flow.step(attempts=1)
    async def work(ctx: Context) -> Any:
        if ctx.input == "fails":
            raise NonRetriable("as asked")
        if ctx.input == "waits":
            await ctx.sleep(2)
        return ctx.input

    return flow


async def in_turn(engine: Engine, flow: Workflow[Any, Any], places: Places) -> list[str]:
    """Five runs for one slot, of which one fails and one is cancelled while it queues; all come to their end."""
    runs = [
        await engine.start(flow, value, run_id=f"r{number}", idempotency_key=f"k{number}")
        for number, value in enumerate(["waits", "fails", "never", 3, "waits"])
    ]
    await runs[2].cancel()
    statuses: list[str] = [(await run.wait()).status for run in runs]
    await trio.sleep(LONG)
    places.gauge.check_at_rest()
    assert max(places.gauge.most.values()) == 1
    assert all(not bucket.holders for bucket in places.gauge.buckets.values())
    return statuses


def test_runs_that_queue_bear_every_mishap(places):
    """Proves that whatever fails or dies at whichever point, runs go on one at a time and each comes to its end."""
    flow = queueing()
    wanted = ["done", "failed", "cancelled", "done", "done"]
    assert play(lambda engine: in_turn(engine, flow, places), flow, store=places) == wanted
    played = sweep(
        lambda engine: in_turn(engine, flow, places), flow, mishaps=places.mishaps, store=places, poll_interval=1.0
    )
    assert len(played) > 30


async def taken_up(engine: Engine, flow: Workflow[Any, Any], places: Places) -> list[Any]:
    """A failed run that is retried behind another, and a done one that is rewound."""
    failed = await engine.start(flow, "fails", run_id="r0")
    await failed.wait()
    done = await engine.start(flow, "quick", run_id="r1")
    await done.wait()
    holder = await engine.start(flow, "waits", run_id="r2")
    await failed.retry()
    await done.rewind("work")
    statuses: list[str] = [(await run.wait()).status for run in (holder, failed, done)]
    await trio.sleep(LONG)
    places.gauge.check_at_rest()
    assert max(places.gauge.most.values()) == 1
    return statuses


def test_taking_up_again_bears_every_mishap(places):
    """Proves that retry and rewind wait for a slot and get it, whatever fails or dies meanwhile."""
    flow = queueing()
    sweep(
        lambda engine: taken_up(engine, flow, places), flow, mishaps=places.mishaps, store=places, poll_interval=1.0
    )


def refusing() -> Workflow[Any, Any]:
    flow: Workflow[Any, Any] = Workflow("flow", concurrency=Concurrency(1, when_full="reject"))

    @flow.step(attempts=1)
    async def work(ctx: Context) -> Any:
        await ctx.sleep(5)
        return ctx.input

    return flow


async def refused_and_taken(engine: Engine, flow: Workflow[Any, Any], places: Places) -> list[Any]:
    """A start that is refused, and accepted once the slot is free; then the same with rewinds."""
    first = await engine.start(flow, 1, run_id="r1", idempotency_key="a")
    came: list[Any] = []
    try:
        second = await engine.start(flow, 2, run_id="r2", idempotency_key="b")
    except ConcurrencyLimitReached as refused:
        came.append(refused.meta["holding"])
    assert (await first.wait()).status == "done"
    second = await engine.start(flow, 2, run_id="r2", idempotency_key="b")
    assert (await second.wait()).status == "done"
    await first.rewind("work")
    try:
        await second.rewind("work")
    except ConcurrencyLimitReached as refused:
        came.append(refused.meta["holding"])
    assert (await first.wait()).status == "done"
    await trio.sleep(LONG)
    places.gauge.check_at_rest()
    assert max(places.gauge.most.values()) == 1
    assert len(places.gauge.runs) == 2
    return came


def test_refusing_bears_every_mishap(places):
    """Proves that of what is refused nothing remains, and what is accepted goes on, whatever fails or dies."""
    flow = refusing()

    async def scenario(engine: Engine) -> list[Any]:
        return await refused_and_taken(engine, flow, places)

    assert play(scenario, flow, store=places) == [1, 1]
    sweep(scenario, flow, **places.options)


def test_slots_in_a_file_bear_crashes(tmp_path):
    """Proves the same of a store with a file, where time is real: whoever dies, the next in line begins."""
    numbers = itertools.count()
    places = Places(lambda: SqliteStore(tmp_path / f"{next(numbers)}.db"))
    flow: Workflow[Any, Any] = Workflow("flow", concurrency=Concurrency(1))

    @flow.step
    async def work(ctx: Context) -> Any:
        return ctx.input

    async def scenario(engine: Engine) -> list[str]:
        runs: list[RunHandle] = [
            await engine.start(flow, number, run_id=f"r{number}", idempotency_key=f"k{number}")
            for number in range(3)
        ]
        statuses: list[str] = [(await run.wait()).status for run in runs]
        places.gauge.check()
        return statuses

    for write in (0, 2, 4):
        assert play(scenario, flow, mishap=CrashAt(write=write, when="after"), store=places) == ["done"] * 3
