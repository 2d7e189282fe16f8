"""Chaos on demand: `python -m tests.chaos --store mongodb --runs 500 --kills 60 --freezes 10 --restarts 6`."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec
import trio

from tests.chaos.check import check, tally
from tests.chaos.place import SQLITE
from tests.chaos.records import Harm
from tests.chaos.world import Result, Settings, Told, World


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--freezes", type=int, default=10)
    parser.add_argument("--restarts", type=int, default=6, help="of the server, if it is a private one")
    parser.add_argument("--store", default=SQLITE, help="sqlite, mongodb (a private server), or the URL of a store")
    parser.add_argument("--seed", type=int, default=None, help="what is asked and done when; one of the clock")
    parser.add_argument("--pause", type=float, default=None, help="mean seconds between two harms")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; kept")
    given = parser.parse_args()
    seed = int(time.time()) % 1_000_000 if given.seed is None else given.seed
    folder = Path(tempfile.mkdtemp(prefix="chaos-")) if given.folder is None else given.folder
    folder.mkdir(parents=True, exist_ok=True)
    harm = Harm(kills=given.kills, freezes=given.freezes, restarts=given.restarts)
    # A server needs longer for the same work, and harm is to be done all the while.
    pause = given.pause or (1.0 if given.store == SQLITE else 2.0)
    settings = Settings(seed=seed, runs=given.runs, harm=harm, pause=pause, store=given.store)
    say(f"seed {seed} on {given.store}, in {folder}")
    result = trio.run(World(folder, settings, progress=tell).run)
    (folder / "story.json").write_bytes(msgspec.json.encode(result.story))
    violations = [*result.problems, *check(result.story)]
    summarise(result)
    say(", ".join(f"{number} {what}" for what, number in tally(violations).items()))
    for violation in violations:
        say(f"VIOLATION {violation}")
    if violations:
        say(f"{len(violations)} violations with seed {seed}; everything is kept in {folder}")
        return 1
    say("every law holds")
    if given.folder is None:
        shutil.rmtree(folder)
    return 0


def tell(told: Told) -> None:
    sys.stdout.write(
        f"\r{told.begun} runs begun, {told.settled} settled, {told.harm.kills} kills,"
        f" {told.harm.freezes} freezes, {told.harm.restarts} restarts "
    )
    sys.stdout.flush()


def summarise(result: Result) -> None:
    story = result.story
    outcomes = Counter(call.outcome for call in story.calls)
    statuses = Counter(final.status for final in story.finals)
    bodies = sum(type(line).__name__ == "Entered" for line in story.lines)
    say("")
    say(f"{len(story.finals)} runs: {dict(statuses)}; {sum(f.recoveries for f in story.finals)} recoveries")
    say(f"{len(story.calls)} calls: {dict(outcomes)}; {bodies} bodies of handlers")
    say(
        f"{result.harm.kills} kills, {result.harm.freezes} freezes, {result.harm.restarts} server restarts"
        f" in {result.seconds:.0f} s; quiet {result.quiet_after:.1f} s after the last"
    )


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
