"""A process that starts its share of the runs, all at once, and works until it is killed."""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

import trio

from streamline_trio import ConcurrencyLimitReached, Engine, StoreUnavailable, open_engine
from tests.races.workflows import KINDS, Journal, workflows

OPTIONS: dict[str, Any] = {"lease": 2.0, "poll_interval": 0.1, "max_recoveries": 100}
SPREAD = 0.15


def wall() -> int:
    """The machine's clock, in milliseconds."""
    return time.time_ns() // 1_000_000


def tell(word: str) -> None:
    """To whoever started this process."""
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


async def start_one(engine: Engine, journal: Journal, value: int, chance: random.Random) -> None:
    """One start: noted before it is asked for and after it was answered."""
    kind, key = KINDS[value % len(KINDS)], f"k{chance.randrange(3)}"
    given = f"unique-{key}" if kind == "keyed" else None
    await trio.sleep(chance.uniform(0, SPREAD))
    journal.add(asked=value, workflow=kind, key=key, at=wall())
    try:
        handle = await engine.start(kind, {"key": key, "value": value}, idempotency_key=given)
    except ConcurrencyLimitReached as error:
        journal.add(refused=value, holding=error.meta["holding"], at=wall())
    except StoreUnavailable:
        return  # a busy machine: it stays unknown whether it was started
    else:
        journal.add(told=value, run=handle.id, at=wall())


async def main(url: str, folder: str, seed: int, values: list[int]) -> None:
    journal, chance = Journal(folder), random.Random(seed)
    async with open_engine(url, *workflows(journal), **OPTIONS) as engine:
        engine.on("workflow.completed", lambda event: journal.add(settled=event.run_id, at=wall()))
        tell("ready")
        await trio.to_thread.run_sync(sys.stdin.readline)
        async with trio.open_nursery() as nursery:
            for value in values:
                nursery.start_soon(start_one, engine, journal, value, chance)
        tell("started")
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))
