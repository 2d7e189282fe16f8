"""User values as BSON: readable where BSON can say it, and in every case back byte for byte.

A payload is msgpack. What a BSON value says exactly stands in the document as that value, so that any tool can
read, query and index it. The rest is marked, by documents whose keys no user's map can have:

    {"%msgpack": binary}                msgpack as it is: integers above 2**63 - 1, maps with keys that are no
                                        text, extensions, deep nesting; a whole payload that another encoder
                                        wrote in a form of its own
    {"%instant": date, "%micros": n}    a time with microseconds, which a BSON date cannot hold
    {"%payload": sha256, "%size": n}    a large payload; it is in the collection of payloads

Keys that a path could misread are written with percent signs: `%25` for `%`, `%2E` for `.`, `%24` for a `$` at
the front, `%00` for NUL, and `%` alone for the empty key. So no key of a user begins with a mark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, cast

import msgspec
from bson.datetime_ms import DatetimeMS

LARGE = 256 * 1024
"""Payloads above this many bytes have a document of their own."""

MSGPACK = "%msgpack"
INSTANT = "%instant"
MICROS = "%micros"
PAYLOAD = "%payload"
SIZE = "%size"

_DEEPEST = 80  # servers refuse documents of more than 100 levels, of which ours takes some
_INT64 = range(-(2**63), 2**63)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNREADABLE = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)
_ESCAPES = {"%": "%25", ".": "%2E", "\0": "%00"}
_ESCAPED = re.compile(r"%(25|2E|24|00)")
_AS_IT_IS = frozenset({str, float, bool, bytes, type(None)})

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def escape(key: str) -> str:
    """The key as a field name."""
    if "%" in key or "." in key or "\0" in key:
        key = re.sub(r"[%.\0]", lambda found: _ESCAPES[found[0]], key)
    if key[:1] == "$":
        return "%24" + key[1:]
    return key or "%"


def unescape(name: str) -> str:
    """The key that the field name stands for."""
    if "%" not in name:
        return name
    return "" if name == "%" else _ESCAPED.sub(lambda found: chr(int(found[1], 16)), name)


def to_bson(payload: bytes) -> Any:
    """The value that stands in a document for the payload; of a large one, what refers to it."""
    if is_large(payload):
        return {PAYLOAD: digest(payload), SIZE: len(payload)}
    return inline(payload)


def inline(payload: bytes) -> Any:
    """The value for the payload, whatever its size."""
    try:
        value = _decode(payload)
        if _encode(value) != payload:
            return {MSGPACK: payload}
        return _natural(value, _DEEPEST)
    except _UNREADABLE:
        return {MSGPACK: payload}


def from_bson(value: Any, large: Mapping[str, bytes]) -> bytes:
    """The payload that `to_bson` made the value of; `large` are the large ones by digest."""
    if isinstance(value, dict):
        marked = cast("dict[str, Any]", value)
        if PAYLOAD in marked:
            return large[marked[PAYLOAD]]
        if MSGPACK in marked:
            return bytes(marked[MSGPACK])
    return _encode(_plain(value))


def is_large(payload: bytes | None) -> bool:
    """Whether the payload has a document of its own."""
    return payload is not None and len(payload) > LARGE


def digest(payload: bytes) -> str:
    """The name of a large payload within its run."""
    return sha256(payload).hexdigest()


def _class_of(value: object) -> type[Any]:
    return type(value)


def _natural(value: Any, depth: int) -> Any:
    kind = _class_of(value)
    if kind in _AS_IT_IS:
        return value
    if kind is int:
        return value if value in _INT64 else {MSGPACK: _encode(value)}
    if kind is datetime:
        return _date(value)
    if depth:
        if kind is list:
            return [_natural(item, depth - 1) for item in value]
        if kind is dict and all(type(key) is str for key in value):
            return {escape(key): _natural(item, depth - 1) for key, item in value.items()}
    return {MSGPACK: _encode(value)}


def _date(value: datetime) -> Any:
    micros = value.microsecond % 1000
    if not micros:
        return value
    return {INSTANT: value.replace(microsecond=value.microsecond - micros), MICROS: micros}


def _plain(value: Any) -> Any:
    kind = _class_of(value)
    if kind in _AS_IT_IS or kind is int:
        return value
    if kind is dict:
        return _plain_map(value)
    if kind is list:
        return [_plain(item) for item in value]
    if kind is DatetimeMS:
        return _EPOCH + timedelta(milliseconds=int(value))
    if isinstance(value, int):  # what the driver makes of 64 bits
        return int(value)
    raise TypeError(f"no payload holds a {kind.__name__}")


def _plain_map(value: dict[str, Any]) -> Any:
    if MSGPACK in value:
        return msgspec.Raw(cast("bytes", value[MSGPACK]))
    if INSTANT in value:
        return _plain(value[INSTANT]) + timedelta(microseconds=int(value[MICROS]))
    return {unescape(name): _plain(item) for name, item in value.items()}
