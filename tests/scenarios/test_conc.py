"""Concurrency that queues: who goes on, who waits in line, and who is next."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import trio

from streamline_trio import (
    Branch,
    Concurrency,
    Engine,
    MemoryStore,
    NonRetriable,
    RunHandle,
    StepContext,
    Workflow,
    open_engine,
)
from tests.scenarios.gauge import Gauge
from tests.scenarios.worlds import at_rest, idle, in_virtual_time

Context = StepContext[Any, Any]


class Gated:
    """A workflow of one step whose runs end when they are let go."""

    def __init__(self, concurrency: Concurrency, **options: Any) -> None:
        self.began: list[Any] = []
        self.gates: dict[Any, trio.Event] = {}
        self.flow: Workflow[Any, Any] = Workflow("flow", concurrency=concurrency, **options)
        self.flow.add_step("step", self._step)

    async def _step(self, ctx: Context) -> Any:
        name = ctx.input["name"]
        self.began.append(name)
        await self.gate(name).wait()
        if ctx.input.get("fails"):
            raise NonRetriable("as asked")
        return name

    def gate(self, name: Any) -> trio.Event:
        return self.gates.setdefault(name, trio.Event())

    async def let_go(self, *names: Any) -> None:
        for name in names:
            self.gate(name).set()
        await idle()


@asynccontextmanager
async def gauged(*workflows: Workflow[Any, Any], **options: Any) -> AsyncGenerator[tuple[Engine, Gauge]]:
    """An engine whose every write is watched, and that must leave nothing behind."""
    gauge = Gauge(MemoryStore())
    async with open_engine(gauge, *workflows, **options) as engine:
        yield engine, gauge
        await idle()
        gauge.check_at_rest()
    gauge.check()


async def start(engine: Engine, flow: Workflow[Any, Any], name: str, key: str = "a", **options: Any) -> RunHandle:
    more = {name: options.pop(name) for name in ("fails",) if name in options}
    return await engine.start(flow, {"name": name, "key": key, **more}, **options)


def by_key(limit: int, **options: Any) -> Concurrency:
    return Concurrency(limit, key=lambda value: value["key"], **options)


async def status(run: RunHandle) -> str:
    return (await at_rest(run)).status


@in_virtual_time
async def test_runs_over_the_limit_queue_per_key():
    """S252, S253, S267: of three runs for one key two go on and one queues; another key has slots of its own."""
    gated = Gated(by_key(2))
    async with gauged(gated.flow) as (engine, gauge):
        runs = [await start(engine, gated.flow, f"a{number}") for number in range(3)]
        other = await start(engine, gated.flow, "b0", key="b")
        assert [await status(run) for run in (*runs, other)] == ["running", "running", "draft", "running"]
        queued = await runs[2].get()
        assert queued.slot is not None
        assert (queued.slot.state, queued.slot.key, queued.slot.limit) == ("queued", "a", 2)
        assert queued.due_at is None
        stats = await engine.stats()
        assert stats.slots == {"flow:a": 2, "flow:b": 1}
        assert [(use.key, use.holding, use.limit, use.queued) for use in stats.buckets] == [
            ("a", 2, 2, 1),
            ("b", 1, 2, 0),
        ]
        await gated.let_go("a0")
        assert await status(runs[2]) == "running"
        await gated.let_go("a1", "a2", "b0")
        assert gauge.most == {"\nflow\na": 2, "\nflow\nb": 1}
        assert (await engine.stats()).slots == {}
        assert (await runs[0].get()).slot is None


@in_virtual_time
async def test_without_a_key_the_workflow_has_one_bucket():
    """W31: a limit without a key limits the workflow as a whole."""
    gated = Gated(Concurrency(1))
    async with gauged(gated.flow) as (engine, _):
        runs = [await start(engine, gated.flow, name, key=name) for name in "ab"]
        assert [await status(run) for run in runs] == ["running", "draft"]
        assert (await engine.stats()).slots == {"flow": 1}
        await gated.let_go("a", "b")
        assert [await status(run) for run in runs] == ["done", "done"]


@in_virtual_time
async def test_the_end_of_a_run_lets_the_next_one_in_at_once():
    """S254, S256, S261: no poll lies between the end of one and the beginning of the next."""
    gated = Gated(by_key(1))
    async with gauged(gated.flow) as (engine, _):
        one, two = [await start(engine, gated.flow, name) for name in ("one", "two")]
        began = trio.current_time()
        await gated.let_go("one", "two")
        assert [await status(one), await status(two)] == ["done", "done"]
        assert gated.began == ["one", "two"]
        assert trio.current_time() == began


@in_virtual_time
async def test_a_waiting_run_keeps_its_slot():
    """S255, S285: a run that sleeps, or is paused, holds its slot; nobody can drive the next one past it."""
    flow: Workflow[Any, Any] = Workflow("flow", concurrency=Concurrency(1))

    @flow.step
    async def nap(ctx: Context) -> None:
        await ctx.sleep(60)

    async with gauged(flow) as (engine, _):
        one, two = [await engine.start(flow) for _ in range(2)]
        assert [await status(one), await status(two)] == ["waiting", "draft"]
        assert (await two.drive()).status == "draft"
        await one.pause()
        await trio.sleep(100)
        assert [await status(one), await status(two)] == ["waiting", "draft"]
        await one.unpause()
        assert [(await run.wait()).status for run in (one, two)] == ["done", "done"]


@in_virtual_time
async def test_whatever_ends_a_run_frees_its_slot():
    """S263, S268, S269, S270, W27: done, failed, cancelled (also while it queues) and timed out."""
    gated = Gated(by_key(1), timeout=50)
    async with gauged(gated.flow) as (engine, _):
        done = await start(engine, gated.flow, "done")
        fails = await start(engine, gated.flow, "fails", fails=True)
        cancelled = await start(engine, gated.flow, "cancelled")
        never = await start(engine, gated.flow, "never")
        slow = await start(engine, gated.flow, "slow")
        last = await start(engine, gated.flow, "last")
        await gated.let_go("done", "fails")
        assert [await status(run) for run in (done, fails, cancelled)] == ["done", "failed", "running"]
        await never.cancel()
        await cancelled.cancel()
        assert [await status(run) for run in (cancelled, never, slow)] == ["cancelled", "cancelled", "running"]
        await trio.sleep(60)
        assert [await status(run) for run in (slow, last)] == ["failed", "failed"]
        assert gated.began == ["done", "fails", "cancelled", "slow"], "what timed out in the queue never began"


@in_virtual_time
async def test_a_run_that_undoes_its_steps_holds_its_slot():
    """S259: compensation is part of the run."""
    may_end = trio.Event()
    flow: Workflow[Any, Any] = Workflow("flow", concurrency=Concurrency(1))

    @flow.step
    async def book(ctx: Context) -> None:
        pass

    @book.compensate
    async def unbook(ctx: Context) -> None:
        await may_end.wait()

    @flow.step(attempts=1)
    async def pay(ctx: Context) -> None:
        if ctx.input:
            raise NonRetriable("no money")

    async with gauged(flow) as (engine, _):
        one, two = await engine.start(flow, 1), await engine.start(flow, 0)
        assert [await status(one), await status(two)] == ["compensating", "draft"]
        may_end.set()
        assert [await status(one), await status(two)] == ["compensated", "done"]


@in_virtual_time
async def test_paused_and_later_drafts_are_passed_over():
    """S260: a draft that is paused or whose start was put off is nobody's next; unpaused it has its place again."""
    gated = Gated(by_key(1))
    async with gauged(gated.flow) as (engine, _):
        await start(engine, gated.flow, "holder")
        first = await start(engine, gated.flow, "first")
        await first.pause()
        later = await start(engine, gated.flow, "later", delay=10)
        second = await start(engine, gated.flow, "second")
        third = await start(engine, gated.flow, "third")
        assert (await engine.stats()).buckets[0].queued == 2
        assert (await later.get()).slot.state == "later"  # type: ignore[union-attr]
        await gated.let_go("holder")
        assert [await status(run) for run in (first, second, third)] == ["draft", "running", "draft"]
        await first.unpause()
        await trio.sleep(11)
        assert (await later.get()).slot.state == "queued"  # type: ignore[union-attr]
        await gated.let_go("second", "first", "third", "later")
        assert gated.began == ["holder", "second", "first", "third", "later"]
        assert [(await run.wait()).status for run in (first, second, third, later)] == ["done"] * 4


