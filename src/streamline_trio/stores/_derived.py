"""What stores keep beside a run because they look for it: keys, labels, hints. Derived from the run alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, Literal, NamedTuple, TypeGuard

import msgspec

from streamline_trio._core.documents import Origin, Record, RunDoc, active_key, heard_signals, open_tokens
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.status import is_settled
from streamline_trio._core.store import Hint, Insert, PutSide, Touched, Update, Write


class UniqueKey(NamedTuple):
    """A key that at most one run holds at a time."""

    kind: Literal["active_key", "token"]
    key: str


class KeyChange(NamedTuple):
    """The keys a write takes and gives up."""

    gained: tuple[UniqueKey, ...]
    lost: tuple[UniqueKey, ...]


NO_KEYS = KeyChange((), ())


def unique_keys(run: RunDoc) -> tuple[UniqueKey, ...]:
    """The keys the run holds; one that it claims twice stands there twice."""
    tokens = tuple(UniqueKey("token", token) for token in open_tokens(run)) if run.records else ()
    active = active_key(run)
    return tokens if active is None else (UniqueKey("active_key", active), *tokens)


def key_change(before: RunDoc | None, after: RunDoc, touched: Touched | None = None) -> KeyChange:
    """What the write does to the unique keys; `touched` is that of an `Update`."""
    if before is None:
        return KeyChange(unique_keys(after), ())
    same_holder = before.head.status == after.head.status and before.head.debounce is after.head.debounce
    if before.records is after.records and same_holder:
        return NO_KEYS
    if touched is not None and same_holder:
        keys = touched.get("records", ())
        held, wanted = _tokens_of(before, keys), _tokens_of(after, keys)
    else:
        held, wanted = unique_keys(before), unique_keys(after)
    if held == wanted:
        return NO_KEYS
    old, new = Counter(held), Counter(wanted)
    return KeyChange(tuple((new - old).elements()), tuple((old - new).elements()))


def _tokens_of(run: RunDoc, keys: Iterable[str]) -> tuple[UniqueKey, ...]:
    """The tokens that answer these records, as far as they are open."""
    records = (run.records.get(key) for key in keys)
    return tuple(
        UniqueKey("token", token)
        for record in records
        if record is not None and record.is_open
        for token in record.tokens
    )


def awaited(run: RunDoc) -> frozenset[str]:
    """Names of the signals the run waits for, or is cancelled by."""
    return frozenset(heard_signals(run)) if run.records or run.head.cancelled_by else frozenset()


def meta_values(meta: bytes | None) -> dict[str, bytes]:
    """The comparable form of each value of a run's meta; nothing if it is not a map with text keys."""
    if meta is None:
        return {}
    try:
        return {key: _comparable(value) for key, value in _decode_map(meta).items()}
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}


def wanted_meta(meta: Mapping[str, object] | None) -> dict[str, bytes]:
    """The comparable form of what a query asks of meta."""
    return meta_values(_encode(dict(meta))) if meta else {}


_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decode_map = msgspec.msgpack.Decoder(dict[str, Any]).decode


