"""What a worker looks after from time to time, on stores that other processes write.

Every poll: has anybody committed something to runs we hold, has a lock been released, is a workflow of ours
triggered? Every third of a lease: do the others still beat, has anybody left an errand undone? Every lease: are
there leases nobody stands behind, broadcasts nobody delivers, slots given to runs that may not know it? Every
minute: is there anything in the store that no run refers to, are there throttles that nothing has passed for a
window? For broadcasts and the last two one worker is enough, and the first of those that live looks.
"""

from __future__ import annotations

import trio

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import InvalidState, LeaseLost, RunNotFound, StoreUnavailable
from streamline_trio._core.happenings import HandedBack
from streamline_trio._core.store import Corrupt, Sweeper
from streamline_trio._runtime.delivery import try_sweep
from streamline_trio._runtime.errands import Errands
from streamline_trio._runtime.machinery import Machinery
from streamline_trio._runtime.throttles import sweep_throttles
from streamline_trio._runtime.triggers import look_for_triggers_soon

_ATTENTION_AT_ONCE = 500
_OWN_AT_ONCE = 500
LOOKS_PER_LEASE = 3
SWEEP_EVERY = 60.0


class Care:
    """The periodic rounds of one engine."""

    def __init__(self, machinery: Machinery, errands: Errands) -> None:
        self._machinery = machinery
        self._errands = errands
        self._options = machinery.services.options
        self._last_triggers = trio.current_time()
        self._last_look = trio.current_time()
        self._last_walk = trio.current_time()
        self._last_sweep = trio.current_time()

    async def run(self) -> None:
        """Work until cancelled."""
        poll = self._machinery.services.polls.poll()
        circuit = self._machinery.services.circuit
        while True:
            await poll.next()
            if circuit.is_open:
                await circuit.pause()
            try:
                await self._round()
            except StoreUnavailable as error:
                circuit.failed("read", error)
                self._machinery.services.logger.warning("care pauses: %s", error)

    async def _round(self) -> None:
        machinery, now = self._machinery, trio.current_time()
        await self._attend()
        if not machinery.is_worker:
            return
        if now - self._last_triggers >= self._options.poll_interval / 2:
            self._last_triggers = now
            look_for_triggers_soon(machinery)
        if now - self._last_look >= self._options.lease / LOOKS_PER_LEASE:
            self._last_look = now
            walk = now - self._last_walk >= self._options.lease
            found = await machinery.observer.look(holders=walk)
            await self._errands.look()
            if walk:
                self._last_walk = now
                await self._hand_back_orphans()
                self._sweep_broadcasts()
                await machinery.slots.look()
        else:
            found = await machinery.observer.look_at_locks()
        if found:
            machinery.claimer.wake()
            if machinery.migrator is not None:
                machinery.migrator.are_gone(machinery.observer.dead)
        if now - self._last_sweep >= SWEEP_EVERY:
            self._last_sweep = now
            if machinery.observer.is_first():
                await self._sweep()

    async def _sweep(self) -> None:
        services = self._machinery.services
        await sweep_throttles(services)
        if isinstance(services.store, Sweeper) and (removed := await services.store.sweep()):
            services.counts.swept += removed
            services.logger.info("%d documents that no run refers to were removed", removed)

    def _sweep_broadcasts(self) -> None:
        """By one worker, and in a task of its own, since thousands may wait for one."""
        machinery = self._machinery
        if machinery.observer.is_first():
            machinery.services.spawn(lambda: try_sweep(machinery))

    async def _attend(self) -> None:
        """Show the drivers what others have committed to their runs."""
        machinery = self._machinery
        worker = machinery.worker.id
        if worker is None or not machinery.crew.drivers:
            return
        store = machinery.services.store
        for run in await store.leased(worker, attention=True, limit=_ATTENTION_AT_ONCE):
            if isinstance(run, Corrupt):
                continue
            driver = machinery.crew.drivers.get(run.origin.id)
            if driver is not None:
                driver.writer.refresh(run)

    async def _hand_back_orphans(self) -> None:
        """Runs that are leased to us and that nobody here drives: a claim whose reply was lost for good."""
        machinery, after = self._machinery, ""
        worker = machinery.worker.id
        while worker is not None:
            page = await machinery.services.store.leased(worker, attention=False, limit=_OWN_AT_ONCE, after=after)
            if not page:
                return
            for run in page:
                after = run.run_id if isinstance(run, Corrupt) else run.origin.id
                if isinstance(run, RunDoc) and self._is_orphan(run):
                    await self._hand_back(run)

    def _is_orphan(self, run: RunDoc) -> bool:
        crew = self._machinery.crew
        return run.origin.id not in crew.drivers and run.origin.id not in crew.expected

    async def _hand_back(self, run: RunDoc) -> None:
        lease = run.head.lease
        if lease is None:
            return
        self._machinery.services.logger.warning("run %s is handed back: nobody drives it", run.origin.id)
        try:
            await self._machinery.act(run.origin.id, HandedBack(worker=lease.worker, fence=lease.fence))
        except (LeaseLost, InvalidState, RunNotFound):
            return
