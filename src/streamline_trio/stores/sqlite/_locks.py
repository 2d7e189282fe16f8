"""Worker locks: a file per worker id that the operating system unlocks when its holder dies.

The path of a lock only ever names a file that was locked before it got that name. So a file that is found
unlocked was left behind, and a path that is missing means that nobody holds the lock. The file is removed only by
whoever has the lock. The kernel ties the lock to the open file and not to the process, so it also works between
engines of one process; a child that was forked without exec keeps it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

from streamline_trio._core.errors import StoreUnavailable

HAVE_LOCKS = sys.platform != "win32"

if sys.platform != "win32":
    import fcntl


class WorkerLocks:
    """The locks in one directory, and those of them that this object holds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, int] = {}

    def hold(self, worker: str) -> None:
        """Take the lock; `StoreUnavailable` if another holds it. Holding it twice is holding it once."""
        if worker in self._held or not HAVE_LOCKS:
            return
        self._folder.mkdir(mode=0o700, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=self._folder)
        try:
            _lock(descriptor)
            self._publish(Path(temporary), worker)
        except BaseException:
            os.close(descriptor)
            raise
        finally:
            Path(temporary).unlink()
        self._held[worker] = descriptor

    def _publish(self, temporary: Path, worker: str) -> None:
        while True:
            try:
                self._path(worker).hardlink_to(temporary)
            except FileExistsError:
                if not self.is_free(worker):
                    raise StoreUnavailable(f"the lock of worker {worker!r} is held", worker=worker) from None
            else:
                return

    def drop(self, worker: str) -> bool:
        """Release the lock; False if it was not held here."""
        descriptor = self._held.pop(worker, None)
        if descriptor is None:
            return False
        try:
            _remove(self._path(worker), descriptor)
        finally:
            os.close(descriptor)
        return True

    def drop_all(self) -> None:
        """Release every lock that is held here."""
        for worker in list(self._held):
            self.drop(worker)

    def is_free(self, worker: str) -> bool:
        """Whether certainly nobody holds the lock; what a dead holder left behind is removed."""
        while HAVE_LOCKS:
            try:
                descriptor = os.open(self._path(worker), os.O_RDWR)
            except FileNotFoundError:
                return True
            try:
                if not _lock(descriptor):
                    return False
                if _remove(self._path(worker), descriptor):
                    return True
            finally:
                os.close(descriptor)
        return False

    def _path(self, worker: str) -> Path:
        return self._folder / (quote(worker, safe="") + ".lock")


def _lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(path: Path, descriptor: int) -> bool:
    """Remove the locked file, if the path still names it."""
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    if not os.path.samestat(named, os.fstat(descriptor)):
        return False
    path.unlink()
    return True
