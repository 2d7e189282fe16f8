"""Leaving an engine: runs are handed back uncounted, nothing is left behind, exceptions pass unchanged."""

from __future__ import annotations

import functools
import sqlite3
import threading
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing

from streamline_trio import MemoryStore, SqliteStore, StoreUnavailable, Workflow, open_engine
from streamline_trio._core.store import Insert, PutSide, Update
from streamline_trio._runtime import opening
from streamline_trio.testing import crash
from tests.crash.faulty_store import SLOW, Act, BrokenStore, LocklessStore, ParkingStore, WrappedStore
from tests.crash.scenes import (
    LEASE,
    OPTIONS,
    Gate,
    returns_done,
    rewrite_worker,
    simple,
    virtual,
    worker_states,
)
from tests.crash.witness import until

LAST_WRITES = 5.0
STORES = pytest.mark.parametrize("exclusive", [True, False])


class Planned(Exception):
    """What a body raises."""


# --- runs --------------------------------------------------------------------------------------------------


@STORES
@virtual
async def test_a_run_is_handed_back_with_nothing_counted(exclusive):
    """Proves that closing gives a run to the next worker at once: same attempt, no recovery, no failure."""
    store, gate = MemoryStore(exclusive=exclusive), Gate()
    workflow = gate.workflow()
    async with open_engine(store, workflow, drain_timeout=3, **OPTIONS) as engine:
        run_id = (await engine.start(workflow)).id
        await gate.entered.wait()
        worker = engine.worker_id
    assert [how for how, _when in gate.left] == ["cancelled"]
    assert await worker_states(store) == {}
    assert await store.worker_gone(str(worker)), "its lock is released"
    assert await store.lease_holders() == []
    gate.open.set()
    async with open_engine(store, workflow, **OPTIONS) as engine:
        began = trio.current_time()
        document = await engine.run(run_id).wait()
        assert trio.current_time() - began < 1
        step = document.steps["step"]
        assert (document.status, document.recoveries, step.attempts) == ("done", 0, 1)
    assert gate.entries == [1, 1]


@STORES
@virtual
async def test_leaving_waits_for_a_step_that_ends_in_time(exclusive):
    """Proves that a step that ends within `drain_timeout` counts, and that the next one does not begin."""
    store = MemoryStore(exclusive=exclusive)
    calls: list[str] = []
    workflow: Workflow[Any, Any] = Workflow("work")

    async def body(ctx: Any) -> None:
        calls.append(ctx.step_id)
        await trio.sleep(4)

    workflow.add_step("one", body)
    workflow.add_step("two", body)
    async with open_engine(store, workflow, drain_timeout=5, **OPTIONS) as engine:
        run_id = (await engine.start(workflow)).id
        await trio.sleep(1)
        left_at = trio.current_time()
    assert trio.current_time() - left_at == pytest.approx(3)
    async with open_engine(store, worker=False) as client:
        document = await client.get(run_id)
    assert [step.status for step in document.steps.values()] == ["done", "pending"]
    assert (document.status, document.lease) == ("running", None)
    assert calls == ["one"]


@virtual
async def test_leaving_cancels_a_step_that_does_not_end_in_time():
    """Proves that `drain_timeout` bounds leaving, and that cleanup of the cancelled handler is waited for."""
    store = MemoryStore()
    cleaned: list[float] = []

    async def body(_ctx: Any) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
            cleaned.append(trio.current_time())

    workflow = simple(body)
    async with open_engine(store, workflow, drain_timeout=3) as engine:
        await engine.start(workflow)
        await trio.sleep(1)
        left_at = trio.current_time()
    assert cleaned == [trio.current_time()]
    assert trio.current_time() - left_at == pytest.approx(5)


@virtual
async def test_an_attempt_that_fails_because_it_is_handed_back_does_not_count():
    """Proves that an error raised from the cancellation of a drain is no failure of the step."""
    store = MemoryStore()

    async def body(_ctx: Any) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise Planned("cleanup") from None

    workflow = simple(body)
    async with open_engine(store, workflow, drain_timeout=0) as engine:
        run_id = (await engine.start(workflow)).id
        await trio.sleep(1)
    document = await store.load(run_id)
    assert document is not None
    assert (document.step("step").failures, document.head.status, document.head.lease) == (0, "running", None)


