"""Real documents, as the engine writes them: recorded from a run on a memory store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import trio

from benchmarks.workflows import Effect, nap, signing, workflow_of
from streamline_trio import MemoryStore, Workflow, open_engine
from streamline_trio._core.codec import HEAD, split
from streamline_trio._core.diff import changed
from streamline_trio.store import Insert, RunDoc, Update, Verdict, Write

_PATIENCE = 30.0
_replace = msgspec.structs.replace


class Written(NamedTuple):
    """What one write of the engine carries: the head, and the parts beside it."""

    head: bytes
    parts: tuple[bytes, ...]


class _Recorder(MemoryStore):
    """A memory store that keeps what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Insert | Update] = []
        self.parked = trio.Event()

    async def write(self, batch: Sequence[Write]) -> list[Verdict]:
        verdicts = await super().write(batch)
        self.written += [write for write in batch if isinstance(write, Insert | Update)]
        if any(isinstance(write, Update) and write.after.head.lease is None for write in batch):
            self.parked.set()
        return verdicts


async def recorded(workflow: Workflow[Any, Any]) -> list[Insert | Update]:
    """The writes of one run until it settles or sleeps."""
    store = _Recorder()
    async with open_engine(store, workflow) as engine:
        await engine.start(workflow, None)
        await store.parked.wait()
    return store.written


def carried(write: Insert | Update) -> Written:
    """What the write carries, encoded."""
    parts = split(write.run) if isinstance(write, Insert) else changed(write.before, write.after)
    bodies = {name: body for name, body in parts.items() if body is not None}
    return Written(bodies.pop(HEAD), tuple(bodies.values()))


def _nowhere(_effect: Effect) -> None:
    """What handlers do here, nobody counts."""


async def claim() -> list[Insert | Update]:
    """A draft, and its claim by a worker."""
    workflow = workflow_of(1, signing(_nowhere, "", None))
    store = _Recorder()
    async with open_engine(store, workflow, worker=False) as client:
        await client.start(workflow, None)
        async with open_engine(store, workflow, drain_timeout=0.0):
            with trio.fail_after(_PATIENCE):
                while len(store.written) < 2:  # noqa: ASYNC110 - the recorder tells of parking only
                    await trio.sleep(0.01)
            return store.written[:2]


async def sleeper(steps: int) -> RunDoc:
    """A run that sleeps for a year in the first of its steps."""
    last = (await recorded(workflow_of(steps, nap)))[-1]
    assert isinstance(last, Update), "its last write is the one that parks it"
    return last.after


def copies(run: RunDoc, prefix: str, numbers: range) -> Iterator[Insert]:
    """The same run under other ids."""
    for number in numbers:
        yield Insert(_replace(run, origin=_replace(run.origin, id=f"{prefix}-{number:09d}", start_id=number)))
