"""From `start` to the result of a run of one step, one run at a time.

Such a run is two durable writes one after the other. Beside it stands what one such write takes in the bare loop
on the same store (see `bare`), and as raw statements (see `raw`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from benchmarks.bare import seconds_of_batches
from benchmarks.documents import recorded
from benchmarks.figures import Benchmark, Figures, Row, median, percentile, rounded
from benchmarks.load import put_load
from benchmarks.places import Place
from benchmarks.raw import seconds_of_commits
from benchmarks.workflows import nothing, workflow_of


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How many runs a round has."""

    runs: int


async def measure(place: Place, size: Size, rounds: int) -> Figures:
    """Engine and bare loop take turns; a percentile is the median of those of the rounds."""
    writes = await recorded(workflow_of(1, nothing))
    engine: list[Sequence[float]] = []
    bare: list[Sequence[float]] = []
    raw: list[Sequence[float]] = []
    for _ in range(rounds):
        load = await put_load(place.fresh(), workflow_of(1, nothing), size.runs, 1)
        engine.append(load.each)
        bare.append(await seconds_of_batches(place.fresh(), writes, size.runs, 1))
        raw.append(seconds_of_commits(place, writes, size.runs, 1))
    return {
        "p50_ms": _millis(engine, 50),
        "p99_ms": _millis(engine, 99),
        "bare_commit_p50_ms": _millis(bare, 50),
        "bare_commit_p99_ms": _millis(bare, 99),
        "raw_commit_p50_ms": _millis(raw, 50),
        "raw_commit_p99_ms": _millis(raw, 99),
    }


def _millis(rounds: Sequence[Sequence[float]], percent: float) -> float:
    return rounded(1000 * median(percentile(taken, percent) for taken in rounds))


def table(figures: Figures) -> Iterator[Row]:
    """The run and the commit."""
    yield "", "p50, ms", "p99, ms"
    yield "start to result (two commits)", figures["p50_ms"], figures["p99_ms"]
    yield "one bare commit", figures["bare_commit_p50_ms"], figures["bare_commit_p99_ms"]
    yield "one raw commit", figures["raw_commit_p50_ms"], figures["raw_commit_p99_ms"]


BENCHMARK = Benchmark(
    name="latency",
    title="From start to result, one run of one step at a time",
    measure=measure,
    table=table,
    normal=Size(runs=500),
    quick=Size(runs=10),
    mongodb=Size(runs=60),
)
