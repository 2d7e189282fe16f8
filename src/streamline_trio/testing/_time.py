"""Programs on skipped time: a year passes in milliseconds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar, TypeVarTuple

import trio
import trio.testing
import whenever

from streamline_trio._core.durations import instant_millis
from streamline_trio._runtime.clock import VirtualClock, virtual_clock

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

START = whenever.Instant.from_utc(2026, 1, 1)


def run(
    async_fn: Callable[[*Ts], Awaitable[T]],
    *args: *Ts,
    start: datetime | whenever.Instant = START,
) -> T:
    """`trio.run`, but whenever nothing can happen the clock skips to the next thing that will.

    Engines opened inside on `memory:` live in virtual time from `start`: wall time is `start` plus what has
    passed on trio's clock. Time does not skip while a sync handler's thread runs.
    """
    clock = trio.testing.MockClock(autojump_threshold=0)

    async def main() -> T:
        token = virtual_clock.set(VirtualClock(instant_millis(start, what="start"), clock))
        try:
            return await async_fn(*args)
        finally:
            virtual_clock.reset(token)

    return trio.run(main, clock=clock)
