"""Runs whose workers fall silent or die again and again are recovered, and in the end are dead letters."""

import inspect
from typing import Any

import pytest
import trio

from streamline_trio import MemoryStore, Retention, RunHandle, StepContext, Workflow, open_engine
from streamline_trio.testing import crash
from tests.crash.scenes import LEASE, OPTIONS, enlist_phantom, insert_leased
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, one_step

Context = StepContext[Any, Any]


async def _forever(_ctx: Context) -> None:
    await trio.sleep_forever()


async def _done(_ctx: Context) -> str:
    return "done"


@in_virtual_time
async def test_a_silent_worker_costs_its_runs_no_failure():
    """S369, S371: proves the other outcome: a run whose worker fell silent is recovered, not failed nor cancelled.

    Nothing looks at the age of a run: one that a living worker holds, however long, is left alone.
    """
    store, flow = MemoryStore(exclusive=False), one_step(_done)
    held: Workflow[Any, Any] = Workflow("held")
    held.add_step("step", _forever)
    await enlist_phantom(store, "silent")
    stale = await insert_leased(store, flow, "stale", "silent")
    async with open_engine(store, held, **OPTIONS) as other, open_engine(store, flow, **OPTIONS) as engine:
        healthy = await other.start(held)
        await trio.sleep(5 * LEASE)
        run = await engine.get(stale.id)
        assert (run.status, run.recoveries, run.error) == ("done", 1, None)
        assert ((await healthy.get()).status, (await healthy.get()).recoveries) == ("running", 0)
        assert (await engine.stats()).recoveries == 1


@in_virtual_time
async def test_a_dead_letter_is_published_once():
    """S370: proves that a run that is given up fails with one event of each kind, which carry its id and code."""
    store, flow = MemoryStore(), one_step(_forever)
    async with open_engine(store, flow) as engine:
        run_id = (await engine.start(flow)).id
        await idle()
        await crash(engine)
    seen: list[Any] = []
    async with open_engine(store, flow, max_recoveries=0, worker=False) as engine:
        engine.on("workflow.*", seen.append)
        await engine.run(run_id).drive()
        await idle()
    names = [event.name for event in seen]
    assert names == ["workflow.recovered", "workflow.dead_lettered", "workflow.failed"]
    assert {event.run_id for event in seen} == {run_id}
    assert seen[-1].code == "dead_lettered"


def test_the_defaults():
    """S372: proves that a run is recovered five times in a row, and that a worker may be silent for 15 s."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(open_engine).parameters.items()}
    assert (defaults["max_recoveries"], defaults["lease"], defaults["retention"]) == (5, 15.0, None)


@in_virtual_time
async def test_below_the_limit_a_recovery_is_no_failure():
    """S374: proves the other outcome: the third crash in a row counts as a recovery, and the run goes on."""
    store, may_end = MemoryStore(), False

    async def step(_ctx: Context) -> str:
        if not may_end:
            await trio.sleep_forever()
        return "done"

    flow = one_step(step)
    async with open_engine(store, flow) as engine:
        run = await engine.start(flow)
        await idle()
        await crash(engine)
    for _ in range(2):
        async with open_engine(store, flow) as engine:
            await idle()
            await crash(engine)
    may_end = True
    async with open_engine(store, flow) as engine:
        seen = await engine.run(run.id).wait()
        assert (seen.status, seen.recoveries, seen.error) == ("done", 3, None)
        assert await engine.count(dead_lettered=True) == 0


@pytest.mark.parametrize("rounds", range(5))
@in_virtual_time
async def test_a_limit_and_a_recovery_that_race_settle_the_run_once(rounds):
    """S375: proves that of workers with other limits that find a dead worker's run, one decides."""
    store, flow = MemoryStore(exclusive=False), one_step(_done)
    heard: list[str] = []
    async with (
        open_engine(store, flow, max_recoveries=0, **OPTIONS) as strict,
        open_engine(store, flow, **OPTIONS) as patient,
    ):
        for engine in (strict, patient):
            engine.on("workflow.*", lambda event: heard.append(event.name))
        run = await insert_leased(store, flow, f"stale {rounds}", "nobody")
        seen = await patient.run(run.id).wait(timeout=100)
        await trio.sleep(2 * LEASE)
        assert (await patient.get(run.id)).status == seen.status
    settled = [name for name in heard if name in {"workflow.completed", "workflow.failed"}]
    assert settled == ["workflow.completed" if seen.status == "done" else "workflow.failed"]
    assert heard.count("workflow.recovered") == 1


@in_virtual_time
async def test_a_rollback_that_goes_on_is_left_alone():
    """S376: proves that a compensation that takes far longer than a lease is neither recovered nor given up."""
    flow: Workflow[Any, Any] = Workflow("flow")

    @flow.step
    async def pay(_ctx):
        return 1

    @pay.compensate
    async def repay(_ctx):
        await trio.sleep(20 * LEASE)

    @flow.step(attempts=1)
    async def ship(_ctx):
        raise ValueError("planned")

    store = MemoryStore(exclusive=False)
    async with open_engine(store, flow, **OPTIONS) as engine, open_engine(store, flow, **OPTIONS):
        run: RunHandle = await engine.start(flow)
        assert (await run.wait()).status == "compensated"
        assert (await run.get()).recoveries == 0


@in_virtual_time
async def test_dead_letters_are_kept_as_failed_runs_are():
    """Proves that a dead letter stays, to be looked at and requeued, until the age of failed runs."""
    store, flow = MemoryStore(), one_step(_forever)
    async with open_engine(store, flow) as engine:
        run = await engine.start(flow)
        await idle()
        await crash(engine)
    async with open_engine(store, flow, max_recoveries=0, retention=Retention(done=1, failed=3600)) as engine:
        error = (await at_rest(engine.run(run.id))).error
        assert error is not None
        assert error.code == "dead_lettered"
        await trio.sleep(3500)
        assert await engine.count(dead_lettered=True) == 1
        await trio.sleep(300)
        assert await engine.count() == 0
