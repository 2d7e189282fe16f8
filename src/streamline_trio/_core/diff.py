"""What one commit changed, as the parts a store has to write.

Documents are immutable and a commit shares what it does not change, so comparing by identity first makes the
cost that of the change: a map that is the same object costs nothing. Of a map that is not, only the entries that
were touched need be compared, if it is known which.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from streamline_trio._core.codec import (
    ENCODE_ERRORS,
    HEAD,
    MAP_OF,
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
from streamline_trio._core.store import Touched

Changes = dict[str, bytes | None]


def changed(before: RunDoc, after: RunDoc, touched: Touched | None = None) -> Changes:
    """The parts that differ: new contents, or None for a part to remove.

    Applied to `split(before)` it gives `split(after)`. `touched` is that of an `Update`. Raises `ValidationError`
    if a changed part cannot be encoded.
    """
    changes: Changes = {}
    try:
        if after.head is not before.head and after.head != before.head:
            changes[HEAD] = encode(after.head)
        if after.origin is not before.origin and after.origin != before.origin:
            changes[ORIGIN] = encode(after.origin)
        if after.state is not before.state and after.state != before.state:
            changes[STATE] = after.state
        if touched is None:
            for kind, old, new in zip(MAPS, maps_of(before), maps_of(after), strict=True):
                if old is not new:
                    _compare(kind, old, new, old.keys() | new.keys(), changes)
        else:
            for name, keys in touched.items():
                _compare(MAP_OF[name], getattr(before, name), getattr(after, name), keys, changes)
    except ENCODE_ERRORS as error:
        raise not_encodable(after, error) from error
    return changes


def _compare(
    kind: MapKind,
    old: Mapping[str, object],
    new: Mapping[str, object],
    keys: Iterable[str],
    changes: Changes,
) -> None:
    for key in keys:
        was, value = old.get(key), new.get(key)
        if value is not was and value != was:
            changes[part_name(kind, key)] = None if value is None else kind.encode(value)
