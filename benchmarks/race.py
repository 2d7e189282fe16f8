"""Worker processes that race for the same drafts, to finish them or only to have them."""

from __future__ import annotations

import time
from collections import Counter

import msgspec

from benchmarks.load import start_drafts, until, until_done
from benchmarks.places import Place
from benchmarks.processes import workers
from benchmarks.worker import Job, Told
from benchmarks.workflows import Effects, nothing, workflow_of
from streamline_trio import Engine, Run, open_engine

_LOOKS_EVERY = 0.005


class Race(msgspec.Struct, frozen=True, kw_only=True):
    """How it went. `seconds` are from the common signal until every draft has settled."""

    seconds: float
    duplicates: int
    before: Told
    after: Told


class Grab(msgspec.Struct, frozen=True, kw_only=True):
    """How it went. `seconds` are from the first claim to the last."""

    seconds: float
    duplicates: int


async def race(place: Place, store: str, *, drafts: int, processes: int) -> Race:
    """Prepare drafts of one step, let the workers go, wait until all have settled, look into the books.

    The workers have imported everything when they are let go; opening the store is part of the race. `before` and
    `after` are what the first worker says of itself then and in the end.
    """
    effects = Effects(place.file("effects"))
    workflow = workflow_of(1, nothing)
    jobs = [
        Job(store=store, name=f"worker {number}", effects=str(effects.path), steps=1) for number in range(processes)
    ]
    tag = effects.path.name + effects.path.parent.name
    async with open_engine(store, workflow, worker=False) as client, workers(jobs) as crew:
        await start_drafts(client, workflow, drafts, tag)
        ready = [await worker.hear("ready") for worker in crew]
        began = time.monotonic()
        for worker in crew:
            await worker.say("go")
        # Counting effects costs the workers nothing; the store is asked only when all are there.
        await until(lambda: effects.has(drafts), every=_LOOKS_EVERY)
        await until_done(client, drafts, tag, every=_LOOKS_EVERY)
        seconds = time.monotonic() - began
        await crew[0].say("look")
        after = await crew[0].hear("look")
        for worker in crew:
            await worker.stop()
        duplicates = _duplicates(await _runs_of(client, tag), effects)
    return Race(seconds=seconds, duplicates=duplicates, before=ready[0], after=after)


async def grab(place: Place, store: str, *, drafts: int, processes: int) -> Grab:
    """Prepare drafts, let the workers go, wait until each draft is held by one of them, look into the books.

    A worker holds what it has claimed for ever, in a handler that only waits: what is measured is claiming alone.
    The time is from the first handler's entry to the last one's.
    """
    effects = Effects(place.file("effects"))
    workflow = workflow_of(1, nothing)
    jobs = [
        Job(
            store=store,
            name=f"worker {number}",
            effects=str(effects.path),
            steps=1,
            seconds=None,
            capacity=drafts,
        )
        for number in range(processes)
    ]
    tag = effects.path.name + effects.path.parent.name
    async with open_engine(store, workflow, worker=False) as client, workers(jobs) as crew:
        await start_drafts(client, workflow, drafts, tag)
        for worker in crew:
            await worker.hear("ready")
        for worker in crew:
            await worker.say("go")
        await until(lambda: effects.has(drafts), every=_LOOKS_EVERY)
        # While all live: the last ones would take over from those that are killed first.
        duplicates = _duplicates(await _runs_of(client, tag), effects)
        entered = sorted(effect.at for effect in effects.read())
        for worker in crew:
            await worker.kill()
    return Grab(seconds=entered[-1] - entered[0], duplicates=duplicates)


async def _runs_of(client: Engine, tag: str) -> list[Run]:
    """All runs with the tag."""
    found: list[Run] = []
    cursor: str | None = None
    while True:
        page = await client.find(tags=[tag], limit=1000, cursor=cursor)
        found += page.items
        cursor = page.cursor
        if cursor is None:
            return found


def _duplicates(runs: list[Run], effects: Effects) -> int:
    """Runs that were taken more than once, by what is stored or by what their handlers did."""
    entered = Counter(effect.run for effect in effects.read())
    return sum(run.fence != 1 or run.recoveries != 0 or entered[run.id] != 1 for run in runs)
