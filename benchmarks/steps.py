"""Durable steps per second, beside the bare loop that makes the same writes on the same store (see `bare`).

The same writes as raw statements (see `raw`) stand there too: what no store could beat. On MongoDB so does the same
engine with one write per call, which tells what batches are worth, and how many commands a step takes.

Both count steps: a run of N steps is N + 1 durable writes on both sides, the first of which is its start. The time
that the engine computes, in all its threads, is told too: it does not depend on the disk and little on what else
the machine does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from benchmarks.bare import seconds_of_batches
from benchmarks.documents import carried, recorded
from benchmarks.figures import Benchmark, Figures, Row, median, rounded
from benchmarks.load import Load, put_load
from benchmarks.places import Place
from benchmarks.raw import seconds_of_commits
from benchmarks.workflows import nothing, workflow_of
from streamline_trio import Workflow


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of a run, and how many runs a round has at each concurrency."""

    steps: int = 5
    runs: dict[int, int]


async def measure(place: Place, size: Size, rounds: int) -> Figures:
    """Engine and bare loop take turns, at each concurrency in each round."""
    writes = await recorded(workflow_of(size.steps, nothing))
    levels = {concurrency: _Level(runs * size.steps) for concurrency, runs in size.runs.items()}
    for _ in range(rounds):
        for concurrency, runs in size.runs.items():
            level, workflow = levels[concurrency], workflow_of(size.steps, nothing)
            level.engine.append(await _load(place, workflow, runs, concurrency))
            bare = await seconds_of_batches(place.fresh(), writes, runs, concurrency)
            level.bare.append(sum(bare))
            level.raw.append(sum(seconds_of_commits(place, writes, runs, concurrency)))
            if place.kind == "mongodb":
                level.single.append(await _load_one_by_one(place, workflow, runs, concurrency))
    bodies = [carried(write) for write in writes]
    return {
        "concurrency": {str(concurrency): level.figures() for concurrency, level in levels.items()},
        "write_bytes": [len(write.head) + sum(map(len, write.parts)) for write in bodies],
    }


async def _load(place: Place, workflow: Workflow[Any, Any], runs: int, concurrency: int) -> Load:
    if place.kind != "mongodb":
        return await put_load(place.fresh(), workflow, runs, concurrency)
    # Whoever measures another store need not have the driver.
    from benchmarks.mongo import counted  # noqa: PLC0415

    with counted(place.fresh()) as (store, commands):
        return await put_load(store, workflow, runs, concurrency, meter=lambda: commands.round_trips)


async def _load_one_by_one(place: Place, workflow: Workflow[Any, Any], runs: int, concurrency: int) -> Load:
    from benchmarks.mongo import OneByOne  # noqa: PLC0415

    return await put_load(OneByOne(place.fresh()), workflow, runs, concurrency)


class _Level:
    """The rounds at one concurrency."""

    def __init__(self, steps: int) -> None:
        self.engine: list[Load] = []
        self.bare: list[float] = []
        self.raw: list[float] = []
        self.single: list[Load] = []
        self._steps = steps

    def figures(self) -> Figures:
        engine = self._steps / median(load.seconds for load in self.engine)
        bare = self._steps / median(self.bare)
        raw = self._steps / median(self.raw)
        cpu = median(load.cpu_seconds for load in self.engine) / self._steps
        found = {
            "engine_per_s": rounded(engine),
            "bare_per_s": rounded(bare),
            "ratio": rounded(engine / bare),
            "raw_per_s": rounded(raw),
            "ratio_to_raw": rounded(engine / raw),
            "engine_cpu_us_per_step": rounded(1e6 * cpu),
        }
        if self.single:
            single = self._steps / median(load.seconds for load in self.single)
            found["one_write_per_call_per_s"] = rounded(single)
            found["times_one_write_per_call"] = rounded(engine / single)
            found["round_trips_per_step"] = rounded(median(load.counted for load in self.engine) / self._steps)
        return found


def table(figures: Figures) -> Iterator[Row]:
    """One line per concurrency."""
    levels = figures["concurrency"]
    columns = {name: title for name, title in _COLUMNS.items() if all(name in found for found in levels.values())}
    yield "runs at a time", *columns.values()
    for level, found in levels.items():
        yield level, *(found[name] for name in columns)


_COLUMNS = {
    "engine_per_s": "engine, steps/s",
    "bare_per_s": "bare loop, steps/s",
    "ratio": "engine / bare",
    "raw_per_s": "raw statements, steps/s",
    "ratio_to_raw": "engine / raw",
    "engine_cpu_us_per_step": "engine CPU, µs/step",
    "one_write_per_call_per_s": "one write per call, steps/s",
    "times_one_write_per_call": "engine / one per call",
    "round_trips_per_step": "round trips per step",
}

BENCHMARK = Benchmark(
    name="steps",
    title="Durable steps per second, in runs of five steps that do nothing",
    measure=measure,
    table=table,
    normal=Size(runs={1: 100, 16: 400, 256: 1024}),
    quick=Size(runs={1: 2, 16: 16, 256: 256}),
    mongodb=Size(runs={1: 20, 16: 48, 64: 128}),
    mongodb_quick=Size(runs={1: 2, 16: 16}),
)
