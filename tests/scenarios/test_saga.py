"""Sagas: a run that fails undoes what it did, newest first, before it settles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from streamline_trio import (
    CompensationState,
    EngineError,
    InvalidState,
    MemoryStore,
    NonRetriable,
    RunCancelled,
    RunCompensation,
    RunFailed,
    RunHandle,
    StepContext,
    WaitWithdrawn,
    Workflow,
    open_engine,
)
from streamline_trio.testing import crash, run
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, settled, statuses

Context = StepContext[Any, Any]


class Saga:
    """A workflow whose steps note what they do and what is undone of them; the last one fails."""

    def __init__(self, *ids: str, fails: bool = True, **options: Any) -> None:
        self.calls: list[str] = []
        self.workflow: Workflow[Any, Any] = Workflow("saga", **options)
        self.during: dict[str, Callable[[Context], Any]] = {}
        for step_id in ids:
            self.add(step_id)
        if fails:
            self.workflow.add_step("fail", self._fail, attempts=1)

    def add(self, step_id: str, **options: Any) -> None:
        async def do(ctx: Context) -> str:
            self.calls.append(ctx.step_id)
            return f"did {ctx.step_id}"

        async def undo(ctx: Context) -> None:
            during = self.during.get(ctx.step_id)
            if during is not None:
                await during(ctx)
            self.calls.append(f"-{ctx.step_id}")

        step = self.workflow.add_step(step_id, do)
        settings: dict[str, Any] = {"attempts": 1, **options}
        step.compensate(**settings)(undo)

    async def _fail(self, _ctx: Context) -> None:
        raise ValueError("it cannot be done")


async def boom(_ctx: Context) -> None:
    raise ValueError("it cannot be undone")


# --- what is undone ----------------------------------------------------------------------------------------


@in_virtual_time
async def test_no_compensation_on_success() -> None:
    """S206: Proves that nothing is undone of a run that is done."""
    saga = Saga("a", "b", fails=False)
    ended = await settled(saga.workflow)
    assert (ended.status, saga.calls, ended.compensation) == ("done", ["a", "b"], None)


@in_virtual_time
async def test_newest_first() -> None:
    """Proves that what is done is undone in the opposite order, and that the run settles as compensated."""
    saga = Saga("a", "b", "c")
    ended = await settled(saga.workflow)
    assert saga.calls == ["a", "b", "c", "-c", "-b", "-a"]
    assert ended.status == "compensated"
    assert statuses(ended) == {"a": "done", "b": "done", "c": "done", "fail": "failed"}
    assert ended.error is not None
    assert (ended.error.message, ended.error.step) == ("it cannot be done", "fail")
    assert ended.compensation is not None
    assert list(ended.compensation.steps.items()) == [("c", "done"), ("b", "done"), ("a", "done")]
    undone = ended.steps["a"].compensation
    assert isinstance(undone, CompensationState)
    assert (undone.status, undone.attempts, undone.error) == ("done", 1, None)
    assert undone.started_at is not None
    assert undone.ended_at is not None


@in_virtual_time
async def test_only_done_steps_with_a_handler() -> None:
    """S208: Proves that skipped, failed, pending and handlerless steps are not undone."""
    calls: list[str] = []
    workflow: Workflow[Any, Any] = Workflow("saga")

    async def do(_ctx: Context) -> None:
        """Nothing."""

    async def undo(ctx: Context) -> None:
        calls.append(ctx.step_id)

    async def fail(_ctx: Context) -> None:
        raise ValueError("boom")

    workflow.add_step("handled", do).compensate(undo)
    workflow.add_step("unhandled", do)
    workflow.add_step("skipped", do, skip_if=lambda _state: True).compensate(undo)
    workflow.add_step("failed", fail, attempts=1).compensate(undo)
    workflow.add_step("never", do).compensate(undo)
    ended = await settled(workflow)
    assert (ended.status, calls) == ("compensated", ["handled"])
    assert [step.id for step in ended.steps.values() if step.compensation] == ["handled"]


@in_virtual_time
async def test_a_run_that_did_nothing_to_undo_has_failed() -> None:
    """Proves that a saga that fails in its first step settles as failed, and can be retried as any other."""
    saga = Saga("a")
    workflow: Workflow[Any, Any] = Workflow("early")
    calls: list[int] = []

    @workflow.step(attempts=1)
    async def fragile(ctx: Context) -> None:
        calls.append(ctx.attempt)
        if len(calls) == 1:
            raise ValueError("once")

    fragile.compensate(boom)
    async with open_engine("memory:", workflow, saga.workflow) as engine:
        handle = await engine.start(workflow, None)
        assert (await handle.wait()).status == "failed"
        await handle.retry()
        assert (await handle.wait()).status == "done"


@pytest.mark.parametrize(("when", "undone"), [("finished", ["-a"]), ("started", ["-half", "-a"])])
def test_a_step_that_failed_half_way(when: Any, undone: list[str]) -> None:
    """Proves that `when="started"` undoes the failed step too, before all others, without an output."""

    async def scenario() -> None:
        saga = Saga("a", fails=False)

        @saga.workflow.step(attempts=2, retry_delay=1)
        async def half(_ctx: Context) -> str:
            raise ValueError("half-way")

        @half.compensate(when=when)
        async def undo(ctx: Context) -> None:
            assert ctx.output(half, default="nothing") == "nothing"
            saga.calls.append("-half")

        ended = await settled(saga.workflow)
        assert (ended.status, saga.calls) == ("compensated", ["a", *undone])

    run(scenario)


@in_virtual_time
async def test_a_step_that_never_began_is_not_undone_as_started() -> None:
    """Proves that `when="started"` asks for a call of the handler: the deadline came before it."""
    saga = Saga(timeout=10, fails=False)
    saga.add("a")

    @saga.workflow.step
    async def nap(ctx: Context) -> None:
        await trio.sleep(11)

    @saga.workflow.step
    async def late(_ctx: Context) -> None:
        """Never called."""

    late.compensate(when="started")(boom)
    ended = await settled(saga.workflow)
    assert (ended.status, saga.calls) == ("compensated", ["a", "-a"])
    assert ended.error is not None
    assert ended.error.code == "workflow.timeout"


@in_virtual_time
async def test_completion_order_counts_not_definition_order() -> None:
    """Proves that after going back a step that ran again is undone as the newer one, once."""
    saga = Saga("a", "b", fails=False)

    @saga.workflow.step(attempts=1)
    async def back(ctx: Context) -> None:
        if saga.calls == ["a", "b"]:
            await ctx.goto("a")
        raise ValueError("boom")

    await settled(saga.workflow)
    assert saga.calls == ["a", "b", "a", "b", "-b", "-a"]


@in_virtual_time
async def test_goto_resets_the_compensation_with_its_step() -> None:
    """Proves that a step reset by goto has a new key for its compensation."""
    keys: list[str] = []
    saga = Saga("a", fails=False)

    async def note(ctx: Context) -> None:
        keys.append(ctx.idempotency_key("compensate"))

    saga.during["a"] = note

    @saga.workflow.step(attempts=1)
    async def back(ctx: Context) -> None:
        if len(saga.calls) == 1:
            await ctx.goto("a")
        raise ValueError("boom")

    ended = await settled(saga.workflow)
    assert keys == [f"{ended.id}:a~1:compensate"]


@in_virtual_time
async def test_a_withdrawn_wait_is_undone_as_a_step_that_is_done() -> None:
    """S218: Proves that a step which answers a withdrawal is done, and is undone in its place."""
    saga = Saga("reserve", fails=False)

    @saga.workflow.step
    async def gate(ctx: Context) -> str:
        try:
            return str(await ctx.wait("may it?"))
        except WaitWithdrawn as error:
            return f"withdrawn: {error.meta['reason']}"

    @gate.compensate
    async def undo(_ctx: Context) -> None:
        saga.calls.append("-gate")

    saga.workflow.add_step("charge", boom, attempts=1)
    async with open_engine("memory:", saga.workflow) as engine:
        handle = await engine.start(saga.workflow, None)
        await idle()
        await handle.withdraw("closed today")
        ended = await handle.wait()
    assert (ended.status, saga.calls) == ("compensated", ["reserve", "-gate", "-reserve"])
    assert ended.steps["gate"].output == "withdrawn: closed today"


# --- how -----------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_the_context_of_a_compensation() -> None:
    """Proves that a compensation sees input, state and outputs, and can keep, remember and tell."""
    told: list[Any] = []
    workflow: Workflow[Any, Any] = Workflow("saga", input=int, state=lambda n: {"n": n})

    @workflow.step
    async def a(ctx: Context) -> int:
        await ctx.checkpoint("half", name="x")
        return int(ctx.input) * 2

    @a.compensate(attempts=2, retry_delay=1, jitter=0)
    def undo(ctx: Context) -> None:
        """Sync: it runs in a thread."""
        told.extend([ctx.step_id, ctx.attempt, ctx.input, ctx.state, ctx.output(a), ctx.checkpoint_value(str, "x")])
        trio.from_thread.run(remember, ctx)
        ctx.log("undoing", cents=1)
        ctx.progress(50, "half undone")
        if ctx.attempt == 1:
            raise ValueError("again")

    async def remember(ctx: Context) -> None:
        await ctx.set(n=9)
        told.append(await ctx.once("key", lambda: len(told)))
        await ctx.checkpoint("undone", name="x")
        await ctx.heartbeat()

    workflow.add_step("fail", boom, attempts=1)
    async with open_engine("memory:", workflow) as engine:
        handle = await engine.start(workflow, 4)
        ended = await handle.wait()
        logs = await handle.logs()
        progress = await handle.progress()
    first, second = told[:7], told[7:]
    assert first == ["a", 1, 4, {"n": 4}, 8, "half", 6]
    assert second == ["a", 2, 4, {"n": 9}, 8, "undone", 6]
    assert (ended.status, ended.state) == ("compensated", {"n": 9})
    assert [(line.attempt, line.message) for line in logs] == [(1, "undoing"), (2, "undoing")]
    assert progress.message == "half undone"


@in_virtual_time
async def test_a_stable_key_over_retries() -> None:
    """S216: Proves that each attempt at a refund has the key `run:step:compensate`, and is counted."""
    keys: list[str] = []
    times: list[float] = []
    saga = Saga(fails=False)
    saga.add("charge", attempts=3, retry_delay=10, jitter=0)

    async def refund(ctx: Context) -> None:
        keys.append(ctx.idempotency_key("compensate"))
        times.append(trio.current_time())
        if ctx.attempt < 3:
            raise ConnectionError("the bank does not answer")

    saga.during["charge"] = refund
    saga.workflow.add_step("fail", boom, attempts=1)
    ended = await settled(saga.workflow)
    assert ended.status == "compensated"
    assert keys == [f"{ended.id}:charge:compensate"] * 3
    assert times == [0, 10, 30]
    undone = ended.steps["charge"].compensation
    assert undone is not None
    assert (undone.attempts, undone.status) == (3, "done")


@in_virtual_time
async def test_the_run_parks_between_attempts() -> None:
    """Proves that the delay is a due time in the store, and that no worker holds the run meanwhile."""
    saga = Saga()
    saga.workflow = Workflow("saga")
    saga.add("a", attempts=2, retry_delay=60, jitter=0)
    saga.workflow.add_step("fail", boom, attempts=1)
    saga.during["a"] = boom
    async with open_engine("memory:", saga.workflow) as engine:
        handle = await engine.start(saga.workflow, None)
        parked = await at_rest(handle)
        assert (parked.status, parked.lease) == ("compensating", None)
        undo = parked.steps["a"].compensation
        assert undo is not None
        assert (undo.status, undo.attempts, undo.retry_at) == ("pending", 1, parked.due_at)
        assert undo.error is not None
        assert undo.error.message == "it cannot be undone"
        assert (await engine.stats()).by_status["compensating"] == 1
        assert [each.id for each in (await engine.find(status="compensating")).items] == [handle.id]
        assert (await handle.wait()).status == "compensation_failed"
        assert trio.current_time() == 60


@in_virtual_time
async def test_one_failing_compensation_does_not_stop_the_rest() -> None:
    """S209: Proves that the others are undone, that `engine.error` tells which failed, and that the run says so."""
    saga = Saga("step1", "step2")
    saga.during["step2"] = boom
    async with open_engine("memory:", saga.workflow) as engine, engine.events("engine.error") as errors:
        handle = await engine.start(saga.workflow, None)
        ended = await handle.wait()
        error = await anext(errors)
        with pytest.raises(RunFailed, match="it cannot be done") as caught:
            await handle.result()
    assert caught.value.run.status == ended.status == "compensation_failed"
    assert saga.calls == ["step1", "step2", "-step1"]
    assert isinstance(error, EngineError)
    assert (error.context, error.run_id) == ("compensation-step2", ended.id)
    assert "it cannot be undone" in error.error
    assert ended.compensation is not None
    assert ended.compensation.steps == {"step2": "failed", "step1": "done"}
    failed = ended.steps["step2"].compensation
    assert failed is not None
    assert failed.error is not None
    assert (failed.error.message, failed.error.step) == ("it cannot be undone", "step2")
    assert ended.error is not None
    assert ended.error.message == "it cannot be done"


@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize("verb", ["sleep", "wait", "wait_for", "goto"])
def test_compensations_may_not_suspend(verb: str, swallows: bool) -> None:
    """S215: Proves that a suspending verb fails the compensation at once and for good, also if it is caught."""

    async def scenario() -> None:
        saga = Saga(fails=False)
        saga.add("a", attempts=5)
        saga.workflow.add_step("fail", boom, attempts=1)

        async def helper(ctx: Context) -> None:
            asked: Any = {"sleep": 60, "wait": "?", "wait_for": "signal", "goto": "a"}[verb]
            await getattr(ctx, verb)(asked)

        async def undo(ctx: Context) -> None:
            try:
                await helper(ctx)
            except Exception:
                if not swallows:
                    raise

        saga.during["a"] = undo
        ended = await settled(saga.workflow)
        assert trio.current_time() == 0
        assert ended.status == "compensation_failed"
        failed = ended.steps["a"].compensation
        assert failed is not None
        assert failed.error is not None
        assert (failed.status, failed.attempts, failed.error.code) == ("failed", 1, "workflow.suspension")
        assert "non-suspending" in failed.error.message
        assert "step a" in failed.error.message

    run(scenario)


@in_virtual_time
async def test_non_retriable_and_timeout() -> None:
    """Proves that `NonRetriable` ends the attempts, and that a timeout counts as a failure of its attempt."""
    saga = Saga(fails=False)
    saga.add("slow", attempts=2, retry_delay=1, jitter=0, timeout=5)
    saga.add("never", attempts=9)
    saga.workflow.add_step("fail", boom, attempts=1)

    async def give_up(_ctx: Context) -> None:
        raise NonRetriable("the money is gone")

    async def hang(ctx: Context) -> None:
        await trio.sleep(60 if ctx.attempt == 1 else 1)

    saga.during |= {"never": give_up, "slow": hang}
    ended = await settled(saga.workflow)
    slow, never = ended.steps["slow"].compensation, ended.steps["never"].compensation
    assert slow is not None
    assert never is not None
    assert (slow.status, slow.attempts, never.status, never.attempts) == ("done", 2, "failed", 1)
    assert never.error is not None
    assert never.error.message == "the money is gone"
    assert trio.current_time() == 5 + 1 + 1


@in_virtual_time
async def test_what_a_compensation_timed_out_with() -> None:
    """Proves that the error names the step, its compensation and the limit."""
    saga = Saga(fails=False)
    saga.add("slow", timeout=5)
    saga.workflow.add_step("fail", boom, attempts=1)

    async def hang(_ctx: Context) -> None:
        await trio.sleep_forever()

    saga.during["slow"] = hang
    failed = (await settled(saga.workflow)).steps["slow"].compensation
    assert failed is not None
    assert failed.error is not None
    assert failed.error.code == "workflow.step.timeout"
    assert "the compensation of step slow exceeded its timeout of 5 s" in failed.error.message


@in_virtual_time
async def test_events_of_a_rollback() -> None:
    """S222: Proves the events and their order, and that those of the failure say that it is not the end."""
    saga = Saga("a", "b")
    async with open_engine("memory:", saga.workflow) as engine, engine.events("*") as events:
        handle = await engine.start(saga.workflow, None)
        await handle.wait()
        told: list[Any] = []
        async for event in events:
            told.append(event)
            if event.name == "workflow.compensated":
                break
    names = [event.name for event in told]
    assert names[names.index("step.failed") :] == [
        "step.failed",
        "workflow.failed",
        "workflow.compensating",
        "step.compensated",
        "step.compensated",
        "workflow.compensated",
    ]
    failed, compensating, first, second, _ = told[-5:]
    assert failed.compensating
    assert compensating.steps == ("b", "a")
    assert [(first.step, first.attempt), (second.step, second.attempt)] == [("b", 1), ("a", 1)]


@in_virtual_time
async def test_callers_wait_until_it_is_over() -> None:
    """S223: Proves that nobody is told of the end before the rollback is over, and that the run is compensating."""
    saga = Saga("a")

    async def slowly(ctx: Context) -> None:
        ctx.stream("undoing")
        await trio.sleep(0.5)

    saga.during["a"] = slowly
    frames: list[Any] = []

    async def listen(handle: RunHandle) -> None:
        frames.extend([frame async for frame in handle.stream()])
        assert trio.current_time() == 0.5

    async with open_engine("memory:", saga.workflow) as engine:
        handle = await engine.start(saga.workflow, None, idempotency_key="k")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, handle)
            with pytest.raises(TimeoutError, match="compensating"):
                await handle.wait(timeout=0.4)
            stored = await handle.get()
            assert (stored.status, stored.ended_at) == ("compensating", None)
            assert await engine.start(saga.workflow, None, idempotency_key="k") == handle
            assert (await handle.drive()).status == "compensated"
        assert trio.current_time() == 0.5
        assert (await handle.wait()).status == "compensated"
        assert await engine.start(saga.workflow, None, idempotency_key="k") != handle
    assert frames == ["undoing"]


@in_virtual_time
async def test_the_timeline_tells_the_rollback() -> None:
    """Proves that the timeline shows attempts at compensations and their ends, after the steps."""
    saga = Saga(fails=False)
    saga.add("a", attempts=2, retry_delay=5, jitter=0)
    saga.add("b")
    saga.workflow.add_step("fail", boom, attempts=1)

    async def once(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise ValueError("not yet")

    saga.during |= {"a": once, "b": boom}
    async with open_engine("memory:", saga.workflow) as engine:
        handle = await engine.start(saga.workflow, None)
        parked = [(entry.kind, entry.step, entry.attempt) for entry in await _timeline(handle)]
        await handle.wait()
        entries = [(entry.kind, entry.step, entry.attempt) for entry in await handle.timeline()]
    assert ("retrying", "a", 2) in parked
    assert entries[-5:] == [
        ("failed", "b", 1),
        ("compensation_failed", "b", 1),
        ("failed", "a", 1),
        ("compensated", "a", 2),
        ("settled", None, None),
    ]


async def _timeline(handle: RunHandle) -> Any:
    await idle()
    return await handle.timeline()


# --- steering ------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_cancel_during_a_rollback() -> None:
    """S221: Proves that the handler unwinds, the rest is not undone, and what is done stays done."""
    saga = Saga("a", "b", "c")
    unwound: list[float] = []

    async def hang(ctx: Context) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
            unwound.append(trio.current_time())

    saga.during["b"] = hang
    async with open_engine("memory:", saga.workflow) as engine:
        handle = await engine.start(saga.workflow, None)
        await idle()
        await handle.cancel("enough")
        await handle.cancel("once more")
        ended = await handle.wait()
        assert (ended.status, ended.cancel_reason, unwound) == ("cancelled", "enough", [2.0])
        assert saga.calls == ["a", "b", "c", "-c"]
        assert ended.compensation is not None
        assert ended.compensation.steps == {"c": "done", "b": "pending", "a": "pending"}
        with pytest.raises(RunCancelled, match="enough"):
            await handle.result()
        with pytest.raises(InvalidState):
            await handle.retry()


@in_virtual_time
async def test_cancel_between_two_attempts() -> None:
    """Proves that a run which waits for the next attempt at a compensation is cancelled at once."""
    saga = Saga(fails=False)
    saga.add("a", attempts=3, retry_delay=60)
    saga.workflow.add_step("fail", boom, attempts=1)
    saga.during["a"] = boom
    async with open_engine("memory:", saga.workflow) as engine:
        handle = await engine.start(saga.workflow, None)
        await idle()
        await handle.cancel()
        ended = await handle.get()
        assert ended.status == "cancelled"
        undo = ended.steps["a"].compensation
        assert undo is not None
        assert (undo.status, undo.attempts, undo.retry_at) == ("pending", 1, None)
        assert trio.current_time() == 0


@in_virtual_time
async def test_a_compensation_that_returns_in_spite_of_the_cancellation_is_done() -> None:
    """Proves that a result which comes after the cancellation is not lost, and that nothing more begins."""
    saga = Saga("a", "b")

    async def stubborn(_ctx: Context) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(1)

    saga.during["b"] = stubborn
    async with open_engine("memory:", saga.workflow) as engine:
        handle = await engine.start(saga.workflow, None)
        await idle()
        await handle.cancel()
        ended = await handle.wait()
    assert (ended.status, saga.calls) == ("cancelled", ["a", "b", "-b"])
    assert ended.compensation is not None
    assert ended.compensation.steps == {"b": "done", "a": "pending"}


@in_virtual_time
async def test_a_paused_run_begins_no_compensation() -> None:
    """Proves that a pause lets the present compensation end, holds the next one, and is ended by unpausing."""
    saga = Saga("a", "b")

    async def slowly(_ctx: Context) -> None:
        await trio.sleep(1)

    saga.during["b"] = slowly
    async with open_engine("memory:", saga.workflow) as engine:
        handle = await engine.start(saga.workflow, None)
        await idle()
        await handle.pause("look at it")
        await trio.sleep(100)
        held = await handle.get()
        assert (held.status, held.paused, held.lease, held.due_at) == ("compensating", True, None, None)
        assert saga.calls == ["a", "b", "-b"]
        await handle.unpause()
        assert (await handle.wait()).status == "compensated"


@in_virtual_time
async def test_a_run_that_fails_while_it_is_paused_is_undone_later() -> None:
    """Proves that a failure under a pause turns the run back, and that the undoing waits until it is over."""
    saga = Saga("a", fails=False)

    @saga.workflow.step(attempts=1)
    async def fail(_ctx: Context) -> None:
        await trio.sleep(1)
        raise ValueError("boom")

    async with open_engine("memory:", saga.workflow) as engine:
        handle = await engine.start(saga.workflow, None)
        await idle()
        await handle.pause("why")
        await trio.sleep(100)
        held = await handle.get()
        assert (held.status, held.paused, saga.calls) == ("compensating", True, ["a"])
        await handle.unpause()
        assert (await handle.wait()).status == "compensated"


@in_virtual_time
async def test_a_drain_hands_the_compensation_back_uncounted() -> None:
    """Proves that a worker that leaves gives the run back, and that the next one calls the same attempt again."""
    store = MemoryStore()
    attempts: list[int] = []
    saga = Saga("a", "b")

    async def hang_at_first(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        if len(attempts) == 1:
            await trio.sleep_forever()

    saga.during["b"] = hang_at_first
    async with open_engine(store, saga.workflow, drain_timeout=1) as engine:
        handle = await engine.start(saga.workflow, None)
        await idle()
    async with open_engine(store, saga.workflow) as engine:
        ended = await engine.run(handle.id).wait()
    undo = ended.steps["b"].compensation
    assert undo is not None
    assert (attempts, undo.attempts, ended.recoveries) == ([1, 1], 1, 0)
    assert (ended.status, saga.calls) == ("compensated", ["a", "b", "-b", "-a"])


@in_virtual_time
async def test_a_drain_lets_the_present_compensation_end() -> None:
    """Proves that a leaving worker waits for the compensation that runs and begins no other."""
    store = MemoryStore()
    saga = Saga("a", "b")

    async def slowly(_ctx: Context) -> None:
        await trio.sleep(1)

    saga.during["b"] = slowly
    async with open_engine(store, saga.workflow) as engine:
        handle = await engine.start(saga.workflow, None)
        await idle()
    assert saga.calls == ["a", "b", "-b"]
    async with open_engine(store, saga.workflow) as engine:
        assert (await engine.run(handle.id).wait()).status == "compensated"
    assert saga.calls == ["a", "b", "-b", "-a"]


@in_virtual_time
async def test_retry_of_what_could_not_be_undone() -> None:
    """Proves that retry tries only what failed, in its order, with fresh attempts; repeated it is a no-op."""
    saga = Saga("a", "b", "c")
    broken = {"a", "c"}

    async def as_long_as_broken(ctx: Context) -> None:
        if ctx.step_id in broken:
            raise ValueError("still broken")
        assert ctx.attempt == 1
        await trio.sleep(1)

    saga.during = dict.fromkeys("ac", as_long_as_broken)
    async with open_engine("memory:", saga.workflow) as engine, engine.events("workflow.*") as events:
        handle = await engine.start(saga.workflow, None)
        assert (await handle.wait()).status == "compensation_failed"
        assert saga.calls == ["a", "b", "c", "-b"]
        broken.clear()
        await handle.retry()
        await idle()
        revision = (await handle.get()).revision
        await handle.retry()
        assert (await handle.get()).revision == revision
        ended = await handle.wait()
        with pytest.raises(InvalidState) as caught:
            await handle.retry()
        names: list[str] = []
        async for event in events:
            names.append(event.name)
            if event.name == "workflow.compensated":
                break
    assert caught.value.allowed == ("failed", "compensation_failed")
    assert (ended.status, saga.calls[4:]) == ("compensated", ["-c", "-a"])
    assert names[-4:] == [
        "workflow.compensation_failed",
        "workflow.retry",
        "workflow.compensating",
        "workflow.compensated",
    ]


@in_virtual_time
async def test_what_a_saga_refuses() -> None:
    """Proves that compensating runs can be neither retried nor rewound, and compensated ones not rewound."""
    saga = Saga("a")

    async def slowly(_ctx: Context) -> None:
        await trio.sleep(1)

    saga.during["a"] = slowly
    async with open_engine("memory:", saga.workflow) as engine:
        handle = await engine.start(saga.workflow, None)
        await idle()
        for verb in (handle.retry(), handle.rewind("a"), handle.resume(1)):
            with pytest.raises(InvalidState) as caught:
                await verb
            assert caught.value.meta["status"] == "compensating"
        await engine.emit("late", 1, run=handle)
        await handle.wait()
        with pytest.raises(InvalidState):
            await handle.rewind("a")


# --- cancelling what is to be undone -------------------------------------------------------------------------


def cancelled_saga(*ids: str) -> Saga:
    saga = Saga(*ids, fails=False, compensate_on_cancel=True)

    @saga.workflow.step
    async def hold(ctx: Context) -> None:
        if ctx.input == "park":
            await ctx.wait("?")
        try:
            await trio.sleep_forever()
        finally:
            saga.calls.append("unwound")

    return saga


@pytest.mark.parametrize("how", ["park", "run"])
def test_a_cancelled_run_is_undone_if_the_workflow_says_so(how: str) -> None:
    """Proves that the cancellation is told, the undoing follows the unwinding, and the result is `RunCancelled`."""

    async def scenario() -> None:
        saga = cancelled_saga("a", "b")
        async with open_engine("memory:", saga.workflow) as engine, engine.events("workflow.*") as events:
            handle = await engine.start(saga.workflow, how)
            await idle()
            await handle.cancel("not wanted")
            ended = await handle.wait()
            with pytest.raises(RunCancelled, match="not wanted") as caught:
                await handle.result()
            told: list[Any] = []
            async for event in events:
                told.append(event)
                if event.name == "workflow.compensated":
                    break
        unwound = [] if how == "park" else ["unwound"]
        assert saga.calls == ["a", "b", *unwound, "-b", "-a"]
        assert (ended.status, ended.cancel_reason, ended.cancel_requested) == ("compensated", "not wanted", False)
        assert ended.error is None
        assert caught.value.run.status == "compensated"
        assert [event.name for event in told[-3:]] == [
            "workflow.cancelled",
            "workflow.compensating",
            "workflow.compensated",
        ]
        assert told[-3].compensating

    run(scenario)


@in_virtual_time
async def test_without_the_option_a_cancelled_run_keeps_what_it_did() -> None:
    """Proves that a cancellation undoes nothing by default."""
    saga = Saga("a", fails=False)

    @saga.workflow.step
    async def hold(ctx: Context) -> None:
        await ctx.wait("?")

    async with open_engine("memory:", saga.workflow) as engine:
        handle = await engine.start(saga.workflow, None)
        await idle()
        await handle.cancel()
        assert ((await handle.wait()).status, saga.calls) == ("cancelled", ["a"])


@in_virtual_time
async def test_a_draft_that_is_cancelled_has_nothing_to_undo() -> None:
    """Proves that a run which did nothing is cancelled, whatever the workflow says."""
    saga = cancelled_saga("a")
    async with open_engine("memory:", saga.workflow) as engine:
        handle = await engine.start(saga.workflow, None, delay=60)
        await handle.cancel()
        assert (await handle.get()).status == "cancelled"


@in_virtual_time
async def test_cancelling_a_fork_that_has_not_begun() -> None:
    """Proves that a fork can be cancelled before it begins, and that it does not undo what another run did."""
    saga, store = Saga("a", fails=False, compensate_on_cancel=True), MemoryStore()

    @saga.workflow.step
    async def ask(ctx: Context) -> None:
        await ctx.wait("go?")

    async with open_engine(store, saga.workflow) as engine:
        handle = await engine.start(saga.workflow)
        await idle()
    async with open_engine(store, worker=False) as client:
        fork = await client.run(handle.id).fork("ask")
        await fork.cancel("a mistake")
        assert (await fork.get()).status == "cancelled"
    assert saga.calls == ["a"]


@in_virtual_time
async def test_a_fork_undoes_only_what_it_did_itself() -> None:
    """Proves that one charge is not refunded twice: steps that a fork has copied are the first run's to undo."""
    saga = Saga("a", "b", fails=False, compensate_on_cancel=True)

    @saga.workflow.step
    async def ask(ctx: Context) -> None:
        await ctx.wait("go?")

    async with open_engine("memory:", saga.workflow) as engine:
        handle = await engine.start(saga.workflow)
        await idle()
        fork = await handle.fork("b")
        await idle()
        await fork.cancel("the fork")
        assert (await fork.wait()).status == "compensated"
        assert saga.calls == ["a", "b", "b", "-b"]
        await handle.cancel("the first")
        assert (await handle.wait()).status == "compensated"
    assert saga.calls == ["a", "b", "b", "-b", "-b", "-a"]


