"""Throttles and debounces that several engines share: on memory, SQLite and MongoDB, each in real time."""

from __future__ import annotations

from functools import partial
from typing import Any

import trio

from streamline_trio import Debounce, Engine, RunHandle, StepContext, Throttle, Workflow
from streamline_trio._core.throttling import KIND
from streamline_trio.testing import crash
from tests.scenarios.test_several_workers import (
    Store,
    all_at_once,
    opened,
    store,
    until,
)
from tests.scenarios.test_throttle import begun, most_in_a_window

__all__ = ["store"]

Context = StepContext[Any, Any]


async def test_all_engines_share_one_window(store: Store):
    """S291: Proves that 24 starts through three engines begin at most three in a window, each once, none lost."""
    window = 0.4
    flow: Workflow[Any, Any] = Workflow("flow", throttle=Throttle(3, window))
    calls = list[int]()

    @flow.step
    async def step(ctx: Context) -> None:
        calls.append(ctx.input)

    async with opened(store, flow, count=3) as engines:
        starts = [partial(engines[number % 3].start, flow, number) for number in range(24)]
        handles: list[RunHandle] = await all_at_once(*starts)
        runs = [await engines[0].run(handle.id).wait() for handle in handles]
        assert most_in_a_window(begun(runs), window) <= 3
        assert sorted(calls) == list(range(24))


async def test_workers_that_die_leave_no_hole_and_make_no_burst(store: Store):
    """Proves that when the worker that had begun runs is gone, its heirs go on under the same window."""
    window = 0.5
    flow: Workflow[Any, Any] = Workflow("flow", throttle=Throttle(2, window))

    @flow.step
    async def step(_ctx: Context) -> None:
        await trio.sleep(0.05)

    async with opened(store, flow, count=3) as engines:
        starts = [partial(engines[number % 2].start, flow, number) for number in range(12)]
        handles: list[RunHandle] = await all_at_once(*starts)
        await trio.sleep(window)
        await crash(engines[0])
        runs = [await engines[2].run(handle.id).wait() for handle in handles]
        assert {run.status for run in runs} == {"done"}
        assert most_in_a_window(begun(runs), window) <= 2
        side = await engines[2]._machinery.services.store.sides(KIND)
        assert len(side) == 1


async def test_first_starts_through_all_engines_are_one_run(store: Store):
    """S305: Proves that twenty starts at once through three engines make one draft, with one of their inputs."""
    flow: Workflow[Any, Any] = Workflow("flow", debounce=Debounce(2.0))
    calls = list[int]()

    @flow.step
    async def step(ctx: Context) -> None:
        calls.append(ctx.input)

    async with opened(store, flow, count=3) as engines:
        starts = [partial(engines[number % 3].start, flow, number) for number in range(20)]
        handles: list[RunHandle] = await all_at_once(*starts)
        assert len({handle.id for handle in handles}) == 1
        run = await engines[0].run(handles[0].id).wait()
        assert calls == [run.input]
        assert await engines[0].count() == 1


async def test_no_acknowledged_start_is_lost_at_the_end_of_a_window(store: Store):
    """S304: Proves that starts that race with the claim are in the run that was pending, or in a later one.

    Each key is started by one task after the other, so that the last input of each must run.
    """
    flow: Workflow[Any, Any] = Workflow("flow", debounce=Debounce(0.05, key=lambda value: value["key"]))
    ran = list[tuple[str, int]]()

    @flow.step
    async def step(ctx: Context) -> None:
        ran.append((ctx.input["key"], ctx.input["number"]))

    last = dict[str, tuple[str, int]]()

    async def keeps_starting(engines: list[Engine], key: str) -> None:
        for number in range(12):
            handle = await engines[number % 2].start(flow, {"key": key, "number": number})
            last[key] = (handle.id, number)
            await trio.sleep(0.02 + 0.01 * (number % 5))

    async with opened(store, flow, count=2) as engines:
        async with trio.open_nursery() as nursery:
            for key in "abc":
                nursery.start_soon(keeps_starting, engines, key)

        async def all_ran() -> bool:
            return await engines[0].count() == await engines[0].count(status="done")

        await until(all_ran)
        for key, (run_id, number) in last.items():
            run = await engines[1].get(run_id)
            assert run.input == {"key": key, "number": number}
        assert set(last) == set("abc")
        assert len(ran) == len(set(ran)) == await engines[0].count()
        for key in "abc":
            numbers = [number for its, number in ran if its == key]
            assert numbers == sorted(numbers)
            assert numbers[-1] == 11
