"""What operators and handlers do to a run's course: cancel, pause, timeouts, goto, rewind, retry."""

from typing import Any

import pytest
import trio

from streamline_trio import InvalidState, MemoryStore, NonRetriable, Run, Workflow, open_engine
from streamline_trio.testing import crash
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, one_step, passing, statuses

# Cancel


@in_virtual_time
async def test_cancelling_a_parked_run_enters_no_handler():
    """Proves that a parked run is cancelled without its handler being called again."""
    entries = 0

    async def handler(ctx):
        nonlocal entries
        entries += 1
        await ctx.wait("look")

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        await handle.cancel("no")
        run = await at_rest(handle)
    assert (run.status, entries) == ("cancelled", 1)
    assert run.steps["step"].error is not None
    assert run.steps["step"].error.code == "workflow.cancelled"


@in_virtual_time
async def test_a_cancelled_handler_settles_after_it_has_unwound():
    """Proves that cleanup of a cancelled handler runs while the run is still leased, its writes are kept, and
    the run settles only afterwards."""
    flow: Workflow[Any, Any] = Workflow("flow", state=lambda _: {"cleaned": False})

    @flow.step
    async def step(ctx):
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(5)
                await ctx.set(cleaned=ctx.cancelled_reason)

    passing(flow, "next")
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        await handle.cancel("over")
        await trio.sleep(4)
        run = await handle.get()
        assert (run.status, run.cancel_requested, run.lease is not None) == ("running", True, True)
        run = await handle.wait()
        assert trio.current_time() == pytest.approx(5)
        assert (run.status, run.state, run.lease) == ("cancelled", {"cleaned": "over"}, None)
        assert run.steps["next"].status == "pending"


@pytest.mark.parametrize("last", [True, False])
def test_a_result_that_arrives_after_the_request(last):
    """Proves that a handler which finishes in spite of a cancellation has its result recorded, and that the run
    is cancelled in the same write and never done."""

    async def scenario() -> None:
        flow: Workflow[Any, Any] = Workflow("flow")

        @flow.step
        async def step(ctx):
            with trio.CancelScope(shield=True):
                await trio.sleep(5)
            return "charged"

        if not last:
            passing(flow, "next")
        async with open_engine("memory:", flow) as engine:
            names: list[str] = []
            engine.on("*", lambda event: names.append(event.name))
            handle = await engine.start(flow)
            await trio.sleep(1)
            await handle.cancel()
            run = await handle.wait()
            await idle()
        assert (run.status, run.steps["step"].status, run.steps["step"].output) == ("cancelled", "done", "charged")
        assert run.output is None
        assert names[-2:] == ["step.completed", "workflow.cancelled"]
        assert names.count("step.started") == 1

    in_virtual_time(scenario)()


@pytest.mark.parametrize("kind", ["plain", "nursery"])
@pytest.mark.parametrize("why", ["cancel", "step timeout", "run timeout", "drain"])
def test_errors_from_cleanup_do_not_lose_the_run(kind, why):
    """Proves that a handler which is stopped and raises while it unwinds, alone or from a nursery's child, leaves
    a run that settles or is handed back: never one that nobody drives."""
    entries = 0

    async def scenario() -> None:
        async def stuck() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise OSError("cleanup")

        async def step(ctx):
            nonlocal entries
            entries += 1
            if entries == 2:
                await ctx.set(again=True)
            elif kind == "plain":
                await stuck()
            else:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stuck)
                    await trio.sleep_forever()

        store = MemoryStore()
        flow: Workflow[Any, Any] = Workflow(
            "flow", state=lambda _: {"again": False}, timeout=10 if why == "run timeout" else None
        )
        flow.add_step("step", step, attempts=1, timeout=10 if why == "step timeout" else None)
        async with open_engine(store, flow, drain_timeout=0) as engine:
            handle = await engine.start(flow)
            await trio.sleep(1)
            if why == "cancel":
                await handle.cancel()
            if why != "drain":
                await handle.wait(timeout=20)
        run = await reread(store, handle.id)
        assert run.lease is None
        if why == "drain":
            async with open_engine(store, flow) as engine:
                run = await engine.run(handle.id).wait(timeout=20)
            assert (run.status, run.state, run.steps["step"].attempts) == ("done", {"again": True}, 1)
            return
        assert run.status == ("cancelled" if why == "cancel" else "failed")
        if why == "run timeout":
            assert run.error is not None
            assert run.error.code == "workflow.timeout"

    in_virtual_time(scenario)()


async def reread(store: MemoryStore, run_id: str) -> Run:
    async with open_engine(store, worker=False) as client:
        return await client.get(run_id)


