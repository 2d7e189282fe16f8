"""Many races, one after the other: `python -m tests.races --store sqlite --repeats 20`."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import trio

from tests import mongo_server
from tests.races.race import Result, race

MOST = 10


@contextlib.contextmanager
def stores(kind: str) -> Iterator[Callable[[Path], str]]:
    """Makes the URL of a fresh store for a race in this folder."""
    if kind == "sqlite":
        yield lambda folder: f"sqlite:///{folder}/runs.db"
        return
    numbers = itertools.count()
    with mongo_server.temporary() as server:
        yield lambda _folder: mongo_server.of_database(server, f"race_{next(numbers)}", "")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.races", description=__doc__)
    parser.add_argument("--store", choices=("sqlite", "mongodb"), default="sqlite")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    faults = 0
    with stores(options.store) as url_of:
        for seed in range(options.seed, options.seed + options.repeats):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                result: Result = trio.run(race, url_of(folder), folder, seed, options.kills)
            faults += len(result.faults)
            sys.stdout.write(
                f"seed {seed}: {result.runs} runs, {result.acknowledged} acknowledged, {result.refused} refused, "
                f"{result.unanswered} unanswered, {result.kills} kills, {result.seconds:.1f} s, "
                f"{len(result.faults)} faults\n"
            )
            for fault in result.faults[:MOST]:
                sys.stdout.write(f"  {fault}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{options.repeats} races on {options.store}: {faults} faults\n")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
