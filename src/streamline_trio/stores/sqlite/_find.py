"""`RunQuery` as SQL."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.status import SETTLED
from streamline_trio._core.store import Cursor, RunQuery, SortKey
from streamline_trio.stores._derived import meta_label, tag_label, wanted_meta
from streamline_trio.stores.sqlite._columns import WAITING_BITS, Value
from streamline_trio.stores.sqlite._reader import load_many

_EQUAL = ("workflow", "version", "tenant", "user", "parent", "paused")
_BOUNDS = (
    ("created_after", "created_at >= ?"),
    ("created_before", "created_at < ?"),
    ("updated_after", "updated_at >= ?"),
    ("updated_before", "updated_at < ?"),
)


class Condition(NamedTuple):
    """Terms of a WHERE clause, all of which must hold, and their values in order."""

    terms: list[str]
    values: list[Value]

    def add(self, term: str, *values: Value) -> None:
        """One more term."""
        self.terms.append(term)
        self.values.extend(values)

    def where(self) -> str:
        """The clause."""
        return " AND ".join(self.terms) or "1"


def condition(query: RunQuery) -> Condition:
    """What the query asks, in SQL."""
    found = Condition([], [])
    for name in _EQUAL:
        if (wanted := getattr(query, name)) is not None:
            found.add(f"{name} = ?", wanted)
    for name, term in _BOUNDS:
        if (bound := getattr(query, name)) is not None:
            found.add(term, bound)
    if query.waiting is not None:
        found.add("waiting & ?", WAITING_BITS[query.waiting])
    if query.dead_lettered is not None:
        # Without a parameter it opens the index of dead letters.
        found.add("dead_lettered" if query.dead_lettered else "NOT dead_lettered")
    _add_status(query, found)
    for label in _labels(query):
        found.add("id IN (SELECT run_id FROM labels WHERE label = ?)", label)
    return found


def _add_status(query: RunQuery, found: Condition) -> None:
    if query.status is None:
        return
    # Dead letters are few: without an index of its own, their status leaves the choice to theirs.
    column = "+status" if query.dead_lettered else "status"
    found.add(f"{column} IN ({', '.join('?' * len(query.status))})", *query.status)
    if SETTLED.issuperset(query.status):
        found.add("settled")  # opens the index that keeps settled runs by their last update


def _labels(query: RunQuery) -> list[bytes]:
    meta = [meta_label(key, value) for key, value in wanted_meta(query.meta).items()]
    return [*map(tag_label, query.tags), *meta]


def find(
    connection: sqlite3.Connection, query: RunQuery, sort: SortKey, limit: int, after: Cursor | None
) -> list[RunDoc]:
    """A full page as long as runs are left: those that do not decode are replaced by the next ones."""
    found: list[RunDoc] = []
    while len(found) < limit:
        page = _page(connection, query, sort, limit - len(found), after)
        if not page:
            break
        after = page[-1]
        found += [run for run in load_many(connection, [entry.run_id for entry in page]) if run is not None]
    return found


def _page(
    connection: sqlite3.Connection, query: RunQuery, sort: SortKey, limit: int, after: Cursor | None
) -> list[Cursor]:
    statement, values = page_statement(query, sort, limit, after)
    return [Cursor(*row) for row in connection.execute(statement, values)]


def page_statement(query: RunQuery, sort: SortKey, limit: int, after: Cursor | None) -> tuple[str, list[Value]]:
    """The statement that gives sort values and ids of a page."""
    column = sort.removeprefix("-")
    order, beyond = ("DESC", "<") if sort.startswith("-") else ("ASC", ">")
    asked = condition(query)
    if after is not None:
        asked.add(f"({column}, id) {beyond} (?, ?)", after.value, after.run_id)
    # Only names and placeholders of ours are put together.
    statement = f"SELECT {column}, id FROM runs WHERE {asked.where()} ORDER BY {column} {order}, id {order} LIMIT ?"  # noqa: S608
    return statement, [*asked.values, limit]


def count(connection: sqlite3.Connection, query: RunQuery) -> int:
    """How many runs match."""
    asked = condition(query)
    statement = f"SELECT count(*) FROM runs WHERE {asked.where()}"  # noqa: S608
    return int(connection.execute(statement, asked.values).fetchone()[0])
