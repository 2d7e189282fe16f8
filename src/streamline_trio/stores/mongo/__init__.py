"""The MongoDB store: for workers on many machines. Importing it does not need the driver; opening does."""

from streamline_trio.stores.mongo._store import MongoStore

__all__ = ["MongoStore"]
