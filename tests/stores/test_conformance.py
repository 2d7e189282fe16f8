import sqlite3

import pytest

from streamline_trio.stores.memory import MemoryStore
from streamline_trio.stores.sqlite import SqliteStore
from streamline_trio.testing.conformance import CHECKS, Subject


async def spoil_memory(store, run_id):
    store.spoil(run_id)


async def spoil_sqlite(store, run_id):
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE runs SET head = x'c1' WHERE id = ?", (run_id,))
    connection.close()


@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_memory(check):
    """The memory store keeps every condition that the suite can check."""
    await check(Subject(MemoryStore, spoil=spoil_memory, twin=lambda store: store))


@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_sqlite(check, tmp_path):
    """The SQLite store keeps every condition that the suite can check."""
    path = tmp_path / "runs.db"
    await check(Subject(lambda: SqliteStore(path), spoil_sqlite, twin=lambda _: SqliteStore(path)))
