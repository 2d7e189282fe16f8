"""Simulate the engine itself: `python -m streamline_trio.testing.world --seconds 60`.

Draws workflows at random from everything the engine can do, and schedules of faults over them, until the time
is up or a law is broken; ends with what was tried. With `--seed` and `--schedules` the same again. Worlds of flow
control (limits, throttles, debounces, triggers, tenants, schedules) are worlds of their own: `--worlds flow` plays
only them, `--worlds plain` only the others; without, they take turns.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from streamline_trio._runtime.clock import Chance
from streamline_trio.testing._world_flows import draw_flows
from streamline_trio.testing._world_programs import draw_programs
from streamline_trio.testing._world_run import Make, SimulationFailed, simulate
from streamline_trio.testing._world_summary import Summary

__all__ = ["main"]

_AT_ONCE = 50
_COMMANDS = {
    name: f"python -m streamline_trio.testing.world --worlds {name} --schedules 1 --seed {{seed}}"
    for name in ("plain", "flow")
}
_MAKES: dict[str, Make] = {"plain": draw_programs, "flow": draw_flows}


def main(arguments: Sequence[str] | None = None) -> int:
    """Play schedules; 0 if every law held."""
    parser = argparse.ArgumentParser(
        prog="python -m streamline_trio.testing.world", description="Search for faults."
    )
    parser.add_argument("--seed", type=int, help="of the first schedule (default: another one each time)")
    parser.add_argument("--seconds", type=float, help="play for so long")
    parser.add_argument("--schedules", type=int, help="play so many")
    parser.add_argument("--worlds", choices=sorted(_MAKES), help="only those (default: both)")
    given = parser.parse_args(arguments)
    seed = int(Chance().roll() * 2**40) if given.seed is None else given.seed
    print(f"seeds from {seed} on", flush=True)
    total = Summary()
    try:
        _play(total, seed, given.seconds, given.schedules, [given.worlds] if given.worlds else list(_MAKES))
    except SimulationFailed as failed:
        print(total, failed, sep="\n\n")
        return 1
    print(total)
    return 0


def _play(total: Summary, seed: int, seconds: float | None, schedules: int | None, worlds: Sequence[str]) -> None:
    """Until the time is up, or so many of each; a thousand if neither is said."""
    if seconds is None and schedules is None:
        schedules = 1000
    until = float("inf") if seconds is None else time.monotonic() + seconds
    played = 0
    while time.monotonic() < until and (schedules is None or played < schedules):
        more = _AT_ONCE if schedules is None else min(_AT_ONCE, schedules - played)
        for name in worlds:
            total.add(simulate(_MAKES[name], schedules=more, seed=seed + played, command=_COMMANDS[name]))
        played += more


if __name__ == "__main__":
    sys.exit(main())
