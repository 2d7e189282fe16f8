"""Metrics, progress and timeline: what is known of a run's course (S443 to S445)."""

from typing import Any

import pytest
import trio

from streamline_trio import (
    MemoryStore,
    Run,
    RunMetrics,
    RunNotFound,
    StepContext,
    StepMetrics,
    Workflow,
    open_engine,
)
from streamline_trio._core.store import AppendRows
from streamline_trio.testing import crash
from tests.scenarios.worlds import at_rest, idle, in_virtual_time

Context = StepContext[Any, Any]


def seconds(step: StepMetrics) -> tuple[float, float, float]:
    """Duration of the last attempt, active time, waited time."""
    return step.duration, step.active, step.waited


@in_virtual_time
async def test_what_a_run_took():
    """S445: attempts, failures, the last attempt's duration, the active time of all tries and the waited time of
    each step; the run's queueing, total and waiting time; retries' delays count for neither."""
    flow: Workflow[Any, Any] = Workflow("flow")

    @flow.step
    async def quick(_ctx: Context) -> None:
        await trio.sleep(0.5)

    @flow.step(attempts=3, retry_delay=10, jitter=0, backoff="fixed")
    async def flaky(ctx: Context) -> None:
        await trio.sleep(ctx.attempt)
        if ctx.attempt < 3:
            raise OSError("not yet")

    @flow.step
    async def patient(ctx: Context) -> None:
        await trio.sleep(1)
        await ctx.sleep(100)
        await ctx.wait("go?")

    @flow.step(skip_if=lambda _: True)
    async def skipped(_ctx: Context) -> None: ...

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow, delay=7)
        await trio.sleep(7 + 0.5 + 1 + 10 + 2 + 10 + 3 + 1 + 100)
        await idle()
        await trio.sleep(49)
        await handle.resume("go")
        await handle.wait()
        metrics = await handle.metrics()
    steps = metrics.steps
    assert list(steps) == ["quick", "flaky", "patient", "skipped"]
    assert {step_id: (step.status, step.attempts, step.failures) for step_id, step in steps.items()} == {
        "quick": ("done", 1, 0),
        "flaky": ("done", 3, 2),
        "patient": ("done", 1, 0),
        "skipped": ("skipped", 0, 0),
    }
    assert seconds(steps["quick"]) == pytest.approx((0.5, 0.5, 0))
    assert seconds(steps["flaky"]) == pytest.approx((3, 6, 0))
    # Its handler begins anew after each of its two waits: three times the second before the first one.
    assert seconds(steps["patient"]) == pytest.approx((1 + 100 + 1 + 48 + 1, 3, 148))
    assert seconds(steps["skipped"]) == (0, 0, 0)
    assert metrics.queued == pytest.approx(7)
    assert metrics.waited == pytest.approx(148)
    assert metrics.total_duration == pytest.approx(0.5 + 6 + 20 + 151)
    assert (metrics.run_id, metrics.status, metrics.recoveries) == (handle.id, "done", 0)


@in_virtual_time
async def test_metrics_of_runs_that_are_under_way():
    """S445: a draft is queued, a waiting run waits and a running one runs, all up to now; what is missing is 0."""
    flow: Workflow[Any, Any] = Workflow("flow")

    @flow.step
    async def step(ctx: Context) -> None:
        await trio.sleep(2)
        if ctx.input == "wait":
            await ctx.wait("go?")
        await trio.sleep_forever()

    async with open_engine("memory:", flow) as engine:
        draft = await engine.start(flow, delay=3600)
        waiting, running = await engine.start(flow, "wait"), await engine.start(flow, "run")
        await trio.sleep(12)
        assert await draft.metrics() == RunMetrics(
            run_id=draft.id, status="draft", steps={"step": StepMetrics(step="step", status="pending")}, queued=12.0
        )
        of_waiting, of_running = await waiting.metrics(), await running.metrics()
        assert seconds(of_waiting.steps["step"]) == pytest.approx((12, 2, 10))
        assert (of_waiting.status, of_waiting.waited, of_waiting.total_duration) == ("waiting", 10, 12)
        assert seconds(of_running.steps["step"]) == pytest.approx((12, 12, 0))
        with pytest.raises(RunNotFound):
            await engine.run("nobody").metrics()
        for handle in (draft, waiting, running):
            await handle.cancel()
        await idle()
        cancelled = await draft.metrics()
        assert (cancelled.queued, cancelled.total_duration) == (12, 0)
        assert seconds((await waiting.metrics()).steps["step"]) == pytest.approx((12, 2, 10))


@in_virtual_time
async def test_tries_that_end_otherwise():
    """Proves that an attempt that a crash or a cancellation ended counts once, and a recovery is counted."""
    store, flow = MemoryStore(exclusive=False), Workflow[Any, Any]("flow")

    @flow.step
    async def step(ctx: Context) -> None:
        await trio.sleep(5 if ctx.attempt == 1 else 60)

    async with open_engine(store, flow, lease=2.0) as doomed:
        handle = await doomed.start(flow)
        await trio.sleep(1)
        await crash(doomed)
        async with open_engine(store, flow) as heir:
            mine = heir.run(handle.id)
            await trio.sleep(30)
            await mine.cancel()
            run = await mine.wait()
            metrics = await mine.metrics()
    step_metrics = metrics.steps["step"]
    assert (metrics.recoveries, step_metrics.attempts, step_metrics.failures) == (1, 2, 0)
    state = run.steps["step"]
    assert state.duration is not None
    assert step_metrics.duration == pytest.approx(state.duration)
    assert step_metrics.active > step_metrics.duration


