import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from streamline_trio._core.documents import StepDoc
from streamline_trio._core.errors import DataCorruption, StoreUnavailable
from streamline_trio._core.store import (
    Applied,
    Delete,
    Failed,
    Hint,
    Insert,
    PutSide,
    Refused,
    Route,
    RunQuery,
    Update,
)
from streamline_trio.stores.sqlite import SqliteStore, _files, _find, _reader, _schema, _statements
from streamline_trio.testing._conformance_base import after, record, sample

ROUTE = Route("w", "1")
SLEEPERS = 200_000
REPEATED = (  # the reads that the engine repeats for as long as it runs
    *("DUE", "EARLIEST", "COUNT_DUE", "FIRST_PRIORITY", "NEXT_PRIORITY", "NEXT_ROUTE"),
    *("LEASED", "ATTENTIVE", "HOLDERS", "HOLDER", "LABELLED", "PARTS", "ROWS"),
    *("SIDE", "SIDES", "DUE_SIDES"),
)


@asynccontextmanager
async def opened(path, **options):
    store = SqliteStore(path, **options)
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


def pragma(connection, name):
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


# How the file is used


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
    run_sync = trio.to_thread.run_sync

    async def counted(*args, **kwargs):
        hops.append(args)
        return await run_sync(*args, **kwargs)

    async with opened(path) as store:
        monkeypatch.setattr(trio.to_thread, "run_sync", counted)
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


# Files that will not do


async def refused(path, error, match):
    with pytest.raises(error, match=match) as caught:
        await SqliteStore(path).open()
    assert str(path) in str(caught.value)


async def test_a_file_that_is_no_database_is_named(path):
    """Opening some other file says that it is no database, and leaves it as it was."""
    path.write_bytes(b"just some text that is long enough to be read" * 100)
    before = path.read_bytes()
    await refused(path, DataCorruption, "damaged or no database")
    assert path.read_bytes() == before


async def test_a_damaged_file_is_named(path):
    """A database whose first page is damaged says so when it is opened."""
    async with opened(path):
        pass
    damaged = bytearray(path.read_bytes())
    damaged[100:2000] = b"\xff" * 1900
    path.write_bytes(damaged)
    await refused(path, DataCorruption, "damaged or no database")


async def test_the_database_of_another_program_is_left_alone(path):
    """A SQLite file with tables of others is refused and not changed."""
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = path.read_bytes()
    await refused(path, StoreUnavailable, "another program")
    assert path.read_bytes() == before
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    await refused(path, StoreUnavailable, "another program")


async def test_a_newer_schema_is_refused(path):
    """A file that a later release wrote is refused with both versions, not misread."""
    async with opened(path):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {_schema.VERSION + 1}")
    connection.close()
    await refused(path, StoreUnavailable, "later release")


async def test_a_missing_directory_is_named(tmp_path):
    """The directory must exist: a mistyped path is not made true."""
    await refused(tmp_path / "nowhere" / "runs.db", StoreUnavailable, "does not exist")
    assert not (tmp_path / "nowhere").exists()
    await refused(tmp_path, StoreUnavailable, "is not a file")


