"""What a handler told last of its progress: one small row, whatever it told."""

from __future__ import annotations

from typing import Any

import msgspec

from streamline_trio._core import payload
from streamline_trio._core.checking import storable_text
from streamline_trio._core.errors import ValidationError

MAX_BYTES = 1024
_LONGEST_KEY = 100
_ELLIPSIS = "…"


class ProgressEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The last progress that a handler told; `at` in milliseconds since the epoch."""

    at: int
    step: str
    attempt: int
    percent: float | None = None
    message: str | None = None
    data: dict[str, Any] = {}


def progress_row(entry: ProgressEntry) -> bytes:
    """The entry as it is stored, in at most 1 KB: its message is cut, unless it is the data that is too large.

    Such data is left out.
    """
    row = _encoded(entry)
    if len(row) > MAX_BYTES and entry.data and not _is_cuttable(entry, len(row) - MAX_BYTES):
        entry = msgspec.structs.replace(entry, data={})
        row = _encoded(entry)
    if len(row) > MAX_BYTES:
        row = _encoded(msgspec.structs.replace(entry, message=_cut(entry.message or "", len(row) - MAX_BYTES)))
    return row


def _is_cuttable(entry: ProgressEntry, excess: int) -> bool:
    return entry.message is not None and len(entry.message.encode()) > excess + len(_ELLIPSIS.encode())


def _cut(message: str, excess: int) -> str:
    """The message shortened by at least so many bytes."""
    stored = message.encode()
    return stored[: max(0, len(stored) - excess - len(_ELLIPSIS.encode()))].decode(errors="ignore") + _ELLIPSIS


def _encoded(entry: ProgressEntry) -> bytes:
    """Telling never fails: what cannot be stored is told as text."""
    try:
        return payload.encode(entry, what="progress")
    except ValidationError:
        plain = {
            storable_text(key, _LONGEST_KEY): storable_text(value, MAX_BYTES) for key, value in entry.data.items()
        }
        return payload.encode(msgspec.structs.replace(entry, data=plain), what="progress")
