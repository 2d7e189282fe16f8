"""Where a measurement puts its files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

_SQLITE = "sqlite:///"

Kind = Literal["sqlite", "memory"]


class UnknownStore(Exception):
    """No benchmark is written for stores of this URL."""


class Place:
    """The store that is measured, and a folder on the same disk for what is measured beside it."""

    def __init__(self, kind: Kind, given: str | None, folder: Path) -> None:
        self.kind: Kind = kind
        self.folder = folder
        self._given = given
        self._made = 0

    def __str__(self) -> str:
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
        """The URL of an empty store; the one that was given if one was, whatever is in it."""
        return self._given or _url(self.file("store.db"))


def _url(path: Path) -> str:
    return _SQLITE + quote(str(path))


@contextmanager
def open_place(store: str | None) -> Iterator[Place]:
    """A place whose folder is removed at the end. Runs in a store that was named stay in it."""
    kind, given, beside = _understood(store)
    with tempfile.TemporaryDirectory(prefix="streamline-bench-", dir=beside, ignore_cleanup_errors=True) as name:
        yield Place(kind, given, Path(name))


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
    raise UnknownStore(f"there is no bare loop for {store!r}: use sqlite:///path.db or memory:")
