"""What a broadcast takes: to as many runs as wait for it, and when nobody does.

A client without any code emits, so that only the delivery is measured, beside a worker on the same store that wakes
the runs meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec
import trio

from benchmarks.figures import Benchmark, Figures, Row, median, rounded
from benchmarks.machine import settle_memory
from benchmarks.places import Place
from streamline_trio import Signal, StepContext, Workflow, open_engine
from streamline_trio._runtime.store_urls import store_from
from streamline_trio.store import Store

_PATIENCE = 600.0
_AT_ONCE = 200
_EMPTY = 100

_news = Signal("news", int)
_flow: Workflow[Any, Any] = Workflow("bench-listener")


@_flow.step
async def listen(ctx: StepContext[Any, Any]) -> int:
    """Wait for the broadcast."""
    return await ctx.wait_for(_news)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How many runs wait."""

    runs: tuple[int, ...]


async def measure(place: Place, size: Size, rounds: int) -> Figures:
    """Until all runs that wait are told, for each; until `emit` returns; and of one that nobody hears."""
    told: dict[int, list[float]] = {runs: [] for runs in size.runs}
    returned: dict[int, list[float]] = {runs: [] for runs in size.runs}
    unheard: list[float] = []
    for _ in range(rounds):
        for runs in size.runs:
            after, until_all, nobody = await _broadcast(store_from(place.fresh()), runs)
            returned[runs].append(after)
            told[runs].append(until_all)
            unheard.append(nobody)
    per_run = {runs: median(seconds) / runs for runs, seconds in told.items()}
    least, most = min(size.runs), max(size.runs)
    return {
        "us_per_run": {str(runs): rounded(1e6 * seconds) for runs, seconds in per_run.items()},
        "emit_ms": {str(runs): rounded(1e3 * median(seconds)) for runs, seconds in returned.items()},
        "unheard_us": rounded(1e6 * median(unheard)),
        "ratio_largest_to_smallest": rounded(per_run[most] / per_run[least]),
    }


async def _broadcast(store: Store, runs: int) -> tuple[float, float, float]:
    async with open_engine(store, _flow) as worker, open_engine(store, worker=False) as client:
        places = trio.CapacityLimiter(_AT_ONCE)

        async def start() -> None:
            async with places:
                await worker.start(_flow, None)

        async with trio.open_nursery() as nursery:
            for _ in range(runs):
                nursery.start_soon(start)
        with trio.fail_after(_PATIENCE):
            await _until(client, waiting=runs)
        settle_memory()
        began = time.perf_counter()
        await client.emit(_news, 1)
        returned = time.perf_counter() - began
        with trio.fail_after(_PATIENCE):
            await _until(client, waiting=0)
        told = time.perf_counter() - began
        began = time.perf_counter()
        for _ in range(_EMPTY):
            await client.emit("unheard", 1)
        return returned, told, (time.perf_counter() - began) / _EMPTY


async def _until(client: Any, *, waiting: int) -> None:
    """Until so many wait; asked seldom enough to cost next to nothing."""
    while await client.count(waiting="signal") != waiting:  # noqa: ASYNC110 - nothing but the store tells of it
        await trio.sleep(0.02)


def table(figures: Figures) -> Iterator[Row]:
    """One line for each number of runs, and one for nobody."""
    yield "runs that wait", "µs per run", "ms until emit returns"
    for runs, micros in figures["us_per_run"].items():
        yield runs, micros, figures["emit_ms"][runs]
    yield "none (µs in all)", figures["unheard_us"], ""


BENCHMARK = Benchmark(
    name="broadcast",
    title="What a broadcast to many runs costs",
    measure=measure,
    table=table,
    normal=Size(runs=(100, 1000, 10_000)),
    quick=Size(runs=(10, 20)),
    mongodb=Size(runs=(50, 200)),
    mongodb_quick=Size(runs=(3, 5)),
    rounds=3,
)
