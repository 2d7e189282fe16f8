"""What a join of many branches takes, beside as many runs that nobody joins.

Both are of one step that does nothing, on the same engine settings: a join has to insert its branches, claim them,
hear of each of their ends, and read them all in the end. Rounds take turns.
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
from benchmarks.workflows import nothing
from streamline_trio import Branch, StepContext, Store, Workflow, open_engine

_PATIENCE = 600.0

_branch: Workflow[Any, Any] = Workflow("bench-branch", steps={"step": nothing})
_join: Workflow[Any, Any] = Workflow("bench-join", input=int)


@_join.step
async def join(ctx: StepContext[Any, Any]) -> int:
    """Join as many as the input says; how many were done."""
    result = await ctx.join({str(number): Branch(_branch) for number in range(ctx.input)})
    return len(result.branches)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How many branches the joins have; the first is compared with independent runs."""

    branches: tuple[int, ...]


async def measure(place: Place, size: Size, rounds: int) -> Figures:
    """Seconds for each join, and for as many independent runs as the smallest has branches."""
    joined: dict[int, list[float]] = {branches: [] for branches in size.branches}
    alone: list[float] = []
    for _ in range(rounds):
        alone.append(await _independent(place.fresh(), size.branches[0]))
        for branches, seconds in joined.items():
            seconds.append(await _joined(place.fresh(), branches))
    least, most = min(size.branches), max(size.branches)
    per_branch = {branches: median(seconds) / branches for branches, seconds in joined.items()}
    return {
        "independent_us_per_run": rounded(1e6 * median(alone) / size.branches[0]),
        "us_per_branch": {str(branches): rounded(1e6 * seconds) for branches, seconds in per_branch.items()},
        "ratio_to_independent": rounded(median(joined[size.branches[0]]) / median(alone)),
        "ratio_largest_to_smallest": rounded(per_branch[most] / per_branch[least]),
    }


async def _independent(store: Store | str, runs: int) -> float:
    """As many clients as there are runs: all of them start at once, as branches do."""
    async with open_engine(store, _branch) as engine:
        await (await engine.start(_branch, None)).result(_PATIENCE)
        settle_memory()

        async def client() -> None:
            await (await engine.start(_branch, None)).result(_PATIENCE)

        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(runs):
                nursery.start_soon(client)
        return time.perf_counter() - began


async def _joined(store: Store | str, branches: int) -> float:
    async with open_engine(store, _join, _branch) as engine:
        await (await engine.start(_join, 1)).result(_PATIENCE)
        settle_memory()
        began = time.perf_counter()
        done = await (await engine.start(_join, branches)).result(_PATIENCE)
        assert done == branches
        return time.perf_counter() - began


def table(figures: Figures) -> Iterator[Row]:
    """One line for each number of branches."""
    yield "branches", "µs per branch", "to an independent run"
    for branches, micros in figures["us_per_branch"].items():
        yield branches, micros, micros / figures["independent_us_per_run"]


BENCHMARK = Benchmark(
    name="join",
    title="What a branch of a join costs",
    measure=measure,
    table=table,
    normal=Size(branches=(1000, 5000)),
    quick=Size(branches=(20, 40)),
    mongodb=Size(branches=(100, 500)),
    mongodb_quick=Size(branches=(5, 10)),
    rounds=3,
)
