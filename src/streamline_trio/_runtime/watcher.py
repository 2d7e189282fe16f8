"""Callers that wait for runs to settle share one watcher per engine."""

from __future__ import annotations

from collections.abc import Callable

import trio

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import InvalidState, StoreUnavailable
from streamline_trio._core.status import SETTLED
from streamline_trio._core.tenancy import public_id
from streamline_trio._runtime.services import Services
from streamline_trio._runtime.tenancy import no_run

_READ_AT_ONCE = 200


class _Watch:
    """One run that somebody waits for."""

    __slots__ = ("event", "missing", "settled", "waiters")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.settled: RunDoc | None = None
        self.missing = False
        self.waiters = 0


class Watcher:
    """Learns of settled runs from our own commits, from the store's hints, and by asking where others write.

    `drives` tells whether this engine drives a run: we hear of its end. For a driver that hangs after it has lost
    its lease, the store is asked about these too, but only once a lease.
    """

    def __init__(self, services: Services, drives: Callable[[str], bool]) -> None:
        self._services = services
        self._drives = drives
        self._watches: dict[str, _Watch] = {}
        self._wanted = trio.Event()
        self._closed = False

    def settled(self, run: RunDoc) -> None:
        """A run is known to have settled."""
        watch = self._watches.get(run.origin.id)
        if watch is not None:
            watch.settled = run
            watch.event.set()

    def hinted(self, run_id: str) -> None:
        """A run that somebody waits for may have settled elsewhere."""
        if run_id in self._watches:
            self._services.spawn(lambda: self._ask([run_id]))

    async def wait(self, run_id: str, *, driven: bool) -> RunDoc:
        """The run, once it has settled. `driven`: this engine drives it, so there is no need to ask first.

        A cancel point. Raises `RunNotFound` if there is no such run, or it is deleted meanwhile.
        """
        if self._closed:
            return await self._explain(run_id)
        watch = self._watch(run_id)
        try:
            if not driven:
                await self._ask([run_id], patient=True)
            await watch.event.wait()
        finally:
            self._unwatch(run_id, watch)
        return await self._explain(run_id) if watch.settled is None else watch.settled

    async def _explain(self, run_id: str) -> RunDoc:
        """Why a run cannot be waited for: there is none, it does not decode, or the engine has closed."""
        if self._closed:
            raise InvalidState(f"cannot wait for run {public_id(run_id)}: the engine has closed", action="wait")
        store = self._services.store
        run = await self._services.read(lambda: store.load(run_id))
        if run is None:
            raise no_run(run_id)
        return run if run.head.status in SETTLED else await self.wait(run_id, driven=False)

    def close(self) -> None:
        """The engine closes: nobody would tell those who wait."""
        self._closed = True
        for watch in self._watches.values():
            watch.event.set()

    def _watch(self, run_id: str) -> _Watch:
        watch = self._watches.get(run_id)
        if watch is None or watch.event.is_set():
            watch = self._watches[run_id] = _Watch()
        watch.waiters += 1
        self._wanted.set()
        return watch

    def _unwatch(self, run_id: str, watch: _Watch) -> None:
        watch.waiters -= 1
        if not watch.waiters and self._watches.get(run_id) is watch:
            del self._watches[run_id]

    async def run(self) -> None:
        """Ask the store for all watched runs, one poll after the other; for stores that others can write."""
        poll = self._services.polls.poll()
        asked_for_all_at = trio.current_time()
        while True:
            if not self._watches:
                self._wanted = trio.Event()
                await self._wanted.wait()
            await poll.next()
            run_ids = [run_id for run_id, watch in self._watches.items() if not watch.event.is_set()]
            if trio.current_time() - asked_for_all_at < self._services.options.lease:
                run_ids = [run_id for run_id in run_ids if not self._drives(run_id)]
            else:
                asked_for_all_at = trio.current_time()
            for start in range(0, len(run_ids), _READ_AT_ONCE):
                await self._ask(run_ids[start : start + _READ_AT_ONCE])

    async def _ask(self, run_ids: list[str], *, patient: bool = False) -> None:
        store = self._services.store
        try:
            if patient:
                runs = await self._services.read(lambda: store.load_many(run_ids))
            else:
                runs = await store.load_many(run_ids)
        except StoreUnavailable as error:
            if patient:
                raise
            self._services.circuit.failed("read", error)
            return
        self._services.circuit.worked("read")
        for run_id, run in zip(run_ids, runs, strict=True):
            if run is None:
                self._missing(run_id)
            elif run.head.status in SETTLED:
                self.settled(run)

    def _missing(self, run_id: str) -> None:
        watch = self._watches.get(run_id)
        if watch is not None:
            watch.missing = True
            watch.event.set()
