"""Throttles: at most so many runs begin in any window, whatever starts, retries, sleeps or crashes."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest
import trio

from streamline_trio import (
    Branch,
    Engine,
    MemoryStore,
    NonRetriable,
    Run,
    RunHandle,
    StepContext,
    Throttle,
    ValidationError,
    Workflow,
    open_engine,
)
from streamline_trio._core.decide import StartRequest, admit
from streamline_trio._core.documents import Origin
from streamline_trio._core.throttling import KIND
from streamline_trio._runtime.pacing import paced
from streamline_trio.testing import crash
from tests.integration.test_writes import Counting
from tests.scenarios.worlds import at_rest, between, idle, in_virtual_time

Context = StepContext[Any, Any]


def throttled(limit: int, window: float, **options: Any) -> tuple[Workflow[Any, Any], list[Any]]:
    """A workflow of one step, and the instants at which its runs began on trio's clock, with their inputs."""
    key = options.pop("key", None)
    workflow: Workflow[Any, Any] = Workflow("flow", throttle=Throttle(limit, window, key), **options)
    calls: list[Any] = []

    @workflow.step
    async def step(ctx: Context) -> Any:
        calls.append((trio.current_time(), ctx.input))
        return ctx.input

    return workflow, calls


def most_in_a_window(instants: list[float], window: float) -> int:
    """The most of them that any half-open window of this length holds, in whole milliseconds."""
    millis, length = [round(at * 1000) for at in instants], round(window * 1000)
    return max((sum(start <= at < start + length for at in millis) for start in millis), default=0)


def begun(runs: list[Run]) -> list[float]:
    """When the runs began, in seconds, in order."""
    return sorted(run.started_at.timestamp(unit="millisecond") / 1000 for run in runs if run.started_at is not None)


async def start_all(engine: Engine, workflow: Workflow[Any, Any], count: int, value: Any = None) -> list[RunHandle]:
    return [await engine.start(workflow, value) for _ in range(count)]


async def all_settled(handles: list[RunHandle]) -> list[Run]:
    return [await handle.wait() for handle in handles]


@in_virtual_time
async def test_the_first_starts_go_through():
    """S286: Proves that as many as the limit begin at once, and nothing is said to hold them."""
    flow, calls = throttled(3, 60)
    async with open_engine("memory:", flow) as engine:
        for handle in await start_all(engine, flow, 3):
            run = await handle.wait()
            assert (run.status, run.held_by) == ("done", None)
    assert [at for at, _ in calls] == [0, 0, 0]


@in_virtual_time
async def test_excess_starts_get_slots_of_their_own():
    """S289: Proves that of six starts at two a second four are held, due after 1, 1.5, 2 and 2.5 seconds."""
    flow, _ = throttled(2, 1)
    async with open_engine("memory:", flow) as engine:
        handles = await start_all(engine, flow, 6)
        runs = [await handle.get() for handle in handles]
        start = runs[0].created_at
        held = [run for run in runs if run.held_by == "throttle"]
        assert [(run.status, between(start, run.due_at)) for run in held] == [
            ("draft", 1.0),
            ("draft", 1.5),
            ("draft", 2.0),
            ("draft", 2.5),
        ]
        settled = await all_settled(handles)
    assert [between(start, run.started_at) for run in settled] == [0, 0, 1, 1.5, 2, 2.5]
    assert all(run.held_by is None for run in settled)


@in_virtual_time
async def test_buckets_are_per_key():
    """S290: Proves that each key has a window of its own, text or number."""
    flow, calls = throttled(1, 60, key=lambda value: value["user"])
    async with open_engine("memory:", flow) as engine:
        for user in ("u-1", "u-2", 3, "u-1"):
            await engine.start(flow, {"user": user})
        await idle()
        assert [value["user"] for _, value in calls] == ["u-1", "u-2", 3]
        assert await engine.count(status="draft") == 1


