"""The stores that ship with the engine."""

from streamline_trio.stores.memory import MemoryStore
from streamline_trio.stores.mongo import MongoStore
from streamline_trio.stores.sqlite import SqliteStore

__all__ = ["MemoryStore", "MongoStore", "SqliteStore"]
