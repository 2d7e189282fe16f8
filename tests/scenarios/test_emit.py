"""Signals that a step sends, once: `ctx.emit`."""

from collections import Counter
from functools import partial
from typing import Any

import msgspec
import pytest
import trio

from streamline_trio import (
    Done,
    InvalidState,
    MemoryStore,
    Next,
    Run,
    Signal,
    StepContext,
    ValidationError,
    Workflow,
    open_engine,
)
from streamline_trio.testing import WrappedStore, crash
from tests.scenarios.worlds import idle, in_virtual_time, one_step, settled

Ctx = StepContext[Any, Any]
news = Signal("news", int)


def listener(count: int) -> Workflow[Any, Any]:
    """A workflow that takes so many messages, one after the other."""
    workflow: Workflow[Any, Any] = Workflow("listener")

    @workflow.step
    async def listen(ctx: Ctx) -> list[int]:
        heard = [await ctx.wait_for(news) for _ in range(count)]
        await ctx.sleep(1000)
        return heard

    return workflow


async def heard_of(step: Any, count: int, **options: Any) -> tuple[list[int], int]:
    """What a listener heard of a step that emits to it, and how much more was left in its inbox."""
    store, ears = MemoryStore(), listener(count)
    workflow = one_step(step, **options)
    async with open_engine(store, ears, workflow) as engine:
        ear = await engine.start(ears, None, run_id="ear")
        handle = await engine.start(workflow, None)
        assert (await handle.wait()).status == "done"
        await trio.sleep(500)
        document = await store.load("ear")
        assert document is not None
        return await ear.result(), len(document.inbox)


@in_virtual_time
async def test_each_call_is_emitted_once_however_often_the_step_is_called():
    """Proves that attempts and re-entries emit nothing again, and that two calls in one step are two signals."""

    async def step(ctx: Ctx) -> None:
        await ctx.emit(news, 1, run="ear")
        await ctx.emit(news, 2, run="ear")
        await ctx.sleep(5)
        if ctx.attempt < 3:
            raise ValueError("again")

    assert await heard_of(step, 2, retry_delay=0) == ([1, 2], 0)


@in_virtual_time
async def test_a_call_is_remembered_whatever_becomes_of_its_target():
    """Proves that a step that is entered again does not ask whether those who took its signal still know it."""
    ears = listener(1)

    async def step(ctx: Ctx) -> None:
        await ctx.emit(news, 1, run="ear")
        await ctx.sleep(5000)

    workflow = one_step(step)
    async with open_engine("memory:", ears, workflow) as engine:
        ear = await engine.start(ears, None, run_id="ear")
        handle = await engine.start(workflow, None)
        assert await ear.result() == [1]
        assert await engine.delete(status="done") == 1
        assert (await handle.wait()).status == "done"


@in_virtual_time
async def test_a_step_that_is_reset_emits_anew():
    """Proves that a new generation of the step (goto, rewind) has emitted nothing yet."""
    calls: list[int] = []

    async def step(ctx: Ctx) -> None:
        calls.append(1)
        await ctx.emit(news, len(calls), run="ear")
        if len(calls) == 1:
            await ctx.goto("step")

    assert await heard_of(step, 2) == ([1, 2], 0)


@in_virtual_time
async def test_keys_and_iterations_emit_for_themselves():
    """Proves that equal calls in several keys and iterations are signals of their own, each once."""

    async def step(ctx: Ctx) -> None:
        async def key(name: str) -> None:
            await ctx.emit(news, ord(name), run="ear")
            await ctx.sleep(3)

        async def body(_state: None, i: int) -> Next[None] | Done[None]:
            await ctx.emit(news, i, run="ear")
            await ctx.sleep(1)
            return Next(None) if i < 2 else Done(None)

        await ctx.loop(None, body)
        await ctx.scatter({name: partial(key, name) for name in "ab"})
        if ctx.attempt == 1:
            raise ValueError("again")

    heard, left = await heard_of(step, 5, retry_delay=0)
    assert (sorted(heard), left) == ([0, 1, 2, 97, 98], 0)


@in_virtual_time
async def test_calls_in_another_order_are_still_the_same_calls():
    """Proves that a call is known by its signal and target, so that calls that change places lose nothing."""

    async def step(ctx: Ctx) -> None:
        calls = [lambda: ctx.emit(news, 1, run="ear"), lambda: ctx.emit("other", 2, run="ear")]
        async with trio.open_nursery() as nursery:
            for call in calls if ctx.attempt == 1 else reversed(calls):
                nursery.start_soon(call)
        if ctx.attempt == 1:
            raise ValueError("again")
        await ctx.emit(news, 3, run="ear")

    heard, left = await heard_of(step, 2, retry_delay=0)
    assert (heard, left) == ([1, 3], 1)