@pytest.mark.parametrize("path", ["", ":memory:"])
def test_a_store_needs_a_file(path):
    """Each connection would have a database in memory of its own."""
    with pytest.raises(ValueError, match="MemoryStore"):
        SqliteStore(path)


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/data/runs.db", "ext4"),
        ("/mnt/share/runs.db", "nfs4"),
        ("/mnt/share/local/runs.db", "xfs"),
        ("/mnt/with space/runs.db", "cifs"),
        ("/mnt/sharepoint/runs.db", "ext4"),
        ("/home/me/runs.db", "fuse.sshfs"),
    ],
)
def test_the_file_system_is_that_of_the_deepest_mount(tmp_path, place, kind):
    """The type comes from the mount point that holds the path, the last one where several do."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda / ext4 rw 0 0\n"
        "server:/share /mnt/share nfs4 rw 0 0\n"
        "/dev/sdb /mnt/share/local xfs rw 0 0\n"
        "//server/x /mnt/with\\040space cifs rw 0 0\n"
        "/dev/sdc /home ext4 rw 0 0\n"
        "me@host: /home fuse.sshfs rw 0 0\n"
    )
    assert _files.file_system(Path(place), mounts) == kind


def test_network_file_systems_are_refused(tmp_path):
    """Where locks do not work between machines, the store refuses to be."""
    mounts = tmp_path / "mounts"
    mounts.write_text(f"server:/share {tmp_path} nfs4 rw 0 0\n")
    with pytest.raises(StoreUnavailable, match=r"network file system \(nfs4\)"):
        _files.check_place(tmp_path / "runs.db", mounts)
    _files.check_place(tmp_path / "runs.db", tmp_path / "no such table")


# What a commit writes


@asynccontextmanager
async def recorded(store):
    """What is written inside the block: part names, and '*' for a run whose indexed columns are set."""
    writer = store._writer
    written: list[str] = []
    writer.create_function("told", 1, written.append)
    for event, row in (("INSERT", "new"), ("UPDATE", "new"), ("DELETE", "old")):
        writer.execute(f"CREATE TEMP TRIGGER on_{event} AFTER {event} ON parts BEGIN SELECT told({row}.part); END")
    writer.execute("CREATE TEMP TRIGGER on_head AFTER UPDATE OF head ON runs BEGIN SELECT told('head'); END")
    indexed = "status, version, due_at, worker, attention"
    writer.execute(f"CREATE TEMP TRIGGER on_index AFTER UPDATE OF {indexed} ON runs BEGIN SELECT told('*'); END")
    yield written
    for name in ("on_INSERT", "on_UPDATE", "on_DELETE", "on_head", "on_index"):
        writer.execute(f"DROP TRIGGER {name}")


async def test_a_commit_writes_only_what_it_changed(path):
    """A step that ends and one that begins are two parts and the head; no other part and no index is touched."""
    steps = {f"s{number}": StepDoc(status="done") for number in range(50)}
    run = sample("r1", worker="w", steps=steps, checkpoints={"s1/x": b"1"}, memos={}, tags=("t",))
    async with opened(path) as store:
        await store.write([Insert(run)])
        async with recorded(store) as written:
            now = after(run, steps={**steps, "s50": StepDoc(status="running")}, current_step="s50")
            now = msgspec.structs.replace(now, steps={**now.steps, "s49": StepDoc(status="done", attempts=2)})
            changes = store._writer.total_changes
            await store.write([Update(run, now)])
            assert sorted(written) == ["head", "step/s49", "step/s50"]
            assert store._writer.total_changes - changes == 3
            written.clear()
            await store.write([Update(now, after(now, checkpoints={}))])
            assert sorted(written) == ["checkpoint/s1/x", "head"]


async def test_indexed_columns_are_written_when_they_change(path):
    """Parking a run moves it in the indexes, and a head that only grows older does not."""
    run = sample("r1", worker="w")
    async with opened(path) as store:
        await store.write([Insert(run)])
        async with recorded(store) as written:
            parked = after(run, status="waiting", worker=None, due_at=7)
            await store.write([Update(run, parked)])
            assert sorted(written) == ["*", "head"]
            written.clear()
            await store.write([Update(parked, after(parked, updated_at=9))])
            assert written == ["head"]


async def test_deleting_leaves_no_row_in_any_table(path):
    """After a delete no table holds a row of the run."""
    run = sample(
        "r1",
        tags=("a",),
        meta=b"\x81\xa1a\x01",
        idempotency_key="k",
        records={"k": record("signal", signal="s", tokens=("t",))},
    )
    async with opened(path) as store:
        await store.write([Insert(run), *(Insert(sample(f"other{n}")) for n in range(3))])
        before = rows_by_table(store)
        await store.write([Delete(run.id, run.head.revision)])
        gone = {table: before[table] - count for table, count in rows_by_table(store).items()}
        assert gone == {"runs": 1, "parts": 3, "keys": 2, "labels": 3, "rows": 0, "sides": 0}


def rows_by_table(store):
    tables = ("runs", "parts", "keys", "labels", "rows", "sides")
    return {table: store._writer.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}  # noqa: S608


# Plans


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """A file with 200,000 sleepers, which nobody has analysed."""
    path = tmp_path_factory.mktemp("crowded") / "runs.db"

    async def fill():
        async with opened(path) as store:
            await store.write([Insert(sample("sleeper", due_at=10**6)), Insert(sample("now", due_at=5))])
            await store.write([Insert(sample("held", worker="me"))])
            crowd(store._writer, SLEEPERS)

    trio.run(fill)
    return path


def crowd(connection, number):
    """Copy the sleeper: a third each in three priorities, all on one route, all due later."""
    columns = [row[1] for row in connection.execute("PRAGMA table_info(runs)") if row[1] not in {"no", "id"}]
    values = [{"due_at": "due_at + n", "priority": "n % 3"}.get(column, column) for column in columns]
    connection.execute(
        f"""
        WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {number})
        INSERT INTO runs (id, {", ".join(columns)})
        SELECT 's' || n, {", ".join(values)} FROM numbers, runs WHERE id = 'sleeper'
        """  # noqa: S608
    )


def plan(connection, statement, values=None):
    values = [1] * (1 if "?1" in statement else statement.count("?")) if values is None else values
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]


def test_due_is_a_range_in_its_index(crowded):
    """On a file of 200,000 sleepers without statistics, what is due is found by a range on the due time."""
    connection = sqlite3.connect(crowded)
    (step,) = plan(connection, _reader.DUE)
    assert step == (
        "SEARCH runs USING COVERING INDEX runs_due (workflow=? AND version=? AND priority=? AND due_at<?)"
    )
    connection.close()


@pytest.mark.parametrize("name", REPEATED)
def test_reads_of_the_engine_never_scan(crowded, name):
    """No query that the engine repeats walks a table or a whole index."""
    connection = sqlite3.connect(crowded)
    steps = plan(connection, getattr(_reader, name))
    connection.close()
    assert not [step for step in steps if step.startswith("SCAN") and "holders" not in step]


@pytest.mark.parametrize("rows", [1, 2, 4, 256])
def test_writes_never_scan(crowded, rows):
    """However many rows a statement has, SQLite finds each by its key."""
    connection = sqlite3.connect(crowded)
    statements = [value for value in vars(_statements).values() if isinstance(value, _statements.Statement)]
    steps = [step for statement in statements for step in plan(connection, _statements.text_of(statement, rows))]
    connection.close()
    assert len(statements) > 10
    tables = ("runs", "parts", "keys", "labels", "rows", "sides")
    assert not [step for step in steps if step.startswith(tuple(f"SCAN {table}" for table in tables))]


@pytest.mark.parametrize(
    ("query", "sort", "index"),
    [
        (RunQuery(), "-created_at", "runs_created"),
        (RunQuery(status=("failed",)), "-created_at", "runs_status"),
        (RunQuery(status=("done",), updated_before=5), "updated_at", "runs_settled"),
        (RunQuery(parent="p"), "created_at", "runs_children"),
        (RunQuery(tags=("rare",)), "-created_at", "labels"),
    ],
)
def test_lists_use_an_index(crowded, query, sort, index):
    """The lists that people and retention ask for are served by an index."""
    connection = sqlite3.connect(crowded)
    statement, values = _find.page_statement(query, sort, 100, None)
    steps = plan(connection, statement, values)
    connection.close()
    assert any(index in step for step in steps), steps


def steps_of(connection, function):
    """How many instructions SQLite's machine runs for it."""
    steps = 0

    def tick():
        nonlocal steps
        steps += 1

    connection.set_progress_handler(tick, 1)
    function()
    connection.set_progress_handler(None, 1)
    return steps


