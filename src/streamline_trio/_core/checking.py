"""Whether a value from outside is what its annotation says: callers are not all type-checked."""

from __future__ import annotations

from collections.abc import Mapping


def is_text(value: object, longest: int, shortest: int = 1) -> bool:
    """A text of this many characters."""
    return isinstance(value, str) and shortest <= len(value) <= longest


def is_whole(value: object, least: int, most: float = float("inf")) -> bool:
    """A whole number in these bounds; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_mapping(value: object) -> bool:
    """A mapping."""
    return isinstance(value, Mapping)


def is_a(value: object, kind: type) -> bool:
    """An instance of the class."""
    return isinstance(value, kind)
