"""Suspension: a handler unwinds, the run parks, and the handler is entered again from its first line."""

from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio

from streamline_trio import (
    MemoryStore,
    NonRetriable,
    RunFailed,
    Signal,
    SuspensionError,
    SuspensionMismatch,
    WaitTimedOut,
    WaitWithdrawn,
    Workflow,
    open_engine,
)
from streamline_trio._runtime import suspension
from streamline_trio.testing import crash
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, one_step

go = Signal("go", int)


# Re-entry


@in_virtual_time
async def test_each_entry_starts_at_the_first_line_with_recorded_outcomes():
    """Proves that a step may suspend many times, by ordinal and by name, and that each entry gets what is
    recorded at once and in the same types, while attempts count one."""
    entries: list[list[Any]] = []

    async def handler(ctx):
        seen: list[Any] = []
        entries.append(seen)
        seen.append(await ctx.wait("first", returns=tuple[int, str]))
        await ctx.sleep(10)
        seen.append("slept")
        seen.append(await ctx.wait_for(go))
        seen.append(await ctx.wait("second", name="named"))
        await ctx.sleep(20)
        seen.append(ctx.attempt)
        return seen

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        started: list[Any] = []
        engine.on("step.started", started.append)
        handle = await engine.start(flow)
        await idle()
        await handle.resume((1, "a"))
        await trio.sleep(10)
        await engine.emit(go, 5, run=handle)
        await idle()
        await handle.resume({"b": 2})
        await trio.sleep(19.999)
        assert (await handle.get()).status == "waiting"
        assert await handle.result() == [[1, "a"], "slept", 5, {"b": 2}, 1]
        assert trio.current_time() == pytest.approx(30)
        await idle()
    assert entries == [
        [],
        [(1, "a")],
        [(1, "a"), "slept"],
        [(1, "a"), "slept", 5],
        [(1, "a"), "slept", 5, {"b": 2}],
        [(1, "a"), "slept", 5, {"b": 2}, 1],
    ]
    assert len(started) == 1


@in_virtual_time
async def test_names_may_come_in_any_number_and_kind():
    """Proves that a name identifies its wait: unnamed waits beside it keep their own ordinals."""

    async def handler(ctx):
        one = await ctx.wait("x", name="n")
        two = await ctx.wait("x")
        three = await ctx.wait("x", name="m")
        four = await ctx.wait("x")
        return [one, two, three, four]

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        for number in range(4):
            await idle()
            await handle.resume(number)
        assert await handle.result() == [0, 1, 2, 3]


@in_virtual_time
async def test_outcomes_share_nothing():
    """Proves that what a handler does to a payload is not seen by its next entry."""

    async def handler(ctx):
        items = await ctx.wait("items", returns=list[int])
        items.append(99)
        await ctx.sleep(1)
        return items

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        given = [1]
        await handle.resume(given)
        given.append(2)
        assert await handle.result() == [1, 99]


@in_virtual_time
async def test_a_parked_run_holds_nothing():
    """Proves that a parked run leaves no task behind: as many park as like, beside a capacity of one."""
    before = trio.lowlevel.current_statistics().tasks_living

    async def handler(ctx):
        await ctx.sleep(100)

    flow = one_step(handler)
    async with open_engine("memory:", flow, max_concurrent_runs=1) as engine:
        await idle()
        opened = trio.lowlevel.current_statistics().tasks_living
        handles = [await engine.start(flow) for _ in range(30)]
        await trio.sleep(50)
        assert trio.lowlevel.current_statistics().tasks_living == opened
        assert await engine.count(status="waiting") == 30
        for handle in handles:
            await handle.wait()
    assert trio.lowlevel.current_statistics().tasks_living == before


@in_virtual_time
async def test_a_time_that_has_passed_ends_the_sleep_at_once():
    """Proves that sleeping until the past, or for no time, costs no time and still re-enters."""
    entries = 0

    async def handler(ctx: Any) -> Any:
        nonlocal entries
        entries += 1
        await ctx.sleep_until((await engine.get(ctx.run_id)).created_at)
        await ctx.sleep(0)
        return trio.current_time()

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        assert await (await engine.start(flow)).result() == pytest.approx(0, abs=0.01)
    assert entries == 3


