"""Opening a SQLite store for as long as a block."""

from contextlib import asynccontextmanager

from streamline_trio.stores.sqlite import SqliteStore


@asynccontextmanager
async def opened(path, **options):
    store = SqliteStore(path, **options)
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()
