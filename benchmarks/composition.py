"""What a part of a step costs: a key of a scatter and an iteration of a loop, in small steps and in large ones.

Sizes take turns, one run at a time. `scatter` runs its keys sixteen at a time, `together` all at once, so that they
share writes; `asleep` is each key's share of a step whose keys all sleep, and wake when all are asleep.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import trio

from benchmarks.figures import Benchmark, Figures, Row, median, rounded
from benchmarks.load import put_load
from benchmarks.places import Place
from streamline_trio import Done, Next, StepContext, Workflow

Context = StepContext[Any, Any]
Body = Callable[[Context, int], Awaitable[object]]


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How many parts a step has, and how many parts of each size a round has."""

    sizes: tuple[int, ...] = (10, 100, 1000, 5000)
    parts: int


async def _nothing() -> None:
    await trio.lowlevel.checkpoint()


async def _scatter(ctx: Context, size: int) -> object:
    return len(await ctx.scatter({f"key-{number}": _nothing for number in range(size)}, concurrency=16))


async def _together(ctx: Context, size: int) -> object:
    return len(await ctx.scatter({f"key-{number}": _nothing for number in range(size)}))


async def _asleep(ctx: Context, size: int) -> object:
    async def key() -> None:
        await ctx.sleep(0.2)

    return len(await ctx.scatter({f"key-{number}": key for number in range(size)}))


async def _loop(ctx: Context, size: int) -> object:
    def body(total: int, i: int) -> Next[int] | Done[int]:
        return Next(total + i) if i < size - 1 else Done(total)

    return await ctx.loop(0, body, max_iterations=size)


KINDS: dict[str, Body] = {"scatter": _scatter, "together": _together, "asleep": _asleep, "loop": _loop}


def _workflow(kind: str, size: int) -> Workflow[Any, Any]:
    body = KINDS[kind]

    async def step(ctx: Context) -> object:
        return await body(ctx, size)

    workflow: Workflow[Any, Any] = Workflow(f"bench-{kind}-{size}")
    workflow.add_step("step", step)
    return workflow


async def measure(place: Place, size: Size, rounds: int) -> Figures:
    """Microseconds per part, of each kind at each size: taken, and computed in all threads."""
    taken = {kind: {parts: list[float]() for parts in size.sizes} for kind in KINDS}
    computed = {kind: {parts: list[float]() for parts in size.sizes} for kind in KINDS}
    for _ in range(rounds):
        for kind, by_size in taken.items():
            for parts, micros in by_size.items():
                runs = max(1, size.parts // parts)
                load = await put_load(place.fresh(), _workflow(kind, parts), runs, 1)
                micros.append(1e6 * load.seconds / (runs * parts))
                computed[kind][parts].append(1e6 * load.cpu_seconds / (runs * parts))
    return {
        "us_per_part": {
            kind: {str(parts): rounded(median(micros)) for parts, micros in by_size.items()}
            for kind, by_size in taken.items()
        },
        "cpu_us_per_part": {
            kind: {str(parts): rounded(median(micros)) for parts, micros in by_size.items()}
            for kind, by_size in computed.items()
        },
    }


def table(figures: Figures) -> Iterator[Row]:
    """One line per size."""
    yield "parts of the step", *(f"{kind}, µs per part" for kind in KINDS)
    for parts in next(iter(figures["us_per_part"].values())):
        yield parts, *(figures["us_per_part"][kind][parts] for kind in KINDS)
    for parts in next(iter(figures["cpu_us_per_part"].values())):
        yield f"{parts}, computing", *(figures["cpu_us_per_part"][kind][parts] for kind in KINDS)


BENCHMARK = Benchmark(
    name="composition",
    title="What the parts of a step cost",
    measure=measure,
    table=table,
    normal=Size(parts=500),
    quick=Size(sizes=(10, 100), parts=100),
    mongodb=Size(sizes=(10, 100, 1000), parts=1000),
    mongodb_quick=Size(sizes=(10, 30), parts=30),
    rounds=3,
)
