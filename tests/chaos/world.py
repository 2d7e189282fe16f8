"""One chaos from beginning to end: processes, clients, nemesis; then quiet, and the story of it all."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import msgspec
import trio

from streamline_trio import Engine, SqliteStore, open_engine
from tests.chaos.client import Clients, Recorder
from tests.chaos.crew import Crew
from tests.chaos.jobs import plan
from tests.chaos.journal import EFFECTS, HISTORY, Journal, Tail, read_history
from tests.chaos.nemesis import Nemesis
from tests.chaos.records import Fault, Job, Seen, Story
from tests.chaos.stores import DoubtfulStore
from tests.chaos.verbs import seen
from tests.chaos.worker import BUSY, LEASE, POLL, STORE
from tests.chaos.workflows import Shapes

WORKERS = 4
QUIET_WITHIN = 60.0
"""With all faults off, every run has settled after so many seconds."""
_LEAVE_WITHIN = 30.0
_AHEAD = 0.06


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How much of everything; `pause` is the mean time between two harms, in seconds."""

    seed: int
    runs: int
    kills: int
    freezes: int
    pause: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What was done, and the story to be checked; `problems` are those that the world itself saw."""

    story: Story
    kills: int
    freezes: int
    seconds: float
    quiet_after: float
    problems: list[str]


class Told(msgspec.Struct, frozen=True):
    """How far it is."""

    begun: int
    settled: int
    kills: int
    freezes: int


def _silent(_told: Told) -> None:
    """Nobody wants to know how far it is."""


class World:
    """Holds what the parts of one chaos share."""

    def __init__(self, folder: Path, settings: Settings, progress: Callable[[Told], None] = _silent) -> None:
        self._folder = folder
        self._settings = settings
        self._tell = progress
        self._problems: list[str] = []
        self._quiet_after = 0.0

    async def run(self) -> Result:
        began = time.monotonic()
        settings = self._settings
        jobs = plan(settings.seed, settings.runs)
        shapes = Shapes(Journal(self._folder), self._folder).all
        async with trio.open_nursery() as nursery:
            crew = Crew(nursery, self._folder, WORKERS)
            async with open_engine(
                DoubtfulStore(SqliteStore(self._folder / STORE, busy_timeout=BUSY), Random(settings.seed)),
                *shapes,
                worker=False,
                lease=LEASE,
                poll_interval=POLL,
            ) as engine:
                await crew.fill()
                await self._play(engine, crew, jobs)
                await crew.close(_LEAVE_WITHIN)
                finals = await self._finals(engine)
            nursery.cancel_scope.cancel()
        self._look_at_the_file()
        return Result(
            story=self._story(jobs, crew, finals),
            kills=crew.kills,
            freezes=crew.freezes,
            seconds=time.monotonic() - began,
            quiet_after=self._quiet_after,
            problems=self._problems,
        )

    async def _play(self, engine: Engine, crew: Crew, jobs: list[Job]) -> None:
        """Clients go on as far as the nemesis has come, so that harm is done to runs of all ages."""
        settings = self._settings
        nemesis = Nemesis(
            crew, seed=settings.seed, kills=settings.kills, freezes=settings.freezes, pause=settings.pause
        )
        recorder = Recorder(engine, crew, self._folder, Random(f"doors {settings.seed}"))
        clients = Clients(recorder, self._folder, settings.seed)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report, crew, clients)
            async with trio.open_nursery() as players:
                players.start_soon(
                    clients.run, jobs, lambda begun: begun <= settings.runs * (nemesis.progress + _AHEAD)
                )
                await nemesis.run()
                quiet_since = time.monotonic()
                players.cancel_scope.deadline = trio.current_time() + QUIET_WITHIN
            nursery.cancel_scope.cancel()
        self._quiet_after = time.monotonic() - quiet_since
        recorder.close()
        if clients.open:
            self._problems.append(f"not settled after {QUIET_WITHIN:g} quiet seconds: {clients.open}")

    async def _report(self, crew: Crew, clients: Clients) -> None:
        while True:
            self._tell(Told(clients.begun, clients.settled, crew.kills, crew.freezes))
            await trio.sleep(1)

    async def _finals(self, engine: Engine) -> list[Seen]:
        """Every run there is."""
        finals: list[Seen] = []
        cursor: str | None = None
        while True:
            page = await engine.find(sort="created_at", limit=200, cursor=cursor)
            finals += map(seen, page.items)
            cursor = page.cursor
            if cursor is None:
                return finals

    def _look_at_the_file(self) -> None:
        connection = sqlite3.connect(self._folder / STORE)
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
        connection.close()
        if verdict != "ok":
            self._problems.append(f"the file is broken: {verdict}")

    def _story(self, jobs: list[Job], crew: Crew, finals: list[Seen]) -> Story:
        faults: list[Fault] = sorted(crew.faults, key=lambda fault: fault.since)
        return Story(
            jobs=jobs,
            calls=read_history(self._folder / HISTORY),
            lines=list(Tail(self._folder / EFFECTS).lines()),
            faults=faults,
            finals=finals,
            exits=crew.exits,
        )
