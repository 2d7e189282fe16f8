"""What a start costs that a limit, a throttle or a debounce has to look at, beside plain starts.

Clients start runs at once, all of one key or over many; a call is over when its run is stored and its place in line
is known. The limits are low, so that nearly all starts meet them: what is measured is waiting in line, not passing.
Nothing is driven, which would take time from the starts. Rounds take turns.

Besides, what it costs to let the next one in where many queue behind one key: as many runs are let in and driven,
one after the other, of queues of different lengths, whose drafts are written straight to the store.
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
from streamline_trio import Concurrency, Debounce, Store, Throttle, Workflow, open_engine
from streamline_trio._runtime.store_urls import store_from
from streamline_trio.store import Applied, Insert, RunDoc

_LIMIT = 10
_HOUR = 3600.0
_CLIENTS = 64
_SPREADS = ("one_key", "many_keys")
_replace = msgspec.structs.replace


def _key(value: Any) -> int:
    return int(value)


_KINDS: dict[str, Workflow[Any, Any]] = {
    "plain": Workflow("bench-plain", steps={"step": nothing}),
    "limit": Workflow("bench-limit", steps={"step": nothing}, concurrency=Concurrency(_LIMIT, key=_key)),
    "throttle": Workflow("bench-throttle", steps={"step": nothing}, throttle=Throttle(_LIMIT, _HOUR, key=_key)),
    "debounce": Workflow("bench-debounce", steps={"step": nothing}, debounce=Debounce(_HOUR, key=_key)),
}


_LINE: Workflow[Any, Any] = Workflow("bench-line", steps={"step": nothing}, concurrency=Concurrency(1))
_BATCH = 1000


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How many starts, and over how many keys; one key comes besides. `queues`: how long they are, ascending."""

    starts: int
    keys: int
    queues: tuple[int, ...]


async def measure(place: Place, size: Size, rounds: int) -> Figures:
    """Starts per second of each kind, on one key and on many."""
    keys = dict(zip(_SPREADS, (1, size.keys), strict=True))
    seconds: dict[str, dict[str, list[float]]] = {spread: {kind: [] for kind in _KINDS} for spread in keys}
    for _ in range(rounds):
        for spread, count in keys.items():
            for kind, workflow in _KINDS.items():
                seconds[spread][kind].append(await _started(place.fresh(), workflow, size.starts, count))
    figures: Figures = {
        spread: {
            kind: {
                "starts_per_s": rounded(size.starts / median(found)),
                "ratio_to_plain": rounded(median(kinds["plain"]) / median(found)),
            }
            for kind, found in kinds.items()
        }
        for spread, kinds in seconds.items()
    }
    # Memory is gone when the client that has filled the queue is.
    promotions = await _promotions(place, size.queues, rounds) if place.is_shared else {}
    return figures | {"promotions": promotions}


async def _promotions(place: Place, queues: tuple[int, ...], rounds: int) -> Figures:
    """How many of each queue are let in and driven in a second, as many of the long ones as of the shortest."""
    taken: dict[int, float] = {}
    for queued in queues:
        url = place.fresh()
        await _queue_up(url, queued + rounds * queues[0])
        taken[queued] = median([await _promoted(url, queues[0]) for _ in range(rounds)])
    return {
        str(queued): {
            "promotions_per_s": rounded(queues[0] / seconds),
            "ratio_to_shortest": rounded(taken[queues[0]] / seconds),
        }
        for queued, seconds in taken.items()
    }


async def _queue_up(url: str, queued: int) -> None:
    """One run that has the slot, and as many drafts behind it."""
    store = store_from(url)
    async with open_engine(store, _LINE, worker=False) as client:
        await client.start(_LINE)
        behind = await store.load((await client.start(_LINE)).id)
        assert behind is not None, "it was started"
        assert behind.head.slot is not None, "it queues"
        await client.run(behind.id).cancel()
        for start in range(0, queued, _BATCH):
            numbers = range(start, min(start + _BATCH, queued))
            verdicts = await store.write([Insert(_in_line(behind, number)) for number in numbers])
            assert all(isinstance(verdict, Applied) for verdict in verdicts), "their ids are new"


def _in_line(run: RunDoc, number: int) -> RunDoc:
    """The same draft, further behind."""
    assert run.head.slot is not None, "it queues"
    slot = _replace(run.head.slot, ticket=run.head.slot.ticket + number, acquisition=number)
    origin = _replace(run.origin, id=f"in-line-{number:09d}", start_id=number)
    return _replace(run, origin=origin, head=_replace(run.head, slot=slot, errand_at=None), outbox={})


async def _promoted(url: str, wanted: int) -> float:
    """Seconds until so many have been let in and are done."""
    done, enough = 0, trio.Event()

    def count(_event: object) -> None:
        nonlocal done
        done += 1
        if done == wanted:
            enough.set()

    async with open_engine(url, _LINE) as engine:
        engine.on("workflow.completed", count)
        began = time.perf_counter()
        await enough.wait()
        return time.perf_counter() - began


async def _started(store: Store | str, workflow: Workflow[Any, Any], starts: int, keys: int) -> float:
    """Seconds until the last start has returned."""
    numbers = iter(range(starts))
    async with open_engine(store, workflow, worker=False) as engine:
        await engine.start(workflow, -1)
        settle_memory()

        async def client() -> None:
            for number in numbers:
                await engine.start(workflow, number % keys)

        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(_CLIENTS):
                nursery.start_soon(client)
        return time.perf_counter() - began


def table(figures: Figures) -> Iterator[Row]:
    """One line for each kind and spread of keys, and for each length of a queue."""
    yield "starts", "per s", "to plain"
    for spread in _SPREADS:
        for kind, found in figures[spread].items():
            yield f"{kind}, {spread.replace('_', ' ')}", found["starts_per_s"], found["ratio_to_plain"]
    yield "let in", "per s", "to shortest"
    for queued, found in figures["promotions"].items():
        yield f"of {int(queued):,} in line", found["promotions_per_s"], found["ratio_to_shortest"]


BENCHMARK = Benchmark(
    name="starts",
    title="What a start costs that is limited, throttled or debounced",
    measure=measure,
    table=table,
    normal=Size(starts=5000, keys=1000, queues=(100, 100_000)),
    quick=Size(starts=60, keys=20, queues=(10, 100)),
    mongodb=Size(starts=300, keys=100, queues=(20, 2_000)),
    mongodb_quick=Size(starts=20, keys=10, queues=(10, 100)),
    rounds=3,
)
