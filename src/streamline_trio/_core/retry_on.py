"""Which failures of a step are tried again."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeAlias, cast

from streamline_trio._core.errors import (
    ChildFailed,
    DefinitionError,
    GuardRefused,
    JoinFailed,
    LoopLimitExceeded,
    PayloadTooLarge,
    StreamlineError,
    SuspensionError,
    ValidationError,
    WaitTimedOut,
    WaitWithdrawn,
    is_marked_non_retriable,
    leaves_of,
)

RetryRule: TypeAlias = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]
"""What `retry_on` takes: an exception type, a tuple of them, or a predicate."""

_NEVER = (DefinitionError, SuspensionError, PayloadTooLarge, LoopLimitExceeded, GuardRefused)
"""Trying again cannot help: the definition or the data would have to change."""

_ONLY_BY_NAME = (WaitTimedOut, WaitWithdrawn, ChildFailed, JoinFailed, ValidationError)
"""Answers rather than accidents: asked for again only when `retry_on` says so."""


class RetryOn:
    """The rule of one step, made from what the user gave; immutable.

    A failure marked `retriable = False` is never tried again, nor is a group with such a
    member; a group is tried again when each of its members would be.
    """

    __slots__ = ("_groups", "_named", "_predicate", "_types", "rule")

    def __init__(self, rule: RetryRule = Exception) -> None:
        """Take the rule; a `TypeError` says what is wrong with it."""
        self.rule: RetryRule = rule
        types = _types_of(rule)
        self._predicate = _predicate_of(rule) if types is None else None
        self._types = types or ()
        self._named = tuple(kind for kind in self._types if not issubclass(StreamlineError, kind))
        self._groups: tuple[type[Exception], ...] = tuple(
            kind for kind in self._types if issubclass(kind, BaseExceptionGroup)
        )

    def allows(self, error: BaseException) -> bool:
        """Whether a step that failed with this error may be tried again.

        A predicate that raises allows nothing; the error gets a note that says so.
        """
        if is_marked_non_retriable(error):
            return False
        if not isinstance(error, BaseExceptionGroup):
            return self._allows_one(error)
        named_as_group = bool(self._groups) and isinstance(error, self._groups)
        return all(
            self._allows_one(leaf) or (named_as_group and _is_foreign(leaf))
            for leaf in leaves_of(error)  # pyright: ignore[reportUnknownArgumentType]
        )

    def _allows_one(self, error: BaseException) -> bool:
        if not isinstance(error, Exception) or isinstance(error, _NEVER):
            return False
        if self._predicate is not None:
            return _asked(self._predicate, error)
        if isinstance(error, _ONLY_BY_NAME):
            return isinstance(error, self._named)
        return isinstance(error, self._types)

    def __repr__(self) -> str:
        return f"RetryOn({self.rule!r})"


def _asked(predicate: Callable[[Exception], bool], error: Exception) -> bool:
    try:
        return bool(predicate(error))
    except Exception as fault:  # noqa: BLE001 - a broken rule allows nothing
        error.add_note(f"not retried: its retry_on raised {fault!r}")
        return False


def _is_foreign(error: BaseException) -> bool:
    return isinstance(error, Exception) and not isinstance(error, (*_NEVER, *_ONLY_BY_NAME))


def _types_of(rule: object) -> tuple[type[Exception], ...] | None:
    """The exception types of the rule; None when it is not about types."""
    if not isinstance(rule, tuple | type):
        return None
    kinds = cast("tuple[object, ...]", rule if isinstance(rule, tuple) else (rule,))
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise TypeError(f"{kind!r} is not a subclass of Exception")
    return cast("tuple[type[Exception], ...]", kinds)


def _predicate_of(rule: object) -> Callable[[Exception], bool]:
    if not callable(rule):
        raise TypeError(f"{rule!r} is neither an exception type, nor a tuple of them, nor a predicate")
    if inspect.iscoroutinefunction(rule):
        raise TypeError(f"{rule!r} is async, but is asked without waiting")
    return cast("Callable[[Exception], bool]", rule)