@in_virtual_time
async def test_a_broadcast_reaches_whoever_waits():
    """Proves that without a target all who wait now are reached, once each."""
    ears = listener(1)

    async def step(ctx: Ctx) -> None:
        await ctx.emit(news, 9)
        await ctx.sleep(1)

    workflow = one_step(step)
    async with open_engine("memory:", ears, workflow) as engine:
        handles = [await engine.start(ears, None) for _ in range(3)]
        await trio.sleep(1)
        await engine.start(workflow, None)
        assert [await handle.result() for handle in handles] == [[9]] * 3


@in_virtual_time
async def test_a_run_may_signal_itself():
    """Proves that a step can put a message into its own run's inbox, also by a thread."""

    def sync(ctx: Ctx) -> None:
        trio.from_thread.run(lambda: ctx.emit(news, 1, run=ctx.run_id))

    workflow: Workflow[Any, Any] = Workflow("flow")
    workflow.add_step("step", sync)

    async def last(ctx: Ctx) -> int:
        return await ctx.wait_for(news)

    workflow.add_step("last", last)
    assert (await settled(workflow)).output == 1


@in_virtual_time
async def test_a_refused_signal_raises_and_is_tried_again_by_the_next_attempt():
    """Proves that a call that failed has not happened: the next attempt makes it."""
    ears, caught = listener(1), Counter[str]()

    async def step(ctx: Ctx) -> None:
        try:
            await ctx.emit(news, 5, run="ear")
        except InvalidState:
            caught["refused"] += 1
            raise

    workflow = one_step(step, retry_delay=100, jitter=0, backoff="fixed")
    async with open_engine("memory:", ears, workflow) as engine:
        ear = await engine.start(ears, None, run_id="ear")
        await ear.cancel()
        handle = await engine.start(workflow, None)
        await trio.sleep(50)
        await ear.wait()
        assert caught["refused"] == 1
        assert (await handle.wait()).status == "failed"
    assert caught["refused"] == 3


@pytest.mark.parametrize("call", [("", 1), (news, "text")])
@in_virtual_time
async def test_what_makes_no_sense_is_refused(call):
    """Proves that a signal must have a name, and a payload of its type."""

    async def step(ctx: Ctx) -> None:
        await ctx.emit(*call, run=ctx.run_id)

    run = await settled(one_step(step))
    assert run.error is not None
    assert run.error.code == ValidationError.code


@in_virtual_time
async def test_a_compensation_that_is_retried_much_later_emits_nothing_again():
    """Proves that what a failed compensation has emitted is not emitted again by `retry`, however late."""
    broken, ears = [True], listener(2)
    workflow: Workflow[Any, Any] = Workflow("flow")

    @workflow.step
    async def pay(_ctx: Ctx) -> None: ...

    @pay.compensate(attempts=1)
    async def refund(ctx: Ctx) -> None:
        await ctx.emit(news, 1, run="ear")
        if broken:
            raise ValueError

    @workflow.step(attempts=1)
    async def ship(_ctx: Ctx) -> None:
        raise ValueError

    async with open_engine("memory:", ears, workflow) as engine:
        ear = await engine.start(ears, None, run_id="ear")
        handle = await engine.start(workflow, None)
        assert (await handle.wait()).status == "compensation_failed"
        await trio.sleep(2 * 86_400)
        for number in range(64):  # so many that the ear forgets the ids of the day before
            await engine.emit("noise", number, run="ear", id=str(number))
        broken.clear()
        await handle.retry()
        assert (await handle.wait()).status == "compensated"
        await engine.emit(news, 2, run="ear")
        assert await ear.result() == [1, 2]


class Stuck(WrappedStore):
    """Never writes what a step keeps of its emissions."""

    async def around(self, name: str, args: tuple[Any, ...], act: Any) -> Any:
        if name == "write" and any(getattr(write, "after", None) and write.after.pieces for write in args[0]):
            await trio.sleep_forever()
        return await act()


@in_virtual_time
async def test_a_signal_sent_before_a_migration_is_known_by_the_renamed_step():
    """Proves that a signal whose sending was not noted goes out under the same id when the step is renamed."""
    store, ears = MemoryStore(), listener(2)

    async def step(ctx: Ctx) -> None:
        await ctx.emit(news, 1, run="ear")

    def rename(run: Run) -> Run:
        return msgspec.structs.replace(run, version="2.0.0", steps={"new": run.steps["old"]}, current_step="new")

    old: Workflow[Any, Any] = Workflow("flow")
    old.add_step("old", step)
    new: Workflow[Any, Any] = Workflow("flow", version="2.0.0", migrate=rename)
    new.add_step("new", step)
    async with open_engine(store, ears) as engine:
        ear = await engine.start(ears, None, run_id="ear")
        async with open_engine(Stuck(store), old) as doomed:
            handle = await doomed.start(old, None)
            await idle()
            await crash(doomed)
        async with open_engine(store, new):
            assert (await engine.run(handle.id).wait()).version == "2.0.0"
        await engine.emit(news, 2, run="ear")
        assert await ear.result() == [1, 2]
