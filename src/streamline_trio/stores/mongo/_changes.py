"""A write made ready for the driver: everything that can fail for the write alone is done here.

What is to be written is encoded at once, so that a value without a stored form fails its own write only, and the
size of each is known.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import bson
from bson.errors import BSONError
from bson.objectid import ObjectId
from bson.raw_bson import RawBSONDocument

from streamline_trio._core.codec import ENCODE_ERRORS, maps_of, not_encodable
from streamline_trio._core.documents import Head, RunDoc, queued_in
from streamline_trio._core.errors import PayloadTooLarge, StreamlineError, ValidationError
from streamline_trio._core.store import (
    AppendRows,
    Delete,
    Failed,
    Insert,
    PutSide,
    Quarantine,
    Touched,
    Update,
    Write,
)
from streamline_trio.stores._derived import (
    KeyChange,
    key_change,
    label_change,
    origin_changed,
    same_origin,
    unique_keys,
)
from streamline_trio.stores.mongo._layout import (
    MAPS,
    QUARANTINED,
    QUEUE_FIELDS,
    Document,
    Entries,
    date,
    derived_of_head,
    derived_of_queue,
    derived_of_waits,
    large_in,
    lay_out,
    plain_head,
    to_document,
)
from streamline_trio.stores.mongo._payload import escape, inline, is_large, to_bson

LARGEST = 15 * 1024 * 1024
"""Bytes that a document may have and still take a write of more than `SMALL`: the rest is for small ones."""

SMALL = 64 * 1024
_ERRORS = (*ENCODE_ERRORS, BSONError)


@dataclass(slots=True)
class RunInsert:
    """A new run."""

    run_id: str
    document: RawBSONDocument
    keys: KeyChange
    revision: int
    fence: int
    large: dict[str, bytes]
    claims_twice: bool
    payload_ids: dict[str, ObjectId] = field(default_factory=dict[str, ObjectId])


@dataclass(slots=True)
class RunUpdate:
    """An update: the fields to set and to remove. `large` is None if no large payload comes or goes."""

    run_id: str
    expected: int
    after: RunDoc
    to_set: RawBSONDocument
    to_unset: dict[str, str]
    keys: KeyChange
    large: dict[str, bytes] | None
    claims_twice: bool
    payload_ids: dict[str, ObjectId] = field(default_factory=dict[str, ObjectId])
    kept: dict[str, ObjectId] = field(default_factory=dict[str, ObjectId])

    @property
    def commit(self) -> int | None:
        """The id of the commit, by which it is found in the run."""
        commits = self.after.head.commits
        return commits[-1] if commits else None

    @property
    def is_doubtful(self) -> bool:
        """Whether it says little that no document met its guard."""
        return self.commit is not None or not self.is_small

    @property
    def is_small(self) -> bool:
        """Whether it may fill what large writes leave."""
        return len(self.to_set.raw) <= SMALL


@dataclass(slots=True)
class SidePut:
    """A side document, or None to remove it."""

    id: str
    expected: int | None
    document: RawBSONDocument | None


@dataclass(slots=True)
class RowsPush:
    """Rows at the end of a ring."""

    id: str
    run_id: str
    fence: int | None
    rows: RawBSONDocument


Ready = RunInsert | RunUpdate | Delete | Quarantine | SidePut | RowsPush


def make_ready(write: Write) -> Ready | Failed:  # noqa: PLR0911 - one for each kind of write
    """The write with everything encoded, or why that cannot be."""
    try:
        match write:
            case Insert(run):
                return _insert(run)
            case Update():
                return _update(write)
            case PutSide():
                return _put_side(write)
            case AppendRows():
                return _append_rows(write)
            case Delete(run_id) | Quarantine(run_id):
                run_id.encode()
    except StreamlineError as error:
        return Failed(error)
    except _ERRORS as error:
        return Failed(_not_storable(write, error))
    return write


def _not_storable(write: Write, error: Exception) -> ValidationError:
    match write:
        case Insert(run) | Update(after=run):
            failure = not_encodable(run, error)
        case PutSide(kind, key):
            failure = ValidationError(f"the {kind} {key!r} cannot be encoded: {error}", kind=kind, key=key)
        case _:
            failure = ValidationError(f"a write of run {write.run_id!r} cannot be encoded: {error}")
    failure.__cause__ = error
    return failure


def encoded(document: Mapping[str, Any], what: str) -> RawBSONDocument:
    """The document in its final form; `PayloadTooLarge` if no server would take it."""
    raw = bson.encode(document)
    if len(raw) > LARGEST:
        raise PayloadTooLarge(f"{what} would take {len(raw)} bytes, more than the {LARGEST} of a document")
    return RawBSONDocument(raw)


def with_fields(document: RawBSONDocument, more: Mapping[str, Any]) -> RawBSONDocument:
    """The encoded document with more fields at its end."""
    fields = bytes(document.raw)[4:-1] + bson.encode(more)[4:]
    return RawBSONDocument(struct.pack("<i", len(fields) + 4) + fields)


def _insert(run: RunDoc) -> RunInsert:
    large = large_in(run)
    payload_ids = {digest: ObjectId() for digest in large}
    document = to_document(run)
    if large:
        document["payloads"] = payload_ids
    return RunInsert(
        run_id=run.id,
        document=encoded(document, f"run {run.id}"),
        keys=key_change(None, run),
        revision=run.head.revision,
        fence=run.head.fence,
        large=_storable(large),
        claims_twice=_claims_twice(run),
        payload_ids=payload_ids,
    )


def _claims_twice(run: RunDoc) -> bool:
    """Whether it claims one key twice, which no index would notice."""
    keys = unique_keys(run)
    return len(set(keys)) < len(keys)


def _storable(large: dict[str, bytes]) -> dict[str, bytes]:
    for payload in large.values():
        if len(payload) > LARGEST:
            raise PayloadTooLarge(
                f"a payload of {len(payload)} bytes is more than the {LARGEST} of a document", size=len(payload)
            )
    return large


def _update(write: Update) -> RunUpdate:
    before, after = write.before, write.after
    if not same_origin(before, after):
        raise origin_changed(before.origin)
    changes = _Changes()
    changes.compare_fields(_head_changes(before, after))
    changes.compare_fields(_derived_changes(before, after))
    changes.compare_fields(_queue_changes(before, after))
    if after.origin is not before.origin and after.origin.input != before.origin.input:
        changes.large |= is_large(before.origin.input) or is_large(after.origin.input)
        changes.to_set["input"] = to_bson(after.origin.input)
    if after.state is not before.state and after.state != before.state:
        changes.large |= is_large(before.state) or is_large(after.state)
        changes.to_set["state"] = to_bson(after.state)
    for entries, old, new in zip(MAPS, maps_of(before), maps_of(after), strict=True):
        if old is not new:
            changes.compare_entries(entries, old, new, write.touched)
    before.id.encode()
    keys = key_change(before, after, write.touched)
    return RunUpdate(
        run_id=before.id,
        expected=before.head.revision,
        after=after,
        to_set=encoded(changes.to_set, f"a change of run {before.id}"),
        to_unset=dict.fromkeys(changes.to_unset, ""),
        keys=keys,
        large=_storable(large_in(after)) if changes.large else None,
        claims_twice=bool(keys.gained) and _claims_twice(after),
    )


Pair = tuple[Document, Document]


def _head_changes(before: RunDoc, after: RunDoc) -> Pair:
    """Fields of the head to set, and to remove; the queues' always, since a quarantine may have taken them."""
    old, new = plain_head(before.head), plain_head(after.head)
    removed = {name: None for name in old if name not in new}
    changed = {name: value for name, value in new.items() if name in QUARANTINED or old.get(name) != value}
    changed = lay_out(changed)
    removed |= {name: None for name in (*QUEUE_FIELDS, "quarantined") if name not in changed}
    return changed, removed


