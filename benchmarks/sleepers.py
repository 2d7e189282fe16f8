"""What runs that sleep cost those that do not: claims beside them, the query behind claims, the worker's memory.

The sleepers are copies of a real run of the same workflow, written straight to the store. Their number only grows,
so that one store serves all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec

from benchmarks.documents import copies, sleeper
from benchmarks.figures import Benchmark, Figures, Row, median, rounded
from benchmarks.places import Place
from benchmarks.race import Race, race
from benchmarks.workflows import nothing, workflow_of
from streamline_trio import open_engine
from streamline_trio._runtime.store_urls import store_from
from streamline_trio.store import Applied, Route, RunDoc, Store

_BATCH = 1000
_DUE_AT_ONCE = 100
_QUERIES = 20


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of sleepers, ascending, and how many runs are claimed beside them in a round."""

    sleepers: tuple[int, ...]
    drafts: int


async def measure(place: Place, size: Size, rounds: int) -> Figures:
    """At each number of sleepers, some rounds of claiming by one worker process."""
    url, run = place.fresh(), await sleeper(1)
    found: dict[str, Figures] = {}
    there = 0
    for number in size.sleepers:
        await _add(url, run, place.folder.name, range(there, number))
        there = number
        races = [await race(place, url, drafts=size.drafts, processes=1) for _ in range(rounds)]
        found[str(number)] = _told(races, size.drafts) | {"due_query_ms": await _due_query_ms(url, size.drafts)}
    return {"sleepers": found}


async def _add(url: str, run: RunDoc, prefix: str, numbers: range) -> None:
    """Write that many sleepers."""
    store = store_from(url)
    await store.open()
    try:
        for start in range(numbers.start, numbers.stop, _BATCH):
            batch = list(copies(run, prefix, range(start, min(start + _BATCH, numbers.stop))))
            verdicts = await store.write(batch)
            assert all(isinstance(verdict, Applied) for verdict in verdicts), "their ids are new"
    finally:
        await store.aclose()


def _told(races: list[Race], drafts: int) -> Figures:
    return {
        "claim_ms": rounded(median(1000 * done.seconds / drafts for done in races)),
        "worker_mib": rounded(median(done.after.resident_mib - done.before.resident_mib for done in races)),
        "worker_tasks": median(done.after.tasks for done in races),
    }


async def _due_query_ms(url: str, drafts: int) -> float:
    """What the store takes to find a hundred runs that are due, among sleepers of the same workflow."""
    workflow = workflow_of(1, nothing)
    store = store_from(url)
    async with open_engine(store, workflow, worker=False) as client:
        started = [await client.start(workflow, None) for _ in range(min(_DUE_AT_ONCE, drafts))]
        taken = [await _due_query(store, len(started)) for _ in range(_QUERIES)]
        for run in started:
            await run.cancel()
    return rounded(1000 * median(taken))


async def _due_query(store: Store, expected: int) -> float:
    route = Route(workflow_of(1, nothing).id, "1.0.0")
    now = time.time_ns() // 1_000_000
    began = time.perf_counter()
    found = await store.due([route], now, _DUE_AT_ONCE)
    taken = time.perf_counter() - began
    assert len(found) >= expected, "those that were started are due"
    return taken


def table(figures: Figures) -> Iterator[Row]:
    """One line per number of sleepers."""
    yield "sleeping runs", "ms per claim", "due query, ms", "worker grows by, MiB", "tasks in the worker"
    for number, found in figures["sleepers"].items():
        told = (found["claim_ms"], found["due_query_ms"], found["worker_mib"], found["worker_tasks"])
        yield f"{int(number):,}", *told


BENCHMARK = Benchmark(
    name="sleepers",
    title="Claiming beside runs that sleep",
    measure=measure,
    table=table,
    normal=Size(sleepers=(0, 1_000, 100_000), drafts=500),
    quick=Size(sleepers=(0, 1_000), drafts=20),
    mongodb=Size(sleepers=(0, 500, 2_000), drafts=100),
    mongodb_quick=Size(sleepers=(0, 50), drafts=10),
    full=Size(sleepers=(0, 1_000, 100_000, 1_000_000), drafts=500),
    rounds=3,
    needs_processes=True,
)
