"""Child workflows (CHILD): a step starts a run of another workflow, once, and waits for it."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio

from streamline_trio import (
    ChildFailed,
    InvalidState,
    MemoryStore,
    NonRetriable,
    RunFailed,
    StepContext,
    ValidationError,
    WaitState,
    Workflow,
    WorkflowNotFound,
    open_engine,
)
from streamline_trio.testing import crash
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, one_step

Context = StepContext[Any, Any]


class Doubled(msgspec.Struct):
    result: int


doubling: Workflow[int, int] = Workflow("doubling", input=int)


@doubling.step(attempts=1)
async def double(ctx: StepContext[int, int]) -> Doubled:
    await ctx.sleep(5)
    if ctx.input < 0:
        raise NonRetriable("it is negative")
    return Doubled(ctx.input * 2)


asking: Workflow[Any, Any] = Workflow("asking")


@asking.step
async def ask(ctx: Context) -> int:
    answer: int = await ctx.wait("how many?", returns=int)
    return answer


def one_step_of(act: Callable[[Context], Awaitable[Any]], **options: Any) -> Workflow[Any, Any]:
    """A workflow of one step, which does this."""

    async def step(ctx: Context) -> Any:
        return await act(ctx)

    return one_step(step, **options)


def wait_of(run: Any) -> WaitState:
    wait: WaitState = run.steps[run.current_step].wait
    return wait


def parent_of(child: Any, value: Any = None, **options: Any) -> Workflow[Any, Any]:
    """`prepare`, `delegate` to the child, `process` its output."""
    parent: Workflow[Any, Any] = Workflow("parent")

    @parent.step
    async def prepare(_ctx: Context) -> None: ...

    @parent.step(attempts=1)
    async def delegate(ctx: Context) -> Any:
        return await ctx.child(child, ctx.input if value is None else value, **options)

    @parent.step
    async def process(ctx: Context) -> Any:
        return ctx.output(delegate)

    return parent


@in_virtual_time
async def test_the_parent_parks_and_shows_its_child():
    """S224, S226: the wait of a parent is of kind child and names the child's run; the child names its parent."""
    parent = parent_of(doubling)
    async with open_engine("memory:", parent, doubling) as engine:
        run = await engine.start(parent, 21, priority=7, user="u")
        seen = await at_rest(run)
        wait = wait_of(seen)
        assert (seen.status, wait.kind, wait.reason) == ("waiting", "child", "doubling")
        assert [found.id for found in await engine.find(waiting="child")] == [run.id]
        child = await engine.get(wait.child)
        assert (child.workflow, child.input, child.priority, child.user) == ("doubling", 21, 7, None)
        assert child.parent is not None
        assert (child.parent.run, child.parent.step) == (run.id, "delegate")
        assert [found.id for found in await engine.find(parent=run)] == [child.id]
        assert [entry.detail for entry in await run.timeline() if entry.kind == "waiting"] == ["doubling"]


@in_virtual_time
async def test_the_output_of_the_child_is_what_child_gives():
    """S225: the child's output, rebuilt in its type, is what the handler gets; the step goes on with it."""
    parent = parent_of(doubling)
    async with open_engine("memory:", parent, doubling) as engine:
        run = await engine.start(parent, 21)
        settled = await run.wait(10)
        assert settled.status == "done"
        assert await run.output("delegate") == {"result": 42}
        assert settled.steps["delegate"].attempts == 1
        assert await engine.count(workflow="doubling") == 1


@in_virtual_time
async def test_the_child_is_typed_and_may_be_named_by_its_id():
    """Proves that the output comes as the type of the child's step, also when the workflow was given by its id."""
    seen = list[Any]()
    parent = one_step_of(lambda ctx: _keep(seen, ctx.child("doubling", 3)))
    async with open_engine("memory:", parent, doubling) as engine:
        await (await engine.start(parent)).wait(10)
    assert seen == [Doubled(6)]


async def _keep(seen: list[Any], coming: Any) -> None:
    seen.append(await coming)


