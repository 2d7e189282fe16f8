"""One deliberate fault: an exact text of the sources, what to write instead, and what goes red."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = "src/streamline_trio"
RARE = "none of 200 schedules shows it"


class Stale(Exception):
    """The sources have moved on: a mutant's text is not there, or not once."""


class Fault(NamedTuple):
    """A mutant. `seed` is of the simulated world, or None where `blind` says why the world cannot see it.

    `world`: plain worlds, or those of flow control.
    """

    name: str
    promise: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...] = ()
    seed: int | None = None
    blind: str = ""
    world: str = "plain"

    @property
    def path(self) -> str:
        """The file, from the root of the repository."""
        return f"{PACKAGE}/{self.file}"

    def mutated(self, source: str) -> str:
        """The source with the fault in it."""
        found = source.count(self.before)
        if found != 1:
            raise Stale(f"{self.name}: its text is {found} times in {self.path}, not once:\n{self.before}")
        return source.replace(self.before, self.after)

    def apply(self, root: Path) -> None:
        """Put the fault into the tree at `root`, which must not be the one that people work in."""
        assert root.resolve() != ROOT, "mutants live in copies"
        path = root / self.path
        path.write_text(self.mutated(path.read_text()))
