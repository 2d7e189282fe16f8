"""Signals that start runs, and signals that cancel them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
from msgspec import structs

from streamline_trio import (
    CancelOn,
    ConcurrencyLimitReached,
    Engine,
    MemoryStore,
    Run,
    Signal,
    StepContext,
    Trigger,
    Workflow,
    open_engine,
)
from streamline_trio._core.broadcasts import decode_broadcast, encode_broadcast
from streamline_trio._core.store import PutSide
from streamline_trio._runtime.emission import emit
from streamline_trio._runtime.starting import StartOptions, start
from streamline_trio.testing import WrappedStore, crash
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
    options.setdefault("cancel_on", [gone])
    workflow: Workflow[Any, Any] = Workflow(id, **options)

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


# --- once -------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_an_emission_starts_one_run_ever():
    """S313: the same id again starts nothing, also when the run has settled and is deleted; a day later the id is
    still known, and another tenant's or signal's is another."""
    store, flow = MemoryStore(), triggered("flow", Trigger(created), Trigger("other"))
    async with open_engine(store, flow) as engine:
        for _ in range(3):
            await engine.emit(created, {}, id="one")
        await idle()
        assert await engine.count() == 1
        assert await engine.delete(status="done") == 1
        await trio.sleep(23 * 3600)
        async with open_engine(store, flow) as again:
            await again.emit(created, {}, id="one")
            await idle()
            assert await engine.count() == 0
            await again.emit("other", {}, id="one")
            await idle()
            assert await engine.count() == 1


@in_virtual_time
async def test_each_trigger_starts_a_run_of_its_own():
    """Proves that a workflow with two triggers on a signal is started by each, with the input each makes."""
    flow = triggered("flow", Trigger(created), Trigger(created, input=lambda data: data["name"].upper()))
    async with open_engine("memory:", flow, triggered("second")) as engine:
        await engine.emit(created, {"name": "ann"})
        await idle()
        inputs = [run.input for run in await runs_of(engine, "flow")]
        assert sorted(inputs, key=str) == ["ANN", {"name": "ann"}]
        assert len(await runs_of(engine, "second")) == 1


@in_virtual_time
async def test_what_cannot_be_started_is_told_once_and_hinders_nobody():
    """Proves that a trigger whose function fails, or whose input does not fit, is an `engine.error` that names
    signal and workflow, is not tried again, and that the others start."""
    store = MemoryStore()
    bad = triggered("bad", Trigger(created, input=lambda data: data["missing"]))
    strict: Workflow[Any, Any] = Workflow("strict", input=int, trigger=Trigger(created))
    passing(strict, "step")
    tenants = triggered("tenants", Trigger(created, tenant=lambda _: ""))
    untyped = triggered("untyped", Trigger(Signal("user.created", int)))
    flows = [bad, strict, tenants, untyped, triggered("good")]
    async with open_engine(store, *flows) as engine:
        errors: list[Any] = []
        engine.on("engine.error", errors.append)
        await engine.emit(created, {"name": "ann"}, id="one")
        await idle()
        assert [run.workflow for run in (await engine.find()).items] == ["good"]
        assert sorted(error.workflow for error in errors) == ["bad", "strict", "tenants", "untyped"]
        assert {error.context for error in errors} == {"trigger:user.created"}
        assert any("KeyError" in error.error for error in errors)
        await engine.emit(created, {"name": "ann"}, id="one")
    async with open_engine(store, *flows) as engine:
        engine.on("engine.error", errors.append)
        await idle()
        assert (len(errors), await engine.count()) == (4, 1)


@in_virtual_time
async def test_a_start_that_is_refused_is_told():
    """S312: a triggered start is a start like any other: what `start` refuses is told and not tried again."""

    async def refuse(*_args: object) -> str:
        raise ConcurrencyLimitReached("full")

    async with open_engine("memory:", triggered()) as engine:
        errors: list[Any] = []
        engine.on("engine.error", errors.append)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("streamline_trio._runtime.triggers.start", refuse)
            await engine.emit(created, {}, id="one")
            await idle()
        await engine.emit(created, {}, id="one")
        await idle()
        assert (len(errors), await engine.count()) == (1, 0)


# --- who starts it ------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_the_highest_version_that_a_worker_has_is_started():
    """Proves that of several versions the highest of any live worker is started, whoever emits, and the next one
    once that worker has left."""
    store = MemoryStore()
    old, new = triggered(version="2.0.0"), triggered(version="10.0.0")
    async with open_engine(store, old) as low, open_engine(store, worker=False) as client:
        async with open_engine(store, new) as high:
            for engine in (low, client, high):
                await engine.emit(created, {})
                await idle()
            assert [run.version for run in await runs_of(low, "flow")] == ["10.0.0"] * 3
        await client.emit(created, {})
        await idle()
        assert max(run.version for run in await runs_of(low, "flow")) == "2.0.0"


@in_virtual_time
async def test_an_emitter_that_dies_before_it_has_told_a_worker():
    """Proves that a broadcast counts as delivered only once the workers with the code can find it."""
    store = MemoryStore(exclusive=False)
    stalled = Stalled(store)
    stalled.stalls = lambda name, args: (
        name == "write" and any(isinstance(put, PutSide) and put.kind == "trigger:flow" for put in args[0])
    )
    async with open_engine(store, triggered()) as engine:
        async with open_engine(stalled, worker=False) as client, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: client.emit(created, {}, id="one"))
            await trio.sleep(0.1)
            await crash(client)
        await trio.sleep(60)
        assert await engine.count(status="done") == 1


@in_virtual_time
async def test_a_version_without_the_trigger_is_not_started():
    """Proves that the highest version decides, also that the signal is none of its business any more."""
    store = MemoryStore()
    plain: Workflow[Any, Any] = Workflow("flow", version="2.0.0")
    passing(plain, "step")
    async with open_engine(store, triggered()):
        pass
    async with open_engine(store, plain) as engine:
        await engine.emit(created, {}, id="one")
        await idle()
        assert await engine.count() == 0
        async with open_engine(store, triggered()):
            await idle()
            assert await engine.count() == 0


@pytest.mark.parametrize("version", ["1.0.0", "2.0.0"])
def test_with_clients_only_the_broadcast_waits_for_a_worker(version):
    """Proves that what was emitted while no worker had the code is started by the first that comes with the
    workflow, of whatever version, once; and that a workflow that was never seen before is not."""

    async def scenario() -> None:
        store = MemoryStore()
        async with open_engine(store, triggered(), worker=False) as client:
            await client.emit(created, {"n": 1}, id="one")
            await client.emit(created, {"n": 2})
            await trio.sleep(3 * 24 * 3600)
            assert await client.count() == 0
            later = triggered("later")
            async with open_engine(store, triggered(version=version), later, triggered("other")) as engine:
                await idle()
                assert sorted(run.input["n"] for run in await runs_of(engine, "flow")) == [1, 2]
            async with open_engine(store, triggered(version=version), later) as engine:
                await idle()
                assert await engine.count() == 2
                await client.emit(created, {"n": 3})
                await idle()
                assert len(await runs_of(engine, "flow")) == 3
                assert len(await runs_of(engine, "later")) == 1

    in_virtual_time(scenario)()


@in_virtual_time
async def test_what_nobody_comes_for_is_given_up_after_a_week():
    """Proves that a workflow that is retired for good does not gather broadcasts for ever, and that it is told."""
    store = MemoryStore()
    async with open_engine(store, triggered(), worker=False) as client:
        await client.emit(created, {}, id="one")
        await trio.sleep(8 * 24 * 3600)
    async with open_engine(store) as engine:
        errors: list[Any] = []
        engine.on("engine.error", errors.append)
        await idle()
        assert [error.workflow for error in errors] == ["flow"]
    async with open_engine(store, triggered()) as engine:
        await idle()
        assert await engine.count() == 0
    assert await store.sides("broadcast") == await store.sides("trigger:flow") == []


@in_virtual_time
async def test_a_run_is_not_deleted_while_its_broadcast_may_be_repeated():
    """Proves that who repeats a broadcast finds the run that it has started, even if somebody deletes what is done:
    as after a crash between the start and the note of it."""
    store, flow = MemoryStore(), triggered()
    async with open_engine(store, flow) as engine:
        await engine.emit(created, {}, id="one")
        await idle()
    (side,) = await store.sides("broadcast")
    unfinished = structs.replace(decode_broadcast(side.body), triggered=("flow",), done=False, delivered=False)
    await store.write([PutSide("broadcast", side.key, side.revision, encode_broadcast(unfinished), 0)])
    async with open_engine(store, worker=False) as client:
        assert await client.delete(status="done") == 0
        async with open_engine(store, flow) as engine:
            errors: list[Any] = []
            engine.on("engine.error", errors.append)
            await idle()
            assert (await client.count(), errors) == (1, [])
        assert await client.delete(status="done") == 1


class Stalled(WrappedStore):
    """Holds up the calls that it is told to."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.stalls: Callable[[str, tuple[Any, ...]], bool] = lambda _name, _args: False
        self._may_go = trio.Event()

    def go_on(self) -> None:
        self.stalls = lambda _name, _args: False
        self._may_go.set()

    async def around(self, name: str, args: tuple[Any, ...], act: Any) -> Any:
        if self.stalls(name, args):
            await self._may_go.wait()
        return await act()


