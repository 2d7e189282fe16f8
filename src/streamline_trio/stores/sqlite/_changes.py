"""A write made ready for the database: everything that can fail for the write alone is done here."""

from __future__ import annotations

import msgspec

from streamline_trio._core.codec import HEAD, encode, split
from streamline_trio._core.diff import changed
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.store import AppendRows, Delete, Failed, Insert, PutSide, Quarantine, Update, Write
from streamline_trio.stores._derived import (
    KeyChange,
    key_change,
    label_change,
    labels,
    origin_changed,
    same_origin,
)
from streamline_trio.stores.sqlite._columns import Value, fixed, has_moved, moving


class RunInsert(msgspec.Struct, gc=False):
    """A new run."""

    run_id: str
    revision: int
    fence: int
    columns: tuple[Value, ...]
    keys: KeyChange
    labels: frozenset[bytes]
    parts: dict[str, bytes]


class RunUpdate(msgspec.Struct, gc=False):
    """An update; `moving` is None when no column beside the head changes."""

    run_id: str
    expected: int
    revision: int
    fence: int
    head: tuple[Value, ...]
    moving: tuple[Value, ...] | None
    after: RunDoc
    keys: KeyChange
    labels: tuple[frozenset[bytes], frozenset[bytes]]
    parts: dict[str, bytes | None]


Ready = RunInsert | RunUpdate | Delete | Quarantine | PutSide | AppendRows | Failed


def make_ready(write: Write) -> Ready:
    """The write with everything encoded, or why that cannot be."""
    try:
        if isinstance(write, Insert):
            return _insert(write.run)
        if isinstance(write, Update):
            return _update(write)
    except ValidationError as error:
        return Failed(error)
    return write


def _insert(run: RunDoc) -> RunInsert:
    parts = split(run)
    head = run.head
    first = (run.id, head.revision, head.fence, head.updated_at, parts.pop(HEAD), 0)
    return RunInsert(
        run_id=run.id,
        revision=head.revision,
        fence=head.fence,
        columns=(*first, *moving(run), *fixed(run)),
        keys=key_change(None, run),
        labels=labels(run),
        parts=parts,
    )


def _update(write: Update) -> RunUpdate:
    before, after = write.before, write.after
    if not same_origin(before, after):
        raise origin_changed(before.origin)
    parts = changed(before, after, write.touched)
    head = after.head
    return RunUpdate(
        run_id=before.id,
        expected=before.head.revision,
        revision=head.revision,
        fence=head.fence,
        head=(head.revision, head.fence, head.updated_at, parts.pop(HEAD, None) or encode(head)),
        moving=moving(after) if has_moved(before, after, write.touched) else None,
        after=after,
        keys=key_change(before, after, write.touched),
        labels=label_change(before, after, write.touched),
        parts=parts,
    )
