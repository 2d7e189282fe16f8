"""Which open wait a signal answers, and which message an open wait takes."""

from __future__ import annotations

from typing import Any

import msgspec

from streamline_trio._core.checking import is_a
from streamline_trio._core.decide.turn import Turn
from streamline_trio._core.documents import Record
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.shapes import check

_decode = msgspec.msgpack.decode


def fits(record: Record, payload: bytes) -> bool:
    """Whether the payload has the fields that the wait's `match` asks for."""
    if record.match is None:
        return True
    wanted: dict[str, Any] = _decode(record.match)
    given: Any = _decode(payload)
    if not is_a(given, dict):
        return False
    return all(field in given and given[field] == value for field, value in wanted.items())


def check_shape(record: Record, payload: bytes, what: str) -> None:
    """Raise `ValidationError` unless the payload has the type that the wait returns."""
    if record.shape is not None:
        check(record.shape, payload, what=what)


def open_for(turn: Turn, signal: str, payload: bytes) -> str | None:
    """Key of the first open wait that this signal answers, or None."""
    waits = sorted((r.opened_at, r.place, key) for key, r in turn.records.items() if r.signal == signal)
    for _, _, key in waits:
        if turn.records[key].outcome is None and fits(turn.records[key], payload):
            return key
    return None


def take_message(turn: Turn, key: str) -> None:
    """Answer a new wait with the oldest message in the inbox that it matches, if there is one."""
    record = turn.records[key]
    inbox = turn.inbox
    for number in sorted(inbox):
        message = inbox[number]
        if message.signal == record.signal and _takes(record, message.payload):
            turn.drop("inbox", [number])
            turn.resolve(key, "value", value=message.payload)
            return


def _takes(record: Record, payload: bytes) -> bool:
    """A message of another type than the wait returns stays where it is, for a wait that can use it."""
    if not fits(record, payload):
        return False
    try:
        check_shape(record, payload, "message")
    except ValidationError:
        return False
    return True
