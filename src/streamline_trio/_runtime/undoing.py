"""One entry of one compensation: calls the handler that undoes a step, and says what happened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Never

import trio

from streamline_trio._core.compensation import Compensation
from streamline_trio._core.errors import StepTimeout, SuspensionError
from streamline_trio._core.happenings import Finished, Happening, UndoFailed, Undone
from streamline_trio._core.retry_on import RetryOn
from streamline_trio._core.step import Step
from streamline_trio._runtime.attempt import Attempt, describe_error
from streamline_trio._runtime.context import StepContext
from streamline_trio._runtime.suspension import Suspender

if TYPE_CHECKING:
    from streamline_trio._runtime.driver import Driver

_RETRIED = RetryOn(Exception)


class Unsuspendable(Suspender):
    """Refuses every suspension: a run that undoes its steps must not come to wait for anything."""

    __slots__ = ("refused",)

    def __init__(self, step: str, scope: trio.CancelScope) -> None:
        super().__init__(step, scope)
        self.refused: SuspensionError | None = None

    def require_possible(self, what: str) -> Never:
        """Raise `SuspensionError`, and remember it: the compensation has failed, also if it catches it."""
        self.refused = SuspensionError(
            f"step {self._step}: {what} was called in its compensation, which is non-suspending:"
            " a compensation cannot wait or go elsewhere",
            step=self._step,
        )
        raise self.refused


class Undoing(Attempt):
    """Enters the compensation of a step once, in a scope that the driver has opened."""

    __slots__ = ("_compensation", "_unsuspendable")

    _ending: type[Finished | Undone] = Undone

    def __init__(
        self, driver: Driver, step: Step[Any], compensation: Compensation, scope: trio.CancelScope
    ) -> None:
        super().__init__(driver, step, scope)
        self._compensation = compensation
        self._unsuspendable = Unsuspendable(step.id, scope)
        self._suspender = self._unsuspendable
        self._ctx = StepContext(driver, step, self._suspender)

    @property
    def _timeout(self) -> float | None:
        return self._compensation.plan.timeout

    def _timed_out(self) -> UndoFailed:
        step = self._step.id
        text = f"the compensation of step {step} exceeded its timeout of {self._timeout:g} s"
        return self.failed(StepTimeout(text, step=step))

    async def _call(self) -> Happening:
        self._suspender.entered()
        handler = self._compensation.handler
        await (handler(self._ctx) if self._compensation.is_async else self._in_thread(handler))
        if self._unsuspendable.refused is not None:
            raise self._unsuspendable.refused
        return Undone(release=self._driver.leaving, **self._held)

    def failed(self, error: BaseException) -> UndoFailed:
        """The attempt at the compensation failed with this error."""
        return UndoFailed(
            error=describe_error(error, self._step.id),
            retriable=self._unsuspendable.refused is None and _RETRIED.allows(error),
            roll=self._driver.services.chance.roll(),
            release=self._driver.leaving,
            **self._held,
        )