@in_virtual_time
async def test_unpausing_takes_a_free_slot():
    """Proves that a draft that was passed over is let in when it is unpaused, though nobody frees a slot then."""
    gated = Gated(by_key(1))
    async with gauged(gated.flow) as (engine, _):
        await start(engine, gated.flow, "holder")
        run = await start(engine, gated.flow, "run")
        await run.pause()
        await gated.let_go("holder")
        assert await status(run) == "draft"
        await run.unpause()
        assert await status(run) == "running"
        await gated.let_go("run")


@in_virtual_time
async def test_who_is_first_in_line_and_leaves_lets_those_behind_in():
    """Proves that runs are let in by their own limit, in strict order, and who blocks the line may leave it."""
    old, new = Gated(by_key(1)), Gated(by_key(2), version="2.0.0")
    async with gauged(old.flow, new.flow) as (engine, gauge):
        await start(engine, new.flow, "holder")
        strict = await start(engine, old.flow, "strict")
        behind = await start(engine, new.flow, "behind")
        assert [await status(strict), await status(behind)] == ["draft", "draft"]
        await strict.cancel()
        assert await status(behind) == "running"
        again = await start(engine, old.flow, "again")
        more = await start(engine, new.flow, "more")
        await again.pause()
        await new.let_go("behind")
        assert await status(more) == "running"
        await again.unpause()
        await new.let_go("holder")
        assert await status(again) == "draft", "its version allows one at a time"
        await new.let_go("more")
        assert await status(again) == "running"
        await old.let_go("again")
        assert gauge.most == {"\nflow\na": 2}


