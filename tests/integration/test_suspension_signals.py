"""Signals: the inbox of a run, broadcasts, and what is refused to the emitter."""

from functools import partial
from typing import Any

import msgspec
import pytest
import trio

from streamline_trio import (
    InvalidState,
    MemoryStore,
    RunNotFound,
    Signal,
    ValidationError,
    WaitTimedOut,
    Workflow,
    open_engine,
)
from streamline_trio.testing import crash
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, one_step


class Paid(msgspec.Struct):
    order: str
    cents: int


paid = Signal("paid", Paid)
tick = Signal("tick", int)


async def nothing(ctx):
    pass


async def three_ticks(ctx):
    return [await ctx.wait_for(tick) for _ in range(3)]


# The inbox


@in_virtual_time
async def test_the_inbox_is_taken_in_order_of_arrival():
    """Proves that addressed signals wait for the run, in order, and each is taken once."""

    async def handler(ctx):
        await ctx.wait("go")
        return await three_ticks(ctx)

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        for number in (3, 1, 2):
            await engine.emit(tick, number, run=handle)
        await handle.resume("go")
        assert await handle.result() == [3, 1, 2]


@in_virtual_time
async def test_signals_of_other_names_stay():
    """Proves that a wait takes only its own signal and leaves the others for later waits, of later steps too."""
    flow: Workflow[Any, Any] = Workflow("flow")

    @flow.step
    async def first(ctx):
        return await ctx.wait_for(tick)

    @flow.step
    async def second(ctx):
        return [await ctx.wait_for("other"), await ctx.wait_for(tick)]

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow, delay=1)
        await engine.emit("other", "o", run=handle)
        await engine.emit(tick, 1, run=handle)
        await engine.emit(tick, 2, run=handle)
        assert await handle.result() == ["o", 2]


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_an_id_is_taken_once(moment):
    """Proves that a signal emitted again under its id does nothing: in the inbox, while waiting, once taken."""

    async def scenario() -> None:
        async def handler(ctx):
            await ctx.sleep(10)
            heard = [await ctx.wait_for(tick)]
            try:
                heard.append(await ctx.wait_for(tick, timeout=10))
            except WaitTimedOut:
                heard.append("nothing more")
            return heard

        flow = one_step(handler)
        async with open_engine("memory:", flow) as engine:
            handle = await engine.start(flow)
            await engine.emit(tick, 1, run=handle, id="same")
            if moment == "before":
                await engine.emit(tick, 2, run=handle, id="same")
            await trio.sleep(11)
            if moment == "between":
                await engine.emit(tick, 2, run=handle, id="same")
            await engine.emit("tock", 3, run=handle, id="same")
            assert await handle.result() == [1, "nothing more"]
            if moment == "after":
                await engine.emit(tick, 2, run=handle, id="same")
                with pytest.raises(InvalidState):
                    await engine.emit(tick, 2, run=handle, id="another")

    in_virtual_time(scenario)()


@in_virtual_time
async def test_ids_are_per_target():
    """Proves that one id serves one emission to each run and one broadcast."""
    flow = one_step(three_ticks)
    async with open_engine("memory:", flow) as engine:
        a, b = await engine.start(flow), await engine.start(flow)
        await idle()
        for _ in range(2):
            await engine.emit(tick, 1, run=a, id="same")
            await engine.emit(tick, 2, run=b, id="same")
            await idle()
            await engine.emit(tick, 3, id="same")
            await idle()
        for handle in (a, b):
            await engine.emit(tick, 4, run=handle)
        assert [await a.result(), await b.result()] == [[1, 3, 4], [2, 3, 4]]


@in_virtual_time
async def test_signals_without_an_id_are_all_different():
    """Proves that equal payloads without an id are so many signals."""
    flow = one_step(three_ticks)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow, delay=1)
        for _ in range(3):
            await engine.emit(tick, 7, run=handle)
        assert await handle.result() == [7, 7, 7]


@in_virtual_time
async def test_the_inbox_is_bounded():
    """Proves that a run keeps 1000 signals and refuses the next one to its emitter, until it has taken one."""
    flow = one_step(three_ticks)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow, delay=60)
        for number in range(1000):
            await engine.emit(tick, number, run=handle)
        with pytest.raises(InvalidState, match="1000"):
            await engine.emit(tick, 1000, run=handle)
        assert await handle.result() == [0, 1, 2]
        with pytest.raises(InvalidState):
            await engine.emit(tick, 1, run=handle)


