"""Forks: another run that begins in the middle of one; and what fork, rewind, goto and retry do to the rest."""

from typing import Any

import pytest
import trio

from streamline_trio import (
    InvalidState,
    MemoryStore,
    Run,
    RunHandle,
    Signal,
    StepContext,
    StepNotFound,
    TokenInvalid,
    Workflow,
    open_engine,
)
from streamline_trio.testing import FailCall, FaultyStore, parked, sweep
from tests.scenarios.worlds import at_rest, between, idle, in_virtual_time, passing, statuses

Context = StepContext[Any, Any]
go = Signal("go", int)
TOKEN = "a token of the caller's own"  # noqa: S105 - it opens nothing but the wait of a test


def counting(calls: list[str], **options: Any) -> Workflow[Any, Any]:
    """one, two, three: each notes its call, and gives its name and how often the state has been counted up."""
    flow: Workflow[Any, Any] = Workflow("counting", state=lambda _: {"n": 0}, **options)

    async def handler(ctx: Context) -> str:
        calls.append(ctx.step_id)
        await ctx.set(n=ctx.state["n"] + 1)
        await ctx.checkpoint(ctx.step_id)
        await ctx.once(f"of {ctx.step_id}", lambda: len(calls))
        return f"{ctx.step_id} {ctx.state['n']}"

    for step_id in ("one", "two", "three"):
        flow.add_step(step_id, handler)
    return flow


@in_virtual_time
async def test_a_fork_begins_in_the_middle():
    """Proves that a fork has what the run has of the steps before, runs the rest, and leaves the run alone."""
    calls: list[str] = []
    flow = counting(calls, tags=("a",), timeout=3600)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(
            flow, {"in": 1}, idempotency_key="key", user="ada", meta={"m": [1]}, priority=7, tags=("b",)
        )
        original = await handle.wait()
        await trio.sleep(100)
        fork = await handle.fork(flow.steps["two"])
        run = await fork.wait()
        assert await handle.get() == original
    assert calls == ["one", "two", "three", "two", "three"]
    assert fork.id != handle.id
    assert (run.status, run.output) == ("done", "three 5")
    assert [run.steps[step_id].output for step_id in run.steps] == ["one 1", "two 4", "three 5"]
    for field in ("workflow", "version", "input", "tenant", "user", "tags", "meta", "priority"):
        assert getattr(run, field) == getattr(original, field)
    assert (run.idempotency_key, run.parent, run.scheduled, run.recoveries) == (None, None, None, 0)
    assert run.forked_from is not None
    assert (run.forked_from.run, run.forked_from.step) == (handle.id, "two")
    assert original.forked_from is None
    assert between(original.ended_at, run.created_at) == 100
    assert run.steps["one"] == original.steps["one"]


@pytest.mark.parametrize("target", ["one", "two", "three"])
@in_virtual_time
async def test_what_a_fork_takes_along(target):
    """Proves that outputs, checkpoints and `once` results go along for the steps before, nothing for the others,
    and that a fork that nobody has driven yet stands at its step, as a draft that is due now."""
    store, flow = MemoryStore(), counting([])
    async with open_engine(store, flow) as engine:
        handle = await engine.start(flow)
        await handle.wait()
    async with open_engine(store, worker=False) as client:
        fork = await client.run(handle.id).fork(target)
        run = await client.get(fork.id)
        stored = await store.load(fork.id)
    assert stored is not None
    before = ["one", "two", "three"][: ["one", "two", "three"].index(target)]
    assert (run.status, run.current_step, run.started_at, run.lease) == ("draft", target, None, None)
    assert run.due_at == run.created_at
    assert [step_id for step_id, status in statuses(run).items() if status == "done"] == before
    assert sorted(stored.steps) == sorted(before)
    assert sorted(stored.checkpoints) == sorted(f"{step_id}/default" for step_id in before)
    assert sorted(stored.memos) == sorted(f"of {step_id}" for step_id in before)
    assert run.state == {"n": 3}
    async with open_engine(store, flow) as engine:
        assert (await engine.run(fork.id).wait()).status == "done"


@in_virtual_time
async def test_every_call_makes_another_fork():
    """Proves that forks are runs of their own: each call makes one, and a fork can be forked and rewound."""
    calls: list[str] = []
    flow = counting(calls)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await handle.wait()
        forks = [await handle.fork("three") for _ in range(3)]
        assert len({fork.id for fork in (handle, *forks)}) == 4
        for fork in forks:
            assert await fork.result() == "three 4"
        second = await forks[0].fork("two")
        run = await second.wait()
        assert run.forked_from is not None
        assert run.forked_from.run == forks[0].id
        await second.rewind("one")
        assert (await second.wait()).status == "done"
        assert await engine.count() == 5


