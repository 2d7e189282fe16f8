"""What happens between two calls of an engine: others write there, and nothing may be lost or taken for granted."""

# ruff: noqa: ARG002 - what happens around a call has the parameters of its protocol

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from streamline_trio import MemoryStore, StepContext, Workflow, open_engine
from streamline_trio._core.decide import decide
from streamline_trio._core.happenings import Claimed
from streamline_trio._core.store import Applied, Insert, PutSide, Update
from streamline_trio._runtime.care import Care
from streamline_trio._runtime.errands import Errands
from streamline_trio._runtime.worker import WORKERS
from streamline_trio.testing import WrappedStore
from tests.crash.faulty_store import BrokenStore, ParkingStore
from tests.crash.scenes import (
    LEASE,
    OPTIONS,
    Gate,
    enlist_phantom,
    insert_leased,
    returns_done,
    simple,
    virtual,
)


def shared() -> MemoryStore:
    return MemoryStore(exclusive=False)


def claims(batch: Any) -> bool:
    """A draft is taken by a worker."""
    return any(isinstance(write, Update) and write.before.head.status == "draft" for write in batch)


@virtual
async def test_a_claim_that_somebody_else_won_is_not_published():
    """Proves that a worker tells of the start of a run only if its own claim began it."""
    store = ParkingStore(shared())
    gate = Gate()
    workflow = gate.workflow()
    async with open_engine(store, workflow, **OPTIONS) as engine, engine.events("workflow.started") as events:
        await enlist_phantom(store.inner, "other")
        handle = await engine.start(workflow, delay=1)
        store.close(claims)
        await store.parked.wait()
        run = await store.inner.load(handle.id)
        taken = decide(run, Claimed(worker="other", max_recoveries=5), workflow.plan, 10**13, 1)
        assert await store.inner.write([Update(run, taken.run)]) == [Applied()]
        store.release()
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(LEASE / 3):
            async for event in events:
                pytest.fail(f"{event.name} was published")
        assert gate.entries == []


@virtual
async def test_a_worker_is_locked_before_its_document_can_be_seen():
    """Proves that nobody who finds a new worker's document finds its lock free and takes it for dead."""
    gone: list[bool] = []

    class Looking(WrappedStore):
        async def around(self, name: str, args: tuple[Any, ...], act: Any) -> Any:
            reply = await act()
            write = args[0][0] if name == "write" else None
            if isinstance(write, PutSide) and write.kind == WORKERS and write.expected is None:
                gone.append(await self.inner.worker_gone(write.key))
            return reply

    async with open_engine(Looking(shared()), simple(returns_done), **OPTIONS):
        assert gone == [False]


@virtual
async def test_a_worker_that_enlists_during_a_look_round_is_not_dead():
    """Proves that a lease which came after the workers were read is nobody's proof of a missing document."""
    inner = shared()
    workflow = simple(returns_done)

    class Busy(WrappedStore):
        armed = False

        async def around(self, name: str, args: tuple[Any, ...], act: Any) -> Any:
            reply = await act()
            if name == "sides" and self.armed and not reply:
                self.armed = False
                await enlist_phantom(inner, "newcomer")
                await insert_leased(inner, workflow, "r1", "newcomer")
            return reply

    store = Busy(inner)
    async with open_engine(store, Gate().workflow(), **OPTIONS) as engine:
        store.armed = True
        await engine._machinery.observer.look(holders=True)
        assert not store.armed
        assert engine._machinery.observer.dead == set()


@virtual
async def test_a_run_whose_claim_is_being_confirmed_is_not_handed_back():
    """Proves that what is leased to us and not driven yet is no orphan while its claim is under way."""
    store, gate = ParkingStore(shared(), "after"), Gate()
    workflow = gate.workflow()
    async with open_engine(store, workflow, lease=LEASE, poll_interval=1.0) as engine:
        handle = await engine.start(workflow, delay=1)
        store.close(claims)
        await store.parked.wait()
        run = await store.inner.load(handle.id)
        assert run.head.lease.worker == engine.worker_id
        assert not Care(engine._machinery, Errands(engine._machinery))._is_orphan(run)
        store.release()
        await gate.entered.wait()
        gate.open.set()
        assert (await handle.wait()).fence == 1


@virtual
async def test_a_run_that_nobody_here_drives_is_handed_back():
    """Proves that a lease of ours with no driver behind it, from a claim whose answer never came, ends."""
    store = shared()
    workflow = simple(returns_done)
    async with open_engine(store, workflow, **OPTIONS) as engine:
        assert engine.worker_id is not None
        await insert_leased(store, workflow, "r1", engine.worker_id)
        with trio.fail_after(4 * LEASE):
            assert (await engine.run("r1").wait()).status == "done"


