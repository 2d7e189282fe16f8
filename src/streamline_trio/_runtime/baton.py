"""A baton: of all workers on a store, one at a time does a piece of work.

A side document names who has it. It is taken by compare-and-set, from nobody or from a worker that is certainly
gone, so a worker that dies with it in hand stops the others for no longer than its runs are stopped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from streamline_trio._core.store import Applied, PutSide

if TYPE_CHECKING:
    from streamline_trio._runtime.observer import Observer
    from streamline_trio._runtime.services import Services

BATONS = "baton"


class BatonDoc(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who has it, if anybody, and since when that is so."""

    holder: str = ""
    at: int = 0


_decode = msgspec.msgpack.Decoder(BatonDoc).decode
_encode = msgspec.msgpack.encode


class Baton:
    """The baton of one kind of work, as one engine sees it."""

    def __init__(self, services: Services, observer: Observer, name: str) -> None:
        self._services = services
        self._observer = observer
        self._name = name
        self._revision = 0

    async def try_take(self, worker: str) -> bool:
        """Whether it is ours now. Who has it already, from a turn that was broken off, has it again."""
        services = self._services
        side = await services.read(lambda: services.store.side(BATONS, self._name))
        holder = "" if side is None else _decode(side.body).holder
        if holder and holder != worker and not await services.read(lambda: self._observer.is_dead(holder)):
            return False
        return await self._put(None if side is None else side.revision, worker)

    async def give_back(self) -> None:
        """The work is done. Somebody who took it from us, having thought us dead, keeps it."""
        await self._put(self._revision, "")

    async def _put(self, expected: int | None, holder: str) -> bool:
        services = self._services
        body = _encode(BatonDoc(holder=holder, at=services.clock.now()))
        verdict = await services.committer.submit(PutSide(BATONS, self._name, expected, body))
        if not isinstance(verdict, Applied):
            return False
        self._revision = 1 if expected is None else expected + 1
        return True
