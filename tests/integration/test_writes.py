"""What a run costs: the exact number of document writes and reads, on every store of one process."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import pytest
import trio
import whenever

from streamline_trio import (
    Branch,
    Debounce,
    Done,
    MemoryStore,
    Next,
    Signal,
    SqliteStore,
    StepContext,
    Store,
    Throttle,
    Workflow,
    open_engine,
)
from streamline_trio._core.store import Applied, Verdict, Write
from tests.scenarios.worlds import in_virtual_time

READS = (
    "load",
    "load_many",
    "by_active_key",
    "by_token",
    "namesakes",
    "awaiting",
    "due",
    "due_in_turn",
    "next_due",
    "errands",
    "queued",
    "count_queued",
    "leased",
    "leased_by_priority",
    "lease_holders",
    "find",
    "count",
    "tally",
    "rows",
    "side",
    "sides",
)
PASSED_ON = ("open", "aclose", "hold_worker", "drop_worker", "worker_gone", "watch")


class Counting:
    """A store in front of another one that counts applied writes by kind, refused ones, and reads by method."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.writes: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.looks: Counter[str] = Counter()
        self.batches = 0
        self._read = trio.Event()

    @property
    def exclusive(self) -> bool:
        return self.store.exclusive

    async def write(self, batch: Sequence[Write]) -> list[Verdict]:
        verdicts = await self.store.write(batch)
        self.batches += 1
        for write, verdict in zip(batch, verdicts, strict=True):
            counter = self.writes if isinstance(verdict, Applied) else self.refused
            counter[type(write).__name__] += 1
        return verdicts

    def note_read(self, method: str, args: tuple[Any, ...]) -> None:
        self.reads[method] += 1
        if method == "sides":
            self.looks[args[0]] += 1
        self._read.set()
        self._read = trio.Event()

    async def until_read(self, method: str, kind: str = "") -> None:
        """Until this was read, of side documents those of a kind."""
        while not (self.looks[kind] if kind else self.reads[method]):
            await self._read.wait()

    def reset(self) -> None:
        self.batches = 0
        for counter in (self.writes, self.refused, self.reads):
            counter.clear()

    @property
    def documents(self) -> int:
        """Writes of run documents."""
        return self.writes["Insert"] + self.writes["Update"] + self.writes["Delete"]


def _counted(method: str) -> Any:
    async def read(self: Counting, *args: Any, **kwargs: Any) -> Any:
        result = await getattr(self.store, method)(*args, **kwargs)
        self.note_read(method, args)
        return result

    return read


def _passed_on(method: str) -> Any:
    def call(self: Counting, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.store, method)(*args, **kwargs)

    return call


for _name in READS:
    setattr(Counting, _name, _counted(_name))
for _name in PASSED_ON:
    setattr(Counting, _name, _passed_on(_name))


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    return Counting(MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "runs.db"))


@asynccontextmanager
async def quiet_engine(
    store: Counting, workflow: Workflow[Any, Any], *, more: tuple[Workflow[Any, Any], ...] = (), **options: Any
):
    """An engine that has looked for work and sleeps; what it does by the clock does not come within the test."""
    settings: dict[str, Any] = {"poll_interval": 3600, "lease": 3600, **options}
    async with open_engine(cast("Store", store), workflow, *more, **settings) as engine:
        await store.until_read("next_due")
        await store.until_read("sides", "broadcast")
        store.reset()
        yield engine


def steps(count: int, handler: Callable[[StepContext], Awaitable[Any]], **options: Any) -> Workflow[Any, Any]:
    workflow: Workflow[Any, Any] = Workflow("counted", state=lambda _: {})
    for number in range(count):
        workflow.add_step(f"step{number}", handler, **options)
    return workflow


async def nothing(ctx: StepContext) -> None: ...


async def counts_of(store: Counting, workflow: Workflow[Any, Any]) -> Counter[str]:
    """Run the workflow once to its good end; the writes it took."""
    async with quiet_engine(store, workflow) as engine:
        handle = await engine.start(workflow)
        await handle.result(timeout=30)
        return store.writes.copy()


def test_the_counting_store_is_a_store():
    """Proves that the wrapper has every method of the protocol, so that nothing goes uncounted."""
    wrapped = Counting(MemoryStore())
    assert isinstance(wrapped, Store)
    protocol = {name for name in dir(Store) if not name.startswith("_")}
    assert protocol == {*READS, *PASSED_ON, "write", "exclusive"}


