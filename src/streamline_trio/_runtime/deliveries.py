"""Which broadcasts an engine is delivering, and how their documents are changed."""

from __future__ import annotations

import math

import trio

from streamline_trio._core.broadcasts import (
    BROADCASTS,
    BroadcastDoc,
    Change,
    decode_broadcast,
    due_of,
    encode_broadcast,
    is_forgotten,
)
from streamline_trio._core.store import Applied, Failed, PutSide, SideDoc
from streamline_trio._runtime.services import Services


class Deliveries:
    """Counts what is under way; `is_leaving` tells it to stop at the next page and to leave the rest.

    `sweeping` and `looking`: a task looks for broadcasts that are due, or for those that trigger workflows;
    `again`: it shall look once more when it has.
    """

    def __init__(self) -> None:
        self.is_leaving: bool = False
        self.sweeping: bool = False
        self.looking: bool = False
        self.again: bool = False
        self.swept_at: float = -math.inf
        self._under_way: set[str] = set()
        self._idle = trio.Event()
        self._idle.set()

    def begin(self, key: str) -> bool:
        """False if this engine is at it already."""
        if key in self._under_way:
            return False
        self._under_way.add(key)
        if self._idle.is_set():
            self._idle = trio.Event()
        return True

    def end(self, key: str) -> None:
        """It is done, or left to others."""
        self._under_way.discard(key)
        if not self._under_way:
            self._idle.set()

    async def leave(self) -> None:
        """Let none go on, and wait until each has stopped."""
        self.is_leaving = True
        await self._idle.wait()


async def amend(services: Services, key: str, change: Change, known: SideDoc | None = None) -> None:
    """Change a broadcast's document by compare-and-set, whoever else writes it; what is gone stays gone."""
    side = known
    while True:
        side = side or await services.read(lambda: services.store.side(BROADCASTS, key))
        if side is None:
            return
        before = decode_broadcast(side.body)
        after = change(before)
        if after == before:
            return
        body = None if is_forgotten(before, after) else encode_broadcast(after)
        due_at = due_of(after, after.at) if after.delivered else side.due_at
        verdict = await services.committer.submit(PutSide(BROADCASTS, key, side.revision, body, due_at))
        if isinstance(verdict, Applied):
            return
        if isinstance(verdict, Failed):
            raise verdict.error
        side = None


def baton(services: Services, doc: BroadcastDoc) -> int:
    """Until when nobody else goes on with a broadcast that this engine delivers from now on."""
    if services.store.exclusive:
        return doc.at
    return services.clock.now() + int(services.options.lease * 1000)
