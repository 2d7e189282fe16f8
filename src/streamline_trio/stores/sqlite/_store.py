"""The store object: connections, threads, hints."""

from __future__ import annotations

import math
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar, TypeVarTuple

import trio

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import DataCorruption, StoreUnavailable
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
from streamline_trio.stores._derived import UniqueKey, hint_of
from streamline_trio.stores._limiters import LimiterPerRun
from streamline_trio.stores._watchers import Watchers, has_ended
from streamline_trio.stores.sqlite import _files, _find, _reader, _turns, _writer
from streamline_trio.stores.sqlite._locks import WorkerLocks
from streamline_trio.stores.sqlite._schema import prepare_file
from streamline_trio.stores.sqlite._thread import WriterThread

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

READERS = 2
PREPARED = 512
PATIENCE = 0.1

_SETTINGS = (
    "synchronous = FULL",
    "fullfsync = ON",  # without it, macOS does not wait for the disk
    "cache_size = -32000",
    "wal_autocheckpoint = 4000",  # commits that write the same pages again share one copy into the database file
    "journal_size_limit = 67108864",
)
_DAMAGE = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT})


class SqliteStore:
    """Runs in one SQLite file, shared by the processes of one machine; the store for one machine.

    Every method makes one hop to a thread: writes one at a time, reads two at a time. Waiting for a free thread
    is a cancel point, and so is waiting for the file's write lock while another process has it; what was begun
    is carried out and its outcome returned, cancelled or not. A batch of writes is one transaction, synced to
    the disk before `write` returns; reads see the last committed one. One object may serve several trio runs, one
    after the other or at once in threads of their own.

    Args:
        path: the file. It is created, for this user alone, if it does not exist; its directory is not. Beside
            it stand SQLite's `-wal` and `-shm` files and the directory `-workers` with the worker locks.
        busy_timeout: how many seconds a write waits for those of other processes before `StoreUnavailable`.

    Raises:
        StoreUnavailable: by any method, when the file cannot be used, is busy for too long, or the disk fails.
        DataCorruption: by `open`, when the file is no database or damaged.
    """

    def __init__(self, path: str | os.PathLike[str], *, busy_timeout: float = 10.0) -> None:
        if os.fspath(path) in {"", ":memory:"}:
            raise ValueError("a SqliteStore needs a file; MemoryStore keeps runs in memory")
        self.path: str = str(Path(path).absolute())
        self._busy_timeout = busy_timeout
        # SQLite's own waiting cannot be ended, so that the writer waits for a little while at a time.
        self._patience = min(PATIENCE, busy_timeout)
        self._turn = _writer.Turn(
            math.ceil(busy_timeout / self._patience) if busy_timeout > 0 else 1, lambda: self._thread.is_given_up
        )
        self._opened = 0
        self._users = 0
        self._users_lock = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._readers: deque[sqlite3.Connection] = deque()
        self._free_readers = threading.Semaphore(READERS)
        self._thread = WriterThread(f"sqlite {self.path}", self._look)
        self._data_version = 0
        self._lock_limiter = LimiterPerRun(1)
        self._read_limiter = LimiterPerRun(READERS)
        self._locks = WorkerLocks(Path(self.path + "-workers"))
        self._lock_tokens: dict[str, trio.lowlevel.TrioToken] = {}
        self._watchers = Watchers()

    def __repr__(self) -> str:
        return f"SqliteStore({self.path!r})"

    @property
    def exclusive(self) -> bool:
        """False: other processes may share the file."""
        return False

    async def open(self) -> None:
        """Open the file, creating it if need be; calls are counted."""
        with self._users_lock:
            self._users += 1
        try:
            with self._mapped():
                await self._thread.run(self._open)
        except BaseException:
            self._leave()
            raise

    async def aclose(self) -> None:
        """Undo one `open`; the last one closes the file and releases the worker locks held through this object.

        Shielded from cancellation. No other call may be under way in the last one.
        """
        with trio.CancelScope(shield=True):
            try:
                with self._mapped():
                    await self._thread.run(self._close)
            finally:
                self._leave()

    def _leave(self) -> None:
        """The last one ends the thread: while others use it, or wait to, ending it would mean waiting for them."""
        with self._users_lock:
            self._users = max(0, self._users - 1)
            if not self._users:
                self._thread.stop()

    async def write(self, batch: Sequence[Write]) -> list[Verdict]:
        """Apply a batch in one transaction (conditions 1 to 8); listeners are told before it returns."""
        try:  # not `_mapped`, whose generator would cost every commit
            verdicts = await self._thread.run(self._write, batch)
        except _writer.NotBegun as error:
            await trio.lowlevel.checkpoint_if_cancelled()
            raise StoreUnavailable(f"{self.path}: {error.__cause__}", path=self.path) from error
        except (sqlite3.Error, OSError) as error:
            raise self._as_ours(error) from error
        for write, verdict in zip(batch, verdicts, strict=True):
            if isinstance(verdict, Applied) and (hint := hint_of(write)) is not None:
                self._watchers.tell(hint)
        return verdicts

    async def load(self, run_id: str) -> RunDoc | None:
        """The run, or None; `DataCorruption` if it does not decode."""
        return await self._read(_reader.load, run_id)

    async def load_many(self, run_ids: Sequence[str]) -> list[RunDoc | None]:
        """The runs in the order asked; None for those that do not exist or do not decode."""
        return await self._read(_reader.load_many, run_ids)

    async def by_active_key(self, key: str) -> RunDoc | None:
        """The active run that holds the key."""
        return await self._read(_reader.load_holder, UniqueKey("active_key", key))

    async def by_token(self, digest: str) -> RunDoc | None:
        """The run with the open wait that the token answers."""
        return await self._read(_reader.load_holder, UniqueKey("token", digest))

    async def namesakes(self, run_id: str, limit: int) -> list[str]:
        """Stored ids of the runs of tenants that have this public id, in order."""
        return await self._read(_reader.namesakes, run_id, limit)

    async def awaiting(self, signal: str, tenant: str | None, after: str, limit: int) -> list[str]:
        """Ids of runs with an open wait for the signal in the tenant's scope, in id order after `after`."""
        return await self._read(_reader.awaiting, signal, tenant, after, limit)

    async def due(self, routes: Sequence[Route], now: int, limit: int, *, skip: int = 0) -> list[RunDoc | Corrupt]:
        """Unleased runs whose time has come; its cost does not grow with the runs that sleep."""
        return await self._read(_reader.due, routes, now, limit, skip=skip)

    async def due_in_turn(
        self, routes: Sequence[Route], now: int, after: str | None, limit: int
    ) -> list[RunDoc | Corrupt]:
        """Some of them, of one tenant after the other; of each the ones that have waited longest."""
        return await self._read(_turns.due_in_turn, routes, now, after, limit)

    async def next_due(self, routes: Sequence[Route]) -> int | None:
        """The earliest `due_at` on the routes, past or future; None if there is none."""
        return await self._read(_reader.next_due, routes)

    async def errands(self, now: int, limit: int) -> list[RunDoc | Corrupt]:
        """Runs with an errand that any worker may do by now, earliest first."""
        return await self._read(_reader.errands, now, limit)

    async def queued(self, bucket: str, limit: int) -> list[RunDoc | Corrupt]:
        """The first of the runs that wait for a slot of the bucket."""
        return await self._read(_reader.queued, bucket, limit)

    async def count_queued(self, bucket: str) -> int:
        """How many wait for a slot of the bucket."""
        return await self._read(_reader.count_queued, bucket)

    async def leased(self, worker: str, *, attention: bool, limit: int, after: str = "") -> list[RunDoc | Corrupt]:
        """Runs leased to the worker, in id order after `after`; with `attention` only those that have it."""
        return await self._read(_reader.leased, worker, limit, after, attention=attention)

    async def leased_by_priority(self, worker: str, limit: int, *, skip: int = 0) -> list[RunDoc | Corrupt]:
        """Runs leased to the worker, highest priority first, then by id."""
        return await self._read(_reader.leased_by_priority, worker, limit, skip)

    async def lease_holders(self) -> list[str]:
        """The distinct workers that leases name, sorted."""
        return await self._read(_reader.lease_holders)

    async def find(self, query: RunQuery, *, sort: SortKey, limit: int, after: Cursor | None) -> list[RunDoc]:
        """A page of runs, full as long as there are more; sorting by `updated_at` looks at all that match."""
        return await self._read(_find.find, query, sort, limit, after)

    async def count(self, query: RunQuery) -> int:
        """How many runs match, those that do not decode included."""
        return await self._read(_find.count, query)

    async def tally(self, now: int) -> Tally:
        """Counts by status (each of them, also at 0), and of what is due by now."""
        return await self._read(_reader.tally, now)

    async def rows(self, run_id: str, kind: RowKind) -> list[bytes]:
        """The rows of a run, oldest first."""
        return await self._read(_reader.rows, run_id, kind)

    async def side(self, kind: str, key: str) -> SideDoc | None:
        """A side document."""
        return await self._read(_reader.side, kind, key)

    async def sides(
        self, kind: str, *, after: str = "", due_before: int | None = None, limit: int = 1000
    ) -> list[SideDoc]:
        """Side documents of a kind in key order after `after`; with `due_before` those due until then."""
        return await self._read(_reader.sides, kind, after, due_before, limit)

    async def hold_worker(self, worker: str) -> None:
        """Take the lock of this worker id; `StoreUnavailable` if another holds it.

        The operating system releases it when this process ends, and this object when the trio run ends.
        """
        await self._in_thread(self._lock_limiter, self._locks.hold, worker)
        self._lock_tokens[worker] = trio.lowlevel.current_trio_token()

    async def drop_worker(self, worker: str) -> None:
        """Release the lock."""
        self._lock_tokens.pop(worker, None)
        if await self._in_thread(self._lock_limiter, self._locks.drop, worker):
            self._watchers.tell(Hint(run_id="", worker=worker))

    async def worker_gone(self, worker: str) -> bool:
        """Whether certainly nobody holds the lock; always False where the platform has no such locks."""
        token = self._lock_tokens.get(worker)
        if token is not None and has_ended(token):
            await self.drop_worker(worker)
        return await self._in_thread(self._lock_limiter, self._locks.is_free, worker)

    def watch(self, listener: Callable[[Hint], None]) -> Callable[[], None]:
        """Call `listener` after writes.

        At once after those through this object; a few hundredths of a second after those of other processes,
        without telling which.
        """
        return self._watchers.add(listener)

    def _look(self) -> None:
        """In the writer's thread: has another connection changed the file?"""
        if self._writer is None or not self._watchers:
            return
        try:
            version = _data_version(self._writer)
        except sqlite3.Error:
            return  # whoever reads or writes next is told
        if version != self._data_version:
            self._data_version = version
            self._watchers.tell_from_thread(Hint(run_id=""))

    async def _read(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        def read() -> T:
            with self._reader() as connection:
                return function(connection, *args, **kwargs)

        return await self._in_thread(self._read_limiter, read)

    async def _in_thread(self, limiter: LimiterPerRun, function: Callable[[*Ts], T], *args: *Ts) -> T:
        with self._mapped():
            return await trio.to_thread.run_sync(function, *args, limiter=limiter.here())

    @contextmanager
    def _reader(self) -> Generator[sqlite3.Connection]:
        """A connection of this thread's own, in a transaction; if other trio runs use all, once one is free."""
        with self._free_readers:
            if not self._readers:
                raise self._not_open()
            connection = self._readers.popleft()
            try:
                connection.execute("BEGIN")
                try:
                    yield connection
                finally:
                    if connection.in_transaction:
                        connection.execute("COMMIT")
            finally:
                self._readers.append(connection)

    def _write(self, batch: Sequence[Write]) -> list[Verdict]:
        if self._writer is None:
            raise self._not_open()
        return _writer.write(self._writer, batch, self._turn)

    def _open(self) -> None:
        if self._opened == 0:
            self._open_connections()
        self._opened += 1

    def _open_connections(self) -> None:
        place = Path(self.path).resolve()
        _files.check_place(place)
        _files.create(place)
        path = str(place)
        opened: list[sqlite3.Connection] = []
        try:
            opened.append(self._connect(path))
            prepare_file(opened[0], path)
            opened[0].execute(f"PRAGMA busy_timeout = {self._patience * 1000:.0f}")
            for _ in range(READERS):
                opened.append(self._connect(path))
                opened[-1].execute("PRAGMA query_only = ON")
        except BaseException:
            for connection in opened:
                connection.close()
            raise
        self._writer, *readers = opened
        self._data_version = _data_version(self._writer)
        self._readers.extend(readers)

    def _connect(self, path: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            path,
            timeout=self._busy_timeout,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=PREPARED,
        )
        for setting in _SETTINGS:
            connection.execute(f"PRAGMA {setting}")
        return connection

    def _close(self) -> None:
        self._opened = max(0, self._opened - 1)
        if self._opened or self._writer is None:
            return
        self._locks.drop_all()
        self._lock_tokens.clear()
        for connection in (*self._readers, self._writer):
            connection.close()
        self._readers.clear()
        self._writer = None

    def _not_open(self) -> StoreUnavailable:
        return StoreUnavailable(f"{self.path} is not open", path=self.path)

    @contextmanager
    def _mapped(self) -> Generator[None]:
        """Make our errors of those of the database and the file system."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self._as_ours(error) from error

    def _as_ours(self, error: Exception) -> DataCorruption | StoreUnavailable:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE and not self._opened:
            return DataCorruption(f"{self.path} is damaged or no database: {error}", path=self.path)
        return StoreUnavailable(f"{self.path}: {error}", path=self.path)


def _data_version(connection: sqlite3.Connection) -> int:
    """A number that changes whenever another connection changes the file."""
    (version,) = connection.execute("PRAGMA data_version").fetchone()
    return int(version)
