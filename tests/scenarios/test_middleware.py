"""Middleware: it is told what steps do, in order, and whatever it does never reaches them (S437 to S439)."""

from collections import Counter
from typing import Any, cast

import pytest
import trio

from streamline_trio import (
    DefinitionError,
    EngineError,
    Guard,
    MemoryStore,
    Middleware,
    StepContext,
    Store,
    WaitState,
    Workflow,
    open_engine,
)
from streamline_trio._runtime.middleware import HOOK_LIMIT
from tests.integration.test_writes import Counting
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, passing

Context = StepContext[Any, Any, Any]


class Noting(Middleware):
    """Notes what it is told."""

    def __init__(self, notes: list[Any], mark: str = "") -> None:
        super().__init__()
        self.notes = notes
        self.mark = mark

    def before_step(self, ctx: Context) -> None:
        self.notes.append(f"before{self.mark}:{ctx.step_id}:{ctx.attempt}")

    async def after_step(self, ctx: Context, output: Any, duration: float) -> None:
        await trio.lowlevel.checkpoint()
        self.notes.append(f"after{self.mark}:{ctx.step_id}:{ctx.attempt}:{output}:{duration:g}")

    async def on_step_error(self, ctx: Context, error: BaseException) -> None:
        self.notes.append(f"error{self.mark}:{ctx.step_id}:{ctx.attempt}:{error}")

    def on_wait(self, ctx: Context, wait: WaitState) -> None:
        self.notes.append(f"wait{self.mark}:{ctx.step_id}:{wait.kind}:{wait.reason}")


@in_virtual_time
async def test_the_order_and_what_is_told():
    """S437: before each step and after it, in the order they are given; `after` gets the output and the seconds."""
    notes: list[str] = []
    only_before = Middleware(before_step=lambda ctx: notes.append(f"before2:{ctx.step_id}"))
    flow: Workflow[Any, Any] = Workflow("flow", middleware=(Noting(notes), only_before))

    @flow.step
    async def one(ctx: Context) -> int:
        await trio.sleep(2)
        return 11

    passing(flow, "two")
    async with open_engine("memory:", flow) as engine:
        assert await (await engine.start(flow)).result() == "two"
    assert notes == [
        "before:one:1",
        "before2:one",
        "after:one:1:11:2",
        "before:two:1",
        "before2:two",
        "after:two:1:two:0",
    ]


@in_virtual_time
async def test_waits_and_errors():
    """S438: a wait is told with kind and reason once the run has parked, a failure with its exception."""
    notes: list[str] = []
    flow: Workflow[Any, Any] = Workflow("flow", middleware=[Noting(notes)])

    @flow.step
    async def gate(ctx: Context) -> Any:
        return await ctx.wait("may it?")

    @flow.step(attempts=1)
    async def boom(ctx: Context) -> None:
        raise ValueError("kaboom")

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await at_rest(handle)
        assert notes == ["before:gate:1", "wait:gate:human:may it?"]
        await handle.resume(1)
        assert (await handle.wait()).status == "failed"
    assert notes[2:] == ["before:gate:1", "after:gate:1:1:0", "before:boom:1", "error:boom:1:kaboom"]


@in_virtual_time
async def test_each_failed_attempt_is_told_as_itself():
    """Proves that `on_step_error` comes once per failed attempt, with that attempt's number and its own exception,
    whether the next attempt follows at once or later, and also for timeouts."""
    notes: list[str] = []
    flow: Workflow[Any, Any] = Workflow("flow", middleware=[Noting(notes)])

    @flow.step(attempts=2, retry_delay=0)
    async def at_once(ctx: Context) -> str:
        if ctx.attempt == 1:
            raise OSError("first")
        return "a"

    @flow.step(attempts=2, retry_delay=5, jitter=0, timeout=3)
    async def later(ctx: Context) -> str:
        if ctx.attempt == 1:
            await trio.sleep(60)
        return "b"

    async with open_engine("memory:", flow) as engine:
        assert await (await engine.start(flow)).result() == "b"
    assert notes == [
        "before:at_once:1",
        "error:at_once:1:first",
        "before:at_once:2",
        "after:at_once:2:a:0",
        "before:later:1",
        "error:later:1:step later exceeded its timeout of 3 s",
        "before:later:2",
        "after:later:2:b:0",
    ]


