"""What a start costs that a limit, a throttle or a debounce has to look at, beside plain starts.

Clients start runs at once, all of one key or over many; a call is over when its run is stored and its place in line
is known. The limits are low, so that nearly all starts meet them: what is measured is waiting in line, not passing.
Nothing is driven, which would take time from the starts. Rounds take turns.
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

_LIMIT = 10
_HOUR = 3600.0
_CLIENTS = 64
_SPREADS = ("one_key", "many_keys")


def _key(value: Any) -> int:
    return int(value)


_KINDS: dict[str, Workflow[Any, Any]] = {
    "plain": Workflow("bench-plain", steps={"step": nothing}),
    "limit": Workflow("bench-limit", steps={"step": nothing}, concurrency=Concurrency(_LIMIT, key=_key)),
    "throttle": Workflow("bench-throttle", steps={"step": nothing}, throttle=Throttle(_LIMIT, _HOUR, key=_key)),
    "debounce": Workflow("bench-debounce", steps={"step": nothing}, debounce=Debounce(_HOUR, key=_key)),
}


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How many starts, and over how many keys; one key comes besides."""

    starts: int
    keys: int


async def measure(place: Place, size: Size, rounds: int) -> Figures:
    """Starts per second of each kind, on one key and on many."""
    keys = dict(zip(_SPREADS, (1, size.keys), strict=True))
    seconds: dict[str, dict[str, list[float]]] = {spread: {kind: [] for kind in _KINDS} for spread in keys}
    for _ in range(rounds):
        for spread, count in keys.items():
            for kind, workflow in _KINDS.items():
                seconds[spread][kind].append(await _started(place.fresh(), workflow, size.starts, count))
    return {
        spread: {
            kind: {
                "starts_per_s": rounded(size.starts / median(found)),
                "ratio_to_plain": rounded(median(kinds["plain"]) / median(found)),
            }
            for kind, found in kinds.items()
        }
        for spread, kinds in seconds.items()
    }


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
    """One line for each kind and spread of keys."""
    yield "starts", "per s", "to plain"
    for spread in _SPREADS:
        for kind, found in figures[spread].items():
            yield f"{kind}, {spread.replace('_', ' ')}", found["starts_per_s"], found["ratio_to_plain"]


BENCHMARK = Benchmark(
    name="starts",
    title="What a start costs that is limited, throttled or debounced",
    measure=measure,
    table=table,
    normal=Size(starts=5000, keys=1000),
    quick=Size(starts=60, keys=20),
    mongodb=Size(starts=300, keys=100),
    mongodb_quick=Size(starts=20, keys=10),
    rounds=3,
)
