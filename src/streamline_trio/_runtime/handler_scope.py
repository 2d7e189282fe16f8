"""The cancel scope of handlers: opened for one, kept for those that follow as long as that makes no difference."""

from __future__ import annotations

import math
from types import TracebackType

import trio

INNERMOST = "_cancel_status"


class HandlerScope:
    """A cancel scope around every handler of a run, one after the other.

    Opening and closing a scope is a good part of what a short step costs. So the scope stays open when a handler
    has returned, and the next one runs in it, unless it was cancelled or has a deadline, or the handler left a
    scope of its own open, which would be around the next handler. trio tells nobody which scope is the innermost,
    so this reads a private attribute of the task; should a release of trio not have it, no scope is kept.

    For one task: `open` and `with` around each handler, `close` at last. What is done between two handlers runs in
    the scope that was kept: whoever cancels it does so only while a handler is in it.
    """

    __slots__ = ("_innermost", "_scope")

    def __init__(self) -> None:
        self._scope: trio.CancelScope | None = None
        self._innermost: object = None

    def open(self, deadline: float) -> trio.CancelScope:
        """The scope, entered, with this deadline on trio's clock."""
        if self._scope is not None and deadline == math.inf:
            return self._scope
        self.close()
        self._scope = scope = trio.CancelScope(deadline=deadline)
        scope.__enter__()
        self._innermost = _innermost()
        return scope

    def __enter__(self) -> None:
        """Nothing: it is open."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        scope = self._scope
        assert scope is not None
        if error is None and self._is_as_it_was(scope):
            return None
        self._scope = None
        return scope.__exit__(kind, error, traceback)

    def _is_as_it_was(self, scope: trio.CancelScope) -> bool:
        if scope.cancel_called or scope.deadline != math.inf:
            return False
        innermost = _innermost()
        return innermost is not None and innermost is self._innermost

    def close(self) -> None:
        """Leave the scope, if it is open."""
        scope, self._scope = self._scope, None
        if scope is not None:
            scope.__exit__(None, None, None)


def _innermost() -> object:
    """The innermost scope of the calling task; None if trio does not tell."""
    return getattr(trio.lowlevel.current_task(), INNERMOST, None)
