"""Where a handler may suspend, seen without the engine that would call it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

import trio

from streamline_trio import SuspensionError
from streamline_trio._runtime.suspension import MAX_SUSPENSIONS

_NOW = -float("inf")


class OwnTask:
    """The task of the handler under test: that in which it runs, else the first in which it suspends."""

    def __init__(self, step: str, handler: Any) -> None:
        self._step = step
        self._code: CodeType | None = getattr(inspect.unwrap(handler), "__code__", None) if handler else None
        self._task: trio.lowlevel.Task | None = None
        self._is_shielded_anyway = trio.lowlevel.in_trio_task() and _is_shielded()

    def require_possible(self, what: str, places: int) -> None:
        """Raise `SuspensionError` where a run could not unwind the handler."""
        task = trio.lowlevel.current_task()
        if self._code is not None and self._code in _running_codes():
            self._task = task
        elif any(map(self._is_in_handler, _parents_of(task))) or self._task not in {None, task}:
            raise self._refusal(
                f"{what} must be called in the handler's own task,"
                " not in a nursery's child, a thread or a background task"
            )
        self._task = task
        if not self._is_shielded_anyway and _is_shielded():
            raise self._refusal(f"{what} cannot unwind a handler from inside a shielded cancel scope")
        if places >= MAX_SUSPENSIONS:
            raise self._refusal(f"more than {MAX_SUSPENSIONS} suspensions in one step: use ctx.loop")

    def _is_in_handler(self, task: trio.lowlevel.Task) -> bool:
        return self._code is not None and self._code in _waiting_codes(task)

    def _refusal(self, text: str) -> SuspensionError:
        return SuspensionError(f"step {self._step}: {text}", step=self._step)


def _parents_of(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    nursery = task.parent_nursery
    while nursery is not None:
        yield nursery.parent_task
        nursery = nursery.parent_task.parent_nursery


def _running_codes() -> Iterator[CodeType]:
    """Of all that is being called, innermost first."""
    frame = inspect.currentframe()
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def _waiting_codes(task: trio.lowlevel.Task) -> Iterator[CodeType]:
    """Of the coroutines of a task that does not run now, outermost first."""
    coro: Any = task.coro
    while coro is not None:
        if (code := getattr(coro, "cr_code", None)) is not None:
            yield code
        coro = getattr(coro, "cr_await", None)


def _is_shielded() -> bool:
    """Whether cancelling the task as a whole would not reach the caller: seen through the effective deadline."""
    nursery = trio.lowlevel.current_task().parent_nursery
    if nursery is None or nursery.cancel_scope.cancel_called:
        return False
    scope = nursery.cancel_scope
    before = scope.deadline
    scope.deadline = _NOW
    try:
        return trio.current_effective_deadline() != _NOW
    finally:
        scope.deadline = before
