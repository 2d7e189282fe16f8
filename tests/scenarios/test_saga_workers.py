"""Sagas of several workers on one store: on memory, SQLite and MongoDB."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import trio

from streamline_trio import InvalidState, StepContext, Workflow, open_engine
from streamline_trio.testing import crash
from tests.scenarios.test_several_workers import LONG, Store, all_at_once, opened, store, through, until

__all__ = ["store"]

Context = StepContext[Any, Any]


class Refunds:
    """A workflow of two charges and a failure; the refunds say by which call they were done."""

    def __init__(self, **options: Any) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.order: list[tuple[str, str]] = []
        self.fails: set[str] = set()
        self.gate: trio.Event | None = None
        self.workflow: Workflow[Any, Any] = Workflow("saga", **options)
        for name in ("deposit", "charge"):
            step = self.workflow.add_step(name, self.pay)
            step.compensate(attempts=2, retry_delay=0.05)(self.refund)
        self.workflow.add_step("last", self.last, attempts=1)

    async def pay(self, _ctx: Context) -> int:
        return 100

    async def refund(self, ctx: Context) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if ctx.step_id in self.fails:
            raise ConnectionError("the bank does not answer")
        self.calls[ctx.run_id, ctx.step_id] += 1
        self.order.append((ctx.run_id, ctx.step_id))

    async def last(self, ctx: Context) -> None:
        if ctx.input == "park":
            await ctx.wait("?")
        raise ValueError("it cannot be done")


async def test_each_refund_is_done_once_whoever_does_it(store: Store) -> None:
    """Proves that two workers undo many runs with a retry each, every step once, newest first."""
    saga = Refunds()
    tried: set[str] = set()
    refund = saga.refund

    async def fails_at_first(ctx: Context) -> None:
        if ctx.step_id == "charge" and ctx.run_id not in tried:
            tried.add(ctx.run_id)
            raise ConnectionError("the bank does not answer")
        await refund(ctx)

    workflow: Workflow[Any, Any] = Workflow("saga")
    for name in ("deposit", "charge"):
        step = workflow.add_step(name, saga.pay)
        step.compensate(attempts=2, retry_delay=0.05)(fails_at_first)
    workflow.add_step("last", saga.last, attempts=1)
    async with opened(store, workflow) as (one, two):
        handles = [await (one, two)[number % 2].start(workflow, None) for number in range(12)]
        for handle in handles:
            run = await through(two, handle).wait()
            assert (run.status, run.recoveries) == ("compensated", 0)
            undone = run.steps["charge"].compensation
            assert undone is not None
            assert undone.attempts == 2
            assert [step for run_id, step in saga.order if run_id == run.id] == ["charge", "deposit"]
    assert set(saga.calls.values()) == {1}


async def test_a_rollback_outlives_its_worker(store: Store) -> None:
    """S220: Proves that another worker goes on with the compensation at which the first one died."""
    saga = Refunds()
    saga.gate = trio.Event()
    async with opened(store, saga.workflow, count=1) as (first,):
        handle = await first.start(saga.workflow, None)

        async def is_compensating() -> bool:
            return (await handle.get()).status == "compensating"

        await until(is_compensating)
        await crash(first)
    saga.gate.set()
    async with opened(store, saga.workflow, count=1) as (second,):
        run = await through(second, handle).wait()
    assert (run.status, run.recoveries) == ("compensated", 1)
    assert saga.order[-2:] == [(run.id, "charge"), (run.id, "deposit")]


async def test_many_cancel_one_run_that_is_to_be_undone(store: Store) -> None:
    """Proves that cancellations through every engine at once lead to one end, and that all engines see the same."""
    saga = Refunds(compensate_on_cancel=True)
    async with opened(store, saga.workflow, count=2) as engines:
        for _ in range(3):
            handle = await engines[0].start(saga.workflow, "park")

            async def is_parked(handle: Any = handle) -> bool:
                return bool((await handle.get()).status == "waiting")

            await until(is_parked)
            await all_at_once(*(partial(through(engine, handle).cancel, "no") for engine in engines))
            ends = [await through(engine, handle).wait() for engine in engines]
            assert ends[0] == ends[1]
            assert ends[0].status in {"compensated", "cancelled"}
            assert max(saga.calls.values(), default=1) == 1
            undone = ends[0].compensation
            assert undone is not None
            done = [step for step, status in undone.steps.items() if status == "done"]
            assert done == ["charge", "deposit"][: len(done)]
            assert ends[0].status == "cancelled" or len(done) == 2


async def test_many_retry_what_could_not_be_undone(store: Store) -> None:
    """Proves that retries through every engine at once undo what failed, once."""
    saga = Refunds()
    saga.fails = {"charge"}
    async with opened(store, saga.workflow, count=2) as engines:
        handle = await engines[0].start(saga.workflow, None)
        assert (await handle.wait()).status == "compensation_failed"
        saga.fails.clear()
        saga.gate = trio.Event()
        outcomes = await all_at_once(*(partial(through(engine, handle).retry) for engine in engines))
        saga.gate.set()
        assert all(outcome is None or isinstance(outcome, InvalidState) for outcome in outcomes)
        run = await handle.wait()
    assert (run.status, saga.calls) == ("compensated", {(run.id, "deposit"): 1, (run.id, "charge"): 1})


async def test_a_client_without_code_cancels_and_retries(store: Store) -> None:
    """Proves that the stored definition is enough to turn a run back and to take up what failed."""
    saga = Refunds(compensate_on_cancel=True)
    saga.fails = {"deposit"}
    with trio.fail_after(LONG):
        async with opened(store, saga.workflow, count=1) as (worker,):
            handle = await worker.start(saga.workflow, "park")

            async def is_parked() -> bool:
                return (await handle.get()).status == "waiting"

            await until(is_parked)
        async with open_engine(store(), worker=False) as client:
            await client.run(handle.id).cancel("no")
            assert (await client.get(handle.id)).status == "compensating"
        async with opened(store, saga.workflow, count=1) as (worker,):
            assert (await through(worker, handle).wait()).status == "compensation_failed"
        saga.fails.clear()
        async with open_engine(store(), worker=False) as client:
            await client.run(handle.id).retry()
        async with opened(store, saga.workflow, count=1) as (worker,):
            assert (await through(worker, handle).wait()).status == "compensated"
