"""All of the store that needs the driver; it works in the caller's thread."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import pymongo
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import InvalidURI, PyMongoError

from streamline_trio._core.errors import ValidationError
from streamline_trio._core.store import Hint
from streamline_trio.stores.mongo import _indexes
from streamline_trio.stores.mongo._client import Stored, connect, look_at, ours, unavailable
from streamline_trio.stores.mongo._indexes import RUNS
from streamline_trio.stores.mongo._reader import Reader
from streamline_trio.stores.mongo._stream import Stream
from streamline_trio.stores.mongo._sweep import Sweep
from streamline_trio.stores.mongo._writer import Writer

T = TypeVar("T")


class Backend:
    """A connection to one database, ready for use."""

    def __init__(
        self,
        given: str | MongoClient[Any] | Database[Any],
        name: str | None,
        *,
        pool_size: int,
        timeout: float,
        create_indexes: bool,
    ) -> None:
        self._timeout = timeout
        self._where = "MongoDB"
        self._stream: Stream | None = None
        self._own: MongoClient[Stored] | None = None
        if isinstance(given, str):
            given = self._own = self._connect(given, pool_size)
        try:
            self._database = ours(given if isinstance(given, Database) else given[name or ""])
            self._where = f"MongoDB database {self._database.name}"
            server = self.call(lambda: self._prepare(create_indexes=create_indexes))
        except BaseException:
            self.close()
            raise
        self.reader = Reader(self._database, server)
        self.writer = Writer(self._database, server)
        self.sweep = Sweep(self._database)
        self._is_replicated = server.is_replicated

    def _connect(self, url: str, pool_size: int) -> MongoClient[Stored]:
        try:
            return connect(url, pool_size, self._timeout)
        except (InvalidURI, ValueError) as error:
            raise ValidationError(f"this is no URL of a MongoDB server: {error}") from error
        except PyMongoError as error:  # the name of a mongodb+srv:// URL cannot be looked up
            raise unavailable(error, self._where) from error

    def _prepare(self, *, create_indexes: bool) -> Any:
        server = look_at(self._database)
        _indexes.ensure(self._database, create=create_indexes)
        return server

    def call(self, function: Callable[[], T]) -> T:
        """Call it with a bound on each of its driver calls; errors of the driver become `StoreUnavailable`."""
        try:
            with pymongo.timeout(self._timeout):
                return function()
        except PyMongoError as error:
            raise unavailable(error, self._where) from error

    def follow(self, tell: Callable[[Hint], None]) -> None:
        """Tell of what anybody writes from now on, if the server can."""
        if self._is_replicated:
            self._stream = Stream(self._database[RUNS], tell)
            self._stream.start(self._timeout)

    def close(self) -> None:
        """End what was begun here; a client that was given stays open."""
        if self._stream is not None:
            self._stream.stop(self._timeout)
        if self._own is not None:
            with suppress(PyMongoError):  # the sessions of an unreachable server are not there to be ended
                self._own.close()
