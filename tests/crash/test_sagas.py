"""Sagas under crashes: every store call fails once, workers die and leave in the midst of an undoing."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from streamline_trio import Engine, MemoryStore, StepContext, Workflow, open_engine
from streamline_trio._core.store import Update
from streamline_trio.testing import CrashAt, FailCall, LoseLeaseAt, crash, parked, sweep
from tests.crash.faulty_store import ParkingStore
from tests.crash.scenes import OPTIONS, Gate, virtual

Context = StepContext[Any, Any]


class Bank:
    """Money that moves under idempotency keys, each once; and how often it was asked to."""

    def __init__(self) -> None:
        self.moved: dict[str, int] = {}
        self.calls: list[str] = []

    def move(self, key: str, cents: int) -> None:
        self.calls.append(key)
        self.moved.setdefault(key, cents)

    @property
    def balance(self) -> int:
        return sum(self.moved.values())


class Order:
    """Two charges that are undone, since the third step fails; the second refund fails at first."""

    def __init__(self, **options: Any) -> None:
        self.bank = Bank()
        self.refused = 0
        self.workflow: Workflow[Any, Any] = Workflow("order", **options)
        for name in ("deposit", "charge"):
            step = self.workflow.add_step(name, self.pay)
            step.compensate(attempts=3, retry_delay=0.02, jitter=0)(self.refund)
        self.workflow.add_step("ship", self.ship, attempts=1)

    async def pay(self, ctx: Context) -> int:
        self.bank.move(ctx.idempotency_key(), 100)
        return 100

    async def refund(self, ctx: Context) -> None:
        if ctx.step_id == "charge" and not self.refused:
            self.refused += 1
            raise ConnectionError("the bank does not answer")
        self.bank.move(ctx.idempotency_key("compensate"), -ctx.output(ctx.step_id))

    async def ship(self, _ctx: Context) -> None:
        raise LookupError("no carrier takes it")

    async def play(self, engine: Engine) -> list[Any]:
        """The scenario: whatever happens, the money is back once, newest first."""
        self.bank, self.refused = Bank(), 0
        run = await (await engine.start(self.workflow, None, run_id="o")).wait()
        assert run.status == "compensated"
        assert run.error is not None
        assert run.compensation is not None
        assert self.bank.balance == 0
        first = {key: self.bank.calls.index(key) for key in self.bank.moved}
        assert first["o:charge:compensate"] < first["o:deposit:compensate"]
        assert self.bank.calls.index("o:deposit:compensate") > _last(self.bank.calls, "o:charge:compensate")
        return [run.error.message, dict(run.compensation.steps), sorted(self.bank.moved.items())]


def _last(calls: list[str], key: str) -> int:
    return len(calls) - 1 - calls[::-1].index(key)


@pytest.mark.parametrize("kind", [FailCall, CrashAt, LoseLeaseAt])
def test_every_mishap_at_every_point(kind: Any) -> None:
    """Proves that the money is back once and in order, whichever write fails, is lost or is the worker's last."""
    order = Order()
    mishaps = sweep(order.play, order.workflow, mishaps=[kind])
    assert len(mishaps) > 10


def test_a_cancelled_order_under_every_mishap() -> None:
    """Proves the same of an order that is cancelled while it waits, with `compensate_on_cancel`."""
    bank = Bank()
    workflow: Workflow[Any, Any] = Workflow("order", compensate_on_cancel=True)

    @workflow.step
    async def pay(ctx: Context) -> None:
        bank.move(ctx.idempotency_key(), 100)

    @pay.compensate
    async def refund(ctx: Context) -> None:
        bank.move(ctx.idempotency_key("compensate"), -100)

    @workflow.step
    async def hold(ctx: Context) -> None:
        await ctx.wait("?")

    async def play(engine: Engine) -> Any:
        bank.moved.clear()
        bank.calls.clear()
        handle = await engine.start(workflow, None, run_id="o")
        await parked(handle)
        await handle.cancel("not wanted")
        run = await handle.wait()
        assert bank.balance == 0
        return run.status, run.cancel_reason, bank.moved

    assert len(sweep(play, workflow)) > 20


