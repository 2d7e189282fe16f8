"""Durable steps per second, beside the bare loop that makes the same writes on the same store (see `bare`).

The same writes as raw statements (see `raw`) stand there too: what no store could beat.

Both count steps: a run of N steps is N + 1 durable writes on both sides, the first of which is its start. The time
that the engine computes, in all its threads, is told too: it does not depend on the disk and little on what else
the machine does.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from benchmarks.bare import seconds_of_batches
from benchmarks.documents import carried, recorded
from benchmarks.figures import Benchmark, Figures, Row, median, rounded
from benchmarks.load import Load, put_load
from benchmarks.places import Place
from benchmarks.raw import seconds_of_commits
from benchmarks.workflows import nothing, workflow_of


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of a run, and how many runs a round has at each concurrency."""

    steps: int = 5
    runs: dict[int, int]


async def measure(place: Place, size: Size, rounds: int) -> Figures:
    """Engine and bare loop take turns, at each concurrency in each round."""
    writes = await recorded(workflow_of(size.steps, nothing))
    bodies = [carried(write) for write in writes]
    levels = {concurrency: _Level(runs * size.steps) for concurrency, runs in size.runs.items()}
    for _ in range(rounds):
        for concurrency, runs in size.runs.items():
            load = await put_load(place.fresh(), workflow_of(size.steps, nothing), runs, concurrency)
            levels[concurrency].engine.append(load)
            bare = await seconds_of_batches(place.fresh(), writes, runs, concurrency)
            levels[concurrency].bare.append(sum(bare))
            levels[concurrency].raw.append(sum(seconds_of_commits(place, bodies, runs, concurrency)))
    return {
        "concurrency": {str(concurrency): level.figures() for concurrency, level in levels.items()},
        "write_bytes": [len(write.head) + sum(map(len, write.parts)) for write in bodies],
    }


class _Level:
    """The rounds at one concurrency."""

    def __init__(self, steps: int) -> None:
        self.engine: list[Load] = []
        self.bare: list[float] = []
        self.raw: list[float] = []
        self._steps = steps

    def figures(self) -> Figures:
        engine = self._steps / median(load.seconds for load in self.engine)
        bare = self._steps / median(self.bare)
        raw = self._steps / median(self.raw)
        cpu = median(load.cpu_seconds for load in self.engine) / self._steps
        return {
            "engine_per_s": rounded(engine),
            "bare_per_s": rounded(bare),
            "ratio": rounded(engine / bare),
            "raw_per_s": rounded(raw),
            "ratio_to_raw": rounded(engine / raw),
            "engine_cpu_us_per_step": rounded(1e6 * cpu),
        }


def table(figures: Figures) -> Iterator[Row]:
    """One line per concurrency."""
    yield (
        "runs at a time",
        "engine, steps/s",
        "bare loop, steps/s",
        "engine / bare",
        "raw statements, steps/s",
        "engine / raw",
        "engine CPU, µs/step",
    )
    for level, found in figures["concurrency"].items():
        yield level, *(found[name] for name in _COLUMNS)


_COLUMNS = ("engine_per_s", "bare_per_s", "ratio", "raw_per_s", "ratio_to_raw", "engine_cpu_us_per_step")

BENCHMARK = Benchmark(
    name="steps",
    title="Durable steps per second, in runs of five steps that do nothing",
    measure=measure,
    table=table,
    normal=Size(runs={1: 100, 16: 400, 256: 1024}),
    quick=Size(runs={1: 2, 16: 16, 256: 256}),
)
