"""A broadcast that answers, cancels and starts runs: whatever fails or dies meanwhile, each once."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import trio

from streamline_trio import (
    Engine,
    MemoryStore,
    Signal,
    SqliteStore,
    StepContext,
    StoreUnavailable,
    Trigger,
    Workflow,
)
from streamline_trio.testing import CrashAt, FailCall, LoseLeaseAt, Mishap, parked, sweep

Ctx = StepContext[Any, Any]
news = Signal("news", int)
LEASE = 2.0


def listening() -> Workflow[Any, Any]:
    """A run waits for it."""
    workflow: Workflow[Any, Any] = Workflow("listening")

    @workflow.step
    async def listen(ctx: Ctx) -> int:
        return await ctx.wait_for(news)

    return workflow


def unwanted() -> Workflow[Any, Any]:
    """A run is cancelled by it."""
    workflow: Workflow[Any, Any] = Workflow("unwanted", cancel_on=[news])

    @workflow.step
    async def park(ctx: Ctx) -> None:
        await ctx.wait("for ever")

    return workflow


def wanted() -> Workflow[Any, Any]:
    """A run is started by it."""
    workflow: Workflow[Any, Any] = Workflow("wanted", trigger=Trigger(news), cancel_on=[news])

    @workflow.step
    async def run(ctx: Ctx) -> Any:
        return ctx.input

    return workflow


def telling() -> Workflow[Any, Any]:
    """A run that emits it."""
    workflow: Workflow[Any, Any] = Workflow("telling")

    @workflow.step
    async def tell(ctx: Ctx) -> None:
        await ctx.emit(news, 7)

    return workflow


WORKFLOWS = [listening(), unwanted(), wanted(), telling()]


async def emitted(engine: Engine) -> dict[str, list[tuple[str, Any]]]:
    """The outside emits, twice under one id, and again where it does not know."""
    await prepared(engine)
    for _ in range(2):
        while True:
            try:
                await engine.emit(news, 7, id="one")
            except StoreUnavailable:
                continue
            break
    return await outcome(engine, 3)


async def told(engine: Engine) -> dict[str, list[tuple[str, Any]]]:
    """A step emits, as often as it is called."""
    await prepared(engine)
    await engine.start("telling", None, idempotency_key="telling")
    return await outcome(engine, 4)


async def prepared(engine: Engine) -> None:
    for workflow in ("listening", "unwanted"):
        await parked(await engine.start(workflow, None, idempotency_key=workflow))


async def outcome(engine: Engine, settled: int) -> dict[str, list[tuple[str, Any]]]:
    """What there is once all have settled, and long enough after that for whatever else comes."""
    with trio.fail_after(600):
        while await engine.count(status=["done", "cancelled"]) < settled:  # noqa: ASYNC110 - nothing but the store tells of it
            await trio.sleep(0.02)
    await trio.sleep(0.1 if engine._machinery.services.options.poll_interval < 0.1 else 5 * LEASE)
    runs = (await engine.find(sort="created_at")).items
    return {
        run.workflow: [(other.status, other.output) for other in runs if other.workflow == run.workflow]
        for run in runs
    }


FINE = {"listening": [("done", 7)], "unwanted": [("cancelled", None)], "wanted": [("done", 7)]}


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize(("scenario", "more"), [(emitted, {}), (told, {"telling": [("done", None)]})])
def test_whatever_happens_each_happens_once(scenario, more, exclusive):
    """Proves that a broadcast with a wait, a trigger and a `cancel_on` comes to the same whichever store call fails
    and whichever write the worker dies or loses its lease at: nobody is passed by, one run is started, and that is
    not cancelled by what started it."""

    async def scene(engine: Engine) -> None:
        assert await scenario(engine) == FINE | more

    mishaps: list[type[Mishap]] = [FailCall, CrashAt, LoseLeaseAt]
    played = sweep(
        scene,
        *WORKFLOWS,
        mishaps=mishaps,
        store=lambda: MemoryStore(exclusive=exclusive),
        lease=LEASE,
        poll_interval=0.5,
    )
    assert {type(mishap) for mishap in played} == set(mishaps)
    assert len(played) > 50


@pytest.mark.deadline(300)
def test_whatever_fails_on_sqlite_each_happens_once(tmp_path):
    """Proves the same where other processes might write, of crashes at every write."""
    numbers = count()

    async def scene(engine: Engine) -> None:
        assert await told(engine) == FINE | {"telling": [("done", None)]}

    played = sweep(
        scene, *WORKFLOWS, mishaps=[CrashAt], store=lambda: SqliteStore(tmp_path / f"{next(numbers)}.db"), lease=1.0
    )
    assert len(played) > 15
