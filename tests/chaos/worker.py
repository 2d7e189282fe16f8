"""A worker process: drives runs until it is killed or told to stop, and carries out requests that clients send.

A request a line comes in, a reply a line goes out; before them, `ready`. It ends when its input does, so that
none outlives the program that started it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from random import Random

import msgspec
import trio

from streamline_trio import Engine, StoreUnavailable, open_engine
from tests.chaos.journal import Journal, now
from tests.chaos.place import place_in
from tests.chaos.records import Request, Retired, Stalled
from tests.chaos.stores import FatalStore
from tests.chaos.verbs import perform
from tests.chaos.workflows import Shapes

UNAVAILABLE = 75
"""Exit status of a process that could not open the store: a frozen one held its lock, or no server was there."""
_WATCH_EVERY = 0.05
_STALLED_FROM = 0.25
_decode = msgspec.json.Decoder(Request).decode


async def work(folder: Path, dies_at: int | None, when: str) -> None:
    journal = Journal(folder)
    place = place_in(folder)
    store = FatalStore(place.store(), Random(journal.pid), journal, dies_at, when)
    is_open = False
    try:
        async with open_engine(
            store,
            *Shapes(journal, folder).all,
            lease=place.lease,
            poll_interval=place.poll,
            drain_timeout=0.5,
            max_recoveries=1000,
        ) as engine:
            is_open = True
            await _until_told_to_stop(engine, store, journal)
    except StoreUnavailable:
        if is_open:
            raise
        sys.exit(UNAVAILABLE)


async def _until_told_to_stop(engine: Engine, store: FatalStore, journal: Journal) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            os.write(1, b"ready\n")
            nursery.start_soon(_watch, engine, journal)
            nursery.start_soon(_serve, engine, store, nursery)
            await anext(aiter(signals))
            nursery.cancel_scope.cancel()


async def _serve(engine: Engine, store: FatalStore, nursery: trio.Nursery) -> None:
    """Each request in a task of its own; the end of the input is the end."""
    rest = b""
    async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
        async for data in stdin:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                request = _decode(line)
                if request.verb == "disarm":
                    store.left = None
                else:
                    nursery.start_soon(_answer, engine, request)
    nursery.cancel_scope.cancel()


async def _answer(engine: Engine, request: Request) -> None:
    reply = await perform(engine, request)
    os.write(1, msgspec.json.encode(reply) + b"\n")


async def _watch(engine: Engine, journal: Journal) -> None:
    """Write down when the loop stood still, as it does while the process is frozen, and when the id changes."""
    last = now()
    retirements = engine._machinery.worker.retirements
    while True:
        await trio.sleep(_WATCH_EVERY)
        here = now()
        if here - last > _STALLED_FROM:
            journal.add(Stalled(pid=journal.pid, since=last, until=here))
        if engine._machinery.worker.retirements != retirements:
            retirements = engine._machinery.worker.retirements
            journal.add(Retired(pid=journal.pid, at=here))
        last = here


def main(folder: str, dies_at: str = "", when: str = "before") -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    trio.run(work, Path(folder), int(dies_at) if dies_at else None, when)


if __name__ == "__main__":
    main(*sys.argv[1:])
