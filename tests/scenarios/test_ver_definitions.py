"""A definition that changes while its version stays: what is told, and what no longer fits."""

import logging
from typing import Any

import pytest
import trio

from streamline_trio import MemoryStore, StepContext, Workflow, open_engine
from streamline_trio._runtime.registry import DEFINITIONS
from streamline_trio.store import PutSide
from streamline_trio.testing import crash
from tests.scenarios.versioned import Context, parked_on, version
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, passing, statuses


def of_steps(*ids: str, calls: list[str] | None = None, **options: Any) -> Workflow[Any, Any]:
    """Version 1 of a workflow whose step `wait` waits for a person, and `nap` for a minute."""
    flow = version("1.0.0")

    async def wait(ctx: StepContext[Any, Any]) -> Any:
        return await ctx.wait("go?")

    async def nap(ctx: StepContext[Any, Any]) -> Any:
        await ctx.sleep(60)

    async def fail(_ctx: StepContext[Any, Any]) -> None:
        raise ValueError

    async def hold(_ctx: StepContext[Any, Any]) -> None:
        await trio.sleep_forever()

    special = {"wait": wait, "nap": nap, "fail": fail, "hold": hold}
    for step in ids:
        if step in special:
            flow.add_step(step, special[step], **options)
        else:
            passing(flow, step, calls=calls)
    return flow


# --- the run's step is gone --------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["wait", "nap", "fail", "hold"])
def test_a_run_whose_step_is_gone_fails(step):
    """S380: Proves that parked, sleeping, retrying and recovered runs fail with `VersionMismatch` and its event."""

    @in_virtual_time
    async def scenario() -> None:
        store = MemoryStore()
        async with open_engine(store, flow := of_steps("a", step, "z", retry_delay=60)) as engine:
            handle = await engine.start(flow)
            await idle()
            await crash(engine)
        async with open_engine(store, of_steps("a", "z")) as engine, engine.events("workflow.failed") as failed:
            if step == "wait":
                await engine.run(handle.id).resume("yes")
            run = await engine.run(handle.id).wait(timeout=100)
            event: Any = await anext(failed)
        assert run.error is not None
        assert (run.status, run.error.code, run.error.step) == ("failed", "workflow.version_mismatch", step)
        assert (event.run_id, event.code) == (run.id, "workflow.version_mismatch")
        assert run.ended_at is not None
        assert (run.steps["a"].status, run.steps[step].status) == ("done", "failed")

    scenario()


@in_virtual_time
async def test_a_run_that_failed_so_goes_on_when_the_step_is_back():
    """Proves that a retry fails again while the step is missing, and finishes the run once it is there."""
    store = MemoryStore()
    run_id = await parked_on(store, flow := of_steps("a", "nap", "z"))
    async with open_engine(store, of_steps("a", "z")) as engine:
        assert (await engine.run(run_id).wait()).status == "failed"
        await engine.run(run_id).retry()
        assert (await engine.run(run_id).wait()).status == "failed"
    async with open_engine(store, flow) as engine:
        await engine.run(run_id).retry()
        assert (await engine.run(run_id).wait()).status == "done"


@in_virtual_time
async def test_drafts_begin_with_whatever_comes_first():
    """Proves that a draft, which stands at no step yet, follows the definition that begins it."""
    store, calls = MemoryStore(), list[str]()
    async with open_engine(store, flow := of_steps("a", "b"), worker=False) as client:
        handle = await client.start(flow)
    async with open_engine(store, of_steps("x", "b", calls=calls)) as engine:
        assert (await engine.run(handle.id).wait()).status == "done"
    assert calls == ["x", "b"]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (("wait", "z"), ["z"]),
        (("a", "wait"), []),
        (("a", "wait", "x", "z"), ["x", "z"]),
        (("new", "a", "wait", "z"), ["z"]),
    ],
    ids=["one before is removed", "one after is removed", "one after is added", "one before is added"],
)
def test_other_steps_may_come_and_go(steps, expected):
    """Proves that steps removed or added before the current one change nothing, and those after it are followed."""

    @in_virtual_time
    async def scenario() -> None:
        store, calls = MemoryStore(), list[str]()
        run_id = await parked_on(store, of_steps("a", "wait", "z"))
        async with open_engine(store, of_steps(*steps, calls=calls)) as engine:
            await engine.run(run_id).resume("yes")
            run = await engine.run(run_id).wait()
        assert (run.status, calls, run.steps["a"].status) == ("done", expected, "done")

    scenario()