@in_virtual_time
async def test_waits_that_overlap_count_once():
    """Proves that two waits of one step open at the same time are waited for once."""
    flow: Workflow[Any, Any] = Workflow("flow")

    async def tell(_token: str) -> None:
        await trio.sleep(3)

    @flow.step
    async def step(ctx: Context) -> None:
        await ctx.wait("a", on_token=tell, timeout=10)

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await trio.sleep(8)
        assert seconds((await handle.metrics()).steps["step"]) == pytest.approx((8, 0, 8))


@in_virtual_time
async def test_progress_is_stored_and_read_elsewhere():
    """S443: the last of two reports, with its time, percent and data, through another engine; the run's own percent
    counts finished steps."""
    store, flow = MemoryStore(exclusive=False), Workflow[Any, Any]("flow")

    @flow.step
    async def one(ctx: Context) -> None:
        ctx.progress(50, "begin")
        await trio.sleep(5)
        ctx.progress(100, "end", phase="last")

    @flow.step
    async def two(ctx: Context) -> None:
        await ctx.wait("go?")

    async with open_engine(store, flow) as engine:
        handle = await engine.start(flow)
        await trio.sleep(10)
    async with open_engine(store, worker=False) as client:
        progress = await client.run(handle.id).progress()
        run: Run = await client.get(handle.id)
    assert (progress.percent, progress.done, progress.total) == (50, 1, 2)
    assert (progress.step, progress.reported, progress.message, progress.data) == (
        "one",
        100,
        "end",
        {"phase": "last"},
    )
    assert progress.at == run.steps["one"].ended_at
    assert [step.status for step in run.steps.values()] == ["done", "waiting"]


class Rows(MemoryStore):
    """Counts what is written beside the runs."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[AppendRows] = []

    async def write(self, batch: Any) -> Any:
        self.reports += [write for write in batch if isinstance(write, AppendRows) and write.kind == "progress"]
        return await super().write(batch)


@pytest.mark.parametrize(("count", "pause", "most"), [(51, 0.005, 6), (200, 0.05, 12)])
@in_virtual_time
async def test_rapid_reports_are_coalesced(count, pause, most):
    """S444: of many reports in a short time about one a second is written; the last one lands."""
    store, flow = Rows(), Workflow[Any, Any]("flow")

    @flow.step
    async def step(ctx: Context) -> None:
        for frame in range(count):
            ctx.progress(100 * frame / (count - 1), f"frame {frame}")
            await trio.sleep(pause)

    async with open_engine(store, flow) as engine:
        handle = await engine.start(flow)
        await handle.wait()
        progress = await handle.progress()
    assert (progress.reported, progress.message) == (100, f"frame {count - 1}")
    assert 1 <= len(store.reports) <= most


@pytest.mark.parametrize("message", ["x" * 5000, "ü" * 5000, "🙂" * 5000, "a" + "€" * 4000])
@in_virtual_time
async def test_a_long_message_is_cut(message):
    """S444: a report takes about 1 KB: its message is cut, between characters; what is told besides stays."""
    store, flow = Rows(), Workflow[Any, Any]("flow")
    heard: list[Any] = []

    @flow.step
    async def step(ctx: Context) -> None:
        ctx.progress(5, message, phase="first")

    async with open_engine(store, flow) as engine:
        engine.on("step.progress", heard.append)
        handle = await engine.start(flow)
        await handle.wait()
        progress = await handle.progress()
        await idle()
    assert progress.message is not None
    assert progress.message.endswith("…")
    assert message.startswith(progress.message[:-1])
    assert 900 < len(progress.message.encode()) <= 1024
    assert (progress.reported, progress.data) == (5, {"phase": "first"})
    assert max(len(row) for write in store.reports for row in write.rows) <= 1024
    assert heard[0].message == message, "who listens gets it whole"


@in_virtual_time
async def test_data_that_is_too_large_is_left_out():
    """Proves that a report with too much data is stored without it, and with what cannot be stored as text."""
    store, flow = Rows(), Workflow[Any, Any]("flow")

    @flow.step
    async def large(ctx: Context) -> None:
        ctx.progress(1, "large", rows=list(range(5000)))

    @flow.step
    async def odd(ctx: Context) -> None:
        await ctx.wait("look")
        ctx.progress(2, "odd", thing=object)

    async with open_engine(store, flow) as engine:
        handle = await engine.start(flow)
        await at_rest(handle)
        progress = await handle.progress()
        assert (progress.message, progress.data) == ("large", {})
        await handle.resume(1)
        await handle.wait()
        progress = await handle.progress()
        assert (progress.message, progress.data) == ("odd", {"thing": "<class 'object'>"})


@in_virtual_time
async def test_the_timeline_is_bounded():
    """Proves that a run that went round for ever tells its beginning and the last 999 entries."""
    flow: Workflow[Any, Any] = Workflow("flow")
    for number in range(60):

        async def step(ctx: Context) -> None:
            for _ in range(25):
                await ctx.sleep(1)

        flow.add_step(f"s{number}", step)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await handle.wait()
        entries = await handle.timeline()
    assert len(entries) == 1000
    assert (entries[0].kind, entries[-1].kind) == ("created", "settled")
