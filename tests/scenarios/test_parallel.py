"""The parallel helper: scenarios S116 to S122."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from streamline_trio import MemoryStore, Settled, ValidationError, Workflow, open_engine, parallel
from tests.scenarios.worlds import in_virtual_time


def after(seconds: float, value: Any) -> Callable[[], Awaitable[Any]]:
    """Gives the value, or raises it if it is an error, after some time."""

    async def call() -> Any:
        await trio.sleep(seconds)
        if isinstance(value, Exception):
            raise value
        return value

    return call


@in_virtual_time
async def test_s116_results_come_in_the_order_of_the_calls():
    began = trio.current_time()
    assert await parallel([after(0.1, "slow"), after(0, "fast"), after(0.05, "medium")]) == [
        "slow",
        "fast",
        "medium",
    ]
    assert trio.current_time() - began == pytest.approx(0.1)
    assert await parallel([]) == []


@in_virtual_time
async def test_s117_no_more_at_a_time_than_allowed():
    running = most = ran = 0

    async def call() -> None:
        nonlocal running, most, ran
        running += 1
        most, ran = max(most, running), ran + 1
        await trio.sleep(0.02)
        running -= 1

    await parallel([call] * 10, concurrency=3)
    assert (most, ran) == (3, 10)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"mode": "race", "concurrency": 2}, "mode race starts all at once and takes no concurrency"),
        ({"mode": "any", "concurrency": 2}, "mode any starts all at once and takes no concurrency"),
        ({"mode": "first"}, "mode is one of all, race, any, settled, not 'first'"),
        ({"concurrency": 0}, "concurrency is a whole number from 1, not 0"),
        ({"fns": [1]}, "call 0 is a function without arguments, not 1"),
        ({"fns": [], "mode": "any"}, "mode any needs at least one function"),
    ],
)
async def test_s118_what_makes_no_sense_is_refused(arguments, told):
    with pytest.raises(ValidationError, match=told):
        await parallel(**{"fns": [after(0, 1)], **arguments})


@in_virtual_time
async def test_s119_settled_tells_of_each():
    error = ValueError("no")
    assert await parallel([after(0.1, 1), after(0, error), after(0, 3)], "settled") == [
        Settled(True, value=1),
        Settled(False, error=error),
        Settled(True, value=3),
    ]


@in_virtual_time
async def test_s120_a_call_that_takes_too_long_fails():
    with pytest.raises(TimeoutError, match=r"call 1 of 2 timed out after 0\.05 s"):
        await parallel([after(0.01, 1), after(5, 2)], timeout=0.05)
    assert trio.current_time() < 5


@in_virtual_time
async def test_s121_inside_a_step():
    workflow = Workflow("gathers")

    @workflow.step
    async def gather(ctx):
        return await parallel([after(0, url) for url in "abc"])

    @workflow.step
    async def race(ctx):
        return await parallel([after(delay, url) for delay, url in ((0, "a"), (0.05, "b"), (0.1, "c"))], "race")

    async with open_engine(MemoryStore(), workflow) as engine:
        run = await engine.start(workflow, None)
        assert await run.result() == "a"
        assert await run.output("gather") == ["a", "b", "c"]


@in_virtual_time
async def test_the_first_to_end_wins_a_race_also_with_an_error():
    with pytest.raises(ValueError, match="fast"):
        await parallel([after(1, "slow"), after(0.1, ValueError("fast"))], "race")


@in_virtual_time
async def test_s122_any_gives_the_first_success_or_all_errors():
    assert await parallel([after(0, ValueError("fast")), after(0.1, "slow"), after(9, "never")], "any") == "slow"
    assert trio.current_time() < 9
    errors = [ValueError("1"), ValueError("2")]
    with pytest.raises(ExceptionGroup, match="none of 2 parallel calls succeeded") as failed:
        await parallel([after(0.1, errors[0]), after(0, errors[1])], "any")
    assert list(failed.value.exceptions) == errors


@in_virtual_time
async def test_an_error_cancels_the_others_and_waits_for_them():
    left: list[str] = []

    async def lingers() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            left.append("late")

    with pytest.raises(ValueError, match="no"):
        await parallel([lingers, after(0, ValueError("no"))])
    assert left == ["late"]


@in_virtual_time
async def test_a_cancellation_from_outside_reaches_all_and_passes():
    ended: list[int] = []

    def call(place: int) -> Callable[[], Awaitable[None]]:
        async def hold() -> None:
            try:
                await trio.sleep_forever()
            finally:
                ended.append(place)

        return hold

    with trio.move_on_after(1) as scope:
        await parallel([call(0), call(1)], "settled")
    assert scope.cancelled_caught
    assert sorted(ended) == [0, 1]