@in_virtual_time
async def test_whom_a_signal_does_not_reach():
    """Proves that an addressed signal for an unknown run and for a settled one is refused with its error, and a
    broadcast to nobody is not."""
    flow = one_step(nothing)
    async with open_engine("memory:", flow) as engine:
        with pytest.raises(RunNotFound):
            await engine.emit(tick, 1, run="nobody")
        handle = await engine.start(flow)
        await handle.wait()
        with pytest.raises(InvalidState) as caught:
            await engine.emit(tick, 1, run=handle)
        assert (caught.value.action, caught.value.meta["status"]) == ("signal", "done")
        await engine.emit(tick, 1)


@in_virtual_time
async def test_a_signal_survives_a_crash():
    """Proves that acknowledged signals reach the run that another worker takes over, also one that was taken
    by the crashed entry."""
    store, entries = MemoryStore(), list[list[int]]()

    async def handler(ctx):
        heard = [await ctx.wait_for(tick), await ctx.wait_for(tick)]
        entries.append(heard)
        if len(entries) == 1:
            await trio.sleep_forever()
        return [*heard, await ctx.wait_for(tick)]

    flow = one_step(handler)
    async with open_engine(store, flow) as first:
        handle = await first.start(flow)
        for number in (1, 2, 3):
            await first.emit(tick, number, run=handle)
        await idle()
        await crash(first)
    async with open_engine(store, flow) as second:
        assert await second.run(handle.id).result() == [1, 2, 3]
    assert entries == [[1, 2]] * 3


@in_virtual_time
async def test_a_signal_wait_times_out():
    """Proves that `wait_for` raises `WaitTimedOut` at its deadline, and a later signal goes to the inbox."""

    async def handler(ctx):
        with pytest.raises(WaitTimedOut, match="tick"):
            await ctx.wait_for(tick, timeout=5)
        await ctx.sleep(10)
        return await ctx.wait_for(tick)

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await trio.sleep(6)
        await engine.emit(tick, 9, run=handle)
        assert await handle.result() == 9
        assert trio.current_time() == pytest.approx(15)


# Match


@in_virtual_time
async def test_a_wait_takes_what_it_matches():
    """Proves that `match` picks by payload fields, from the inbox and while waiting; the rest stays in order."""

    async def handler(ctx):
        return [
            await ctx.wait_for(paid, match={"order": "b"}),
            await ctx.wait_for(paid, match={"order": "c", "cents": 5}),
            await ctx.wait_for(paid),
        ]

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow, delay=1)
        await engine.emit(paid, Paid("a", 1), run=handle)
        await engine.emit(paid, Paid("b", 2), run=handle)
        await trio.sleep(2)
        await engine.emit(paid, Paid("c", 4), run=handle)
        assert (await at_rest(handle)).status == "waiting"
        await engine.emit(paid, Paid("c", 5), run=handle)
        assert await handle.result() == [
            {"order": "b", "cents": 2},
            {"order": "c", "cents": 5},
            {"order": "a", "cents": 1},
        ]


@in_virtual_time
async def test_payloads_without_the_field_do_not_match():
    """Proves that a payload that is no mapping, or lacks the field, is left for another wait."""

    async def handler(ctx):
        return [await ctx.wait_for("any", match={"k": None}), await ctx.wait_for("any"), await ctx.wait_for("any")]

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        for payload in (5, {}, {"k": None}):
            await engine.emit("any", payload, run=handle)
        assert await handle.result() == [{"k": None}, 5, {}]


# Types


@in_virtual_time
async def test_a_typed_signal_checks_at_the_emitter():
    """Proves that a payload that does not fit its signal is refused to the emitter, addressed or not, and that
    one emitted by name is held to what the wait returns."""
    received: list[Any] = []

    async def handler(ctx):
        received.append(await ctx.wait_for(paid))

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        before = await at_rest(handle)
        wrong: Any = {"order": "x", "cents": "much"}
        for target in (handle, None):
            with pytest.raises(ValidationError):
                await engine.emit(paid, wrong, run=target)
        with pytest.raises(ValidationError):
            await engine.emit("paid", wrong, run=handle)
        assert await handle.get() == before
        await engine.emit("paid", {"order": "x", "cents": 3}, run=handle)
        await handle.wait()
    assert received == [Paid("x", 3)]


@in_virtual_time
async def test_a_misfit_in_the_inbox_is_passed_over():
    """Proves that a payload emitted by name before the typed wait, which it does not fit, does not break it."""

    async def handler(ctx):
        typed = await ctx.wait_for(tick)
        return [typed, await ctx.wait_for("tick")]

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow, delay=1)
        await engine.emit("tick", "not a number", run=handle)
        await engine.emit("tick", 4, run=handle)
        assert await handle.result() == [4, "not a number"]


