"""Statements over many rows at once.

SQLite gives up the interpreter lock at each step, and while the trio thread computes it is slow to get it back.
One statement for all rows of a batch steps once. Its text depends on the number of rows, so rows go out in
groups of a power of two and few texts stay prepared.

Rows are searched by a list of alternatives, since SQLite without statistics scans the table for a list of
pairs: `(a, b) IN (VALUES ...)`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import NamedTuple

from streamline_trio.stores.sqlite._columns import Fixed, Moving, Value

Row = Sequence[Value]

LARGEST_GROUP = 256


class Statement(NamedTuple):
    """SQL text around a list of rows.

    `alone` is a text for one row, where there is one that costs less: at one run at a time every commit has one.
    """

    before: str
    row: str
    after: str = ""
    between: str = ", "
    alone: str | None = None


def _values(width: int) -> str:
    return "(" + ", ".join("?" * width) + ")"


_NEW = ["id", "revision", "fence", "updated_at", "head", "quarantined", *Moving._fields, *Fixed._fields]
_HEAD = ("revision", "fence", "updated_at", "head")


def _set(names: Sequence[str], value: str) -> str:
    """Assignments of a row's values from the second on; the first says which run."""
    return ", ".join(f"{name} = {value}{place}" for place, name in enumerate(names, 2))


_ROW = "new.column"
_PARAMETER = "?"
_FOUND = "no || ' ' || revision || ' ' || fence || ' ' || quarantined"

# SQLite names the columns of a VALUES list column1, column2 and so on. What is put together here are only names of
# columns, so nothing can be injected.
FIND_RUNS = Statement(
    f"SELECT group_concat(wanted.column1 || ' ' || {_FOUND}) FROM (VALUES ",  # noqa: S608
    _values(2),
    ") AS wanted CROSS JOIN runs ON runs.id = wanted.column2",
    alone=f"SELECT group_concat(?1 || ' ' || {_FOUND}) FROM runs WHERE id = ?2",  # noqa: S608
)
PARTS_OF_RUNS = Statement(
    "WITH wanted (id) AS (VALUES ",
    _values(1),
    ") SELECT runs.id, 'head', head FROM wanted CROSS JOIN runs ON runs.id = wanted.id"
    " UNION ALL SELECT run_id, part, body FROM wanted CROSS JOIN parts ON run_id = wanted.id",
)
INSERT_RUNS = Statement(
    "INSERT INTO runs (" + ", ".join(_NEW) + ") VALUES ",  # noqa: S608
    _values(len(_NEW)),
)
UPDATE_HEADS = Statement(
    f"UPDATE runs SET {_set(_HEAD, _ROW)} FROM (VALUES ",  # noqa: S608
    _values(1 + len(_HEAD)),
    ") AS new WHERE runs.no = new.column1",
    alone=f"UPDATE runs SET {_set(_HEAD, _PARAMETER)} WHERE no = ?1",  # noqa: S608
)
UPDATE_RUNS = Statement(
    f"UPDATE runs SET quarantined = 0, {_set((*_HEAD, *Moving._fields), _ROW)} FROM (VALUES ",  # noqa: S608
    _values(1 + len(_HEAD) + len(Moving._fields)),
    ") AS new WHERE runs.no = new.column1",
    alone=f"UPDATE runs SET quarantined = 0, {_set((*_HEAD, *Moving._fields), _PARAMETER)} WHERE no = ?1",  # noqa: S608
)
QUARANTINE_RUNS = Statement(
    "UPDATE runs SET quarantined = 1, due_at = NULL, errand_at = NULL, worker = NULL, queue = NULL WHERE no IN (",
    "?",
    ")",
)
DELETE_RUNS = Statement("DELETE FROM runs WHERE no IN (", "?", ")")

PUT_PARTS = Statement(
    "INSERT INTO parts (run_id, part, body) VALUES ",
    _values(3),
    " ON CONFLICT (run_id, part) DO UPDATE SET body = excluded.body",
)
REMOVE_PARTS = Statement("DELETE FROM parts WHERE ", "(run_id = ? AND part = ?)", between=" OR ")
DELETE_PARTS = Statement("DELETE FROM parts WHERE run_id IN (", "?", ")")

FIND_KEYS = Statement(
    "SELECT kind, key, run_id FROM (VALUES ",
    _values(2),
    ") AS wanted CROSS JOIN keys ON keys.kind = wanted.column1 AND keys.key = wanted.column2",
)
PUT_KEYS = Statement("INSERT INTO keys (kind, key, run_id) VALUES ", _values(3))
REMOVE_KEYS = Statement("DELETE FROM keys WHERE ", "(kind = ? AND key = ?)", between=" OR ")
DELETE_KEYS = "DELETE FROM keys WHERE run_id = ? RETURNING kind, key"

PUT_LABELS = Statement("INSERT INTO labels (label, run_id) VALUES ", _values(2))
REMOVE_LABELS = Statement("DELETE FROM labels WHERE ", "(label = ? AND run_id = ?)", between=" OR ")
DELETE_LABELS = Statement("DELETE FROM labels WHERE run_id IN (", "?", ")")

LAST_ROW = "SELECT coalesce(max(seq), 0) FROM rows WHERE run_id = ? AND kind = ?"
PUT_ROWS = Statement("INSERT INTO rows (run_id, kind, seq, body) VALUES ", _values(4))
TRIM_ROWS = "DELETE FROM rows WHERE run_id = ? AND kind = ? AND seq <= ?"
DELETE_ROWS = Statement("DELETE FROM rows WHERE run_id IN (", "?", ")")

HAS_SIDE = "SELECT 1 FROM sides WHERE kind = ? AND key = ?"
INSERT_SIDE = """
    INSERT INTO sides (kind, key, revision, body, due_at) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""
UPDATE_SIDE = """
    UPDATE sides SET revision = revision + 1, body = ?, due_at = ? WHERE kind = ? AND key = ? AND revision = ?
"""
DELETE_SIDE = "DELETE FROM sides WHERE kind = ? AND key = ? AND revision = ?"

# A key that one write gives up may be taken by a later one of its batch, so removals go first.
ORDER = (
    REMOVE_KEYS,
    REMOVE_LABELS,
    REMOVE_PARTS,
    DELETE_RUNS,
    DELETE_PARTS,
    DELETE_LABELS,
    DELETE_ROWS,
    QUARANTINE_RUNS,
    INSERT_RUNS,
    UPDATE_HEADS,
    UPDATE_RUNS,
    PUT_PARTS,
    PUT_KEYS,
    PUT_LABELS,
)


@cache
def text_of(statement: Statement, rows: int) -> str:
    """The SQL for this number of rows."""
    if rows == 1 and statement.alone is not None:
        return statement.alone
    return statement.before + statement.between.join([statement.row] * rows) + statement.after


def groups(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """The rows cut into groups of a power of two, none larger than the largest group."""
    start, size = 0, LARGEST_GROUP
    while start < len(rows):
        while size > len(rows) - start:
            size //= 2
        yield rows[start : start + size]
        start += size


def run_all(connection: sqlite3.Connection, statement: Statement, rows: Sequence[Row]) -> list[sqlite3.Cursor]:
    """Run the statement over all rows, in as few steps as may be."""
    return [
        connection.execute(text_of(statement, len(group)), list(chain.from_iterable(group)))
        for group in groups(rows)
    ]