def _raise(*_: object) -> None:
    raise RuntimeError("a broken hook")


async def _raise_later(*_: object) -> None:
    await trio.lowlevel.checkpoint()
    raise ExceptionGroup("broken", [RuntimeError("a broken hook")])


class Unprintable(Exception):
    """Says nothing of itself, as an error of a driver whose connection is gone."""

    def __str__(self) -> str:
        raise RuntimeError("nobody knows")

    __repr__ = __str__


def _raise_unprintable(*_: object) -> None:
    raise Unprintable


class Stopped(BaseException):
    """No `Exception`, as the cancellations of other frameworks are."""


async def _raise_no_exception(*_: object) -> None:
    await trio.lowlevel.checkpoint()
    raise Stopped("a broken hook")


async def _raise_a_group(*_: object) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_raise_no_exception)


async def _suspend(ctx: Context, *_: object) -> None:
    await ctx.sleep(5)


async def _suspend_shielded(ctx: Context, *_: object) -> None:
    with trio.CancelScope(shield=True):
        await ctx.wait("for whom?", timeout=3600)


async def _go(ctx: Context, *_: object) -> None:
    await ctx.goto("two")


@pytest.mark.parametrize("hook", [_raise, _raise_later, _suspend, _suspend_shielded, _go])
@in_virtual_time
async def test_a_broken_middleware(hook):
    """S439: hooks that raise, sync or async, or try to suspend, leave the run as it is; each is reported as
    `engine.error` and the others are called all the same."""
    notes: list[str] = []
    broken = Middleware(before_step=hook, after_step=hook, on_step_error=hook, on_wait=hook)
    flow: Workflow[Any, Any] = Workflow("flow", middleware=[broken, Noting(notes)])

    @flow.step(attempts=2, retry_delay=0)
    async def one(ctx: Context) -> int:
        await ctx.sleep(1)
        if ctx.attempt == 1:
            raise OSError("once")
        return 1

    passing(flow, "two")
    async with open_engine("memory:", flow) as engine:
        errors: list[EngineError] = []
        engine.on("engine.error", errors.append)
        run = await (await engine.start(flow)).wait()
        await idle()
    assert (run.status, run.steps["one"].output, run.steps["one"].attempts) == ("done", 1, 2)
    assert [note.partition(":")[0] for note in notes] == [
        "before", "wait", "before", "error", "before", "after", "before", "after",
    ]  # fmt: skip
    assert len(errors) == len(notes)
    assert {error.context for error in errors} == {"middleware"}
    assert {error.run_id for error in errors} == {run.id}


@pytest.mark.parametrize("hook", [_raise_unprintable, _raise_no_exception, _raise_a_group])
@in_virtual_time
async def test_a_middleware_that_raises_strange_things(hook):
    """Proves that an error that cannot be printed, or is no `Exception`, ends neither the step nor the engine."""
    broken = Middleware(before_step=hook, after_step=hook, on_step_error=hook, on_wait=hook)
    flow: Workflow[Any, Any] = Workflow("flow", middleware=[broken], guards=[Guard(after=hook)])

    @flow.step(attempts=2, retry_delay=0)
    async def one(ctx: Context) -> int:
        await ctx.sleep(1)
        if ctx.attempt == 1:
            raise OSError("once")
        return 1

    async with open_engine("memory:", flow) as engine:
        errors: list[EngineError] = []
        engine.on("engine.error", errors.append)
        run = await (await engine.start(flow)).wait()
        await idle()
    assert (run.status, run.steps["one"].output, run.steps["one"].attempts) == ("done", 1, 2)
    assert Counter(error.context for error in errors) == {"middleware": 6, "guard": 2}


