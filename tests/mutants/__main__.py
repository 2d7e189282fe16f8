"""Try mutants: `python -m tests.mutants [NAME...] [--list] [--tests-only | --seeds-only]`.

Ends with 1 if a mutant survives: a test or a seed that must notice it stays green.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import trio

from tests.mutants.fault import Fault
from tests.mutants.faults import FAULTS
from tests.mutants.trial import Played, Trial, attempt, control

_AT_ONCE = 2


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - a command line prints


def main(arguments: Sequence[str] | None = None, faults: Sequence[Fault] = FAULTS) -> int:
    """Try the named mutants, or all; 0 if none survives."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Try deliberate faults.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a mutant (default: all)")
    parser.add_argument("--list", action="store_true", help="only say which there are")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--tests-only", action="store_true", help="leave the simulated world out")
    only.add_argument("--seeds-only", action="store_true", help="leave the tests out")
    given = parser.parse_args(arguments)
    known = {fault.name: fault for fault in faults}
    if unknown := [name for name in given.names if name not in known]:
        parser.error(f"no mutant is called {', '.join(unknown)}")
    chosen = [known[name] for name in given.names] or list(faults)
    if given.list:
        for fault in chosen:
            say(f"{fault.name:<34} {fault.promise}")
        return 0
    return trio.run(_try_all, chosen, not given.seeds_only, not given.tests_only)


async def _try_all(faults: Sequence[Fault], tests: bool, seeds: bool) -> int:
    began = trio.current_time()
    trials: list[Trial] = []
    limiter = trio.CapacityLimiter(_AT_ONCE)
    say(f"{'mutant':<34} {'test red after':<16} seed red")
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:

        async def try_one(fault: Fault) -> None:
            async with limiter:
                trial = await attempt(fault, Path(place), tests=tests, seeds=seeds)
            trials.append(trial)
            say(_line(trial))

        async with trio.open_nursery() as nursery:
            for fault in faults:
                nursery.start_soon(try_one, fault)
        played = await control(trials, Path(place))
    say(_control_line(played))
    return _judge(trials, played, trio.current_time() - began)


def _line(trial: Trial) -> str:
    return f"{trial.fault.name:<34} {_of_tests(trial.tests):<16} {_of_seeds(trial)}"


def _of_tests(played: Played | None) -> str:
    if played is None:
        return "-"
    return f"{played.seconds:.1f} s" if played.red and not played.green else "GREEN"


def _of_seeds(trial: Trial) -> str:
    fault, played = trial.fault, trial.seeds
    if played is None:
        return f"- ({fault.blind})" if fault.seed is None else "-"
    if not played.red:
        return "GREEN"
    return played.red[0] + ("" if played.red[0] == str(fault.seed) else f" (was {fault.seed})")


def _control_line(played: Sequence[Played]) -> str:
    red = [name for one in played for name in one.red]
    broken = [one.fault for one in played if one.fault]
    if red or broken:
        return "\n".join(["without a mutant, RED:", *red, *broken])
    return f"without a mutant {sum(len(one.green) for one in played)} tests and seeds are green"


def _judge(trials: Sequence[Trial], played: Sequence[Played], seconds: float) -> int:
    survivors = [trial for trial in trials if trial.survived]
    say(f"{len(trials)} mutants in {seconds:.0f} s, {len(survivors)} survived")
    for trial in survivors:
        say(f"\nSURVIVED: {trial.fault.name}: {trial.fault.promise}")
        for part in (trial.tests, trial.seeds):
            if part is not None:
                say(part.fault or f"  green: {', '.join(part.green) or 'nothing'}")
    return int(bool(survivors) or any(one.red or one.fault for one in played))


if __name__ == "__main__":
    sys.exit(main())
