"""Concurrency that refuses: `when_full="reject"`."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from streamline_trio import (
    ChildFailed,
    Concurrency,
    ConcurrencyLimitReached,
    DefinitionError,
    InvalidState,
    MemoryStore,
    RunHandle,
    StepContext,
    StoreUnavailable,
    ValidationError,
    Workflow,
    open_engine,
)
from streamline_trio._core.slots import SLOTS, SlotBucket, bucket_of, encode_bucket
from streamline_trio._core.store import Applied, Insert, PutSide, Update
from streamline_trio.testing import crash
from tests.crash.faulty_store import BrokenStore
from tests.scenarios.gauge import Gauge
from tests.scenarios.test_conc import Gated, by_key, gauged, start, status
from tests.scenarios.worlds import idle, in_virtual_time

Context = StepContext[Any, Any]


def strict(limit: int = 1, **options: Any) -> Gated:
    return Gated(by_key(limit, when_full="reject"), **options)


@in_virtual_time
async def test_a_start_over_the_limit_is_refused():
    """S265, S266: it raises with the key, the limit and how many hold it; no run is left, and no event told."""
    gated = strict(2)
    async with gauged(gated.flow) as (engine, _):
        heard: list[str] = []
        for name in ("one", "two"):
            assert await status(await start(engine, gated.flow, name)) == "running"
        engine.on("*", lambda event: heard.append(event.name))
        with pytest.raises(ConcurrencyLimitReached) as refused:
            await start(engine, gated.flow, "three", idempotency_key="k")
        await idle()
        assert not heard
        assert (refused.value.status, refused.value.code) == (429, "workflow.concurrency_limit_reached")
        assert refused.value.meta == {"workflow": "flow", "key": "a", "limit": 2, "holding": 2}
        assert await engine.count() == 2
        assert (await engine.stats()).slots == {"flow:a": 2}
        await start(engine, gated.flow, "other key", key="b")
        await gated.let_go("one")
        run = await start(engine, gated.flow, "three", idempotency_key="k")
        assert await status(run) == "running"
        await gated.let_go("two", "three", "other key")


@in_virtual_time
async def test_each_key_has_its_own_slots():
    """S267: three keys, three runs."""
    gated = strict()
    async with gauged(gated.flow) as (engine, _):
        runs = [await start(engine, gated.flow, key, key=key) for key in "abc"]
        assert [await status(run) for run in runs] == ["running"] * 3
        assert (await engine.stats()).slots == {"flow:a": 1, "flow:b": 1, "flow:c": 1}
        await gated.let_go(*"abc")


@pytest.mark.parametrize("fails", [False, True])
@in_virtual_time
async def test_a_start_right_after_the_end_succeeds(fails):
    """S268, S269, S270, S271: whoever saw a run settle can start the next at once, however often it is freed."""
    gated = strict()
    async with gauged(gated.flow) as (engine, _):
        for number in range(5):
            gated.gate(number).set()
            run = await engine.start(gated.flow, {"name": number, "key": "a", "fails": fails})
            assert (await run.wait()).status == ("failed" if fails else "done")
        run = await start(engine, gated.flow, "cancelled")
        await run.cancel()
        await run.wait()
        run = await start(engine, gated.flow, "last")
        await gated.let_go("last")
        assert (await engine.stats()).slots == {}


@in_virtual_time
async def test_of_parallel_starts_only_as_many_as_fit_succeed():
    """W31: ten starts at once, limit two: two runs, eight refusals, nothing left behind."""
    gated = strict(2)
    came: list[Any] = []
    async with gauged(gated.flow) as (engine, gauge):

        async def attempt(name: int) -> None:
            try:
                came.append(await start(engine, gated.flow, str(name)))
            except ConcurrencyLimitReached as error:
                came.append(error)

        async with trio.open_nursery() as nursery:
            for name in range(10):
                nursery.start_soon(attempt, name)
        assert sum(isinstance(one, RunHandle) for one in came) == 2
        assert await engine.count() == 2
        await gated.let_go(*map(str, range(10)))
        assert gauge.most == {"\nflow\na": 2}


@in_virtual_time
async def test_racing_starts_of_one_key_share_what_becomes_of_it():
    """Proves that a start which finds another's undecided draft under its key is refused, or has that run."""
    gated = strict()
    async with gauged(gated.flow) as (engine, _):
        holder = await start(engine, gated.flow, "holder")
        came: list[Any] = []

        async def attempt() -> None:
            try:
                came.append(await start(engine, gated.flow, "run", idempotency_key="k"))
            except ConcurrencyLimitReached as error:
                came.append(error)

        async def all_at_once() -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(attempt)

        await all_at_once()
        assert [type(one) for one in came] == [ConcurrencyLimitReached] * 5
        assert await engine.count() == 1
        await gated.let_go("holder")
        assert await status(holder) == "done"
        came.clear()
        await all_at_once()
        assert len({one.id for one in came}) == 1
        await gated.let_go("run")


