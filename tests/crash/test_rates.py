"""Throttled and debounced starts with every store call failing, every write a death, every lease lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import trio

from streamline_trio import Debounce, Engine, MemoryStore, StepContext, StoreUnavailable, Throttle, Workflow
from streamline_trio.testing import CrashAt, DeliverTwice, FailCall, LoseLeaseAt, sweep
from tests.scenarios.test_throttle import begun, most_in_a_window

Context = StepContext[Any, Any]


class Site(NamedTuple):
    """What gives fresh stores, and the seconds that windows are made of: short where workers poll."""

    fresh: Callable[[], MemoryStore]
    second: float


@pytest.fixture(params=[True, False], ids=["exclusive", "shared"])
def site(request) -> Site:
    return Site(lambda: MemoryStore(exclusive=request.param), 1.0 if request.param else 0.01)


def one_step(**options: Any) -> Workflow[Any, Any]:
    flow: Workflow[Any, Any] = Workflow("flow", **options)

    @flow.step
    async def step(ctx: Context) -> Any:
        return ctx.input

    return flow


async def start_surely(engine: Engine, flow: Workflow[Any, Any], value: Any, **options: Any) -> str:
    """Start until it is known to be started, as callers do."""
    while True:
        try:
            return (await engine.start(flow, value, **options)).id
        except StoreUnavailable:
            await trio.sleep(0.01)


def test_a_throttled_start_survives_everything(site):
    """Proves that wherever a start, a slot or a begin is cut off, all runs begin once, at most two in any window.

    What is lost on the way may cost the window a begin, but never adds one.
    """
    flow = one_step(throttle=Throttle(2, 100 * site.second))

    async def scenario(engine: Engine) -> list[Any]:
        ids = [await start_surely(engine, flow, number, run_id=f"r{number}") for number in range(4)]
        runs = [await engine.run(run_id).wait() for run_id in ids]
        assert [run.status for run in runs] == ["done"] * 4
        assert most_in_a_window(begun(runs), 100 * site.second) <= 2
        began = begun(runs)
        assert began[-1] - began[0] < 400 * site.second + 12
        return [run.output for run in runs]

    played = sweep(scenario, flow, mishaps=(FailCall, CrashAt, LoseLeaseAt), store=site.fresh)
    assert len(played) > 20


def test_a_retried_run_survives_everything(site):
    """Proves that the second time through the throttle is as safe as the first."""
    flow: Workflow[Any, Any] = Workflow("flow", throttle=Throttle(1, 100 * site.second))

    @flow.step(attempts=1)
    async def step(ctx: Context) -> Any:
        return ctx.input

    async def scenario(engine: Engine) -> list[Any]:
        run_id = await start_surely(engine, flow, "rewound", run_id="r")
        first = await engine.run(run_id).wait()
        while True:
            try:
                await engine.run(run_id).rewind("step")
            except StoreUnavailable:
                await trio.sleep(0.01)
            else:
                break
        again = await engine.run(run_id).wait()
        started = again.steps["step"].started_at
        assert started is not None
        assert first.started_at is not None
        return [again.output, (started - first.started_at).total("seconds") >= 100 * site.second]

    assert sweep(scenario, flow, mishaps=(FailCall, CrashAt, LoseLeaseAt), store=site.fresh)


def test_a_debounced_start_survives_everything(site):
    """Proves that wherever starts, bumps or the claim are cut off, one run comes of them, with the last input."""
    flow = one_step(debounce=Debounce(50 * site.second))

    async def scenario(engine: Engine) -> list[Any]:
        ids = list[str]()
        for number in range(3):
            ids.append(await start_surely(engine, flow, number))
            await trio.sleep(10 * site.second)
        run = await engine.run(ids[-1]).wait()
        assert await engine.count() == 1
        return [run.status, run.output, len(set(ids))]

    mishaps = (FailCall, CrashAt, LoseLeaseAt)
    assert len(sweep(scenario, flow, mishaps=mishaps, store=site.fresh)) > 10


def test_a_start_that_is_delivered_twice_is_one_run(site):
    """Proves that a repeated start changes nothing but the due time, at once or later."""
    flow = one_step(debounce=Debounce(50 * site.second))

    async def scenario(engine: Engine) -> list[Any]:
        handle = await engine.start(flow, 1)
        run = await handle.wait()
        return [run.output, await engine.count()]

    assert sweep(scenario, flow, mishaps=[DeliverTwice], store=site.fresh)
