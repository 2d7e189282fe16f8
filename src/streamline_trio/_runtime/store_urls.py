"""Stores from URLs."""

from __future__ import annotations

from typing import cast
from urllib.parse import unquote

from streamline_trio._core.checking import is_a
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.store import Store
from streamline_trio.stores.memory import MemoryStore
from streamline_trio.stores.mongo import MongoStore
from streamline_trio.stores.sqlite import SqliteStore

_SQLITE = "sqlite:///"


def store_from(store: Store | str) -> Store:
    """A store as it is, or the one a URL names.

    `memory:`, `sqlite:///relative.db`, `sqlite:////absolute.db`, `mongodb://host/database`,
    `mongodb+srv://host/database`.
    """
    if not isinstance(store, str):
        if not is_a(store, Store):
            raise ValidationError(f"a store is a Store or a URL, not {store!r}")
        return store
    if store in {"memory:", "memory://"}:
        return MemoryStore()
    if store.startswith(_SQLITE) and len(store) > len(_SQLITE):
        return cast("Store", SqliteStore(unquote(store.removeprefix(_SQLITE))))
    scheme = store.partition(":")[0]
    if scheme in {"mongodb", "mongodb+srv"}:
        return cast("Store", MongoStore(store))
    if scheme == "sqlite":
        raise ValidationError(f"{store!r} names no file: use sqlite:///relative.db or sqlite:////absolute.db")
    raise ValidationError(
        f"no store has the URL scheme {scheme!r}: use memory:, sqlite:///relative.db, sqlite:////absolute.db or"
        " mongodb://host/database"
    )
