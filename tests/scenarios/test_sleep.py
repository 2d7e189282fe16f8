"""Durable timers: a sleeping run is a row with a due time, woken once and not before."""

from typing import Any

import pytest
import trio

from streamline_trio import InvalidState, MemoryStore, Workflow, open_engine
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, passing, statuses


def sleepy(seconds: float, calls: list[Any] | None = None) -> Workflow[Any, Any]:
    """start, nap, end; notes when on trio's clock each was called."""
    workflow: Workflow[Any, Any] = Workflow("sleepy")
    calls = [] if calls is None else calls

    async def plain(ctx):
        calls.append((ctx.step_id, round(trio.current_time(), 3)))

    @workflow.step
    async def start(ctx):
        await plain(ctx)

    @workflow.step
    async def nap(ctx):
        await plain(ctx)
        await ctx.sleep(seconds)
        calls.append(("woken", round(trio.current_time(), 3)))

    @workflow.step
    async def end(ctx):
        await plain(ctx)
        return "end"

    return workflow


@pytest.mark.parametrize("seconds", [0, 0.001, 0.1, 0.5, 2.0, 60.0, 365 * 86_400.0])
def test_a_sleep_lasts_as_long_as_asked(seconds):
    """S090: the run is done, and between the steps lies the time slept. Ours: exactly, whatever its length."""
    calls: list[Any] = []

    async def scenario() -> None:
        began = trio.current_time()
        flow = sleepy(seconds, calls)
        async with open_engine("memory:", flow) as engine:
            assert await (await engine.start(flow)).result() == "end"
        assert trio.current_time() - began == pytest.approx(seconds, abs=0.0011)

    in_virtual_time(scenario)()
    assert calls[-1][1] - calls[0][1] == pytest.approx(seconds, abs=0.0011)


@in_virtual_time
async def test_code_after_a_sleep():
    """S091: in the original, code after a sleep never runs. Ours: the handler is entered again from its first
    line when the time has come, the sleep returns, and what follows runs once."""
    flow: Workflow[Any, Any] = Workflow("after", state=lambda _: {"entered": 0, "after": 0})

    @flow.step
    async def nap(ctx):
        await ctx.set(entered=ctx.state["entered"] + 1)
        assert await ctx.sleep(5) is None
        await ctx.set(after=ctx.state["after"] + 1)
        return "slept"

    passing(flow, "next")
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        run = await handle.wait()
        assert run.state == {"entered": 2, "after": 1}
        assert await handle.output(nap) == "slept"
        assert statuses(run) == {"nap": "done", "next": "done"}


@in_virtual_time
async def test_many_sleep_at_the_same_time():
    """S092: sleepers do not wait for each other."""
    flow = sleepy(0.1)
    began = trio.current_time()
    async with open_engine("memory:", flow) as engine:
        handles = [await engine.start(flow) for _ in range(50)]
        assert [await handle.result() for handle in handles] == ["end"] * 50
    assert trio.current_time() - began == pytest.approx(0.1)


@in_virtual_time
async def test_a_long_sleep_parks():
    """S093: a sleeper is waiting for a timer, holds no lease and no place in the worker, and is due at its time."""
    flow = sleepy(60)
    async with open_engine("memory:", flow, max_concurrent_runs=1) as engine:
        handle = await engine.start(flow)
        run = await at_rest(handle)
        assert (run.status, run.current_step, run.lease) == ("waiting", "nap", None)
        wait = run.steps["nap"].wait
        assert wait is not None
        assert (wait.kind, wait.due_at) == ("timer", run.due_at)
        assert run.due_at is not None
        assert (run.due_at - run.created_at).total("seconds") == 60
        other = await engine.start(flow)
        assert (await at_rest(other)).status == "waiting"


@pytest.mark.parametrize("exclusive", [True, False])
def test_no_worker_wakes_a_sleeper_early(exclusive):
    """S097: two workers, one run asleep for 6 s: it goes on at 6 s, once, also where workers poll all the time."""

    async def scenario() -> None:
        calls: list[Any] = []
        store = MemoryStore(exclusive=exclusive)
        first, second = sleepy(6, calls), sleepy(6, calls)
        async with (
            open_engine(store, first, poll_interval=0.1) as engine,
            open_engine(store, second, poll_interval=0.1),
        ):
            began = trio.current_time()
            handle = await engine.start(first)
            await trio.sleep(5.999)
            assert (await handle.get()).status == "waiting"
            assert await handle.result() == "end"
            assert trio.current_time() - began == pytest.approx(6, abs=0.2 if not exclusive else 0.002)
            await trio.sleep(60)
        assert [name for name, _ in calls] == ["start", "nap", "nap", "woken", "end"]

    in_virtual_time(scenario)()