@in_virtual_time
async def test_an_unknown_workflow_is_refused_before_anything_is_started():
    """Proves that a text that names no workflow of the engine, and an input that does not fit, start nothing."""
    errors = list[type[Exception]]()

    async def step(ctx: Context) -> None:
        wrong: list[tuple[Any, Any]] = [("nobody", 1), (doubling, "text")]
        for workflow, value in wrong:
            try:
                await ctx.child(workflow, value)
            except (WorkflowNotFound, ValidationError) as error:
                errors.append(type(error))

    parent = one_step(step)
    async with open_engine("memory:", parent, doubling) as engine:
        run = await engine.start(parent)
        assert (await run.wait()).status == "done"
        assert await engine.count(parent=run) == 0
    assert errors == [WorkflowNotFound, ValidationError]


@in_virtual_time
async def test_a_child_of_another_engine_wakes_the_parent():
    """S228, S236: a definition that this engine was not given may be passed: who has it runs the child."""
    store = MemoryStore()
    parent = parent_of(doubling)
    async with open_engine(store, parent) as engine:
        run = await engine.start(parent, 21)
        seen = await at_rest(run)
        assert (seen.status, (await engine.get(wait_of(seen).child)).status) == ("waiting", "draft")
        assert (await engine.get(wait_of(seen).child)).steps.keys() == {"double"}
        async with open_engine(store, doubling):
            assert (await run.wait(10)).output == {"result": 42}


@in_virtual_time
async def test_a_result_given_by_hand_stands_for_the_child():
    """S227: a payload for a parent that waits for a child is the child's output, and the child is cancelled."""
    parent = parent_of(doubling)
    async with open_engine("memory:", parent) as engine:
        run = await engine.start(parent, 21)
        child = wait_of(await at_rest(run)).child
        with pytest.raises(InvalidState, match="it waits for its child"):
            await run.resume()
        with pytest.raises(ValidationError):
            await run.resume("of another type than the child's last step returns")
        await run.resume({"result": 84})
        assert (await run.wait()).output == {"result": 84}
        await idle()
        cancelled = await engine.get(child)
        assert (cancelled.status, cancelled.cancel_reason) == (
            "cancelled",
            f"its parent, run {run.id}, no longer waits for it",
        )


@in_virtual_time
async def test_a_failed_child_fails_the_step_with_its_message():
    """S230: `ChildFailed` carries the child's run and message; it is not retried, so there is one child."""
    parent = one_step_of(lambda ctx: ctx.child(doubling, -1))
    async with open_engine("memory:", parent, doubling) as engine:
        run = await engine.start(parent)
        with pytest.raises(RunFailed, match="it is negative") as raised:
            await run.result(100)
        error = raised.value.run.error
        assert (error.code, error.type, error.step) == ("workflow.child_failed", "ChildFailed", "step")
        assert await engine.count(parent=run) == 1


@in_virtual_time
async def test_a_failed_child_may_be_returned():
    """Proves that with on_failure="return" the handler gets the error, with the child's run, and goes on."""
    seen = list[Any]()
    parent = one_step_of(lambda ctx: _keep(seen, ctx.child(doubling, -1, on_failure="return")))
    async with open_engine("memory:", parent, doubling) as engine:
        run = await engine.start(parent)
        assert (await run.wait(100)).status == "done"
    (failure,) = seen
    assert isinstance(failure, ChildFailed)
    assert (failure.run.status, failure.run.error.message) == ("failed", "it is negative")


@in_virtual_time
async def test_a_retry_that_is_asked_for_starts_a_new_child():
    """Proves that an attempt after a failed one asks afresh, and that what succeeded is not started again."""
    calls = list[int]()

    async def step(ctx: Context) -> int:
        good = await ctx.child(doubling, 1, name="good")
        calls.append(ctx.attempt)
        bad = await ctx.child(doubling, -1 if ctx.attempt < 3 else 5, name="bad")
        return int(good.result + bad.result)

    parent = one_step(step, attempts=3, retry_on=ChildFailed, retry_delay=1)
    async with open_engine("memory:", parent, doubling) as engine:
        run = await engine.start(parent)
        assert await run.result(1000) == 12
        statuses = [child.status for child in await engine.find(parent=run, sort="created_at")]
    assert statuses == ["done", "failed", "failed", "done"]
    assert calls == [1, 1, 2, 2, 3, 3]


