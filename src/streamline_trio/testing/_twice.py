"""An engine whose deliveries from outside come twice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from streamline_trio import Engine, InvalidState, RunHandle, TokenInvalid, ValidationError
from streamline_trio.testing._mishaps import DeliverTwice

T = TypeVar("T")

LONGEST_WAIT = 5.0
"""How long (seconds) a second delivery waits until nothing is under way."""

_LOOK = 0.01
_REFUSALS = (InvalidState, TokenInvalid, ValidationError)


class _Deliveries:
    """Counts deliveries; carries one of them out twice."""

    def __init__(self, engine: Engine, mishap: DeliverTwice, tell: Callable[[str], None]) -> None:
        self._engine = engine
        self._mishap = mishap
        self._tell = tell
        self._count = 0

    async def carry_out(self, what: str, deliver: Callable[[], Awaitable[T]]) -> T:
        """Deliver; what the caller gets is the outcome of the first time."""
        number, self._count = self._count, self._count + 1
        outcome = await deliver()
        if number == self._mishap.delivery:
            if self._mishap.again == "later":
                await self._quiet()
            self._tell(f"delivery {number} ({what}) came again {self._mishap.again}")
            try:
                await deliver()
            except _REFUSALS as refusal:
                self._tell(
                    f"delivery {number} ({what}) came again {self._mishap.again}, and was refused: {refusal}"
                )
        return outcome

    async def _quiet(self) -> None:
        """Until every run waits or has settled; in vain at most for a while."""
        with trio.move_on_after(LONGEST_WAIT):
            while await self._is_busy():  # noqa: ASYNC110 - nothing but the store tells of it
                await trio.sleep(_LOOK)

    async def _is_busy(self) -> bool:
        stats = await self._engine.stats()
        return bool(stats.queue_depth or stats.by_status["running"])


class TwiceEngine(Engine):
    """The engine of a scenario in which one delivery comes twice."""

    def __init__(self, engine: Engine, mishap: DeliverTwice, tell: Callable[[str], None]) -> None:
        super().__init__(engine._machinery, engine._scope)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - the same engine
        self._deliveries = _Deliveries(engine, mishap, tell)

    async def start(self, *args: Any, **kwargs: Any) -> RunHandle:
        start = super().start
        handle: RunHandle = await self._deliveries.carry_out("engine.start", lambda: start(*args, **kwargs))
        return self._twice(handle)

    def run(self, run_id: str, *, tenant: str | None = None) -> RunHandle:
        return self._twice(super().run(run_id, tenant=tenant))

    async def emit(self, *args: Any, **kwargs: Any) -> None:
        emit = super().emit
        await self._deliveries.carry_out("engine.emit", lambda: emit(*args, **kwargs))

    async def resume(self, token: str, payload: Any = None) -> None:
        resume = super().resume
        await self._deliveries.carry_out("engine.resume", lambda: resume(token, payload))

    async def withdraw(self, token: str, reason: str | None = None) -> None:
        withdraw = super().withdraw
        await self._deliveries.carry_out("engine.withdraw", lambda: withdraw(token, reason))

    def _twice(self, handle: RunHandle) -> RunHandle:
        return _TwiceHandle(handle, self._deliveries)


class _TwiceHandle(RunHandle):
    """A handle whose deliveries are counted too."""

    def __init__(self, handle: RunHandle, deliveries: _Deliveries) -> None:
        super().__init__(handle._machinery, handle.id, handle._place.scope)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - the same run
        self._deliveries = deliveries

    async def resume(self, *args: Any, **kwargs: Any) -> None:
        resume = super().resume
        await self._deliveries.carry_out("handle.resume", lambda: resume(*args, **kwargs))

    async def withdraw(self, *args: Any, **kwargs: Any) -> None:
        withdraw = super().withdraw
        await self._deliveries.carry_out("handle.withdraw", lambda: withdraw(*args, **kwargs))