@in_virtual_time
async def test_predicates_are_not_asked_again_on_re_entry():
    """Proves that a step which has suspended goes on, also if its own state would skip it now."""
    asked = 0
    flow: Workflow[Any, Any] = Workflow("flow", state=lambda _: {"skip": False})

    def skip(state):
        nonlocal asked
        asked += 1
        return state["skip"]

    @flow.step(skip_if=skip)
    async def step(ctx):
        await ctx.set(skip=True)
        await ctx.sleep(1)
        return "ran"

    async with open_engine("memory:", flow) as engine:
        assert await (await engine.start(flow)).result() == "ran"
    assert asked == 1


# Unwinding


@in_virtual_time
async def test_the_handler_unwinds_while_it_is_still_leased():
    """Proves that `finally` blocks and nurseries unwind, with the lease and the context's writes still working,
    before the run is parked."""
    order: list[str] = []
    flow: Workflow[Any, Any] = Workflow("flow", state=lambda _: {"cleaned": 0})

    @asynccontextmanager
    async def resource():
        order.append("open")
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)
                order.append("close")

    @flow.step
    async def step(ctx):
        async def helper() -> None:
            try:
                await trio.sleep_forever()
            finally:
                order.append("helper")

        try:
            async with resource(), trio.open_nursery() as nursery:
                nursery.start_soon(helper)
                await trio.lowlevel.checkpoint()
                await ctx.wait("look")
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                run = await engine.get(ctx.run_id)
                order.append(f"{run.status}, leased: {run.lease is not None}")
                await ctx.set(cleaned=ctx.state["cleaned"] + 1)

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await trio.sleep(2)
        run = await handle.get()
        assert (run.status, run.lease is not None, run.steps["step"].wait) == ("running", True, None)
        await trio.sleep(2)
        run = await handle.get()
        assert (run.status, run.lease, run.state) == ("waiting", None, {"cleaned": 1})
        assert order == ["open", "helper", "close", "running, leased: True"]
        await handle.resume("go")
        assert (await handle.wait()).state == {"cleaned": 2}


@pytest.mark.parametrize("swallowed", [Exception, RuntimeError])
def test_no_except_clause_for_errors_catches_a_suspension(swallowed):
    """Proves that `except Exception` around a wait neither sees the suspension nor keeps the run from parking."""
    caught: list[BaseException] = []

    async def handler(ctx):
        while True:
            try:
                return await ctx.wait("look")
            except swallowed as error:
                caught.append(error)

    async def scenario() -> None:
        flow = one_step(handler)
        async with open_engine("memory:", flow) as engine:
            handle = await engine.start(flow)
            assert (await at_rest(handle)).status == "waiting"
            await handle.resume("seen")
            assert await handle.result() == "seen"

    in_virtual_time(scenario)()
    assert caught == []


@pytest.mark.parametrize("clause", [trio.Cancelled, BaseException])
@pytest.mark.parametrize("kind", ["wait", "sleep", "wait_for", "goto"])
def test_swallowing_the_cancellation_fails_loudly(clause, kind):
    """Proves that a handler which returns although it was to be suspended fails at once, and is not retried."""
    entries = 0

    async def handler(ctx):
        nonlocal entries
        entries += 1
        with suppress(clause):
            await SUSPENDING[kind](ctx)
        return "swallowed"

    async def scenario() -> None:
        flow = one_step(handler)
        async with open_engine("memory:", flow) as engine:
            run = await (await engine.start(flow)).wait()
            assert run.error is not None
            assert (run.status, run.error.code, run.error.type) == (
                "failed",
                "workflow.suspension",
                "SuspensionError",
            )
            assert "swallowed" in run.error.message

    in_virtual_time(scenario)()
    assert entries == 1


