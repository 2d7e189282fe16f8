"""Versions: which one a run is on, who may drive it, and what happens when nobody has it."""

import logging
from typing import Any

import pytest
import trio

from streamline_trio import (
    DefinitionError,
    Engine,
    InvalidState,
    MemoryStore,
    RunHandle,
    Signal,
    StepNotFound,
    Workflow,
    WorkflowNotFound,
    open_engine,
)
from streamline_trio.testing import crash
from tests.scenarios.versioned import Context, asking, parked_on, unchanged, version
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, passing, statuses

news = Signal("news", int)
ORDERED = ["1.0.0-rc.1", "1.0.0", "1.2.0", "1.10.0", "2.0.0", "10.0.0-beta", "10.0.0"]


def telling(number: str, *steps: str, **options: Any) -> Workflow[Any, Any]:
    """Steps, by default one, that return their version."""
    flow = version(number, **options)
    for step in steps or ("tell",):

        async def tell(ctx: Context) -> str:
            return ctx.version

        flow.add_step(step, tell)
    return flow


# --- several versions in one engine ------------------------------------------------------------------------------


@in_virtual_time
async def test_a_run_remembers_its_version():
    """S377: Proves that a run tells the version it was started on, in its snapshot and to its handlers."""
    async with open_engine("memory:", flow := telling("1.2.3")) as engine:
        run = await (await engine.start(flow)).wait()
    assert (run.version, run.output, run.recoveries) == ("1.2.3", "1.2.3", 0)


@in_virtual_time
@pytest.mark.parametrize("given", [ORDERED, ORDERED[::-1]])
async def test_text_means_the_highest_version(given):
    """S381, S387: Proves that a start by id takes the numerically highest version, however they are given.

    (A run has a version always: who does not name one at the start gets that of the active definition.)"""
    for count in range(1, len(ORDERED)):
        known = [number for number in given if number in ORDERED[:count]]
        async with open_engine("memory:", *map(telling, known)) as engine:
            run = await (await engine.start("flow")).wait()
            assert (run.version, run.output) == (ORDERED[count - 1],) * 2


@in_virtual_time
async def test_each_version_is_looked_up_by_itself():
    """S382: Proves that a workflow object starts its own version, and one that was not given is unknown."""
    old, new = telling("1.5.0"), telling("2.0.0")
    async with open_engine("memory:", new, old) as engine:
        for flow in (old, new):
            assert await (await engine.start(flow)).result() == flow.version
        with pytest.raises(WorkflowNotFound, match=r"99\.0\.0"):
            await engine.start(telling("99.0.0"))
        with pytest.raises(WorkflowNotFound, match="no workflow 'other'"):
            await engine.start("other")


@in_virtual_time
async def test_runs_stay_on_their_version():
    """Proves that two versions in one engine each drive their own runs to the end, also past a wait."""
    store = MemoryStore()
    old, new = asking("1.0.0"), asking("2.0.0", migrate=unchanged)
    async with open_engine(store, old, new) as engine:
        handles = [await engine.start(flow) for flow in (old, new)]
        await idle()
    async with open_engine(store, new, old) as engine:
        for handle, flow in zip(handles, (old, new), strict=True):
            await engine.run(handle.id).resume("yes")
            assert (await engine.run(handle.id).wait()).version == flow.version


@pytest.mark.parametrize("text", ["not-a-version", "", "1.x", "1..2", "1.0.0-", None, 1])
def test_a_version_is_checked(text):
    """S386: Proves that what is no version is refused when the workflow is defined."""
    with pytest.raises(DefinitionError, match="option 'version'"):
        version(text)


# --- what the store knows ----------------------------------------------------------------------------------------


@in_virtual_time
async def test_the_versions_of_a_workflow_are_listed():
    """S386, S387, S388, S390: Proves that versions come highest first, with steps, workers and active runs."""
    store = MemoryStore()
    for number in ("1.2.0", "1.10.0", "1.0.0"):
        await parked_on(store, asking(number))
    current, other = telling("2.5.7", "a", "b"), Workflow[Any, Any]("flow-b")
    passing(other, "x")
    async with open_engine(store, current, other) as engine, open_engine(store, worker=False) as client:
        await (await engine.start(current)).wait()
        found = await client.versions("flow")
        assert [(info.version, info.active, info.is_live) for info in found] == [
            ("2.5.7", 0, True),
            ("1.10.0", 1, False),
            ("1.2.0", 1, False),
            ("1.0.0", 1, False),
        ]
        assert (found[0].steps, found[0].workers) == (("a", "b"), (engine.worker_id,))
        assert [info.version for info in await client.versions(other)] == ["1.0.0"]
        assert [info for info in found if info.version == "9.9.9"] == []
        assert await client.versions("nobody") == []
        assert [run.version for run in await client.find(version="1.2.0")] == ["1.2.0"]
        assert await client.count(version="1.2.0", status="waiting") == 1