@virtual
async def test_a_start_that_is_refused_takes_no_place():
    """Proves that the place reserved for a run that is not inserted is free again."""
    gate = Gate()
    workflow = gate.workflow()
    async with open_engine(MemoryStore(), workflow, max_concurrent_runs=3) as engine:
        first = await engine.start(workflow, idempotency_key="k")
        assert (await engine.start(workflow, idempotency_key="k")).id == first.id
        crew = engine._machinery.crew
        free, expected = crew.free, list(crew.expected)
        for run_id in expected:
            crew.cancel_reservation(run_id)  # else leaving would wait for ever
        assert (free, expected) == (2, [])
        gate.open.set()
        assert (await first.wait()).status == "done"


@virtual
async def test_a_handler_unwinds_while_its_run_is_leased():
    """Proves that a run is not parked, and so not taken by others, before its cleanup has ended."""
    store = MemoryStore()
    seen: list[tuple[str, bool]] = []
    workflow: Workflow[Any, Any] = Workflow("work")

    @workflow.step
    async def naps(ctx: StepContext[Any, Any]) -> None:
        try:
            await ctx.sleep(5)
        finally:
            with trio.CancelScope(shield=True):
                run = await store.load(ctx.run_id)
            assert run is not None
            seen.append((run.head.status, run.head.lease is None))

    async with open_engine(store, workflow) as engine:
        handle = await engine.start(workflow)
        assert (await handle.wait()).status == "done"
    assert seen == [("running", False)] * 2


@virtual
async def test_a_run_that_parks_while_the_claimer_looks_is_woken():
    """Proves that the claimer hears of what falls due between its look and its sleep."""
    workflow: Workflow[Any, Any] = Workflow("work")

    @workflow.step
    async def naps(ctx: StepContext[Any, Any]) -> None:
        await ctx.sleep(1)

    class Slow(WrappedStore):
        async def around(self, name: str, args: tuple[Any, ...], act: Any) -> Any:
            reply = await act()
            if name == "next_due":
                await trio.sleep(0.5)
            return reply

    async with open_engine(Slow(MemoryStore()), workflow) as engine:
        handle = await engine.start(workflow)
        with trio.fail_after(60):
            assert (await handle.wait()).status == "done"


@virtual
async def test_two_calls_of_once_at_a_time_are_one():
    """Proves that the second waits for the first, and gets its result."""
    calls: list[int] = []
    workflow: Workflow[Any, Any] = Workflow("work")

    async def charge() -> int:
        calls.append(len(calls))
        await trio.sleep(1)
        return calls[-1]

    @workflow.step
    async def pays(ctx: StepContext[Any, Any]) -> list[int]:
        got: list[int] = []

        async def pay() -> None:
            got.append(await ctx.once("charge", charge, returns=int))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pay)
            nursery.start_soon(pay)
        return got

    async with open_engine(MemoryStore(), workflow) as engine:
        assert await (await engine.start(workflow)).result() == [0, 0]
    assert calls == [0]


@virtual
async def test_a_broadcast_reaches_a_run_that_could_not_be_written_at_first():
    """Proves that a broadcast is not done while somebody who waits has not got it."""
    workflow: Workflow[Any, Any] = Workflow("work")

    @workflow.step
    async def listens(ctx: StepContext[Any, Any]) -> Any:
        return await ctx.wait_for("news")

    store = BrokenStore(shared(), lambda name, args: name == "write" and isinstance(args[0][0], Update))
    async with open_engine(store, workflow, **OPTIONS) as engine:
        handle = await engine.start(workflow)
        await trio.sleep(1)
        store.broken = True
        await engine.emit("news", 7)
        store.broken = False
        with trio.fail_after(5 * LEASE):
            assert await handle.result() == 7


@virtual
async def test_nothing_is_begun_under_an_id_whose_beat_is_too_old():
    """Proves that a worker which was frozen for a lease leases nothing to the id that it had."""
    begun: list[bool] = []

    class Looking(WrappedStore):
        async def around(self, name: str, args: tuple[Any, ...], act: Any) -> Any:
            if name == "write" and isinstance(args[0][0], Insert):
                begun.append(args[0][0].run.head.lease is not None)
            return await act()

    workflow = simple(returns_done)
    async with open_engine(Looking(shared()), workflow, **OPTIONS) as engine:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        clock.jump(LEASE)
        handle = await engine.start(workflow)
        assert begun == [False]
        assert (await handle.wait()).status == "done"
