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

needs_real_server = pytest.mark.skipif(REAL is None, reason="STREAMLINE_TEST_MONGO_URL names no server")


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """A URL without a database, of a server that lives as long as the block."""
    if REAL is not None:
        yield REAL
        return
    port = free_port()
    command: list[str | Path] = [
        Path(sys.executable).with_name("secantusd-py"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += ["--storage-path", folder / "data", "--log-level", "WARNING"]
    command += ["--sync-on-commit", "--enable-test-commands"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "HOME": str(folder)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        # Its records of retryable writes grow slow after some thousands; only tests about retries want them.
        url = f"mongodb://127.0.0.1:{port}/?retryWrites=false&directConnection=true"
        wait_until_up(url)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


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
        parts = urlsplit(self._url)
        query = "&".join(filter(None, [parts.query, options]))
        return urlunsplit((parts.scheme, parts.netloc, f"/{name}", query, ""))

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
