"""Many schedules of a simulated world; the first that breaks a law is made small and told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from streamline_trio import ValidationError
from streamline_trio.testing._world import World
from streamline_trio.testing._world_choices import Chooser, shrink
from streamline_trio.testing._world_scenario import Scenario, ScenarioMistake
from streamline_trio.testing._world_summary import Summary

Make = Callable[[Chooser], Scenario]
AroundStore = Callable[[Any], Any]


class SimulationFailed(AssertionError):
    """A schedule breaks a law. The text has the schedule; `choices` make it happen again.

    `seed` is what it was found with, `wrong` the laws that are broken, `lines` the schedule, `found_with` the
    number of choices before it was made small.
    """

    def __init__(
        self, world: World, choices: Sequence[int], *, seed: int | None, found_with: int, command: str
    ) -> None:
        self.choices: tuple[int, ...] = tuple(choices)
        self.seed: int | None = seed
        self.wrong: tuple[str, ...] = tuple(world.wrong)
        self.lines: tuple[str, ...] = tuple(world.lines())
        self.found_with: int = found_with
        super().__init__(
            "\n".join(
                [
                    "" if seed is None else f"seed {seed}, of {found_with} choices, made small",
                    *self.lines,
                    "",
                    *(f"BROKEN: {wrong}" for wrong in self.wrong),
                    "",
                    f"Again, as found:   {command.format(seed=seed)}" if seed is not None else "",
                    f"Again, this small: replay(..., {list(self.choices)})",
                ]
            )
        )


def play(make: Make, chooser: Chooser, around_store: AroundStore | None = None) -> World:
    """One schedule, to its end or to the first law that is broken."""
    world = World(make, chooser, around_store=around_store)
    world.run()
    return world


def replay(make: Make, choices: Sequence[int], *, around_store: AroundStore | None = None) -> World:
    """The schedule of recorded choices; raises `SimulationFailed` if it breaks a law (still).

    What choices mean follows from the scenario and from this version of the simulator.
    """
    world = play(make, Chooser.replayed(choices), around_store)
    if world.wrong:
        raise SimulationFailed(world, choices, seed=None, found_with=len(choices), command="")
    return world


def simulate(
    make: Make,
    *,
    schedules: int = 100,
    seed: int = 0,
    around_store: AroundStore | None = None,
    command: str = "simulate(..., schedules=1, seed={seed})",
    tries: int = 400,
) -> Summary:
    """Play schedules with the seeds from `seed` on, and say what was tried.

    `make` draws a new scenario for each. A schedule that breaks a law is made small, with at most `tries`
    replays, and raised as `SimulationFailed`, with `command` to see it again. `around_store` wraps the store,
    for instance to plant a fault that must be found. Blocks; not to be called inside trio. A scenario that makes
    no sense (a wait without an answer, an answer of the wrong type) is told as `ValidationError`.
    """
    if schedules < 1:
        raise ValidationError(f"simulate plays at least one schedule, not {schedules!r}")
    total = Summary()
    for number in range(seed, seed + schedules):
        try:
            world = play(make, Chooser.seeded(number), around_store)
        except ScenarioMistake as mistake:
            mistake.add_note(f"with seed {number}; it is a mistake of the scenario, and no law was broken")
            raise
        if world.wrong:
            raise _smallest(make, world, seed=number, around_store=around_store, command=command, tries=tries)
        total.add(world.summary)
    return total


def _smallest(
    make: Make, found: World, *, seed: int, around_store: AroundStore | None, command: str, tries: int
) -> SimulationFailed:
    def still_fails(choices: Sequence[int]) -> bool:
        try:
            return bool(play(make, Chooser.replayed(choices), around_store).wrong)
        except ScenarioMistake:  # another finding than the one that is made small
            return False

    choices = shrink(found.chooser.taken, still_fails, tries=tries)
    world = play(make, Chooser.replayed(choices), around_store)
    return SimulationFailed(world, choices, seed=seed, found_with=len(found.chooser.taken), command=command)
