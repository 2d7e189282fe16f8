"""One chaos from beginning to end: processes, clients, nemesis; then quiet, and the story of it all."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import msgspec
import trio

from streamline_trio import Engine, open_engine
from streamline_trio._core.documents import RunDoc
from streamline_trio.store import Cursor, RunQuery, Store
from tests.chaos.client import Clients, Recorder
from tests.chaos.crew import Crew
from tests.chaos.jobs import plan
from tests.chaos.journal import EFFECTS, HISTORY, Journal, Tail, read_history
from tests.chaos.nemesis import Nemesis
from tests.chaos.place import SQLITE, Place, opened_place
from tests.chaos.records import Fault, Harm, Job, Seen, Story
from tests.chaos.stores import DoubtfulStore
from tests.chaos.verbs import seen
from tests.chaos.workflows import Shapes
from tests.mongo_server import Server

WORKERS = 4
_LEAVE_WITHIN = 30.0
_AHEAD = 0.06


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How much of everything; `pause` is the mean time between two harms, in seconds.

    `store` is a kind of store, sqlite or mongodb, or the URL of an empty database.
    """

    seed: int
    runs: int
    harm: Harm
    pause: float
    store: str = SQLITE


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What was done, and the story to be checked; `problems` are those that the world itself saw."""

    story: Story
    harm: Harm
    seconds: float
    quiet_after: float
    problems: list[str]


class Told(msgspec.Struct, frozen=True):
    """How far it is."""

    begun: int
    settled: int
    harm: Harm


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
        with opened_place(self._settings.store, self._folder) as (place, server):
            return await self._run(place, server)

    async def _run(self, place: Place, server: Server | None) -> Result:
        began = time.monotonic()
        settings = self._settings
        jobs = plan(settings.seed, settings.runs)
        store = place.store()
        shapes = Shapes(Journal(self._folder), self._folder).all
        async with trio.open_nursery() as nursery:
            crew = Crew(nursery, self._folder, WORKERS)
            async with open_engine(
                DoubtfulStore(store, Random(settings.seed)),
                *shapes,
                worker=False,
                lease=place.lease,
                poll_interval=place.poll,
            ) as engine:
                await crew.fill()
                nemesis = Nemesis(
                    crew,
                    server,
                    seed=settings.seed,
                    wanted=settings.harm,
                    pause=settings.pause,
                    lease=place.lease,
                )
                await self._play(engine, crew, nemesis, jobs, place)
                await crew.close(_LEAVE_WITHIN)
                finals = await self._finals(engine)
                stored = await self._stored(store)
            nursery.cancel_scope.cancel()
        self._problems += place.flaws(stored)
        commits = {run.id: run.head.commits for run in stored}
        finals = [msgspec.structs.replace(final, commits=commits[final.id]) for final in finals]
        return Result(
            story=self._story(jobs, crew, finals, place),
            harm=nemesis.done,
            seconds=time.monotonic() - began,
            quiet_after=self._quiet_after,
            problems=self._problems,
        )

    async def _play(self, engine: Engine, crew: Crew, nemesis: Nemesis, jobs: list[Job], place: Place) -> None:
        """Clients go on as far as the nemesis has come, so that harm is done to runs of all ages."""
        settings = self._settings
        recorder = Recorder(engine, crew, self._folder, Random(f"doors {settings.seed}"))
        clients = Clients(recorder, self._folder, settings.seed, place)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report, nemesis, clients)
            async with trio.open_nursery() as players:
                players.start_soon(
                    clients.run, jobs, lambda begun: begun <= settings.runs * (nemesis.progress + _AHEAD)
                )
                await nemesis.run()
                quiet_since = time.monotonic()
                players.cancel_scope.deadline = trio.current_time() + place.quiet_within
            nursery.cancel_scope.cancel()
        self._quiet_after = time.monotonic() - quiet_since
        recorder.close()
        if clients.open:
            self._problems.append(f"not settled after {place.quiet_within:g} quiet seconds: {clients.open}")

    async def _report(self, nemesis: Nemesis, clients: Clients) -> None:
        while True:
            self._tell(Told(clients.begun, clients.settled, nemesis.done))
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

    async def _stored(self, store: Store) -> list[RunDoc]:
        """Every run, as the store itself gives it."""
        runs: list[RunDoc] = []
        after: Cursor | None = None
        while page := await store.find(RunQuery(), sort="created_at", limit=200, after=after):
            runs += page
            after = Cursor(page[-1].origin.created_at, page[-1].id)
        return runs

    def _story(self, jobs: list[Job], crew: Crew, finals: list[Seen], place: Place) -> Story:
        faults: list[Fault] = sorted(crew.faults, key=lambda fault: fault.since)
        return Story(
            jobs=jobs,
            calls=read_history(self._folder / HISTORY),
            lines=list(Tail(self._folder / EFFECTS).lines()),
            faults=faults,
            finals=finals,
            lease=place.lease,
            poll=place.poll,
            exits=crew.exits,
        )