@pytest.mark.parametrize("exclusive", [True, False])
@in_virtual_time
async def test_parallel_starts_lose_none(exclusive):
    """S291: Proves that of starts at once one begins, and all others have due times of their own."""
    flow, calls = throttled(1, 60)
    async with open_engine(MemoryStore(exclusive=exclusive), flow) as engine:
        handles: list[RunHandle] = []

        async def start() -> None:
            handles.append(await engine.start(flow))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(start)
        runs = [await handle.get() for handle in handles]
        due = sorted(run.due_at for run in runs if run.due_at is not None)
        assert len(set(due)) == len(due) == 3
        assert len(calls) <= 1
        settled = await all_settled(handles)
    assert most_in_a_window(begun(settled), 60) == 1
    assert len(calls) == 4


@in_virtual_time
async def test_without_a_key_there_is_one_bucket():
    """S292: a throttle needs no key here: Proves that without one the workflow as a whole is throttled."""
    flow, calls = throttled(1, 60)
    async with open_engine("memory:", flow) as engine:
        await all_settled([await engine.start(flow, user) for user in ("u-1", "u-2")])
    assert [at for at, _ in calls] == [0, 60]


def test_the_tenant_is_part_of_the_bucket_and_of_the_draft():
    """S294: Proves that a held draft keeps its tenant, and that tenants do not share a window."""
    flow, _ = throttled(1, 60, key=lambda value: value)
    flow.seal()
    heads = list[str]()
    for tenant in ("org-A", "org-B", None):
        origin = Origin(id="r", workflow="flow", start_id=1, created_at=1, input=b"\xa1k", tenant=tenant)
        run = admit(paced(StartRequest(origin=origin, state=b"\xa1k"), flow), flow.plan, 1).run
        assert run.origin.tenant == tenant
        assert run.head.throttle is not None
        heads.append(run.head.throttle.bucket)
    assert len(set(heads)) == 3


@in_virtual_time
async def test_a_bad_key_fails_before_anything_is_stored():
    """S295: Proves that a start whose bucket cannot be told raises, naming the workflow, and stores nothing."""
    flow, _ = throttled(1, 60, key=lambda value: value["user"])
    async with open_engine("memory:", flow) as engine:
        for value in ({}, {"user": None}, {"user": ""}):
            with pytest.raises(ValidationError, match="the throttle of workflow flow"):
                await engine.start(flow, value)
        assert await engine.count() == 0


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_held_start_runs_at_its_slot(kind, tmp_path):
    """S296: Proves that in real time the second of two runs begins a window after the first, once."""
    flow, calls = throttled(1, 0.4)
    store = "memory:" if kind == "memory" else f"sqlite:///{tmp_path}/runs.db"
    async with open_engine(store, flow, poll_interval=0.05) as engine:
        handles = await start_all(engine, flow, 2)
        settled = await all_settled(handles)
        first, second = begun(settled)
        assert second - first >= 0.4
    assert len(calls) == 2


@in_virtual_time
async def test_a_client_starts_and_workers_begin():
    """Proves that slots are given where nothing runs, and that workers begin the runs at them."""
    flow, calls = throttled(2, 10)
    store = MemoryStore()
    async with open_engine(store, flow, worker=False) as client:
        handles = await start_all(client, flow, 4)
        runs = [await handle.get() for handle in handles]
        assert [run.held_by for run in runs] == [None, None, "throttle", "throttle"]
        async with open_engine(store, flow):
            await all_settled(handles)
    assert [at for at, _ in calls] == [0, 0, 10, 15]


@in_virtual_time
async def test_downtime_makes_no_burst():
    """Proves that 500 overdue drafts begin at the throttle's rate, oldest slot first, put off once or twice."""
    flow, calls = throttled(5, 10)
    store = MemoryStore()
    async with open_engine(store, flow, worker=False) as client:
        handles = [await client.start(flow, number) for number in range(500)]
    await trio.sleep(86_400)
    began = trio.current_time()
    async with open_engine(store, flow) as engine:
        runs = await all_settled([engine.run(handle.id) for handle in handles])
    assert most_in_a_window(begun(runs), 10) == 5
    # The first five were free at once, all in one millisecond.
    assert sorted(value for _, value in calls[:5]) == list(range(5))
    assert [value for _, value in sorted(calls)][5:] == list(range(5, 500))
    assert calls[-1][0] - began <= 1_010
    assert max(run.revision for run in runs) <= 6
    assert Counter(run.revision for run in runs).most_common(1)[0][0] <= 5


