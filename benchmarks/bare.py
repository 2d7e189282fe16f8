"""The bare loop: the durable writes of the engine, equally batched, on the same store, with no engine around them.

What the engine wrote for one run was recorded once (`documents.recorded`). The bare loop writes the same documents
for other run ids, by `Store.write`, one batch after the other: a batch holds the same write of `concurrency` runs,
which move in step. So it has everything the store does for the engine (guards, keys, encoding, one hop to the
store's thread, one synced transaction for a batch) and nothing that the engine does. All documents are made before
time is taken.

What the store itself adds to the statements is a question of its own: `raw` answers it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import msgspec

from streamline_trio._runtime.clock import Chance
from streamline_trio._runtime.store_urls import store_from
from streamline_trio.store import Applied, Insert, Update, Write

_replace = msgspec.structs.replace


async def seconds_of_batches(
    url: str, writes: Sequence[Insert | Update], runs: int, concurrency: int, *, warm: int = 0
) -> list[float]:
    """What each batch took. The first `warm` writes of each run are made before time is taken."""
    store = store_from(url)
    await store.open()
    try:
        taken: list[float] = []
        for batches in _groups(writes, runs, concurrency):
            for number, batch in enumerate(batches):
                began = time.perf_counter()
                verdicts = await store.write(batch)
                if number >= warm:
                    taken.append(time.perf_counter() - began)
                assert all(isinstance(verdict, Applied) for verdict in verdicts), "nobody else writes here"
        return taken
    finally:
        await store.aclose()


def _groups(writes: Sequence[Insert | Update], runs: int, size: int) -> Iterator[list[list[Write]]]:
    """The batches of each group of runs that are in flight together."""
    chance = Chance()
    for start in range(0, runs, size):
        count = min(size, runs - start)
        lives = [list(_life(writes, chance.run_id(time.time_ns() // 1_000_000))) for _ in range(count)]
        yield [list(batch) for batch in zip(*lives, strict=True)]


def _life(writes: Sequence[Insert | Update], run_id: str) -> Iterator[Write]:
    """The recorded writes, as those of another run."""
    first = writes[0]
    recorded = first.run if isinstance(first, Insert) else first.before
    origin = _replace(recorded.origin, id=run_id)
    for write in writes:
        if isinstance(write, Insert):
            yield Insert(_replace(write.run, origin=origin))
        else:
            before, after = _replace(write.before, origin=origin), _replace(write.after, origin=origin)
            yield Update(before, after, write.touched)
