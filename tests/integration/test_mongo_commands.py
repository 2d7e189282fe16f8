"""What the engine sends to MongoDB: the exact number of commands and document writes, by pymongo's monitoring."""

from collections import Counter
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
from pymongo import MongoClient

from benchmarks.commands import Command, Commands
from streamline_trio import MongoStore, Workflow, open_engine
from streamline_trio._core.broadcasts import BROADCASTS
from streamline_trio._core.store import SideDoc
from streamline_trio._runtime.claimer import BATCH
from streamline_trio.stores.mongo import _stream

LOOK = Command("find", "runs", 0)


class Watched(MongoStore):
    """A store that tells when a worker has found nothing more to claim, and no broadcast to go on with."""

    def __init__(self, client: MongoClient[Any], name: str, **options: Any) -> None:
        super().__init__(client, name, **options)
        self.looks = 0
        self._looked = trio.Event()
        self.swept = trio.Event()

    async def sides(self, kind: str, **asked: Any) -> list[SideDoc]:
        found = await super().sides(kind, **asked)
        if kind == BROADCASTS:
            self.swept.set()
        return found

    async def next_due(self, routes: Any) -> int | None:
        found = await super().next_due(routes)
        self.looks += 1
        self._looked.set()
        self._looked = trio.Event()
        return found

    async def until_looked(self, times: int) -> None:
        until = self.looks + times
        while self.looks < until:
            await self._looked.wait()


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    """Closing a change stream waits no longer than this."""
    monkeypatch.setattr(_stream, "PATIENCE", 0.05)


@pytest.fixture
def commands():
    return Commands()


@pytest.fixture
def client(databases, commands):
    found: MongoClient[Any] = MongoClient(databases.url(), event_listeners=[commands])
    with found:
        yield found


@pytest.fixture
def url(databases):
    return databases.url()


@asynccontextmanager
async def quiet_engine(client, url, commands, *workflows, change_streams=False, **options):
    """An engine that has looked for work and sleeps; what it does by the clock does not come within the test."""
    store = Watched(client, urlsplit(url).path.removeprefix("/"), change_streams=change_streams)
    settings = {"poll_interval": 3600, "lease": 3600, **options}
    async with open_engine(store, *workflows, **settings) as engine:
        if not store.looks:
            await store.until_looked(1)
        await store.swept.wait()
        commands.clear()
        yield engine, store


def flow(steps, handler):
    workflow: Workflow[Any, Any] = Workflow("counted", state=lambda _: {})
    for number in range(steps):
        workflow.add_step(f"step{number}", handler)
    return workflow


async def nothing(ctx): ...


async def for_ever(ctx):
    await trio.sleep_forever()


def writes_of(commands):
    """How many documents each command with writes has written."""
    return [sent.writes for sent in commands if sent.writes]


def without_waiting(commands):
    """All but the questions by which a change stream waits."""
    return [sent for sent in commands if sent.name != "getMore"]


@pytest.mark.parametrize("count", [1, 5, 20])
async def test_a_plain_run_is_one_write_per_step_and_one_more(client, url, commands, count):
    """A run of N steps sends N + 1 commands that write one document each, and no other."""
    workflow = flow(count, nothing)
    async with quiet_engine(client, url, commands, workflow) as (engine, _):
        await (await engine.start(workflow, {"some": "input"})).result()
        assert writes_of(commands) == [1] * (count + 1)
        assert commands.round_trips == count + 1


async def test_64_runs_at_a_time_share_their_round_trips(client, url, commands):
    """At 64 runs at a time a step costs at most a tenth of a round trip; each run is written N + 1 times."""
    workflow = flow(5, nothing)
    async with quiet_engine(client, url, commands, workflow) as (engine, _):

        async def run() -> None:
            await (await engine.start(workflow)).result()

        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(run)
        assert sum(writes_of(commands)) == 64 * 6
        assert commands.round_trips == len(writes_of(commands))
        assert commands.round_trips <= 0.1 * 64 * 5


async def test_a_page_of_claims_is_at_most_three_round_trips(client, url, commands):
    """A worker looks, claims a whole page by one command and looks again; only after the last page it asks when the
    next run will be due."""
    workflow = flow(1, for_ever)
    drafts = BATCH + 20
    async with open_engine(url, workflow, worker=False) as starter, trio.open_nursery() as nursery:
        for _ in range(drafts):
            nursery.start_soon(starter.start, workflow)
    store = Watched(client, urlsplit(url).path.removeprefix("/"), change_streams=False)
    async with open_engine(store, workflow, poll_interval=3600, lease=3600, drain_timeout=0):
        await store.until_looked(1)
        sent = [found for found in commands if found.collection != "sides"]  # nor broadcasts
        errands = sent.index(LOOK)  # as it opens, it looks for what others have left undone
        sent = sent[sent.index(LOOK, errands + 1) :]
        assert [(found == LOOK, found.writes) for found in sent] == [
            (True, 0),
            (False, BATCH),
            (True, 0),
            (False, 20),
            (True, 0),
        ]


async def test_a_sleep_is_two_writes_and_at_most_four_looks(client, url, commands):
    """A durable sleep costs the write that parks, the one that claims, and the worker's looks before each."""

    async def handler(ctx) -> None:
        await ctx.sleep(0.05)

    workflow = flow(1, handler)
    async with quiet_engine(client, url, commands, workflow) as (engine, _):
        await (await engine.start(workflow)).result()
        found = Counter(without_waiting(commands))
        assert sum(writes_of(commands)) == 2 + 2
        assert found[LOOK] <= 4
        assert commands.round_trips == 4 + found[LOOK]


async def test_an_answered_wait_is_three_writes(client, url, commands):
    """A wait for a person costs the write that parks, the answer, and the claim; the answer reads the run once."""

    async def handler(ctx):
        return await ctx.wait("go", returns=str)

    workflow = flow(1, handler)
    async with quiet_engine(client, url, commands, workflow) as (engine, _):
        async with engine.events("workflow.waiting") as parked:
            handle = await engine.start(workflow)
            await anext(parked)
        assert writes_of(commands) == [1, 1]
        assert commands.round_trips == 2
        await handle.resume("yes")
        assert await handle.result() == "yes"
        assert writes_of(commands) == [1] * 5


async def test_an_idle_worker_looks_twice_per_poll(client, url, commands):
    """Without runs a worker sends two reads each poll, answered by indexes, and writes nothing but its beats.

    For schedules it looks twice a second at most, beside that.
    """
    workflow = flow(1, nothing)
    async with quiet_engine(client, url, commands, workflow, poll_interval=0.02) as (_, store):
        await store.until_looked(1)
        commands.clear()
        await store.until_looked(5)
        assert [sent for sent in commands if sent.collection != "sides"] == [LOOK] * 10


async def test_a_change_stream_makes_polling_rare(client, url, commands):
    """With a change stream a worker that hardly ever polls sends nothing but the stream's question, and what others
    start costs one page of claims."""
    workflow = flow(1, for_ever)
    options = {"change_streams": True, "drain_timeout": 0}
    async with (
        quiet_engine(client, url, commands, workflow, **options) as (_, store),
        open_engine(url, workflow, worker=False) as starter,
    ):
        assert without_waiting(commands) == []
        await starter.start(workflow)
        await store.until_looked(1)
        assert [(found == LOOK, found.writes) for found in without_waiting(commands)] == [
            (True, 0),
            (False, 1),
            (True, 0),
        ]