@in_virtual_time
async def test_unpausing_many_makes_no_burst():
    """Proves that drafts that were paused beyond their slots begin at the throttle's rate."""
    flow, _ = throttled(2, 10)
    async with open_engine("memory:", flow) as engine:
        handles = await start_all(engine, flow, 12)
        for handle in handles:
            await handle.pause()
        await trio.sleep(1_000)
        async with trio.open_nursery() as nursery:
            for handle in handles:
                nursery.start_soon(handle.unpause)
        settled = await all_settled(handles)
    assert most_in_a_window(begun(settled), 10) == 2


@in_virtual_time
async def test_a_delayed_start_is_throttled_when_it_is_due():
    """Proves that what was put off by its caller passes the throttle too, when its time has come."""
    flow, _ = throttled(1, 10)
    async with open_engine("memory:", flow) as engine:
        handles = [await engine.start(flow, delay=30) for _ in range(3)]
        runs = [await handle.get() for handle in handles]
        assert [between(run.created_at, run.due_at) for run in runs] == [30, 30, 30]
        settled = await all_settled(handles)
    assert sorted(between(runs[0].created_at, run.started_at) for run in settled) == [30, 40, 50]


@in_virtual_time
async def test_retry_rewind_and_fork_pass_again():
    """Proves that a run that is taken up after it had settled, or forked, takes its turn like a new one."""
    flow: Workflow[Any, Any] = Workflow("flow", throttle=Throttle(1, 10))
    calls = list[tuple[float, str]]()

    @flow.step
    async def first(ctx: Context) -> None:
        calls.append((trio.current_time(), ctx.step_id))

    @flow.step
    async def second(ctx: Context) -> None:
        calls.append((trio.current_time(), ctx.step_id))
        if len(calls) == 2:
            raise NonRetriable("planned")

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        assert (await handle.wait()).status == "failed"
        await handle.retry()
        held = await at_rest(handle)
        assert (held.status, held.held_by) == ("running", "throttle")
        assert between(held.created_at, held.due_at) == 10
        assert (await handle.wait()).status == "done"
        await handle.rewind(first)
        assert (await at_rest(handle)).held_by == "throttle"
        assert (await handle.wait()).status == "done"
        other = await handle.fork(second)
        assert (await at_rest(other)).held_by == "throttle"
        assert (await other.wait()).status == "done"
    assert calls == [(0, "first"), (0, "second"), (10, "second"), (20, "first"), (20, "second"), (30, "second")]


