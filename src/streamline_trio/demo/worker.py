"""The worker process: drives orders until it is told to stop (SIGTERM, or the end of its standard input).

What it has to say goes to standard output, a JSON object a line.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import trio

from streamline_trio import WorkflowRecovered, open_engine
from streamline_trio.demo.shop import Shop
from streamline_trio.demo.workflow import order_workflow

POLL_INTERVAL = 0.25
LEASE = 5.0
"""Seconds after which the killed worker is missed on a store that has no locks which die with a process."""


class Told(msgspec.Struct, frozen=True):
    """What a worker says: it is `ready`, or it has `recovered` a run. `at` is the machine's monotonic clock."""

    what: str
    at: float


async def work(store: str, folder: Path, name: str) -> None:
    """Drive runs until told to stop, then drain."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        workflow = order_workflow(Shop(folder, name))
        async with (
            open_engine(
                store, workflow, name=name, lease=LEASE, poll_interval=POLL_INTERVAL, drain_timeout=3.0
            ) as engine,
            trio.open_nursery() as nursery,
        ):
            engine.on("workflow.recovered", _tell_recovered)
            _tell("ready")
            nursery.start_soon(_until_orphaned, nursery.cancel_scope)
            await anext(aiter(signals))
            nursery.cancel_scope.cancel()


async def _until_orphaned(scope: trio.CancelScope) -> None:
    """Stop when the process that started this one is gone, however it went."""
    if sys.platform == "win32":
        return
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stream:
        async for _ in stream:
            pass
    scope.cancel()


def _tell_recovered(_event: WorkflowRecovered) -> None:
    _tell("recovered")


def _tell(what: str) -> None:
    os.write(sys.stdout.fileno(), msgspec.json.encode(Told(what, time.monotonic())) + b"\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and work."""
    parser = argparse.ArgumentParser(prog="python -m streamline_trio.demo.worker", description=__doc__)
    parser.add_argument("--store", required=True, help="URL of the store")
    parser.add_argument("--folder", required=True, type=Path, help="where the ledger and the mails are")
    parser.add_argument("--name", required=True, help="who signs in the ledger")
    given = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    trio.run(work, given.store, given.folder, given.name)


if __name__ == "__main__":
    main()