@in_virtual_time
async def test_retry_and_rewind_start_new_children():
    """W8: a run that is retried or rewound does not adopt the child of the attempt before it."""
    parent = parent_of(asking, "x")
    async with open_engine("memory:", parent, asking) as engine:
        run = await engine.start(parent)
        first = wait_of(await at_rest(run)).child
        await engine.run(first).cancel("enough")
        await idle()
        failed = await run.get()
        assert failed.status == "failed"
        assert failed.error is not None
        assert failed.error.message.endswith("was cancelled: enough")
        await run.retry()
        second = wait_of(await at_rest(run)).child
        await engine.run(second).resume(4)
        assert (await run.wait()).output == 4
        await run.rewind("delegate")
        third = wait_of(await at_rest(run)).child
        assert len({first, second, third}) == 3
        children = await engine.find(parent=run)
        assert sorted(child.parent.generation for child in children if child.parent) == [0, 0, 1]


@pytest.mark.parametrize("how", ["failed", "cancelled"])
@in_virtual_time
async def test_every_settled_status_wakes_the_parent(how):
    """W8: a child that fails or is cancelled wakes its parent as one that is done does."""
    seen = list[str]()
    parent = one_step_of(lambda ctx: _note_status(seen, ctx))
    async with open_engine("memory:", parent, asking) as engine:
        run = await engine.start(parent)
        child = engine.run(wait_of(await at_rest(run)).child)
        if how == "cancelled":
            await child.cancel("no need")
        else:
            await child.withdraw("nobody knows")
        assert (await run.wait(100)).status == "done"
    assert seen == [how]


async def _note_status(seen: list[str], ctx: Context) -> None:
    failure = await ctx.child(asking, on_failure="return")
    assert isinstance(failure, ChildFailed)
    seen.append(failure.run.status)


@in_virtual_time
async def test_a_long_child_keeps_its_parent_parked():
    """S231, S240: while the child is active the parent is parked, due for nothing and polled by nobody."""
    parent = parent_of(asking, "x")
    async with open_engine("memory:", parent, asking) as engine:
        run = await engine.start(parent)
        before = await at_rest(run)
        await trio.sleep(10 * 86_400)
        after = await run.get()
        assert (after.status, after.due_at, after.revision) == ("waiting", None, before.revision)
        assert (await engine.stats()).driving == 0


@in_virtual_time
async def test_cancelling_the_parent_cancels_the_child():
    """S239: the child of a cancelled parent is cancelled, with a reason that names the parent."""
    parent = parent_of(asking, "x")
    async with open_engine("memory:", parent, asking) as engine:
        run = await engine.start(parent)
        child = wait_of(await at_rest(run)).child
        await run.cancel("not needed")
        await idle()
        assert (await run.get()).status == "cancelled"
        cancelled = await engine.get(child)
        assert (cancelled.status, cancelled.cancel_reason) == (
            "cancelled",
            f"its parent, run {run.id}, is cancelled",
        )
        assert (await run.get()).revision == (await at_rest(run)).revision


@in_virtual_time
async def test_a_child_in_its_handler_unwinds_first():
    """Proves that a running child of a cancelled parent settles after its handler has cleaned up."""
    order = list[str]()
    entered = trio.Event()

    async def work(_ctx: Context) -> None:
        entered.set()
        try:
            await trio.sleep_forever()
        finally:
            order.append("cleaned up")

    child: Workflow[Any, Any] = Workflow("child")
    child.add_step("work", work)
    parent = one_step_of(lambda ctx: ctx.child(child))
    async with open_engine("memory:", parent, child) as engine:
        engine.on("workflow.cancelled", lambda event: order.append(event.workflow))
        run = await engine.start(parent)
        await entered.wait()
        await run.cancel()
        await idle()
    assert order == ["flow", "cleaned up", "child"]


@pytest.mark.parametrize("end", ["timeout", "failure"])
@in_virtual_time
async def test_a_parent_that_ends_otherwise_cancels_its_child(end):
    """Proves that a child is cancelled too when its parent overruns its timeout, or fails with the child open."""
    parent: Workflow[Any, Any] = Workflow("flow", timeout=60 if end == "timeout" else None)

    @parent.step(attempts=1)
    async def step(ctx: Context) -> None:
        if end == "failure":
            with trio.move_on_after(0):
                await ctx.child(asking)
            await idle()
        else:
            await ctx.child(asking)
        raise ValueError("it fails with its child open")

    async with open_engine("memory:", parent, asking) as engine:
        run = await engine.start(parent)
        assert (await run.wait(100)).status == "failed"
        await idle()
        assert {child.status for child in await engine.find(parent=run)} <= {"cancelled"}


