"""Timeouts of steps and runs: scenarios S065 to S072."""

import functools
import logging
import threading
from typing import Any

import pytest
import trio
import trio.testing

from streamline_trio import (
    MemoryStore,
    RunFailed,
    StepContext,
    StepTimeout,
    Workflow,
    open_engine,
)
from tests.scenarios.worlds import at_rest, between, in_virtual_time, settled


@pytest.mark.parametrize("timeout", [0.1, 0.2, 1, 3600])
@in_virtual_time
async def test_a_step_over_its_timeout_fails_at_the_limit(timeout):
    """S065: a handler that takes too long is stopped at its limit, and the run fails with a timeout's message."""
    workflow = Workflow("slow")

    @workflow.step(timeout=timeout, attempts=1)
    async def slow(ctx: StepContext) -> None:
        await trio.sleep(timeout * 100)

    began = trio.current_time()
    run = await settled(workflow)
    assert trio.current_time() - began == pytest.approx(timeout)
    assert (run.status, run.steps["slow"].status, run.steps["slow"].duration) == ("failed", "failed", timeout)
    assert run.error is not None
    assert "timeout" in run.error.message
    assert (run.error.code, run.error.type, run.error.step) == ("workflow.step.timeout", "StepTimeout", "slow")


@pytest.mark.parametrize(("limit", "takes"), [(2, 0.01), (5, 0.5), (0.1, 0.099)])
@in_virtual_time
async def test_finishing_within_the_limit_is_a_success(limit, takes):
    """S066: a handler that ends in time is not touched, and its output is kept."""
    workflow = Workflow("quick")

    @workflow.step(timeout=limit)
    async def quick(ctx: StepContext) -> str:
        await trio.sleep(takes)
        return "in time"

    run = await settled(workflow)
    assert (run.status, run.output, run.steps["quick"].duration) == ("done", "in time", takes)


@in_virtual_time
async def test_each_step_has_its_own_limit():
    """S067: a step's timeout wins over the default, is on its definition, and stops only that step."""
    workflow = Workflow("limits")

    async def work(ctx: StepContext) -> None:
        await trio.sleep(10)

    long = workflow.add_step("long", work, timeout=60_000)
    short = workflow.add_step("short", work, timeout=0.5, attempts=1)
    assert (long.options.timeout, short.options.timeout) == (60_000, 0.5)
    run = await settled(workflow)
    assert (run.steps["long"].status, run.steps["short"].status) == ("done", "failed")


@in_virtual_time
async def test_the_handler_is_told_by_cancellation():
    """S068: at the limit the handler is cancelled as trio cancels: its `finally` runs, while the run is still
    its own, so that it may save what it has."""
    workflow, told = Workflow("told", state=lambda _: {"saved": 0}), []

    @workflow.step(timeout=0.1, attempts=1)
    async def work(ctx: StepContext) -> None:
        try:
            await trio.sleep(0.5)
        except trio.Cancelled:
            told.append(trio.current_time())
            with trio.CancelScope(shield=True):
                await ctx.set(saved=1)
            raise

    began = trio.current_time()
    run = await settled(workflow)
    assert [at - began for at in told] == pytest.approx([0.1])
    assert trio.current_time() - began == pytest.approx(0.1)
    assert (run.status, run.state) == ("failed", {"saved": 1})
    assert run.error is not None
    assert run.error.code == "workflow.step.timeout"


@in_virtual_time
async def test_a_cooperative_handler_stops_early():
    """S069: of 50 turns of 20 ms only those within the 80 ms are made."""
    workflow, turns = Workflow("turns"), []

    @workflow.step(timeout=0.08, attempts=1)
    async def work(ctx: StepContext) -> None:
        for turn in range(50):
            await trio.sleep(0.02)
            turns.append(turn)

    assert (await settled(workflow)).status == "failed"
    assert 3 <= len(turns) <= 4


@pytest.mark.parametrize("swallows", [True, False])
@in_virtual_time
async def test_what_a_handler_returns_after_its_limit_counts_for_nothing(swallows):
    """S070, S071: a handler that shields itself or swallows its cancellation cannot turn a timeout into a success:
    what it returns late is dropped. (A trio task cannot be abandoned, so the step ends when it has unwound.)"""
    workflow: Workflow[Any, Any] = Workflow("late")

    @workflow.step(timeout=0.1, attempts=1)
    async def work(ctx: StepContext) -> str:
        if swallows:
            try:
                await trio.sleep(1)
            except trio.Cancelled:
                return "too late"
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
        return "too late"

    async with open_engine("memory:", workflow) as engine, engine.events("step.*", "workflow.*") as events:
        handle = await engine.start(workflow)
        with pytest.raises(RunFailed, match="timeout"):
            await handle.result()
        run = await handle.get()
    told = [event.name async for event in events]
    assert (run.status, run.output, run.steps["work"].output) == ("failed", None, None)
    assert run.error is not None
    assert run.error.code == "workflow.step.timeout"
    assert told == ["workflow.started", "step.started", "step.failed", "workflow.failed"]