@in_virtual_time
async def test_a_version_is_listed_once():
    """S389, S391: Proves that a version given again is listed once, and a changed one with both fingerprints."""
    store = MemoryStore()
    one, two = telling("1.0.0", "a", "b"), telling("2.0.0", "a", "b", "c")
    for _ in range(2):
        async with open_engine(store, one, two) as engine:
            found = await engine.versions(one)
            assert [(info.version, len(info.steps), len(info.fingerprints)) for info in found] == [
                ("2.0.0", 3, 1),
                ("1.0.0", 2, 1),
            ]
    with pytest.raises(DefinitionError, match=r"given twice in version 1\.0\.0"):
        async with open_engine(store, one, telling("1.0.0", "a", "b")):
            pass
    async with open_engine(store, telling("1.0.0", "a", "z"), telling("1.0.1", "a", "b")) as engine:
        found = await engine.versions("flow")
        assert [(info.version, len(info.fingerprints)) for info in found] == [
            ("2.0.0", 1),
            ("1.0.1", 1),
            ("1.0.0", 2),
        ]


# --- nobody has it -----------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_version_that_nobody_has_is_waited_for(caplog):
    """Proves that such a run stays due, is counted, is warned of once, and is claimed when its code comes."""
    store, logger = MemoryStore(), logging.getLogger("tests.versions")
    run_id = await parked_on(store, asking())
    async with open_engine(store, asking("2.0.0"), logger=logger) as engine:
        assert (await engine.stats()).unclaimable == ()
        await engine.run(run_id).resume("yes")
        await trio.sleep(3600)
        for _ in range(2):
            (missing,) = (await engine.stats()).unclaimable
            assert (missing.workflow, missing.version, missing.runs) == ("flow", "1.0.0", 1)
        run = await engine.get(run_id)
        assert (run.status, run.lease, run.version) == ("running", None, "1.0.0")
        async with open_engine(store, asking()):
            assert (await engine.run(run_id).wait(timeout=1)).version == "1.0.0"
            assert (await engine.stats()).unclaimable == ()
    assert [record.message for record in caplog.records] == [
        "runs of workflow flow 1.0.0 are due, and no live worker has that version"
    ]


def holding(number: str = "1.0.0", **options: Any) -> Workflow[Any, Any]:
    """Its first attempt never ends."""
    flow = version(number, **options)

    @flow.step(attempts=1)
    async def hold(ctx: Context) -> int:
        if ctx.attempt <= 1:
            await trio.sleep_forever()
        return ctx.attempt

    return flow


async def left_by_a_dead_worker(store: MemoryStore, flow: Workflow[Any, Any]) -> str:
    """The id of a run whose only worker has crashed in its handler."""
    async with open_engine(store, flow) as doomed:
        handle = await doomed.start(flow)
        await idle()
        await crash(doomed)
    return handle.id


@in_virtual_time
async def test_a_run_of_a_dead_worker_that_nobody_can_run_is_released(caplog):
    """Proves that a worker without the code gives the lease up, counted once, for who has it to take the run."""
    store, logger = MemoryStore(), logging.getLogger("tests.versions")
    run_id = await left_by_a_dead_worker(store, holding())
    async with open_engine(store, telling("2.0.0"), logger=logger) as engine:
        released = await at_rest(engine.run(run_id))
        assert (released.status, released.lease, released.recoveries, released.fence) == ("running", None, 1, 1)
        assert statuses(released) == {"hold": "pending"}
        assert [(one.version, one.runs) for one in (await engine.stats()).unclaimable] == [("1.0.0", 1)]
        assert [worker.id for worker in await engine.workers()] == [engine.worker_id], "the dead one is forgotten"
        async with open_engine(store, holding()) as heir:
            run = await heir.run(run_id).wait(timeout=1)
    assert (run.status, run.output, run.recoveries, run.fence) == ("done", 2, 1, 2)
    assert [record.levelname for record in caplog.records if "no live worker" in record.message] == ["WARNING"]


@in_virtual_time
async def test_a_live_worker_with_the_code_is_waited_for():
    """Proves that a lease is not given up while a live worker has the code, however busy that one is."""
    store, flow = MemoryStore(), holding()
    async with open_engine(store, flow) as doomed, open_engine(store, flow, max_concurrent_runs=1) as busy:
        held = await busy.start(flow)
        await idle()
        handle = await doomed.start(flow)
        await idle()
        async with open_engine(store, telling("2.0.0")) as other:
            await crash(doomed)
            await trio.sleep(3600)
            run = await other.get(handle.id)
            assert (run.recoveries, run.lease is None, (await other.stats()).unclaimable) == (0, False, ())
            await busy.run(held.id).cancel()
            run = await other.run(handle.id).wait()
    assert (run.status, run.recoveries, run.fence) == ("done", 1, 2)


