"""The group committer alone: batches, whose verdict is whose, and doubt while others write too."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from streamline_trio import MemoryStore
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.store import AppendRows, Applied, Insert, PutSide, Refused, Update, Write
from streamline_trio._runtime.circuit import Circuit
from streamline_trio._runtime.clock import Chance
from streamline_trio._runtime.committer import GroupCommitter
from streamline_trio.testing import FaultyStore, WrappedStore
from streamline_trio.testing._conformance_base import after, sample


@asynccontextmanager
async def committing(store: Any) -> AsyncGenerator[GroupCommitter]:
    chance, logger = Chance(), logging.getLogger("test")
    circuit = Circuit(chance, logger, longest=5, opened=lambda _failures, _error: None)
    committer = GroupCommitter(store, chance, circuit, patience=5, logger=logger)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        yield committer
        nursery.cancel_scope.cancel()


def commit_of(run: RunDoc, commit: int) -> Update:
    return Update(run, after(run, commits=(*run.head.commits, commit)))


class Noting(WrappedStore):
    """Notes what each batch writes: the runs and their revisions."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.batches: list[list[tuple[str, int]]] = []

    async def around(self, name: str, args: tuple[Any, ...], act: Any) -> Any:
        if name == "write":
            runs = [write.after if isinstance(write, Update) else write.run for write in args[0]]
            self.batches.append([(run.id, run.head.revision) for run in runs])
        return await act()


async def test_a_batch_has_one_commit_of_a_run_and_the_order_of_arrival_holds():
    """Proves that what has to wait for the next batch keeps its place, before what came later."""
    store = Noting(MemoryStore())
    first, other = sample("r1"), sample("r2")
    second = commit_of(first, 1)
    third = commit_of(second.after, 2)
    outcomes: list[Any] = []
    async with committing(store) as committer:
        for write in (Insert(first), second, third, Insert(other)):
            committer.post(write, outcomes.append)
        await committer.flushed()
    assert outcomes == [Applied()] * 4
    assert store.batches == [[("r1", 1), ("r2", 1)], [("r1", 2)], [("r1", 3)]]


async def test_rows_that_go_along_take_nobodys_verdict():
    """Proves that each write of a batch is told its own verdict, also behind one that brings rows."""
    store = MemoryStore()
    first, other = sample("r1"), sample("r2")
    await store.write([Insert(first), Insert(other), commit_of(other, 1)])
    told: dict[str, Any] = {}
    async with committing(store) as committer:
        rows = [AppendRows("r1", "log", (b"x",), 10, None)]
        committer.post(commit_of(first, 2), lambda outcome: told.update(first=outcome), rows)
        committer.post(commit_of(other, 3), lambda outcome: told.update(other=outcome))
        await committer.flushed()
    assert told == {"first": Applied(), "other": Refused()}


STORED = sample("r1")
BEATEN = PutSide("worker", "w1", 1, b"alive")
DOUBTS: dict[str, tuple[Write, Write, Write]] = {
    "an update": (Insert(STORED), commit_of(STORED, 1), commit_of(STORED, 2)),
    "an insert": (Insert(sample("r2")), Insert(STORED), Insert(sample("r1", start_id=2))),
    "a beat": (PutSide("worker", "w1", None, b"new"), BEATEN, PutSide("worker", "w1", 1, b"dead")),
}


@pytest.mark.parametrize("doubt", DOUBTS)
async def test_a_doubtful_write_that_others_forestalled_is_refused(doubt):
    """Proves that what others wrote in the same place is not taken for the write whose answer was lost."""
    before, ours, theirs = DOUBTS[doubt]
    inner = MemoryStore()
    assert await inner.write([before, theirs]) == [Applied(), Applied()]
    store = FaultyStore(inner, fail={0})
    store.armed = True
    async with committing(store) as committer:
        assert await committer.submit(ours) == Refused()


@pytest.mark.parametrize("doubt", DOUBTS)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_doubtful_write_takes_effect_once(doubt, when):
    """Proves that an answer that is lost costs nothing: applied it is known, not applied it is tried again."""
    before, ours, _theirs = DOUBTS[doubt]
    inner = MemoryStore()
    assert await inner.write([before]) == [Applied()]
    store = FaultyStore(inner, fail={0}, when=when)
    store.armed = True
    async with committing(store) as committer:
        assert await committer.submit(ours) == Applied()