@in_virtual_time
async def test_three_levels_are_cancelled_across_engines():
    """Proves that a cancellation reaches children and theirs, each run by a worker of its own."""
    store = MemoryStore()
    leaf = asking
    middle: Workflow[Any, Any] = Workflow("middle")

    @middle.step
    async def delegate(ctx: Context) -> None:
        await ctx.child(leaf)

    top = one_step_of(lambda ctx: ctx.child(middle))
    async with open_engine(store, top) as engine, open_engine(store, middle), open_engine(store, leaf):
        run = await engine.start(top)
        await idle()
        tree = await run.tree()
        assert [tree.run.workflow, tree.children[0].run.workflow, tree.children[0].children[0].run.workflow] == [
            "flow",
            "middle",
            "asking",
        ]
        await run.cancel("all of it")
        await idle()
        assert {found.status for found in await engine.find()} == {"cancelled"}
        await crash(engine)


@in_virtual_time
async def test_a_tree_is_bounded():
    """Proves that `tree` goes level by level, and tells where it left something out."""
    middle: Workflow[Any, Any] = Workflow("middle")

    @middle.step
    async def delegate(ctx: Context) -> None:
        await ctx.child(asking)

    top = one_step_of(lambda ctx: ctx.child(middle))
    async with open_engine("memory:", top, middle, asking) as engine:
        run = await engine.start(top)
        await idle()
        tree = await run.tree(depth=1)
        assert (len(tree.children), tree.truncated) == (1, False)
        assert (tree.children[0].children, tree.children[0].truncated) == ((), True)
        alone = await run.tree(limit=1)
        assert (alone.children, alone.truncated) == ((), True)
        whole = await run.tree(depth=2, limit=3)
        assert not whole.children[0].children[0].truncated
        with pytest.raises(ValidationError, match="depth"):
            await run.tree(depth=-1)
        with pytest.raises(ValidationError, match="limit"):
            await run.tree(limit=0)


@in_virtual_time
async def test_children_of_a_live_parent_are_not_deleted():
    """Proves that `delete` leaves what a run may still read, and takes it once the parent has settled."""

    async def step(ctx: Context) -> None:
        await ctx.child(doubling, 2)
        await ctx.wait("go on?")

    parent = one_step(step)
    async with open_engine("memory:", parent, doubling) as engine:
        run = await engine.start(parent)
        await idle()
        await trio.sleep(10)
        assert await engine.count(workflow="doubling", status="done") == 1
        assert await engine.delete() == 0
        await run.resume("yes")
        await run.wait()
        assert await engine.delete() == 2


@in_virtual_time
async def test_options_of_a_child():
    """Proves that priority, tags, meta and user of a child are stored, and refused where they are none."""
    given: dict[str, Any] = {"priority": -3, "tags": ["a"], "meta": {"k": 1}, "user": "me"}
    wrong: list[dict[str, Any]] = [
        {"priority": 101},
        {"tags": "a"},
        {"meta": 1},
        {"user": ""},
        {"on_failure": "no"},
    ]
    refused = list[str]()

    async def step(ctx: Context) -> None:
        for options in wrong:
            try:
                await ctx.child(doubling, 1, **options)
            except ValidationError as error:
                refused.append(str(error).split(" ")[1])
        await ctx.child(doubling, 1, **given)

    parent = one_step(step)
    async with open_engine("memory:", parent, doubling) as engine:
        run = await engine.start(parent)
        await run.wait(100)
        (child,) = await engine.find(parent=run)
        assert (child.priority, child.tags, child.meta, child.user) == (-3, ("a",), {"k": 1}, "me")
    assert refused == ["priority", "tags", "meta", "user", "on_failure"] * 2


@in_virtual_time
async def test_a_child_whose_steps_were_all_skipped_has_no_output() -> None:
    """Proves that a typed parent gets None, as `result()` of such a run does, and does not fail over its type."""
    idle: Workflow[Any, Any] = Workflow("idle")

    @idle.step(skip_if=lambda _state: True)
    async def never(_ctx: StepContext[Any, Any]) -> list[int]:
        return [1]

    parent: Workflow[Any, Any] = Workflow("parent")

    @parent.step(attempts=1)
    async def ask(ctx: StepContext[Any, Any]) -> str:
        return repr(await ctx.child(idle, {}))

    async with open_engine("memory:", idle, parent) as engine:
        assert await (await engine.start(parent, {})).result() == "None"