@pytest.mark.parametrize("kind", [Insert, Update])
@pytest.mark.parametrize("drain", [0.0, 5.0])
@virtual
async def test_what_is_being_taken_while_leaving_is_handed_back(kind, drain):
    """Proves that a start or claim that is on its way when the engine leaves is no crash for the run."""
    store = MemoryStore()
    parking = ParkingStore(store)
    calls: list[int] = []

    async def body(ctx: Any) -> None:
        calls.append(ctx.attempt)
        await trio.sleep(100)

    workflow = simple(body)
    async with (
        trio.open_nursery() as nursery,
        open_engine(parking, workflow, drain_timeout=drain) as engine,
        trio.open_nursery() as body_nursery,
    ):
        if kind is Update:
            await engine.start(workflow, delay=1, run_id="r")
        parking.close(lambda batch: any(isinstance(write, kind) for write in batch))
        if kind is Insert:
            body_nursery.start_soon(lambda: engine.start(workflow, run_id="r"))
        await parking.parked.wait()
        parking.slow = lambda batch: any(isinstance(write, Update) for write in batch)
        nursery.start_soon(release_after, parking, 3)
        left_at = trio.current_time()
        body_nursery.cancel_scope.cancel()
    assert trio.current_time() - left_at <= 3 + 2 * SLOW
    document = await store.load("r")
    assert document is not None
    assert (document.head.lease, document.head.recoveries) == (None, 0)
    assert calls == [], "it is not begun just to be cancelled"
    async with open_engine(store, workflow) as engine:
        document_ = await engine.run("r").wait()
        assert (document_.status, document_.recoveries, document_.steps["step"].attempts) == ("done", 0, 1)


@virtual
async def test_leaving_is_bounded_while_the_store_is_unavailable():
    """Proves that an engine whose store is gone for good leaves within seconds, however many runs it has."""
    store, gate = BrokenStore(MemoryStore(exclusive=False)), Gate()
    workflow = gate.workflow()
    async with open_engine(store, workflow, drain_timeout=1, **OPTIONS) as engine:
        for _ in range(30):
            await engine.start(workflow)
        await gate.entered.wait()
        store.broken = True
        store.breaks = lambda name, _args: name != "drop_worker"
        left_at = trio.current_time()
    assert trio.current_time() - left_at <= 1 + 2 * LAST_WRITES
    assert len(gate.left) == 30


@virtual
async def test_leaving_is_bounded_while_the_store_does_not_answer():
    """Proves that writes that hang are given up within seconds, and that the lock tells that the worker is gone."""
    inner, gate = MemoryStore(exclusive=False), Gate()
    store = ParkingStore(inner)
    workflow = gate.workflow()
    async with open_engine(store, workflow, drain_timeout=1, lease=60) as engine:
        run_id = (await engine.start(workflow)).id
        await gate.entered.wait()
        worker = engine.worker_id
        store.close()
        left_at = trio.current_time()
    assert trio.current_time() - left_at <= 1 + 2 * LAST_WRITES
    assert await inner.lease_holders() == [worker]
    assert await inner.worker_gone(str(worker))
    gate.open.set()
    async with open_engine(inner, workflow) as engine:
        began = trio.current_time()
        document = await engine.run(run_id).wait()
        assert trio.current_time() - began < 1
        assert (document.status, document.recoveries) == ("done", 1)


async def test_leaving_does_not_wait_for_a_process_that_holds_the_file(tmp_path, monkeypatch):
    """Proves that an idle engine leaves within seconds though another process, say a frozen one, has the file."""
    monkeypatch.setattr(opening, "_LAST_WRITES", 0.2)
    path = tmp_path / "runs.db"
    other = sqlite3.connect(path, isolation_level=None)
    with trio.fail_after(30):
        async with open_engine(SqliteStore(path, busy_timeout=600), simple(returns_done), lease=600):
            other.execute("BEGIN IMMEDIATE")
    other.close()


@virtual
async def test_a_beat_that_is_refused_while_leaving_is_no_matter():
    """Proves that a worker that signs off with a beat on its way does not fail, and leaves no id that lives."""
    inner = MemoryStore(exclusive=False)
    store = ParkingStore(inner)
    async with open_engine(store, simple(returns_done), drain_timeout=1, **OPTIONS) as engine:
        store.close(lambda batch: any(isinstance(write, PutSide) for write in batch))
        await store.parked.wait()
        assert engine.worker_id is not None
        await rewrite_worker(inner, engine.worker_id)
        trio.lowlevel.spawn_system_task(release_after, store, 2)
    assert "live" not in (await worker_states(inner)).values()