@in_virtual_time
async def test_a_suspension_meets_a_cancellation():
    """Proves that a handler which unwinds for a wait when the run is cancelled does not park: it settles."""

    async def handler(ctx):
        try:
            await ctx.wait("look")
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(5)

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        waiting: list[Any] = []
        engine.on("workflow.waiting", waiting.append)
        handle = await engine.start(flow)
        await trio.sleep(1)
        await handle.cancel()
        run = await handle.wait()
        await idle()
    assert (run.status, waiting) == ("cancelled", [])


@in_virtual_time
async def test_cancelling_a_run_whose_worker_is_dead():
    """Proves that a run that no living worker holds is cancelled at once, by a client that has no code."""
    store = MemoryStore()

    async def handler(ctx):
        await trio.sleep_forever()

    flow = one_step(handler)
    async with open_engine(store, flow) as first:
        handle = await first.start(flow)
        await idle()
        await crash(first)
    async with open_engine(store):
        pass
    async with open_engine(store, worker=False) as client:
        await client.run(handle.id).cancel("its worker died")
        assert (await client.get(handle.id)).status == "cancelled"


@in_virtual_time
async def test_a_cancelled_draft_never_starts():
    """Proves that a run that has not begun is cancelled at once."""
    calls: list[str] = []
    flow: Workflow[Any, Any] = Workflow("flow")
    passing(flow, "only", calls=calls)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow, delay=10)
        await handle.cancel()
        await trio.sleep(20)
        run = await handle.get()
    assert (run.status, run.started_at, calls) == ("cancelled", None, [])


@in_virtual_time
async def test_cancelling_an_answered_run_before_a_worker_takes_it():
    """Proves that a run which was answered while no worker lived is still cancelled at once."""
    store = MemoryStore()

    async def handler(ctx):
        return await ctx.wait("look")

    flow = one_step(handler)
    async with open_engine(store, flow) as engine:
        handle = await engine.start(flow)
        await idle()
    async with open_engine(store, worker=False) as client:
        run = client.run(handle.id)
        await run.resume("yes")
        assert (await run.get()).status == "running"
        await run.cancel()
        assert (await run.get()).status == "cancelled"


# Pause


@in_virtual_time
async def test_a_pause_in_a_step_that_goes_on_to_wait():
    """Proves that a handler in flight when its run is paused may park, and stays parked when answered."""
    entries = 0

    async def handler(ctx):
        nonlocal entries
        entries += 1
        await trio.sleep(1)
        return await ctx.wait("look")

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await trio.sleep(0.5)
        await handle.pause()
        await trio.sleep(1)
        assert (await handle.get()).status == "waiting"
        await handle.resume("answer")
        await trio.sleep(60)
        assert entries == 1
        await handle.unpause()
        assert await handle.result() == "answer"


@in_virtual_time
async def test_a_goto_while_paused():
    """Proves that a step in flight may go to another one while its run is paused, which begins after unpause."""
    calls: list[str] = []
    flow: Workflow[Any, Any] = Workflow("flow")

    @flow.step
    async def origin(ctx):
        await trio.sleep(1)
        await ctx.goto("target")

    passing(flow, "between", "target", calls=calls)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        await handle.pause()
        await trio.sleep(10)
        run = await handle.get()
        assert (run.current_step, run.lease, statuses(run)["origin"], calls) == ("target", None, "skipped", [])
        await handle.unpause()
        assert await handle.result() == "target"
    assert calls == ["target"]


@in_virtual_time
async def test_a_failure_while_paused():
    """Proves that an attempt which fails while its run is paused is not followed by another before unpause."""
    calls: list[float] = []

    async def handler(ctx):
        calls.append(trio.current_time())
        await trio.sleep(1)
        if ctx.attempt == 1:
            raise OSError("once more")

    for delay, expected in ((0, 100), (5, 100), (500, 501)):
        calls.clear()
        flow = one_step(handler, retry_delay=delay, jitter=0, max_retry_delay=1000)
        async with open_engine("memory:", flow) as engine:
            began = trio.current_time()
            handle = await engine.start(flow)
            await trio.sleep(0.5)
            await handle.pause()
            await trio.sleep(99.5)
            assert len(calls) == 1
            await handle.unpause()
            await handle.wait()
        assert calls[1] - began == pytest.approx(expected)


