"""What handlers of a simulated world do that no handler should: it fails their own step, and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import trio

from streamline_trio._core.errors import LeaseLost, SuspensionError
from streamline_trio._runtime.context import StepContext

if TYPE_CHECKING:
    from streamline_trio.testing._world_drawing import Op

Context = StepContext[Any, Any, Any]

_STALE: tuple[Callable[[Context], Awaitable[Any]], ...] = (
    lambda ctx: ctx.set(count=-1),
    lambda ctx: ctx.sleep(1.0),
    lambda ctx: ctx.goto(ctx.step_id),
    lambda ctx: ctx.once("stale", lambda: -1),
    lambda ctx: ctx.checkpoint(-1),
)
STALE_VERBS = len(_STALE)
MISUSES = frozenset({"leak", "stray"})
"""The kinds that fail the attempt, up to the one that their size says."""


class Misuses(ABC):
    """Operations of drawn programs."""

    def __init__(self) -> None:
        self._contexts: list[Context] = []
        self._scopes: list[trio.CancelScope] = []

    @abstractmethod
    def _wrong(self, text: str) -> None:
        """Note that a promise was not kept."""

    async def _do_leak(self, ctx: Context, op: Op, where: str, _got: list[Any]) -> None:
        """Leave a cancel scope open, with a deadline or without."""
        if ctx.attempt <= op.size:
            scope = trio.CancelScope()
            if len(where) % 2:
                scope.deadline = trio.current_time() + 2
            scope.__enter__()
            self._scopes.append(scope)

    async def _do_stray(self, ctx: Context, op: Op, _where: str, _got: list[Any]) -> None:
        """Raise a cancellation of a scope that is long gone."""
        if ctx.attempt > op.size:
            return
        kept: trio.Cancelled | None = None
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as error:
                kept = error
        assert kept is not None
        raise kept

    async def _do_stale(self, _ctx: Context, op: Op, _where: str, _got: list[Any]) -> None:
        """Use the context of a call that has ended, of this run or another one."""
        for stale in reversed(self._contexts):
            if stale._suspender.ended:  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - shipped with it
                await self._use(stale, int(op.size))
                return

    async def _use(self, stale: Context, verb: int) -> None:
        try:
            await _STALE[verb](stale)
        except (LeaseLost, SuspensionError):
            return
        self._wrong(f"{stale.run_id}: a context whose call has ended still works")