@pytest.mark.parametrize("where", ["finally", "nursery child", "context manager"])
def test_an_error_from_cleanup_is_a_failed_attempt(where):
    """Proves that a handler which raises while it unwinds has failed: nothing is recorded of the wait, and the
    next attempt asks afresh."""
    failing = True

    def fail() -> None:
        if failing:
            raise OSError("cleanup went wrong")

    @asynccontextmanager
    async def resource():
        try:
            yield
        finally:
            fail()

    async def child():
        try:
            await trio.sleep_forever()
        finally:
            fail()

    async def handler(ctx):
        if where == "finally":
            try:
                return await ctx.wait("look")
            finally:
                fail()
        if where == "context manager":
            async with resource():
                return await ctx.wait("look")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            await trio.lowlevel.checkpoint()
            answer = await ctx.wait("look")
            nursery.cancel_scope.cancel()
        return answer

    async def scenario() -> None:
        nonlocal failing
        failing = True
        flow = one_step(handler, retry_delay=10, jitter=0)
        async with open_engine("memory:", flow) as engine:
            handle = await engine.start(flow)
            run = await at_rest(handle)
            step = run.steps["step"]
            assert step.error is not None
            assert (run.status, step.status, step.wait) == ("waiting", "pending", None)
            assert "cleanup went wrong" in step.error.message
            failing = False
            await trio.sleep(10)
            run = await at_rest(handle)
            assert (run.status, run.steps["step"].status, run.steps["step"].attempts) == ("waiting", "waiting", 2)
            await handle.resume("fine")
            assert await handle.result() == "fine"

    in_virtual_time(scenario)()


# Order and asks


def mismatching(first: Any, second: Any) -> Any:
    """A handler that asks `first` in its first entry and `second` in its second."""
    entries = 0

    async def handler(ctx):
        nonlocal entries
        entries += 1
        for ask in first if entries == 1 else second:
            await ask(ctx)
        return "finished"

    return handler


def look(ctx):
    return ctx.wait("look")


def other(ctx):
    return ctx.wait("other")


def nap(ctx):
    return ctx.sleep(5)


def hear(ctx):
    return ctx.wait_for(go)


def hear_else(ctx):
    return ctx.wait_for("else")


def named(ctx):
    return ctx.wait("look", name="n")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([nap], [look]),
        ([look], [other]),
        ([hear], [hear_else]),
        ([look], [named]),
        ([named], [look]),
        ([nap], [hear, nap]),
        ([named], [nap, named]),
    ],
)
def test_another_order_or_ask_within_an_attempt(first, second):
    """Proves that a handler which asks otherwise on re-entry fails loudly, with both asks told, and at once."""

    async def scenario() -> None:
        flow = one_step(mismatching(first, second))
        async with open_engine("memory:", flow) as engine:
            handle = await engine.start(flow)
            await idle()
            await (engine.emit(go, 1, run=handle) if first == [hear] else handle.resume("x"))
            with pytest.raises(RunFailed) as caught:
                await handle.result()
            error = caught.value.run.error
            assert (error.type, error.code) == (SuspensionMismatch.__name__, SuspensionMismatch.code)
            assert "not deterministic" in error.message
            assert caught.value.run.steps["step"].attempts == 1

    in_virtual_time(scenario)()


@in_virtual_time
async def test_the_order_of_replayed_outcomes_binds_too():
    """Proves that outcomes of an earlier attempt which a later one was given must be asked for in the same order
    by the later entries of that attempt."""
    entries = 0

    async def handler(ctx):
        nonlocal entries
        entries += 1
        if entries == 4:
            await ctx.wait_for(go)
        await ctx.sleep(1)
        if entries == 2:
            raise OSError("first attempt fails")
        return await ctx.wait("look")

    flow = one_step(handler, retry_delay=1, jitter=0)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await trio.sleep(5)
        assert (entries, (await handle.get()).steps["step"].attempts) == (3, 2)
        await handle.resume("seen")
        run = await handle.wait()
        assert run.error is not None
        assert run.error.type == "SuspensionMismatch"