@in_virtual_time
async def test_the_queue_is_in_order_of_priority_then_arrival():
    """S264: higher priority first, and of one priority in the order of the starts, also within a millisecond."""
    gated = Gated(by_key(1))
    async with gauged(gated.flow) as (engine, _):
        await start(engine, gated.flow, "holder")
        names = [f"n{number}" for number in range(20)]
        for name in names:
            await start(engine, gated.flow, name)
        await start(engine, gated.flow, "low", priority=-5)
        await start(engine, gated.flow, "high", priority=5)
        await gated.let_go("holder", "low", "high", *names)
        assert gated.began == ["holder", "high", *names, "low"]


@in_virtual_time
async def test_parallel_starts_never_exceed_the_limit():
    """S258, W31: of ten starts at once exactly two go on, whoever is first, and none is lost."""
    gated = Gated(by_key(2))
    async with gauged(gated.flow) as (engine, gauge), trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(start, engine, gated.flow, f"n{number}")
        await idle()
        assert (await engine.count(status="running"), await engine.count(status="draft")) == (2, 8)
        await gated.let_go(*(f"n{number}" for number in range(10)))
        assert await engine.count(status="done") == 10
        assert gauge.most == {"\nflow\na": 2}


@in_virtual_time
async def test_an_idempotent_start_takes_no_second_slot():
    """Proves that a start under the key of an active run is that run, also of one that queues."""
    gated = Gated(by_key(1))
    async with gauged(gated.flow) as (engine, _):
        runs = [await start(engine, gated.flow, "one", idempotency_key="k") for _ in range(3)]
        queued = [await start(engine, gated.flow, "two", idempotency_key="q") for _ in range(2)]
        assert len({run.id for run in runs}) == len({run.id for run in queued}) == 1
        assert await engine.count() == 2
        await gated.let_go("one", "two")


@in_virtual_time
async def test_children_pass_the_limit_too():
    """Proves that the branches of a join begin as slots become free, and that the join comes to its end."""
    going: list[int] = []
    most: list[int] = []
    child: Workflow[Any, Any] = Workflow("child", concurrency=Concurrency(2))
    parent: Workflow[Any, Any] = Workflow("parent")

    @child.step
    async def work(ctx: Context) -> int:
        going.append(ctx.input)
        most.append(len(going))
        await trio.sleep(1)
        going.remove(ctx.input)
        return int(ctx.input) * 10

    @parent.step
    async def fan_out(ctx: Context) -> Any:
        joined = await ctx.join({str(number): Branch(child, number) for number in range(7)})
        return {key: branch.output for key, branch in joined.branches.items()}

    async with gauged(parent, child) as (engine, _):
        run = await engine.start(parent)
        assert await run.result() == {str(number): number * 10 for number in range(7)}
        assert max(most) == 2


@in_virtual_time
async def test_children_that_queue_are_cancelled_with_their_parent():
    """Proves that a queued child of a parent that is gone leaves the line."""
    child: Workflow[Any, Any] = Workflow("child", concurrency=Concurrency(1))
    parent: Workflow[Any, Any] = Workflow("parent")

    @child.step
    async def work(ctx: Context) -> None:
        await ctx.sleep(1000)

    @parent.step
    async def fan_out(ctx: Context) -> Any:
        await ctx.join({str(number): Branch(child, number) for number in range(3)})

    async with gauged(parent, child) as (engine, _):
        run = await engine.start(parent)
        await idle()
        other = await engine.start(child)
        await run.cancel()
        await idle()
        assert await engine.count(workflow="child", status="cancelled") == 3
        assert await status(other) == "waiting"
        await other.cancel()


@in_virtual_time
async def test_what_is_taken_up_again_queues():
    """Proves that retry, rewind and fork ask for a slot again, wait in line, and get one in their turn."""
    gated = Gated(by_key(1))
    async with gauged(gated.flow) as (engine, gauge):
        gated.gate("failed").set()
        failed = await start(engine, gated.flow, "failed", fails=True)
        done = await start(engine, gated.flow, "done")
        await gated.let_go("done")
        await start(engine, gated.flow, "holder")
        await failed.retry()
        await failed.retry()
        await done.rewind("step")
        fork = await done.fork("step")
        assert [await status(run) for run in (failed, done, fork)] == ["running", "running", "draft"]
        assert (await failed.get()).slot.state == "queued"  # type: ignore[union-attr]
        assert (await failed.get()).lease is None
        await gated.let_go("holder")
        assert [await status(run) for run in (failed, done, fork)] == ["failed", "done", "done"]
        assert gated.began == ["failed", "done", "holder", "failed", "done", "done"]
        assert gauge.most == {"\nflow\na": 1}


