"""Changing fields of a run's state."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from streamline_trio._core import payload
from streamline_trio._core.errors import ValidationError


def with_fields(state: bytes, fields: dict[str, Any], decoder: payload.Decoder, *, what: str) -> bytes:
    """The state with some fields changed, checked against its type."""
    current = decoder.decode(state, what=what)
    try:
        changed = _replace(current, fields)
    except (TypeError, ValueError) as error:
        raise ValidationError(f"{what}: {error}") from error
    stored = payload.encode(changed, what=what)
    decoder.decode(stored, what=what)
    return stored


def _replace(current: Any, fields: dict[str, Any]) -> Any:
    if isinstance(current, msgspec.Struct):
        return msgspec.structs.replace(current, **fields)
    if dataclasses.is_dataclass(current) and not isinstance(current, type):
        return dataclasses.replace(current, **fields)
    if isinstance(current, dict):
        return {**current, **fields}  # pyright: ignore[reportUnknownVariableType] - plain data
    if current is None:
        return dict(fields)
    raise TypeError(f"it is a {type(current).__name__}, which has no fields to set")