@in_virtual_time
async def test_cancelling_a_paused_run():
    """Proves that cancel does not wait for unpause, whether the run is parked or running."""

    async def handler(ctx):
        await (ctx.wait("look") if ctx.input == "parked" else sleeping())

    async def sleeping() -> None:
        await trio.sleep_forever()

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        for kind in ("parked", "running"):
            handle = await engine.start(flow, kind)
            await idle()
            await handle.pause()
            await handle.cancel()
            run = await handle.wait(timeout=1)
            assert (run.status, run.paused) == ("cancelled", False)


# The run's own timeout


@pytest.mark.parametrize("phase", ["running", "parked", "backoff", "paused", "draft", "between"])
def test_the_run_timeout(phase):
    """Proves that a run's timeout fails it with `RunTimeout` at its time whatever it is doing, and that the time
    counts from when it was to begin."""
    unwound: list[float] = []

    async def scenario() -> None:
        flow: Workflow[Any, Any] = Workflow("flow", timeout=10)

        @flow.step(attempts=5, retry_delay=60, jitter=0)
        async def step(ctx):
            if phase == "backoff":
                raise OSError("down")
            if phase in {"parked", "paused"}:
                await ctx.wait("look")
            try:
                await trio.sleep(9.5 if phase == "between" else 1000)
            finally:
                unwound.append(trio.current_time())

        @flow.step
        async def after(ctx):
            await trio.sleep(9)

        async with open_engine("memory:", flow) as engine:
            heard: list[Any] = []
            engine.on("workflow.failed", heard.append)
            handle = await engine.start(flow, delay=5 if phase == "draft" else None)
            await idle()
            if phase == "paused":
                await handle.pause()
            run = await handle.wait()
            await idle()
            assert run.error is not None
            assert (run.status, run.error.code, run.error.type) == ("failed", "workflow.timeout", "RunTimeout")
            assert run.ended_at is not None
            assert (run.ended_at - run.created_at).total("seconds") == pytest.approx(
                15 if phase == "draft" else 10, abs=0.002
            )
            assert (run.due_at, run.lease, len(heard)) == (None, None, 1)
            await trio.sleep(500)
            assert await handle.get() == run

    in_virtual_time(scenario)()
    ends = {"running": [10.0], "draft": [15.0], "between": [9.5]}
    assert unwound == pytest.approx(ends.get(phase, []), abs=0.002)


@in_virtual_time
async def test_retry_gives_the_whole_timeout_again():
    """Proves that a timed-out run that is retried has its timeout before it again, and asks its wait afresh."""
    flow: Workflow[Any, Any] = Workflow("flow", timeout=10)

    @flow.step
    async def step(ctx):
        return await ctx.wait("look")

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await handle.wait()
        await trio.sleep(100)
        await handle.retry()
        await trio.sleep(9)
        run = await handle.get()
        assert (run.status, run.error, run.ended_at) == ("waiting", None, None)
        await handle.resume("in time")
        assert await handle.result() == "in time"


@in_virtual_time
async def test_parked_time_does_not_count_for_the_step_timeout():
    """Proves that a step's timeout measures entries of its handler, not what lies between them."""

    async def handler(ctx):
        await trio.sleep(3)
        await ctx.sleep(1000)
        await trio.sleep(3)
        return "in time"

    flow = one_step(handler, timeout=7, attempts=1)
    async with open_engine("memory:", flow) as engine:
        assert await (await engine.start(flow)).result() == "in time"


@in_virtual_time
async def test_a_step_timeout_while_unwinding_for_a_wait():
    """Proves that the step's timeout holds for cleanup too: a handler that unwinds too long has failed, nothing
    of its wait is recorded, and its next attempt asks afresh."""

    async def handler(ctx):
        try:
            return await ctx.wait("look")
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(3 if ctx.attempt == 1 else 1)

    flow = one_step(handler, timeout=2, retry_delay=10, jitter=0)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await trio.sleep(4)
        step = (await handle.get()).steps["step"]
        assert step.error is not None
        assert (step.status, step.error.code, step.wait) == ("pending", "workflow.step.timeout", None)
        await trio.sleep(11)
        await handle.resume("seen")
        assert await handle.result() == "seen"


# goto


