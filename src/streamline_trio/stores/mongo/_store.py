"""The store object. It knows the driver only once it is opened."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

import trio

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import StoreUnavailable, ValidationError
from streamline_trio._core.store import (
    Applied,
    Corrupt,
    Cursor,
    Hint,
    Route,
    RowKind,
    RunQuery,
    SideDoc,
    SortKey,
    Tally,
    Verdict,
    Write,
)
from streamline_trio.stores._derived import hint_of
from streamline_trio.stores._limiters import LimiterPerRun
from streamline_trio.stores._watchers import Watchers

if TYPE_CHECKING:
    from pymongo import MongoClient
    from pymongo.database import Database

    from streamline_trio.stores.mongo._backend import Backend
    from streamline_trio.stores.mongo._reader import Reader

T = TypeVar("T")

POOL_SIZE = 16
DOUBT = 60.0
"""Seconds after a write of unknown outcome in which single documents are read linearizably."""


class MongoStore:
    """Runs in a MongoDB database (5.0 or newer), for workers on many machines.

    Every method makes one hop to a thread; at most `pool_size` are under way. Waiting for a free one is the only
    cancel point; what was begun is carried out and its outcome returned, cancelled or not. Writes are acknowledged
    by a majority of the servers and by their journals; a batch of updates is one command. Reads go to the primary
    and see what a majority has. Nothing needs transactions: each write is one document.

    There are no worker locks: `worker_gone` is never true, beats tell. One object may serve several trio runs, one
    after the other or at once in threads of their own.

    Args:
        server: a URL (`mongodb://` or `mongodb+srv://`), or a client or database of yours, which stays open.
        database: the name of the database; it may stand in the URL's path.
        timeout: how many seconds a call may take before `StoreUnavailable`.
        pool_size: how many calls may be under way at a time.
        change_streams: whether to follow what others write, where the server can tell.
        ensure_indexes: whether `open` creates missing indexes; it verifies them in any case.

    Raises:
        StoreUnavailable: by any method, when no server answers in time or it fails.
        ValidationError: at once, for a URL or arguments that name no database or when pymongo is not installed;
            by `open`, for a server that is too old or an index that is not as it should be.
    """

    def __init__(
        self,
        server: str | MongoClient[Any] | Database[Any],
        database: str | None = None,
        *,
        timeout: float = 10.0,
        pool_size: int = POOL_SIZE,
        change_streams: bool = True,
        ensure_indexes: bool = True,
    ) -> None:
        if importlib.util.find_spec("pymongo") is None:
            raise ValidationError("a MongoStore needs pymongo: pip install 'streamline-trio[mongo]'")
        self._server = server
        self._name = database or _name_in(server)
        self._timeout = timeout
        self._pool_size = pool_size
        self._change_streams = change_streams
        self._ensure_indexes = ensure_indexes
        self._limiter = LimiterPerRun(pool_size)
        self._users = 0
        self._users_lock = threading.Lock()
        self._backend: Backend | None = None
        self._doubtful_until = -1.0
        self._watchers = Watchers()

    def __repr__(self) -> str:
        return f"MongoStore(database={self._name!r})"

    @property
    def exclusive(self) -> bool:
        """False: any number of processes may share the database."""
        return False

    async def open(self) -> None:
        """Connect, create what indexes are missing and verify them; calls are counted."""
        await trio.to_thread.run_sync(self._open, limiter=self._limiter.here())

    async def aclose(self) -> None:
        """Undo one `open`; the last one closes the connections. Shielded from cancellation."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._close, limiter=self._limiter.here())

    async def write(self, batch: Sequence[Write]) -> list[Verdict]:
        """Apply a batch (conditions 1 to 8); listeners here are told before it returns."""
        backend = self._opened()
        try:
            verdicts = await self._in_thread(backend, lambda: backend.writer.write(batch))
        except StoreUnavailable:
            self._doubtful_until = time.monotonic() + DOUBT
            raise
        for write, verdict in zip(batch, verdicts, strict=True):
            if isinstance(verdict, Applied) and (hint := hint_of(write)) is not None:
                self._watchers.tell(hint)
        return verdicts

    async def load(self, run_id: str) -> RunDoc | None:
        """The run, or None; `DataCorruption` if it does not decode."""
        linearizable = self._is_doubtful()
        return await self._read(lambda reader: reader.load(run_id, linearizable=linearizable))

    async def load_many(self, run_ids: Sequence[str]) -> list[RunDoc | None]:
        """The runs in the order asked; None for those that do not exist or do not decode."""
        return await self._read(lambda reader: reader.load_many(run_ids))

    async def by_active_key(self, key: str) -> RunDoc | None:
        """The active run that holds the key."""
        return await self._read(lambda reader: reader.by_active_key(key))

    async def by_token(self, digest: str) -> RunDoc | None:
        """The run with the open wait that the token answers."""
        return await self._read(lambda reader: reader.by_token(digest))

    async def namesakes(self, run_id: str, limit: int) -> list[str]:
        """Stored ids of the runs of tenants that have this public id, in order."""
        return await self._read(lambda reader: reader.namesakes(run_id, limit))

    async def awaiting(self, signal: str, tenant: str | None, after: str, limit: int) -> list[str]:
        """Ids of runs with an open wait for the signal in the tenant's scope, in id order after `after`."""
        return await self._read(lambda reader: reader.awaiting(signal, tenant, after, limit))

    async def due(self, routes: Sequence[Route], now: int, limit: int, *, skip: int = 0) -> list[RunDoc | Corrupt]:
        """Unleased runs whose time has come; its cost does not grow with the runs that sleep."""
        return await self._read(lambda reader: reader.due(routes, now, limit, skip=skip))

    async def due_in_turn(
        self, routes: Sequence[Route], now: int, after: str | None, limit: int
    ) -> list[RunDoc | Corrupt]:
        """Some of them, of one tenant after the other; of each the ones that have waited longest."""
        return await self._read(lambda reader: reader.due_in_turn(routes, now, after, limit))

    async def next_due(self, routes: Sequence[Route]) -> int | None:
        """The earliest `due_at` on the routes, past or future; None if there is none."""
        return await self._read(lambda reader: reader.next_due(routes))

    async def errands(self, now: int, limit: int) -> list[RunDoc | Corrupt]:
        """Runs with an errand that any worker may do by now, earliest first."""
        return await self._read(lambda reader: reader.errands(now, limit))

    async def queued(self, bucket: str, limit: int) -> list[RunDoc | Corrupt]:
        """The first of the runs that wait for a slot of the bucket."""
        return await self._read(lambda reader: reader.queued(bucket, limit))

    async def count_queued(self, bucket: str) -> int:
        """How many wait for a slot of the bucket."""
        return await self._read(lambda reader: reader.count_queued(bucket))

    async def leased(self, worker: str, *, attention: bool, limit: int, after: str = "") -> list[RunDoc | Corrupt]:
        """Runs leased to the worker, in id order after `after`; with `attention` only those that have it."""
        return await self._read(lambda reader: reader.leased(worker, limit, after, attention=attention))

    async def leased_by_priority(self, worker: str, limit: int, *, skip: int = 0) -> list[RunDoc | Corrupt]:
        """Runs leased to the worker, highest priority first, then by id."""
        return await self._read(lambda reader: reader.leased_by_priority(worker, limit, skip))

    async def lease_holders(self) -> list[str]:
        """The distinct workers that leases name, sorted."""
        return await self._read(lambda reader: reader.lease_holders())

    async def find(self, query: RunQuery, *, sort: SortKey, limit: int, after: Cursor | None) -> list[RunDoc]:
        """A page of runs, full as long as there are more; sorting by `updated_at` looks at all that match."""
        return await self._read(lambda reader: reader.find(query, sort, limit, after))

    async def count(self, query: RunQuery) -> int:
        """How many runs match, those that do not decode included."""
        return await self._read(lambda reader: reader.count(query))

    async def tally(self, now: int) -> Tally:
        """Counts by status (each of them, also at 0), and of what is due by now."""
        return await self._read(lambda reader: reader.tally(now))

    async def rows(self, run_id: str, kind: RowKind) -> list[bytes]:
        """The rows of a run, oldest first."""
        return await self._read(lambda reader: reader.rows(run_id, kind))

    async def side(self, kind: str, key: str) -> SideDoc | None:
        """A side document."""
        linearizable = self._is_doubtful()
        return await self._read(lambda reader: reader.side(kind, key, linearizable=linearizable))

    async def sides(
        self, kind: str, *, after: str = "", due_before: int | None = None, limit: int = 1000
    ) -> list[SideDoc]:
        """Side documents of a kind in key order after `after`; with `due_before` those due until then."""
        return await self._read(lambda reader: reader.sides(kind, after, due_before, limit))

    async def hold_worker(self, worker: str) -> None:
        """There are no locks to hold."""
        del worker
        await trio.lowlevel.checkpoint()

    async def drop_worker(self, worker: str) -> None:
        """There are no locks to drop."""
        del worker
        await trio.lowlevel.checkpoint()

    async def worker_gone(self, worker: str) -> bool:
        """Never known: its beats tell."""
        del worker
        await trio.lowlevel.checkpoint()
        return False

    async def sweep(self) -> int:
        """Look at the next 500 payloads and rings of rows, and remove what nobody refers to; how many documents.

        A process that dies in the midst of a write may leave such things behind. The engine's workers call it once
        a minute. What belongs to a run that is missing has to be found twice, ten minutes apart, by one store.
        """
        backend, now = self._opened(), time.monotonic()
        return await self._in_thread(backend, lambda: backend.sweep.run(now))

    def watch(self, listener: Callable[[Hint], None]) -> Callable[[], None]:
        """Call `listener` after writes through this object and, with a change stream, after those of others."""
        return self._watchers.add(listener)

    async def _read(self, function: Callable[[Reader], T]) -> T:
        backend = self._opened()
        return await self._in_thread(backend, lambda: function(backend.reader))

    async def _in_thread(self, backend: Backend, function: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(backend.call, function, limiter=self._limiter.here())

    def _opened(self) -> Backend:
        if self._backend is None:
            raise StoreUnavailable(f"{self!r} is not open")
        return self._backend

    def _is_doubtful(self) -> bool:
        return time.monotonic() < self._doubtful_until

    def _open(self) -> None:
        with self._users_lock:
            if self._backend is None:
                self._backend = self._connect()
            self._users += 1

    def _connect(self) -> Backend:
        # It needs pymongo, which a program without a MongoStore need not have.
        from streamline_trio.stores.mongo._backend import Backend  # noqa: PLC0415

        backend = Backend(
            self._server,
            self._name,
            pool_size=self._pool_size + 2,  # one for the change stream, one for what the driver asks itself
            timeout=self._timeout,
            create_indexes=self._ensure_indexes,
        )
        if self._change_streams:
            backend.follow(self._watchers.tell_from_thread)
        return backend

    def _close(self) -> None:
        with self._users_lock:
            self._users = max(0, self._users - 1)
            if self._users or self._backend is None:
                return
            backend, self._backend = self._backend, None
            backend.close()


def _name_in(server: object) -> str:
    """The database that a URL or an object of the driver names."""
    if not isinstance(server, str):
        name = getattr(server, "name", None)
        if isinstance(name, str):
            return name
        raise ValidationError("a MongoStore needs the name of a database beside the client")
    parts = urlsplit(server)
    if parts.scheme not in {"mongodb", "mongodb+srv"}:
        raise ValidationError("the URL of a MongoStore begins with mongodb:// or mongodb+srv://")
    name = unquote(parts.path.removeprefix("/"))
    if not name:
        raise ValidationError("the URL names no database: use mongodb://host/database")
    return name