@virtual
async def test_leaving_while_an_id_is_given_up_marks_it_dead():
    """Proves that a worker which loses its lease as it leaves does not let others wait for a dead one's runs."""
    inner = MemoryStore(exclusive=False)
    store = BrokenStore(
        LocklessStore(inner),
        lambda name, args: name == "write" and any(isinstance(write, PutSide) for write in args[0]),
    )
    async with open_engine(store, simple(returns_done), drain_timeout=1, **OPTIONS) as engine:
        old = engine.worker_id
        store.broken = True
        await until(lambda: engine.worker_id is None, within=LEASE, pause=0.1)
        trio.lowlevel.spawn_system_task(mend_after, store, 1)
    assert (await worker_states(inner)).get(str(old), "dead") == "dead"


async def mend_after(store: BrokenStore, seconds: float) -> None:
    """Let calls succeed again later, whatever ends in between."""
    await trio.sleep(seconds)
    store.broken = False


async def release_after(store: ParkingStore, seconds: float) -> None:
    """Let parked writes go on later, whatever ends in between."""
    await trio.sleep(seconds)
    store.release()


# --- nothing is left -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exclusive", "shared", "sqlite"])
async def test_leaving_leaves_no_task_lease_lock_or_thread(kind, tmp_path):
    """Proves that after the block there are as many tasks as before, no lease, no lock, and no thread at work."""
    path = tmp_path / "runs.db"
    store: Any = SqliteStore(path) if kind == "sqlite" else MemoryStore(exclusive=kind == "exclusive")
    gate = Gate()
    workflow = gate.workflow()

    def threaded(_ctx: Any) -> int:
        return threading.active_count()

    sync: Workflow[Any, Any] = Workflow("sync")
    sync.add_step("step", threaded)
    tasks, threads = trio.lowlevel.current_statistics().tasks_living, set(threading.enumerate())
    async with open_engine(store, workflow, sync, drain_timeout=0.05) as engine:
        engine.on("*", lambda _event: None)
        run_ = await engine.start(workflow)
        await (await engine.start(sync)).result()
        await gate.entered.wait()
        assert trio.lowlevel.current_statistics().tasks_living > tasks
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    await store.open()
    document = await store.load(run_.id)
    assert document.head.lease is None
    assert await store.lease_holders() == []
    assert await worker_states(store) == {}
    await store.aclose()
    locks = tmp_path / "runs.db-workers"
    assert not locks.exists() or list(locks.iterdir()) == []
    idle = [thread.name for thread in threading.enumerate() if thread not in threads]
    assert all(name.startswith("Trio thread") for name in idle), "threads of trio's cache, waiting for work"


@virtual
async def test_after_a_crash_leaving_does_nothing_more():
    """Proves that a crashed engine's block is left at once, its lease still in the store."""
    store, gate = MemoryStore(), Gate()
    workflow = gate.workflow()
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with open_engine(store, workflow) as engine:
        await engine.start(workflow)
        await gate.entered.wait()
        await crash(engine)
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert len(await store.lease_holders()) == 1


@virtual
async def test_one_engine_that_ends_does_not_disturb_another():
    """Proves that an engine on the same store feels nothing of another's leaving, at whatever moment."""
    store = MemoryStore()
    workflow = simple(returns_done)
    async with open_engine(store, workflow) as engine, trio.open_nursery() as nursery:

        async def come_and_go(delay: int) -> None:
            for _ in range(delay):
                await trio.lowlevel.checkpoint()
            async with open_engine(store, workflow) as other:
                await other.start(workflow)

        for delay in range(40):
            nursery.start_soon(come_and_go, delay)
        for _ in range(40):
            await (await engine.start(workflow)).result()
    assert await worker_states(store) == {}


# --- how the block is left -----------------------------------------------------------------------------------


@STORES
@pytest.mark.parametrize("outer", ["free", "cancelled", "cancelled before"])
@pytest.mark.parametrize(
    "error",
    [
        Planned("body"),
        ExceptionGroup("mine", [Planned("a"), Planned("b")]),
        KeyboardInterrupt(),
        StopAsyncIteration(),
    ],
)
@virtual
async def test_an_exception_of_the_body_leaves_unchanged(exclusive, outer, error):
    """Proves that the very object that the body raised comes out, ungrouped, whatever happens around it."""
    gate = Gate()
    workflow = gate.workflow()
    caught: BaseException | None = None
    with trio.CancelScope() as scope:
        try:
            async with open_engine(
                MemoryStore(exclusive=exclusive), workflow, drain_timeout=1, **OPTIONS
            ) as engine:
                await engine.start(workflow)
                await gate.entered.wait()
                if outer == "cancelled before":
                    scope.cancel()
                try:
                    raise error
                finally:
                    if outer == "cancelled":
                        scope.cancel()
        except BaseException as raised:  # noqa: BLE001 - also what is no Exception
            caught = raised
            raised.__traceback__ = None
    assert caught is error
    assert [how for how, _when in gate.left] == ["cancelled"]