@in_virtual_time
async def test_an_active_run_of_the_key_is_given_though_the_bucket_is_full():
    """Proves that an idempotent start never counts against the limit."""
    gated = strict()
    async with gauged(gated.flow) as (engine, _):
        run = await start(engine, gated.flow, "run", idempotency_key="k")
        assert await start(engine, gated.flow, "run", idempotency_key="k") == run
        await gated.let_go("run")


@in_virtual_time
async def test_a_delayed_start_is_decided_when_its_time_comes():
    """Proves that an acknowledged start is not lost: refused at its time it is a failed run that says why."""
    gated = strict()
    async with gauged(gated.flow) as (engine, _):
        holder = await start(engine, gated.flow, "holder")
        refused = await start(engine, gated.flow, "refused", delay=10)
        lucky = await start(engine, gated.flow, "lucky", delay=30)
        await trio.sleep(20)
        run = await refused.get()
        assert (run.status, run.slot) == ("failed", None)
        assert run.error is not None
        assert (run.error.code, run.error.type) == ("workflow.concurrency_limit_reached", "ConcurrencyLimitReached")
        await gated.let_go("holder", "lucky")
        assert (await lucky.wait()).status == "done"
        assert (await holder.wait()).status == "done"
        assert gated.began == ["holder", "lucky"]


@in_virtual_time
async def test_a_child_over_the_limit_has_failed():
    """Proves that a refused child tells its parent, which can handle it like any other failure."""
    gated = strict()
    parent: Workflow[Any, Any] = Workflow("parent")

    @parent.step(attempts=1)
    async def ask(ctx: Context) -> str:
        try:
            await ctx.child(gated.flow, {"name": "child", "key": "a"})
        except ChildFailed as error:
            return str(error.run.error.code)
        return "done"

    async with gauged(gated.flow, parent) as (engine, _):
        await start(engine, gated.flow, "holder")
        run = await engine.start(parent)
        assert await run.result() == "workflow.concurrency_limit_reached"
        await gated.let_go("holder", "child")
        assert await (await engine.start(parent)).result() == "done"


@in_virtual_time
async def test_what_is_taken_up_again_needs_a_slot_first():
    """Proves that retry, rewind and fork are refused by a full bucket with the run as it was, and pass else."""
    gated = strict()
    async with gauged(gated.flow) as (engine, gauge):
        gated.gate("failed").set()
        failed = await start(engine, gated.flow, "failed", fails=True)
        await failed.wait()
        done = await start(engine, gated.flow, "done")
        await gated.let_go("done")
        before = [await failed.get(), await done.get()]
        await start(engine, gated.flow, "holder")
        for verb in (failed.retry(), done.rewind("step"), done.fork("step")):
            with pytest.raises(ConcurrencyLimitReached) as refused:
                await verb
            assert refused.value.meta["holding"] == 1
        await idle()
        after = [await failed.get(), await done.get()]
        assert [(run.status, run.error, run.steps, run.slot) for run in after] == [
            (run.status, run.error, run.steps, run.slot) for run in before
        ]
        assert await engine.count() == 3
        with pytest.raises(InvalidState):
            await done.retry()
        await gated.let_go("holder")
        await failed.retry()
        assert (await failed.wait()).status == "failed"
        await done.rewind("step")
        assert (await done.wait()).status == "done"
        fork = await done.fork("step")
        assert (await fork.wait()).status == "done"
        assert gauge.most == {"\nflow\na": 1}


