"""Pause and cancel, at every moment of a run's life."""

from typing import Any

import pytest
import trio

from streamline_trio import InvalidState, MemoryStore, RunCancelled, Workflow, open_engine
from streamline_trio.testing import crash
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, one_step, passing, statuses


def parked(calls: list[str] | None = None) -> Workflow[Any, Any]:
    """before, gate (waits for a person), after."""
    workflow: Workflow[Any, Any] = Workflow("parked")
    passing(workflow, "before", calls=calls)

    @workflow.step
    async def gate(ctx):
        if calls is not None:
            calls.append("gate")
        return await ctx.wait("look")

    passing(workflow, "after", calls=calls)
    return workflow


async def nothing(ctx):
    pass


# Cancel


@in_virtual_time
async def test_cancelling_a_parked_run():
    """S182: nobody holds it, so it is cancelled when the call returns; later steps never begin."""
    flow = parked()
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        await handle.cancel()
        run = await handle.get()
        assert (run.status, run.ended_at, run.due_at) == ("cancelled", run.updated_at, None)
        assert (run.steps["before"].status, run.steps["after"].status) == ("done", "pending")
        assert run.steps["gate"].wait is None
        with pytest.raises(RunCancelled):
            await handle.result()


@in_virtual_time
async def test_cancel_stops_a_running_handler():
    """S183: the handler is cancelled at once, sees why, and the run settles when it has unwound. Ours: cancel
    returns when the wish is durable."""
    seen: list[Any] = []

    async def handler(ctx):
        try:
            await trio.sleep(10)
        finally:
            seen.append((ctx.cancelled_reason, trio.current_time()))

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        heard: list[Any] = []
        engine.on("workflow.cancelled", heard.append)
        handle = await engine.start(flow)
        await trio.sleep(0.1)
        await handle.cancel("not needed")
        assert (await handle.get()).cancel_requested
        run = await handle.wait()
        assert (run.status, run.cancel_reason) == ("cancelled", "not needed")
        assert seen == [("not needed", pytest.approx(0.1))]
        await trio.sleep(60)
        assert await handle.get() == run
    assert [(event.run_id, event.reason) for event in heard] == [(handle.id, "not needed")]


@in_virtual_time
async def test_resuming_a_cancelled_run():
    """S185: a cancelled run takes no answer."""
    flow = parked()
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        await handle.cancel()
        with pytest.raises(InvalidState) as caught:
            await handle.resume("too late")
        assert caught.value.meta["status"] == "cancelled"
        assert (await handle.get()).status == "cancelled"


@in_virtual_time
async def test_cancelling_a_finished_run():
    """S186: a settled run is left as it is, and there is no event."""
    flow = one_step(nothing)
    async with open_engine("memory:", flow) as engine:
        heard: list[Any] = []
        engine.on("workflow.cancelled", heard.append)
        handle = await engine.start(flow)
        done = await handle.wait()
        await handle.cancel("why not")
        assert await handle.get() == done
        await idle()
    assert (done.status, heard) == ("done", [])


@pytest.mark.parametrize("moment", ["running", "parked"])
def test_cancelling_twice(moment):
    """S187: the second cancel changes nothing; there is one event."""

    async def scenario() -> None:
        async def handler(ctx):
            if moment == "parked":
                await ctx.wait("look")
            await trio.sleep(10)

        flow = one_step(handler)
        async with open_engine("memory:", flow) as engine:
            heard: list[Any] = []
            engine.on("workflow.cancelled", heard.append)
            handle = await engine.start(flow)
            await trio.sleep(1)
            await handle.cancel()
            await handle.cancel()
            cancelled = await handle.wait()
            await handle.cancel()
            assert await handle.get() == cancelled
            await idle()
        assert (cancelled.status, len(heard)) == ("cancelled", 1)

    in_virtual_time(scenario)()


