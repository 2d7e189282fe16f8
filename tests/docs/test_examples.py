"""The example programs run."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(EXAMPLES.rglob("*.py"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: str(program.relative_to(EXAMPLES)))
def test_the_program_runs_and_runs_again(program, tmp_path):
    """Proves that the example works, also on what it has left behind: the second time it says the same."""
    first, second = (
        subprocess.run([sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True, check=False)
        for _ in range(2)
    )
    assert (first.returncode, first.stderr) == (0, "")
    assert (second.returncode, second.stderr) == (0, "")
    assert first.stdout
    assert sorted(first.stdout.splitlines()) == sorted(second.stdout.splitlines())
