import os
import sqlite3
import stat
import threading
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from streamline_trio._core.errors import StoreUnavailable
from streamline_trio._core.store import (
    Applied,
    Failed,
    Insert,
    PutSide,
    Refused,
    Route,
    RunQuery,
)
from streamline_trio.stores.sqlite import SqliteStore
from streamline_trio.testing._conformance_base import sample
from tests.stores.opening import opened

ROUTE = Route("w", "1")


def pragma(connection, name):
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


async def test_commits_are_durable(path):
    """The file is in write-ahead logging and each commit is synced, so that it survives a power loss."""
    async with opened(path) as store:
        assert pragma(store._writer, "journal_mode") == "wal"
        for connection in (store._writer, *store._readers):
            assert pragma(connection, "synchronous") == 2


async def test_readers_cannot_write(path):
    """Only the one writer connection can change the file."""
    async with opened(path) as store:
        for connection in store._readers:
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                connection.execute("DELETE FROM runs")


async def test_each_call_is_one_hop(path, monkeypatch):
    """A batch of writes, and a claim with all its runs, costs one hop to a thread."""
    hops = []

    def counted(hop):
        def call(*args, **kwargs):
            hops.append(args)
            return hop(*args, **kwargs)

        return call

    async with opened(path) as store:
        monkeypatch.setattr(trio.to_thread, "run_sync", counted(trio.to_thread.run_sync))
        monkeypatch.setattr(store._thread, "run", counted(store._thread.run))
        await store.write([Insert(sample(f"r{number}", due_at=number)) for number in range(20)])
        assert len(hops) == 1
        assert len(await store.due([ROUTE], 99, 99)) == 20
        assert len(hops) == 2


async def test_the_file_is_private(path):
    """Whatever the umask, only this user can read the database, its log and the locks."""
    before = os.umask(0)
    try:
        async with opened(path) as store:
            await store.hold_worker("w")
            await store.write([Insert(sample("r1"))])
            found = [path, *path.parent.glob("runs.db-*"), *path.parent.glob("runs.db-workers/*")]
            modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in found}
    finally:
        os.umask(before)
    assert modes == {
        "runs.db": 0o600,
        "runs.db-wal": 0o600,
        "runs.db-shm": 0o600,
        "runs.db-workers": 0o700,
        "w.lock": 0o600,
    }


async def test_closing_leaves_nothing_open(path):
    """After the last close no descriptor of the file or a lock is open, no log is left, and calls say so."""
    async with opened(path) as store:
        await store.open()
        await store.aclose()
        await store.hold_worker("w")
        await store.write([Insert(sample("r1"))])
        assert files_open(path)
    assert not files_open(path)
    assert [entry.name for entry in path.parent.iterdir() if entry.is_file()] == ["runs.db"]
    with pytest.raises(StoreUnavailable, match="is not open"):
        await store.load("r1")
    with pytest.raises(StoreUnavailable, match="is not open"):
        await store.write([])


def files_open(path):
    links = list(Path("/proc/self/fd").iterdir())
    return [link for link in links if link.is_symlink() and str(path) in str(link.readlink())]


async def test_one_poisonous_write_harms_no_other(path):
    """A write that the database refuses in the middle of its transaction fails alone; others are applied."""
    async with opened(path) as store:
        store._writer.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 50_000)
        large = sample("large", state=b"x" * 60_000)
        batch = [Insert(sample("a")), Insert(large), Insert(sample("b")), PutSide("k", "s", 1, b"")]
        verdicts = await store.write(batch)
        assert [type(verdict) for verdict in verdicts] == [Applied, Failed, Applied, Refused]
        failed = verdicts[1]
        assert isinstance(failed, Failed)
        assert isinstance(failed.error.__cause__, sqlite3.DataError)
        assert [type(verdict) for verdict in await store.write([Insert(large)])] == [Failed]
        wide = sample("wide", due_at=2**63)
        assert [type(verdict) for verdict in await store.write([Insert(wide), Insert(sample("c"))])] == [
            Failed,
            Applied,
        ]
        assert await store.count(RunQuery()) == 3


async def test_a_full_disk_is_unavailable_and_nothing_is_half_done(path):
    """When the file cannot grow the batch raises StoreUnavailable, leaves nothing, and later ones work."""
    async with opened(path) as store:
        pages = pragma(store._writer, "page_count")
        store._writer.execute(f"PRAGMA max_page_count = {pages + 5}")
        batch = [Insert(sample(f"r{n}", state=bytes(20_000))) for n in range(5)]
        with pytest.raises(StoreUnavailable, match="full") as caught:
            await store.write(batch)
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert not store._writer.in_transaction
        assert await store.count(RunQuery()) == 0
        store._writer.execute(f"PRAGMA max_page_count = {10**6}")
        assert await store.write(batch) == [Applied()] * 5


async def test_a_file_that_stays_locked_is_unavailable(path):
    """A write that waits longer than the timeout for another process raises StoreUnavailable; reads go on."""
    async with opened(path, busy_timeout=0.02) as store:
        await store.write([Insert(sample("r1"))])
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked") as caught:
            await store.write([Insert(sample("r2"))])
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert await store.load("r1") == sample("r1")
        other.execute("COMMIT")
        other.close()
        assert await store.write([Insert(sample("r2"))]) == [Applied()]


async def test_a_write_that_began_is_carried_out(path):
    """A cancelled write that has begun returns its verdict; one that waits for its turn never begins."""
    verdicts = []
    async with opened(path) as store:
        began, go_on = threading.Event(), threading.Event()

        def wait_before_commit(statement):
            if statement == "COMMIT":
                began.set()
                assert go_on.wait(10)

        store._writer.set_trace_callback(wait_before_commit)

        async def begin(run_id):
            verdicts.append((run_id, await store.write([Insert(sample(run_id))])))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin, "first")
            await trio.to_thread.run_sync(began.wait)
            nursery.start_soon(begin, "second")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        assert verdicts == [("first", [Applied()])]
        assert await store.load("second") is None


async def test_a_write_that_waits_for_another_process_can_be_given_up(path):
    """A write that does not get the lock of the file ends soon when it is cancelled, and was not applied."""
    async with opened(path, busy_timeout=600) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.write, [Insert(sample("r1"))])
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        other.execute("COMMIT")
        other.close()
        assert await store.load("r1") is None
        assert await store.write([Insert(sample("r1"))]) == [Applied()]


async def test_a_file_that_stays_locked_can_be_opened(path):
    """A file that is ours is opened and read while another process, perhaps a frozen one, has its write lock."""
    async with opened(path) as store:
        await store.write([Insert(sample("r1"))])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with opened(path, busy_timeout=0.02) as store:
        assert await store.load("r1") == sample("r1")
    other.close()


async def test_an_opening_that_is_given_up_waits_for_no_other(path):
    """One that is cancelled while another waits for a locked file ends at once, and the other opens the store."""
    path.touch()
    store = SqliteStore(path, busy_timeout=5.0)
    locker = sqlite3.connect(path, isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.open)
            await trio.testing.wait_all_tasks_blocked()
            with trio.CancelScope() as scope:
                nursery.start_soon(partial(cancel_soon, scope))
                await store.open()
            assert scope.cancelled_caught
            locker.execute("ROLLBACK")
        assert await store.load("r1") is None
    finally:
        locker.close()
        await store.aclose()


async def cancel_soon(scope):
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()