@in_virtual_time
async def test_the_reason_of_a_cancellation():
    """S188: the first reason is stored and published, later ones are ignored, none is none."""
    flow = parked()
    async with open_engine("memory:", flow) as engine:
        heard: list[Any] = []
        engine.on("workflow.cancelled", heard.append)
        one, two = await engine.start(flow), await engine.start(flow)
        await idle()
        await one.cancel("duplicate")
        await one.cancel("another reason")
        await two.cancel()
        assert (await one.get()).cancel_reason == "duplicate"
        assert (await two.get()).cancel_reason is None
        with pytest.raises(RunCancelled, match="duplicate"):
            await one.result()
        await idle()
    assert [event.reason for event in heard] == ["duplicate", None]


@in_virtual_time
async def test_the_first_reason_stays_while_the_handler_unwinds():
    """S188: also when the second cancel comes while the first one is being carried out."""

    async def handler(ctx):
        try:
            await trio.sleep(100)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        await handle.cancel("first")
        await trio.sleep(0.5)
        await handle.cancel("second")
        assert (await handle.wait()).cancel_reason == "first"


@in_virtual_time
async def test_cancel_against_completion():
    """S189: when the last step ends as the cancel comes, the run is done or cancelled, once, and stays so."""
    outcomes: list[str] = []

    async def handler(ctx):
        await trio.sleep(1)
        return "result"

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        settling: list[Any] = []
        engine.on("workflow.*", settling.append)
        for _ in range(200):
            handle = await engine.start(flow)
            await trio.sleep(1)
            await handle.cancel()
            run = await handle.wait()
            outcomes.append(run.status)
            await idle()
            assert await handle.get() == run
            ends = [e.name for e in settling if e.name in {"workflow.completed", "workflow.cancelled"}]
            assert ends == ["workflow.completed" if run.status == "done" else "workflow.cancelled"]
            settling.clear()
    assert set(outcomes) <= {"done", "cancelled"}
    assert len(outcomes) == 200


@in_virtual_time
async def test_cancelling_during_backoff():
    """S190: the retry that was due never comes."""
    calls: list[float] = []

    async def handler(ctx):
        calls.append(trio.current_time())
        raise OSError("down")

    flow = one_step(handler, retry_delay=10, jitter=0)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await trio.sleep(1)
        run = await handle.get()
        assert (run.status, run.steps["step"].status) == ("waiting", "pending")
        await handle.cancel()
        run = await handle.get()
        assert (run.status, run.due_at, run.steps["step"].retry_at) == ("cancelled", None, None)
        await trio.sleep(100)
    assert len(calls) == 1


@pytest.mark.parametrize("through", ["worker", "client"])
def test_cancel_from_elsewhere(through):
    """S191: another engine than the one that executes cancels; the handler is stopped, and the next step never
    begins on the holder."""
    calls: list[str] = []

    async def scenario() -> None:
        store = MemoryStore()
        flow: Workflow[Any, Any] = Workflow("two")

        @flow.step
        async def slow(ctx):
            calls.append("slow")
            await trio.sleep(2)

        passing(flow, "next", calls=calls)
        async with (
            open_engine(store, flow) as holder,
            open_engine(store, *([flow] if through == "worker" else []), worker=through == "worker") as other,
        ):
            handle = await holder.start(flow)
            await trio.sleep(1)
            await other.run(handle.id).cancel("from elsewhere")
            run = await other.run(handle.id).wait()
            assert trio.current_time() == pytest.approx(1)
            assert (run.status, run.cancel_reason) == ("cancelled", "from elsewhere")
            assert statuses(run) == {"slow": "failed", "next": "pending"}
            await trio.sleep(10)
            assert (await handle.get()).status == "cancelled"

    in_virtual_time(scenario)()
    assert calls == ["slow"]


