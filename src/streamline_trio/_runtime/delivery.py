"""Delivering broadcasts: page by page to all who listen, then to the workflows they trigger.

Who listens is found by an index, a page of ids at a time; a page is loaded by one read and its commits go out
together. So the cost grows with those who are reached, and memory does not. How far it has come is written down
every so often: whoever goes on with it after a crash begins there. No run takes a broadcast twice.

    awaiting, load_many, commits   per page of 100
    progress                       per 1,000 runs, and before the baton runs out
    done                           once

Only who has the baton writes progress; who finds it taken stops. On a store that nobody else can write there is
no baton, since nobody would look when it runs out: there a broadcast is due at once, for whoever opens the store
next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import trio

from streamline_trio._core.broadcasts import (
    BROADCASTS,
    BroadcastDoc,
    decode_broadcast,
    delivered,
    encode_broadcast,
    fired,
)
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.due import NOW
from streamline_trio._core.errors import (
    InvalidState,
    RunNotFound,
    StoreUnavailable,
    StreamlineError,
)
from streamline_trio._core.happenings import SignalArrived
from streamline_trio._core.store import Applied, PutSide, SideDoc
from streamline_trio._core.tenancy import public_id
from streamline_trio._runtime.committer import Outcome
from streamline_trio._runtime.deliveries import amend, baton
from streamline_trio._runtime.machinery import Machinery
from streamline_trio._runtime.triggers import fire, put_off, report_unfired

PAGE = 100
_NOTED_EVERY = 1000
_WAITED_FOR = 1000
_SWEPT_EVERY = 3600.0
_BATONS_PER_LEASE = 3


class Delivery:
    """One broadcast on its way, by this engine."""

    def __init__(self, machinery: Machinery, side: SideDoc, first: Sequence[str] | None = None) -> None:
        self._machinery = machinery
        self._services = machinery.services
        self._side = side
        self._doc = decode_broadcast(side.body)
        self._first = first
        self._is_again = first is None
        self._reached = 0
        self._noted = 0
        self._noted_at = trio.current_time()
        self._unreached = False
        self._is_ours = machinery.deliveries.begin(side.key)
        self.enough: trio.Event = trio.Event()
        """It is over, or the emitter need not wait for the rest."""

    async def run(self) -> None:
        """Deliver it, as far as all can be reached; what is left over others go on with when it falls due."""
        deliveries = self._machinery.deliveries
        if not self._is_ours:
            self.enough.set()
            await trio.lowlevel.checkpoint()
            return
        finished = False
        try:
            finished = await self._to_all() and await self._conclude()
        except StoreUnavailable as error:
            self._services.logger.warning("signal %s is stored and goes out later: %s", self._doc.signal, error)
        finally:
            self.enough.set()
            deliveries.end(self._side.key)
        if not finished and self._services.store.exclusive and not deliveries.is_leaving:
            self._services.spawn(lambda: sweep_later(self._machinery))

    # --- those who listen ----------------------------------------------------------------------------------

    async def _to_all(self) -> bool:
        """False if somebody else has taken it over, or this engine leaves."""
        after = self._doc.cursor
        while not self._doc.delivered:
            page = await self._page_after(after)
            if page:
                await self._to_page(page)
                after = page[-1]
            if not self._unreached:
                self._reached += len(page)
                self._doc = msgspec.structs.replace(self._doc, cursor=after)
            if self._reached >= _WAITED_FOR:
                self.enough.set()
            if len(page) < PAGE:
                return not self._unreached
            if self._machinery.deliveries.is_leaving:
                await self._note(NOW)
                return False
            if self._is_worth_noting() and not await self._note(baton(self._services, self._doc)):
                return False
        return True

    async def _page_after(self, after: str) -> Sequence[str]:
        first, self._first = self._first, None
        if first is not None:
            return first
        doc, store = self._doc, self._services.store
        return await self._services.read(lambda: store.awaiting(doc.signal, doc.tenant, after, PAGE))

    async def _to_page(self, page: Sequence[str]) -> None:
        """To all of them at once, so that their commits go out together."""
        drivers = self._machinery.crew.drivers
        others = [run_id for run_id in page if self._doc.match or run_id not in drivers]
        found: dict[str, RunDoc | None] = {}
        if others:
            runs = await self._services.read(lambda: self._services.store.load_many(others))
            found = dict(zip(others, runs, strict=True))
        async with trio.open_nursery() as nursery:
            for run_id in page:
                run = found.get(run_id)
                if run_id in found and (run is None or not _matches(run, self._doc.match)):
                    continue
                nursery.start_soon(self._to_run, run_id, run)

    async def _to_run(self, run_id: str, run: RunDoc | None) -> None:
        doc = self._doc
        happening = SignalArrived(signal=doc.signal, payload=doc.payload, id=doc.id, addressed=False, at=doc.at)
        try:
            await self._machinery.act(run_id, happening, run)
        except (RunNotFound, InvalidState):
            return
        except StoreUnavailable:
            self._unreached = True
        except StreamlineError as error:
            self._services.report(f"signal {doc.signal!r} does not fit run {public_id(run_id)}", error)

    # --- how far it has come -------------------------------------------------------------------------------

    def _is_worth_noting(self) -> bool:
        """Every so many runs, and before others take it for left alone."""
        renew_after = self._services.options.lease / _BATONS_PER_LEASE
        return self._reached - self._noted >= _NOTED_EVERY or trio.current_time() - self._noted_at >= renew_after

    async def _note(self, due_at: int) -> bool:
        """Write down how far it has come; False if somebody else is at it."""
        body, side = encode_broadcast(self._doc), self._side
        verdict = await self._services.committer.submit(PutSide(BROADCASTS, side.key, side.revision, body, due_at))
        if not isinstance(verdict, Applied):
            return False
        self._side = SideDoc(BROADCASTS, side.key, side.revision + 1, body, due_at)
        self._noted, self._noted_at = self._reached, trio.current_time()
        return True

    async def _conclude(self) -> bool:
        """Start what it triggers, as far as that can be done here; leave the rest to those who have the code."""
        doc, seen_to = self._doc, list[str]()
        for workflow in doc.triggered:
            if await fire(self._machinery, doc, workflow, again=self._is_again):
                seen_to.append(workflow)
            else:
                # Before the broadcast counts as delivered, after which nobody looks at it any more.
                await put_off(self._services, doc, workflow)
        await amend(self._services, self._side.key, lambda doc: fired(delivered(doc), *seen_to), self._side)
        return True


def _matches(run: RunDoc, match: dict[str, Any]) -> bool:
    """All fields equal; of `tags` and `meta` what is asked for must be there."""
    return all(_has(run, field, value) for field, value in match.items())


def _has(run: RunDoc, field: str, value: Any) -> bool:
    if field == "tags":
        return set(value) <= set(run.origin.tags)
    if field == "meta":
        stored = run.origin.meta
        meta: dict[str, Any] = {} if stored is None else msgspec.msgpack.decode(stored)
        return all(key in meta and meta[key] == wanted for key, wanted in value.items())
    return bool(_field(run, field) == value)


def _field(run: RunDoc, field: str) -> object:
    if field == "id":
        return run.public_id
    return getattr(run.origin if hasattr(run.origin, field) else run.head, field)


# --- what is due ---------------------------------------------------------------------------------------------


def sweep_soon(machinery: Machinery, *, at_once: bool) -> None:
    """On a store that nobody else can write: look for what is due, now and then or `at_once`."""
    due = trio.current_time() - machinery.deliveries.swept_at >= _SWEPT_EVERY
    if machinery.services.store.exclusive and (at_once or due):
        machinery.services.spawn(lambda: try_sweep(machinery))


async def try_sweep(machinery: Machinery) -> bool:
    """Go on with broadcasts that are due; False if the store was unavailable."""
    try:
        await sweep_broadcasts(machinery)
    except StoreUnavailable as error:
        machinery.services.logger.warning("broadcasts pause: %s", error)
        return False
    return True


async def sweep_later(machinery: Machinery) -> None:
    """Go on, in a while, with a broadcast that did not come to its end."""
    services = machinery.services
    swept = False
    while not swept:
        await trio.sleep(services.options.lease * (0.5 + services.chance.roll()))
        swept = await try_sweep(machinery)


async def sweep_broadcasts(machinery: Machinery) -> None:
    """Go on with broadcasts whose deliverer is gone; drop those that nobody can repeat any more.

    One look at a time. Of several workers the one that takes the baton does it.
    """
    services, deliveries = machinery.services, machinery.deliveries
    if deliveries.sweeping or deliveries.is_leaving:
        return
    deliveries.sweeping = True
    try:
        deliveries.swept_at = trio.current_time()
        now, after = services.clock.now(), ""
        while page := await services.store.sides(BROADCASTS, after=after, due_before=now, limit=PAGE):
            for side in page:
                await _look_at(machinery, side)
            after = page[-1].key
    finally:
        deliveries.sweeping = False


async def _look_at(machinery: Machinery, side: SideDoc) -> None:
    doc = decode_broadcast(side.body)
    if doc.done:
        machinery.services.committer.post(PutSide(BROADCASTS, side.key, side.revision, None), _forget)
    elif doc.delivered:
        report_unfired(machinery.services, doc)
        await amend(machinery.services, side.key, lambda doc: fired(doc, *doc.triggered), side)
    elif not machinery.deliveries.is_leaving and (taken := await _take(machinery, side, doc)) is not None:
        await Delivery(machinery, taken).run()


async def _take(machinery: Machinery, side: SideDoc, doc: BroadcastDoc) -> SideDoc | None:
    """Take the baton; None if somebody was faster."""
    services = machinery.services
    if services.store.exclusive:
        return side
    due_at = baton(services, doc)
    verdict = await services.committer.submit(PutSide(BROADCASTS, side.key, side.revision, side.body, due_at))
    if not isinstance(verdict, Applied):
        return None
    return SideDoc(BROADCASTS, side.key, side.revision + 1, side.body, due_at)


def _forget(_outcome: Outcome) -> None:
    """What could not be dropped is dropped by the next sweep."""
