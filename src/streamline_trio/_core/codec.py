"""A run as parts: named byte strings that a store can keep and replace one by one.

    head               what nearly every commit changes
    origin             what the run was started with
    state              the payload as it is
    step/<id>          one part per entry of each map, so that a commit costs what it changed
    record/<key>
    piece/<path>
    checkpoint/<key>   the payload as it is
    memo/<key>
    inbox/<key>
    seen/<key>
    outbox/<number>

A name is cut at its first slash, so keys may hold any text. Structs are msgpack maps. The order of a map's
entries is not kept. Fields and parts that a later release added are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from streamline_trio._core.documents import (
    Errand,
    Head,
    Memo,
    Message,
    Origin,
    Piece,
    Record,
    RunDoc,
    StepDoc,
)
from streamline_trio._core.errors import DataCorruption, ValidationError
from streamline_trio._core.tenancy import public_id

HEAD = "head"
ORIGIN = "origin"
STATE = "state"

encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode


def _payload(value: bytes) -> bytes:
    return value


class MapKind(NamedTuple):
    """One map of a run: the attribute that holds it, and how its entries become parts."""

    attribute: str
    prefix: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


MAPS: tuple[MapKind, ...] = (
    MapKind("steps", "step/", encode, msgspec.msgpack.Decoder(StepDoc).decode),
    MapKind("records", "record/", encode, msgspec.msgpack.Decoder(Record).decode),
    MapKind("pieces", "piece/", encode, msgspec.msgpack.Decoder(Piece).decode),
    MapKind("checkpoints", "checkpoint/", _payload, _payload),
    MapKind("memos", "memo/", encode, msgspec.msgpack.Decoder(Memo).decode),
    MapKind("inbox", "inbox/", encode, msgspec.msgpack.Decoder(Message).decode),
    MapKind("seen", "seen/", encode, msgspec.msgpack.Decoder(int).decode),
    MapKind("outbox", "outbox/", encode, msgspec.msgpack.Decoder(Errand).decode),
)

maps_of: Callable[[RunDoc], tuple[dict[str, Any], ...]] = attrgetter(*(kind.attribute for kind in MAPS))

MAP_OF: dict[str, MapKind] = {kind.attribute: kind for kind in MAPS}

_BY_PREFIX = {kind.prefix: kind for kind in MAPS}
_DECODERS: dict[str, Callable[[bytes], Any]] = {
    HEAD: msgspec.msgpack.Decoder(Head).decode,
    ORIGIN: msgspec.msgpack.Decoder(Origin).decode,
    STATE: _payload,
}
ENCODE_ERRORS = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)


def split(run: RunDoc) -> dict[str, bytes]:
    """The run's parts; `ValidationError` if it holds what cannot be encoded."""
    parts = {STATE: run.state}
    try:
        parts[HEAD] = encode(run.head)
        parts[ORIGIN] = encode(run.origin)
        for kind, entries in zip(MAPS, maps_of(run), strict=True):
            for key, value in entries.items():
                parts[part_name(kind, key)] = kind.encode(value)
    except ENCODE_ERRORS as error:
        raise not_encodable(run, error) from error
    return parts


def part_name(kind: MapKind, key: str) -> str:
    """The name of an entry's part; a key that is no Unicode text raises here rather than in a database."""
    name = kind.prefix + key
    name.encode()
    return name


def not_encodable(run: RunDoc, error: BaseException) -> ValidationError:
    """The error to raise when a run cannot be encoded."""
    return ValidationError(f"run {run.public_id!r} cannot be encoded: {error}", run=run.public_id)


def join(parts: Mapping[str, bytes], run_id: str | None = None) -> RunDoc:
    """The run that `split` took apart.

    Raises `DataCorruption` with `run` and `part` if a part is missing, does not decode, or belongs to another
    run than `run_id`.
    """
    fields: dict[str, Any] = {}
    name = ""
    try:
        for name, body in parts.items():
            if (decode := _DECODERS.get(name)) is not None:
                fields[name] = decode(body)
                continue
            prefix, slash, key = name.partition("/")
            if kind := _BY_PREFIX.get(prefix + slash):
                fields.setdefault(kind.attribute, {})[key] = kind.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _corrupt(parts, run_id, name, str(error)) from error
    for name in _DECODERS:
        if name not in fields:
            raise _corrupt(parts, run_id, name, "it is missing")
    if run_id is not None and fields[ORIGIN].id != run_id:
        raise _corrupt(parts, run_id, ORIGIN, f"it belongs to run {fields[ORIGIN].id!r}")
    return RunDoc(**fields)


def _corrupt(parts: Mapping[str, bytes], run_id: str | None, part: str, why: str) -> DataCorruption:
    run = public_id(run_id or _id_in(parts))
    return DataCorruption(f"part {part!r} of run {run!r} cannot be read: {why}", run=run, part=part)


def _id_in(parts: Mapping[str, bytes]) -> str:
    try:
        return str(_DECODERS[ORIGIN](parts[ORIGIN]).id)
    except (KeyError, msgspec.MsgspecError, ValueError, RecursionError):
        return "?"