def _comparable(value: Any) -> bytes:
    """Equal bytes for equal plain data: 1 equals 1.0 but not True, and the order of maps does not matter."""
    return _encode(_plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return value


_EXACT = 2.0**53


def same_origin(before: RunDoc, after: RunDoc) -> bool:
    """Whether an update leaves alone what is written once: of a draft all but its input."""
    old, new = before.origin, after.origin
    if old is new or old == new:
        return True
    return before.head.status == "draft" and msgspec.structs.replace(old, input=new.input) == new


def origin_changed(origin: Origin) -> ValidationError:
    """The error for an update that is not an update of the same run."""
    return ValidationError(f"the origin of run {origin.id!r} is written once and cannot be changed", run=origin.id)


def hint_of(write: Write) -> Hint | None:
    """What to tell listeners about an applied write, if anything."""
    if isinstance(write, Insert):
        return _run_hint(write.run)
    if isinstance(write, Update):
        return _run_hint(write.after)
    if isinstance(write, PutSide) and write.body is not None and write.due_at is not None:
        return Hint(run_id="", due_at=write.due_at)
    return None


def _run_hint(run: RunDoc) -> Hint | None:
    head = run.head
    worker = head.lease.worker if head.attention and head.lease is not None else None
    due_at = head.due_at if head.lease is None else None
    settled = is_settled(head.status)
    if due_at is None and worker is None and not settled:
        return None
    return Hint(run_id=run.id, due_at=due_at, worker=worker, settled=settled)


def labels(run: RunDoc) -> frozenset[bytes]:
    """What the run shares with others and is found by: tags, values of meta, awaited signals."""
    origin = run.origin
    meta = (meta_label(key, value) for key, value in meta_values(origin.meta).items())
    signals = (signal_label(origin.tenant, signal) for signal in awaited(run))
    return frozenset([*map(tag_label, origin.tags), *meta, *signals])


NO_LABELS: tuple[frozenset[bytes], frozenset[bytes]] = (frozenset(), frozenset())


def label_change(
    before: RunDoc, after: RunDoc, touched: Touched | None = None
) -> tuple[frozenset[bytes], frozenset[bytes]]:
    """The labels an update adds and removes; those of the origin never change. `touched` is that of the update."""
    gained, lost = awaited_change(before, after, touched)
    if not gained and not lost:
        return NO_LABELS
    tenant = after.origin.tenant
    added = frozenset(signal_label(tenant, signal) for signal in gained)
    return added, frozenset(signal_label(tenant, signal) for signal in lost)


def awaited_change(
    before: RunDoc, after: RunDoc, touched: Touched | None = None
) -> tuple[frozenset[str], frozenset[str]]:
    """The signals that an update begins and ceases to listen to; `touched` is that of the update."""
    same_cancelling = _cancelling(before) == _cancelling(after)
    if before.records is after.records and same_cancelling:
        return _NO_SIGNALS
    if touched is not None and same_cancelling:
        return _awaited_among(before, after, touched.get("records", ()))
    old, new = awaited(before), awaited(after)
    return new - old, old - new


_NO_SIGNALS: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())


def _cancelling(run: RunDoc) -> tuple[str, ...]:
    """The signals that cancel the run, as long as it has not settled."""
    cancelling = run.head.cancelled_by
    return cancelling if cancelling and not is_settled(run.head.status) else ()


def _awaited_among(before: RunDoc, after: RunDoc, keys: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
    """The same, told by the records that were touched; others are looked at only where they decide."""
    names = tuple(keys)
    old = {record.signal for key in names if _listens(record := before.records.get(key))}
    new = {record.signal for key in names if _listens(record := after.records.get(key))}
    lost = {signal for signal in old - new if not _is_awaited(after, signal)}
    gained = {signal for signal in new - old if not _is_awaited(before, signal)}
    return frozenset(gained), frozenset(lost)


def _listens(record: Record | None) -> TypeGuard[Record]:
    return record is not None and record.kind == "signal" and record.is_open


def _is_awaited(run: RunDoc, signal: str) -> bool:
    return signal in _cancelling(run) or any(
        record.signal == signal and _listens(record) for record in run.records.values()
    )


def tag_label(tag: str) -> bytes:
    """The label of a tag."""
    return _label(b"t", tag)


def meta_label(key: str, comparable: bytes) -> bytes:
    """The label of a value of meta."""
    return _label(b"m", (key, comparable))


def signal_label(tenant: str | None, signal: str) -> bytes:
    """The label of runs that wait for the signal in the tenant's scope."""
    return _label(b"s", (tenant, signal))


def _label(kind: bytes, value: object) -> bytes:
    """Bytes that are equal for equal values, and short: large values of meta would fill an index."""
    encoded = _encode(value)
    return kind + (encoded if len(encoded) < sha256().digest_size else sha256(encoded).digest())
