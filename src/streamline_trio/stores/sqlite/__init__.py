"""Runs in one SQLite file, shared by the processes of one machine."""

from streamline_trio.stores.sqlite._store import SqliteStore

__all__ = ["SqliteStore"]