@in_virtual_time
async def test_timeouts_are_retried():
    """S072: a timed-out attempt is a failed attempt like others: the second one may succeed."""
    workflow, calls = Workflow("second-chance"), []

    @workflow.step(timeout=0.05, attempts=2)
    async def work(ctx: StepContext) -> int:
        calls.append(ctx.attempt)
        if ctx.attempt == 1:
            await trio.sleep(60)
        return ctx.attempt

    run = await settled(workflow)
    assert (run.status, run.output, calls, run.steps["work"].error) == ("done", 2, [1, 2], None)


@pytest.mark.parametrize(("retry_on", "calls_expected"), [(StepTimeout, 2), (OSError, 1)])
@in_virtual_time
async def test_retry_on_applies_to_timeouts(retry_on, calls_expected):
    """S072: a timeout is retried when `retry_on` allows a `StepTimeout`, and only then."""
    workflow, calls = Workflow("picky"), []

    @workflow.step(timeout=0.05, attempts=2, retry_on=retry_on)
    async def work(ctx: StepContext) -> None:
        calls.append(1)
        await trio.sleep(60)

    assert (await settled(workflow)).status == "failed"
    assert len(calls) == calls_expected


@in_virtual_time
async def test_each_attempt_and_each_entry_has_the_whole_limit():
    """Proves that parked time does not count: a step may sleep for a day under a timeout of a second."""
    workflow = Workflow("parked")

    @workflow.step(timeout=1)
    async def work(ctx: StepContext) -> str:
        await trio.sleep(0.75)
        await ctx.sleep(86_400)
        await trio.sleep(0.2)
        return "woken"

    run = await settled(workflow)
    assert (run.status, run.output, run.steps["work"].attempts) == ("done", "woken", 1)


@in_virtual_time
async def test_a_timeout_of_the_handler_s_own_is_its_own_affair():
    """Proves that a handler's own cancel scope, and its `TooSlowError`, are not taken for the step's timeout."""
    workflow = Workflow("own")

    @workflow.step(timeout=10)
    async def first(ctx: StepContext) -> str:
        with trio.move_on_after(0.1):
            await trio.sleep(60)
        return "moved on"

    @workflow.step(timeout=10, attempts=1)
    async def second(ctx: StepContext) -> None:
        with trio.fail_after(0.1):
            await trio.sleep(60)

    run = await settled(workflow)
    assert run.steps["first"].output == "moved on"
    assert run.error is not None
    assert (run.error.code, run.error.type) == ("workflow.step.failed", "TooSlowError")


# --- sync handlers: real threads, while one of which runs time passes only when the test says so ---------------


class Stuck:
    """A sync handler that ignores its timeout until it is let go."""

    def __init__(self) -> None:
        self.entered, self.let_go, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.after: list[Any] = []
        self.calls = 0

    def handler(self, ctx: StepContext[Any, Any]) -> str:
        self.calls += 1
        if self.calls > 1:
            return "in time"
        self.entered.set()
        self.let_go.wait(30)
        try:
            self.after = [self._try(act, ctx) for act in LATE_ACTS]
        finally:
            self.ended.set()
        return "too late"

    async def overrun(self) -> None:
        """Let the limit pass while the handler is in its thread."""
        await trio.to_thread.run_sync(self.entered.wait)
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        clock.jump(1)

    @staticmethod
    def _try(act: Any, ctx: StepContext[Any, Any]) -> Any:
        try:
            return act(ctx)
        except BaseException as error:  # noqa: BLE001 - what it raises is what is looked at
            return type(error).__name__


LATE_ACTS: tuple[Any, ...] = (
    lambda ctx: trio.from_thread.run(functools.partial(ctx.set, by="the abandoned call")),
    lambda ctx: trio.from_thread.run(ctx.checkpoint, "the abandoned call"),
    lambda ctx: trio.from_thread.run(ctx.once, "key", lambda: "the abandoned call"),
    lambda ctx: ctx.log("the abandoned call"),
    lambda ctx: ctx.progress(99, "the abandoned call"),
    lambda ctx: ctx.stream("the abandoned call"),
)


def stuck_workflow(stuck: Stuck, **options: Any) -> Workflow[Any, Any]:
    workflow: Workflow[Any, Any] = Workflow("stuck", state=lambda _: {"by": "nobody"})
    workflow.add_step("work", stuck.handler, timeout=0.5, retry_delay=0, **options)

    @workflow.step
    async def after(ctx: StepContext[Any, Any]) -> None:
        await ctx.wait("the end")

    return workflow