@in_virtual_time
async def test_a_goto_to_a_step_that_is_gone_fails_the_attempt():
    """Proves that a handler which goes to a step that its definition lacks fails with `StepNotFound`."""
    flow = version("1.0.0")

    @flow.step(attempts=1)
    async def leave(ctx: Context) -> None:
        await ctx.goto("gone")

    async with open_engine("memory:", flow) as engine:
        run = await (await engine.start(flow)).wait()
    assert run.error is not None
    assert (run.status, run.error.code) == ("failed", "workflow.step.not_found")


# --- what is told ------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_changed_definition_is_told_once(caplog):
    """Proves that a worker tells what has changed since runs were begun, once, and stores the new fingerprint."""
    store, logger = MemoryStore(), logging.getLogger("tests.versions")
    before = of_steps("a", "wait", "z")
    ids = [await parked_on(store, before) for _ in range(3)]
    after = version("1.0.0", timeout=600)
    after.add_step("wait", of_steps("wait").steps["wait"].handler, attempts=7)
    passing(after, "a", "y")
    async with open_engine(store, after, logger=logger) as engine:
        told = list[Any]()
        engine.on("engine.definition_changed", told.append)
        for run_id in ids:
            await engine.run(run_id).resume("yes")
            await at_rest(engine.run(run_id))
            stored = await store.load(run_id)
            assert stored is not None
            assert stored.head.fingerprint == after.plan.fingerprint
    (event,) = told
    assert (event.workflow, event.version, event.run_id) == ("flow", "1.0.0", ids[0])
    assert (event.old_fingerprint, event.fingerprint) == (before.plan.fingerprint, after.plan.fingerprint)
    assert event.differences == (
        "step 'y' was added after 'a'",
        "step 'z' was removed",
        "steps were reordered: a, wait -> wait, a",
        "workflow, timeout: none -> 600.0",
        "step 'wait', retry, attempts: 3 -> 7",
    )
    (record,) = [record for record in caplog.records if "has changed" in record.message]
    assert record.levelname == "WARNING"
    assert "its version has not: step 'y' was added after 'a'; step 'z'" in record.message


@in_virtual_time
async def test_a_definition_that_was_never_stored_is_told_as_unknown():
    """Proves that a change is told also if nobody knows what the definition was."""
    store = MemoryStore()
    before = of_steps("wait")
    run_id = await parked_on(store, before)
    await store.open()
    key = f"flow/1.0.0/{before.plan.fingerprint}"
    await store.write([PutSide(DEFINITIONS, key, 1, None)])
    async with open_engine(store, of_steps("wait", "z")) as engine:
        told = list[Any]()
        engine.on("engine.definition_changed", told.append)
        await engine.run(run_id).resume("yes")
        assert statuses(await engine.run(run_id).wait()) == {"wait": "done", "z": "done"}
        await idle()
    await store.aclose()
    assert [event.differences for event in told] == [("what it was is not stored",)]


@in_virtual_time
async def test_nothing_is_told_while_nothing_changes():
    """Proves that other processes with the same definition, and other versions, are no change."""
    store = MemoryStore()
    run_id = await parked_on(store, of_steps("wait"))
    async with open_engine(store, of_steps("wait"), version("2.0.0", steps={"a": print})) as engine:
        told = list[Any]()
        engine.on("engine.definition_changed", told.append)
        await engine.run(run_id).resume("yes")
        assert (await engine.run(run_id).wait()).status == "done"
        await idle()
    assert told == []


@in_virtual_time
async def test_a_caller_that_drives_tells_it_too():
    """Proves that `handle.drive()` notices a changed definition as a worker does."""
    store = MemoryStore()
    run_id = await parked_on(store, of_steps("wait"))
    async with open_engine(store, of_steps("wait", "z"), worker=False) as engine:
        told = list[Any]()
        engine.on("engine.definition_changed", told.append)
        await engine.run(run_id).resume("yes")
        assert (await engine.run(run_id).drive()).status == "done"
        await idle()
    assert [event.differences for event in told] == [("step 'z' was added after 'wait'",)]
