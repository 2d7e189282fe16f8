"""Removes settled runs whose time has come, as `Retention` says.

When a run has to go is worked out from its last change whenever somebody looks, and stored nowhere: so what a
later deploy says of retention holds for the runs that are there already. A turn asks for each status, oldest first,
a page at a time. Runs that somebody still needs stay and are looked at again later; a turn that finds too many of
them goes on from there the next time, so that they do not cost each turn a walk over all of them.

One worker at a time takes a turn: the first of those that keep retention, as all of them see it without asking.
While they see it differently, the baton decides. It is taken only when there is something to remove. Where nothing
is periodic, the next turn is when the next run has to go.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import StoreUnavailable
from streamline_trio._core.status import RunStatus
from streamline_trio._core.store import Cursor, RunQuery
from streamline_trio._runtime.baton import Baton
from streamline_trio._runtime.removing import remove_settled
from streamline_trio._runtime.worker import WorkerDoc

if TYPE_CHECKING:
    from streamline_trio._runtime.machinery import Machinery

AT_ONCE = 200
MOST_IN_VAIN = 10
"""Pages of runs that must all stay, after which a turn ends."""

TURNS_PER_AGE = 20
SHORTEST_GAP = 1.0
LONGEST_GAP = 60.0


class Expiry:
    """The turns of one engine. `gap` seconds lie between them at least: 1/20 of the shortest age, 1 to 60."""

    def __init__(self, machinery: Machinery, ages: dict[RunStatus, int]) -> None:
        self._machinery = machinery
        self._services = machinery.services
        self._ages = ages
        self._baton = Baton(machinery.services, machinery.observer, "retention")
        self._shortest = min(ages.values(), default=0) / 1000
        self._longest = max(ages.values(), default=0) / 1000
        self.gap: float = min(max(self._shortest / TURNS_PER_AGE, SHORTEST_GAP), LONGEST_GAP)
        self._cursors: dict[RunStatus, Cursor] = {}
        self._has_left_some = False
        self._until = math.inf
        self._noticed = trio.Event()

    async def run(self) -> None:
        """Work until cancelled."""
        while self._ages:
            self._until = math.inf
            try:
                pause = await self._turn()
            except StoreUnavailable as error:
                self._services.logger.warning("retention pauses: %s", error)
                pause = self.gap
            await self._rest(pause)

    async def _rest(self, pause: float) -> None:
        self._until = min(self._until, trio.current_time() + pause)
        while trio.current_time() < self._until:
            self._noticed = trio.Event()
            with trio.move_on_at(self._until):
                await self._noticed.wait()

    def settled(self) -> None:
        """A run has settled, or has told others of its end, so that it, or a child of it, may have to go later."""
        self._until = min(self._until, trio.current_time() + max(self._shortest, self.gap))
        self._noticed.set()

    # --- a turn --------------------------------------------------------------------------------------------

    async def _turn(self) -> float:
        """Remove what has to go; seconds until the next turn."""
        machinery = self._machinery
        worker = machinery.worker.id
        if not self._services.store.exclusive and not machinery.observer.is_first(among=_keeps_retention):
            return self.gap
        now = self._services.clock.now()
        removed, has_baton, self._has_left_some = 0, False, False
        for status, age in self._ages.items():
            after, in_vain = self._cursors.pop(status, None), 0
            while page := await self._page(status, now - age, after):
                if worker is None or worker != machinery.worker.id:
                    return self.gap  # taken for dead meanwhile: somebody else may be at it
                if not has_baton and not await self._baton.try_take(worker):
                    return self.gap
                has_baton = True
                gone = await self._remove(page)
                removed += gone
                in_vain = 0 if gone else in_vain + 1
                self._has_left_some = self._has_left_some or gone < len(page)
                if len(page) < AT_ONCE:
                    break
                after = Cursor(page[-1].head.updated_at, page[-1].id)
                if in_vain == MOST_IN_VAIN:
                    self._cursors[status] = after
                    break
        if has_baton:
            await self._baton.give_back()
        if not self._services.store.exclusive:
            return self.gap
        return await self._until_the_next(now, removed)

    async def _page(self, status: RunStatus, before: int, after: Cursor | None) -> list[RunDoc]:
        """Runs of one status, since stores find those of several only by looking at all."""
        query = RunQuery(status=(status,), updated_before=before + 1)
        store = self._services.store
        return await self._services.read(lambda: store.find(query, sort="updated_at", limit=AT_ONCE, after=after))

    async def _remove(self, page: list[RunDoc]) -> int:
        """What can go of a page. Then others have the store for as long as that took."""
        began = trio.current_time()
        gone = await remove_settled(self._services, page)
        self._services.counts.expired += gone
        await trio.sleep(trio.current_time() - began)
        return gone

    # --- where nothing is periodic -------------------------------------------------------------------------

    async def _until_the_next(self, now: int, removed: int) -> float:
        """Seconds until a run has to go, or one that had to stay is to be looked at again."""
        if self._cursors or (removed and self._has_left_some):
            return self.gap
        pauses = [await self._until_one_of(status, age, now) for status, age in self._ages.items()]
        if self._has_left_some:
            pauses.append(self._longest)
        return max(min(pauses), self.gap)

    async def _until_one_of(self, status: RunStatus, age: int, now: int) -> float:
        query = RunQuery(status=(status,), updated_after=now - age + 1)
        store = self._services.store
        found = await self._services.read(lambda: store.find(query, sort="updated_at", limit=1, after=None))
        return (found[0].head.updated_at + age - now) / 1000 if found else math.inf


def _keeps_retention(worker: WorkerDoc) -> bool:
    return worker.keeps_retention
