from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pymongo
from pymongo.monitoring import CommandListener

from streamline_trio._core.store import Route
from streamline_trio.stores.mongo import MongoStore

ROUTE = Route("w", "1")
LARGE = msgspec.msgpack.encode("x" * 400_000)


def packed(value):
    return msgspec.msgpack.encode(value)


@asynccontextmanager
async def opened(server, database=None, **options):
    store = MongoStore(server, database, **{"change_streams": False, **options})
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


def hurry(seconds, *stores):
    """Calls of these open stores fail sooner: opening, which makes all the indexes, had the time it needs."""
    for store in stores:
        store._backend._timeout = seconds


class Commands(CommandListener):
    """The names of the commands that a client sends, with what each is about."""

    def __init__(self):
        self.names = []

    def started(self, event):
        if event.command_name not in {"hello", "endSessions", "killCursors"}:
            self.names.append(event.command_name)

    def succeeded(self, event):
        pass

    def failed(self, event):
        pass

    def take(self):
        names, self.names = self.names, []
        return names


@asynccontextmanager
async def counted(databases, **options):
    """A store, and what it sends."""
    url = databases.url()
    commands = Commands()
    client: pymongo.MongoClient[Any] = pymongo.MongoClient(url, event_listeners=[commands])
    with client:
        async with opened(client.get_default_database(), **options) as store:
            commands.take()
            yield store, commands
