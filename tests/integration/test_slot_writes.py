"""What slots cost: the exact writes of runs that need one, and that a long queue costs no more than a short one."""

from __future__ import annotations

import sqlite3
from collections import Counter
from typing import Any

import pytest
import trio

from streamline_trio import (
    Concurrency,
    ConcurrencyLimitReached,
    Engine,
    MemoryStore,
    SqliteStore,
    StepContext,
    Workflow,
)
from streamline_trio._core.documents import SlotDoc
from streamline_trio._core.store import Insert
from streamline_trio.stores.sqlite import _reader
from streamline_trio.testing._conformance_base import sample
from tests.integration.test_writes import Counting, quiet_engine

Context = StepContext[Any, Any]


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    return Counting(MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "runs.db"))


class Limited:
    """A workflow of one step whose runs end when they may."""

    def __init__(self, when_full: Any = "queue") -> None:
        self.may_end = trio.Event()
        self.flow: Workflow[Any, Any] = Workflow("flow", concurrency=Concurrency(1, when_full=when_full))
        self.flow.add_step("step", self._step)

    async def _step(self, _ctx: Context) -> None:
        await self.may_end.wait()


async def quiet(engine: Engine, store: Counting) -> None:
    """Until every errand is done and out of its outbox, and that is counted."""
    while await store.store.errands(1 << 62, 1):  # noqa: ASYNC110 - nothing tells of it
        await trio.sleep(0.001)
    await engine._machinery.services.committer.flushed()


async def test_a_run_that_begins_at_once(store):
    """Proves that a free slot costs two writes more than a plain start (insert, bucket, begin), as does its end."""
    limited = Limited()
    async with quiet_engine(store, limited.flow) as engine:
        run = await engine.start(limited.flow)
        assert store.writes == {"Insert": 1, "PutSide": 1, "Update": 1}
        assert store.refused == {}
        assert (store.reads["side"], store.reads["queued"], store.reads["load"]) == (1, 1, 0)
        assert (await run.get()).status == "running"
        store.reset()
        limited.may_end.set()
        await run.wait()
        await quiet(engine, store)
        assert store.writes == {"Update": 2, "PutSide": 1}, "settled; the bucket; the errand is out of the outbox"
        assert store.refused == {}
        assert (store.reads["side"], store.reads["queued"], store.reads["load"]) == (1, 1, 0)


async def test_a_run_that_queues(store):
    """Proves that a run which queues costs an insert, an update and no write of the bucket until it is its turn."""
    limited = Limited()
    async with quiet_engine(store, limited.flow) as engine:
        first = await engine.start(limited.flow)
        store.reset()
        second = await engine.start(limited.flow)
        await quiet(engine, store)
        assert store.writes == {"Insert": 1, "Update": 1}
        assert store.refused == {}
        # The claimer may still be looking for work after the first.
        assert [store.reads[name] for name in ("side", "queued", "load", "load_many")] == [1, 1, 0, 0]
        store.reset()
        limited.may_end.set()
        await first.wait()
        await second.wait()
        await quiet(engine, store)
        # Both settle and lose their errands; the second begins. One change of the bucket for each end.
        assert store.writes == {"Update": 5, "PutSide": 2}
        assert store.refused == {}


async def test_a_refused_start(store):
    """Proves that what is refused costs an insert and a delete."""
    limited = Limited("reject")
    async with quiet_engine(store, limited.flow) as engine:
        run = await engine.start(limited.flow)
        store.reset()
        with pytest.raises(ConcurrencyLimitReached):
            await engine.start(limited.flow)
        assert store.writes == {"Insert": 1, "Delete": 1}
        assert store.refused == {}
        limited.may_end.set()
        await run.wait()


async def test_many_at_once_share_the_changes_of_the_bucket(store):
    """Proves that a hundred starts at once for one key are few changes of its bucket, and so are their ends."""
    flow: Workflow[Any, Any] = Workflow("flow", concurrency=Concurrency(100))
    limited = Limited()
    flow.add_step("step", limited._step)
    async with quiet_engine(store, flow) as engine:
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(engine.start, flow)
        assert store.writes["PutSide"] <= 10
        store.reset()
        limited.may_end.set()
        while await engine.count(status="done") < 100:  # noqa: ASYNC110 - only the store knows
            await trio.sleep(0.01)
        await quiet(engine, store)
        assert store.writes["Update"] == 200
        assert store.writes["PutSide"] <= 20


QUEUED = 100_000
BUCKET = "\nflow\n"


def drafts(count: int) -> list[Insert]:
    """So many that wait in line."""
    return [
        Insert(
            sample(
                f"q{number:06}",
                workflow="flow",
                status="draft",
                priority=number % 3,
                slot=SlotDoc(bucket=BUCKET, limit=1, acquisition=number, ticket=number, state="queued"),
            )
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file with a hundred queued drafts behind one key, and one with a hundred thousand."""
    folder = tmp_path_factory.mktemp("queues")

    async def fill(name: str, count: int) -> None:
        store = SqliteStore(folder / name)
        await store.open()
        inserts = drafts(count)
        for start in range(0, count, 5000):
            await store.write(inserts[start : start + 5000])
        await store.aclose()

    trio.run(fill, "few.db", 100)
    trio.run(fill, "many.db", QUEUED)
    return folder / "few.db", folder / "many.db"


def steps_of(path, read) -> int:
    """How many instructions SQLite's machine runs for it."""
    connection = sqlite3.connect(path, isolation_level=None)
    steps = 0

    def tick() -> None:
        nonlocal steps
        steps += 1

    connection.set_progress_handler(tick, 1)
    read(connection)
    connection.close()
    return steps


def test_a_look_at_a_long_queue_takes_the_same_steps(files):
    """Proves that who is next is found at the same cost behind 100 queued drafts as behind 100,000."""
    few, many = (steps_of(path, lambda connection: _reader.queued(connection, BUCKET, 2)) for path in files)
    assert few == many


async def test_letting_one_in_costs_the_same_behind_any_queue(files):
    """Proves that the end of a run lets the next one in by the same store calls, however many queue behind it."""
    costs: list[tuple[Counter[str], Counter[str]]] = []
    for path in files:
        counting = Counting(SqliteStore(path))
        flow: Workflow[Any, Any] = Workflow("flow", concurrency=Concurrency(1))
        limited = Limited()
        flow.add_step("step", limited._step)
        async with quiet_engine(counting, flow) as engine:
            run = await engine.start(flow, priority=100)
            assert (await run.get()).status == "running"
            for look in ("due", "next_due", "sides"):  # of a worker that sleeps until something is due
                counting.reads.pop(look, None)
            costs.append((counting.writes.copy(), counting.reads.copy()))
            limited.may_end.set()
            await run.cancel()
    assert costs[0] == costs[1]
