"""Whether a value from outside is what its annotation says: callers are not all type-checked."""

from __future__ import annotations

from collections.abc import Mapping

from streamline_trio._core.errors import ValidationError

LONGEST_REASON = 10_000


def is_text(value: object, longest: int, shortest: int = 1) -> bool:
    """A text of this many characters, all of which can be stored."""
    return isinstance(value, str) and shortest <= len(value) <= longest and _is_encodable(value)


def check_reason(value: object, what: str, *, shortest: int = 0) -> None:
    """Raise `ValidationError` unless it is None or a text that can be stored with a run."""
    if value is not None and not is_text(value, LONGEST_REASON, shortest):
        shown = repr(value)[:100]
        raise ValidationError(f"{what} is a text of {shortest} to {LONGEST_REASON} characters, not {shown}")


def storable_text(value: object, longest: int) -> str:
    """The value as a text that can be stored, whatever it is: cut, with what has no encoding escaped."""
    try:
        text = str(value)
    except Exception:  # noqa: BLE001 - a foreign __str__ may fail in any way
        text = f"<{type(value).__name__}>"
    if len(text) > longest:
        text = text[:longest] + "…"
    return text if _is_encodable(text) else text.encode("utf-8", "backslashreplace").decode()


def storable_repr(value: object, longest: int) -> str:
    """As `storable_text`, of the value as code would write it."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a foreign __repr__ may fail in any way
        text = f"<{type(value).__name__}>"
    return storable_text(text, longest)


def _is_encodable(text: str) -> bool:
    """Lone surrogates, as in file names that are no UTF-8, cannot be encoded."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_whole(value: object, least: int, most: float = float("inf")) -> bool:
    """A whole number in these bounds; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_mapping(value: object) -> bool:
    """A mapping."""
    return isinstance(value, Mapping)


def is_a(value: object, kind: type) -> bool:
    """An instance of the class."""
    return isinstance(value, kind)
