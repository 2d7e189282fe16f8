"""Where the runs of a chaos are stored: in a file beside the rest, or on a server, which may be killed as well."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bson
import msgspec
import pymongo

from streamline_trio import SqliteStore
from streamline_trio._core.documents import RunDoc
from streamline_trio.stores.mongo import MongoStore
from streamline_trio.stores.mongo._client import CODEC
from streamline_trio.stores.mongo._layout import large_in, to_document
from tests.chaos.records import Record
from tests.mongo_server import Server, of_database, private

SQLITE = "sqlite"
MONGODB = "mongodb"
BUSY = 1.0
PATIENCE = 4.0
"""Seconds after which a call to a server that says nothing fails."""
_FILE = "place.json"
_RUNS = "runs.db"


class Place(Record, frozen=True, kw_only=True):
    """What every process has to know of the store, kept in the folder that they share.

    Only on SQLite does a lock die with its process; elsewhere whoever dies is missed after one lease. A server
    that is one interpreter among nine processes is asked less often, by fewer clients at a time.
    """

    url: str
    lease: float = 3.0
    poll: float = 0.8
    at_once: int = 16
    look_every: float = 0.8
    quiet_within: float = 150.0
    """With all faults off, every run has settled after so many seconds."""

    @property
    def is_file(self) -> bool:
        return self.url.startswith("sqlite:")

    def store(self) -> Any:
        if self.is_file:
            return SqliteStore(self.url.removeprefix("sqlite:///"), busy_timeout=BUSY)
        return MongoStore(self.url, timeout=PATIENCE)

    def flaws(self, runs: Sequence[RunDoc]) -> list[str]:
        """What is wrong with the store itself, now that nobody writes; `runs` is all that it gives."""
        if self.is_file:
            return _flaws_of_file(Path(self.url.removeprefix("sqlite:///")))
        return _flaws_of_documents(self.url, runs)


def place_in(folder: Path) -> Place:
    """The place that was left in the folder."""
    return msgspec.json.decode((folder / _FILE).read_bytes(), type=Place)


@contextmanager
def opened_place(store: str, folder: Path) -> Generator[tuple[Place, Server | None]]:
    """A place for a kind of store, or for the URL of one; a private server comes with it, a named one does not."""
    if store == SQLITE:
        url = f"sqlite:///{folder / _RUNS}"
        yield _left(Place(url=url, lease=1.5, poll=0.2, at_once=60, look_every=0.4, quiet_within=60), folder), None
    elif store != MONGODB:
        yield _left(Place(url=store), folder), None
    else:
        (folder / "server").mkdir()
        with private(folder / "server") as server:
            yield _left(Place(url=of_database(server.url, "chaos")), folder), server


def _left(place: Place, folder: Path) -> Place:
    (folder / _FILE).write_bytes(msgspec.json.encode(place))
    return place


def _flaws_of_file(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
    connection.close()
    return [] if verdict == "ok" else [f"the file is broken: {verdict}"]


def _flaws_of_documents(url: str, runs: Sequence[RunDoc]) -> list[str]:
    """Commits change single fields; in the end each document must be the one that a fresh insert would make."""
    with pymongo.MongoClient[dict[str, Any]](url) as client:
        database = client.get_default_database().with_options(codec_options=CODEC)
        stored = {document["_id"]: document for document in database["runs"].find()}
        payloads = {
            (document["run"], document["sha256"]) for document in database["payloads"].find({}, {"body": 0})
        }
    flaws = [f"{run_id}: is stored, and not given" for run_id in stored.keys() - {run.id for run in runs}]
    for run in runs:
        wanted = bson.decode(bson.encode(to_document(run)), CODEC)
        found = stored.get(run.id, {})
        names = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
        flaws += [f"{run.id}: {name} is {found.get(name)!r}, not {wanted.get(name)!r}" for name in names]
        flaws += [f"{run.id}: lacks payload {name}" for name in large_in(run) if (run.id, name) not in payloads]
    return flaws
