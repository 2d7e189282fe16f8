"""Settled runs are removed by status and age: exactly those, with all that is stored of them, and no others."""

import sqlite3
from collections import Counter
from typing import Any

import msgspec
import pytest
import trio

from streamline_trio import (
    Branch,
    Engine,
    MemoryStore,
    Retention,
    RunHandle,
    RunNotFound,
    SqliteStore,
    StepContext,
    ValidationError,
    Workflow,
    open_engine,
)
from streamline_trio._core.store import Applied, Delete, PutSide, Update
from streamline_trio._runtime import expiry
from streamline_trio._runtime.baton import BatonDoc
from streamline_trio.testing import crash
from streamline_trio.testing._wrapped_store import Act, WrappedStore
from tests.crash.faulty_store import BrokenStore
from tests.crash.scenes import enlist_phantom
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, one_step

Context = StepContext[Any, Any]
DAY = 86_400.0
HOUR = 3600.0
LEASE = 300.0
OPTIONS: dict[str, Any] = {"lease": LEASE, "poll_interval": 30.0}


class CountingStore(WrappedStore):
    """Counts the calls by name, side documents by what they are asked for."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.calls: Counter[str] = Counter()

    async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
        self.calls[f"{name} {args[0]}" if name in {"side", "sides"} else name] += 1
        return await act()


async def _flow(ctx: Context) -> Any:
    """Its input says what becomes of it."""
    ctx.log("here")
    match ctx.input:
        case "fails":
            raise ValueError("planned")
        case "waits":
            return await ctx.wait("people")
        case "sleeps":
            await ctx.sleep(100 * DAY)
    return ctx.input


flow = one_step(_flow, attempts=1)


def undoing(name: str, *, fails: bool) -> Workflow[Any, Any]:
    """A workflow that fails and undoes what it did, or cannot."""
    made: Workflow[Any, Any] = Workflow(name)

    @made.step
    async def pay(_ctx):
        return 1

    @pay.compensate(attempts=1)
    async def repay(_ctx):
        if fails:
            raise ValueError("no")

    @made.step(attempts=1)
    async def ship(_ctx):
        raise ValueError("planned")

    return made


compensated, stuck = undoing("compensated", fails=False), undoing("stuck", fails=True)


async def of_every_kind(engine: Engine) -> dict[str, RunHandle]:
    """A run in every status that it can have for long."""
    runs = {
        "done": await engine.start(flow, "x"),
        "failed": await engine.start(flow, "fails"),
        "cancelled": await engine.start(flow, "waits"),
        "compensated": await engine.start(compensated),
        "compensation_failed": await engine.start(stuck),
        "waiting": await engine.start(flow, "waits"),
        "draft": await engine.start(flow, "x", delay=100 * DAY),
    }
    await idle()
    await runs["cancelled"].cancel()
    assert {name: (await run.get()).status for name, run in runs.items()} == {name: name for name in runs}
    return runs


async def left(engine: Engine) -> set[str]:
    return {run.status for run in await engine.find()}


@pytest.mark.parametrize("exclusive", [True, False])
@in_virtual_time
async def test_settled_runs_go_when_their_time_has_come_and_others_never(exclusive):
    """S415, S420: proves that each settled status expires by its own age, and that what has not settled stays."""
    kept = Retention(done=HOUR, failed=10 * HOUR, cancelled=5 * HOUR)
    async with open_engine(
        MemoryStore(exclusive=exclusive), flow, compensated, stuck, retention=kept, **OPTIONS
    ) as engine:
        runs = await of_every_kind(engine)
        everything = set(runs)
        await trio.sleep(HOUR - 1)
        assert await left(engine) == everything
        await trio.sleep(62)
        assert await left(engine) == everything - {"done"}
        with pytest.raises(RunNotFound):
            await runs["done"].get()
        await trio.sleep(4 * HOUR)
        assert await left(engine) == everything - {"done", "cancelled"}
        await trio.sleep(5 * HOUR)
        assert await left(engine) == {"waiting", "draft"}
        await trio.sleep(2 * DAY)
        assert await left(engine) == {"waiting", "draft"}
        assert (await engine.stats()).expired == 5


@in_virtual_time
async def test_a_later_deploy_changes_it_for_old_runs_both_ways():
    """S416: proves that another age holds at once for the runs that are there, be it shorter or longer."""
    store = MemoryStore()
    async with open_engine(store, flow, retention=Retention(done=10 * HOUR)) as engine:
        await (await engine.start(flow, "x")).wait()
        await trio.sleep(HOUR)
    async with open_engine(store, flow, retention=Retention(done=20 * HOUR)) as engine:
        await trio.sleep(15 * HOUR)
        assert await left(engine) == {"done"}
    async with open_engine(store, flow, retention=Retention(done=18 * HOUR)):
        pass
    async with open_engine(store, flow, retention=Retention(done=12 * HOUR)) as engine:
        await idle()
        assert await left(engine) == set(), "it is older than that already"


@in_virtual_time
async def test_a_run_that_settled_under_an_engine_without_retention_goes_too():
    """Proves that it does not matter who settled a run: a client that cancels knows nothing of retention."""
    store = MemoryStore()
    async with (
        open_engine(store, flow, retention=Retention(cancelled=HOUR)) as engine,
        open_engine(store, worker=False) as client,
    ):
        run = await engine.start(flow, "waits")
        await at_rest(run)
        await client.run(run.id).cancel()
        await trio.sleep(HOUR + 61)
        assert await engine.count() == 0


@pytest.mark.parametrize("retention", [None, Retention()])
@in_virtual_time
async def test_without_retention_nothing_is_looked_for(retention):
    """S417, S419: proves that an engine that keeps everything asks the store for nothing of the kind."""
    store = CountingStore(MemoryStore(exclusive=False))
    async with open_engine(store, flow, retention=retention, **OPTIONS) as engine:
        await (await engine.start(flow, "x")).wait()
        await trio.sleep(2 * DAY)
        assert (store.calls["find"], store.calls["side baton"]) == (0, 0)
        assert await left(engine) == {"done"}


@in_virtual_time
async def test_a_client_removes_nothing():
    """S419: proves that removal is the workers' work: a client with the same options leaves it to them."""
    store = MemoryStore()
    async with open_engine(store, flow) as engine:
        await (await engine.start(flow, "x")).wait()
    async with open_engine(store, worker=False, retention=Retention(done=1)) as client:
        await trio.sleep(DAY)
        assert await left(client) == {"done"}