async def test_cancel_from_another_process(tmp_path):
    """S191: a client that shares only the file stops the handler of the worker that holds the run."""
    url = f"sqlite:///{tmp_path}/runs.db"
    running, stopped = trio.Event(), trio.Event()

    async def handler(ctx):
        running.set()
        try:
            await trio.sleep_forever()
        finally:
            stopped.set()

    flow = one_step(handler)
    async with (
        open_engine(url, flow, poll_interval=0.02) as engine,
        open_engine(url, worker=False, poll_interval=0.02) as client,
    ):
        handle = await engine.start(flow)
        await running.wait()
        await client.run(handle.id).cancel("elsewhere")
        run = await client.run(handle.id).wait()
        assert (run.status, run.cancel_reason, stopped.is_set()) == ("cancelled", "elsewhere", True)


# Pause


@in_virtual_time
async def test_pausing_before_the_first_step():
    """S192: a paused run does not begin, also when driven. Ours: it is still a draft; unpause lets it go on."""
    calls: list[str] = []
    flow = parked(calls)
    async with open_engine("memory:", flow, worker=False) as engine:
        handle = await engine.start(flow)
        await handle.pause()
        run = await handle.drive()
        assert (run.paused, run.status, run.steps["before"].status) == (True, "draft", "pending")
        assert calls == []
        await handle.unpause()
        run = await handle.drive()
        assert (run.paused, run.status) == (False, "waiting")
        await handle.resume("go")
        assert (await handle.drive()).status == "done"


@in_virtual_time
async def test_pausing_in_the_middle_of_a_step():
    """S193: the handler goes on to its end undisturbed; a run of one step is then done and no longer paused."""

    async def handler(ctx):
        await trio.sleep(0.5)
        return "finished"

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await trio.sleep(0.05)
        await handle.pause()
        run = await handle.get()
        assert (run.paused, run.status, run.steps["step"].status) == (True, "running", "running")
        run = await handle.wait()
        assert trio.current_time() == pytest.approx(0.5)
        assert (run.status, run.output, run.paused) == ("done", "finished", False)


@in_virtual_time
async def test_the_next_step_does_not_begin_while_paused():
    """S194: it stays pending, nobody holds the run; after unpause it runs once."""
    calls: list[str] = []
    flow: Workflow[Any, Any] = Workflow("two")

    @flow.step
    async def slow(ctx):
        await trio.sleep(1)

    passing(flow, "next", calls=calls)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await trio.sleep(0.5)
        await handle.pause()
        await trio.sleep(60)
        run = await handle.get()
        assert statuses(run) == {"slow": "done", "next": "pending"}
        assert (run.status, run.current_step, run.lease, run.due_at) == ("running", "next", None, None)
        assert calls == []
        await handle.unpause()
        assert await handle.result() == "next"
        await trio.sleep(60)
    assert calls == ["next"]


@in_virtual_time
async def test_pausing_a_finished_run():
    """S195: nothing changes."""
    flow = one_step(nothing)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        done = await handle.wait()
        await handle.pause()
        await handle.unpause()
        assert await handle.get() == done


@in_virtual_time
async def test_pausing_twice():
    """S196, S197: one event with the run id and the first reason; the second pause and unpause are no-ops."""
    flow = parked()
    async with open_engine("memory:", flow) as engine:
        heard: list[Any] = []
        engine.on("workflow.*paused", heard.append)
        handle = await engine.start(flow)
        await idle()
        await handle.pause("maintenance")
        await handle.pause("again")
        assert (await handle.get()).paused
        await handle.unpause()
        await handle.unpause()
        assert not (await handle.get()).paused
        await idle()
    assert [event.name for event in heard] == ["workflow.paused", "workflow.unpaused"]
    assert (heard[0].run_id, heard[0].reason) == (handle.id, "maintenance")