@in_virtual_time
async def test_a_cancelled_sleeper_is_in_no_queue():
    """S098: after cancel nothing is due any more, and nothing runs when its time would have come."""
    calls: list[Any] = []
    flow = sleepy(60, calls)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        await handle.cancel()
        run = await handle.get()
        assert (run.status, run.due_at) == ("cancelled", None)
        await trio.sleep(3600)
        assert await handle.get() == run
    assert [name for name, _ in calls] == ["start", "nap"]


@in_virtual_time
async def test_many_resumes_during_a_short_sleep():
    """S100: three resumes at once: exactly one ends the sleep, the others are told, the next step runs once."""
    for _ in range(20):
        calls: list[Any] = []
        flow = sleepy(0.1, calls)
        async with open_engine("memory:", flow) as engine:
            handle = await engine.start(flow)
            await trio.sleep(0.05)
            refused: list[InvalidState] = []

            async def resume(handle=handle, refused=refused) -> None:
                try:
                    await handle.resume({"n": 1})
                except InvalidState as error:
                    refused.append(error)

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(resume)
            run = await handle.wait()
        assert (run.status, len(refused)) == ("done", 2)
        assert [name for name, _ in calls] == ["start", "nap", "nap", "woken", "end"]


@in_virtual_time
async def test_a_resume_ends_a_sleep_early():
    """S101: an explicit resume ends the sleep now, and the timer later does nothing. Ours: `sleep` returns
    nothing, so the payload goes nowhere; the step's output is the handler's own."""
    calls: list[Any] = []
    flow = sleepy(60, calls)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await trio.sleep(10)
        await handle.resume("early")
        run = await handle.wait()
        assert (run.status, run.steps["nap"].output) == ("done", None)
        assert calls[-1] == ("end", 10.0)
        await trio.sleep(120)
        assert await handle.get() == run
    assert [name for name, _ in calls] == ["start", "nap", "nap", "woken", "end"]


@in_virtual_time
async def test_a_sleep_needs_no_payload_to_be_ended():
    """S101: of the waits only a person's needs a payload."""
    flow = sleepy(60)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await trio.sleep(10)
        await handle.resume()
        assert await handle.result(timeout=1) == "end"


@in_virtual_time
async def test_payment_verification():
    """S102: initiate, sleep a little, verify, complete, with the state kept over the sleep."""
    flow: Workflow[Any, Any] = Workflow("payment", state=lambda _: {"status": "new", "verified": False})

    @flow.step
    async def initiate(ctx):
        await ctx.set(status="initiated")

    @flow.step
    async def settle_down(ctx):
        await ctx.sleep(0.1)

    @flow.step
    async def verify(ctx):
        assert ctx.state["status"] == "initiated"
        await ctx.set(verified=True)

    @flow.step
    async def complete(ctx):
        await ctx.set(status="completed")

    async with open_engine("memory:", flow) as engine:
        run = await (await engine.start(flow)).wait()
    assert (run.status, run.state) == ("done", {"status": "completed", "verified": True})


@in_virtual_time
async def test_three_engines_one_sleeper():
    """S103: three workers see the same sleeper come due; the body before and after the sleep runs once each.
    Ours: the handler is entered once per park, so twice, by one worker at a time."""
    store = MemoryStore(exclusive=False)
    calls: list[Any] = []
    one, two, three = (sleepy(1, calls) for _ in range(3))
    async with (
        open_engine(store, one, poll_interval=0.3) as engine,
        open_engine(store, two, poll_interval=0.3),
        open_engine(store, three, poll_interval=0.3),
    ):
        handles = [await engine.start(one) for _ in range(20)]
        for handle in handles:
            assert await handle.result() == "end"
            run = await handle.get()
            assert (run.steps["nap"].attempts, run.recoveries) == (1, 0)
        await trio.sleep(10)
    names = [name for name, _ in calls]
    assert {name: names.count(name) for name in names} == {"start": 20, "nap": 40, "woken": 20, "end": 20}
