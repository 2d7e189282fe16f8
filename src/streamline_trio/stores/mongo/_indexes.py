"""The indexes, each with the query it serves. What is not here costs a look at every document.

Only forms that servers document since 5.0: partial filters use `$exists: true` or an equality, no index holds
two arrays. None holds `updated_at` of runs that still move: it would cost every commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pymongo.collection import Collection
from pymongo.database import Database

from streamline_trio._core.errors import ValidationError

RUNS = "runs"
ROWS = "rows"
SIDES = "sides"
PAYLOADS = "payloads"

Stored = dict[str, Any]


class Index(NamedTuple):
    """One index: its keys in order (1 up, -1 down), and of which documents."""

    collection: str
    name: str
    keys: Mapping[str, int]
    only: Mapping[str, Any] | None = None
    unique: bool = False

    def create(self, collection: Collection[Stored]) -> None:
        """Make it."""
        options: dict[str, Any] = {"name": self.name}
        if self.unique:
            options["unique"] = True
        if self.only is not None:
            options["partialFilterExpression"] = dict(self.only)
        collection.create_index(list(self.keys.items()), **options)

    def is_like(self, stored: Mapping[str, Any]) -> bool:
        """Whether an index of a server is this one."""
        return (
            list(stored["key"].items()) == list(self.keys.items())
            and bool(stored.get("unique", False)) == self.unique
            and (stored.get("partialFilterExpression") or None) == (None if self.only is None else dict(self.only))
        )


def _with(field: str) -> Mapping[str, Any]:
    return {field: {"$exists": True}}


_TURNS = "turns"
INDEXES: tuple[Index, ...] = (
    # due: what each of some routes has to do, highest priority first. Leased and parked runs are not in it.
    Index(RUNS, "due", {"route": 1, "priority": -1, "due_at": 1, "_id": 1}, _with("due_at")),
    # due_in_turn: what each tenant has to do, by how long it waits.
    Index(RUNS, _TURNS, {"route": 1, "tenant": 1, "due_since": 1, "_id": 1}, _with("due_at")),
    # next_due, tally: the earliest of a route whatever its priority.
    Index(RUNS, "next_due", {"route": 1, "due_at": 1}, _with("due_at")),
    # errands: runs with something to be done elsewhere, whoever holds them.
    Index(RUNS, "errands", {"errand_at": 1, "_id": 1}, _with("errand_at")),
    # queued: who waits for a slot of a bucket, in line.
    Index(RUNS, "queued", {"queue": 1, "priority": -1, "slot.ticket": 1, "_id": 1}, _with("queue")),
    # leased, lease_holders: runs of a worker in the order of their ids, attention told by the index itself.
    Index(RUNS, "leased", {"lease.worker": 1, "_id": 1, "attention": 1}, _with("lease.worker")),
    # One active run per key; by_active_key.
    Index(RUNS, "active_key", {"active_key": 1}, _with("active_key"), unique=True),
    # One open wait per token; by_token.
    Index(RUNS, "tokens", {"tokens": 1}, _with("tokens"), unique=True),
    # awaiting; find by tags and meta.
    Index(RUNS, "labels", {"labels": 1, "_id": 1}, _with("labels")),
    # find in the order of creation, whatever else is asked.
    Index(RUNS, "created", {"created_at": 1, "_id": 1}),
    # find by status in the order of creation, count, tally.
    Index(RUNS, "status", {"status": 1, "created_at": 1, "_id": 1}),
    # find of settled runs by their end, which is how old ones are removed.
    Index(RUNS, "settled", {"status": 1, "updated_at": 1, "_id": 1}, {"settled": True}),
    # find and count of dead letters, of which there are few.
    Index(RUNS, "dead", {"created_at": 1, "_id": 1}, {"dead_lettered": True}),
    # find by parent: a run looks after its children.
    Index(RUNS, "children", {"parent.run": 1, "created_at": 1, "_id": 1}, _with("parent.run")),
    # find in a tenant's scope, which must not cost a look at the runs of others.
    Index(RUNS, "tenants", {"tenant": 1, "created_at": 1, "_id": 1}, _with("tenant")),
    # sides with `due_before`.
    Index(SIDES, "due", {"kind": 1, "due_at": 1}, _with("due_at")),
    # Removing the payloads of a run, or those it refers to no more.
    Index(PAYLOADS, "of_run", {"run": 1, "revision": 1}),
)


def ensure(database: Database[Stored], *, create: bool) -> None:
    """Create what is missing, one after the other, and see that each index is what it should be.

    Raises `ValidationError` for an index of that name with another form, or, without `create`, for a missing one.
    """
    for name in (RUNS, ROWS, SIDES, PAYLOADS):
        wanted = [index for index in INDEXES if index.collection == name]
        collection = database[name]
        if create:
            there = _stored(collection)
            if name == RUNS and there and _TURNS not in there:
                _add_due_since(collection)
            for index in wanted:
                if index.name not in there:
                    index.create(collection)
        there = _stored(collection)
        for index in wanted:
            _check(index, there.get(index.name), collection.full_name)


def _add_due_since(collection: Collection[Stored]) -> None:
    """What earlier releases have parked waits since its due time; what is due at once then comes first."""
    old = {"due_at": {"$exists": True}, "due_since": {"$exists": False}}
    collection.update_many(old, [{"$set": {"due_since": "$due_at"}}])


def _stored(collection: Collection[Stored]) -> dict[str, Mapping[str, Any]]:
    return {stored["name"]: stored for stored in collection.list_indexes()}


def _check(index: Index, stored: Mapping[str, Any] | None, collection: str) -> None:
    if stored is None:
        raise ValidationError(f"{collection} lacks the index {index.name!r}: open it once with ensure_indexes=True")
    if not index.is_like(stored):
        raise ValidationError(
            f"the index {index.name!r} of {collection} is not the one of this release: it has {dict(stored)!r}"
        )
