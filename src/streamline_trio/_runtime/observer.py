"""Watches the other workers: whoever is gone is marked dead, and its runs become claimable.

Gone is who released its lock (told by the operating system, at once, on one machine), whose beat has not moved
for a whole lease of its own on *our* monotonic clock, or who is named by leases but has no document.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import trio

from streamline_trio._core.errors import StoreUnavailable
from streamline_trio._core.store import Applied, PutSide, SideDoc
from streamline_trio._runtime.services import Services
from streamline_trio._runtime.worker import WORKERS, WorkerDoc, decode_worker


class Observer:
    """Keeps the set of dead workers whose runs may be taken over."""

    def __init__(self, services: Services, own_id: Callable[[], str | None]) -> None:
        self._services = services
        self._own_id = own_id
        self._seen: dict[str, tuple[int, float]] = {}
        self._live: dict[str, WorkerDoc] = {}
        self.dead: set[str] = set()

    async def look(self, *, holders: bool) -> bool:
        """One round; True if there is a worker whose runs may be taken over. `holders`: walk the leases too.

        The leases are read first: a worker's document is there before its first lease, so a worker that leases
        name and that has no document afterwards has ended.
        """
        named = await self._services.store.lease_holders() if holders else []
        live: dict[str, WorkerDoc] = {}
        for side in await self._sides():
            if side.key == self._own_id():
                live[side.key] = decode_worker(side.body)
            elif await self._is_gone(side):
                self.dead.add(side.key)
            else:
                live[side.key] = decode_worker(side.body)
        self._live = live
        self._seen = {worker: seen for worker, seen in self._seen.items() if worker in live}
        own = self._own_id()
        self.dead.update(worker for worker in named if worker not in live and worker != own)
        return bool(self.dead)

    def is_first(self, among: Callable[[WorkerDoc], bool] = lambda _worker: True) -> bool:
        """Whether we are the first of the workers that live, as of the last look, and nobody has to be asked.

        What one worker is enough for is left to that one. Two may take themselves for it, or none, until the next
        look, or for as long as it takes to see that a worker is gone.
        """
        own = self._own_id()
        return own is not None and own == min((id_ for id_, doc in self._live.items() if among(doc)), default="")

    async def look_at_locks(self) -> bool:
        """The quick round: only those whose lock says that they are gone."""
        for worker in list(self._seen):
            if worker not in self.dead and await self._services.store.worker_gone(worker):
                return await self.look(holders=False)
        return bool(self.dead)

    async def is_dead(self, worker: str) -> bool:
        """Whether the holder of a lease is certainly gone, as the store knows it now."""
        store = self._services.store
        side = await store.side(WORKERS, worker)
        if side is None:
            return True
        doc = decode_worker(side.body)
        return doc.state == "dead" or (await store.worker_gone(worker) and await self._mark_dead(side, doc))

    async def forget(self, worker: str) -> None:
        """Nothing is leased to this worker any more: its document goes."""
        self.dead.discard(worker)
        side = await self._services.store.side(WORKERS, worker)
        if side is not None and decode_worker(side.body).state == "dead":
            await self._services.committer.submit(PutSide(WORKERS, worker, side.revision, None))

    async def _sides(self) -> list[SideDoc]:
        sides: list[SideDoc] = []
        while True:
            page = await self._services.store.sides(WORKERS, after=sides[-1].key if sides else "")
            self._services.circuit.worked("read")
            if not page:
                return sides
            sides += page

    async def _is_gone(self, side: SideDoc) -> bool:
        doc = decode_worker(side.body)
        if doc.state == "dead":
            return True
        if await self._services.store.worker_gone(side.key):
            return await self._mark_dead(side, doc)
        return self._is_silent(side, doc) and await self._mark_dead(side, doc)

    def _is_silent(self, side: SideDoc, doc: WorkerDoc) -> bool:
        """The same beat for a whole lease. An exclusive store has no beats, only locks."""
        now = trio.current_time()
        beat, since = self._seen.get(side.key, (-1, now))
        if beat != side.revision:
            self._seen[side.key] = (side.revision, now)
            return False
        return not self._services.store.exclusive and now - since >= doc.lease

    async def _mark_dead(self, side: SideDoc, doc: WorkerDoc) -> bool:
        """By compare-and-set: a worker that beats in the meantime lives on."""
        body = msgspec.msgpack.encode(msgspec.structs.replace(doc, state="dead"))
        try:
            verdict = await self._services.committer.submit(PutSide(WORKERS, side.key, side.revision, body))
        except StoreUnavailable:
            return False
        if isinstance(verdict, Applied):
            self._services.logger.warning("worker %s is gone: its runs are taken over", side.key)
            return True
        # It has beaten, or another observer was faster.
        now = await self._services.store.side(WORKERS, side.key)
        return now is not None and decode_worker(now.body).state == "dead"
