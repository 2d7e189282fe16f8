"""Which open wait a signal answers, and which message an open wait takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from streamline_trio._core.checking import is_a
from streamline_trio._core.decide.turn import Turn
from streamline_trio._core.documents import Record, unique_key
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.happenings import SignalArrived
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


def cancels(turn: Turn, signal: SignalArrived) -> bool:
    """Whether the run's workflow says that this signal cancels it: always if addressed, else if it matches."""
    rules = [rule for rule in turn.plan.cancel_on if rule.signal == signal.signal]
    if not rules or signal.addressed:
        return bool(rules)
    origin = turn.run.origin
    if signal.at is not None and origin.created_at > signal.at:
        return False
    if origin.emission and origin.emission == unique_key(origin.tenant, signal.signal, signal.id):
        return False  # this very broadcast has started it, by a clock that may be behind
    return any(not rule.match or _agree(rule.match, signal.payload, origin.input) for rule in rules)


def _agree(match: Mapping[str, str], payload: bytes, input: bytes) -> bool:
    """Whether all these fields of the payload are equal to those of the input; what is missing equals nothing."""
    given: Any = _decode(payload)
    own: Any = _decode(input)
    if not is_a(given, dict) or not is_a(own, dict):
        return False
    return all(a in given and b in own and _is_same(given[a], own[b]) for a, b in match.items())


def _is_same(one: Any, other: Any) -> bool:
    """1 equals 1.0, but not True."""
    return bool(one == other) and is_a(one, bool) == is_a(other, bool)


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
