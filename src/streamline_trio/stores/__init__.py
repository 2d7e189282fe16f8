"""The stores that ship with the engine."""

from streamline_trio.stores.memory import MemoryStore

__all__ = ["MemoryStore"]