@in_virtual_time
async def test_what_the_code_can_no_longer_undo_is_not_told_to_be_undone() -> None:
    """Proves that a run whose definition lost a step that had been done, and could be undone, ends as a failure."""
    store = MemoryStore()
    saga = cancelled_saga("a", "b")
    async with open_engine(store, saga.workflow) as engine:
        handle = await engine.start(saga.workflow, "park")
        await idle()
    shorter = cancelled_saga("a")
    async with open_engine(store, shorter.workflow) as engine:
        await engine.run(handle.id).cancel("not wanted")
        ended = await engine.run(handle.id).wait()
    assert ended.status == "compensation_failed"
    assert ended.compensation == RunCompensation(steps={"b": "failed", "a": "done"})
    state = ended.steps["b"].compensation
    assert state is not None
    assert state.error is not None
    assert state.error.code == "workflow.version_mismatch"
    assert shorter.calls == ["-a"]


@in_virtual_time
async def test_a_result_that_comes_after_the_cancellation_is_kept_and_undone() -> None:
    """Proves that a step which ends in spite of the cancellation is done, and is the first to be undone."""
    saga = Saga("a", fails=False, compensate_on_cancel=True)

    @saga.workflow.step
    async def stubborn(_ctx: Context) -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
        return "paid"

    @stubborn.compensate
    async def undo(ctx: Context) -> None:
        saga.calls.append(f"-{ctx.output(stubborn)}")

    async with open_engine("memory:", saga.workflow) as engine:
        handle = await engine.start(saga.workflow, None)
        await idle()
        await handle.cancel()
        ended = await handle.wait()
    assert (ended.status, saga.calls) == ("compensated", ["a", "-paid", "-a"])
    assert ended.steps["stubborn"].output == "paid"


