import sqlite3

import pytest
import trio

from streamline_trio.stores.memory import MemoryStore
from streamline_trio.stores.mongo import MongoStore, _client
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


@pytest.mark.parametrize("has_client_bulk", [True, False], ids=["one command", "by collection"])
@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_mongo(check, has_client_bulk, databases, monkeypatch):
    """The Mongo store keeps every condition, with the bulk write of servers from 8.0 on and with that before."""
    if not has_client_bulk:
        monkeypatch.setattr(_client, "CLIENT_BULK_WIRE_VERSION", 10**6)
    made: dict[object, str] = {}

    def make():
        url = databases.url()
        store = MongoStore(url, change_streams=False)
        made[store] = url
        return store

    async def spoil(store, run_id):
        runs = databases.of(made[store]).runs
        await trio.to_thread.run_sync(runs.update_one, {"_id": run_id}, {"$set": {"status": 5}})

    await check(Subject(make, spoil, twin=lambda store: MongoStore(made[store], change_streams=False)))
