"""Signals: messages that a run waits for, from this process or another."""

from typing import Any

import pytest
import trio

from streamline_trio import MemoryStore, RunHandle, Signal, Workflow, open_engine
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, passing

user_action = Signal("user-action", dict[str, Any])


def listening(calls: list[str] | None = None, signal: Signal[Any] = user_action) -> Workflow[Any, Any]:
    """start, listen (for the signal), complete."""
    workflow: Workflow[Any, Any] = Workflow("listening")
    passing(workflow, "start", calls=calls)

    @workflow.step
    async def listen(ctx):
        return await ctx.wait_for(signal)

    passing(workflow, "complete", calls=calls)
    return workflow


@in_virtual_time
async def test_a_run_parks_on_a_signal():
    """S104: the run waits for the signal by name and goes on with its data, at once."""
    flow = listening()
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        run = await at_rest(handle)
        assert (run.status, run.current_step, run.lease) == ("waiting", "listen", None)
        wait = run.steps["listen"].wait
        assert wait is not None
        assert (wait.kind, wait.signal, wait.due_at) == ("signal", "user-action", None)
        before = trio.current_time()
        await engine.emit(user_action, {"clicked": 3}, run=handle)
        run = await handle.wait()
        assert trio.current_time() == before
        assert (run.status, run.steps["listen"].output) == ("done", {"clicked": 3})


@pytest.mark.parametrize("addressed", [True, False])
def test_any_engine_on_the_store_reaches_the_run(addressed):
    """S105, S106: there are no separate buses here: one emit on any engine of the store, addressed or
    broadcast, resumes the run once."""

    async def scenario() -> None:
        store, calls = MemoryStore(), list[str]()
        flow = listening(calls)
        async with open_engine(store, flow) as engine, open_engine(store, worker=False) as client:
            resumed: list[Any] = []
            engine.on("workflow.resumed", resumed.append)
            client.on("workflow.resumed", resumed.append)
            handle = await engine.start(flow)
            await idle()
            await client.emit(user_action, {"n": 1}, run=handle.id if addressed else None)
            assert await handle.result() == "complete"
            await idle()
            assert len(resumed) == 1
        assert calls == ["start", "complete"]

    in_virtual_time(scenario)()


async def test_a_signal_from_another_process(tmp_path):
    """S107: a client that shares only the file wakes the run with its data."""
    url = f"sqlite:///{tmp_path}/runs.db"
    signal = Signal("external:data-ready", dict[str, int])
    flow = listening(signal=signal)
    async with (
        open_engine(url, flow, poll_interval=0.02) as engine,
        open_engine(url, worker=False, poll_interval=0.02) as client,
        engine.events("workflow.waiting") as parked,
    ):
        handle = await engine.start(flow)
        await anext(parked)
        await client.emit("external:data-ready", {"rows": 42}, run=handle.id)
        assert (await client.run(handle.id).wait()).status == "done"
        assert await handle.output("listen") == {"rows": 42}


@in_virtual_time
async def test_signals_need_no_configuration():
    """S109: signals work on any store as it is given; a listener that has left hears nothing more."""
    store, flow = MemoryStore(), listening()
    async with open_engine(store, flow) as engine:
        heard: list[Any] = []
        unsubscribe = engine.on("workflow.completed", heard.append)
        handles = [await engine.start(flow) for _ in range(2)]
        await idle()
        await engine.emit(user_action, {}, run=handles[0])
        await idle()
        unsubscribe()
        await engine.emit(user_action, {}, run=handles[1])
        assert (await handles[1].wait()).status == "done"
        await idle()
    assert [event.run_id for event in heard] == [handles[0].id]


@in_virtual_time
async def test_addressed_and_broadcast():
    """S110: an addressed signal wakes only its run; one without a run wakes every run that waits for it now."""
    flow = listening()
    async with open_engine("memory:", flow) as engine:
        one, two, three = [await engine.start(flow) for _ in range(3)]
        await idle()
        await engine.emit(user_action, {"to": "one"}, run=one)
        assert (await at_rest(one)).status == "done"
        assert [(await at_rest(run)).status for run in (two, three)] == ["waiting", "waiting"]
        await engine.emit(user_action, {"to": "all"})
        assert [(await at_rest(run)).status for run in (two, three)] == ["done", "done"]
        assert [await run.output("listen") for run in (one, two, three)] == [
            {"to": "one"},
            {"to": "all"},
            {"to": "all"},
        ]


@pytest.mark.parametrize("same_id", [True, False])
def test_two_deliveries_at_once_resume_once(same_id):
    """S111: of two emissions at the same time the wait takes one, and the next step runs once."""

    async def scenario() -> None:
        calls = list[str]()
        flow = listening(calls)
        async with open_engine("memory:", flow) as engine:
            handle = await engine.start(flow)
            await idle()

            async def emit(number: int) -> None:
                await engine.emit(user_action, {"n": number}, run=handle, id="same" if same_id else None)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(emit, 1)
                nursery.start_soon(emit, 2)
            run = await handle.wait()
        assert run.steps["listen"].output in ({"n": 1}, {"n": 2})
        assert calls == ["start", "complete"]

    for _ in range(10):
        in_virtual_time(scenario)()


@in_virtual_time
async def test_colons_in_run_ids_and_signals():
    """S113: neither colons in a run id nor in a signal's name confuse who is meant."""
    signal = Signal("payment:completed", int)
    flow = listening(signal=signal)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow, run_id="tenant:123:run:456")
        other = await engine.start(flow, run_id="tenant:123:run:4")
        await idle()
        await engine.emit("payment", 1, run=handle)
        await engine.emit("payment:completed", 7, run="tenant:123:run:456")
        assert (await handle.wait()).steps["listen"].output == 7
        assert (await at_rest(other)).status == "waiting"


@in_virtual_time
async def test_a_signal_before_the_run_waits():
    """S114: what was addressed to a run before it waits is kept for it; a broadcast that came too early is
    not: it wakes those who wait now."""
    flow: Workflow[Any, Any] = Workflow("late")
    reached = trio.Event()
    go = trio.Event()

    @flow.step
    async def busy(ctx):
        reached.set()
        await go.wait()

    @flow.step
    async def listen(ctx):
        return await ctx.wait_for(user_action)

    async with open_engine("memory:", flow) as engine:
        addressed, unaddressed = await engine.start(flow), await engine.start(flow)
        await reached.wait()
        await engine.emit(user_action, {"kind": "broadcast"})
        await engine.emit(user_action, {"kind": "addressed"}, run=addressed)
        go.set()
        assert await addressed.result() == {"kind": "addressed"}
        assert (await at_rest(unaddressed)).status == "waiting"


@in_virtual_time
async def test_a_signal_to_a_run_that_has_not_begun():
    """S114: a draft's inbox keeps its signals too."""
    flow = listening()
    async with open_engine("memory:", flow) as engine:
        handle: RunHandle = await engine.start(flow, delay=3600)
        await engine.emit(user_action, {"early": True}, run=handle)
        assert (await handle.get()).status == "draft"
        assert (await handle.wait()).steps["listen"].output == {"early": True}