@pytest.mark.parametrize("target", ["one", "two", "three"])
def test_goto_in_every_direction(target):
    """Proves that going back, to itself or forward resets what it says: generations of idempotency keys, attempts
    and outputs; and that steps outside the range keep theirs."""
    keys: dict[str, list[tuple[int, str]]] = {"one": [], "two": [], "three": []}

    async def scenario() -> None:
        flow: Workflow[Any, Any] = Workflow("flow", state=lambda _: {"jumped": False})

        def note(ctx) -> None:
            prefix, _, rest = ctx.idempotency_key().partition(":")
            assert prefix == ctx.run_id
            assert ctx.idempotency_key("mail") == f"{ctx.idempotency_key()}:mail"
            keys[ctx.step_id].append((ctx.attempt, rest))

        @flow.step
        async def one(ctx):
            note(ctx)
            return len(keys["one"])

        @flow.step(retry_delay=0)
        async def two(ctx):
            note(ctx)
            if not ctx.state["jumped"]:
                if ctx.attempt == 1:
                    raise OSError("fails once before it goes")
                await ctx.set(jumped=True)
                await ctx.goto(target)
            return ctx.output(one)

        @flow.step
        async def three(ctx):
            note(ctx)
            return [ctx.output(one), ctx.output(two, default="skipped")]

        async with open_engine("memory:", flow) as engine:
            run = await (await engine.start(flow)).wait()
        expected = {"one": [2, 2], "two": [1, 1], "three": [1, "skipped"]}[target]
        assert (run.status, run.output) == ("done", expected)
        assert statuses(run)["two"] == ("skipped" if target == "three" else "done")

    in_virtual_time(scenario)()
    assert [attempt for attempt, _ in keys["two"]] == ([1, 2] if target == "three" else [1, 2, 1])
    generations = {step: len({key for _, key in called}) for step, called in keys.items()}
    assert generations == {
        "one": 2 if target == "one" else 1,
        "two": 1 if target == "three" else 2,
        "three": 1,
    }
    assert [attempt for attempt, _ in keys["one"]] == [1] * len(keys["one"])


@in_virtual_time
async def test_goto_after_waits_asks_them_again():
    """Proves that a goto forgets the answers of the steps it resets, also its own."""

    async def handler(ctx):
        answer = await ctx.wait("again?", returns=bool)
        if answer:
            await ctx.goto("step")
        return "enough"

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        for answer in (True, True, False):
            assert (await at_rest(handle)).status == "waiting"
            await handle.resume(answer)
        assert await handle.result() == "enough"


@in_virtual_time
async def test_goto_keeps_memos_and_forgets_checkpoints():
    """Proves that results of `once` survive a goto, and checkpoints of reset steps do not."""
    made: list[str] = []
    seen: list[Any] = []

    async def handler(ctx):
        await ctx.once("key", lambda: made.append("made"))
        seen.append(ctx.checkpoint_value(int))
        await ctx.checkpoint(7)
        if len(seen) < 3:
            await ctx.goto("step")

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        assert (await (await engine.start(flow)).wait()).status == "done"
    assert (made, seen) == (["made"], [None, None, None])


@in_virtual_time
async def test_the_output_after_a_goto_to_a_step_that_is_skipped():
    """Proves that a run's output is that of the last step that ran and was not reset."""
    flow: Workflow[Any, Any] = Workflow("flow", state=lambda _: {"skip": False})
    passing(flow, "first")

    @flow.step(skip_if=lambda state: state["skip"])
    async def second(ctx):
        return "to be reset"

    @flow.step(skip_if=lambda state: state["skip"])
    async def third(ctx):
        await ctx.set(skip=True)
        await ctx.goto(second)

    async with open_engine("memory:", flow) as engine:
        run = await (await engine.start(flow)).wait()
    assert statuses(run) == {"first": "done", "second": "skipped", "third": "skipped"}
    assert run.output == "first"


# Rewind


@in_virtual_time
async def test_rewind_forgets_what_the_reset_steps_made():
    """Proves that memos, checkpoints, outputs and answers of the reset steps are forgotten, those of earlier
    steps kept, and that idempotency keys get a new generation there only."""
    made: list[str] = []
    keys: dict[str, list[str]] = {"one": [], "two": []}
    flow: Workflow[Any, Any] = Workflow("flow")

    async def handler(ctx):
        keys[ctx.step_id].append(ctx.idempotency_key())
        await ctx.once(f"by {ctx.step_id}", lambda: made.append(ctx.step_id))
        await ctx.once("by the first", lambda: made.append("shared"))
        assert ctx.checkpoint_value(int) is None
        await ctx.checkpoint(1)
        return ctx.attempt

    flow.add_step("one", handler)
    flow.add_step("two", handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await handle.wait()
        assert made == ["one", "shared", "two"]
        await handle.rewind("two")
        await handle.wait()
        assert made == ["one", "shared", "two", "two"]
        await handle.rewind("one")
        run = await handle.wait()
        assert made == ["one", "shared", "two", "two", "one", "shared", "two"]
    assert (len(set(keys["one"])), len(set(keys["two"]))) == (2, 3)
    assert [step.attempts for step in run.steps.values()] == [1, 1]


@in_virtual_time
async def test_the_output_after_a_rewind_to_a_step_that_is_skipped():
    """Proves that a rewound run whose further steps are all skipped has the output of the last one that stands."""
    flow: Workflow[Any, Any] = Workflow("flow", state=lambda _: {"skip": False})
    passing(flow, "first")

    @flow.step(skip_if=lambda state: state["skip"])
    async def second(ctx):
        await ctx.set(skip=True)
        return "second"

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        assert await handle.result() == "second"
        await handle.rewind(second)
        assert await handle.result() == "first"


@in_virtual_time
async def test_when_a_run_cannot_be_rewound():
    """Proves that rewind is InvalidState for a draft, while a step runs, and beyond where the run has come."""
    flow: Workflow[Any, Any] = Workflow("flow")

    @flow.step
    async def busy(ctx):
        await trio.sleep(10)

    passing(flow, "next")
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow, delay=5)
        with pytest.raises(InvalidState) as caught:
            await handle.rewind("busy")
        assert caught.value.meta["status"] == "draft"
        await trio.sleep(6)
        for target in ("busy", "next"):
            with pytest.raises(InvalidState) as caught:
                await handle.rewind(target)
            assert caught.value.meta["status"] == "running"
        assert (await handle.wait()).status == "done"


