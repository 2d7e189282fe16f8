"""Clients that keep an engine busy."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import trio

from benchmarks.machine import settle_memory
from benchmarks.workflows import nothing
from streamline_trio import Engine, Store, Workflow, open_engine

_WARM_UPS = 5
_PATIENCE = 300.0
_DRAFTS_AT_ONCE = 200
_warm = Workflow("bench-warm", steps={"step": nothing})


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What each run took from `start` to its result, what all took together, and what the process computed.

    `counted` is what the meter that was given has counted meanwhile.
    """

    each: list[float]
    seconds: float
    cpu_seconds: float
    counted: int


async def put_load(
    store: Store | str,
    workflow: Workflow[Any, Any],
    runs: int,
    concurrency: int,
    *,
    meter: Callable[[], int] = lambda: 0,
) -> Load:
    """So many clients at a time, each of which starts a run, waits for its result and starts the next.

    The engine is open and has done a few other runs before time is taken.
    """
    async with open_engine(store, workflow, _warm) as engine:
        for _ in range(_WARM_UPS):
            await _one(engine, _warm)
        settle_memory()
        left = iter(range(runs))
        taken: list[float] = []

        async def client() -> None:
            taken.extend([await _one(engine, workflow) for _ in left])

        began, computed, counted = time.perf_counter(), time.process_time(), meter()
        async with trio.open_nursery() as nursery:
            for _ in range(min(concurrency, runs)):
                nursery.start_soon(client)
        return Load(
            each=taken,
            seconds=time.perf_counter() - began,
            cpu_seconds=time.process_time() - computed,
            counted=meter() - counted,
        )


async def _one(engine: Engine, workflow: Workflow[Any, Any]) -> float:
    began = time.perf_counter()
    run = await engine.start(workflow, None)
    await run.result()
    return time.perf_counter() - began


async def start_drafts(engine: Engine, workflow: Workflow[Any, Any], runs: int, tag: str) -> None:
    """Start runs that a client engine leaves for workers, all under one tag."""
    left = iter(range(runs))

    async def client() -> None:
        for _ in left:
            await engine.start(workflow, None, tags=[tag])

    async with trio.open_nursery() as nursery:
        for _ in range(min(_DRAFTS_AT_ONCE, runs)):
            nursery.start_soon(client)


async def until_done(client: Engine, runs: int, tag: str, *, every: float) -> None:
    """Wait until so many runs with the tag are done."""

    async def are_done() -> bool:
        return await client.count(tags=[tag], status="done") >= runs

    await until(are_done, every=every)


async def until(is_so: Callable[[], Awaitable[bool]], *, every: float) -> None:
    """Ask until it is so."""
    with trio.fail_after(_PATIENCE):
        while not await is_so():  # noqa: ASYNC110 - what is waited for happens in other processes
            await trio.sleep(every)
