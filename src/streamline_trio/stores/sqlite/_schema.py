"""The tables, and how a file comes to have them.

`runs` has one row per run: its head, and as columns what queries ask for. Columns from `workflow` on are written
once; `status` to `quarantined` and `since` only when one of them changes, so that an ordinary commit touches no
index at all. All else of a run is in `parts`. `keys` holds what one run at a time may hold, `labels` what many
share: tags, values of meta, awaited signals.

No index holds `updated_at` of runs that still move: it would cost every commit. Runs that have settled are kept
by it, since that is how retention asks for them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager

from streamline_trio._core.errors import StoreUnavailable

VERSION = 3
APPLICATION_ID = 0x5354524D

_TABLES = (
    """
    CREATE TABLE runs (
        no INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        revision INTEGER NOT NULL,
        fence INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        head BLOB NOT NULL,
        status TEXT NOT NULL,
        settled INTEGER NOT NULL,
        version TEXT NOT NULL,
        due_at INTEGER,
        errand_at INTEGER,
        worker TEXT,
        attention INTEGER NOT NULL,
        paused INTEGER NOT NULL,
        dead_lettered INTEGER NOT NULL,
        waiting INTEGER NOT NULL,
        queue TEXT,
        ticket INTEGER,
        quarantined INTEGER NOT NULL,
        workflow TEXT NOT NULL,
        priority INTEGER NOT NULL,
        tenant TEXT,
        user TEXT,
        parent TEXT,
        created_at INTEGER NOT NULL,
        since INTEGER NOT NULL DEFAULT 0
    )
    """,
    "CREATE INDEX runs_due ON runs (workflow, version, priority, due_at, id) WHERE due_at IS NOT NULL",
    "CREATE INDEX runs_errands ON runs (errand_at, id) WHERE errand_at IS NOT NULL",
    "CREATE INDEX runs_turns ON runs (workflow, version, tenant, since, id, due_at) WHERE due_at IS NOT NULL",
    "CREATE INDEX runs_queued ON runs (queue, priority DESC, ticket, id) WHERE queue IS NOT NULL",
    "CREATE INDEX runs_leased ON runs (worker, attention, id) WHERE worker IS NOT NULL",
    "CREATE INDEX runs_created ON runs (created_at, id)",
    "CREATE INDEX runs_status ON runs (status, created_at, id)",
    "CREATE INDEX runs_settled ON runs (status, updated_at, id) WHERE settled",
    "CREATE INDEX runs_dead ON runs (created_at, id) WHERE dead_lettered",
    "CREATE INDEX runs_children ON runs (parent, created_at, id) WHERE parent IS NOT NULL",
    "CREATE INDEX runs_tenants ON runs (tenant, created_at, id) WHERE tenant IS NOT NULL",
    """
    CREATE TABLE parts (
        run_id TEXT NOT NULL, part TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (run_id, part)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE keys (
        kind TEXT NOT NULL, key TEXT NOT NULL, run_id TEXT NOT NULL, PRIMARY KEY (kind, key)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX keys_of_run ON keys (run_id)",
    """
    CREATE TABLE labels (
        label BLOB NOT NULL, run_id TEXT NOT NULL, PRIMARY KEY (label, run_id)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX labels_of_run ON labels (run_id)",
    """
    CREATE TABLE rows (
        run_id TEXT NOT NULL, kind TEXT NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (run_id, kind, seq)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE sides (
        kind TEXT NOT NULL, key TEXT NOT NULL, revision INTEGER NOT NULL, body BLOB NOT NULL, due_at INTEGER,
        PRIMARY KEY (kind, key)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX sides_due ON sides (kind, due_at) WHERE due_at IS NOT NULL",
)

_UPGRADES: dict[int, tuple[str, ...]] = {
    1: (
        "ALTER TABLE runs ADD COLUMN errand_at INTEGER",
        "CREATE INDEX runs_errands ON runs (errand_at, id) WHERE errand_at IS NOT NULL",
    ),
    2: (
        "ALTER TABLE runs ADD COLUMN since INTEGER NOT NULL DEFAULT 0",
        # What is due at once has been ready since some time after it was made, which only its head tells.
        "UPDATE runs SET since = CASE due_at WHEN 0 THEN created_at ELSE due_at END WHERE due_at IS NOT NULL",
        "CREATE INDEX runs_turns ON runs (workflow, version, tenant, since, id, due_at) WHERE due_at IS NOT NULL",
        "ALTER TABLE runs ADD COLUMN queue TEXT",
        "ALTER TABLE runs ADD COLUMN ticket INTEGER",
        "CREATE INDEX runs_queued ON runs (queue, priority DESC, ticket, id) WHERE queue IS NOT NULL",
        "CREATE INDEX runs_dead ON runs (created_at, id) WHERE dead_lettered",
        "CREATE INDEX runs_tenants ON runs (tenant, created_at, id) WHERE tenant IS NOT NULL",
    ),
}
"""What makes the next version of a schema out of each, in one pass over the runs at most.

Processes of an earlier release leave `since` alone: what they park stands where it stood before, or first.
"""

_WAL_TRIES = 100


def prepare_file(connection: sqlite3.Connection, path: str) -> None:
    """Make the file ours if it is new, else make sure that it is; safe in many processes at once.

    A file of this release is only read: whoever holds its write lock, perhaps for long, keeps nobody from opening
    it.
    """
    # Another program's file must not even be switched to write-ahead logging.
    with _transaction(connection, "BEGIN"):
        is_new = _is_new(connection, path)
    _use_wal(connection, path)
    if is_new:
        with _transaction(connection, "BEGIN IMMEDIATE"):
            if _is_new(connection, path):
                _create_tables(connection)
    if _refuse_newer(connection, path) < VERSION:
        with _transaction(connection, "BEGIN IMMEDIATE"):
            _upgrade(connection)


def _upgrade(connection: sqlite3.Connection) -> None:
    """Bring a file of an earlier release up to this one, if no other process was faster.

    Processes of the earlier release that have it open go on: they name the columns they know.
    """
    for version in range(_number(connection, "PRAGMA user_version"), VERSION):
        for statement in _UPGRADES[version]:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {VERSION}")


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Generator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _is_new(connection: sqlite3.Connection, path: str) -> bool:
    """Whether nothing is in the file; both are read in one transaction, since another may be making it ours."""
    if _number(connection, "PRAGMA user_version"):
        return False
    if _number(connection, "SELECT count(*) FROM sqlite_master"):
        raise _foreign(path)
    return True


def _create_tables(connection: sqlite3.Connection) -> None:
    for statement in _TABLES:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _foreign(path: str) -> StoreUnavailable:
    return StoreUnavailable(f"{path} is a database of another program", path=path)


def _refuse_newer(connection: sqlite3.Connection, path: str) -> int:
    """The version of the file's schema, which this release knows."""
    if _number(connection, "PRAGMA application_id") != APPLICATION_ID:
        raise _foreign(path)
    version = _number(connection, "PRAGMA user_version")
    if version > VERSION:
        raise StoreUnavailable(
            f"{path} was written by a later release: it has schema {version}, this release knows {VERSION}",
            path=path,
            schema=version,
        )
    return version


def _use_wal(connection: sqlite3.Connection, path: str) -> None:
    """Switch to write-ahead logging.

    While another connection switches, SQLite does not wait but says that it is busy; the empty transaction
    waits for that other one to end.
    """
    for _ in range(_WAL_TRIES):
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("COMMIT")
            continue
        if mode != "wal":
            raise StoreUnavailable(f"{path} cannot use write-ahead logging (it uses {mode})", path=path)
        return
    raise StoreUnavailable(f"{path} stays busy while it is being opened", path=path)


def _number(connection: sqlite3.Connection, statement: str) -> int:
    return int(connection.execute(statement).fetchone()[0])