@virtual
async def test_a_worker_that_dies_in_the_second_compensation() -> None:
    """S212, S214, S217, S220: Proves that the first is not repeated, the second is, and the third follows once.

    While its worker lives the run is left alone, however long it takes.
    """
    store = MemoryStore(exclusive=False)
    gate = Gate()
    calls: list[tuple[str, int]] = []
    workflow: Workflow[Any, Any] = Workflow("saga")

    async def do(_ctx: Context) -> None:
        """Nothing."""

    async def undo(ctx: Context) -> None:
        calls.append((ctx.step_id, ctx.attempt))
        if ctx.step_id == "b":
            await gate(ctx)

    async def fail(_ctx: Context) -> None:
        raise ValueError("boom")

    for name in "abc":
        workflow.add_step(name, do).compensate(undo)
    workflow.add_step("fail", fail, attempts=1)
    async with open_engine(store, workflow, **OPTIONS) as second:
        async with open_engine(store, workflow, **OPTIONS) as first:
            handle = await first.start(workflow, None)
            await gate.entered.wait()
            await trio.sleep(60)
            held = await second.get(handle.id)
            assert held.status == "compensating"
            assert held.lease is not None
            assert (held.recoveries, calls) == (0, [("c", 1), ("b", 1)])
            await crash(first)
        gate.open.set()
        ended = await second.run(handle.id).wait(timeout=60)
    assert calls == [("c", 1), ("b", 1), ("b", 2), ("a", 1)]
    assert (ended.status, ended.recoveries) == ("compensated", 1)


@virtual
async def test_a_compensation_that_kills_its_workers() -> None:
    """Proves that it is given up after so many recoveries, told as such, and that the others are done."""
    store = MemoryStore()
    calls: list[str] = []
    workflow: Workflow[Any, Any] = Workflow("saga")
    entered = trio.Event()

    async def do(_ctx: Context) -> None:
        """Nothing."""

    @workflow.step
    async def a(_ctx: Context) -> None:
        """Nothing."""

    @a.compensate
    async def undo_a(_ctx: Context) -> None:
        calls.append("-a")

    @workflow.step
    async def b(_ctx: Context) -> None:
        """Nothing."""

    @b.compensate
    async def undo_b(_ctx: Context) -> None:
        calls.append("kills")
        entered.set()
        await trio.sleep_forever()

    @workflow.step(attempts=1)
    async def fail(_ctx: Context) -> None:
        raise ValueError("boom")

    async with open_engine(store, workflow) as engine:
        handle = await engine.start(workflow, None)
        await entered.wait()
        await crash(engine)
    for _ in range(2):
        entered = trio.Event()
        async with open_engine(store, workflow, max_recoveries=2) as engine:
            await entered.wait()
            await crash(engine)
    async with open_engine(store, workflow, max_recoveries=2) as engine:
        ended = await engine.run(handle.id).wait()
    assert (ended.status, calls) == ("compensation_failed", ["kills", "kills", "kills", "-a"])
    gone = ended.steps["b"].compensation
    assert gone is not None
    assert gone.error is not None
    assert gone.error.code == "dead_lettered"


@virtual
async def test_the_next_version_of_the_code_lost_a_compensation() -> None:
    """Proves that what it cannot undo is marked `workflow.version_mismatch`, and that the rest is undone."""
    store = MemoryStore()
    calls: list[str] = []

    def code(*undoable: str) -> Workflow[Any, Any]:
        workflow: Workflow[Any, Any] = Workflow("saga")

        async def do(ctx: Context) -> None:
            if ctx.step_id == "c":
                raise ValueError("boom")

        async def undo(ctx: Context) -> None:
            calls.append(ctx.step_id)
            if len(calls) == 1:
                raise ConnectionError("later")

        for name in "abc":
            step = workflow.add_step(name, do, attempts=1)
            if name in undoable:
                step.compensate(retry_delay=60)(undo)
        return workflow

    old, new = code("a", "b"), code("a")
    async with open_engine(store, old) as engine:
        handle = await engine.start(old, None)
        await trio.testing.wait_all_tasks_blocked()
    async with open_engine(store, new) as engine:
        ended = await engine.run(handle.id).wait()
    assert (ended.status, calls) == ("compensation_failed", ["b", "a"])
    lost = ended.steps["b"].compensation
    assert lost is not None
    assert lost.error is not None
    assert lost.error.code == "workflow.version_mismatch"


# --- leaving ---------------------------------------------------------------------------------------------------


def undone_when_cancelled(gate: Any, store: Any = None) -> Workflow[Any, Any]:
    """A step to undo, whose compensation is the gate, and one that never ends."""
    workflow: Workflow[Any, Any] = Workflow("saga", compensate_on_cancel=True)

    @workflow.step
    async def a(_ctx: Context) -> None:
        """Nothing."""

    @a.compensate
    async def undo(ctx: Context) -> None:
        await gate(ctx)

    @workflow.step
    async def hold(_ctx: Context) -> None:
        await trio.sleep_forever()

    return workflow