@pytest.mark.parametrize("count", [1, 5, 50])
async def test_a_plain_run_costs_one_write_per_step_and_one_more(store, count):
    """A run of N steps on a worker with free capacity costs one insert, N updates and no read, its result
    included; nothing else is written."""
    workflow = steps(count, nothing)
    async with quiet_engine(store, workflow) as engine:
        await (await engine.start(workflow, {"some": "input"})).result(timeout=30)
        assert store.writes == {"Insert": 1, "Update": count}
        assert store.reads == {}
        assert store.refused == {}
        assert store.batches == count + 1


async def test_a_saga_costs_one_write_per_step_and_per_compensation(store):
    """A run that fails in its last step begins to undo in the same write: N steps and M compensations are N + M
    updates, and no read."""
    workflow = steps(3, nothing)
    for step in workflow.steps.values():
        step.compensate(nothing)

    async def fails(ctx: StepContext) -> None:
        raise ValueError("boom")

    workflow.add_step("fails", fails, attempts=1)
    async with quiet_engine(store, workflow) as engine:
        assert (await (await engine.start(workflow)).wait(timeout=30)).status == "compensated"
        assert store.writes == {"Insert": 1, "Update": 4 + 3}
        assert (store.reads, store.refused) == ({}, {})


async def test_sync_steps_cost_no_more(store):
    """A step in a thread costs what an async one costs."""

    def handler(ctx: StepContext) -> int:
        return 1

    workflow: Workflow[Any, Any] = Workflow("counted")
    workflow.add_step("one", handler)
    workflow.add_step("two", handler)
    async with quiet_engine(store, workflow) as engine:
        await (await engine.start(workflow)).result(timeout=30)
        assert (store.writes, store.reads) == ({"Insert": 1, "Update": 2}, {})


async def test_many_runs_at_once_cost_the_same_in_fewer_batches(store):
    """Commits of concurrent runs share batches: fifty runs of five steps are 300 writes in far fewer batches."""
    workflow = steps(5, nothing)
    async with quiet_engine(store, workflow) as engine:

        async def run() -> None:
            await (await engine.start(workflow)).result(timeout=30)

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(run)
        assert store.writes == {"Insert": 50, "Update": 250}
        assert store.reads == {}
        assert store.batches <= 60


async def test_a_skipped_step_costs_one_write(store):
    """Skipping ends a step like finishing does: with one write each."""
    workflow = steps(5, nothing, skip_if=lambda _: True)
    assert await counts_of(store, workflow) == {"Insert": 1, "Update": 5}


async def test_what_a_handler_keeps_costs_one_write_each(store):
    """`set`, `checkpoint` and the first `once` of a key cost one write each; reading them costs none."""

    async def handler(ctx: StepContext) -> None:
        await ctx.set(a=1)
        await ctx.set(b=2)
        await ctx.checkpoint(1)
        await ctx.checkpoint(2, "other")
        for _ in range(3):
            assert await ctx.once("key", lambda: 5) == 5
        assert (ctx.state, ctx.checkpoint_value(), ctx.input) == ({"a": 1, "b": 2}, 1, None)

    assert await counts_of(store, steps(1, handler)) == {"Insert": 1, "Update": 1 + 5}


async def test_parallel_state_writes_merge(store):
    """Ten `ctx.set` at once in one step: the first goes out, the other nine go together; none is lost."""

    async def handler(ctx: StepContext) -> Any:
        async with trio.open_nursery() as nursery:
            for number in range(10):

                async def write(number: int) -> None:
                    await ctx.set(**{f"key{number}": number})

                nursery.start_soon(write, number)
        return ctx.state

    workflow = steps(1, handler)
    async with quiet_engine(store, workflow) as engine:
        handle = await engine.start(workflow)
        assert await handle.result(timeout=30) == {f"key{number}": number for number in range(10)}
        assert store.writes == {"Insert": 1, "Update": 1 + 2}


async def test_parallel_checkpoints_merge_and_all_are_stored(store):
    """What one write takes together from several callers is stored for each of them."""

    async def handler(ctx: StepContext) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(ctx.checkpoint, number, f"slot{number}")

    workflow = steps(1, handler)
    async with quiet_engine(store, workflow) as engine:
        handle = await engine.start(workflow)
        await handle.result(timeout=30)
        assert store.writes == {"Insert": 1, "Update": 1 + 2}
        stored = await store.store.load(handle.id)
        assert sorted(key.partition("/")[2] for key in stored.checkpoints) == [f"slot{n}" for n in range(5)]