class Standing:
    """A run in each status, and where it stands."""

    def __init__(self) -> None:
        self.go = trio.Event()
        self.flow: Workflow[Any, Any] = Workflow("standing")
        passing(self.flow, "first")

        @self.flow.step(attempts=1)
        async def middle(ctx: Context) -> str:
            if ctx.input == "waiting" and ctx.attempt == 1:
                await ctx.wait("go?")
            if ctx.input == "running":
                await self.go.wait()
            if ctx.input == "failed":
                raise OSError("planned")
            return "middle"

        passing(self.flow, "last")


@pytest.mark.parametrize("status", ["running", "waiting", "failed", "cancelled", "done"])
@in_virtual_time
async def test_from_which_runs(status):
    """Proves that a run can be forked in any status but draft, up to where it stands, and stays as it is."""
    world = Standing()
    async with open_engine("memory:", world.flow) as engine:
        handle = await engine.start(world.flow, "waiting" if status == "cancelled" else status)
        await idle()
        if status == "cancelled":
            await handle.cancel()
        before = await handle.get()
        assert before.status == status
        if status == "done":
            assert await (await handle.fork("last")).result() == "last"
        else:
            with pytest.raises(InvalidState, match="has not reached step last") as caught:
                await handle.fork("last")
            assert caught.value.action == "fork"
        fork = await handle.fork("middle")
        await idle()
        assert (await fork.get()).steps["first"].status == "done"
        assert (await fork.get()).steps["middle"].attempts == 1
        assert await handle.get() == before
        world.go.set()
        await idle()


@in_virtual_time
async def test_what_cannot_be_forked():
    """Proves that a draft, a run that never began but for its first step, and unknown steps are refused."""
    world = Standing()
    async with open_engine("memory:", world.flow) as engine:
        draft = await engine.start(world.flow, "x", delay=60)
        with pytest.raises(InvalidState, match="has not begun"):
            await draft.fork("first")
        await draft.cancel()
        with pytest.raises(InvalidState, match="has not reached"):
            await draft.fork("middle")
        assert (await (await draft.fork("first")).wait()).status == "done"
        with pytest.raises(StepNotFound, match="nowhere"):
            await draft.fork("nowhere")
        assert await engine.count() == 2


@in_virtual_time
async def test_a_fork_is_made_without_the_code():
    """Proves that a client without the workflow forks, and the version stays that of the run."""
    store, calls = MemoryStore(), list[str]()
    old, new = counting(calls, version="1.0.0"), counting([], version="2.0.0")
    async with open_engine(store, old) as engine:
        handle = await engine.start(old)
        await handle.wait()
    async with open_engine(store, worker=False) as client:
        fork = await client.run(handle.id).fork("three")
    async with open_engine(store, new) as engine:
        assert (await at_rest(engine.run(fork.id))).status == "draft"
    async with open_engine(store, old, new) as engine:
        run = await engine.run(fork.id).wait()
    assert (run.version, calls[3:]) == ("1.0.0", ["three"])


@in_virtual_time
async def test_a_fork_of_a_jump():
    """Proves that steps that a goto has left out stay out, and skipped ones stay skipped."""
    flow: Workflow[Any, Any] = Workflow("jump")

    @flow.step
    async def start(ctx: Context) -> None:
        await ctx.goto("end")

    passing(flow, "left_out", "end")
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await handle.wait()
        run = await (await handle.fork("end")).wait()
    assert statuses(run) == {"start": "skipped", "left_out": "pending", "end": "done"}


def test_a_fork_is_one_insert():
    """Proves that wherever a store call fails, before or after it was carried out, there is one whole fork."""
    calls: list[str] = []
    flow = counting(calls)

    async def scenario(engine: Any) -> list[Any]:
        calls.clear()
        handle = await engine.start(flow, run_id="r")
        await handle.wait()
        fork = await handle.fork("two")
        run = await fork.wait()
        return [await engine.count(), run.status, run.output, run.forked_from.run]

    sweep(scenario, flow, mishaps=[FailCall], lease=30.0)


@in_virtual_time
async def test_the_acknowledgement_of_a_fork_is_lost():
    """Proves that an insert whose answer is lost makes one fork, not two."""
    for call in range(30):
        flow = counting([])
        store = FaultyStore(MemoryStore(), frozenset({call}), "after")
        async with open_engine(store, flow) as engine:
            handle = await engine.start(flow)
            await handle.wait()
            await idle()
            store.armed = True
            fork = await handle.fork("two")
            assert (await fork.wait()).status == "done"
            store.armed = False
            assert await engine.count() == 2


# --- what going back does to the rest ------------------------------------------------------------------------