@in_virtual_time
async def test_a_thread_that_outlives_its_timeout_is_abandoned(caplog):
    """S070: the run fails at the limit, not when the thread ends; the thread is counted and warned about."""
    stuck = Stuck()
    workflow = stuck_workflow(stuck, attempts=1)
    try:
        with caplog.at_level(logging.WARNING, "streamline_trio"):
            async with open_engine("memory:", workflow) as engine:
                handle = await engine.start(workflow)
                await stuck.overrun()
                run = await handle.wait()
                assert not stuck.ended.is_set()
                assert (run.status, run.error and run.error.code) == ("failed", "workflow.step.timeout")
                assert (await engine.stats()).abandoned_threads == 1
        assert any(run.id in text and "work" in text and "thread" in text for text in caplog.messages)
    finally:
        stuck.let_go.set()
    await trio.to_thread.run_sync(stuck.ended.wait)


@in_virtual_time
async def test_an_abandoned_call_changes_nothing_any_more():
    """S071: after its timeout a thread's writes are refused, what it tells is ignored, and its result is dropped:
    the retry's stands, and nothing is told twice."""
    stuck = Stuck()
    workflow = stuck_workflow(stuck, attempts=2)
    async with open_engine("memory:", workflow) as engine, engine.events() as events:
        handle = await engine.start(workflow)
        await stuck.overrun()
        async for event in events:
            if event.name == "workflow.waiting":
                break
        stuck.let_go.set()
        await trio.to_thread.run_sync(stuck.ended.wait)
        run = await at_rest(handle)
        assert await handle.logs() == []
    assert stuck.after == ["LeaseLost"] * 3 + [None] * 3
    assert (run.status, run.steps["work"].status, run.steps["work"].output) == ("waiting", "done", "in time")
    assert (run.state, run.steps["work"].checkpoints) == ({"by": "nobody"}, {})
    later = [event.name async for event in events]
    assert "step.completed" not in later
    assert "step.progress" not in later
    assert "step.stream" not in later


@in_virtual_time
async def test_an_abandoned_thread_may_outlive_its_engine():
    """S070: a thread that goes on after its engine was left finds every door closed, and harms nobody."""
    stuck = Stuck()
    workflow = stuck_workflow(stuck, attempts=1)
    async with open_engine("memory:", workflow) as engine:
        handle = await engine.start(workflow)
        await stuck.overrun()
        assert (await handle.wait()).status == "failed"
    stuck.let_go.set()
    await trio.to_thread.run_sync(stuck.ended.wait)
    await trio.testing.wait_all_tasks_blocked()
    assert stuck.after == ["LeaseLost"] * 3 + [None] * 3


@in_virtual_time
async def test_a_context_ends_with_its_call():
    """S071: what a handler leaves behind in the background cannot write to the run any more."""
    kept: list[StepContext[Any, Any]] = []
    workflow: Workflow[Any, Any] = Workflow("leaky", state=lambda _: {})

    @workflow.step
    async def leak(ctx: StepContext[Any, Any]) -> None:
        kept.append(ctx)

    @workflow.step
    async def wait(ctx: StepContext[Any, Any]) -> None:
        for act in (functools.partial(kept[0].set, x=1), functools.partial(kept[0].checkpoint, 1)):
            try:
                await act()
            except Exception as error:  # noqa: BLE001 - what it raises is the output
                ctx.log(type(error).__name__)
        kept[0].log("from beyond")

    async with open_engine(MemoryStore(), workflow) as engine:
        handle = await engine.start(workflow)
        run = await handle.wait()
        assert [line.message for line in await handle.logs()] == ["LeaseLost", "LeaseLost"]
    assert (run.status, run.state) == ("done", {})


# --- the run's own timeout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["busy", "parked", "backing off", "draft"])
@in_virtual_time
async def test_the_workflow_timeout_bounds_the_whole_run(kind):
    """Proves that a run fails with `RunTimeout` when its time is up, whatever it does then; durably."""
    workflow: Workflow[Any, Any] = Workflow("bounded", timeout=60)

    @workflow.step(retry_delay=600, max_retry_delay=600)
    async def work(ctx: StepContext) -> None:
        if kind == "busy":
            await trio.sleep(3600)
        elif kind == "parked":
            await ctx.wait("somebody")
        raise RuntimeError

    async with open_engine("memory:", workflow, worker=kind != "draft") as engine:
        handle = await engine.start(workflow)
        if kind == "draft":
            await trio.sleep(60)
            assert (await handle.get()).status == "draft"
            run = await handle.drive()
        else:
            run = await handle.wait()
    assert run.status == "failed"
    assert between(run.created_at, run.ended_at) == 60
    assert run.error is not None
    assert (run.error.code, run.error.type) == ("workflow.timeout", "RunTimeout")
    assert "timeout of 60 s" in run.error.message
    assert run.steps["work"].status == ("failed" if kind in {"busy", "parked"} else "pending")