@pytest.mark.parametrize("name", ["before_step", "after_step", "on_step_error", "on_wait"])
@in_virtual_time
async def test_a_hook_that_hangs(name):
    """Proves that a hook has 5 seconds, at nobody's expense: the step's own timeout does not count them."""

    async def hang(*_: object) -> None:
        await trio.sleep_forever()

    flow: Workflow[Any, Any] = Workflow("flow", middleware=[Middleware(**{name: hang})])

    @flow.step(timeout=2, retry_delay=0)
    async def one(ctx: Context) -> int:
        await trio.sleep(1.5)
        await ctx.sleep(1)
        if ctx.attempt == 1:
            raise OSError("once")
        return ctx.attempt

    async with open_engine("memory:", flow) as engine:
        errors: list[EngineError] = []
        engine.on("engine.error", errors.append)
        began = trio.current_time()
        run = await (await engine.start(flow)).wait()
        took = trio.current_time() - began
        await idle()
    assert (run.status, run.output) == ("done", 2)
    held = {"before_step": 3 * HOOK_LIMIT, "on_wait": HOOK_LIMIT - 1, "on_step_error": HOOK_LIMIT, "after_step": 0}
    # Three entries of 1.5 s, one sleep of 1 s (which passes while `on_wait` hangs). Attempt 2 does not sleep again,
    # and what hangs after the last commit holds nobody.
    assert took == pytest.approx(3 * 1.5 + 1 + held[name])
    assert all("TimeoutError" in error.error for error in errors)


@in_virtual_time
async def test_a_cancelled_run_does_not_wait_for_a_hook():
    """Proves that a hook that hangs before the handler ends with the run that is cancelled."""

    async def hang(*_: object) -> None:
        await trio.sleep_forever()

    flow: Workflow[Any, Any] = Workflow("flow", middleware=[Middleware(before_step=hang)])
    passing(flow, "one")
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        began = trio.current_time()
        await handle.cancel()
        assert (await handle.wait()).status == "cancelled"
        assert trio.current_time() == began


@in_virtual_time
async def test_after_a_step_its_commit_is_true():
    """Proves that `after_step`, `on_step_error` and `on_wait` are called after the commit that they tell of."""
    seen: list[tuple[str, str]] = []

    async def look(kind: str, ctx: Context) -> None:
        seen.append((kind, (await engine.get(ctx.run_id)).steps[ctx.step_id].status))

    observer = Middleware(
        after_step=lambda ctx, _output, _duration: look("after", ctx),
        on_step_error=lambda ctx, _error: look("error", ctx),
        on_wait=lambda ctx, _wait: look("wait", ctx),
    )
    flow: Workflow[Any, Any] = Workflow("flow", middleware=[observer])

    @flow.step(attempts=2, retry_delay=1, jitter=0)
    async def one(ctx: Context) -> None:
        await ctx.sleep(1)
        if ctx.attempt == 1:
            raise OSError("once")

    async with open_engine("memory:", flow) as engine:
        await (await engine.start(flow)).wait()
        await idle()
    assert seen == [("wait", "waiting"), ("error", "pending"), ("after", "done")]


@in_virtual_time
async def test_a_skipped_step_and_a_wait_that_is_over():
    """Proves that a step whose handler is not entered is not told of, and a sleep that does not park is no wait."""
    notes: list[str] = []
    flow: Workflow[Any, Any] = Workflow("flow", middleware=[Noting(notes)])
    flow.add_step("skipped", lambda _: 1, skip_if=lambda _: True)

    @flow.step
    async def short(ctx: Context) -> None:
        await ctx.sleep(0)

    @flow.step
    async def leaves(ctx: Context) -> None:
        await ctx.goto("end")

    passing(flow, "end")
    async with open_engine("memory:", flow) as engine:
        assert (await (await engine.start(flow)).wait()).status == "done"
    assert notes == [
        "before:short:1",
        "before:short:1",
        "after:short:1:None:0",
        "before:leaves:1",
        "before:end:1",
        "after:end:1:end:0",
    ]