@in_virtual_time
async def test_of_two_retries_at_once_one_takes_the_slot_for_both():
    """Proves that a verb which is repeated while it is under way comes to the same."""
    calls: list[int] = []
    flow: Workflow[Any, Any] = Workflow("flow", concurrency=Concurrency(1, when_full="reject"))

    @flow.step(attempts=1)
    async def step(ctx: Context) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("the first time")
        await ctx.sleep(10)

    async with gauged(flow) as (engine, gauge):
        failed = await engine.start(flow)
        await failed.wait()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(failed.retry)
        assert await status(failed) == "waiting"
        assert gauge.order == [failed.id] * 2
        assert (await failed.wait()).status == "done"


@in_virtual_time
async def test_a_key_that_is_taken_gives_the_slot_back():
    """Proves that a retry which fails for another reason after it got its slot does not keep it."""
    gated = strict(2)
    async with gauged(gated.flow) as (engine, _):
        gated.gate("failed").set()
        failed = await start(engine, gated.flow, "failed", fails=True, idempotency_key="k")
        await failed.wait()
        await start(engine, gated.flow, "heir", idempotency_key="k")
        with pytest.raises(InvalidState, match="taken since"):
            await failed.retry()
        await idle()
        assert (await engine.stats()).slots == {"flow:a": 1}
        await gated.let_go("heir")


@in_virtual_time
async def test_a_run_that_could_not_be_stored_takes_no_slot():
    """S283: a start that fails raises its own error; the next one succeeds."""
    gated = strict()
    broken = BrokenStore(
        MemoryStore(), lambda name, args: name == "write" and any(isinstance(write, Insert) for write in args[0])
    )
    async with open_engine(broken, gated.flow, lease=1) as engine:
        broken.broken = True
        with pytest.raises(StoreUnavailable):
            await start(engine, gated.flow, "lost")
        broken.broken = False
        assert (await engine.stats()).slots == {}
        run = await start(engine, gated.flow, "run")
        await gated.let_go("run")
        assert await status(run) == "done"


@in_virtual_time
async def test_a_bucket_heals_before_it_refuses():
    """S280, S281, S284: entries of runs that are gone, settled or have another slot are no reason to refuse."""
    gated = strict(3)
    async with gauged(gated.flow) as (engine, gauge):
        gated.gate("settled").set()
        settled = await start(engine, gated.flow, "settled")
        await settled.wait()
        active = await start(engine, gated.flow, "active")
        await idle()
        name = bucket_of(None, "flow", "a")
        side = await gauge.side(SLOTS, name)
        holders = gauge.buckets[name].holders
        wrong = SlotBucket(holders={**holders, "nobody": 1, settled.id: 2}, limit=3)
        body = encode_bucket(wrong)
        assert await gauge.write([PutSide(SLOTS, name, side.revision, body)]) == [Applied()]
        more = [await start(engine, gated.flow, f"more {number}") for number in range(2)]
        with pytest.raises(ConcurrencyLimitReached):
            await start(engine, gated.flow, "too many")
        assert set(gauge.buckets[name].holders) == {active.id, *(run.id for run in more)}
        await gated.let_go("active", "more 0", "more 1")


@in_virtual_time
async def test_a_bucket_heals_where_runs_queue():
    """Proves that entries of runs that are gone do not keep a queue waiting for ever."""
    gated = Gated(by_key(1))
    store, name = MemoryStore(exclusive=False), bucket_of(None, "flow", "a")
    wrong = encode_bucket(SlotBucket(holders={"nobody": 1}, limit=1))
    async with open_engine(store, gated.flow) as engine:
        assert await store.write([PutSide(SLOTS, name, None, wrong)]) == [Applied()]
        run = await start(engine, gated.flow, "one")
        gated.gate("one").set()
        with trio.fail_after(100):
            await run.wait()


@pytest.mark.parametrize("full", [False, True])
@in_virtual_time
async def test_the_draft_of_a_starter_that_died_is_removed(full):
    """S284: killed between the insert and the answer, it leaves a draft that any worker removes."""
    gauge = Gauge(MemoryStore(exclusive=False))
    gated = strict()
    parked = BrokenStore(gauge, lambda name, args: name == "side" and args[0] == SLOTS)
    async with open_engine(gauge, gated.flow, lease=3, poll_interval=1) as heir:
        if full:
            await start(heir, gated.flow, "holder")
        async with open_engine(parked, gated.flow, lease=30) as starter, trio.open_nursery() as nursery:
            parked.broken = True

            async def attempt() -> None:
                await start(starter, gated.flow, "lost", idempotency_key="k")

            nursery.start_soon(attempt)
            await trio.sleep(0.5)
            assert await heir.count() == 1 + full
            await crash(starter)
            nursery.cancel_scope.cancel()
        await trio.sleep(12)
        assert await heir.count() == full
        if full:
            await gated.let_go("holder")
        run = await start(heir, gated.flow, "again", idempotency_key="k")
        await gated.let_go("again")
        assert (await run.wait()).status == "done"
        await trio.sleep(1)
        gauge.check_at_rest()


