"""Where a measurement puts its files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from benchmarks.mongo import Databases

_SQLITE = "sqlite:///"

Kind = Literal["sqlite", "memory", "mongodb"]


class UnknownStore(Exception):
    """No benchmark is written for stores of this URL, or there is none."""


class Place:
    """The store that is measured, and a folder for what is measured beside it, on the same disk if there is one."""

    def __init__(self, kind: Kind, given: str | None, folder: Path, databases: Databases | None = None) -> None:
        self.kind: Kind = kind
        self.folder = folder
        self.facts: dict[str, str] = {}
        self._given = given
        self._databases = databases
        self._made = 0

    def __str__(self) -> str:
        if self._databases is not None:
            return str(self._databases)
        return self._given or "a fresh SQLite file for each measurement"

    @property
    def is_shared(self) -> bool:
        """Whether several processes can reach the store."""
        return self.kind != "memory"

    def file(self, what: str) -> Path:
        """A path in the folder that was never given before."""
        self._made += 1
        return self.folder / f"{what}-{self._made}"

    def fresh(self) -> str:
        """The URL of an empty store; a file or memory that was given as it is, whatever is in it.

        On MongoDB the one before it is gone then.
        """
        if self._databases is not None:
            return self._databases.fresh()
        return self._given or _url(self.file("store.db"))


def _url(path: Path) -> str:
    return _SQLITE + quote(str(path))


@contextmanager
def open_place(store: str | None) -> Iterator[Place]:
    """A place whose folder and databases are removed at the end. Runs in a file that was named stay in it."""
    scheme = "" if store is None else store.partition(":")[0]
    if store is not None and scheme in {"mongodb", "mongodb+srv"}:
        with _on_mongodb(store) as place:
            yield place
        return
    kind, given, beside = _understood(store)
    with _folder(beside) as folder:
        yield Place(kind, given, folder)


@contextmanager
def _folder(beside: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="streamline-bench-", dir=beside, ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextmanager
def _on_mongodb(store: str) -> Iterator[Place]:
    # Whoever measures another store need not have the driver.
    from pymongo.errors import PyMongoError  # noqa: PLC0415

    from benchmarks.mongo import Databases  # noqa: PLC0415

    if store != "mongodb" and not urlsplit(store).path.strip("/"):
        raise UnknownStore("the URL names no database: use mongodb://host/database")
    with _server(store) as url, _folder(None) as folder:
        try:
            databases = Databases(url)
        except (PyMongoError, ValueError) as error:
            raise UnknownStore(f"no MongoDB server answers: {str(error).partition(', ')[0]}") from error
        with databases:
            place = Place("mongodb", store, folder, databases)
            place.facts["mongodb"] = databases.version
            yield place


def _server(store: str) -> AbstractContextManager[str]:
    if store != "mongodb":
        return nullcontext(store)
    from tests.mongo_server import temporary  # noqa: PLC0415 - it needs what tests need

    return temporary()


def _understood(store: str | None) -> tuple[Kind, str | None, Path | None]:
    if store is None:
        return "sqlite", None, None
    if store in {"memory:", "memory://"}:
        return "memory", store, None
    if store.startswith(_SQLITE) and len(store) > len(_SQLITE):
        path = Path(unquote(store.removeprefix(_SQLITE))).absolute()
        if not path.parent.is_dir():
            raise UnknownStore(f"{path} cannot be made: its directory does not exist")
        return "sqlite", _url(path), path.parent
    raise UnknownStore(
        f"there is no bare loop for {store!r}: use sqlite:///path.db, memory:, mongodb://host/database or mongodb"
    )
