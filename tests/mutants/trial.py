"""Trying a mutant: in a copy of the tree, so that the one people work in is never changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import trio

from tests.mutants.fault import ROOT, Fault

SEEDS_TRIED = 60
"""From the seed on: any change of the engine or of the world makes other schedules of the same seeds."""

_COPIED = ("src", "tests", "pyproject.toml")
_PATIENCE = 180.0


class Played(NamedTuple):
    """What went red and what stayed green, after so many seconds; `fault` says why nothing is known."""

    red: tuple[str, ...] = ()
    green: tuple[str, ...] = ()
    seconds: float = 0.0
    fault: str = ""


class Trial(NamedTuple):
    """What became of a mutant; None is what was not asked."""

    fault: Fault
    tests: Played | None
    seeds: Played | None

    @property
    def survived(self) -> bool:
        """Whether anything that must go red did not."""
        tests, seeds = self.tests, self.seeds
        unfelt = tests is not None and (not tests.red or bool(tests.green))
        return unfelt or (seeds is not None and not seeds.red)


def copy_tree(target: Path) -> None:
    """What the tests need of the tree."""
    target.mkdir()
    for name in _COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name)
        else:
            shutil.copy(ROOT / name, target)


async def play(tree: Path, what: str, given: Sequence[str]) -> Played:
    """Play tests or seeds in a copy, with a Python of its own."""
    began = trio.current_time()
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "HYPOTHESIS_PROFILE": "ci"}
    done: subprocess.CompletedProcess[bytes] | None = None
    with trio.move_on_after(_PATIENCE):
        done = await trio.run_process(
            [sys.executable, "-m", "tests.mutants.child", what, *given],
            cwd=tree,
            env=environment,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    seconds = trio.current_time() - began
    if done is None:
        return Played(seconds=seconds, fault=f"the {what} hung")
    if done.returncode != 0:
        output = (done.stdout + done.stderr).decode(errors="replace")
        return Played(seconds=seconds, fault=f"the {what} could not be played:\n{output[-3000:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    return Played(tuple(told["red"]), tuple(told["green"]), seconds)


async def attempt(fault: Fault, place: Path, *, tests: bool, seeds: bool) -> Trial:
    """Apply the fault to a new copy and play what must go red."""
    tree = place / fault.name
    copy_tree(tree)
    fault.apply(tree)
    played_tests = await play(tree, "tests", fault.tests) if tests else None
    played_seeds = None
    if seeds and fault.seed is not None:
        tried = range(fault.seed, fault.seed + SEEDS_TRIED)
        played_seeds = await play(tree, fault.world, [str(seed) for seed in tried])
    shutil.rmtree(tree)
    return Trial(fault, played_tests, played_seeds)


async def control(trials: Sequence[Trial], place: Path) -> list[Played]:
    """The same tests and seeds without any fault: all must be green."""
    tests = dict.fromkeys(test for trial in trials if trial.tests for test in trial.fault.tests)
    seeds = {
        world: dict.fromkeys(
            seed for trial in trials if trial.seeds and trial.fault.world == world for seed in trial.seeds.red
        )
        for world in ("plain", "flow")
    }
    tree = place / "control"
    copy_tree(tree)
    played = [await play(tree, what, [*given]) for what, given in (("tests", tests), *seeds.items()) if given]
    shutil.rmtree(tree)
    return played
