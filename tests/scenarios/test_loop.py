"""Loops inside a step that keep their state: `ctx.loop`."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import msgspec
import pytest
import trio

from streamline_trio import (
    Done,
    LoopLimitExceeded,
    MemoryStore,
    Next,
    Signal,
    StepContext,
    SuspensionError,
    ValidationError,
    open_engine,
)
from streamline_trio.testing import crash
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, one_step, settled

Ctx = StepContext[Any, Any]
Turn = Next[Any] | Done[Any]
go = Signal("go", int)


class Tally(msgspec.Struct):
    total: int = 0
    seen: set[int] = msgspec.field(default_factory=set)


# --- iterations ------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_state_is_threaded_until_done():
    """S149. Proves that each iteration gets the state of the one before, and that `Done` ends the loop."""
    iterations: list[int] = []

    async def step(ctx: Ctx) -> int:
        async def body(total: int, i: int) -> Turn:
            iterations.append(i)
            total += i
            return Done(total) if total >= 10 else Next(total)

        result: int = await ctx.loop(0, body, 100)
        return result

    run = await settled(one_step(step))
    assert (run.output, iterations) == (10, [0, 1, 2, 3, 4])


@in_virtual_time
async def test_a_failed_iteration_is_where_the_retry_goes_on():
    """S150. Proves that no iteration before the one that failed runs again, and that its state is there."""
    executed: list[int] = []
    failed: list[int] = []

    async def step(ctx: Ctx) -> list[int]:
        async def body(log: list[int], i: int) -> Turn:
            if i == 2 and not failed:
                failed.append(i)
                raise ValueError("once")
            executed.append(i)
            log = [*log, i]
            return Done(log) if i == 3 else Next(log)

        result: list[int] = await ctx.loop([], body)
        return result

    run = await settled(one_step(step, attempts=2))
    assert (run.status, run.output, executed) == ("done", [0, 1, 2, 3], [0, 1, 2, 3])


@in_virtual_time
async def test_too_many_iterations_fail_the_run_at_once():
    """S152. Proves that `max_iterations` is an error that names it and is not retried, also after a crash at it."""
    calls: list[int] = []

    async def step(ctx: Ctx) -> None:
        def body(state: int, i: int) -> Turn:
            calls.append(i)
            return Next(state)

        await ctx.loop(0, body, max_iterations=3)

    run = await settled(one_step(step, attempts=5))
    assert run.error is not None
    assert (run.status, run.error.code, run.steps["step"].attempts) == ("failed", LoopLimitExceeded.code, 1)
    assert "max_iterations" in run.error.message
    assert calls == [0, 1, 2]


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "3"])
@in_virtual_time
async def test_a_limit_that_makes_no_sense_is_refused(limit):
    """S152. Proves that `max_iterations` is a whole number from 1."""

    async def step(ctx: Ctx) -> None:
        await ctx.loop(0, lambda state, _i: Next(state), max_iterations=limit)

    run = await settled(one_step(step))
    assert run.error is not None
    assert (run.error.code, run.steps["step"].attempts) == (ValidationError.code, 1)


@in_virtual_time
async def test_the_default_limit_is_a_thousand():
    """S152. Proves that a loop without a limit of its own ends after 1,000 iterations."""
    calls: Counter[str] = Counter()

    async def step(ctx: Ctx) -> None:
        def body(state: int, _i: int) -> Turn:
            calls["body"] += 1
            return Next(state)

        await ctx.loop(0, body)

    assert (await settled(one_step(step))).status == "failed"
    assert calls["body"] == 1000


@pytest.mark.parametrize("result", [None, 3, (1, True), Next])
@in_virtual_time
async def test_a_body_that_returns_something_else_is_told_so(result):
    """Proves that a body must say whether it goes on."""

    async def step(ctx: Ctx) -> None:
        await ctx.loop(0, lambda _state, _i: result)

    run = await settled(one_step(step))
    assert run.error is not None
    assert run.error.code == ValidationError.code
    assert "Next(state) or Done(value)" in run.error.message


@pytest.mark.parametrize(("initial", "options"), [(go, {}), (0, {"returns": type(go)}), (0, {"name": ""})])
@in_virtual_time
async def test_what_makes_no_sense_is_refused(initial, options):
    """Proves that a state or value that cannot be stored is refused before the body is called."""
    calls: list[int] = []

    async def step(ctx: Ctx) -> None:
        def body(_state: Any, i: int) -> Turn:
            calls.append(i)
            return Done(1)

        await ctx.loop(initial, body, **options)

    run = await settled(one_step(step))
    assert run.error is not None
    assert (run.error.code, calls) == (ValidationError.code, [])


# --- types -----------------------------------------------------------------------------------------------------


async def annotated(tally: Tally, i: int) -> Turn:
    assert isinstance(tally, Tally)
    return Next(Tally(tally.total + i, tally.seen | {i})) if i < 3 else Done(tally)


async def plain(tally: Any, i: int) -> Turn:
    assert isinstance(tally, dict)
    return Next(tally) if i < 3 else Done(tally)


async def untold(tally, i):
    assert isinstance(tally, Tally)
    return Next(Tally(tally.total + i, tally.seen | {i})) if i < 3 else Done(tally)


@pytest.mark.parametrize(
    ("initial", "body", "returns"),
    [
        (Tally(), annotated, Tally),
        ({"total": 0}, annotated, Tally),
        (Tally(), untold, Tally),
        (Tally(), plain, dict),
    ],
)
@in_virtual_time
async def test_state_and_value_come_back_in_their_types(initial, body, returns):
    """Proves that the state is rebuilt in the type of the body's parameter, else of the initial one, else plain."""
    kinds: list[type] = []

    async def step(ctx: Ctx) -> None:
        value = await ctx.loop(initial, body, returns=returns)
        kinds.append(type(value))
        if ctx.attempt == 1:
            raise ValueError("once more")

    assert (await settled(one_step(step, retry_delay=0))).status == "done"
    assert kinds == [returns, returns]


