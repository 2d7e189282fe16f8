"""Raw statements: the durable writes of a run with neither engine nor store around them.

Raw means: one thread, no event loop, no handlers, no decisions, no encoding, no guards but the revision. A run of
N steps is N + 1 writes, as in the engine: one that inserts it and one per step. What a write carries was recorded
from the engine once (`documents.recorded`), and the same bytes are written again and again.

On SQLite, with the page size, journal and sync settings of the store, a write is

- for a new run: one row in `heads` (id, revision, head) and one row in `parts` for each part of the real document
  (origin, state, first step);
- for a step: one UPDATE of the head's row, guarded by its revision, and one new row in `parts` with as many bytes
  as all the parts that the engine writes in that commit (it writes the step that ended and the one that began as
  two rows, so the raw loop has the easier task). No other table or index exists.

A transaction holds `concurrency` writes, of as many runs, which move in step with each other: it is a batch as
large as a group committer can make with so many runs in flight. In memory a write replaces a struct of the same
bytes in a dict, guarded by its revision, and a transaction is nothing. On MongoDB it is a loop of plain pymongo:
see `raw_mongo`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from benchmarks.documents import Written, carried
from benchmarks.places import Place
from streamline_trio.store import Insert, Update

SETTINGS = (
    "synchronous = FULL",
    "fullfsync = ON",
    "cache_size = -32000",
    "wal_autocheckpoint = 4000",
    "journal_size_limit = 67108864",
)
_TABLES = (
    "CREATE TABLE heads (id TEXT NOT NULL PRIMARY KEY, revision INTEGER NOT NULL, head BLOB NOT NULL)",
    """
    CREATE TABLE parts (
        run_id TEXT NOT NULL, part INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (run_id, part)
    ) WITHOUT ROWID
    """,
)
_INSERT_HEAD = "INSERT INTO heads (id, revision, head) VALUES (?, 1, ?)"
_UPDATE_HEAD = "UPDATE heads SET revision = revision + 1, head = ? WHERE id = ? AND revision = ?"
_INSERT_PART = "INSERT INTO parts (run_id, part, body) VALUES (?, ?, ?)"


def seconds_of_commits(
    place: Place, writes: Sequence[Insert | Update], runs: int, concurrency: int, *, warm: int = 0
) -> list[float]:
    """What each transaction took, on a store of the place's kind that was empty before.

    The first `warm` writes of each run are left out.
    """
    if place.kind == "mongodb":
        # Whoever measures another store need not have the driver.
        from benchmarks.raw_mongo import seconds_of_bulks  # noqa: PLC0415

        taken = list(seconds_of_bulks(place.fresh(), writes, _groups(runs, concurrency)))
    else:
        bodies = [carried(write) for write in writes]
        if place.kind == "memory":
            taken = list(_in_memory(bodies, runs, concurrency))
        else:
            taken = list(_in_sqlite(place.file("raw.db"), bodies, runs, concurrency))
    return [seconds for number, seconds in enumerate(taken) if number % len(writes) >= warm]


def _in_sqlite(path: Path, writes: Sequence[Written], runs: int, concurrency: int) -> Iterator[float]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        for setting in SETTINGS:
            connection.execute(f"PRAGMA {setting}")
        for table in _TABLES:
            connection.execute(table)
        for ids in _groups(runs, concurrency):
            for revision, write in enumerate(writes):
                began = time.perf_counter()
                _commit(connection, ids, revision, write)
                yield time.perf_counter() - began
    finally:
        connection.close()


def _commit(connection: sqlite3.Connection, ids: Sequence[str], revision: int, write: Written) -> None:
    """One transaction: this write of each of the runs."""
    connection.execute("BEGIN IMMEDIATE")
    if revision == 0:
        connection.executemany(_INSERT_HEAD, [(run, write.head) for run in ids])
        rows = [(run, -place, part) for run in ids for place, part in enumerate(write.parts)]
    else:
        done = connection.executemany(_UPDATE_HEAD, [(write.head, run, revision) for run in ids])
        assert done.rowcount == len(ids), "nobody else writes here"
        body = b"".join(write.parts)
        rows = [(run, revision, body) for run in ids]
    connection.executemany(_INSERT_PART, rows)
    connection.execute("COMMIT")


class _Kept(msgspec.Struct, frozen=True):
    """A run as a mere dict keeps it."""

    revision: int
    head: bytes
    parts: dict[int, bytes]


def _in_memory(writes: Sequence[Written], runs: int, concurrency: int) -> Iterator[float]:
    kept: dict[str, _Kept] = {}
    for ids in _groups(runs, concurrency):
        for revision, write in enumerate(writes):
            began = time.perf_counter()
            for run in ids:
                kept[run] = _next(kept.get(run), revision, write)
            yield time.perf_counter() - began


def _next(before: _Kept | None, revision: int, write: Written) -> _Kept:
    if before is None:
        return _Kept(1, write.head, {-place: part for place, part in enumerate(write.parts)})
    assert before.revision == revision, "nobody else writes here"
    return _Kept(revision + 1, write.head, {**before.parts, revision: b"".join(write.parts)})


def _groups(runs: int, size: int) -> Iterator[list[str]]:
    """Ids as long as those of runs, in groups of runs that are in flight together."""
    for start in range(0, runs, size):
        yield [f"{number:026d}" for number in range(start, min(start + size, runs))]