@in_virtual_time
async def test_rewinding_during_backoff():
    """Proves that a rewound run leaves its backoff and begins the target at once with all its attempts."""
    calls: list[tuple[str, int]] = []
    flow: Workflow[Any, Any] = Workflow("flow")

    async def handler(ctx):
        calls.append((ctx.step_id, ctx.attempt))
        if ctx.step_id == "two" and len(calls) < 4:
            raise OSError("down")

    flow.add_step("one", handler)
    flow.add_step("two", handler, attempts=2, retry_delay=1000, max_retry_delay=1000)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await trio.sleep(1)
        await handle.rewind("one")
        run = await at_rest(handle)
        assert calls == [("one", 1), ("two", 1), ("one", 1), ("two", 1)]
        assert (run.status, trio.current_time()) == ("done", 1)


# Retry


@in_virtual_time
async def test_retry_repeats_only_what_failed():
    """Proves that retry keeps finished steps, memos and checkpoints, gives fresh attempts under the same
    idempotency key, and that a run that has not failed cannot be retried."""
    calls: list[tuple[str, int, str]] = []
    made: list[str] = []
    flow: Workflow[Any, Any] = Workflow("flow")

    async def handler(ctx):
        calls.append((ctx.step_id, ctx.attempt, ctx.idempotency_key()))
        if ctx.step_id == "two":
            await ctx.once("key", lambda: made.append("made"))
            await ctx.checkpoint(ctx.checkpoint_value(int, default=0) + 1)
            if len(calls) < 5:
                raise OSError("down")
            return ctx.checkpoint_value(int)
        return "kept"

    flow.add_step("one", handler)
    flow.add_step("two", handler, attempts=2, retry_delay=0)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        failed = await handle.wait()
        assert (failed.status, failed.steps["two"].attempts) == ("failed", 2)
        await handle.retry()
        run = await handle.wait()
        assert (run.status, run.error, run.output) == ("done", None, 4)
        with pytest.raises(InvalidState) as caught:
            await handle.retry()
        assert (caught.value.action, caught.value.allowed) == ("retry", ("failed", "compensation_failed"))
    assert [(step, attempt) for step, attempt, _ in calls] == [
        ("one", 1),
        ("two", 1),
        ("two", 2),
        ("two", 1),
        ("two", 2),
    ]
    assert len({key for step, _, key in calls if step == "two"}) == 1
    assert made == ["made"]


@in_virtual_time
async def test_retry_races_with_itself():
    """Proves that of two retries at once one takes effect and the other is a no-op; the step runs once more."""
    calls = 0

    async def handler(ctx):
        nonlocal calls
        calls += 1
        if calls == 1:
            raise NonRetriable("no")
        await trio.sleep(1)

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await handle.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle.retry)
            nursery.start_soon(handle.retry)
        assert (await handle.wait()).status == "done"
    assert calls == 2


# Sync handlers


@in_virtual_time
async def test_a_sync_callable_may_give_an_awaitable():
    """Proves that a callable that is not async itself, such as a lambda, may return a coroutine: it is awaited on
    trio, where it can suspend."""

    async def really(ctx):
        await ctx.sleep(10)
        return trio.current_time()

    flow = one_step(lambda ctx: really(ctx))  # noqa: PLW0108 - a function of its own is the point
    async with open_engine("memory:", flow) as engine:
        assert await (await engine.start(flow)).result() == pytest.approx(10)