@in_virtual_time
async def test_what_has_begun_does_not_pass_again():
    """Proves that sleeps, retries of a step and the rewind of a waiting run take nothing of the window."""
    flow: Workflow[Any, Any] = Workflow("flow", throttle=Throttle(1, 1_000))
    attempts = list[int]()

    @flow.step
    async def naps(ctx: Context) -> None:
        await ctx.sleep(5)

    @flow.step(retry_delay=1, jitter=0)
    async def fails_once(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        if len(attempts) == 1:
            raise ValueError("planned")
        if len(attempts) == 2:
            await ctx.sleep(10)

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await trio.sleep(10)
        await handle.rewind(naps)
        run = await handle.wait()
        assert run.ended_at is not None
        assert between(run.created_at, run.ended_at) < 100


@in_virtual_time
async def test_children_are_throttled():
    """Proves that children and branches of a throttled workflow begin at its rate, and their parents wait."""
    flow, calls = throttled(1, 10)
    parent: Workflow[Any, Any] = Workflow("parent")

    @parent.step
    async def joins(ctx: Context) -> Any:
        await ctx.child(flow, "child")
        await ctx.join({str(number): Branch(flow, number) for number in range(3)})
        return "joined"

    async with open_engine("memory:", flow, parent) as engine:
        assert await (await engine.start(parent)).result() == "joined"
    assert [at for at, _ in calls] == [0, 10, 20, 30]


@in_virtual_time
async def test_higher_priority_begins_first():
    """Proves that of drafts that are due together the more urgent one begins, and the other is put off."""
    flow, calls = throttled(1, 10)
    store = MemoryStore()
    async with open_engine(store, flow, worker=False) as client:
        named = (("low", -1), ("high", 5), ("middle", 0))
        handles = [await client.start(flow, name, priority=priority) for name, priority in named]
        await trio.sleep(100)
        async with open_engine(store, flow):
            await all_settled(handles)
    assert [value for _, value in calls] == ["high", "middle", "low"]


@in_virtual_time
async def test_cancelled_drafts_never_begin_and_do_not_block():
    """Proves that a held draft can be cancelled, and that those behind it begin all the same."""
    flow, calls = throttled(1, 10)
    async with open_engine("memory:", flow) as engine:
        handles = [await engine.start(flow, number) for number in range(4)]
        await handles[1].cancel()
        assert (await handles[1].get()).held_by is None
        settled = await all_settled(handles)
    assert [run.status for run in settled] == ["done", "cancelled", "done", "done"]
    assert [value for _, value in calls] == [0, 2, 3]


@in_virtual_time
async def test_the_timeout_counts_from_the_begin():
    """Proves that a run does not use up its timeout while its throttle holds it."""
    flow: Workflow[Any, Any] = Workflow("flow", throttle=Throttle(1, 100), timeout=20)

    @flow.step
    async def step(ctx: Context) -> None:
        await ctx.sleep(30 if ctx.input == "slow" else 10)

    async with open_engine("memory:", flow) as engine:
        handles = [await engine.start(flow, value) for value in ("quick", "quick", "slow")]
        settled = await all_settled(handles)
    assert [run.status for run in settled] == ["done", "done", "failed"]
    assert between(settled[0].created_at, settled[2].ended_at) == 220


@in_virtual_time
async def test_driving_by_hand_does_not_bypass_it():
    """Proves that `drive` begins a run only if its throttle lets it, and else puts it off."""
    flow, calls = throttled(1, 10)
    store = MemoryStore()
    async with open_engine(store, flow, worker=False) as client:
        handles = await start_all(client, flow, 2)
        assert (await handles[0].drive()).status == "done"
        assert (await handles[1].drive()).status == "draft"
        await trio.sleep(10)
        assert (await handles[1].drive()).status == "done"
        late = [await client.start(flow, delay=10) for _ in range(2)]
        await trio.sleep(100)
        assert (await late[0].drive()).status == "done"
        put_off = await late[1].drive()
        assert (put_off.status, put_off.held_by) == ("draft", "throttle")
    assert len(calls) == 3


@in_virtual_time
async def test_the_numbers_are_those_of_the_version_at_the_begin():
    """Proves that drafts begin under the limits of the definition that drives them; what began stays counted."""
    store = MemoryStore()
    slow, _ = throttled(1, 100)
    async with open_engine(store, slow) as engine:
        handles = await start_all(engine, slow, 3)
        await idle()
    quick, calls = throttled(2, 100)
    async with open_engine(store, quick) as engine:
        await all_settled([engine.run(handle.id) for handle in handles])
    assert [at for at, _ in calls] == [100, 200]
    free: Workflow[Any, Any] = Workflow("flow")
    free.add_step("step", quick.steps["step"])
    async with open_engine(store, quick, worker=False) as client:
        handles = await start_all(client, quick, 2)
    async with open_engine(store, free) as engine:
        await trio.sleep(200)
        await all_settled([engine.run(handle.id) for handle in handles])


@in_virtual_time
async def test_drafts_that_are_taken_over_by_another_version_pass_its_throttle():
    """Proves that `migrate` begins nothing faster than the version that takes the runs over allows."""
    store = MemoryStore()
    old, _ = throttled(5, 10)
    async with open_engine(store, old, worker=False) as client:
        handles = await start_all(client, old, 6)
    new: Workflow[Any, Any] = Workflow("flow", version="2.0.0", throttle=Throttle(2, 10), migrate=lambda run: run)
    new.add_step("step", old.steps["step"].handler)
    await trio.sleep(100)
    async with open_engine(store, new) as engine:
        runs = await all_settled([engine.run(handle.id) for handle in handles])
    assert {run.version for run in runs} == {"2.0.0"}
    assert most_in_a_window(begun(runs), 10) == 2
    assert [at - begun(runs)[0] for at in begun(runs)] == [0, 0, 10, 15, 20, 25]


@pytest.mark.parametrize("version", ["1.0.0", "2.0.0"])
@in_virtual_time
async def test_what_was_stored_before_there_was_a_throttle_passes_it(version):
    """Proves that drafts, forks and runs taken up again pass a throttle that their workflow has got since."""
    store = MemoryStore()
    free: Workflow[Any, Any] = Workflow("flow")
    free.add_step("step", throttled(1, 10)[0].steps["step"].handler)
    async with open_engine(store, free) as engine:
        settled = await start_all(engine, free, 2)
        await all_settled(settled)
    async with open_engine(store, free, worker=False) as client:
        drafts = await start_all(client, free, 3)
        drafts.append(await client.run(settled[0].id).fork("step"))
    limited, calls = throttled(1, 10, version=version, migrate=lambda run: run)
    async with open_engine(store, limited) as engine:
        await all_settled([engine.run(draft.id) for draft in drafts])
        begins = len(drafts)
        if version == "1.0.0":
            again = [engine.run(run.id) for run in settled]
            for run in again:
                await run.rewind("step")
            await all_settled([*again, await again[0].fork("step")])
            begins += 3
    assert [at - calls[0][0] for at, _ in calls] == [10.0 * number for number in range(begins)]


@in_virtual_time
async def test_a_starter_that_dies_after_its_insert_leaves_nothing_behind():
    """Proves that a run whose starter died before it asked for a slot is begun by whoever comes, in time."""
    flow, calls = throttled(1, 10)
    inner = MemoryStore()
    async with open_engine(inner, flow) as engine, trio.open_nursery() as nursery:

        async def never(*_args: object) -> Any:
            await trio.sleep_forever()

        engine._machinery.claimer.throttles.ask = never  # type: ignore[method-assign,assignment]  # it dies meanwhile
        nursery.start_soon(partial(engine.start, flow, run_id="r"))
        await idle()
        await crash(engine)
        nursery.cancel_scope.cancel()
    assert calls == []
    async with open_engine(inner, flow) as engine:
        assert (await engine.run("r").wait()).status == "done"
    assert [at for at, _ in calls] == [5]


@pytest.mark.parametrize("exclusive", [True, False])
@in_virtual_time
async def test_unused_buckets_are_removed(exclusive):
    """Proves that keys that are not used any more leave nothing in the store."""
    flow, _ = throttled(1, 10, key=lambda value: value)
    store = MemoryStore(exclusive=exclusive)
    async with open_engine(store, flow) as engine:
        await all_settled([await engine.start(flow, number) for number in range(50)])
        assert len(await store.sides(KIND)) == 50
        await trio.sleep(200)
        assert await store.sides(KIND) == []
        assert (await (await engine.start(flow, 7)).wait()).status == "done"


@in_virtual_time
async def test_skipping_a_year_is_cheap_with_a_bucket():
    """Proves that a bucket with a window of a year costs no periodic work on a store of one process."""
    flow, calls = throttled(1, 365 * 86_400)
    store = Counting(MemoryStore())
    async with open_engine(store, flow) as engine:  # type: ignore[arg-type]  # it has the methods by name
        await all_settled(await start_all(engine, flow, 2))
    assert [at for at, _ in calls] == [0, 365 * 86_400]
    assert store.reads.total() < 50