@pytest.mark.parametrize("initial", [None, {1, 2}, (1, "a"), b"x", 1.5, "text", True, {"a": [1]}])
@in_virtual_time
async def test_untold_states_keep_their_kind(initial):
    """Proves that without an annotation a set stays a set and a tuple a tuple, and None may become anything."""

    async def step(ctx: Ctx) -> str:
        def body(state, i):
            assert state == initial
            assert type(state) is type(initial)
            return Next(state) if i == 0 else Done(str(state))

        value: str = await ctx.loop(initial, body)
        return value

    assert (await settled(one_step(step))).status == "done"


@in_virtual_time
async def test_what_a_body_does_to_its_state_is_not_kept():
    """Proves that the state is what storage gives: changing the object that was passed on changes nothing."""

    async def step(ctx: Ctx) -> list[int]:
        held: list[int] = []

        async def body(state: list[int], i: int) -> Turn:
            if i == 2:
                return Done(state)
            held.append(i)
            return Next(held)

        value: list[int] = await ctx.loop([], body)
        held.append(99)
        return value

    assert (await settled(one_step(step))).output == [0, 1]


@in_virtual_time
async def test_a_state_that_is_too_large_fails_the_step():
    """Proves that states obey the step's `max_payload_bytes`."""

    async def step(ctx: Ctx) -> None:
        await ctx.loop("", lambda state, i: Next(state + "x" * 30) if i < 9 else Done(1))

    run = await settled(one_step(step, max_payload_bytes=100))
    assert run.error is not None
    assert run.error.code == "workflow.payload_too_large"


# --- crashes ---------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_crash_repeats_only_the_iteration_under_way():
    """S156. Proves that a worker that dies in iteration 3 costs a second call of that iteration alone."""
    store, calls = MemoryStore(), Counter[int]()
    held = trio.Event()

    async def step(ctx: Ctx) -> int:
        async def body(state: int, i: int) -> Turn:
            calls[i] += 1
            if i == 3 and calls[i] == 1:
                held.set()
                await trio.sleep_forever()
            return Next(state + i) if i < 5 else Done(state)

        value: int = await ctx.loop(0, body)
        return value

    workflow = one_step(step)
    async with open_engine(store, workflow) as engine:
        handle = await engine.start(workflow, None)
        await held.wait()
        await crash(engine)
    async with open_engine(store, workflow) as engine:
        assert await engine.run(handle.id).result() == 10
    assert calls == {0: 1, 1: 1, 2: 1, 3: 2, 4: 1, 5: 1}