@in_virtual_time
async def test_a_name_is_used_once_per_entry():
    """Proves that one name for two waits of a step is refused, naming it."""

    async def handler(ctx):
        await ctx.sleep(1)
        await ctx.wait("a", name="twin")
        await ctx.wait("b", name="twin")

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await trio.sleep(2)
        await handle.resume(1)
        run = await handle.wait()
        assert run.error is not None
        assert (run.error.code, "'twin'" in run.error.message) == ("workflow.suspension", True)


@in_virtual_time
async def test_too_many_suspensions(monkeypatch):
    """Proves that suspensions of one entry are capped, with an error that names `loop`."""
    monkeypatch.setattr(suspension, "MAX_SUSPENSIONS", 5)

    async def handler(ctx):
        for _ in range(ctx.input):
            await ctx.sleep(1)
        return "finished"

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        assert await (await engine.start(flow, 5)).result() == "finished"
        run = await (await engine.start(flow, 6)).wait()
        assert run.error is not None
        assert (run.status, run.steps["step"].attempts) == ("failed", 1)
        assert "loop" in run.error.message


# Earlier attempts


@in_virtual_time
async def test_successful_outcomes_survive_a_failed_attempt():
    """Proves that an attempt after a failure is given what was answered, slept and heard before it."""
    entries = 0

    async def handler(ctx):
        nonlocal entries
        entries += 1
        answer = await ctx.wait("look")
        await ctx.sleep(10)
        heard = await ctx.wait_for(go)
        if ctx.attempt < 3:
            raise OSError(f"attempt {ctx.attempt}")
        return [answer, heard]

    flow = one_step(handler, retry_delay=1, backoff="fixed", jitter=0)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        await handle.resume("yes")
        await trio.sleep(10)
        await engine.emit(go, 3, run=handle)
        assert await handle.result() == ["yes", 3]
        assert trio.current_time() == pytest.approx(12)
        assert entries == 4 + 2


@in_virtual_time
async def test_an_unlike_ask_of_a_later_attempt_is_asked_afresh():
    """Proves that records of earlier attempts are a memo: what is asked otherwise is asked again, what is not
    asked any more is ignored."""

    async def handler(ctx):
        if ctx.attempt == 1:
            await ctx.wait("old question")
            await ctx.sleep(5)
            raise OSError("once more")
        return await ctx.wait("new question")

    flow = one_step(handler, retry_delay=1, jitter=0)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        await handle.resume("old answer")
        await trio.sleep(10)
        run = await handle.get()
        assert run.steps["step"].wait is not None
        assert run.steps["step"].wait.reason == "new question"
        await handle.resume("new answer")
        assert await handle.result() == "new answer"


def ending_badly(outcome: str, entries: list[str], crashed: trio.Event | None = None) -> Workflow[Any, Any]:
    """A step whose wait times out or is withdrawn, catches that, and goes on until it is stopped."""

    async def handler(ctx):
        entries.append("entered")
        try:
            answer = await ctx.wait("look", timeout=10 if outcome == "timed_out" else None)
        except (WaitTimedOut, WaitWithdrawn) as error:
            entries.append(type(error).__name__)
            if ctx.input == "retry":
                raise NonRetriable("give up") from error
            if ctx.input == "fail":
                raise OSError("once more") from error
            if entries.count(type(error).__name__) == 1:
                await trio.sleep_forever()
            return "replayed"
        return answer

    return one_step(handler, retry_delay=1, jitter=0)


ERRORS = {"timed_out": "WaitTimedOut", "withdrawn": "WaitWithdrawn"}


async def end_the_wait(outcome: str, handle: Any) -> None:
    if outcome == "timed_out":
        await trio.sleep(10)
    else:
        await handle.withdraw("not any more")
    await idle()


