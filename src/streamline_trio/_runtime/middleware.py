"""Middleware: told of what a workflow's steps do; whatever it does itself never reaches them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from streamline_trio._core import payload
from streamline_trio._core.checking import storable_repr
from streamline_trio._core.happenings import AttemptFailed, Finished, Happening, Suspended
from streamline_trio._core.hooks import Hook, passive
from streamline_trio._runtime.snapshot import WaitState, wait_state

if TYPE_CHECKING:
    from streamline_trio._runtime.context import StepContext
    from streamline_trio._runtime.driver import Driver

HOOK_LIMIT = 5.0
"""After so many seconds a hook is cancelled: it must not hold a step."""

_LONGEST_NAME = 200


class Middleware:
    """Observes the steps of a workflow: override its methods, or pass them as functions; sync or async.

    `Workflow(..., middleware=(...))` calls them in order, each for at most 5 seconds. They cannot suspend, and what
    they raise is logged and published as `engine.error` with the context `middleware`; the step never notices. They
    are called at most once for what they tell of: not again for what was told before a crash. `ctx` can be read;
    after the commit that ends a call of the handler it writes nothing any more.
    """

    def __init__(
        self,
        *,
        before_step: Callable[[StepContext[Any, Any, Any]], Any] | None = None,
        after_step: Callable[[StepContext[Any, Any, Any], Any, float], Any] | None = None,
        on_step_error: Callable[[StepContext[Any, Any, Any], BaseException], Any] | None = None,
        on_wait: Callable[[StepContext[Any, Any, Any], WaitState], Any] | None = None,
    ) -> None:
        given = {
            "before_step": before_step,
            "after_step": after_step,
            "on_step_error": on_step_error,
            "on_wait": on_wait,
        }
        for name, hook in given.items():
            if hook is not None:
                setattr(self, name, hook)

    @passive
    def before_step(self, ctx: StepContext[Any, Any, Any]) -> Any:
        """The handler is about to be entered: for each attempt, and again after each wait."""

    @passive
    def after_step(self, ctx: StepContext[Any, Any, Any], output: Any, duration: float) -> Any:
        """The step is done, and that is committed; `duration` in seconds, of its last attempt, with its waits."""

    @passive
    def on_step_error(self, ctx: StepContext[Any, Any, Any], error: BaseException) -> Any:
        """An attempt has failed, and that is committed, whether it is retried or not."""

    @passive
    def on_wait(self, ctx: StepContext[Any, Any, Any], wait: WaitState) -> Any:
        """The run has parked on this wait, and that is committed."""


async def observe(driver: Driver, context: str, hook: Hook, call: Callable[[], Any]) -> None:
    """Call a hook, sync or async, for a bounded time; what it raises is reported."""
    with trio.move_on_after(HOOK_LIMIT) as scope:
        try:
            waiting = call()
            if inspect.isawaitable(waiting):
                await waiting
        except BaseException as error:
            if must_pass(error):
                raise
            driver.services.report(context, error, driver.run)
    if scope.cancelled_caught:
        late = TimeoutError(f"{storable_repr(hook, _LONGEST_NAME)} did not return within {HOOK_LIMIT:g} s")
        driver.services.report(context, late, driver.run)


def must_pass(error: BaseException) -> bool:
    """Whether it is no failure of a hook: a cancellation, or that somebody wants the process to end."""
    if isinstance(error, BaseExceptionGroup):
        return any(must_pass(member) for member in error.exceptions)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType, reportUnknownArgumentType] - a group of any errors
    return isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit, trio.Cancelled))


async def tell_entry(driver: Driver, ctx: StepContext[Any, Any, Any]) -> None:
    """The handler is about to be entered."""
    hooks = driver.workflow.hooks
    for hook in () if hooks is None else hooks.before_step:
        await observe(driver, "middleware", hook, partial(hook, ctx))


async def tell_end(
    driver: Driver, ctx: StepContext[Any, Any, Any], happening: Happening, error: BaseException | None
) -> None:
    """How an entry ended, once that is committed."""
    hooks = driver.workflow.hooks
    if hooks is None:
        return
    if isinstance(happening, Finished):
        for hook in hooks.after_step:
            await observe(driver, "middleware", hook, partial(_tell_done, hook, driver, ctx, happening))
    elif isinstance(happening, AttemptFailed):
        for hook in hooks.on_step_error:
            await observe(driver, "middleware", hook, partial(hook, ctx, error))
    elif isinstance(happening, Suspended):
        for hook in hooks.on_wait:
            for wait in _waits(driver, happening):
                await observe(driver, "middleware", hook, partial(hook, ctx, wait))


def _tell_done(hook: Hook, driver: Driver, ctx: StepContext[Any, Any, Any], happening: Finished) -> Any:
    """The output as others see it: each is given one of its own."""
    decoder: payload.Decoder = driver.workflow.steps[happening.step].decoder
    output = decoder.decode(happening.output, what=f"the output of step {happening.step}")
    step = driver.run.step(happening.step)
    ends = (step.started_at, step.ended_at)
    duration = 0 if ends[0] is None or ends[1] is None else max(0, ends[1] - ends[0])
    return hook(ctx, output, duration / 1000)


def _waits(driver: Driver, happening: Suspended) -> list[WaitState]:
    """Those that the run has parked on: not those that were over before."""
    if driver.writer.is_held:
        return []
    records = [driver.run.records.get(ask.key) for ask in happening.asks]
    return [wait_state(record) for record in records if record is not None and record.is_open]
