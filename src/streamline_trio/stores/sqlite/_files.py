"""The database file: where it may be, and how it comes to be."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from streamline_trio._core.errors import StoreUnavailable

MOUNTS = Path("/proc/mounts")
NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs"})


def check_place(path: Path, mounts: Path = MOUNTS) -> None:
    """Raise `StoreUnavailable` where a database cannot be, or cannot be shared safely."""
    if not path.parent.is_dir():
        raise StoreUnavailable(f"{path} cannot be made: its directory does not exist", path=str(path))
    if path.exists() and not path.is_file():
        raise StoreUnavailable(f"{path} is not a file", path=str(path))
    kind = file_system(path, mounts)
    if kind in NETWORK:
        raise StoreUnavailable(
            f"{path} is on a network file system ({kind}), where SQLite cannot share it safely", path=str(path)
        )


def file_system(path: Path, mounts: Path = MOUNTS) -> str:
    """The type of the file system that holds the path, '' where the system does not tell."""
    try:
        table = mounts.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
    depth, kind = 0, ""
    for line in table.splitlines():
        _, escaped, found, *_ = line.split(" ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), escaped))
        # Of equal mount points the later one hides the earlier.
        if path.is_relative_to(point) and len(point.parts) >= depth:
            depth, kind = len(point.parts), found
    return kind


def create(path: Path) -> None:
    """Create the file, empty and for this user alone, if it does not exist.

    It is made under another name first: closing a descriptor of a database that is open in this process would
    drop the locks that SQLite has on it.
    """
    if path.exists():
        return
    descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    os.close(descriptor)
    try:
        with suppress(FileExistsError):  # another process was faster
            path.hardlink_to(temporary)
    finally:
        Path(temporary).unlink()