@in_virtual_time
async def test_answering_a_paused_run():
    """S198, S205: in the original, resume clears the pause. Ours: the answer is taken and kept, and only unpause
    lets the run go on; each step ran once and one resumed event is published."""
    calls: list[str] = []
    flow = parked(calls)
    async with open_engine("memory:", flow) as engine:
        heard: list[Any] = []
        engine.on("workflow.resumed", heard.append)
        handle = await engine.start(flow)
        await idle()
        await handle.pause()
        await handle.resume({"by": "operator"})
        run = await at_rest(handle)
        assert (run.paused, run.lease, run.steps["gate"].wait, run.due_at) == (True, None, None, None)
        assert calls == ["before", "gate"]
        with pytest.raises(InvalidState):
            await handle.resume("another")
        await handle.unpause()
        run = await handle.wait()
        assert (run.status, run.paused) == ("done", False)
        assert run.steps["gate"].output == {"by": "operator"}
        await idle()
    assert calls == ["before", "gate", "gate", "after"]
    assert len(heard) == 1


@in_virtual_time
async def test_unpause_answers_nothing():
    """S198: unpausing a parked run leaves it parked: only an answer ends a wait."""
    flow = parked()
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        await handle.pause()
        await handle.unpause()
        run = await at_rest(handle)
        assert (run.status, run.paused) == ("waiting", False)
        assert run.steps["gate"].wait is not None


@in_virtual_time
async def test_a_paused_sleeper_does_not_wake():
    """S200: the time comes and goes; at unpause the timer fires at once."""

    async def handler(ctx):
        await ctx.sleep(6)
        return trio.current_time()

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        await handle.pause()
        await trio.sleep(6.5)
        run = await handle.get()
        assert (run.paused, run.status, run.due_at) == (True, "waiting", None)
        await trio.sleep(3.5)
        await handle.unpause()
        assert await handle.result() == pytest.approx(10)


@in_virtual_time
async def test_a_sleeper_unpaused_in_time():
    """S200: a pause that ends before the timer does not move it."""

    async def handler(ctx):
        await ctx.sleep(6)
        return trio.current_time()

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        await handle.pause()
        await trio.sleep(3)
        await handle.unpause()
        assert await handle.result() == pytest.approx(6)


@in_virtual_time
async def test_paused_drafts_do_not_start():
    """S203: a draft whose time has come stays one while it is paused; its neighbour starts."""
    calls: list[str] = []
    flow: Workflow[Any, Any] = Workflow("later")
    passing(flow, "only", calls=calls)
    async with open_engine("memory:", flow) as engine:
        paused, free = await engine.start(flow, delay=10), await engine.start(flow, delay=10)
        await paused.pause()
        assert (await free.wait()).status == "done"
        await trio.sleep(60)
        assert (await paused.get()).status == "draft"
        assert calls == ["only"]
        await paused.unpause()
        assert await paused.result(timeout=1) == "only"


@in_virtual_time
async def test_a_paused_run_of_a_dead_worker():
    """S204: two runs lose their worker, one of them paused: only the other one's handler is called before
    unpause. Ours: the paused one is taken from the dead worker, without being entered."""
    store, entered = MemoryStore(), list[str]()

    async def handler(ctx: Any) -> Any:
        entered.append(ctx.run_id)
        await trio.sleep(1 if entered.count(ctx.run_id) > 1 else 1000)
        return "done"

    flow = one_step(handler)
    async with open_engine(store, flow) as first:
        paused, free = await first.start(flow), await first.start(flow)
        await idle()
        await paused.pause()
        await crash(first)
    entered.clear()
    entered += [paused.id, free.id]
    async with open_engine(store, flow) as second:
        assert await second.run(free.id).result() == "done"
        await trio.sleep(100)
        assert entered.count(paused.id) == 1
        assert (await second.get(paused.id)).paused
        await second.run(paused.id).unpause()
        assert await second.run(paused.id).result(timeout=2) == "done"
        run = await second.get(paused.id)
        assert (run.recoveries, run.steps["step"].attempts) == (1, 2)