@in_virtual_time
async def test_nothing_wakes_a_store_of_ones_own_but_what_has_to_go():
    """Proves that where nobody else can write there is no polling: a year with nothing to remove asks nothing."""
    store = CountingStore(MemoryStore())
    async with open_engine(store, flow, retention=Retention(done=400 * DAY)) as engine:
        await (await engine.start(flow, "x")).wait()
        await idle()
        before = store.calls["find"]
        await trio.sleep(399 * DAY)
        assert store.calls["find"] == before
        await trio.sleep(1 * DAY + 61)
        assert await left(engine) == set()


@in_virtual_time
async def test_a_run_that_is_changed_after_its_end_lives_on_from_there():
    """Proves that a run taken up again is not removed by the age of its first end."""
    may_fail = [True]

    async def step(_ctx: Context) -> None:
        if may_fail[0]:
            raise ValueError("planned")

    workflow = one_step(step, attempts=1)
    async with open_engine("memory:", workflow, retention=Retention(done=HOUR, failed=HOUR)) as engine:
        run = await engine.start(workflow)
        await run.wait()
        await trio.sleep(HOUR - 10)
        may_fail[0] = False
        await run.retry()
        assert (await run.wait()).status == "done"
        await trio.sleep(HOUR - 10)
        assert await left(engine) == {"done"}
        await trio.sleep(100)
        assert await left(engine) == set()


@pytest.mark.parametrize("exclusive", [True, False])
@in_virtual_time
async def test_children_stay_as_long_as_their_parent_has_not_settled(exclusive):
    """Proves that a child outlives its own age while its parent may still read it, and goes once that is over."""

    async def parent_step(ctx: Context) -> Any:
        joined = await ctx.join({"a": Branch(flow, 1), "b": Branch(flow, 2)}, policy="all")
        await ctx.sleep(5 * HOUR)
        return {key: branch.output for key, branch in joined.branches.items()}

    parent: Workflow[Any, Any] = Workflow("parent")
    parent.add_step("join", parent_step)
    async with open_engine(
        MemoryStore(exclusive=exclusive), parent, flow, retention=Retention(done=HOUR), **OPTIONS
    ) as engine:
        run = await engine.start(parent)
        await trio.sleep(4 * HOUR)
        assert await engine.count(workflow="flow") == 2
        assert (await run.wait()).status == "done"
        assert await run.result() == {"a": 1, "b": 2}
        await trio.sleep(HOUR + 200)
        assert await engine.count() == 0