@in_virtual_time
async def test_a_loop_that_is_done_is_not_repeated():
    """Proves that what fails after a loop calls no iteration again, the last one included."""
    calls: Counter[int] = Counter()

    async def step(ctx: Ctx) -> list[int]:
        async def body(state: int, i: int) -> Turn:
            calls[i] += 1
            return Next(state) if i < 2 else Done(7)

        value = await ctx.loop(0, body)
        if ctx.attempt < 3:
            raise ValueError("after it")
        return [value, await ctx.loop(0, body)]

    run = await settled(one_step(step, retry_delay=0))
    assert run.output == [7, 7]
    assert calls == {0: 2, 1: 2, 2: 2}, "once for each of the two loops"


@in_virtual_time
async def test_each_iteration_is_progress():
    """S155. Proves that a loop longer than any lease is not taken over, and that each index runs once.

    The worker keeps the lease whatever the handler does, so that it needs no heartbeat of an iteration.
    """
    store, calls = MemoryStore(exclusive=False), Counter[int]()

    async def step(ctx: Ctx) -> str:
        async def body(state: int, i: int) -> Turn:
            calls[i] += 1
            await trio.sleep(4)
            return Next(state) if i < 20 else Done("done")

        value: str = await ctx.loop(0, body)
        return value

    workflow = one_step(step)
    async with open_engine(store, workflow, lease=5) as one, open_engine(store, workflow, lease=5) as _other:
        handle = await one.start(workflow, None)
        run = await handle.wait()
    assert (run.output, run.recoveries, run.fence) == ("done", 0, 1)
    assert calls == dict.fromkeys(range(21), 1)


@in_virtual_time
async def test_a_cancel_stops_the_loop():
    """S153. Proves that a loop that is cancelled stops counting and leaves the run cancelled, not failed."""
    calls: list[int] = []

    async def step(ctx: Ctx) -> None:
        async def body(state: int, i: int) -> Turn:
            calls.append(i)
            await trio.sleep(0.03)
            return Next(state)

        await ctx.loop(0, body, 1000)

    workflow = one_step(step)
    async with open_engine("memory:", workflow) as engine:
        handle = await engine.start(workflow, None)
        await trio.sleep(0.1)
        await handle.cancel()
        count = len(calls)
        await trio.sleep(0.15)
        assert ((await handle.get()).status, len(calls)) == ("cancelled", count)
    assert 2 < count < 6


# --- suspensions -----------------------------------------------------------------------------------------------


@in_virtual_time
async def test_an_iteration_that_suspends_goes_on_where_it_was():
    """Proves that a body may sleep and wait, that state and index are those of before, and no record is left."""
    calls: Counter[int] = Counter()
    store = MemoryStore()

    async def step(ctx: Ctx) -> list[int]:
        async def body(log: list[int], i: int) -> Turn:
            calls[i] += 1
            await ctx.sleep(60)
            answer = await ctx.wait(f"round {i}", returns=int)
            log = [*log, answer]
            return Next(log) if i < 2 else Done(log)

        value: list[int] = await ctx.loop([], body)
        await ctx.sleep(60)
        return value

    workflow = one_step(step)
    async with open_engine(store, workflow) as engine:
        handle = await engine.start(workflow, None)
        for round in range(3):
            await trio.sleep(61)
            assert (await at_rest(handle)).status == "waiting"
            document = await store.load(handle.id)
            assert document is not None
            assert sorted(document.records) == [f"loop#0:{round}/human#0", f"loop#0:{round}/timer#0"]
            await handle.resume(round * 10)
        await idle()
        document = await store.load(handle.id)
        assert document is not None
        assert list(document.records) == ["timer#0"]
        assert await handle.result() == [0, 10, 20]
        assert (await handle.get()).steps["step"].attempts == 1
    assert calls == {0: 3, 1: 3, 2: 3}