@STORES
@virtual
async def test_left_by_cancellation_the_drain_still_happens_and_is_bounded(exclusive):
    """Proves that cancelling the program drains as leaving does, and that the cancellation then goes on."""
    store, gate = MemoryStore(exclusive=exclusive), Gate()
    workflow = gate.workflow()
    with trio.move_on_after(5) as scope:
        async with open_engine(store, workflow, drain_timeout=7, **OPTIONS) as engine:
            await engine.start(workflow)
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() - gate.left[0][1] == pytest.approx(0, abs=0.5)
    assert gate.left[0][0] == "cancelled"
    assert trio.current_time() == pytest.approx(12, abs=0.5)
    assert await store.lease_holders() == []


@pytest.mark.parametrize("after", range(25))
@virtual
async def test_opening_can_be_cancelled_at_any_moment(after):
    """Proves that an engine whose opening is cancelled, however late, leaves neither a hang nor a lock."""
    store = MemoryStore(exclusive=False)
    workflow = simple(returns_done)

    async def cancel_later() -> None:
        for _ in range(after):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()

    with trio.fail_after(2 * LEASE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_later)
            async with open_engine(store, workflow, **OPTIONS):
                await trio.sleep_forever()
    for worker in await worker_states(store):
        assert await store.worker_gone(worker)
    async with open_engine(store, workflow, **OPTIONS) as engine:
        assert await (await engine.start(workflow)).result() == "done"


class CancellingStore(WrappedStore):
    """Cancels a scope in the very instant in which a call is answered."""

    def __init__(self, inner: Any, at: int, scope: trio.CancelScope) -> None:
        super().__init__(inner)
        self._left = at
        self._scope = scope

    async def around(self, _name: str, _args: tuple[Any, ...], act: Act) -> Any:
        answer = await act()
        self._left -= 1
        if self._left < 0:
            self._scope.cancel()
        return answer


@pytest.mark.parametrize("at", range(12))
@virtual
async def test_opening_can_be_cancelled_as_any_call_is_answered(at):
    """Proves that a cancellation that comes as the last preparation is done does not leave the services alone."""
    inner = MemoryStore(exclusive=False)
    with trio.fail_after(2 * LEASE), trio.CancelScope() as scope:
        async with open_engine(CancellingStore(inner, at, scope), simple(returns_done), **OPTIONS):
            await trio.sleep_forever()
    for worker in await worker_states(inner):
        assert await inner.worker_gone(worker)


def is_call(wanted: str, name: str, _args: tuple[Any, ...]) -> bool:
    return name == wanted


@virtual
async def test_an_opening_that_fails_says_why_and_leaves_nothing():
    """Proves that `StoreUnavailable` comes out of opening ungrouped, with no task or lock left."""
    inner = MemoryStore(exclusive=False)
    store = BrokenStore(inner, lambda name, _args: name != "drop_worker")
    tasks = trio.lowlevel.current_statistics().tasks_living
    for broken in ("write", "side", "sides", "lease_holders", "hold_worker"):
        store.broken, store.breaks = True, functools.partial(is_call, broken)
        with suppress(StoreUnavailable):  # some of it is not needed to open
            async with open_engine(store, simple(returns_done), **OPTIONS):
                pass
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        store.broken = False
        for worker in await worker_states(inner):
            assert await inner.worker_gone(worker)


@virtual
async def test_waiting_for_a_run_that_settles_this_instant_returns():
    """Proves that `wait` called as the run settles, before its driver has ended, does not wait for ever."""
    store = MemoryStore()
    workflow = simple(returns_done)
    async with open_engine(store, workflow) as engine:
        for _ in range(30):
            async with trio.open_nursery() as nursery:

                async def wait_as_it_completes(run_id: str, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
                    async with engine.events("workflow.completed", run=run_id) as events:
                        task_status.started()
                        await events.__anext__()
                        with trio.fail_after(60):
                            assert (await engine.run(run_id).wait()).status == "done"

                run_ = await engine.start(workflow, delay=1)
                await nursery.start(wait_as_it_completes, run_.id)


async def test_nothing_is_lost_when_much_is_written_while_leaving():
    """Proves that leaving ends although writes arrive while others are under way."""
    store = MemoryStore()
    workflow = simple(returns_done)
    with trio.fail_after(10):
        for count in range(1, 40):
            async with (
                open_engine(store, workflow, max_concurrent_runs=3) as engine,
                trio.open_nursery() as nursery,
            ):
                for _ in range(count):
                    nursery.start_soon(engine.start, workflow)