@pytest.mark.parametrize("outcome", ["timed_out", "withdrawn"])
@pytest.mark.parametrize("how", ["fail", "retry"])
def test_failed_outcomes_are_asked_afresh(outcome, how):
    """Proves that after a failed attempt, and after `retry`, a wait that timed out or was withdrawn is asked
    again, with its whole timeout before it."""

    async def scenario() -> None:
        entries: list[str] = []
        flow = ending_badly(outcome, entries)
        async with open_engine("memory:", flow) as engine:
            handle = await engine.start(flow, how)
            await idle()
            await end_the_wait(outcome, handle)
            assert entries == ["entered", "entered", ERRORS[outcome]]
            if how == "retry":
                assert (await handle.wait()).status == "failed"
                await handle.retry()
            await trio.sleep(1)
            run = await at_rest(handle)
            wait = run.steps["step"].wait
            assert wait is not None
            if outcome == "timed_out":
                assert wait.due_at is not None
                assert (wait.due_at - wait.opened_at).total("seconds") == 10
            await handle.resume("at last")
            assert await handle.result() == "at last"

    in_virtual_time(scenario)()


@pytest.mark.parametrize("outcome", ["timed_out", "withdrawn"])
@pytest.mark.parametrize("how", ["crash", "drain"])
def test_failed_outcomes_are_replayed_after_crash_and_hand_over(outcome, how):
    """Proves that another worker which goes on with an attempt gives its handler the same failed outcome; a
    crash is a further attempt, a hand-over is not."""

    async def scenario() -> None:
        store, entries = MemoryStore(), list[str]()
        flow = ending_badly(outcome, entries)
        async with open_engine(store, flow, drain_timeout=0) as first:
            handle = await first.start(flow, how)
            await idle()
            await end_the_wait(outcome, handle)
            assert entries == ["entered", "entered", ERRORS[outcome]]
            if how == "crash":
                await crash(first)
        async with open_engine(store, flow) as second:
            run = await second.run(handle.id).wait()
        assert run.output == "replayed"
        assert entries[3:] == ["entered", ERRORS[outcome]]
        assert run.steps["step"].attempts == (2 if how == "crash" else 1)

    in_virtual_time(scenario)()


@in_virtual_time
async def test_a_crash_replays_what_succeeded():
    """Proves that after a crash answered waits and elapsed sleeps are not repeated."""
    store, seen = MemoryStore(), list[Any]()

    async def handler(ctx):
        answer = await ctx.wait("look")
        await ctx.sleep(30)
        seen.append((ctx.attempt, answer))
        if len(seen) == 1:
            await trio.sleep_forever()
        return trio.current_time()

    flow = one_step(handler)
    async with open_engine(store, flow) as first:
        handle = await first.start(flow)
        await idle()
        await handle.resume("yes")
        await trio.sleep(31)
        await crash(first)
    async with open_engine(store, flow) as second:
        assert await second.run(handle.id).result() == pytest.approx(31)
    assert seen == [(1, "yes"), (2, "yes")]


@in_virtual_time
async def test_retry_keeps_successful_waits_and_takes_other_code():
    """Proves that `retry` keeps answers as a memo, also for a handler that was repaired to ask otherwise."""
    repaired = False

    async def handler(ctx):
        if repaired:
            await ctx.sleep(1)
        first = await ctx.wait("look")
        if not repaired:
            raise NonRetriable("broken")
        return [first, await ctx.wait("once more"), ctx.attempt]

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        await handle.resume("kept")
        assert (await handle.wait()).status == "failed"
        repaired = True
        await handle.retry()
        await trio.sleep(2)
        run = await handle.get()
        assert run.steps["step"].wait is not None
        assert run.steps["step"].wait.reason == "once more"
        await handle.resume("new")
        assert await handle.result() == ["kept", "new", 1]


@pytest.mark.parametrize(
    ("retry_on", "attempts"), [(Exception, 1), (OSError, 1), (WaitTimedOut, 3), ((OSError, WaitTimedOut), 3)]
)
def test_a_timed_out_wait_is_retried_only_by_name(retry_on, attempts):
    """Proves that `WaitTimedOut` fails the step at once unless `retry_on` names it."""

    async def scenario() -> None:
        async def handler(ctx):
            await ctx.wait("nobody comes", timeout=5)

        flow = one_step(handler, retry_on=retry_on, retry_delay=0)
        async with open_engine("memory:", flow) as engine:
            run = await (await engine.start(flow)).wait()
            assert run.error is not None
            assert (run.status, run.error.code) == ("failed", "workflow.wait.timed_out")
            assert run.steps["step"].attempts == attempts
            assert trio.current_time() == pytest.approx(5 * attempts, abs=0.1)

    in_virtual_time(scenario)()