@in_virtual_time
async def test_a_wish_of_one_that_died_leaves_a_settled_run_as_it_was():
    """Proves that a retry whose process died while it asked for a slot leaves neither a slot nor a wish behind."""
    gauge = Gauge(MemoryStore(exclusive=False))
    gated = strict()
    gated.gate("failed").set()
    broken = BrokenStore(
        gauge,
        lambda name, args: (
            name == "write" and any(isinstance(write, Update) and write.after.head.retried for write in args[0])
        ),
    )
    async with open_engine(gauge, gated.flow, lease=3, poll_interval=1) as heir:
        failed = await start(heir, gated.flow, "failed", fails=True)
        await failed.wait()
        await trio.sleep(1)
        async with open_engine(broken, gated.flow, lease=30) as caller, trio.open_nursery() as nursery:
            broken.broken = True
            nursery.start_soon(caller.run(failed.id).retry)
            await trio.sleep(0.5)
            assert gauge.runs[failed.id].head.slot.state == "asked"  # type: ignore[union-attr]
            assert failed.id in gauge.buckets[bucket_of(None, "flow", "a")].holders
            await crash(caller)
            nursery.cancel_scope.cancel()
        await trio.sleep(12)
        assert gauge.buckets[bucket_of(None, "flow", "a")].holders == {}
        assert (await failed.get()).status == "failed"
        await failed.retry()
        await trio.sleep(1)
        gauge.check_at_rest()


@in_virtual_time
async def test_retrying_many_takes_as_many_as_fit():
    """Proves that a bulk retry passes over those that find no slot, which is no error of the engine."""
    gated = strict(2)
    async with gauged(gated.flow) as (engine, _):
        errors: list[Any] = []
        engine.on("engine.error", errors.append)
        for number in range(5):
            gated.gate(number).set()
            await (await start(engine, gated.flow, number, fails=True)).wait()  # type: ignore[arg-type]  # any name
            gated.gates[number] = trio.Event()
        assert await engine.retry_all() == 2
        assert not errors
        await gated.let_go(*range(5))


@pytest.mark.parametrize("steps", range(1, 12))
@in_virtual_time
async def test_a_retry_that_is_given_up_keeps_no_slot(steps):
    """Proves that who gives up while a run asks for a slot leaves none taken, where nothing is periodic either."""
    gated = strict()
    gated.gate("failed").set()
    async with gauged(gated.flow) as (engine, gauge):
        failed = await start(engine, gated.flow, "failed", fails=True)
        await failed.wait()
        await idle()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(failed.retry)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await trio.sleep(10)
        gauge.check_at_rest()
        with trio.fail_after(10):
            await failed.retry()
            await failed.wait()


def test_a_limit_is_required_and_a_key_is_not():
    """S282, W31: a limit that is missing or makes no sense is named; without a key there is one bucket."""
    with pytest.raises(TypeError):
        Concurrency()  # type: ignore[call-arg]
    for wrong in (0, -1, 1.5, True, "many"):
        with pytest.raises(DefinitionError, match="limit"):
            Workflow("flow", concurrency=Concurrency(wrong))  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="when_full"):
        Workflow("flow", concurrency=Concurrency(1, when_full="wait"))  # type: ignore[arg-type]
    assert Workflow("flow", concurrency=Concurrency(1, when_full="reject")).rules.concurrency is not None


@pytest.mark.parametrize("key", [lambda value: value["missing"], lambda _: None, lambda _: ""])
@in_virtual_time
async def test_a_key_that_cannot_be_had_stores_nothing(key):
    """Proves that a key function that fails, or gives what is no key, refuses the start."""
    gated = Gated(Concurrency(1, key=key))
    async with gauged(gated.flow) as (engine, _):
        with pytest.raises(ValidationError):
            await start(engine, gated.flow, "run")
        assert await engine.count() == 0
