"""Guards: asked before a step's handler, or a scatter key's function, is called; they may refuse it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from streamline_trio._core.checking import is_text, storable_repr
from streamline_trio._core.errors import GuardRefused
from streamline_trio._core.hooks import GuardHooks, passive
from streamline_trio._runtime.middleware import must_pass, observe

if TYPE_CHECKING:
    from streamline_trio._runtime.context import StepContext
    from streamline_trio._runtime.driver import Driver

T = TypeVar("T")

_LONGEST_REASON = 1000


@dataclass(frozen=True, kw_only=True)
class GuardCall:
    """What a guard is asked about: a step, or with `key` one key of a scatter in it. `ctx` has the rest."""

    run_id: str
    workflow: str
    step: str
    key: str | None
    attempt: int
    tenant: str | None
    ctx: StepContext[Any, Any, Any]


class Guard:
    """May refuse steps and scatter keys: override its methods, or pass them as functions; sync or async.

    `Workflow(..., guards=(...))` asks `before` in order, once in each attempt, before the handler is called; not
    when it is entered again after a wait. True and None allow. False, a text (the reason), a raised error and
    anything else refuse: the step fails with `GuardRefused` and is not retried. What it takes counts towards the
    step's timeout. `after` tells each guard that was asked how the attempt ended, once that is committed: with its
    result or its error, after so many seconds since it was last entered; not what ends in a wait, is cancelled, or
    crashes. It has 5 seconds; what it raises is logged and published as `engine.error` with the context `guard`.
    Errors call the guard by its `name`.
    """

    def __init__(
        self,
        *,
        before: Callable[[GuardCall], Any] | None = None,
        after: Callable[[GuardCall, Any, BaseException | None, float], Any] | None = None,
        name: str | None = None,
    ) -> None:
        if name is not None:
            self.name = name
        for hook_name, hook in (("before", before), ("after", after)):
            if hook is not None:
                setattr(self, hook_name, hook)

    name: str = ""

    @passive
    def before(self, call: GuardCall) -> Any:
        """Whether it may run: True or None; or why not."""

    @passive
    def after(self, call: GuardCall, result: Any, error: BaseException | None, duration: float) -> Any:
        """How it ended: with `result`, or with `error`, after so many seconds."""


class Guarding:
    """The guards of one call: of a handler, or of the function of a scatter key."""

    __slots__ = ("_asked", "_began", "_call", "_driver", "_guards")

    def __init__(self, driver: Driver, ctx: StepContext[Any, Any, Any], key: str | None = None) -> None:
        hooks = driver.workflow.hooks
        self._driver = driver
        self._guards: tuple[GuardHooks, ...] = () if hooks is None else hooks.guards
        self._asked: tuple[GuardHooks, ...] = ()
        self._began = 0.0
        self._call = GuardCall(
            run_id=ctx.run_id,
            workflow=ctx.workflow,
            step=ctx.step_id,
            key=key,
            attempt=ctx.attempt,
            tenant=ctx.tenant,
            ctx=ctx,
        )

    async def admit(self, *, again: bool = False) -> None:
        """Ask each guard; the first that refuses raises `GuardRefused`. `again`: they allowed it before a wait."""
        self._began = trio.current_time()
        if again:
            self._asked = self._guards
            return
        for number, guard in enumerate(self._guards, start=1):
            self._asked = self._guards[:number]
            if guard.before is not None:
                await self._ask(guard, guard.before)
        self._began = trio.current_time()

    async def _ask(self, guard: GuardHooks, before: Callable[[GuardCall], Any]) -> None:
        try:
            answer = before(self._call)
            if inspect.isawaitable(answer):
                answer = await answer
        except BaseException as error:
            if must_pass(error):
                raise
            raise self._refused(guard, f"it raised {storable_repr(error, _LONGEST_REASON)}") from error
        if answer is not True and answer is not None:
            raise self._refused(guard, _reason(answer))

    def _refused(self, guard: GuardHooks, reason: str) -> GuardRefused:
        call = self._call
        what = f"step {call.step}" + ("" if call.key is None else f", key {call.key}")
        return GuardRefused(
            f"{what} of run {call.run_id} was refused by {guard.name}: {reason}",
            run_id=call.run_id,
            step=call.step,
            key=call.key,
            guard=guard.name,
            reason=reason,
        )

    async def tell(self, result: Any, error: BaseException | None) -> None:
        """Tell those that were asked how it ended."""
        duration = max(0.0, trio.current_time() - self._began)
        for guard in self._asked:
            if guard.after is not None:
                told = partial(guard.after, self._call, result, error, duration)
                await observe(self._driver, "guard", guard.after, told)


async def guarded(
    driver: Driver,
    ctx: StepContext[Any, Any, Any],
    key: str | None,
    call: Callable[[], Awaitable[T]],
    *,
    again: bool = False,
) -> T:
    """Run a function under the workflow's guards; what it gives or raises, or `GuardRefused`.

    `again`: it was allowed in this attempt and goes on after a wait. A suspension passes untouched.
    """
    hooks = driver.workflow.hooks
    if hooks is None or not hooks.guards:
        return await call()
    guarding = Guarding(driver, ctx, key)
    try:
        await guarding.admit(again=again)
        result = await call()
    except Exception as error:
        await guarding.tell(None, error)
        raise
    await guarding.tell(result, None)
    return result


def _reason(answer: object) -> str:
    if is_text(answer, _LONGEST_REASON):
        return str(answer)
    return "no reason was given" if answer is False else f"it answered {storable_repr(answer, _LONGEST_REASON)}"