def _derived_changes(before: RunDoc, after: RunDoc) -> Pair:
    if after.records is before.records and _derives_the_same(before.head, after.head):
        return {}, {}
    old, new = derived_of_head(before), derived_of_head(after)
    with_labels = any(label_change(before, after))
    if after.records is not before.records or with_labels:
        old |= derived_of_waits(before, with_labels=with_labels)
        new |= derived_of_waits(after, with_labels=with_labels)
    changed = {name: value for name, value in new.items() if name in QUARANTINED or old.get(name) != value}
    return changed, {name: None for name in old if name not in new}


def _queue_changes(before: RunDoc, after: RunDoc) -> Pair:
    old, new = derived_of_queue(before), derived_of_queue(after)
    return ({}, {}) if old == new else (new, {name: None for name in old if name not in new})


def _derives_the_same(old: Head, new: Head) -> bool:
    """Whether nothing has changed that `derived_of_head` looks at, as in most commits."""
    if (new.attention and old.lease != new.lease) or old.debounce is not new.debounce:
        return False
    if (old.slot is not None or new.slot is not None) and (queued_in(old) or queued_in(new)):
        return False
    return _told(old) == _told(new)


_told = attrgetter("status", "version", "attention", "cancelled_by")


class _Changes:
    """What an update sets and removes, as it is found."""

    def __init__(self) -> None:
        self.to_set: Document = {}
        self.to_unset: list[str] = []
        self.large = False

    def compare_fields(self, changes: Pair) -> None:
        """Take over what changed in whole fields."""
        changed, removed = changes
        self.to_set |= changed
        self.to_unset += removed

    def compare_entries(
        self, entries: Entries, old: Mapping[str, Any], new: Mapping[str, Any], touched: Touched | None
    ) -> None:
        """Find the entries of one map that differ."""
        attribute = entries.attribute
        keys: Collection[str] = old.keys() | new.keys() if touched is None else touched.get(attribute, ())
        for key in keys:
            was, value = old.get(key), new.get(key)
            if value is was or value == was:
                continue
            self.large = self.large or _has_large(entries, was) or _has_large(entries, value)
            if value is not None:
                self.to_set[f"{attribute}.{escape(key)}"] = entries.write(value)
            elif new:
                self.to_unset.append(f"{attribute}.{escape(key)}")
        if old and not new:
            self.to_unset.append(attribute)


