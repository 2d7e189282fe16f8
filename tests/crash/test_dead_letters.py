"""Runs that kill their workers: recovered so often and no more, one at a time, and never lost."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from streamline_trio import MemoryStore, RunCancelled, Workflow, open_engine
from streamline_trio.testing import crash
from tests.crash.scenes import LEASE, OPTIONS, Gate, returns_done, simple, virtual


async def recover(store: MemoryStore, workflow: Workflow[Any, Any], times: int, **options: Any) -> None:
    """Crash as often as that, each time with every run of the workflow under way or settled."""
    for _ in range(times):
        async with open_engine(store, workflow, **options) as engine:
            await trio.sleep(1)
            await crash(engine)


@pytest.mark.parametrize("limit", [0, 1, 5])
@virtual
async def test_a_run_that_kills_its_workers_becomes_a_dead_letter(limit):
    """Proves that after `max_recoveries` recoveries in a row without progress the run fails, dead-lettered."""
    store, gate = MemoryStore(), Gate()
    workflow = gate.workflow()
    async with open_engine(store, workflow) as engine:
        run_id = (await engine.start(workflow)).id
        await gate.entered.wait()
        await crash(engine)
    await recover(store, workflow, limit, max_recoveries=limit)
    assert gate.entries == list(range(1, limit + 2))
    async with (
        open_engine(store, worker=False) as client,
        client.events() as _unheard,
    ):
        assert (await client.get(run_id)).status == "running"
    seen: list[str] = []
    async with open_engine(store, workflow, max_recoveries=limit, worker=False) as engine:
        engine.on("*", lambda event: seen.append(event.name))
        document = await engine.run(run_id).drive()
        await trio.testing.wait_all_tasks_blocked()
        assert document.status == "failed"
        assert document.error is not None
        assert document.error.code == "dead_lettered"
        assert document.ended_at is not None
        assert document.recoveries == limit + 1
        assert await engine.count(dead_lettered=True) == 1
    assert seen == ["workflow.recovered", "workflow.dead_lettered", "step.failed", "workflow.failed"]
    assert len(gate.entries) == limit + 1


@pytest.mark.parametrize("progress", ["finished step", "suspension"])
@virtual
async def test_progress_forgives_the_recoveries_before_it(progress):
    """Proves that a finished step or a suspension resets the count of recoveries in a row, not their total."""
    store, gate = MemoryStore(), Gate()
    allowed = {"first": False}
    workflow: Workflow[Any, Any] = Workflow("work")

    @workflow.step
    async def first(ctx: Any) -> None:
        if progress == "suspension":
            if not allowed["first"]:
                await trio.sleep_forever()
            await ctx.sleep(0.1)
            await gate(ctx)
        elif not allowed["first"]:
            await trio.sleep_forever()

    @workflow.step
    async def second(ctx: Any) -> None:
        await gate(ctx)

    async with open_engine(store, workflow) as engine:
        run_id = (await engine.start(workflow)).id
        await trio.sleep(1)
        await crash(engine)
    await recover(store, workflow, 2, max_recoveries=2)
    allowed["first"] = True
    async with open_engine(store, workflow, max_recoveries=3) as engine:
        await gate.entered.wait()
        await crash(engine)
    await recover(store, workflow, 2, max_recoveries=2)
    gate.open.set()
    async with open_engine(store, workflow, max_recoveries=3) as engine:
        document = await engine.run(run_id).wait()
        assert (document.status, document.recoveries) == ("done", 6)


@pytest.mark.parametrize("exclusive", [True, False])
@virtual
async def test_suspects_are_taken_one_at_a_time_and_all_in_the_end(exclusive):
    """Proves that of runs recovered twice in a row a worker drives one, beside normal ones, and then the next."""
    store = MemoryStore(exclusive=exclusive)
    live: set[str] = set()
    most, finishing = 0, False
    normal: list[int] = []

    async def body(ctx: Any) -> None:
        nonlocal most
        live.add(ctx.run_id)
        most = max(most, len(live))
        try:
            await trio.sleep(5 if finishing else 1000)
            normal.append(len(live))
        finally:
            live.discard(ctx.run_id)

    workflow, other = simple(body), simple(returns_done, id="other")
    async with open_engine(store, workflow, **OPTIONS) as engine:
        runs = [await engine.start(workflow) for _ in range(4)]
        await trio.sleep(1)
        await crash(engine)
    await recover(store, workflow, 2, **OPTIONS)
    assert most == 4
    most, finishing = 0, True
    async with open_engine(store, workflow, other, **OPTIONS) as engine:
        assert await (await engine.start(other)).result() == "done"
        with trio.fail_after(20 * LEASE):
            for run_ in runs:
                assert (await engine.run(run_.id).wait()).status == "done"
    assert most == 1


@virtual
async def test_a_dead_letter_can_be_retried():
    """Proves that `retry` gives a dead letter a fresh count, and that it then runs."""
    store, gate = MemoryStore(), Gate()
    workflow = gate.workflow()
    async with open_engine(store, workflow) as engine:
        run_id = (await engine.start(workflow)).id
        await gate.entered.wait()
        await crash(engine)
    async with open_engine(store, workflow, max_recoveries=0) as engine:
        assert (await engine.run(run_id).wait()).status == "failed"
        gate.open.set()
        await engine.run(run_id).retry()
        document = await engine.run(run_id).wait()
        assert (document.status, document.steps["step"].attempts, document.error) == ("done", 1, None)
        assert await engine.count(dead_lettered=True) == 0


@virtual
async def test_a_cancel_beats_recovery():
    """Proves that a run whose cancellation was asked before its worker died is cancelled by the next claim."""
    store, gate = MemoryStore(), Gate()
    shielded = trio.Event()

    async def body(ctx: Any) -> None:
        try:
            await gate(ctx)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(30):
                await shielded.wait()

    workflow = simple(body)
    async with open_engine(store, workflow) as engine:
        run_id = (await engine.start(workflow)).id
        await gate.entered.wait()
        await engine.run(run_id).cancel("enough")
        assert (await engine.get(run_id)).status == "running"
        await crash(engine)
    async with open_engine(store, workflow) as engine:
        with pytest.raises(RunCancelled, match="enough"):
            await engine.run(run_id).result()
    assert gate.entries == [1]
