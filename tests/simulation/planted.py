"""Stores with a fault each, which a simulated world must find."""

from __future__ import annotations

from typing import Any

import msgspec

from streamline_trio import MemoryStore
from streamline_trio._core.store import Applied, Insert, Update
from streamline_trio.testing import WrappedStore


class Planted(WrappedStore):
    """Writes one by one; a subclass says how."""

    def content(self) -> Any:
        assert isinstance(self.inner, MemoryStore)
        return self.inner._content

    async def around(self, name: str, args: tuple[Any, ...], act: Any) -> Any:
        if name != "write":
            return await act()
        return [await self.write_one(write) for write in args[0]]

    async def write_one(self, write: Any) -> Any:
        return (await self.inner.write([write]))[0]


class NoGuard(Planted):
    """Applies an update whatever the stored revision is."""

    async def write_one(self, write: Any) -> Any:
        stored = self.content().runs.get(write.before.id) if isinstance(write, Update) else None
        if stored is not None:
            write = Update(stored, write.after)
        return await super().write_one(write)


class NoFence(Planted):
    """Stores every claim under the fence that was there before."""

    async def write_one(self, write: Any) -> Any:
        old = write.before.head.fence if isinstance(write, Update) else 0
        if old and write.after.head.lease is not None and write.after.head.fence > old:
            lease = msgspec.structs.replace(write.after.head.lease, fence=old)
            head = msgspec.structs.replace(write.after.head, fence=old, lease=lease)
            write = Update(write.before, msgspec.structs.replace(write.after, head=head))
        return await super().write_one(write)


class LyingVerdict(Planted):
    """Says that a refused update was applied."""

    async def write_one(self, write: Any) -> Any:
        verdict = await super().write_one(write)
        return Applied() if isinstance(write, Update) else verdict


class Forgetful(Planted):
    """Acknowledges the parking of a run, and every third time forgets when it is due."""

    count = 0

    async def write_one(self, write: Any) -> Any:
        verdict = await super().write_one(write)
        if isinstance(write, Update) and write.after.head.due_at is not None:
            self.count += 1
            if self.count % 3 == 0 and isinstance(verdict, Applied):
                self.content().due.discard(write.after)
        return verdict


class KeysIgnored(Planted):
    """Lets two active runs hold one idempotency key."""

    async def write_one(self, write: Any) -> Any:
        if isinstance(write, Insert) and write.run.origin.idempotency_key is not None:
            self.content().keys.clear()
        return await super().write_one(write)


PLANTED = (NoGuard, NoFence, LyingVerdict, Forgetful, KeysIgnored)
