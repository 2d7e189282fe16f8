"""Idempotent starts: scenarios S241 to S251, in each tenant by itself."""

from typing import Any

import pytest
import trio

from streamline_trio import MemoryStore, RunHandle, StepContext, Workflow, open_engine
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, one_step

KEY = "order:123"
Context = StepContext[Any, Any]
TENANTS = [None, "acme"]
in_any_tenant = pytest.mark.parametrize("tenant", TENANTS)


def obeying(**options: Any) -> Workflow[Any, Any]:
    """Its input says how it ends."""

    async def step(ctx: Context) -> None:
        if ctx.input == "fail":
            raise ValueError("planned")
        if ctx.input == "wait":
            await ctx.wait("reason")

    return one_step(step, attempts=1, **options)


@in_any_tenant
@in_virtual_time
async def test_one_key_is_one_active_run(tenant):
    """S241: starts of one key give the same run, another key another one; the key is stored with the run."""
    flow = obeying()
    async with open_engine(MemoryStore(), flow, worker=False) as engine:
        first, second, other = [
            await engine.start(flow, idempotency_key=key, tenant=tenant) for key in (KEY, KEY, "order:456")
        ]
        assert first == second != other
        assert (await first.get()).idempotency_key == KEY
        assert await engine.count() == 2


@in_any_tenant
@in_virtual_time
async def test_a_waiting_run_holds_its_key(tenant):
    """S242: while its run is parked, a start of the key gives that run, whatever else it says."""
    flow = obeying()
    async with open_engine(MemoryStore(), flow) as engine:
        parked = await engine.start(flow, "wait", idempotency_key=KEY, tenant=tenant)
        assert (await at_rest(parked)).status == "waiting"
        again = await engine.start(flow, "other", idempotency_key=KEY, tenant=tenant, run_id="chosen")
        assert again == parked
        assert (await again.get()).input == "wait"


@pytest.mark.parametrize(("ends", "status"), [("done", "done"), ("fail", "failed"), ("wait", "cancelled")])
@in_any_tenant
@in_virtual_time
async def test_a_settled_run_gives_its_key_up(ends, status, tenant):
    """S243, S244, S245: after a run is done, failed or cancelled, a start of its key is a new run."""
    flow = obeying()
    async with open_engine(MemoryStore(), flow) as engine:
        first = await engine.start(flow, ends, idempotency_key=KEY, tenant=tenant)
        await idle()
        if status == "cancelled":
            await first.cancel()
        assert (await first.wait()).status == status
        second = await engine.start(flow, "done", idempotency_key=KEY, tenant=tenant)
        assert second.id != first.id
        assert (await second.wait()).status == "done"
        assert (await first.get()).status == status


@in_any_tenant
@in_virtual_time
async def test_a_run_that_rolls_back_holds_its_key(tenant):
    """S247: a run that undoes what it did has its key still, until it has settled."""
    may_end = trio.Event()
    flow: Workflow[Any, Any] = Workflow("flow")

    @flow.step
    async def book(_ctx: Context) -> int:
        return 1

    @book.compensate
    async def unbook(_ctx: Context) -> None:
        await may_end.wait()

    @flow.step(attempts=1)
    async def pay(_ctx: Context) -> None:
        raise ValueError("planned")

    async with open_engine(MemoryStore(), flow) as engine:

        async def start() -> RunHandle:
            return await engine.start(flow, idempotency_key=KEY, tenant=tenant)

        first = await start()
        assert (await at_rest(first)).status == "compensating"
        assert await start() == first
        may_end.set()
        assert (await first.wait()).status == "compensated"
        assert (await start()).id != first.id


@in_virtual_time
async def test_a_key_goes_together_with_priority_and_cancellation():
    """S249: the second start gives the first run with its priority, and cancelling it by either handle is one."""
    flow = obeying()
    async with open_engine(MemoryStore(), flow) as engine:
        first = await engine.start(flow, "wait", idempotency_key=KEY, priority=5)
        again = await engine.start(flow, "wait", idempotency_key=KEY)
        assert (again, (await again.get()).priority) == (first, 5)
        await again.cancel("order.cancelled")
        run = await first.wait()
        assert (run.status, run.cancel_reason) == ("cancelled", "order.cancelled")


@in_any_tenant
@in_virtual_time
async def test_a_key_belongs_to_its_workflow(tenant):
    """S251: the same key in two workflows is two runs; a start never gives back a run of another workflow."""
    one, two = obeying(), Workflow[Any, Any]("two")

    @two.step
    async def step(_ctx: Context) -> str:
        return "of two"

    async with open_engine(MemoryStore(), one, two) as engine:
        first = await engine.start(one, "wait", idempotency_key=KEY, tenant=tenant)
        second = await engine.start(two, idempotency_key=KEY, tenant=tenant)
        assert await second.result() == "of two"
        assert [(await run.get()).workflow for run in (first, second)] == ["flow", "two"]
