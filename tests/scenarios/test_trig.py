"""Signals that start runs, and signals that cancel them."""

from dataclasses import replace
from typing import Any

import pytest
import trio

from streamline_trio import CancelOn, Engine, MemoryStore, Run, Signal, StepContext, Trigger, Workflow, open_engine
from streamline_trio.testing import crash
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, passing

Ctx = StepContext[Any, Any]
created = Signal("user.created", dict[str, Any])
gone = Signal("order.cancelled", dict[str, Any])


def triggered(id: str = "flow", *triggers: Any, **options: Any) -> Workflow[Any, Any]:
    """A workflow of one step that the signal starts."""
    workflow: Workflow[Any, Any] = Workflow(id, trigger=triggers or Trigger(created), **options)
    passing(workflow, "step")
    return workflow


def parking(id: str = "order", **options: Any) -> Workflow[Any, Any]:
    """A workflow that waits for a person, and is cancelled by a signal."""
    workflow: Workflow[Any, Any] = Workflow(id, **{"cancel_on": [gone], **options})

    @workflow.step
    async def park(ctx: Ctx) -> Any:
        return await ctx.wait("for ever")

    return workflow


async def runs_of(engine: Engine, workflow: str) -> list[Run]:
    return (await engine.find(workflow=workflow, sort="created_at")).items


@in_virtual_time
async def test_an_event_starts_a_run():
    """S307: a broadcast starts exactly one run of the workflow, with the payload as its input; an addressed signal
    starts none."""
    flow, other = triggered(), parking()
    async with open_engine("memory:", flow, other) as engine:
        await engine.emit(created, {"name": "ann"})
        addressed = await engine.start(other, None)
        await engine.emit(created, {"name": "bob"}, run=addressed)
        await idle()
        (run,) = await runs_of(engine, "flow")
        assert (run.status, run.input, run.tenant) == ("done", {"name": "ann"}, None)


@in_virtual_time
async def test_a_workflow_that_is_shut_down_leaves_the_other_its_trigger():
    """S308, S276, S277: triggers are documents and no listeners: whoever leaves takes no other's with him."""
    store = MemoryStore()
    one, two = triggered("one"), triggered("two")
    async with open_engine(store, two) as engine:
        async with open_engine(store, one):
            pass
        await engine.emit(created, {})
        await idle()
        assert [run.workflow for run in (await engine.find()).items] == ["two"]


@pytest.mark.parametrize(
    ("tenant", "payload", "wanted"),
    [(lambda data: data["orgId"], {"orgId": "org-A"}, "org-A"), ("org-default", None, "org-default")],
)
def test_the_tenant_of_a_triggered_run(tenant, payload, wanted):
    """S309, S310: the trigger names the run's tenant: by a function of the payload, or always the same one."""

    async def scenario() -> None:
        async with open_engine("memory:", triggered("flow", Trigger("made", tenant=tenant))) as engine:
            require_tenants(engine)
            await engine.emit("made", payload)
            await idle()
            assert [run.tenant for run in await runs_of(engine, "flow")] == [wanted]

    in_virtual_time(scenario)()


def require_tenants(engine: Engine) -> None:
    """As `tenancy="required"` says."""
    services = engine._machinery.services
    services.options = replace(services.options, tenancy="required")


@in_virtual_time
async def test_without_a_tenant_where_one_is_required():
    """S311: an `engine.error` that names signal and workflow, no run, and what comes later works."""
    flow = triggered("flow", Trigger(created, tenant=lambda data: data.get("org")))
    async with open_engine("memory:", flow) as engine:
        require_tenants(engine)
        errors: list[Any] = []
        engine.on("engine.error", errors.append)
        await engine.emit(created, {})
        await idle()
        assert await engine.count() == 0
        (error,) = errors
        assert (error.context, error.workflow) == ("trigger:user.created", "flow")
        assert "TenantRequired" in error.error
        await engine.emit(created, {"org": "a"})
        await idle()
        assert [run.tenant for run in await runs_of(engine, "flow")] == ["a"]


@in_virtual_time
async def test_cancel_on_cancels_a_running_run():
    """S314: an addressed signal cancels a step that runs; its handler unwinds first, and the reason names it."""
    unwound: list[float] = []
    flow: Workflow[Any, Any] = Workflow("order", cancel_on=[gone])

    @flow.step
    async def long(_ctx: Ctx) -> None:
        try:
            await trio.sleep(10)
        finally:
            unwound.append(trio.current_time())

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow, None)
        await trio.sleep(0.05)
        await engine.emit(gone, {}, run=handle)
        run = await handle.wait()
        assert (run.status, run.cancel_reason) == ("cancelled", "signal order.cancelled")
        assert unwound == [trio.current_time()]


@in_virtual_time
async def test_cancel_on_cancels_a_parked_run():
    """S315: at once; and the signal is not kept for a wait."""
    flow = parking()
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow, None)
        await idle()
        await engine.emit(gone, {}, run=handle, id="one")
        assert (await handle.get()).status == "cancelled"
        await engine.emit(gone, {}, run=handle, id="one")  # told again


@in_virtual_time
async def test_whom_cancel_on_cancels():
    """S316: an addressed signal cancels its run and no other; a broadcast cancels all, in whatever state."""
    flow = parking()
    async with open_engine("memory:", flow) as engine:
        one, two = await engine.start(flow, None), await engine.start(flow, None)
        draft = await engine.start(flow, None, delay=3600)
        paused = await engine.start(flow, None)
        await idle()
        await paused.pause()
        await engine.emit(gone, {}, run=one)
        states = [(await at_rest(run)).status for run in (one, two, draft, paused)]
        assert states == ["cancelled", "waiting", "draft", "waiting"]
        await engine.emit(gone, {})
        assert [(await at_rest(run)).status for run in (one, two, draft, paused)] == ["cancelled"] * 4


@in_virtual_time
async def test_cancel_on_after_a_restart():
    """S317: also in a process that has not the code, after the one that started the run has crashed."""
    store = MemoryStore()
    flow = parking()
    async with open_engine(store, flow) as engine:
        handle = await engine.start(flow, None)
        await idle()
        await crash(engine)
    async with open_engine(store, worker=False) as client:
        await client.emit(gone, {})
        assert (await client.get(handle.id)).status == "cancelled"


@in_virtual_time
async def test_cancel_on_with_match():
    """Proves that a broadcast cancels only runs whose input has what the payload has, compared as plain data."""
    flow = parking(cancel_on=CancelOn(gone, match={"order": "id", "shop": "shop"}))
    async with open_engine("memory:", flow) as engine:
        inputs: list[Any] = [
            {"id": 1, "shop": "a"},
            {"id": 2, "shop": "a"},
            {"id": True, "shop": "a"},
            {"id": 1},
            7,
        ]
        handles = [await engine.start(flow, value) for value in inputs]
        await idle()
        await engine.emit(gone, {"order": 1})
        assert {(await at_rest(run)).status for run in handles} == {"waiting"}
        await engine.emit(gone, {"order": 1.0, "shop": "a"})
        assert [(await at_rest(run)).status for run in handles] == ["cancelled", *["waiting"] * 4]
        await engine.emit(gone, {}, run=handles[4])
        assert (await at_rest(handles[4])).status == "cancelled"
