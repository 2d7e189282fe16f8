"""Durable steps per second, beside the bare loop that makes the same writes (see `bare`).

Both count steps: a run of N steps is N + 1 durable writes on both sides, the first of which is its start. The time
that the engine computes, in all its threads, is told too: it does not depend on the disk and little on what else
the machine does.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from benchmarks.bare import seconds_of_commits
from benchmarks.documents import writes_of_run
from benchmarks.figures import Benchmark, Figures, Row, median, rounded
from benchmarks.load import Load, put_load
from benchmarks.places import Place
from benchmarks.workflows import nothing, workflow_of


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of a run, and how many runs a round has at each concurrency."""

    steps: int = 5
    runs: dict[int, int]


async def measure(place: Place, size: Size, rounds: int) -> Figures:
    """Engine and bare loop take turns, at each concurrency in each round."""
    writes = await writes_of_run(size.steps)
    levels = {concurrency: _Level(runs * size.steps) for concurrency, runs in size.runs.items()}
    for _ in range(rounds):
        for concurrency, runs in size.runs.items():
            load = await put_load(place.fresh(), workflow_of(size.steps, nothing), runs, concurrency)
            levels[concurrency].engine.append(load)
            levels[concurrency].bare.append(sum(seconds_of_commits(place, writes, runs, concurrency)))
    return {
        "concurrency": {str(concurrency): level.figures() for concurrency, level in levels.items()},
        "write_bytes": [len(write.head) + sum(map(len, write.parts)) for write in writes],
    }


class _Level:
    """The rounds at one concurrency."""

    def __init__(self, steps: int) -> None:
        self.engine: list[Load] = []
        self.bare: list[float] = []
        self._steps = steps

    def figures(self) -> Figures:
        engine = self._steps / median(load.seconds for load in self.engine)
        bare = self._steps / median(self.bare)
        cpu = median(load.cpu_seconds for load in self.engine) / self._steps
        return {
            "engine_per_s": rounded(engine),
            "bare_per_s": rounded(bare),
            "ratio": rounded(engine / bare),
            "engine_cpu_us_per_step": rounded(1e6 * cpu),
        }


def table(figures: Figures) -> Iterator[Row]:
    """One line per concurrency."""
    yield "runs at a time", "engine, steps/s", "bare loop, steps/s", "engine / bare", "engine CPU, µs/step"
    for level, found in figures["concurrency"].items():
        told = (found["engine_per_s"], found["bare_per_s"], found["ratio"], found["engine_cpu_us_per_step"])
        yield level, *told


BENCHMARK = Benchmark(
    name="steps",
    title="Durable steps per second, in runs of five steps that do nothing",
    measure=measure,
    table=table,
    normal=Size(runs={1: 100, 16: 400, 256: 1024}),
    quick=Size(runs={1: 2, 16: 16, 256: 256}),
)