class Rest:
    """A run that uses everything a step can keep, parked at its second step after one signal was taken."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.tokens: list[str] = []
        self.made: list[str] = []
        self.flow: Workflow[Any, Any] = Workflow("rest")

        @self.flow.step
        async def first(ctx: Context) -> int:
            await ctx.once("of first", self._make)
            self.keys.append(ctx.idempotency_key())
            return await ctx.wait_for(go, timeout=3600)

        @self.flow.step
        async def second(ctx: Context) -> Any:
            await ctx.once("of second", self._make)
            self.keys.append(ctx.idempotency_key())
            await ctx.checkpoint("kept")
            answer = await ctx.wait("go on?", on_token=self._tell)
            if answer == "again":
                await ctx.goto("second")
            if answer == "fail":
                raise LookupError("planned")
            return answer

    def _make(self) -> str:
        self.made.append("made")
        return "made"

    async def _tell(self, token: str) -> None:
        self.tokens.append(token)

    async def begin(self, engine: Any) -> RunHandle:
        handle: RunHandle = await engine.start(self.flow)
        await idle()
        for number in (1, 2):
            await engine.emit(go, number, run=handle)
            await idle()
        assert (await handle.get()).current_step == "second"
        return handle


@in_virtual_time
async def test_rewind_and_the_rest():
    """Proves that a rewind forgets `once` results, checkpoints, waits and tokens of the steps it resets, gives new
    idempotency keys, and leaves signals that were not taken in the inbox; one that was taken is gone."""
    world = Rest()
    async with open_engine("memory:", world.flow) as engine:
        handle = await world.begin(engine)
        await handle.rewind("first")
        run = await at_rest(handle)
        assert run.current_step == "second", "the second signal was still there"
        assert run.steps["first"].output == 2
        of = {name: f"{handle.id}:{name}" for name in ("first", "second")}
        assert {*world.keys} == {of["first"], of["second"], of["first"] + "~1", of["second"] + "~1"}
        assert len(world.made) == 4
        old, new = world.tokens
        with pytest.raises(TokenInvalid):
            await engine.resume(old, 1)
        await engine.resume(new, 1)
        assert await handle.result() == 1


@in_virtual_time
async def test_goto_and_the_rest():
    """Proves that a goto keeps the `once` results, forgets checkpoints and waits, and gives new keys and tokens."""
    world = Rest()
    async with open_engine("memory:", world.flow) as engine:
        handle = await world.begin(engine)
        await engine.resume(world.tokens[0], "again")
        run = await at_rest(handle)
        assert (run.status, run.current_step) == ("waiting", "second")
        assert len(world.made) == 2
        assert len(set(world.tokens)) == 2
        assert world.keys[-1].endswith("second~1")
        assert run.steps["second"].checkpoints == {"default": "kept"}
        await engine.resume(world.tokens[1], 1)
        assert await handle.result() == 1


@in_virtual_time
async def test_retry_and_the_rest():
    """Proves that a retry keeps everything that succeeded: `once` results, checkpoints, answers and keys."""
    world = Rest()
    async with open_engine("memory:", world.flow) as engine:
        handle = await world.begin(engine)
        await engine.resume(world.tokens[0], "fail")
        assert (await handle.wait()).status == "failed"
        keys = len(world.keys)
        await handle.retry()
        run = await handle.wait()
        assert (run.status, len(world.made), len(world.tokens)) == ("failed", 2, 1)
        assert len(world.keys) > keys
        assert len(set(world.keys)) == 2


@in_virtual_time
async def test_fork_and_the_rest():
    """Proves that a fork has no waits, tokens or signals of the run, and keys of its own; the run keeps its own."""
    world = Rest()
    async with open_engine("memory:", world.flow) as engine:
        handle = await world.begin(engine)
        fork = await handle.fork("second")
        run: Run = await at_rest(fork)
        assert (run.status, run.current_step) == ("waiting", "second")
        assert len(world.made) == 3, "that of `first` goes along, that of `second` does not"
        assert world.keys[-1] == f"{fork.id}:second"
        mine, its = world.tokens
        await engine.resume(its, "the fork")
        assert await fork.result() == "the fork"
        assert (await handle.get()).status == "waiting"
        await engine.resume(mine, "the run")
        assert await handle.result() == "the run"
        other = await handle.fork("first")
        assert (await parked(other)).current_step == "first", "the signal that was not taken stays with the run"


@in_virtual_time
async def test_the_timeline_and_metrics_of_a_fork():
    """Proves that a fork's timeline says where it comes from."""
    flow = counting([])
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await handle.wait()
        fork = await handle.fork("two")
        await fork.wait()
        entries = await fork.timeline()
    assert entries == sorted(entries, key=lambda entry: entry.at)
    assert {"created", "forked", "settled"} < {entry.kind for entry in entries}
    (forked,) = [entry for entry in entries if entry.kind == "forked"]
    assert (forked.step, forked.detail) == ("two", f"from run {handle.id} at step two")


async def test_a_fork_begins_at_once(tmp_path):
    """Proves that the engine which makes a fork wakes its own worker for it: it does not wait for the next poll."""
    flow = counting([])
    async with open_engine(f"sqlite:///{tmp_path}/runs.db", flow, poll_interval=600, lease=3600) as engine:
        with trio.fail_after(30):
            handle = await engine.start(flow)
            await handle.wait()
            assert await (await handle.fork("three")).result() == "three 4"