@in_virtual_time
async def test_bad_names_and_ids():
    """Proves that a signal's name and id are checked before anything is written."""
    async with open_engine("memory:") as engine:
        for name in ("", "has space", "x" * 201):
            with pytest.raises(ValidationError):
                await engine.emit(name, 1)
        for id in ("", "x" * 201):
            with pytest.raises(ValidationError):
                await engine.emit("fine", 1, id=id)
        with pytest.raises(ValidationError):
            await engine.emit("fine", 1, run="some-run", match={"user": "u"})
        with pytest.raises(ValidationError, match="colour"):
            await engine.emit("fine", 1, match={"colour": "red"})


# Broadcasts


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_broadcast_wakes_all_that_wait_each_once(exclusive):
    """Proves that every waiting run takes a broadcast exactly once, also a run that waits for the signal again
    at once, with two engines and more runs than one page."""

    async def scenario() -> None:
        async def handler(ctx):
            first = await ctx.wait_for(tick)
            try:
                return [first, await ctx.wait_for(tick, timeout=100)]
            except WaitTimedOut:
                return [first]

        store, flow = MemoryStore(exclusive=exclusive), one_step(handler)
        async with open_engine(store, flow) as engine, open_engine(store, flow) as second:
            handles = [await engine.start(flow) for _ in range(120)]
            deaf = await engine.start(flow, delay=50)
            await trio.sleep(10)
            await second.emit(tick, 5, id="one")
            await engine.emit(tick, 5, id="one")
            assert [await handle.result() for handle in handles] == [[5]] * 120
            await engine.emit(tick, 6)
            assert await deaf.result() == [6]

    in_virtual_time(scenario)()


@in_virtual_time
async def test_a_broadcast_with_match_reaches_some():
    """Proves that `match` of a broadcast selects by fields of the run."""

    async def handler(ctx):
        return await ctx.wait_for(tick)

    flow, other = one_step(handler), Workflow[Any, Any]("other")
    other.add_step("step", handler)
    async with open_engine("memory:", flow, other) as engine:
        ann = await engine.start(flow, user="ann", priority=5)
        bob = await engine.start(flow, user="bob", idempotency_key="k")
        cat = await engine.start(other, user="ann")
        await idle()
        await engine.emit(tick, 1, match={"user": "ann", "workflow": "flow"})
        assert await ann.result() == 1
        await engine.emit(tick, 2, match={"priority": 99})
        assert [(await at_rest(run)).status for run in (bob, cat)] == ["waiting", "waiting"]
        await engine.emit(tick, 3, match={"idempotency_key": "k"})
        assert await bob.result() == 3
        await engine.emit(tick, 4, match={"id": cat.id, "version": "1.0.0", "current_step": "step"})
        assert await cat.result() == 4


@in_virtual_time
async def test_a_broadcast_that_does_not_fit_one_reaches_the_others():
    """Proves that a run whose wait cannot use the payload stays waiting and is reported, and others are woken."""

    async def handler(ctx):
        return await ctx.wait_for(Signal("mixed", str if ctx.input == "text" else int))

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        errors: list[Any] = []
        engine.on("engine.error", errors.append)
        text, number = await engine.start(flow, "text"), await engine.start(flow, "number")
        await idle()
        await engine.emit("mixed", 5)
        assert await number.result() == 5
        assert (await at_rest(text)).status == "waiting"
        assert len(errors) == 1
        await engine.emit("mixed", "five")
        assert await text.result() == "five"


@in_virtual_time
async def test_a_broadcast_whose_emitter_dies_is_delivered():
    """Proves that a broadcast which was stored but reached nobody is delivered by another worker, once."""
    entries: list[int] = []

    async def handler(ctx):
        entries.append(await ctx.wait_for(tick))

    store, flow = MemoryStore(exclusive=False), one_step(handler)
    async with open_engine(store, flow) as engine:
        handles = [await engine.start(flow) for _ in range(3)]
        await trio.sleep(1)
        async with open_engine(store, worker=False) as emitter:
            stored = trio.Event()

            async def stall(*args: object) -> list[None]:
                stored.set()
                await trio.sleep_forever()
                return []

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(store, "load_many", stall)  # the emitter's process ends before it reaches anybody
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(emitter.emit, tick, 8, id="orphan"))
                    await stored.wait()
                    await crash(emitter)
        assert [(await handle.get()).status for handle in handles] == ["waiting"] * 3
        for handle in handles:
            assert (await handle.wait(timeout=60)).status == "done"
        await trio.sleep(100)
    assert entries == [8, 8, 8]
