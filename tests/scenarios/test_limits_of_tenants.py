"""Limits, throttles, debounces and schedules belong to a tenant; and how limits go with each other."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from streamline_trio import (
    Concurrency,
    ConcurrencyLimitReached,
    Debounce,
    DefinitionError,
    Recurrence,
    StepContext,
    Throttle,
    Workflow,
    open_engine,
)
from tests.scenarios.worlds import idle, in_virtual_time

Context = StepContext[Any, Any]


def holding(seconds: float = 100.0, **options: Any) -> tuple[Workflow[Any, Any], list[tuple[float, Any]]]:
    """A workflow whose only step takes so long, and when its runs began, with their inputs."""
    begun: list[tuple[float, Any]] = []
    workflow: Workflow[Any, Any] = Workflow("flow", **options)

    @workflow.step
    async def hold(ctx: Context) -> Any:
        begun.append((trio.current_time(), ctx.input))
        await trio.sleep(seconds)
        return ctx.input

    return workflow, begun


@in_virtual_time
async def test_a_limit_counts_the_runs_of_one_tenant():
    """S408, S412: in a tenant's scope the second start queues; another tenant has slots of its own."""
    flow, begun = holding(concurrency=Concurrency(1, key=lambda _value: "k"))
    async with open_engine("memory:", flow, tenancy="required") as engine:
        a, b = engine.scoped("a"), engine.scoped("b")
        first, second = await a.start(flow, 1), await a.start(flow, 2)
        other = await b.start(flow, 3)
        await idle()
        assert [value for _, value in begun] == [1, 3]
        assert [(await run.get()).status for run in (first, second, other)] == ["running", "draft", "running"]
        assert (await second.get()).slot is not None
        assert sorted(use.tenant or "" for use in (await engine.stats()).buckets) == ["a", "b"]
        assert [await run.result() for run in (first, other, second)] == [1, 3, 2]


@in_virtual_time
async def test_a_refusal_names_no_other_tenant():
    """S412: a limit that refuses does so by the tenant's own runs, whatever others do under the same key."""
    flow, _ = holding(concurrency=Concurrency(1, when_full="reject"))
    async with open_engine("memory:", flow) as engine:
        for scope in (engine.scoped("a"), engine.scoped("b")):
            await scope.start(flow, 1)
            with pytest.raises(ConcurrencyLimitReached) as refused:
                await scope.start(flow, 2)
            assert refused.value.meta["holding"] == 1


@in_virtual_time
async def test_throttles_and_debounces_are_a_tenants():
    """S294, S302: two tenants throttle and debounce apart, and the runs keep their tenant."""
    slow, begun = holding(1.0, throttle=Throttle(1, 60))
    quiet: Workflow[Any, Any] = Workflow("quiet", debounce=Debounce(10))
    quiet.add_step("only", lambda ctx: ctx.input)
    async with open_engine("memory:", slow, quiet) as engine:
        a, b = engine.scoped("a"), engine.scoped("b")
        for scope in (a, b):
            await scope.start(slow, scope is a)
        await idle()
        assert len(begun) == 2
        held = await (await a.start(slow, None)).get()
        assert (held.status, held.held_by, held.tenant) == ("draft", "throttle", "a")
        pending = [await scope.start(quiet, number) for scope in (a, b) for number in (1, 2)]
        assert [run.id for run in pending[:2]] == [pending[0].id] * 2
        assert pending[2].id == pending[3].id != pending[0].id
        assert [await run.result() for run in pending] == [2, 2, 2, 2]
        assert [(await run.get()).tenant for run in pending[1:3]] == ["a", "b"]


@in_virtual_time
async def test_a_schedule_passes_its_priority_and_tenant_on():
    """S320: each run of a schedule has its priority, and the tenant whose schedule it is."""
    flow, _ = holding(1.0)
    async with open_engine("memory:", flow, tenancy="required") as engine:
        scope = engine.scoped("a")
        await scope.schedule(flow, 1, every=Recurrence.every(60, count=3), id="s", priority=7)
        await trio.sleep(200)
        runs = (await scope.find()).items
        assert [(run.priority, run.tenant) for run in runs] == [(7, "a")] * 3
        assert (await scope.schedules.get("s")).last_run in {run.id for run in runs}
        assert not (await engine.scoped("b").schedules.find()).items


@in_virtual_time
async def test_a_limited_and_throttled_run_takes_a_slot_before_it_asks_its_throttle():
    """Proves that limit and throttle hold together: who has no slot uses up no begin."""
    flow, begun = holding(5.0, concurrency=Concurrency(1), throttle=Throttle(2, 60))
    async with open_engine("memory:", flow) as engine:
        runs = [await engine.start(flow, number) for number in range(4)]
        assert [await run.result() for run in runs] == [0, 1, 2, 3]
        instants = [at - begun[0][0] for at, _ in begun]
        assert [value for _, value in begun] == [0, 1, 2, 3]
        assert instants == pytest.approx([0, 5, 60, 65], abs=0.5)


@in_virtual_time
async def test_a_debounced_run_asks_for_the_slot_of_its_last_input():
    """Proves that a debounced draft waits in the line of the input it ends up with, and only once it fires."""
    key = "user"
    flow, begun = holding(
        50.0,
        concurrency=Concurrency(1, key=lambda value: value[key]),
        debounce=Debounce(10, key=lambda _value: "k"),
    )
    async with open_engine("memory:", flow) as engine:
        first = await engine.start(flow, {key: "u1"})
        await first.wait()
        blocker = await engine.start(flow, {key: "u2"})
        await trio.sleep(11)
        bumped = [await engine.start(flow, {key: user}) for user in ("u1", "u2")]
        assert bumped[0].id == bumped[1].id != blocker.id
        assert not (await engine.stats()).slots.get("flow:u1")
        assert [await run.result() for run in (blocker, bumped[1])] == [{key: "u2"}] * 2
        instants = [at - begun[0][0] for at, _ in begun]
        assert instants == pytest.approx([0, 60, 110], abs=0.5), "it waited for the slot of u2"


def test_gates_without_what_they_need():
    """S552: a limit without its number is no limit; a key is not needed, since there is one bucket then."""
    bad: list[dict[str, Any]] = [
        {"concurrency": Concurrency(0)},
        {"throttle": Throttle(1, 0)},
        {"debounce": Debounce(0)},
    ]
    for options in bad:
        with pytest.raises(DefinitionError, match=next(iter(options))):
            Workflow("flow", **options)
    Workflow("flow", concurrency=Concurrency(1, when_full="reject"), throttle=Throttle(1, 1))