@in_virtual_time
async def test_the_compensations_of_a_cancelled_run_are_ordinary_ones() -> None:
    """Proves that they may take their time, are retried and time out: the first cancellation is over."""
    saga = cancelled_saga()
    hold = saga.workflow.steps["hold"]
    attempts: list[int] = []

    @hold.compensate(when="started", attempts=3, retry_delay=1, jitter=0, timeout=5)
    async def undo(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        assert ctx.cancelled_reason == "not wanted"
        await trio.sleep(10 if ctx.attempt == 1 else 2)
        if ctx.attempt == 2:
            raise ValueError("not yet")

    async with open_engine("memory:", saga.workflow) as engine:
        handle = await engine.start(saga.workflow, "run")
        await idle()
        await handle.cancel("not wanted")
        ended = await handle.wait()
    assert (ended.status, attempts) == ("compensated", [1, 2, 3])
    assert trio.current_time() == 5 + 1 + 2 + 2 + 2


@in_virtual_time
async def test_a_second_cancellation_changes_nothing() -> None:
    """Proves that two people who cancel at once leave nothing half undone: what the first began goes on."""
    saga = cancelled_saga("a", "b")

    async def take_time(_ctx: Context) -> None:
        await trio.sleep(5)

    saga.during["b"] = take_time
    async with open_engine("memory:", saga.workflow) as engine:
        handle = await engine.start(saga.workflow, "run")
        await idle()
        await handle.cancel("first")
        await idle()
        assert (await handle.get()).status == "compensating"
        await handle.cancel("second")
        ended = await handle.wait()
    assert (ended.status, ended.cancel_reason) == ("compensated", "first")
    assert ended.compensation == RunCompensation(steps={"b": "done", "a": "done"})


@in_virtual_time
async def test_a_cancelled_run_is_undone_by_the_next_worker() -> None:
    """Proves that a cancellation which a dead worker did not carry out is carried out and undone by another."""
    store = MemoryStore()
    saga = cancelled_saga("a")
    async with open_engine(store, saga.workflow) as engine:
        handle = await engine.start(saga.workflow, "run")
        await idle()
        await crash(engine)
    async with open_engine(store, saga.workflow, worker=False) as client:
        await client.run(handle.id).cancel("not wanted")
        assert (await client.get(handle.id)).status == "compensating"
    async with open_engine(store, saga.workflow) as engine:
        assert (await engine.run(handle.id).wait()).status == "compensated"
    assert saga.calls[-1] == "-a"


@in_virtual_time
async def test_what_asked_to_suspend_is_not_tried_again_under_another_name() -> None:
    """S215: Proves that wrapping the error does not make the compensation worth another attempt."""
    saga = Saga(fails=False)
    saga.add("a", attempts=5)
    saga.workflow.add_step("fail", boom, attempts=1)

    async def wraps(ctx: Context) -> None:
        try:
            await ctx.sleep(1)
        except Exception as error:
            raise ConnectionError("it did not work") from error

    saga.during["a"] = wraps
    failed = (await settled(saga.workflow)).steps["a"].compensation
    assert failed is not None
    assert (failed.status, failed.attempts) == ("failed", 1)


@in_virtual_time
async def test_a_compensation_that_returns_too_late_is_called_again() -> None:
    """Proves that a result in spite of the timeout counts for nothing, as with steps."""
    saga = Saga(fails=False)
    saga.add("a", attempts=2, retry_delay=0, timeout=1)
    saga.workflow.add_step("fail", boom, attempts=1)

    async def stubborn(ctx: Context) -> None:
        if ctx.attempt == 1:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)

    saga.during["a"] = stubborn
    undone = (await settled(saga.workflow)).steps["a"].compensation
    assert undone is not None
    assert (undone.status, undone.attempts) == ("done", 2)