# Where it cannot work


async def in_shield(ctx, suspend):
    with trio.CancelScope(shield=True):
        await suspend(ctx)


async def in_child(ctx, suspend):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(suspend, ctx)


async def in_system_task(ctx, suspend):
    done = trio.Event()
    caught: list[BaseException] = []

    async def task() -> None:
        try:
            await suspend(ctx)
        except SuspensionError as error:
            caught.append(error)
        finally:
            done.set()

    trio.lowlevel.spawn_system_task(task)
    await done.wait()
    raise caught[0]


async def while_unwinding(ctx, suspend):
    try:
        await ctx.sleep(3)
    finally:
        await suspend(ctx)


async def unheard(token):
    raise AssertionError("nothing was to be opened")


SUSPENDING = {
    "sleep": lambda ctx: ctx.sleep(5),
    "wait": lambda ctx: ctx.wait("look"),
    "wait with a token": lambda ctx: ctx.wait("look", on_token=unheard),
    "wait_for": lambda ctx: ctx.wait_for(go),
    "goto": lambda ctx: ctx.goto("step"),
}


@pytest.mark.parametrize("place", [in_shield, in_child, in_system_task, while_unwinding])
@pytest.mark.parametrize("what", SUSPENDING)
def test_where_no_handler_can_be_unwound(place, what):
    """Proves that suspending in a shield, in another task or while unwinding is refused loudly, once, and before
    anything is recorded."""

    async def handler(ctx):
        await place(ctx, SUSPENDING[what])

    async def scenario() -> None:
        flow = one_step(handler)
        async with open_engine("memory:", flow) as engine:
            waiting: list[Any] = []
            engine.on("step.waiting", waiting.append)
            run = await (await engine.start(flow)).wait()
            await idle()
            assert run.error is not None
            assert (run.status, run.error.code) == ("failed", "workflow.suspension")
            assert (run.steps["step"].attempts, waiting) == (1, [])
            assert what.split()[0] in run.error.message

    in_virtual_time(scenario)()


@pytest.mark.parametrize("what", SUSPENDING)
def test_a_sync_handler_cannot_suspend(what):
    """Proves that a handler in a thread which tries to suspend is refused loudly, while its writes work."""

    def handler(ctx):
        trio.from_thread.run(lambda: ctx.set(reached=True))
        trio.from_thread.run(lambda: SUSPENDING[what](ctx))

    async def scenario() -> None:
        flow: Workflow[Any, Any] = Workflow("flow", state=lambda _: {})
        flow.add_step("step", handler)
        async with open_engine("memory:", flow) as engine:
            run = await (await engine.start(flow)).wait()
            assert run.error is not None
            assert (run.status, run.error.code) == ("failed", "workflow.suspension")
            assert run.state == {"reached": True}

    in_virtual_time(scenario)()


@in_virtual_time
async def test_scopes_of_the_handler_do_not_hinder_it():
    """Proves that a wait inside the handler's own nursery body, timeout and once-shielded scope unwinds through
    all of them, and that their clocks say nothing about durable time."""

    async def handler(ctx):
        with trio.CancelScope(shield=True) as shield:
            shield.shield = False
            async with trio.open_nursery():
                with trio.fail_after(5):
                    await ctx.sleep(1000)
        return trio.current_time()

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        assert await (await engine.start(flow)).result() == pytest.approx(1000)


@in_virtual_time
async def test_a_caught_refusal_leaves_the_handler_intact():
    """Proves that a handler may catch the refusal and suspend where it can."""
    texts: list[str] = []

    async def handler(ctx):
        with trio.CancelScope(shield=True):
            try:
                await ctx.sleep(5)
            except SuspensionError as error:
                texts.append(str(error))
        await ctx.sleep(7)
        return trio.current_time()

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        assert await (await engine.start(flow)).result() == pytest.approx(7)
    assert len(texts) == 2
    assert all("shielded" in text for text in texts)