@in_virtual_time
async def test_releases_count_towards_the_dead_letter():
    """Proves that a run which kills its workers is dead-lettered although others without the code release it."""
    store = MemoryStore()
    flow = version("1.0.0")

    @flow.step
    async def kills(_ctx: Context) -> None:
        await trio.sleep_forever()

    run_id = await left_by_a_dead_worker(store, flow)
    for recoveries in (1, 2):
        async with open_engine(store, telling("2.0.0"), max_recoveries=2) as other:
            assert (await at_rest(other.run(run_id))).recoveries == recoveries
        async with open_engine(store, flow, max_recoveries=2) as doomed:
            await idle()
            await crash(doomed)
    async with open_engine(store, telling("2.0.0"), max_recoveries=2) as other:
        run = await at_rest(other.run(run_id))
    assert run.error is not None
    assert (run.status, run.error.code, run.recoveries) == ("failed", "dead_lettered", 3)
    assert run.steps["kills"].attempts == 3


@in_virtual_time
async def test_a_release_settles_what_was_to_be_settled():
    """Proves that a release carries out a cancellation and a deadline that has passed: that needs no code."""
    store = MemoryStore()
    async with open_engine(store, flow := holding(timeout=60)) as doomed:
        asked, late, paused = [await doomed.start(flow) for _ in range(3)]
        await idle()
        await paused.pause()
        async with open_engine(store, worker=False) as client:
            await crash(doomed)
            await trio.sleep(61)
            assert (await client.get(late.id)).status == "running"
            await client.run(asked.id).cancel("no longer wanted")
            async with open_engine(store, telling("2.0.0")):
                assert (await at_rest(client.run(late.id))).status == "failed"
                assert (await client.get(asked.id)).status == "cancelled"
                assert (await client.get(paused.id)).status == "failed"


# --- external verbs ----------------------------------------------------------------------------------------------


async def _ready(handle: RunHandle) -> None:
    await handle.resume("yes")


async def _cancel(handle: RunHandle) -> None:
    await handle.cancel("no")
    assert (await handle.get()).status == "cancelled"


async def _pause(handle: RunHandle) -> None:
    await handle.pause()
    await handle.resume("yes")
    await handle.unpause()


async def _rewind(handle: RunHandle) -> None:
    await handle.rewind("first")
    assert statuses(await handle.get()) == {"first": "pending", "ask": "pending", "last": "pending"}


async def _lost_step(handle: RunHandle) -> None:
    with pytest.raises(StepNotFound):
        await handle.rewind("of another version")
    with pytest.raises(InvalidState):
        await handle.retry()


@pytest.mark.parametrize("act", [_ready, _cancel, _pause, _rewind, _lost_step])
def test_verbs_need_no_code(act):
    """Proves that a client without the code resumes, cancels, pauses and rewinds, and the code goes on."""

    @in_virtual_time
    async def scenario() -> None:
        store = MemoryStore()
        run_id = await parked_on(store, flow := asking())
        async with open_engine(store, worker=False) as client:
            await act(client.run(run_id))
        async with open_engine(store, flow) as engine:
            await _finish(engine, run_id)

    scenario()


async def _finish(engine: Engine, run_id: str) -> None:
    run = await at_rest(engine.run(run_id))
    if run.status == "waiting":
        await engine.run(run_id).resume("late yes")
    run = await engine.run(run_id).wait()
    assert run.status in {"done", "cancelled"}
    assert run.version == "1.0.0"


@in_virtual_time
async def test_signals_and_rewinds_need_no_code():
    """Proves that a client without the code signals a run, and sends one that failed back."""
    store = MemoryStore()
    flow = version("1.0.0")

    @flow.step(attempts=1)
    async def listen(ctx: Context) -> int:
        got = await ctx.wait_for(news)
        if got < 0:
            raise ValueError("less than nothing")
        return got

    run_id = await parked_on(store, flow)
    async with open_engine(store, worker=False) as client:
        await client.emit(news, -1, run=run_id)
        async with open_engine(store, flow):
            assert (await client.run(run_id).wait()).status == "failed"
        await client.run(run_id).rewind("listen")
        await client.emit(news, 2, run=run_id)
        async with open_engine(store, flow):
            assert await client.run(run_id).result() == 2


@in_virtual_time
async def test_a_retry_needs_no_code():
    """Proves that a client without the code gives a failed run fresh attempts, which the code then makes."""
    store, attempts = MemoryStore(), list[int]()
    flow = version("1.0.0")

    @flow.step(attempts=1)
    async def fail(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        if len(attempts) == 1:
            raise ValueError

    async with open_engine(store, flow) as engine:
        run = await (await engine.start(flow)).wait()
    async with open_engine(store, worker=False) as client:
        await client.run(run.id).retry()
        assert statuses(await client.get(run.id)) == {"fail": "pending"}
        async with open_engine(store, flow):
            assert (await client.run(run.id).wait()).status == "done"
    assert attempts == [1, 1]
