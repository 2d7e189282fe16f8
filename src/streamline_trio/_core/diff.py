"""What one commit changed, as the parts a store has to write.

Documents are immutable and a commit shares what it does not change, so comparing by identity first makes the
cost that of the change: a map that is the same object costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from streamline_trio._core.codec import (
    ENCODE_ERRORS,
    HEAD,
    MAPS,
    ORIGIN,
    STATE,
    MapKind,
    encode,
    maps_of,
    not_encodable,
    part_name,
)
from streamline_trio._core.documents import RunDoc

Changes = dict[str, bytes | None]


def changed(before: RunDoc, after: RunDoc) -> Changes:
    """The parts that differ: new contents, or None for a part to remove.

    Applied to `split(before)` it gives `split(after)`. Raises `ValidationError` if a changed part cannot be
    encoded.
    """
    changes: Changes = {}
    try:
        if after.head is not before.head and after.head != before.head:
            changes[HEAD] = encode(after.head)
        if after.origin is not before.origin and after.origin != before.origin:
            changes[ORIGIN] = encode(after.origin)
        if after.state is not before.state and after.state != before.state:
            changes[STATE] = after.state
        for kind, old, new in zip(MAPS, maps_of(before), maps_of(after), strict=True):
            if old is not new:
                _compare(kind, old, new, changes)
    except ENCODE_ERRORS as error:
        raise not_encodable(after, error) from error
    return changes


def _compare(kind: MapKind, old: Mapping[str, object], new: Mapping[str, object], changes: Changes) -> None:
    other = [(key, value, old.get(key)) for key, value in new.items() if old.get(key) is not value]
    for key, value, was in other:
        if was != value:
            changes[part_name(kind, key)] = kind.encode(value)
    if not old.keys() <= new.keys():
        changes.update((part_name(kind, key), None) for key in old.keys() - new.keys())