async def test_telling_costs_no_document_write(store):
    """Log lines and progress go as rows with the next commit, frames nowhere: the run's document is not
    written for them."""

    async def handler(ctx: StepContext) -> None:
        for number in range(20):
            ctx.log("line", number=number)
            ctx.progress(number * 5)
            ctx.stream(number)

    writes = await counts_of(store, steps(3, handler))
    assert writes.pop("AppendRows") == 3 * 2
    assert writes == {"Insert": 1, "Update": 3}


@pytest.mark.parametrize("count", [1, 20, 200])
async def test_a_scatter_costs_one_write_per_key(store, count):
    """Each key that finishes by itself costs one write and no read."""

    async def one_by_one(ctx: StepContext) -> None:
        await ctx.scatter({str(number): lambda: 1 for number in range(count)}, concurrency=1)

    workflow = steps(1, one_by_one)
    async with quiet_engine(store, workflow) as engine:
        await (await engine.start(workflow)).result(timeout=30)
        assert (store.writes, store.reads) == ({"Insert": 1, "Update": 1 + count}, {})


async def test_keys_that_finish_together_share_a_write(store):
    """The first of fifty results goes out, the other forty-nine go together; each is stored."""
    ready = trio.Event()

    async def handler(ctx: StepContext) -> Any:
        async def key(number: int) -> int:
            if number == 49:
                ready.set()
            await ready.wait()
            return number

        return await ctx.scatter({str(number): partial(key, number) for number in range(50)})

    writes = await counts_of(store, steps(1, handler))
    assert writes["Update"] <= 1 + 3, writes


@pytest.mark.parametrize("count", [1, 20, 200])
async def test_a_loop_costs_one_write_per_iteration(store, count):
    """The last iteration and the loop's value are one write."""

    async def handler(ctx: StepContext) -> Any:
        return await ctx.loop(0, lambda state, i: Next(state + i) if i < count - 1 else Done(state))

    workflow = steps(1, handler)
    async with quiet_engine(store, workflow) as engine:
        await (await engine.start(workflow)).result(timeout=30)
        assert (store.writes, store.reads) == ({"Insert": 1, "Update": 1 + count}, {})


async def test_keys_that_sleep_together_cost_one_park(store):
    """A hundred keys that suspend at once, and wake at once, cost a park, a claim, and at most a write each."""

    async def handler(ctx: StepContext) -> None:
        async def key() -> None:
            await ctx.sleep_until(until)

        await ctx.scatter({str(number): key for number in range(100)})

    until = whenever.Instant.now().add(milliseconds=400)
    writes = await counts_of(store, steps(1, handler))
    assert writes["Insert"] == 1
    assert writes["Update"] <= 1 + 2 + 100, writes


async def test_an_emission_costs_one_write_beside_the_signal(store):
    """An emission to a run costs the run's own write and a piece; when it was made, nothing."""

    async def handler(ctx: StepContext) -> None:
        for number in range(5):
            await ctx.emit("s", number, run=ctx.run_id)

    assert await counts_of(store, steps(1, handler)) == {"Insert": 1, "Update": 1 + 10}


async def test_a_sleep_costs_a_park_and_a_claim(store):
    """A durable sleep costs exactly two writes more: the one that parks and the one that claims and fires."""

    async def handler(ctx: StepContext) -> None:
        await ctx.sleep(0.1)

    workflow = steps(1, handler)
    async with quiet_engine(store, workflow) as engine:
        await (await engine.start(workflow)).result(timeout=30)
        assert store.writes == {"Insert": 1, "Update": 1 + 2}
        # The claimer looks for what is due and for when the next one will be; the run is never read by itself.
        assert set(store.reads) <= {"due", "next_due"}


async def test_two_sleeps_cost_twice_as_much(store):
    """Each suspension costs its own park and claim, and replaying the earlier one costs nothing."""

    async def handler(ctx: StepContext) -> None:
        await ctx.sleep(0.1)
        await ctx.sleep(0.1)

    assert await counts_of(store, steps(1, handler)) == {"Insert": 1, "Update": 1 + 4}


async def test_an_answered_wait_costs_a_park_the_answer_and_a_claim(store):
    """A wait for a person costs the step one park and one claim more; the answer itself is one write."""

    async def handler(ctx: StepContext) -> Any:
        return await ctx.wait("go", returns=str)

    workflow = steps(1, handler)
    async with quiet_engine(store, workflow) as engine, engine.events("workflow.waiting") as parked:
        handle = await engine.start(workflow)
        await anext(parked)
        assert store.writes == {"Insert": 1, "Update": 1}
        await handle.resume("yes")
        assert await handle.result(timeout=30) == "yes"
        assert store.writes == {"Insert": 1, "Update": 1 + 2 + 1}


