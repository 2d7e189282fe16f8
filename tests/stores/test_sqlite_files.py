import sqlite3
from pathlib import Path

import pytest

from streamline_trio._core.errors import DataCorruption, StoreUnavailable
from streamline_trio.stores.sqlite import SqliteStore, _files, _schema
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
