"""Does harm, by a seed: kills, freezes, dismisses, and has processes die at a write of their own."""

from __future__ import annotations

from random import Random

import trio

from tests.chaos.crew import Crew, Process
from tests.chaos.worker import LEASE

_ARMED_SHARE = 0.25


class Nemesis:
    """Works until the wanted numbers of kills and freezes are reached."""

    def __init__(self, crew: Crew, *, seed: int, kills: int, freezes: int, pause: float) -> None:
        self._crew = crew
        self._chance = Random(f"nemesis {seed}")
        self.kills = kills
        self.freezes = freezes
        self._pause = pause
        self._begun_freezes = 0
        self._armed = 0
        self._stopped = False
        crew.arming = self._arming  # type: ignore[method-assign]  # whoever starts the next process asks here

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        done = min(self._crew.kills, self.kills) + min(self._crew.freezes, self.freezes)
        return done / max(self.kills + self.freezes, 1)

    @property
    def is_done(self) -> bool:
        return self._crew.kills >= self.kills and self._crew.freezes >= self.freezes

    async def run(self) -> None:
        """Until all is done that was asked for; then nobody is left frozen or armed."""
        async with trio.open_nursery() as nursery:
            while not self.is_done:
                await trio.sleep(self._chance.expovariate(1 / self._pause))
                self._harm(nursery)
        self._stopped = True
        for process in self._crew.living:
            if process.is_armed:
                await process.disarm()

    def _arming(self) -> tuple[str, ...]:
        """Some processes are started so that they die at a write, just before it or just after."""
        wanted = self.kills * _ARMED_SHARE
        if self._stopped or self._armed >= wanted or self._chance.random() > 2 * _ARMED_SHARE:
            return ()
        self._armed += 1
        return (str(self._chance.randint(1, 40)), self._chance.choice(["before", "after"]))

    def _harm(self, nursery: trio.Nursery) -> None:
        living = self._crew.living
        if not living:
            return
        left_kills = self.kills - self._crew.kills
        left_freezes = self.freezes - self._begun_freezes
        victim = self._chance.choice(living)
        if self._chance.random() * (max(left_kills, 0) + 2 * max(left_freezes, 0)) < 2 * left_freezes:
            self._freeze(nursery, living, victim)
        elif left_kills > 0:
            self._kill(nursery, living, victim)

    def _freeze(self, nursery: trio.Nursery, living: list[Process], victim: Process) -> None:
        """Mostly longer than a lease, sometimes shorter; sometimes two at once."""
        both = len(living) > 2 and self._chance.random() < 0.25
        victims = self._chance.sample(living, 2) if both else [victim]
        for process in victims:
            if process.is_ready:
                self._begun_freezes += 1
                nursery.start_soon(self._crew.freeze, process, LEASE * self._chance.uniform(0.8, 2.2))

    def _kill(self, nursery: trio.Nursery, living: list[Process], victim: Process) -> None:
        match self._chance.random():
            case roll if roll < 0.08:
                for process in living:
                    self._crew.kill(process)
            case roll if roll < 0.16 and victim.is_ready:
                seconds = LEASE * self._chance.uniform(0.3, 1.5)
                nursery.start_soon(lambda: self._crew.freeze(victim, seconds, then_kill=True))
            case roll if roll < 0.22 and victim.is_ready:
                self._crew.dismiss(victim)
            case _:
                self._crew.kill(victim)
