"""The clients: each plays one job through engines of several processes, and writes down every call."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import trio

from streamline_trio import Engine
from tests.chaos.crew import Crew
from tests.chaos.journal import EFFECTS, HISTORY, Appender, Tail, now
from tests.chaos.place import Place
from tests.chaos.records import Completed, Did, Invoked, Job, Outcome, Reply, Request, Seen
from tests.chaos.verbs import CLOSED, LONGEST, perform
from tests.chaos.workflows import NOTE, herald_of

SETTLED = frozenset({"done", "failed", "cancelled"})
_REMOTE_SHARE = 0.5


class Recorder:
    """Calls through some engine, here or in a worker process, each with two lines in the history."""

    def __init__(self, engine: Engine, crew: Crew, folder: Path, chance: Random) -> None:
        self._engine = engine
        self._crew = crew
        self._chance = chance
        self._ids = count(1)
        self._file = Appender(folder / HISTORY)

    async def call(self, verb: str, job: Job, **what: Any) -> Reply:
        """Once; `info` when nobody knows whether it happened."""
        request = Request(id=next(self._ids), verb=verb, job=job.number, **what)
        able = self._crew.able
        remote = self._chance.choice(able) if able and self._chance.random() < _REMOTE_SHARE else None
        door = "here" if remote is None else str(remote.pid)
        self._file.add(Invoked(request=request, door=door, at=now()))
        reply: Reply | None = Reply(id=request.id, outcome="info", error="no answer in time")
        if remote is None:
            reply = await perform(self._engine, request)
        else:
            with trio.move_on_after(2 * LONGEST):
                reply = await remote.ask(request)
        if reply is None:
            reply = Reply(id=request.id, outcome="info", error="the process ended")
        self._file.add(Completed(reply=reply, at=now()))
        return reply

    async def insist(self, verb: str, job: Job, **what: Any) -> Reply:
        """The same again until it is known to have happened, or to be refused."""
        while True:
            reply = await self.call(verb, job, **what)
            if reply.outcome == "ok" or (reply.outcome == "fail" and reply.error != CLOSED):
                return reply
            await trio.sleep(self._chance.uniform(0.05, 0.4))

    async def read(self, job: Job, run: str) -> Seen:
        while True:
            reply = await self.call("read", job, run=run)
            if reply.outcome == "ok":
                return msgspec.convert(reply.value, Seen)
            await trio.sleep(self._chance.uniform(0.2, 0.6))

    def close(self) -> None:
        self._file.close()


class Clients:
    """Plays all jobs, some at a time, no faster than `may_begin` says."""

    def __init__(self, recorder: Recorder, folder: Path, seed: int, place: Place) -> None:
        self._recorder = recorder
        self._folder = folder
        self._seed = seed
        self._place = place
        self._tail = Tail(folder / EFFECTS)
        self._tokens: defaultdict[str, list[str]] = defaultdict(list)
        (folder / "fixed").mkdir()
        self.begun = 0
        self.settled = 0
        self.open: dict[int, str] = {}

    async def run(self, jobs: list[Job], may_begin: Callable[[int], bool]) -> None:
        """Until every run has settled."""
        limit = trio.CapacityLimiter(self._place.at_once)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._gather_tokens)
            async with trio.open_nursery() as players:
                for job in jobs:
                    while not may_begin(self.begun):  # noqa: ASYNC110 - what it waits for is told by no event
                        await trio.sleep(0.05)
                    self.begun += 1
                    await players.start(self._play, job, limit)
            nursery.cancel_scope.cancel()

    async def _gather_tokens(self) -> None:
        """Tokens come to people by way of the journal, as by mail."""
        while True:
            for line in self._tail.lines():
                if isinstance(line, Did) and line.what == "token":
                    self._tokens[line.run].append(line.value)
            await trio.sleep(0.05)

    async def _play(self, job: Job, limit: trio.CapacityLimiter, task_status: trio.TaskStatus[None]) -> None:
        async with limit:
            task_status.started()
            self.open[job.number] = "starting"
            chance = Random(f"client {self._seed} {job.number}")
            await self._play_once(job, chance)
            if job.again:
                await self._play_once(job, chance)
            del self.open[job.number]
            self.settled += 1

    async def _play_once(self, job: Job, chance: Random) -> None:
        run = await self._start(job, chance)
        self.open[job.number] = run
        async with trio.open_nursery() as nursery:
            if job.cancel_after is not None:
                nursery.start_soon(self._cancel, job, run)
            if job.pause_after is not None:
                nursery.start_soon(self._pause, job, run)
            if job.shape in _DOINGS:
                nursery.start_soon(_DOINGS[job.shape], self, job, run, chance)
            await self._until_settled(job, run, chance)
            if job.shape == "broken":
                await self._mend(job, run, chance)
            nursery.cancel_scope.cancel()

    async def _start(self, job: Job, chance: Random) -> str:
        """Under one key, from several tasks at once, and again after every error."""
        runs: list[str] = []

        async def start_one() -> None:
            await trio.sleep(chance.uniform(0, 0.02))
            reply = await self._recorder.insist(
                "start", job, workflow=job.shape, key=job.key, payload=msgspec.to_builtins(job)
            )
            runs.append(reply.value)

        async with trio.open_nursery() as nursery:
            for _ in range(job.twins):
                nursery.start_soon(start_one)
        return runs[-1]

    async def _until_settled(self, job: Job, run: str, chance: Random) -> Seen:
        while True:
            await trio.sleep(self._place.look_every * chance.uniform(0.5, 1.5))
            found = await self._recorder.read(job, run)
            if found.status in SETTLED:
                return found

    async def _cancel(self, job: Job, run: str) -> None:
        await trio.sleep(job.cancel_after or 0)
        await self._recorder.insist("cancel", job, run=run)

    async def _pause(self, job: Job, run: str) -> None:
        await trio.sleep(job.pause_after or 0)
        reply = await self._recorder.insist("pause", job, run=run)
        if reply.outcome == "ok":
            await trio.sleep(job.pause_for)
            await self._recorder.insist("unpause", job, run=run)

    async def _mend(self, job: Job, run: str, chance: Random) -> None:
        """Repair what made it fail, and have it tried again."""
        (self._folder / "fixed" / job.key).touch()
        reply = await self._recorder.insist("retry", job, run=run)
        if reply.outcome == "ok":
            await self._until_settled(job, run, chance)

    async def _answer(self, job: Job, run: str, chance: Random) -> None:
        """As soon as there is a token, or a little later; with other tokens as they come, until one is taken."""
        if not job.answered:
            return
        attempts = count(1)
        while True:
            for token in reversed(self._tokens[run]):
                await trio.sleep(chance.uniform(0, 1.2))
                outcomes: list[Outcome] = []
                async with trio.open_nursery() as nursery:
                    for rival in range(job.rivals):
                        payload = f"{job.number} {next(attempts)} {rival}"
                        nursery.start_soon(self._resume, job, run, token, payload, outcomes)
                if "ok" in outcomes:
                    await trio.sleep(chance.uniform(0, 0.2))
                    await self._resume(job, run, token, f"{job.number} late 0", outcomes)
                    return
            await trio.sleep(0.1)

    async def _resume(self, job: Job, run: str, token: str, payload: str, outcomes: list[Outcome]) -> None:
        """By its token, or as an operator does, who needs none."""
        if payload.endswith(" 1") and job.number % 2:
            reply = await self._recorder.call("answer", job, run=run, payload=payload)
        else:
            reply = await self._recorder.call("resume", job, run=run, token=token, payload=payload)
        outcomes.append(reply.outcome)

    async def _emit(self, job: Job, run: str, chance: Random) -> None:
        """Each signal twice under its id: at the same time, one after the other, or again when all is done."""
        for number in range(job.times):
            await trio.sleep(chance.uniform(0, 0.4))
            name = f"{run}/{number}"
            async with trio.open_nursery() as nursery:
                for _ in range(job.rivals):
                    nursery.start_soon(self._emit_one, job, run, name)
        await self._emit_one(job, run, f"{run}/0")

    async def _emit_one(self, job: Job, run: str, name: str) -> None:
        await self._recorder.insist("emit", job, run=run, signal=NOTE, payload=name)

    async def _broadcast(self, job: Job, run: str, chance: Random) -> None:
        """Once the run is seen to wait for it."""
        while (await self._recorder.read(job, run)).waits_for != herald_of(job):  # noqa: ASYNC110 - as a client
            await trio.sleep(self._place.look_every * chance.uniform(0.3, 1))
        for _ in range(job.rivals):
            await self._recorder.insist("broadcast", job, run=run, signal=herald_of(job), payload=f"{run}/news")


_DOINGS: dict[str, Callable[[Clients, Job, str, Random], Any]] = {
    "ask": Clients._answer,
    "quiet": Clients._answer,
    "listen": Clients._emit,
    "herald": Clients._broadcast,
}