def test_the_cost_of_a_claim_does_not_grow(crowded, tmp_path):
    """What a worker reads to claim takes the same steps beside 200,000 sleepers as beside 30."""
    small = tmp_path / "small.db"

    async def fill():
        async with opened(small) as store:
            await store.write([Insert(sample("sleeper", due_at=10**6)), Insert(sample("now", due_at=5))])
            await store.write([Insert(sample("held", worker="me"))])
            crowd(store._writer, 30)

    trio.run(fill)
    assert claim_costs(small) == claim_costs(crowded)


def claim_costs(path):
    connection = sqlite3.connect(path, isolation_level=None)
    assert _reader.due(connection, [ROUTE], 99, 10) == [sample("now", due_at=5)]
    assert _reader.next_due(connection, [ROUTE]) == 5
    reads = (
        lambda: _reader.due(connection, [ROUTE], 99, 10),
        lambda: _reader.next_due(connection, [ROUTE]),
        lambda: _reader.lease_holders(connection),
        lambda: _reader.leased(connection, "me", 10, "", attention=False),
    )
    costs = [steps_of(connection, read) for read in reads]
    connection.close()
    return costs


def test_the_cost_of_a_commit_does_not_grow(crowded, tmp_path):
    """A claim and a hand-over take the same steps beside 200,000 sleepers as beside none."""
    small = tmp_path / "small.db"
    costs = []

    async def measure(path):
        async with opened(path) as store:
            run = sample("mover", due_at=1)
            held = after(run, due_at=None, worker="w")
            batches = [[Insert(run)], [Update(run, held)], [Update(held, after(held, worker=None, due_at=2))]]
            batches.append([Delete("mover", 3)])
            writer = store._writer
            costs.append([steps_of(writer, lambda batch=batch: store._write(batch)) for batch in batches])

    for path in (small, crowded):
        trio.run(measure, path)
    # Searching an empty table ends one step sooner.
    assert all(abs(few - many) <= 1 for few, many in zip(*costs, strict=True))


# Errors in the middle


async def test_one_poisonous_write_harms_no_other(path):
    """A write that the database refuses in the middle of its transaction fails alone; others are applied."""
    async with opened(path) as store:
        store._writer.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 50_000)
        large = sample("large", state=b"x" * 60_000)
        batch = [Insert(sample("a")), Insert(large), Insert(sample("b")), PutSide("k", "s", 1, b"")]
        verdicts = await store.write(batch)
        assert [type(verdict) for verdict in verdicts] == [Applied, Failed, Applied, Refused]
        assert isinstance(verdicts[1].error.__cause__, sqlite3.DataError)
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
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        began = threading.Event()
        write = store._write

        def write_and_tell(batch):
            began.set()
            return write(batch)

        store._write = write_and_tell

        async def begin(run_id):
            verdicts.append((run_id, await store.write([Insert(sample(run_id))])))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin, "first")
            await trio.to_thread.run_sync(began.wait)
            nursery.start_soon(begin, "second")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            other.execute("COMMIT")
        other.close()
        assert verdicts == [("first", [Applied()])]
        assert await store.load("second") is None


