"""Handlers that misuse trio fail their own step, and nothing else."""

from typing import Any

import pytest
import trio

from streamline_trio import RunFailed, StepContext, Workflow, open_engine
from tests.crash.scenes import virtual


async def failure_of(workflow: Workflow[Any, Any]) -> Any:
    """How a run of the workflow fails, beside one of another workflow that must not notice."""
    other = Workflow[None, None]("other")

    @other.step
    async def works(ctx: StepContext[None]) -> str:
        await ctx.sleep(1)
        return "done"

    async with open_engine("memory:", workflow, other) as engine:
        beside = await engine.start(other, None)
        with pytest.raises(RunFailed) as failed:
            await (await engine.start(workflow, None)).result(timeout=60)
        assert await beside.result(timeout=60) == "done"
    return failed.value.run


@virtual
@pytest.mark.parametrize("deadline", [0.0, 5.0, 1e9])
async def test_a_scope_that_was_left_open_fails_its_step(deadline):
    """Proves that a handler's stray scope reaches neither the commit of its step nor the next step."""
    kept = []
    workflow = Workflow[None, None]("leaves-a-scope")

    async def lines():
        with trio.move_on_after(deadline):
            yield 1

    @workflow.step
    async def opens(ctx):
        generator = lines()
        kept.append(generator)
        async for _ in generator:
            break

    @workflow.step
    async def follows(ctx):
        raise AssertionError("the step before has failed")

    run = await failure_of(workflow)
    assert run.steps["opens"].status == "failed"
    assert "scope" in run.error.message
    assert run.steps["follows"].status == "pending"


@virtual
@pytest.mark.parametrize("verb", ["sleep", "wait", "goto"])
async def test_a_context_of_an_earlier_step_cannot_suspend(verb):
    """Proves that a context that is kept past its call unwinds nobody else's handler."""
    kept: list[StepContext[None]] = []
    workflow = Workflow[None, None]("keeps-a-context")

    @workflow.step
    async def keeps(ctx: StepContext[None]) -> None:
        kept.append(ctx)

    @workflow.step
    async def uses(ctx: StepContext[None]) -> None:
        arguments = {"sleep": 5, "wait": "why", "goto": "keeps"}
        await getattr(kept[0], verb)(arguments[verb])

    run = await failure_of(workflow)
    assert run.steps["uses"].error.type == "SuspensionError"
    assert "has ended" in run.error.message


@virtual
async def test_a_cancellation_that_is_nobodys_fails_its_step():
    """Proves that a `trio.Cancelled` that was kept and raised again does not end the engine."""
    workflow = Workflow[None, None]("raises-a-cancellation")

    @workflow.step
    async def raises(ctx: StepContext[None]) -> None:
        kept: trio.Cancelled | None = None
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as error:
                kept = error
        assert kept is not None
        raise kept

    run = await failure_of(workflow)
    assert "no scope around it was cancelled" in run.error.message


@virtual
async def test_an_interrupt_in_a_nursery_of_a_handler_is_not_swallowed():
    """Proves that Ctrl-C ends the program also when it strikes a child of a handler."""
    workflow = Workflow[None, None]("interrupted")

    async def interrupted() -> None:
        raise KeyboardInterrupt

    @workflow.step
    async def opens(ctx: StepContext[None]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupted)

    with pytest.raises(KeyboardInterrupt):
        async with open_engine("memory:", workflow) as engine:
            await (await engine.start(workflow, None)).result(timeout=60)