@virtual
async def test_a_drain_after_a_cancellation_hands_the_undoing_back() -> None:
    """Proves that the first cancellation is over: a worker that leaves does not carry it out a second time."""
    store, gate = MemoryStore(), Gate()
    workflow = undone_when_cancelled(gate)
    async with open_engine(store, workflow, drain_timeout=1) as engine:
        handle = await engine.start(workflow, None)
        await trio.testing.wait_all_tasks_blocked()
        await handle.cancel("not wanted")
        await gate.entered.wait()
    async with open_engine(store, workflow) as engine:
        assert (await engine.get(handle.id)).status == "compensating"
        gate.open.set()
        ended = await engine.run(handle.id).wait()
    assert (ended.status, ended.recoveries, gate.entries) == ("compensated", 0, [1, 1])


@virtual
async def test_a_drain_during_the_write_that_turns_the_run_back() -> None:
    """Proves that a worker which has to leave just then does not stay for the compensation."""
    inner = MemoryStore()
    store, gate = ParkingStore(inner), Gate()
    workflow = undone_when_cancelled(gate)
    async with trio.open_nursery() as nursery:
        async with open_engine(store, workflow, drain_timeout=1) as engine:
            handle = await engine.start(workflow, None)
            await trio.testing.wait_all_tasks_blocked()
            store.close(_turns_back)
            await handle.cancel("not wanted")
            await store.parked.wait()

            async def release_late() -> None:
                await trio.sleep(5)
                store.release()

            nursery.start_soon(release_late)
            began = trio.current_time()
        assert trio.current_time() - began < 10
    async with open_engine(inner, workflow) as engine:
        gate.open.set()
        ended = await engine.run(handle.id).wait()
    assert (ended.status, ended.recoveries) == ("compensated", 0)


def _turns_back(batch: Any) -> bool:
    return any(isinstance(write, Update) and write.after.head.status == "compensating" for write in batch)


@virtual
async def test_what_a_compensation_raises_when_it_is_told_to_leave_does_not_count() -> None:
    """Proves that an error in the wake of a drain is no failure of the compensation."""
    store = MemoryStore()
    attempts: list[int] = []
    workflow: Workflow[Any, Any] = Workflow("saga")

    @workflow.step
    async def a(_ctx: Context) -> None:
        """Nothing."""

    @a.compensate(attempts=1)
    async def undo(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        if len(attempts) > 1:
            return
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("the connection is gone")

    @workflow.step(attempts=1)
    async def fail(_ctx: Context) -> None:
        raise ValueError("boom")

    async with open_engine(store, workflow, drain_timeout=1) as engine:
        handle = await engine.start(workflow, None)
        await trio.testing.wait_all_tasks_blocked()
    async with open_engine(store, workflow) as engine:
        ended = await engine.run(handle.id).wait()
    assert (ended.status, attempts) == ("compensated", [1, 1])


@virtual
async def test_a_worker_that_leaves_begins_no_undoing_of_what_is_cancelled() -> None:
    """Proves that a handler which unwinds for a cancellation during a drain leaves the undoing to others."""
    store, gate = MemoryStore(), Gate()
    workflow = undone_when_cancelled(gate)
    async with trio.open_nursery() as nursery, open_engine(store, workflow, drain_timeout=5) as engine:
        handle = await engine.start(workflow, None)
        await trio.testing.wait_all_tasks_blocked()

        async def cancel() -> None:
            await trio.sleep(1)
            async with open_engine(store, workflow, worker=False) as client:
                await client.run(handle.id).cancel()

        nursery.start_soon(cancel)
    assert gate.entries == []
    gate.open.set()
    async with open_engine(store, workflow) as engine:
        assert (await engine.run(handle.id).wait()).status == "compensated"


@virtual
async def test_a_fault_of_the_engine_fails_the_compensation_and_gives_the_run_back(monkeypatch) -> None:
    """Proves that a run which the engine cannot drive is neither kept leased nor undone in a hurry."""
    calls: list[str] = []
    workflow: Workflow[Any, Any] = Workflow("saga")

    async def do(ctx: Context) -> None:
        if ctx.step_id == "c":
            raise ValueError("boom")

    async def undo(ctx: Context) -> None:
        calls.append(ctx.step_id)

    for name in "abc":
        step = workflow.add_step(name, do, attempts=1)
        step.compensate(undo)

    def broken(self: Any, *_args: Any) -> None:
        raise ZeroDivisionError("a fault of ours")

    async with open_engine("memory:", workflow) as engine:
        monkeypatch.setattr("streamline_trio._runtime.driver.Undoing.__init__", broken)
        handle = await engine.start(workflow, None)
        ended = await handle.wait()
        monkeypatch.undo()
        assert ended.status == "compensation_failed"
        assert ended.compensation is not None
        assert ended.compensation.steps == {"b": "failed", "a": "failed"}
        await handle.retry()
        assert ((await handle.wait()).status, calls) == ("compensated", ["b", "a"])
