"""What is played inside a copy of the tree; its last line says as JSON what went red and what stayed green.

python -m tests.mutants.child tests NODEID...
python -m tests.mutants.child plain|flow SEED...
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import streamline_trio
from streamline_trio.testing import SimulationFailed, simulate
from streamline_trio.testing._world_flows import draw_flows
from streamline_trio.testing._world_programs import draw_programs

Told = dict[str, list[str]]


def require_copy() -> None:
    """The package under test is the copy's, not the installed one."""
    found = Path(streamline_trio.__file__)
    assert found.is_relative_to(Path.cwd() / "src"), f"{found} is not of the copy in {Path.cwd()}"


class Outcomes:
    """A plugin that gathers the outcome of each test."""

    def __init__(self) -> None:
        self.told: Told = {"red": [], "green": []}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and report.nodeid not in self.told["red"]:
            self.told["red"].append(report.nodeid)
        elif report.when == "call" and report.passed:
            self.told["green"].append(report.nodeid)


def play_tests(node_ids: list[str]) -> Told:
    outcomes = Outcomes()
    code = pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *node_ids], plugins=[outcomes])
    assert code in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}, f"pytest ended with {code!r}"
    return outcomes.told


MAKES = {"plain": draw_programs, "flow": draw_flows}


def play_seeds(world: str, seeds: Iterable[int]) -> Told:
    """One schedule of the simulated world for each, up to the first that breaks a law."""
    logging.disable(logging.CRITICAL)
    told: Told = {"red": [], "green": []}
    for seed in seeds:
        try:
            simulate(MAKES[world], schedules=1, seed=seed, tries=0)
        except SimulationFailed as failed:
            print(failed)  # noqa: T201 - told when somebody asks why
            told["red"].append(str(seed))
            break
        told["green"].append(str(seed))
    return told


def main(arguments: list[str]) -> None:
    what, *given = arguments
    require_copy()
    told = play_tests(given) if what == "tests" else play_seeds(what, map(int, given))
    print(json.dumps(told))  # noqa: T201 - read by whoever started this


if __name__ == "__main__":
    main(sys.argv[1:])