@in_virtual_time
async def test_branches_that_a_retry_reads_go_with_their_parent_and_not_before():
    """Proves that a failed parent's joined branches live as long as it does, whatever their own age."""

    async def parent_step(ctx: Context) -> None:
        await ctx.join({"a": Branch(flow, 1), "b": Branch(flow, 2)})
        raise ValueError("planned")

    parent: Workflow[Any, Any] = Workflow("parent")
    parent.add_step("join", parent_step, attempts=1)
    async with open_engine("memory:", parent, flow, retention=Retention(done=HOUR, failed=10 * HOUR)) as engine:
        await (await engine.start(parent)).wait()
        await trio.sleep(9 * HOUR)
        assert await engine.count(workflow="flow") == 2
        await trio.sleep(HOUR + 200)
        assert await engine.count() == 0


@in_virtual_time
async def test_children_go_after_a_parent_that_a_person_deleted():
    """Proves that children whose parent was deleted by hand are not left behind for good."""

    async def parent_step(ctx: Context) -> None:
        await ctx.join({"a": Branch(flow, 1)})
        raise ValueError("planned")

    parent: Workflow[Any, Any] = Workflow("parent")
    parent.add_step("join", parent_step, attempts=1)
    async with open_engine("memory:", parent, flow, retention=Retention(done=HOUR)) as engine:
        await (await engine.start(parent)).wait()
        await trio.sleep(5 * HOUR)
        assert await engine.delete(workflow="parent") == 1
        await trio.sleep(HOUR + 200)
        assert await engine.count() == 0


@in_virtual_time
async def test_a_run_that_has_yet_to_tell_its_parent_stays():
    """Proves that a run with something in its outbox is not removed, whatever has become of its parent."""
    may_end = trio.Event()

    async def child_step(_ctx: Context) -> int:
        await may_end.wait()
        return 7

    async def parent_step(ctx: Context) -> Any:
        return await ctx.child(child, None)

    def is_of_the_parent(batch: Any) -> bool:
        return any(isinstance(write, Update) and write.before.id == "p" for write in batch)

    child, parent = one_step(child_step), Workflow[Any, Any]("parent")
    parent.add_step("call", parent_step)
    store = BrokenStore(MemoryStore(), lambda name, args: name == "write" and is_of_the_parent(args[0]))
    async with open_engine(store, parent, child, retention=Retention(done=10)) as engine:
        run = await engine.start(parent, run_id="p")
        await at_rest(run)
        store.broken = True
        may_end.set()
        await trio.sleep(200)
        assert await engine.count(workflow="flow", status="done") == 1
        assert await engine.delete(workflow="flow") == 0
        store.broken = False
        assert await run.result(timeout=1000) == 7
        await trio.sleep(200)
        assert await engine.count() == 0


@in_virtual_time
async def test_many_runs_go_in_batches_and_those_that_must_stay_do_not_stand_in_their_way(monkeypatch):
    """Proves that pages of runs that must stay end a turn, which goes on behind them the next time."""
    monkeypatch.setattr(expiry, "AT_ONCE", 4)
    monkeypatch.setattr(expiry, "MOST_IN_VAIN", 2)
    store = CountingStore(MemoryStore(exclusive=False))

    async def parent_step(ctx: Context) -> None:
        await ctx.join({str(number): Branch(flow, number) for number in range(30)}, policy="all")
        await ctx.sleep(100 * DAY)

    parent: Workflow[Any, Any] = Workflow("parent")
    parent.add_step("join", parent_step)
    async with open_engine(store, parent, flow, retention=Retention(done=HOUR), **OPTIONS) as engine:
        await engine.start(parent)
        await trio.sleep(10)
        for number in range(10):
            await (await engine.start(flow, number)).wait()
        await trio.sleep(HOUR - 60)
        before = store.calls["find"]
        await trio.sleep(200 + 4 * 60)
        assert await engine.count(workflow="flow") == 30
        before = store.calls["find"]
        await trio.sleep(HOUR)
        assert store.calls["find"] - before <= 60 * 3


