"""A server of MongoDB's protocol for tests: started when the first test asks for it, ended with the session.

`STREAMLINE_TEST_MONGO_URL` names a real one to be used instead. Each test has databases of its own there.
"""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pymongo
import pytest
from pymongo.database import Database
from pymongo.errors import ServerSelectionTimeoutError

REAL = os.environ.get("STREAMLINE_TEST_MONGO_URL")
STARTUP = 30.0
_ASKED = 50

needs_real_server = pytest.mark.skipif(REAL is None, reason="STREAMLINE_TEST_MONGO_URL names no server")
needs_own_server = pytest.mark.skipif(REAL is not None, reason="breaks the server, which must be its own")


class Server:
    """A server of its own in a folder, which can be killed and started again on the same port and data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        # Its records of retryable writes grow slow after some thousands; only tests about retries want them.
        self.url: str = f"mongodb://127.0.0.1:{self._port}/?retryWrites=false&directConnection=true"

    def start(self) -> None:
        """Returns once it answers."""
        command: list[str | Path] = [Path(sys.executable).with_name("secantusd-py")]
        command += ["--host", "127.0.0.1", "--port", str(self._port), "--storage-path", self._folder / "data"]
        command += ["--log-level", "WARNING", "--sync-on-commit", "--enable-test-commands"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                env={**os.environ, "HOME": str(self._folder)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until_up(self.url)

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Returns once it is gone."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, how)
        for _ in range(_ASKED):
            if how == signal.SIGKILL:
                break
            # It notices a polite request with the next connection only.
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self._port), timeout=0.1).close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.1)
                return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextmanager
def private(folder: Path | None = None) -> Iterator[Server]:
    """A server that no other test uses, for as long as the block; in this folder, or one that is removed."""
    with tempfile.TemporaryDirectory(prefix="mongo-") as own:
        server = Server(folder or Path(own))
        try:
            server.start()
            yield server
        finally:
            server.stop()


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """A URL without a database, of a server that lives as long as the block."""
    if REAL is not None:
        yield REAL
        return
    with private(folder) as server:
        yield server.url


def of_database(url: str, name: str, options: str = "") -> str:
    """The URL of a database on the server of a URL."""
    parts = urlsplit(url)
    query = "&".join(filter(None, [parts.query, options]))
    return urlunsplit((parts.scheme, parts.netloc, f"/{name}", query, ""))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_up(url: str) -> None:
    client: pymongo.MongoClient[Any] = pymongo.MongoClient(url, serverSelectionTimeoutMS=STARTUP * 1000)
    with client:
        client.admin.command("ping")


class Databases:
    """Fresh databases on one server; `client` is for looking behind the store's back."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._numbers = itertools.count()
        self._prefix = f"t{uuid.uuid4().hex[:12]}"
        self._made: list[str] = []
        self.client: pymongo.MongoClient[Any] = pymongo.MongoClient(url, tz_aware=True)

    def url(self, options: str = "") -> str:
        """The URL of a database without content."""
        name = f"{self._prefix}_{next(self._numbers)}"
        self._made.append(name)
        return of_database(self._url, name, options)

    def of(self, url: str) -> Database[Any]:
        """The database of a URL."""
        return self.client[urlsplit(url).path.removeprefix("/")]

    def drop(self) -> None:
        """Remove them all."""
        with contextlib.suppress(ServerSelectionTimeoutError):
            for name in self._made:
                self.client.drop_database(name)
        self.client.close()


@contextmanager
def temporary() -> Iterator[str]:
    """A server in a directory that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="mongo-") as folder, running(Path(folder)) as url:
        yield url