@in_virtual_time
async def test_more_suspensions_than_one_line_may_have():
    """Proves that the cap on suspensions is of each iteration: a loop may suspend as often as it likes."""

    async def step(ctx: Ctx) -> str:
        async def body(state: int, i: int) -> Turn:
            await ctx.sleep(1)
            return Next(state) if i < 1100 else Done("done")

        value: str = await ctx.loop(0, body, 2000)
        return value

    assert (await settled(one_step(step))).output == "done"


@in_virtual_time
async def test_loops_and_scatters_within_each_other():
    """Proves that scatters in iterations and loops in keys keep their parts apart, with suspensions in both."""
    calls: Counter[str] = Counter()

    async def step(ctx: Ctx) -> Any:
        async def body(log: list[Any], i: int) -> Turn:
            async def inner(name: str) -> list[str]:
                async def turn(seen: list[str], j: int) -> Turn:
                    calls[f"{i}{name}{j}"] += 1
                    await ctx.sleep(1 + j)
                    return Next([*seen, f"{i}{name}{j}"]) if j < 1 else Done(seen)

                value: list[str] = await ctx.loop([], turn)
                return value

            log = [*log, await ctx.scatter({name: partial(inner, name) for name in "ab"})]
            return Next(log) if i < 1 else Done(log)

        return await ctx.loop([], body)

    run = await settled(one_step(step))
    assert run.output == [{"a": ["0a0"], "b": ["0b0"]}, {"a": ["1a0"], "b": ["1b0"]}]
    assert run.steps["step"].attempts == 1
    assert calls == {f"{i}{name}{j}": 2 for i in range(2) for name in "ab" for j in range(2)}


@in_virtual_time
async def test_goto_leaves_a_loop():
    """Proves that a body may leave the step, and that the loop begins anew when the step runs again."""
    calls: list[int] = []

    async def step(ctx: Ctx) -> str:
        async def body(state: int, i: int) -> Turn:
            calls.append(i)
            if i == 1 and len(calls) == 2:
                await ctx.goto("step")
            return Next(state) if i < 2 else Done("done")

        value: str = await ctx.loop(0, body)
        return value

    assert (await settled(one_step(step))).output == "done"
    assert calls == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("result", [Next(1), Done(1)])
@in_virtual_time
async def test_a_body_that_swallows_its_suspension_is_caught(result):
    """Proves that nothing is kept of an iteration that ends although it was to unwind."""
    store, turn = MemoryStore(), cast("Turn", result)

    async def step(ctx: Ctx) -> None:
        async def body(_state: int, _i: int) -> Turn:
            try:
                await ctx.sleep(5)
            except trio.Cancelled:
                return turn
            return Done(2)

        await ctx.loop(0, body)

    workflow = one_step(step)
    async with open_engine(store, workflow) as engine:
        handle = await engine.start(workflow, None)
        run = await handle.wait()
        document = await store.load(handle.id)
    assert run.error is not None
    assert run.error.code == SuspensionError.code
    assert document is not None
    assert document.pieces == {}


@pytest.mark.parametrize("verb", ["scatter", "loop", "sleep"])
@in_virtual_time
async def test_a_body_has_one_line(verb):
    """Proves that a body's own child tasks cannot suspend, nor begin parts of the step."""

    async def step(ctx: Ctx) -> None:
        calls: dict[str, Callable[[], Any]] = {
            "scatter": lambda: ctx.scatter({"a": lambda: 1}),
            "loop": lambda: ctx.loop(0, lambda _s, _i: Done(1)),
            "sleep": lambda: ctx.sleep(1),
        }

        async def body(_state: int, _i: int) -> Turn:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(calls[verb])
            return Done(1)

        await ctx.loop(0, body)

    run = await settled(one_step(step))
    assert run.error is not None
    assert run.error.code == SuspensionError.code
