"""Databases on a MongoDB server, a fresh one for each measurement."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import trio
from pymongo import MongoClient
from pymongo.database import Database

from benchmarks.commands import Commands
from streamline_trio import MongoStore
from streamline_trio.store import Verdict, Write


class Databases:
    """Databases of our own, of which there is one at a time: the server's work for others would be measured too.

    Raises `PyMongoError` if no server answers. A context: all of them are removed at its end.
    """

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._prefix = f"{self._parts.path.strip('/') or 'streamline_bench'}_{uuid.uuid4().hex[:8]}"
        self._client: MongoClient[Any] = MongoClient(url)
        self._made: list[str] = []
        self.version: str = self._client.server_info()["version"]

    def __str__(self) -> str:
        host = self._parts.netloc.rpartition("@")[2]  # no password is printed
        return f"a fresh database on mongodb://{host} for each measurement"

    def fresh(self) -> str:
        """The URL of an empty database; the one before it is removed."""
        if self._made:
            self._client.drop_database(self._made[-1])
        name = f"{self._prefix}_{len(self._made)}"
        self._made.append(name)
        return urlunsplit(self._parts._replace(path=f"/{name}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        # All of them: what a process that was killed had on its way may have come after its database was removed.
        for name in self._made:
            self._client.drop_database(name)
        self._client.close()


def database_of(client: MongoClient[Any], url: str) -> Database[Any]:
    """The database of a URL from `fresh`."""
    return client[urlsplit(url).path.removeprefix("/")]


@contextmanager
def counted(url: str) -> Iterator[tuple[MongoStore, Commands]]:
    """A store, and what its client sends."""
    commands = Commands()
    client: MongoClient[Any] = MongoClient(url, event_listeners=[commands])
    with client:
        yield MongoStore(database_of(client, url)), commands


class OneByOne(MongoStore):
    """A store that gives each write a call of its own, several at a time: what batches are compared with."""

    async def write(self, batch: Sequence[Write]) -> list[Verdict]:
        verdicts: dict[int, Verdict] = {}

        async def one(place: int, write: Write) -> None:
            verdicts[place] = (await super(OneByOne, self).write([write]))[0]

        async with trio.open_nursery() as nursery:
            for place, write in enumerate(batch):
                nursery.start_soon(one, place, write)
        return [verdicts[place] for place in range(len(batch))]