# --- whom it concerns ---------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_broadcast_stays_in_its_tenant():
    """Proves that waits, triggers and `cancel_on` are those of the emission's tenant; no tenant is one too."""
    flow, started = parking(), triggered("started", Trigger(gone))
    async with open_engine("memory:", flow, started) as engine:
        machinery = engine._machinery
        tenants = [None, "a", "b"]
        ids = [await start(machinery, flow, None, StartOptions(tenant=tenant)) for tenant in tenants]
        await idle()
        await emit(machinery, gone, {}, run=None, id="one", match=None, tenant="a")
        await idle()
        assert [(await engine.get(run)).status for run in ids] == ["waiting", "cancelled", "waiting"]
        await emit(machinery, gone, {}, run=None, id="one", match=None, tenant=None)
        await idle()
        assert [(await engine.get(run)).status for run in ids] == ["cancelled", "cancelled", "waiting"]
        assert sorted(str(run.tenant) for run in await runs_of(engine, "started")) == ["None", "a"]


@in_virtual_time
async def test_a_step_emits_in_its_own_tenant():
    """Proves that `ctx.emit` goes to the runs of the run's tenant."""
    flow, teller = parking(), Workflow[Any, Any]("teller")

    @teller.step
    async def tell(ctx: Ctx) -> None:
        await ctx.emit(gone, {})

    async with open_engine("memory:", flow, teller) as engine:
        machinery = engine._machinery
        ids = [await start(machinery, flow, None, StartOptions(tenant=tenant)) for tenant in (None, "a")]
        await start(machinery, teller, None, StartOptions(tenant="a"))
        await idle()
        assert [(await engine.get(run)).status for run in ids] == ["waiting", "cancelled"]


