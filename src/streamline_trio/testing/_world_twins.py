"""Other versions of drawn programs, and the `migrate` that takes their runs over.

A twin does what the program does, under other ids of steps, with a step more or one less. Which of these it is
follows from the noise of the world.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import trio
from msgspec.structs import replace

from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import RunDoc
from streamline_trio._runtime.clock import Chance
from streamline_trio._runtime.snapshot import Run
from streamline_trio.testing._laws_of_versions import is_migration
from streamline_trio.testing._world_drawing import NEWER, Op, Program, StepProgram, name_of

MIXED = 4
"""One world in so many is of several versions."""
_TWINNED = 0.7
_TAKES_BACK = 0.3
_ADDED = StepProgram((Op("effect"),), attempts=3)
_KINDS = ("same", "renamed", "renamed all", "added last", "added before", "dropped")
_REFUSALS = ("never", "never", "never", "never", "none", "error", "field")


class Twins(ABC):
    """The versions of the programs of one world."""

    def __init__(self) -> None:
        self.programs: dict[tuple[str, str], Program] = {}
        """By id and version."""
        self.twins: Counter[str] = Counter()
        """How versions differ, and how they refuse."""
        self._made: dict[tuple[str, str], Workflow[Any, Any]] = {}

    @abstractmethod
    def _workflow(self, program: Program) -> Workflow[Any, Any]:
        """Its definition."""

    def program_of(self, run: RunDoc) -> Program:
        """What the run does, by the version that it is pinned to."""
        return self.programs[run.origin.workflow, run.head.version]

    def _make(self, program: Program) -> Workflow[Any, Any]:
        self.programs[program.id, program.version] = program
        made = self._made[program.id, program.version] = self._workflow(program)
        return made

    def _make_twins(self, noise: int) -> Sequence[Workflow[Any, Any]]:
        """Of some of the programs, in some of the worlds, another version."""
        if noise % MIXED != 1:
            return ()
        chance = Chance(noise)
        old = list(self.programs.values())
        chosen = [program for program in old if chance.roll() < _TWINNED] or old[:1]
        return [self._make_twin(program, chance) for program in chosen]

    def _make_twin(self, program: Program, chance: Chance) -> Workflow[Any, Any]:
        kind = _one_of(_KINDS if len(program.steps) > 1 else _KINDS[:-1], chance)
        refusal, pause = _one_of(_REFUSALS, chance), _one_of((None, 0.0, 0.5, 3.0), chance)
        twin = _twin(program, kind, chance)
        made = self._make(twin)
        made.migrate = _migrating(program, twin, refusal, pause)
        if chance.roll() < _TAKES_BACK:
            self._made[program.id, program.version].migrate = _migrating(twin, program, refusal, pause)
        self.twins[kind] += 1
        self.twins[f"refuses: {refusal}"] += 1
        return made

    # --- what must come of it ------------------------------------------------------------------------------

    def _check_versions(self, versions: Sequence[RunDoc]) -> None:
        """A run that is taken over stands where it stood, with all that its step has come to."""
        for before, after in pairwise(versions):
            if is_migration(before, after):
                self._check_takeover(before, after)

    def _check_takeover(self, before: RunDoc, after: RunDoc) -> None:
        name, new = f"{before.id} revision {after.head.revision}", self.program_of(after)
        stood = before.head.current_step
        if stood is None or name_of(stood) not in new.names or after.head.status != "running":
            return
        stands = after.head.current_step or ""
        assert name_of(stands) == name_of(stood), f"{name}: it stood at {stood} and was taken over at {stands}"
        for key, record in before.records.items():
            kept = after.records.get(key)
            assert kept == record or record.is_open, f"{name}: the outcome of {key} was lost on the way"
            assert kept is not None, f"{name}: the wait {key} was lost on the way"
        assert dict(before.pieces) == dict(after.pieces), f"{name}: parts of {stood} were lost on the way"
        was, now = before.step(stood), after.step(stands)
        assert (now.generation, now.failures) == (was.generation, was.failures), f"{name}: {stands} began anew"


def _twin(program: Program, kind: str, chance: Chance) -> Program:
    place = int(chance.roll() * len(program.steps))
    ids, steps = list(program.ids), list(program.steps)
    if kind == "renamed":
        ids[place] = f"v{ids[place][1:]}"
    elif kind == "renamed all":
        ids = [f"v{id[1:]}" for id in ids]
    elif kind == "dropped":
        del ids[place % (len(ids) - 1)], steps[place % (len(steps) - 1)]
    elif kind != "same":
        place = len(steps) if kind == "added last" else place
        ids.insert(place, "x")
        steps.insert(place, _ADDED)
    return replace(program, version=NEWER, ids=tuple(ids), steps=tuple(steps))


def _migrating(old: Program, new: Program, refusal: str, pause: float | None) -> Any:
    def migrate(run: Run) -> Run | None:
        if refusal != "never" and run.revision % 2:
            return _refuse(refusal, run)
        return _taken_over(run, old, new)

    async def migrate_slowly(run: Run) -> Run | None:
        await trio.sleep(pause or 0.0)
        return migrate(run)

    return migrate if pause is None else migrate_slowly


def _refuse(refusal: str, run: Run) -> Run | None:
    if refusal == "none":
        return None
    if refusal == "error":
        raise ValueError("so drawn")
    return replace(run, tags=("changed",))


def _taken_over(run: Run, old: Program, new: Program) -> Run:
    """Each step under its new id. A run that stands at a step that is gone goes on with the next one."""
    ids: Mapping[str, str] = dict(zip(old.names, old.ids, strict=True))
    steps = {
        id: run.steps[ids[name]] for name, id in zip(new.names, new.ids, strict=True) if ids.get(name) in run.steps
    }
    current = run.current_step
    if current is not None:
        names = old.names[old.ids.index(current) :]
        current = next((new.ids[new.names.index(name)] for name in names if name in new.names), new.ids[-1])
    return replace(run, version=new.version, current_step=current, steps=steps)


def _one_of(options: Sequence[Any], chance: Chance) -> Any:
    return options[int(chance.roll() * len(options))]