@in_virtual_time
async def test_a_failed_compensation_is_retried_with_a_slot():
    """Proves that undoing again what could not be undone passes the limit too."""
    broken = [True]
    may_end = trio.Event()
    flow: Workflow[Any, Any] = Workflow("flow", concurrency=Concurrency(1))

    @flow.step
    async def book(ctx: Context) -> None:
        pass

    @book.compensate(attempts=1)
    async def unbook(ctx: Context) -> None:
        if broken[0]:
            raise NonRetriable("not now")

    @flow.step
    async def pay(ctx: Context) -> None:
        if ctx.input:
            raise NonRetriable("no money")
        await may_end.wait()

    async with gauged(flow) as (engine, _):
        run = await engine.start(flow, 1)
        assert await status(run) == "compensation_failed"
        await engine.start(flow, 0)
        broken[0] = False
        await run.retry()
        assert await status(run) == "compensating"
        may_end.set()
        assert await status(run) == "compensated"


@in_virtual_time
async def test_rewinding_a_run_that_goes_on_keeps_its_slot():
    """Proves that a run which has not settled does not go to the end of the line."""
    flow: Workflow[Any, Any] = Workflow("flow", concurrency=Concurrency(1))

    @flow.step
    async def nap(ctx: Context) -> None:
        await ctx.sleep(10)

    async with gauged(flow) as (engine, gauge):
        one, two = [await engine.start(flow) for _ in range(2)]
        await idle()
        await one.rewind("nap")
        await one.wait()
        await two.wait()
        assert gauge.order == [one.id, two.id]


@in_virtual_time
async def test_a_run_of_a_retired_version_frees_its_slot():
    """S278: what settles a run without the code, here a cancellation by a client, frees the slot all the same."""
    store = MemoryStore()
    gated = Gated(by_key(1))
    async with open_engine(store, gated.flow, worker=False) as client:
        one = await start(client, gated.flow, "one")
        two = await start(client, gated.flow, "two")
        assert [(await run.get()).slot.state for run in (one, two)] == ["held", "queued"]  # type: ignore[union-attr]
        async with open_engine(store, worker=False) as bare:
            await bare.run(one.id).cancel()
            await idle()
            assert (await two.get()).slot.state == "held"  # type: ignore[union-attr]
        async with open_engine(store, gated.flow):
            await gated.let_go("two")
            assert await status(two) == "done"
        assert (await client.stats()).slots == {}


@in_virtual_time
async def test_drafts_that_were_stored_before_there_was_a_limit_keep_it():
    """Proves that a limit that a workflow has got since holds for the drafts that are there already."""
    store = MemoryStore()
    gated, free = Gated(by_key(1)), Workflow[Any, Any]("flow")
    free.add_step("step", lambda _ctx: None)
    async with open_engine(store, free, worker=False) as client:
        runs = [await start(client, free, "one")]
        await trio.sleep(1)
        runs.append(await start(client, free, "two"))
    async with open_engine(store, gated.flow) as engine:
        await idle()
        assert gated.began == ["one"]
        assert (await engine.stats()).slots == {"flow:a": 1}
        await gated.let_go("one")
        assert gated.began == ["one", "two"]
        await gated.let_go("two")
        assert [await status(engine.run(run.id)) for run in runs] == ["done", "done"]


@in_virtual_time
async def test_two_workers_let_one_draft_in_once():
    """S262, S276: with two engines on a store, one of which has left, the next in line begins exactly once."""
    gauge = Gauge(MemoryStore())
    gated = Gated(by_key(1))
    async with open_engine(gauge, gated.flow) as engine:
        async with open_engine(gauge, gated.flow) as other:
            one = await start(other, gated.flow, "one")
            two = await start(engine, gated.flow, "two")
            gated.gate("one").set()
            await one.wait()
        await idle()
        assert gated.began == ["one", "two"]
        await gated.let_go("two")
        assert await status(two) == "done"
        gauge.check_at_rest()
        assert gauge.order == [one.id, two.id]


@in_virtual_time
async def test_a_limit_adds_no_listeners():
    """S277: slots are freed by what is stored, not by listeners: none is added, for however many workflows."""
    flows = [Gated(Concurrency(1), version=f"1.0.{number}").flow for number in range(5)]
    async with open_engine("memory:", *flows) as engine:
        await engine.start(flows[0], {"name": "a"})
        assert not engine._machinery.services.publisher.is_heard
