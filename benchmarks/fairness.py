"""What a tenant with much to do costs one with little: a worker drives both from one queue.

Tenant `noisy` has its runs in the queue from the beginning. Now and then tenant `quiet` puts one run beside them,
and the next soon after that one was begun: what counts is how long it stands in the queue, in seconds and in runs
of the other tenant that are begun meanwhile. The same is measured with runs taken by priority and age alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from unittest.mock import patch

import msgspec
import trio

from benchmarks.documents import claim, copies
from benchmarks.figures import Benchmark, Figures, Row, median, rounded
from benchmarks.load import until
from benchmarks.places import Place
from benchmarks.workflows import workflow_of
from streamline_trio import StepContext, open_engine
from streamline_trio._runtime.fair_share import FairShare
from streamline_trio._runtime.store_urls import store_from
from streamline_trio.store import Applied, Insert, RunDoc

_BATCH = 1000
_LOOKS_EVERY = 0.05
_replace = msgspec.structs.replace


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Runs of the noisy tenant, how many the worker drives at a time, and the seconds each takes."""

    noisy: int
    places: int = 20
    seconds: float = 0.005


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """The waits of the quiet tenant's runs, in seconds and in runs begun before; and all runs per second."""

    seconds: list[float]
    claims: list[int]
    runs_per_s: float


async def measure(place: Place, size: Size, rounds: int) -> Figures:
    """With and without turns, which take turns."""
    found: dict[str, list[Served]] = {"in_turn": [], "by_priority_alone": []}
    for _ in range(rounds):
        found["in_turn"].append(await _served(place, size))
        with patch.object(FairShare, "due_in_turn", return_value=0):
            found["by_priority_alone"].append(await _served(place, size))
    return {name: _told(runs) for name, runs in found.items()}


def _told(rounds: list[Served]) -> Figures:
    seconds = [wait for served in rounds for wait in served.seconds]
    claims = [wait for served in rounds for wait in served.claims]
    return {
        "quiet_runs": len(seconds),
        "median_wait_s": rounded(median(seconds)),
        "longest_wait_s": rounded(max(seconds)),
        "median_wait_claims": median(claims),
        "longest_wait_claims": max(claims),
        "runs_per_s": rounded(median(served.runs_per_s for served in rounds)),
    }


async def _served(place: Place, size: Size) -> Served:
    """One worker from the first run to the last of the noisy tenant."""
    first = (await claim())[0]
    assert isinstance(first, Insert), "a run begins with its insert"
    store, begun, name = store_from(place.fresh()), dict[str, tuple[float, int]](), place.folder.name
    waits: list[tuple[float, int]] = []

    async def handler(ctx: StepContext) -> None:
        begun[ctx.run_id] = (time.perf_counter(), len(begun))
        await trio.sleep(size.seconds)

    async def ask(number: int) -> None:
        asked, before = time.perf_counter(), len(begun)
        (insert,) = _of("quiet", first.run, f"quiet-{name}", range(number, number + 1))
        assert await store.write([insert]) == [Applied()]

        async def has_begun() -> bool:
            await trio.lowlevel.checkpoint()
            return insert.run.id in begun

        await until(has_begun, every=_LOOKS_EVERY / 50)
        at, before_it = begun[insert.run.id]
        waits.append((at - asked, before_it - before))

    async def ask_now_and_then() -> None:
        while len(begun) < size.noisy:
            await ask(len(waits))
            await trio.sleep(_LOOKS_EVERY)

    await store.open()
    try:
        for start in range(0, size.noisy, _BATCH):
            numbers = range(start, min(start + _BATCH, size.noisy))
            verdicts = await store.write(_of("noisy", first.run, f"noisy-{name}", numbers))
            assert all(isinstance(verdict, Applied) for verdict in verdicts), "their ids are new"
        began = time.perf_counter()
        async with open_engine(store, workflow_of(1, handler), max_concurrent_runs=size.places):
            await ask_now_and_then()
            taken = time.perf_counter() - began
    finally:
        await store.aclose()
    seconds, claims = zip(*waits, strict=True)
    return Served(seconds=list(seconds), claims=list(claims), runs_per_s=len(begun) / taken)


def _of(tenant: str, run: RunDoc, prefix: str, numbers: range) -> list[Insert]:
    now = time.time_ns() // 1_000_000
    mine = _replace(run, origin=_replace(run.origin, tenant=tenant, created_at=now))
    return list(copies(mine, prefix, numbers))


def table(figures: Figures) -> Iterator[Row]:
    """One line with turns, one without."""
    yield "", "quiet runs", "median wait, s", "longest, s", "median wait, claims", "longest, claims", "runs/s"
    for name, title in (("in_turn", "in turn"), ("by_priority_alone", "by priority alone")):
        found = figures[name]
        waits = ("quiet_runs", "median_wait_s", "longest_wait_s", "median_wait_claims", "longest_wait_claims")
        yield title, *(found[each] for each in waits), found["runs_per_s"]


BENCHMARK = Benchmark(
    name="fairness",
    title="A tenant with few runs beside one with many",
    measure=measure,
    table=table,
    normal=Size(noisy=20_000),
    quick=Size(noisy=60, places=2),
    mongodb=Size(noisy=600),
    mongodb_quick=Size(noisy=20, places=2),
    rounds=1,
)
