"""What tests of whole engines share: skipped time, and runs looked at when nothing moves any more."""

import functools
from collections.abc import Callable, Coroutine
from typing import Any

import trio
import trio.testing
import whenever

from streamline_trio import Run, RunHandle, Step, StepContext, Store, Workflow, open_engine, testing

Handler = Callable[[StepContext[Any, Any]], Coroutine[Any, Any, Any]]


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """The async test as a plain one on skipped time: engines on the memory store live in it."""

    @functools.wraps(test)
    def run(*args: object, **kwargs: object) -> None:
        testing.run(functools.partial(test, *args, **kwargs))

    return run


async def idle() -> None:
    """Until nothing can happen but by the passing of time; on the memory store only."""
    await trio.testing.wait_all_tasks_blocked()


async def at_rest(run: RunHandle) -> Run:
    """The run as it is when nothing can happen but by the passing of time; on the memory store only."""
    await idle()
    return await run.get()


def one_step(handler: Handler, **options: Any) -> Workflow[Any, Any]:
    """A workflow `flow` of one step `step`."""
    workflow: Workflow[Any, Any] = Workflow("flow")
    workflow.add_step("step", handler, **options)
    return workflow


def passing(workflow: Workflow[Any, Any], *ids: str, calls: list[str] | None = None) -> list[Step[Any]]:
    """Add steps that note their call and return their id."""

    async def handler(ctx: StepContext[Any, Any]) -> Any:
        if calls is not None:
            calls.append(ctx.step_id)
        return ctx.step_id

    return [workflow.add_step(step_id, handler) for step_id in ids]


def statuses(run: Run) -> dict[str, str]:
    """The status of every step."""
    return {step_id: step.status for step_id, step in run.steps.items()}


async def settled(
    workflow: Workflow[Any, Any], value: Any = None, store: Store | str = "memory:", **options: Any
) -> Run:
    """One run from start to settlement, on an engine of its own."""
    async with open_engine(store, workflow) as engine:
        run = await engine.start(workflow, value, **options)
        return await run.wait()


def between(start: whenever.Instant | None, end: whenever.Instant | None) -> float:
    """Seconds from one instant to another."""
    assert start is not None
    assert end is not None
    return (end - start).total("seconds")
