"""Does harm, by a seed: kills, freezes, dismisses, has processes die at a write of their own, kills the server."""

from __future__ import annotations

from random import Random

import msgspec
import trio

from tests.chaos.crew import Crew, Process
from tests.chaos.journal import now
from tests.chaos.records import Fault, Harm
from tests.mongo_server import Server

_ARMED_SHARE = 0.25
_LONGEST_OUTAGE = 1.5
"""Seconds that the server stays away, beside those that it takes to start."""


class Nemesis:
    """Works until as much harm is done as is wanted; without a server of ours none is killed."""

    def __init__(
        self, crew: Crew, server: Server | None, *, seed: int, wanted: Harm, pause: float, lease: float
    ) -> None:
        self._crew = crew
        self._server = server
        self._chance = Random(f"nemesis {seed}")
        self._wanted = wanted if server is not None else msgspec.structs.replace(wanted, restarts=0)
        self._pause = pause
        self._lease = lease
        self._begun_freezes = 0
        self._restarts = 0
        self._is_out = False
        self._armed = 0
        self._stopped = False
        crew.arming = self._arming  # type: ignore[method-assign]  # whoever starts the next process asks here

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        done, wanted = self.done.counts, self._wanted.counts
        return sum(map(min, done, wanted)) / max(sum(wanted), 1)

    @property
    def done(self) -> Harm:
        return Harm(kills=self._crew.kills, freezes=self._crew.freezes, restarts=self._restarts)

    @property
    def is_done(self) -> bool:
        return all(done >= wanted for done, wanted in zip(self.done.counts, self._wanted.counts, strict=True))

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
        wanted = self._wanted.kills * _ARMED_SHARE
        if self._stopped or self._armed >= wanted or self._chance.random() > 2 * _ARMED_SHARE:
            return ()
        self._armed += 1
        return (str(self._chance.randint(1, 40)), self._chance.choice(["before", "after"]))

    def _harm(self, nursery: trio.Nursery) -> None:
        living = self._crew.living
        if not living:
            return
        left_kills = max(self._wanted.kills - self._crew.kills, 0)
        left_freezes = max(self._wanted.freezes - self._begun_freezes, 0)
        left_restarts = 0 if self._is_out else self._wanted.restarts - self._restarts
        victim = self._chance.choice(living)
        roll = self._chance.random() * (left_kills + 2 * left_freezes + 2 * left_restarts)
        if roll < 2 * left_freezes:
            self._freeze(nursery, living, victim)
        elif roll < 2 * (left_freezes + left_restarts):
            nursery.start_soon(self._restart)
        elif left_kills > 0:
            self._kill(nursery, living, victim)

    async def _restart(self) -> None:
        """Kill the server, and after a moment start it on the same directory and port."""
        assert self._server is not None
        self._is_out, since = True, now()
        await trio.to_thread.run_sync(self._server.stop)
        await trio.sleep(self._chance.uniform(0, _LONGEST_OUTAGE))
        await trio.to_thread.run_sync(self._server.start)
        self._crew.faults.append(Fault(kind="outage", pid=0, since=since, until=now()))
        self._restarts += 1
        self._is_out = False

    def _freeze(self, nursery: trio.Nursery, living: list[Process], victim: Process) -> None:
        """Mostly longer than a lease, sometimes shorter; sometimes two at once."""
        both = len(living) > 2 and self._chance.random() < 0.25
        victims = self._chance.sample(living, 2) if both else [victim]
        for process in victims:
            if process.is_ready:
                self._begun_freezes += 1
                nursery.start_soon(self._crew.freeze, process, self._lease * self._chance.uniform(0.8, 2.2))

    def _kill(self, nursery: trio.Nursery, living: list[Process], victim: Process) -> None:
        match self._chance.random():
            case roll if roll < 0.08:
                for process in living:
                    self._crew.kill(process)
            case roll if roll < 0.16 and victim.is_ready:
                seconds = self._lease * self._chance.uniform(0.3, 1.5)
                nursery.start_soon(lambda: self._crew.freeze(victim, seconds, then_kill=True))
            case roll if roll < 0.22 and victim.is_ready:
                self._crew.dismiss(victim)
            case _:
                self._crew.kill(victim)