@in_virtual_time
async def test_of_ten_workers_one_removes_and_the_others_do_not_even_ask():
    """Proves that what retention and broadcasts ask of the store does not grow with the number of workers."""
    store = CountingStore(MemoryStore(exclusive=False))

    async def asked_in_an_hour(workers: int) -> Counter[str]:
        async with trio.open_nursery() as nursery:
            for _ in range(workers):
                await nursery.start(keep_open, store)
            await trio.sleep(2 * LEASE)
            store.calls.clear()
            await trio.sleep(HOUR)
            nursery.cancel_scope.cancel()
        return Counter({name: store.calls[name] for name in ("find", "side baton", "sides broadcast")})

    async def keep_open(store: Any, task_status: trio.TaskStatus[None]) -> None:
        async with open_engine(store, flow, retention=Retention(done=30 * DAY), **OPTIONS):
            task_status.started()
            await trio.sleep_forever()

    alone, ten = await asked_in_an_hour(1), await asked_in_an_hour(10)
    assert alone["find"] == pytest.approx(60, abs=2)
    assert alone["sides broadcast"] == pytest.approx(HOUR / LEASE, rel=0.25)
    assert alone["side baton"] == 0, "nothing to remove: the baton stays where it is"
    for name, calls in alone.items():
        assert ten[name] <= calls * 1.2 + 2, name


@in_virtual_time
async def test_the_next_worker_goes_on_when_the_one_that_removes_is_gone():
    """Proves that a worker that dies with the baton in hand stops removal only until it is known to be gone."""
    store = MemoryStore(exclusive=False)
    async with open_engine(store, flow) as engine:
        for number in range(5):
            await (await engine.start(flow, number)).wait()
    await trio.sleep(HOUR)
    stuck = BrokenStore(store, lambda name, args: name == "write" and is_delete(args[0]))
    stuck.broken = True

    def is_delete(batch: Any) -> bool:
        return any(isinstance(write, Delete) for write in batch)

    kept = Retention(done=HOUR / 2)
    async with open_engine(stuck, flow, retention=kept, **OPTIONS) as first:
        await trio.sleep(1)
        assert await store.side("baton", "retention") is not None
        await crash(first)
    async with open_engine(store, flow, retention=kept, **OPTIONS) as second:
        assert await second.count() == 5
        await trio.sleep(200)
        assert await second.count() == 0


@in_virtual_time
async def test_a_baton_is_not_taken_from_a_worker_that_lives():
    """Proves that while a living worker has the baton nobody else removes anything."""
    store = MemoryStore(exclusive=False)
    async with open_engine(store, flow) as engine:
        await (await engine.start(flow, 1)).wait()
    await trio.sleep(HOUR)
    async with open_engine(store, flow, name="holder", **OPTIONS) as other:
        await hold_the_baton(store, other.worker_id)
        async with open_engine(store, flow, retention=Retention(done=60), **OPTIONS) as engine:
            await trio.sleep(HOUR)
            assert await engine.count() == 1
            await hold_the_baton(store, "")
            await trio.sleep(HOUR)
            assert await engine.count() == 0


async def hold_the_baton(store: Any, worker: Any) -> None:
    side = await store.side("baton", "retention")
    body = msgspec.msgpack.encode(BatonDoc(holder=worker, at=1))
    expected = None if side is None else side.revision
    assert await store.write([PutSide("baton", "retention", expected, body)]) == [Applied()]


@in_virtual_time
async def test_a_worker_that_never_beats_does_not_keep_others_from_removing():
    """Proves that a first worker that is silent is the first only until it is known to be gone."""
    store = MemoryStore(exclusive=False)
    async with open_engine(store, flow) as engine:
        await (await engine.start(flow, 1)).wait()
    await trio.sleep(HOUR)
    await enlist_phantom(store, "")
    async with open_engine(store, flow, retention=Retention(done=60), **OPTIONS) as engine:
        await trio.sleep(200)
        assert await engine.count() == 0


async def test_nothing_is_left_in_a_file(tmp_path):
    """Proves that in SQLite a removed run leaves no row behind: parts, keys, labels, logs."""
    store = SqliteStore(tmp_path / "runs.db")
    async with open_engine(store, flow, retention=Retention(done=0.2), poll_interval=0.05) as engine:
        await (await engine.start(flow, "x", tags=["t"], meta={"k": 1}, idempotency_key="key")).wait()
        with trio.fail_after(20):
            while await engine.count():  # noqa: ASYNC110 - it is for what no event tells of
                await trio.sleep(0.05)
    with sqlite3.connect(tmp_path / "runs.db") as connection:
        tables = ("runs", "parts", "keys", "labels", "rows")
        found = {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}  # noqa: S608
    connection.close()
    assert set(found.values()) == {0}


@in_virtual_time
async def test_retention_must_be_a_retention():
    """Proves that a number in its place is refused when the engine is opened."""
    with pytest.raises(ValidationError, match="retention is a Retention"):
        async with open_engine("memory:", flow, retention=30):  # type: ignore[arg-type]  # that is the point
            pass