# Several processes


WRITER = """
import sys, trio
from streamline_trio._core.store import *
from streamline_trio.stores.sqlite import SqliteStore

async def main():
    store = SqliteStore(sys.argv[1])
    await store.open()
    done = 0
    while done < 50:
        doc = await store.side("count", "x")
        number, revision = (0, None) if doc is None else (int(doc.body), doc.revision)
        (verdict,) = await store.write([PutSide("count", "x", revision, b"%d" % (number + 1))])
        done += isinstance(verdict, Applied)
    await store.aclose()

trio.run(main)
"""

HOLDER = """
import sys, trio
from streamline_trio.stores.sqlite import SqliteStore

async def main():
    store = SqliteStore(sys.argv[1])
    await store.open()
    await store.hold_worker("w")
    print("held", flush=True)
    await trio.sleep_forever()

trio.run(main)
"""


def test_processes_share_one_file(path):
    """Four processes that create the file at once and count on one document lose no count."""
    processes = [subprocess.Popen([sys.executable, "-c", WRITER, str(path)]) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    doc = trio.run(read_side, path, "count", "x")
    assert (doc.body, doc.revision) == (b"200", 200)


async def read_side(path, kind, key):
    async with opened(path) as store:
        return await store.side(kind, key)


async def test_stores_of_one_process_create_one_file(path):
    """Many store objects that open a new file at once all get it ready, and see each other's writes."""
    stores = [SqliteStore(path) for _ in range(8)]
    async with trio.open_nursery() as nursery:
        for store in stores:
            nursery.start_soon(store.open)
    await stores[0].write([Insert(sample("r1"))])
    for store in stores:
        assert await store.load("r1") == sample("r1")
        await store.aclose()


def test_a_killed_worker_is_gone(path):
    """A worker is not gone while its process runs or is frozen, and is gone once that was killed."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert not trio.run(is_gone, path, "w")
        process.send_signal(signal.SIGSTOP)
        assert not trio.run(is_gone, path, "w")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert trio.run(is_gone, path, "w")
        assert trio.run(is_gone, path, "w")
    assert list(path.parent.glob("runs.db-workers/*")) == []


async def is_gone(path, worker):
    async with opened(path) as store:
        return await store.worker_gone(worker)


async def test_engines_of_one_process_see_each_others_locks(path):
    """The lock works between stores of one process, cannot be taken twice, and ends with its store."""
    async with opened(path) as one:
        async with opened(path) as other:
            await other.hold_worker("w")
            assert not await one.worker_gone("w")
            with pytest.raises(StoreUnavailable, match="is held"):
                await one.hold_worker("w")
        assert await one.worker_gone("w")
        await one.hold_worker("w")
        assert not await one.worker_gone("w")
        await one.drop_worker("w")
        assert await one.worker_gone("w")
        assert await one.worker_gone("never")


def test_a_lock_ends_with_its_trio_run(path):
    """A worker whose trio run was cut is gone, though its process and store object live."""
    store = SqliteStore(path)

    async def cut():
        await store.open()
        await store.hold_worker("w")
        assert not await store.worker_gone("w")

    trio.run(cut)
    assert trio.run(store.worker_gone, "w")
    trio.run(store.aclose)


async def test_a_lock_left_behind_can_be_taken(path):
    """The file of a holder that died does not keep the next one from the same id."""
    folder = path.parent / "runs.db-workers"
    folder.mkdir()
    (folder / "w.lock").touch()
    async with opened(path) as store:
        await store.hold_worker("w")
        assert not await store.worker_gone("w")


async def test_dropping_a_lock_is_told(path):
    """Engines that share the store object hear of a dropped lock at once."""
    heard: list[Hint] = []
    async with opened(path) as store:
        store.watch(heard.append)
        await store.hold_worker("w")
        await store.drop_worker("w")
        await store.drop_worker("w")
    assert heard == [Hint(run_id="", worker="w")]


async def test_waiting_for_the_writer_does_not_block_lock_checks(path):
    """Whether a worker is gone can be asked while a write waits for another process."""
    async with opened(path) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, [Insert(sample("r1"))])
            await trio.testing.wait_all_tasks_blocked()
            assert await store.worker_gone("w")
            other.execute("COMMIT")
        other.close()
        assert await store.load("r1") == sample("r1")