go = Signal("go", str)


async def test_a_signal_that_came_before_costs_no_park(store):
    """A signal in the inbox is taken by the write that records the wait: no park, no claim, the lease is kept."""
    gate = trio.Event()
    workflow: Workflow[Any, Any] = Workflow("counted")

    @workflow.step
    async def handler(ctx: StepContext) -> str:
        await gate.wait()
        return await ctx.wait_for(go)

    async with quiet_engine(store, workflow) as engine, engine.events("workflow.*") as events:
        handle = await engine.start(workflow)
        await engine.emit(go, "early", run=handle)
        assert (store.writes, store.reads) == ({"Insert": 1, "Update": 1}, {})
        gate.set()
        assert await handle.result(timeout=30) == "early"
        assert (store.writes, store.reads) == ({"Insert": 1, "Update": 1 + 1 + 1}, {})
        assert (await handle.get()).fence == 1
    assert [event.name async for event in events] == ["workflow.started", "workflow.completed"]


async def test_a_retry_with_delay_costs_two_writes(store):
    """A failed attempt costs the write that parks it and the one that claims its retry."""

    async def handler(ctx: StepContext) -> None:
        if ctx.attempt == 1:
            raise RuntimeError

    workflow = steps(1, handler, retry_delay=0.02)
    assert await counts_of(store, workflow) == {"Insert": 1, "Update": 1 + 2}


async def test_a_retry_without_delay_costs_one_write(store):
    """A failure that is retried at once begins the next attempt in the write that records it."""

    async def handler(ctx: StepContext) -> None:
        if ctx.attempt == 1:
            raise RuntimeError

    workflow = steps(1, handler, retry_delay=0)
    assert await counts_of(store, workflow) == {"Insert": 1, "Update": 1 + 1}


async def test_failing_costs_no_more_than_finishing(store):
    """The write of the last failure also fails the run."""

    async def handler(ctx: StepContext) -> None:
        raise RuntimeError

    workflow = steps(3, handler, attempts=1)
    async with quiet_engine(store, workflow) as engine:
        assert (await (await engine.start(workflow)).wait(timeout=30)).status == "failed"
        assert (store.writes, store.reads) == ({"Insert": 1, "Update": 1}, {})


async def test_cancelling_a_running_step_costs_two_writes(store):
    """The request is one write, the settlement after the handler has unwound another; nothing is read."""

    async def handler(ctx: StepContext) -> None:
        await trio.sleep_forever()

    workflow = steps(3, handler)
    async with quiet_engine(store, workflow) as engine:
        handle = await engine.start(workflow)
        await handle.cancel()
        assert (await handle.wait(timeout=30)).status == "cancelled"
        assert store.writes == {"Insert": 1, "Update": 2}


async def test_a_start_that_has_to_wait_costs_one_claim_more(store):
    """A draft costs one write more than a start on free capacity: its claim, which also begins the first step."""
    workflow = steps(2, nothing)
    async with quiet_engine(store, workflow) as engine:
        await (await engine.start(workflow, delay=0.02)).result(timeout=30)
        assert store.writes == {"Insert": 1, "Update": 2 + 1}


async def test_the_same_key_costs_no_second_run(store):
    """A start with the key of an active run writes nothing."""

    async def handler(ctx: StepContext) -> None:
        await ctx.wait("the end")

    workflow = steps(1, handler)
    async with quiet_engine(store, workflow) as engine, engine.events("workflow.waiting") as parked:
        first = await engine.start(workflow, idempotency_key="k")
        await anext(parked)
        store.reset()
        assert await engine.start(workflow, idempotency_key="k") == first
        assert store.documents == 0
        assert store.refused == {"Insert": 1}


@in_virtual_time
async def test_an_idle_engine_costs_nothing():
    """On a store of its own process an idle engine writes and reads nothing, for as long as it likes."""
    store = Counting(MemoryStore())
    async with quiet_engine(store, steps(1, nothing), lease=15, poll_interval=1):
        await trio.sleep(86_400)
        assert (store.writes, store.reads) == ({}, {})


@in_virtual_time
async def test_an_idle_engine_on_a_shared_store_only_beats():
    """Where others may write, an idle engine writes nothing but its worker document, every third of a lease."""
    store = Counting(MemoryStore(exclusive=False))
    async with quiet_engine(store, steps(1, nothing), lease=30, poll_interval=1):
        await trio.sleep(605)
        assert store.writes == {"PutSide": 60}
        assert store.reads["load"] == store.reads["load_many"] == 0