@in_virtual_time
async def test_an_output_that_the_store_refuses_is_told_as_an_error():
    """Proves that what was not committed is not told as done: the failure that was committed instead is told."""
    notes: list[str] = []
    flow: Workflow[Any, Any] = Workflow("flow", middleware=[Noting(notes)], max_payload_bytes=100)
    flow.add_step("large", lambda _: "x" * 500, attempts=1)
    async with open_engine("memory:", flow) as engine:
        assert (await (await engine.start(flow)).wait()).status == "failed"
    assert [note.split(":")[0] for note in notes] == ["before", "error"]


@in_virtual_time
async def test_each_gets_an_output_of_its_own():
    """Proves that a middleware that changes the output it is given changes nobody else's."""
    seen: list[Any] = []

    def spoil(_ctx: Context, output: Any, _duration: float) -> None:
        seen.append(list(output))
        output.append("spoilt")

    flow: Workflow[Any, Any] = Workflow("flow", middleware=[Middleware(after_step=spoil)] * 2)
    flow.add_step("one", lambda _: [1])
    flow.add_step("two", lambda ctx: ctx.output("one"))
    async with open_engine("memory:", flow) as engine:
        assert await (await engine.start(flow)).result() == [1]
    assert seen == [[1]] * 4


class Foreign:
    """Of no class of ours, with some of the hooks."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes
        self.on_wait = None

    def before_step(self, ctx: Context) -> None:
        self.notes.append(ctx.step_id)


@in_virtual_time
async def test_any_object_with_hooks_will_do():
    """Proves that an object needs no base class and only the hooks it wants."""
    notes: list[str] = []
    flow: Workflow[Any, Any] = Workflow("flow", middleware=[Foreign(notes)])
    passing(flow, "one", "two")
    async with open_engine("memory:", flow) as engine:
        await (await engine.start(flow)).wait()
    assert notes == ["one", "two"]


@pytest.mark.parametrize(
    "given", [5, "text", [object()], [Middleware], [lambda: None], [type("M", (), {"on_wait": 5})()]]
)
@pytest.mark.parametrize("option", ["middleware", "guards"])
def test_what_has_no_hooks_is_refused(option, given):
    """Proves that what can never be called is a mistake told when the workflow is defined."""
    with pytest.raises(DefinitionError, match=option):
        Workflow("flow", **{option: given})


@pytest.mark.parametrize("given", [(), [Middleware()]])
def test_without_hooks_there_is_nothing_to_call(given):
    """Proves that a workflow without hooks, or with none that do anything, has nothing to look through."""
    assert Workflow[Any, Any]("flow", middleware=given).hooks is None


@in_virtual_time
async def test_leaving_the_engine_waits_for_what_is_being_told():
    """Proves that an engine left right after a run has settled lets its hooks end."""
    notes: list[str] = []

    async def slow(_ctx: Context, output: Any, _duration: float) -> None:
        await trio.sleep(1)
        notes.append(output)

    flow: Workflow[Any, Any] = Workflow("flow", middleware=[Middleware(after_step=slow)])
    passing(flow, "one")
    async with open_engine("memory:", flow) as engine:
        await (await engine.start(flow)).wait()
    assert notes == ["one"]


@in_virtual_time
async def test_hooks_cost_no_writes():
    """Proves that a workflow with middleware and guards writes exactly what it writes without."""
    counts: list[int] = []
    for middleware in ((), [Noting([])]):
        flow: Workflow[Any, Any] = Workflow("flow", middleware=middleware)
        passing(flow, "one", "two")
        store = Counting(MemoryStore())
        async with open_engine(cast("Store", store), flow) as engine:
            store.reset()
            await (await engine.start(flow)).wait()
            counts.append(store.documents)
    assert counts == [3, 3]
