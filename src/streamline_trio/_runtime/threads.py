"""Sync handlers run in threads, on the engine's own limiter."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import trio

from streamline_trio._runtime.clock import virtual_clock


class HandlerThreads:
    """Runs sync handlers; counts those that outlived their cancellation and are left to themselves."""

    def __init__(self, limit: int, logger: logging.Logger) -> None:
        self._logger = logger
        self._limiter = trio.CapacityLimiter(limit)
        self.abandoned: int = 0

    async def run(self, handler: Callable[[Any], Any], ctx: Any) -> Any:
        """Call the handler in a thread. When cancelled it is abandoned: a thread cannot be stopped."""
        done = False

        def call() -> tuple[Any]:
            nonlocal done
            try:
                return (handler(ctx),)  # wrapped, since trio refuses an awaitable, which the caller may await
            finally:
                done = True

        clock = virtual_clock.get()
        try:
            with nullcontext() if clock is None else clock.held():
                results = await trio.to_thread.run_sync(call, limiter=self._limiter, abandon_on_cancel=True)
                return results[0]
        except trio.Cancelled:
            if not done:
                self.abandoned += 1
                self._logger.warning(
                    "step %s of run %s goes on in its thread after it was cancelled: what it returns is dropped",
                    ctx.step_id,
                    ctx.run_id,
                )
            raise