def children(may_end: trio.Event) -> tuple[Workflow[Any, Any], Workflow[Any, Any]]:
    """A child of one step that ends when it may, and a parent of one step that joins as many as its input says."""
    child: Workflow[Any, Any] = Workflow("child")
    parent: Workflow[Any, Any] = Workflow("counted")

    @child.step
    async def end(_ctx: StepContext) -> int:
        await may_end.wait()
        return 1

    @parent.step
    async def step(ctx: StepContext) -> int:
        if ctx.input is None:
            return int(await ctx.child(child))
        return len((await ctx.join({f"b{n}": Branch(child) for n in range(ctx.input)})).branches)

    return parent, child


async def test_a_child_costs_four_writes_and_its_parent_six(store):
    """A child costs its insert, the claim that begins it, the write that settles it, and the one that empties its
    outbox; its parent the write that opens the wait, the park, the nudge and the claim more than a plain run."""
    may_end = trio.Event()
    parent, child = children(may_end)
    async with quiet_engine(store, parent, more=(child,)) as engine, engine.events("step.started") as started:
        handle = await engine.start(parent)
        await anext(started)
        await anext(started)
        async with engine.events("workflow.waiting") as parked:
            if (await handle.get()).status != "waiting":
                await anext(parked)
        store.reads.clear()
        may_end.set()
        assert await handle.result(timeout=30) == 1
        while store.documents < 10:
            await trio.lowlevel.checkpoint()
        assert store.writes == {"Insert": 2, "Update": (2 + 1) + (1 + 4)}
        # The nudge reads the parent, which nobody here drives, and `result` asks how it has settled.
        assert store.reads["load"] == 1
        assert set(store.reads) <= {"load", "load_many", "due", "next_due"}


async def test_a_join_costs_its_parent_little_more_than_a_child(store):
    """Of fifty branches each costs what a child does, and their parent hears of many in one write."""
    may_end = trio.Event()
    parent, child = children(may_end)
    async with quiet_engine(store, parent, more=(child,)) as engine:
        async with engine.events("step.started") as started:
            handle = await engine.start(parent, 50)
            for _ in range(51):
                await anext(started)
        store.reset()
        may_end.set()
        assert await handle.result(timeout=30) == 50
        while store.documents < 50 * 2 + 3:
            await trio.lowlevel.checkpoint()
        assert store.documents <= 50 * 2 + 2 + 10


async def test_a_throttled_start_costs_two_writes_more(store):
    """A start that its throttle lets begin is inserted, passed and begun: one write of the run, one of the bucket
    more than a plain one costs; a held one is told its slot instead."""
    workflow: Workflow[Any, Any] = Workflow("counted", throttle=Throttle(1, 3600))
    workflow.add_step("only", nothing)
    async with quiet_engine(store, workflow) as engine:
        await (await engine.start(workflow)).result(timeout=30)
        assert store.writes == {"Insert": 1, "PutSide": 1, "Update": 1 + 1}
        assert store.reads["side"] == 1
        store.reset()
        await engine.start(workflow)
        assert store.writes == {"Insert": 1, "PutSide": 1, "Update": 1}
        assert (store.reads["side"], store.refused) == (1, {})


async def test_starts_of_one_bucket_share_its_writes(store):
    """Fifty starts at once ask their throttle together: a few writes of the bucket, none of them refused."""
    workflow: Workflow[Any, Any] = Workflow("counted", throttle=Throttle(10, 3600))
    workflow.add_step("only", nothing)
    async with quiet_engine(store, workflow) as engine, trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(engine.start, workflow)
    assert store.writes["Insert"] == 50
    assert store.writes["Update"] == 50 + 10
    assert store.writes["PutSide"] - 1 <= 3  # the first is the worker's last
    assert store.refused == {}


async def test_a_debounced_start_costs_one_write_and_one_read(store):
    """Each start reads who is pending and inserts or changes that draft; firing it is the usual claim."""
    workflow: Workflow[Any, Any] = Workflow("counted", debounce=Debounce(3600))
    workflow.add_step("only", nothing)
    async with quiet_engine(store, workflow) as engine:
        await engine.start(workflow, 1)
        assert store.writes == {"Insert": 1}
        assert store.reads["by_active_key"] == 1
        for number in range(3):
            await engine.start(workflow, number)
        assert store.writes == {"Insert": 1, "Update": 3}
        assert store.reads["by_active_key"] == 4
        assert store.refused == {}