@in_virtual_time
async def test_runs_are_cancelled_however_they_were_started():
    """Proves that children, forks, triggered runs and runs that a new version has taken over are cancelled too."""
    store = MemoryStore()
    family: Workflow[Any, Any] = Workflow("family")
    flow = parking(trigger=Trigger("go"))

    @family.step
    async def parent(ctx: Ctx) -> Any:
        return await ctx.child(flow, None, on_failure="return")

    plain: Workflow[Any, Any] = Workflow("moved")
    plain.add_step("park", flow.steps["park"])
    moved = parking("moved", version="2.0.0", migrate=lambda run: structs.replace(run, version="2.0.0"))
    async with open_engine(store, plain) as engine:
        await engine.start(plain, None, delay=10)
    async with open_engine(store, flow, family, moved) as engine:
        await engine.start(family, None)
        await engine.emit("go", None)
        await (await engine.start(flow, None)).fork("park")
        await trio.sleep(20)
        assert {run.status for run in (await engine.find()).items} == {"waiting"}
        await engine.emit(gone, {})
        await idle()
        assert [run.status for run in await runs_of(engine, "order")] == ["cancelled"] * 4
        assert [(run.version, run.status) for run in await runs_of(engine, "moved")] == [("2.0.0", "cancelled")]


@in_virtual_time
async def test_who_emits_may_select_among_those_that_would_be_cancelled():
    """Proves that `match` of the emission, of fields of runs, holds for `cancel_on` too."""
    flow = parking()
    async with open_engine("memory:", flow) as engine:
        one, two = await engine.start(flow, None, tags=["x"]), await engine.start(flow, None)
        await idle()
        await engine.emit(gone, {}, match={"tags": ["x"]})
        assert [(await at_rest(run)).status for run in (one, two)] == ["cancelled", "waiting"]


@in_virtual_time
async def test_a_cancelled_run_undoes_what_it_did():
    """Proves that a signal cancels as anybody does: what is to be undone is undone; no second one stops that."""
    undone: list[str] = []
    flow: Workflow[Any, Any] = Workflow("order", cancel_on=[gone], compensate_on_cancel=True)

    @flow.step
    async def pay(_ctx: Ctx) -> None: ...

    @pay.compensate
    async def refund(_ctx: Ctx) -> None:
        await trio.sleep(5)
        undone.append("pay")

    @flow.step
    async def park(ctx: Ctx) -> None:
        await ctx.wait("for ever")

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow, None)
        await idle()
        await engine.emit(gone, {})
        await trio.sleep(1)
        await engine.emit(gone, {})
        await engine.emit(gone, {}, run=handle, id="again")
        assert (await handle.wait()).status == "compensated"
    assert undone == ["pay"]


@in_virtual_time
async def test_a_late_delivery_cancels_nobody_who_was_started_later():
    """Proves that a broadcast that another worker goes on with cancels who was there when it was emitted."""
    store, flow = MemoryStore(exclusive=False), parking()
    async with open_engine(store, flow) as engine:
        before = await engine.start(flow, None)
        await trio.sleep(1)
        stalled = Stalled(store)
        stalled.stalls = lambda name, _args: name == "load_many"
        async with open_engine(stalled, worker=False) as client, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: client.emit(gone, {}, id="one"))
            await trio.sleep(0.1)
            await crash(client)
        after = await engine.start(flow, None)
        assert (await before.wait(timeout=60)).status == "cancelled"
        await trio.sleep(60)
        assert (await after.get()).status == "waiting"
        assert [decode_broadcast(side.body).done for side in await store.sides("broadcast")] == [True]
