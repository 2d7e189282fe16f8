from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import bson
import msgspec
from bson.codec_options import CodecOptions
from hypothesis import example, given
from hypothesis import strategies as st

from streamline_trio.stores.mongo import _payload
from streamline_trio.stores.mongo._client import CODEC
from streamline_trio.stores.mongo._layout import to_document, to_run
from streamline_trio.stores.mongo._payload import escape, from_bson, to_bson, unescape
from tests.stores.strategies import runs

MARKS = ["%msgpack", "%instant", "%micros", "%payload", "%size"]
keys = st.one_of(
    st.sampled_from(
        ["", "%", "%25", "%2E", "$", "$set", "$ref", "$id", "$$ROOT", "a.b", ".", "\0", "0", "_id", *MARKS]
    ),
    st.text(max_size=4),
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([2**31, -(2**31) - 1, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64 - 1]),
    st.floats(),
    st.text(max_size=6),
    st.binary(max_size=6),
    st.datetimes(timezones=st.just(UTC)),
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | st.integers(0, 9), inner, max_size=3),
    max_leaves=12,
)


def through(payload):
    """What comes back from a document that went over the wire."""
    stored = bson.encode({"x": to_bson(payload)})
    return from_bson(bson.decode(stored, CODEC)["x"], {})


@given(values)
@example({"%msgpack": b"\xc0"})
@example({"%payload": "0" * 64, "%size": 9})
@example({"%instant": datetime(2026, 1, 1, tzinfo=UTC), "%micros": 5})
@example(datetime.min.replace(tzinfo=UTC) + timedelta(microseconds=1))
@example(datetime.max.replace(tzinfo=UTC))
@example({"b": 1, "a": {"z": 1, "y": 2}})
def test_whatever_is_stored_comes_back_byte_for_byte(value):
    """Any payload has the same bytes after it was a BSON value, also one that looks like a mark of ours."""
    payload = msgspec.msgpack.encode(value)
    assert through(payload) == payload


@given(st.binary(max_size=40))
def test_bytes_that_are_no_canonical_msgpack_come_back(payload):
    """Other encoders' forms, broken and trailing bytes come back as they were."""
    assert through(payload) == payload


@given(keys)
def test_names_of_keys_are_safe_and_stand_for_them(key):
    """A key becomes a field name without a dot, a leading dollar or NUL, never empty, and is told by it."""
    name = escape(key)
    assert name
    assert not name.startswith("$")
    assert not {".", "\0"} & set(name)
    assert name not in MARKS
    assert unescape(name) == key


@given(runs)
def test_a_run_comes_back_from_its_document(run):
    """Any run is the same after it was a document, whatever its keys and payloads."""
    stored = bson.decode(bson.encode(to_document(run)), CODEC)
    assert to_run(stored, {}) == run


def test_ordinary_data_is_readable():
    """What BSON can say stands there as itself; the rest is marked where it stands, not as a whole."""
    at = datetime(2026, 3, 29, 1, 30, 0, 125_000, tzinfo=UTC)
    value = {"name": "Ada", "n": [1, 2.5, None, True], "raw": b"\0", "at": at, "a.b": {"$x": 1}, "big": 2**63}
    value |= {"fine": at + timedelta(microseconds=7)}
    stored = to_bson(msgspec.msgpack.encode(value))
    assert stored == {
        "name": "Ada",
        "n": [1, 2.5, None, True],
        "raw": b"\0",
        "at": at,
        "a%2Eb": {"%24x": 1},
        "big": {"%msgpack": b"\xcf\x80" + bytes(7)},
        "fine": {"%instant": at, "%micros": 7},
    }


def test_deep_values_stay_within_what_servers_take():
    """A value of more levels than a document may have is cut off into msgpack and comes back."""
    value: object = 1
    for _ in range(300):
        value = [value]
    payload = msgspec.msgpack.encode(value)
    assert through(payload) == payload
    depth, stored = 0, to_bson(payload)
    while isinstance(stored, list):
        depth, stored = depth + 1, stored[0]
    assert depth == _payload._DEEPEST
    assert set(stored) == {"%msgpack"}


def test_a_time_with_microseconds_can_be_queried_as_a_date():
    """Its milliseconds are a real date; nothing of it is lost."""
    at = datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    encoded = bson.encode({"x": to_bson(msgspec.msgpack.encode(at))})
    options: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True)
    assert bson.decode(encoded, options)["x"] == {"%instant": at.replace(microsecond=999_000), "%micros": 999}


def test_only_large_payloads_are_referred_to():
    """Up to 256 KiB a payload stands in the document, above it a reference with its digest does."""
    content = bytes(_payload.LARGE - 5)
    payload = msgspec.msgpack.encode(content)
    assert len(payload) == _payload.LARGE
    assert to_bson(payload) == content
    larger = msgspec.msgpack.encode(content + b"x")
    assert to_bson(larger) == {"%payload": sha256(larger).hexdigest(), "%size": _payload.LARGE + 1}