def _has_large(entries: Entries, value: object) -> bool:
    return value is not None and any(map(is_large, entries.payloads(value)))


def _put_side(write: PutSide) -> SidePut:
    side_id = side_name(write.kind, write.key)
    if write.body is None:
        side_id.encode()
        return SidePut(side_id, write.expected, None)
    document: Document = {
        "_id": side_id,
        "kind": write.kind,
        "key": write.key,
        "revision": write.first if write.expected is None else write.expected + 1,
        "body": inline(write.body),
    }
    if write.due_at is not None:
        document["due_at"] = date(write.due_at)
    return SidePut(side_id, write.expected, encoded(document, f"the {write.kind} {write.key}"))


def side_name(kind: str, key: str) -> str:
    """The id of a side document: no kind holds a slash, so that those of a kind are one range."""
    return f"{kind}/{key}"


def rows_name(kind: str, run_id: str) -> str:
    """The id of a ring of rows."""
    return f"{kind}/{run_id}"


def _append_rows(write: AppendRows) -> RowsPush:
    rows: dict[str, Any] = {"$each": [inline(row) for row in write.rows], "$slice": -write.keep}
    row_id = rows_name(write.kind, write.run_id)
    row_id.encode()
    return RowsPush(row_id, write.run_id, write.fence, encoded(rows, f"rows of run {write.run_id}"))
