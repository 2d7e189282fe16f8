"""The list of mutants fits the sources of today, and the runner tells what survives."""

import ast
import subprocess
import sys

import pytest

from tests.mutants.__main__ import main
from tests.mutants.fault import ROOT, Fault, Stale
from tests.mutants.faults import FAULTS

AT_LEAST = 130
NAMES = [fault.name for fault in FAULTS]


@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_a_mutant_is_another_program(fault):
    """Proves that its text is there once, and that what comes of it compiles and differs."""
    source = (ROOT / fault.path).read_text()
    mutated = fault.mutated(source)
    compile(mutated, fault.path, "exec")
    assert ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(source))


@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_a_mutant_says_what_it_breaks_and_what_shows_it(fault):
    """Proves that each has a promise, a test, and a seed or the reason why there is none."""
    assert fault.promise.endswith(".")
    assert fault.tests
    assert (fault.seed is None) == bool(fault.blind)


def test_there_are_many_and_each_has_its_own_name():
    """Proves that the list does not shrink unnoticed."""
    assert len(FAULTS) >= AT_LEAST
    assert len(set(NAMES)) == len(FAULTS)


def test_the_tests_of_mutants_exist():
    """Proves that every test that is to go red can be collected by its name."""
    named = {test for fault in FAULTS for test in fault.tests}
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *sorted(named)],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
    )
    assert told.returncode == 0, told.stdout
    assert named <= set(told.stdout.splitlines())


def test_a_mutant_is_tried_in_a_copy(capsys):
    """Proves that its tests and its seed go red, that all is green without it, and that the tree stays as it is."""
    fault = next(fault for fault in FAULTS if fault.name == "fence-not-raised")
    before = (ROOT / fault.path).read_text()
    assert main([fault.name]) == 0
    told = capsys.readouterr().out
    assert "without a mutant 2 tests and seeds are green" in told
    assert "1 mutants in" in told
    assert (ROOT / fault.path).read_text() == before


def test_a_survivor_is_named(capsys):
    """Proves that a change which nothing notices is reported, with its promise."""
    harmless = Fault(
        name="harmless",
        promise="Nothing.",
        file="_core/due.py",
        before="NOW = 0\n",
        after="NOW = 0 + 0\n",
        tests=("tests/unit/test_due.py::test_what_is_due_at_once_shows_since_when",),
        blind="it is harmless",
    )
    assert main(["--tests-only"], [harmless]) == 1
    assert "SURVIVED: harmless: Nothing." in capsys.readouterr().out


def test_a_mutant_whose_text_is_gone_is_loud():
    """Proves that nobody tries an unchanged program and takes it for a mutant."""
    with pytest.raises(Stale, match="0 times"):
        FAULTS[0].mutated("x = 1\n")
