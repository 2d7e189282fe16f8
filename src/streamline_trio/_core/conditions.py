"""Predicates over a run's state, for `skip_if` and `run_if`.

``skip_if=all_(equals("status", "free"), not_(has("coupon")))``. A key is an attribute of
the state, or a key when the state is a mapping. A key that is missing equals nothing and
is neither greater nor less than anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping
from typing import Any, TypeAlias, cast

import msgspec

from streamline_trio._core.errors import DefinitionError

__all__ = ["all_", "any_", "equals", "greater", "has", "in_", "less", "not_", "not_equals"]

Predicate: TypeAlias = Callable[[Any], bool]

_MISSING: Any = object()


def has(key: str) -> Predicate:
    """True when the key is present and not None."""

    def present(state: Any) -> bool:
        found = _value(state, key)
        return found is not _MISSING and found is not None

    return present


def equals(key: str, value: object) -> Predicate:
    """True when the key is present and equals `value`."""
    return lambda state: _holds(lambda found: found == value, _value(state, key))


def not_equals(key: str, value: object) -> Predicate:
    """The opposite of `equals`: true also when the key is missing."""
    return not_(equals(key, value))


def greater(key: str, than: Any) -> Predicate:
    """True when the key is present, comparable with `than` and greater."""
    return lambda state: _holds(lambda found: found > than, _value(state, key))


def less(key: str, than: Any) -> Predicate:
    """True when the key is present, comparable with `than` and less."""
    return lambda state: _holds(lambda found: found < than, _value(state, key))


def in_(key: str, values: Container[Any]) -> Predicate:
    """True when the key is present and its value is one of `values`."""
    return lambda state: _holds(lambda found: found in values, _value(state, key))


def all_(*predicates: Predicate) -> Predicate:
    """True when every predicate is; later ones are not asked after one that is false."""
    asked = _sync(predicates)
    return lambda state: all(_verdict(predicate, state) for predicate in asked)


def any_(*predicates: Predicate) -> Predicate:
    """True when at least one predicate is; later ones are not asked after one that is true."""
    asked = _sync(predicates)
    return lambda state: any(_verdict(predicate, state) for predicate in asked)


def not_(predicate: Predicate) -> Predicate:
    """True when the predicate is false."""
    (asked,) = _sync((predicate,))
    return lambda state: not _verdict(asked, state)


def _value(state: object, key: str) -> Any:
    found = (
        cast("Mapping[str, Any]", state).get(key, _MISSING)
        if isinstance(state, Mapping)
        else getattr(state, key, _MISSING)
    )
    return _MISSING if found is msgspec.UNSET else found


def _holds(holds: Callable[[Any], Any], found: Any) -> bool:
    if found is _MISSING:
        return False
    try:
        return bool(holds(found))
    except TypeError:
        return False


def _sync(predicates: tuple[Predicate, ...]) -> tuple[Predicate, ...]:
    for predicate in predicates:
        if not callable(predicate):
            raise DefinitionError(f"a condition is a function of the state, not {predicate!r}")
        if inspect.iscoroutinefunction(predicate):
            raise DefinitionError(
                f"an async condition such as {predicate!r} cannot be combined: "
                "give it to skip_if or run_if by itself"
            )
    return predicates


def _verdict(predicate: Predicate, state: object) -> bool:
    verdict: object = predicate(state)
    if inspect.iscoroutine(verdict):
        verdict.close()
        raise TypeError("an async condition cannot be combined with others")
    return bool(verdict)
