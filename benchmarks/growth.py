"""What a step costs in a short run and in a long one.

The lengths take turns, each with the same number of runs at a time, so that commits are shared equally; a round has
about as many steps at each length. Beside it stands the bare loop (see `bare`) with the same writes.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from benchmarks.bare import seconds_of_batches
from benchmarks.documents import recorded
from benchmarks.figures import Benchmark, Figures, Row, median, rounded
from benchmarks.load import put_load
from benchmarks.places import Place
from benchmarks.workflows import nothing, workflow_of


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths of runs, runs at a time, and steps of each length in a round."""

    lengths: tuple[int, ...] = (10, 100, 1000)
    concurrency: int
    steps: int


async def measure(place: Place, size: Size, rounds: int) -> Figures:
    """Microseconds per step at each length."""
    taken: dict[int, list[float]] = {length: [] for length in size.lengths}
    bare: dict[int, list[float]] = {length: [] for length in size.lengths}
    for _ in range(rounds):
        for length, micros in taken.items():
            runs = max(size.concurrency, size.steps // length)
            workflow = workflow_of(length, nothing)
            load = await put_load(place.fresh(), workflow, runs, size.concurrency)
            micros.append(1e6 * load.seconds / (runs * length))
            writes = await recorded(workflow)
            seconds = sum(await seconds_of_batches(place.fresh(), writes, runs, size.concurrency))
            bare[length].append(1e6 * seconds / (runs * length))
    shortest, longest = min(size.lengths), max(size.lengths)
    return {
        "us_per_step": {str(length): rounded(median(micros)) for length, micros in taken.items()},
        "bare_us_per_step": {str(length): rounded(median(micros)) for length, micros in bare.items()},
        f"ratio_{longest}_to_{shortest}": rounded(median(taken[longest]) / median(taken[shortest])),
    }


def table(figures: Figures) -> Iterator[Row]:
    """One line per length."""
    yield "steps of the run", "µs per step", "to the shortest", "bare loop, µs per step"
    costs = figures["us_per_step"]
    for length, micros in costs.items():
        yield length, micros, micros / next(iter(costs.values())), figures["bare_us_per_step"][length]


BENCHMARK = Benchmark(
    name="growth",
    title="What a step costs as runs grow",
    measure=measure,
    table=table,
    normal=Size(concurrency=8, steps=8000),
    quick=Size(concurrency=2, steps=200),
    mongodb=Size(lengths=(10, 100, 300), concurrency=2, steps=600),
    mongodb_quick=Size(lengths=(10, 30), concurrency=2, steps=20),
    rounds=3,
)
