import sqlite3
from pathlib import Path

import pytest

from streamline_trio._core.codec import split
from streamline_trio._core.errors import DataCorruption, StoreUnavailable
from streamline_trio._core.store import Applied, Insert, Route
from streamline_trio.stores.sqlite import SqliteStore, _files, _schema
from streamline_trio.testing._conformance_base import moved, sample
from tests.stores import schema_1
from tests.stores.opening import opened


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


def made_by_the_first_schema(path: Path) -> None:
    """A file of release 0.1.0 with one run that waits to be started."""
    run = sample("old", status="draft", due_at=5)
    parts = split(run)
    with sqlite3.connect(path) as connection:
        for statement in schema_1.TABLES:
            connection.execute(statement)
        connection.execute(
            "INSERT INTO runs VALUES (1, 'old', 1, 0, 1000, ?, 'draft', 0, '1', 5, NULL, 0, 0, 0, 0, 0, 'w', 0,"
            " NULL, NULL, NULL, 1000)",
            (parts.pop("head"),),
        )
        connection.executemany("INSERT INTO parts VALUES ('old', ?, ?)", parts.items())
        connection.execute(f"PRAGMA application_id = {_schema.APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
    connection.close()


async def test_a_file_of_the_first_schema_is_upgraded(path):
    """Proves that a file of release 0.1.0 keeps its runs, and can hold errands from then on."""
    made_by_the_first_schema(path)
    for due in ([], ["old"]):
        async with opened(path) as store:
            run = await store.load("old")
            assert run is not None
            assert await store.due([Route("w", "1")], 9, 9) == [run]
            assert await store.errands(9, 9) == [run] * len(due)
            if not due:
                assert await store.write([moved(run, errand_at=7)]) == [Applied()]


def made_by_the_second_schema(path: Path) -> None:
    """A file from before there were turns: a draft that is due at once, one that waits for its time, a held run."""
    made_by_the_first_schema(path)
    row = "INSERT INTO runs SELECT {}, ?, 1, 0, 9, ?, status, 0, '1', ?, ?, 0, 0, 0, 0, 0, 'w', 0, 't', NULL, NULL"
    with sqlite3.connect(path) as connection:
        for number, (name, due_at, worker) in enumerate(
            [("ready", 0, None), ("sleeping", 90, None), ("held", None, "x")], 2
        ):
            parts = split(sample(name, status="draft", tenant="t", due_at=due_at, worker=worker))
            values = (name, parts.pop("head"), due_at, worker, number)
            connection.execute(row.format(number) + ", ? FROM runs WHERE no = 1", values)
            connection.executemany(f"INSERT INTO parts VALUES ('{name}', ?, ?)", parts.items())  # noqa: S608
        for statement in _schema._UPGRADES[1]:
            connection.execute(statement)
        connection.execute("PRAGMA user_version = 2")
    connection.close()


async def test_a_file_of_the_second_schema_is_upgraded(path):
    """Proves that what an earlier release has parked has its turn, at its time, and what is held has none."""
    made_by_the_second_schema(path)
    async with opened(path) as store:
        for now, given in [(80, ["old", "ready"]), (90, ["old", "ready", "sleeping"])]:
            found = await store.due_in_turn([Route("w", "1")], now, "t", 9)
            assert [getattr(run, "id", None) for run in found] == given


async def test_an_earlier_release_may_go_on_beside(path):
    """Proves that turns hold only what is due now, also where a process of an earlier release writes on."""
    run, later = sample("r1", due_at=5, tenant="t"), sample("r2", due_at=6)
    async with opened(path) as store:
        await store.write([Insert(run), Insert(later)])
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE runs SET due_at = NULL, worker = 'x' WHERE id = 'r1'")
            connection.execute("UPDATE runs SET due_at = 500 WHERE id = 'r2'")
        connection.close()
        assert await store.due_in_turn([Route("w", "1")], 400, None, 9) == []
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE runs SET due_at = 300, worker = NULL WHERE id = 'r1'")
        connection.close()
        assert await store.due_in_turn([Route("w", "1")], 400, None, 9) == [run]


async def test_an_upgrade_by_two_at_once_is_made_once(path):
    """Proves that processes that open a file of an earlier release together do not fall over each other."""
    made_by_the_first_schema(path)
    connections = [sqlite3.connect(path, isolation_level=None) for _ in range(2)]
    for connection in connections:
        _schema.prepare_file(connection, str(path))
        with _schema._transaction(connection, "BEGIN IMMEDIATE"):
            _schema._upgrade(connection)  # as one that has seen the old version a moment ago
        assert connection.execute("PRAGMA user_version").fetchone() == (_schema.VERSION,)
        connection.close()


async def test_an_upgraded_file_is_like_a_new_one(path, tmp_path):
    """Proves that an upgrade leaves nothing out: the same columns and indexes as in a new file."""
    second, new = tmp_path / "second.db", tmp_path / "new.db"
    made_by_the_first_schema(path)
    made_by_the_second_schema(second)
    for file in (path, second, new):
        async with opened(file):
            pass
    assert described(path) == described(second) == described(new)


def described(path: Path) -> tuple[set[str], dict[str, str]]:
    with sqlite3.connect(path) as connection:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(runs)")}
        indexes = dict(
            connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql NOT NULL")
        )
    connection.close()
    return columns, indexes


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
