"""`RunQuery` as a filter of documents."""

from __future__ import annotations

from typing import Any

from streamline_trio._core.status import SETTLED
from streamline_trio._core.store import Cursor, RunQuery, SortKey
from streamline_trio.stores._derived import meta_label, tag_label, wanted_meta
from streamline_trio.stores.mongo._layout import date

Filter = dict[str, Any]

_EQUAL = {
    "workflow": "workflow",
    "version": "version",
    "tenant": "tenant",
    "user": "user",
    "parent": "parent.run",
    "waiting": "waiting",
}
_FLAGS = ("paused", "dead_lettered")
_TIMES = ("created", "updated")


def matching(query: RunQuery) -> Filter:
    """What the query asks."""
    found: Filter = {}
    for name, field in _EQUAL.items():
        if (wanted := getattr(query, name)) is not None:
            found[field] = wanted
    for name in _FLAGS:
        if (flag := getattr(query, name)) is not None:
            found[name] = True if flag else {"$ne": True}
    for name in _TIMES:
        if bounds := _bounds(getattr(query, f"{name}_after"), getattr(query, f"{name}_before")):
            found[f"{name}_at"] = bounds
    if query.status is not None:
        found["status"] = {"$in": list(query.status)}
        if query.status and SETTLED.issuperset(query.status):
            found["settled"] = True  # opens the index that keeps settled runs by their end
    if wanted_labels := _labels(query):
        found["labels"] = {"$all": wanted_labels}
    return found


def _bounds(after: int | None, before: int | None) -> Filter:
    found: Filter = {}
    if after is not None:
        found["$gte"] = date(after)
    if before is not None:
        found["$lt"] = date(before)
    return found


def _labels(query: RunQuery) -> list[bytes]:
    meta = [meta_label(key, value) for key, value in wanted_meta(query.meta).items()]
    return [*map(tag_label, query.tags), *meta]


def sort_of(sort: SortKey) -> tuple[str, int]:
    """The field that it sorts by, and the direction."""
    return sort.removeprefix("-"), -1 if sort.startswith("-") else 1


def beyond(cursor: Cursor, sort: SortKey) -> Filter:
    """What comes after the cursor."""
    field, direction = sort_of(sort)
    further, end = ("$gt" if direction > 0 else "$lt"), date(cursor.value)
    return {"$or": [{field: {further: end}}, {field: end, "_id": {further: cursor.run_id}}]}
