"""Takes due runs of versions that no live worker has, through the `migrate` of a version that is here.

Which versions these are is looked up now and then: at opening, once a lease, when a worker has gone, and each time
on a store where looking costs nothing. Whoever has no `migrate` never comes here.

A run is asked about outside of the claimer, so that a slow `migrate` holds nobody up. What came of it is one
guarded commit, the claim itself: until then nothing has happened and anybody may ask again, afterwards the run is
of this version and nobody does. A refusal is remembered for as long as the run does not change.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
import trio

from streamline_trio._core.decide import Decision, decide
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import RunDoc, SlotDoc
from streamline_trio._core.errors import InvalidState, StoreUnavailable, VersionMismatch
from streamline_trio._core.happenings import CancelAsked, Migrated
from streamline_trio._core.store import Applied, Corrupt, Route, Update
from streamline_trio._runtime.claimer import Claimer
from streamline_trio._runtime.committer import Outcome
from streamline_trio._runtime.crew import Crew
from streamline_trio._runtime.migration import ask_migrate, is_migratable
from streamline_trio._runtime.orphans import orphans_among
from streamline_trio._runtime.pacing import gated
from streamline_trio._runtime.registry import Registry, stored_plans
from streamline_trio._runtime.services import Services
from streamline_trio._runtime.slot_wishes import slot_for
from streamline_trio._runtime.worker import Worker
from streamline_trio._runtime.workers import live_routes

BATCH = 100
PATIENCE = 30.0
"""Seconds for one call of `migrate`; what takes longer is a refusal."""
_MOST_REFUSED = 10_000
_PAUSE_PER_REFUSAL = 0.1


class Migrator:
    """Sleeps until a run of a foreign version may be due, asks `migrate`, and claims."""

    def __init__(
        self, services: Services, registry: Registry, crew: Crew, worker: Worker, claimer: Claimer
    ) -> None:
        self._services = services
        self._registry = registry
        self._crew = crew
        self._worker = worker
        self._claimer = claimer
        self._takers: dict[str, Workflow[Any, Any]] = registry.migrating
        self._foreign: tuple[Route, ...] = ()
        self._looked_at = -math.inf
        self._gone: set[str] = set()
        self._refused: dict[str, int] = {}
        self._wake = trio.Event()

    def notify(self) -> None:
        """A run fell due, or will; on stores where others write that is found by looking."""
        if self._services.store.exclusive:
            self._wake.set()

    def wake(self) -> None:
        """A worker has left: see which versions are missing now."""
        self._looked_at = -math.inf
        self._wake.set()

    def are_gone(self, dead: Collection[str]) -> None:
        """These workers are dead: the same, once for each of them."""
        if not self._gone.issuperset(dead):
            self._gone = set(dead)
            self.wake()

    async def run(self) -> None:
        """Work until cancelled."""
        circuit = self._services.circuit
        while self._takers:
            if circuit.is_open:
                await circuit.pause()
            self._wake = trio.Event()
            try:
                pause = await self._round()
            except StoreUnavailable as error:
                circuit.failed("read", error)
                self._services.logger.warning("migrating pauses: %s", error)
                pause = self._services.options.poll_interval
            with trio.move_on_after(pause):
                await self._wake.wait()

    async def _round(self) -> float:
        """Take over what there is; seconds to sleep afterwards."""
        services, now = self._services, trio.current_time()
        while self._crew.free <= 0:
            await self._crew.wait_changed()
        if self._worker.id is None:
            return services.options.poll_interval
        if services.store.exclusive or now - self._looked_at >= services.options.lease:
            self._looked_at = now
            self._foreign = await self._missing()
        if not self._foreign:
            return math.inf if services.store.exclusive else services.options.lease
        wanted = min(self._crew.free, BATCH)
        found = await self._found(wanted)
        await self._take(found)
        return 0 if len(found) >= wanted else await self._pause()

    async def _missing(self) -> tuple[Route, ...]:
        """The stored versions of our workflows that no live worker has, this one included."""
        store = self._services.store
        known = set(self._registry.routes) | await live_routes(store)
        stored = {
            Route(plan.workflow, plan.version): None
            for workflow in self._takers
            for plan in await stored_plans(store, workflow)
        }
        return tuple(route for route in stored if route not in known)

    async def _found(self, wanted: int) -> list[RunDoc]:
        """Due runs of missing versions that have not been refused as they are; at most so many."""
        services = self._services
        limit = wanted + len(self._refused)
        page = await services.store.due(self._foreign, services.clock.now(), limit)
        services.circuit.worked("read")
        for corrupt in page:
            if isinstance(corrupt, Corrupt):
                self._claimer.quarantine(corrupt)
        runs = [run for run in page if isinstance(run, RunDoc)]
        if len(page) < limit:
            here = {run.origin.id for run in runs}
            self._refused = {run_id: revision for run_id, revision in self._refused.items() if run_id in here}
        found = [run for run in runs if self._refused.get(run.origin.id) != run.head.revision][:wanted]
        if not found:
            return []
        # A worker that has the version may have come since.
        live = await live_routes(services.store)
        return [run for run in found if Route(run.origin.workflow, run.head.version) not in live]

    async def _pause(self) -> float:
        """The more was refused, the more each look costs, and the rarer it is."""
        services = self._services
        longest = services.options.lease
        if services.store.exclusive:
            due_at = await services.store.next_due(self._foreign)
            if due_at is None:
                return math.inf
            pause = (due_at - services.clock.now()) / 1000
            return pause if pause > 0 else longest
        return min(services.polls.pause() * (1 + _PAUSE_PER_REFUSAL * len(self._refused)), longest)

    # --- one run -------------------------------------------------------------------------------------------

    async def _take(self, runs: Sequence[RunDoc]) -> None:
        """Ask about each, and claim what is taken over; returns when all have their verdicts."""
        async with trio.open_nursery() as nursery:
            for run in runs:
                if not is_migratable(run):
                    self._remember(run)
                elif self._crew.try_reserve(run.origin.id):
                    nursery.start_soon(self._migrate, run)

    async def _migrate(self, run: RunDoc) -> None:
        workflow = self._takers[run.origin.workflow]
        decision: Decision | None = None
        try:
            decision = await self._decide(run, workflow)
        except (InvalidState, StoreUnavailable) as error:
            self._services.logger.warning("run %s is not migrated now: %s", run.origin.id, error)
        except Exception as error:  # noqa: BLE001 - whatever the workflow's function raises is its refusal
            self._refuse(run, workflow, error)
        finally:
            if decision is None:
                self._crew.cancel_reservation(run.origin.id)
        if decision is not None:
            await self._commit(run, decision, workflow)

    async def _decide(self, run: RunDoc, workflow: Workflow[Any, Any]) -> Decision | None:
        """The claim, decided, or the end of a child that nobody wants; None if there is no id to claim under."""
        services, origin = self._services, run.origin
        for reason in (await orphans_among(services, [run])).values():
            orphaned = CancelAsked(reason=reason)
            return decide(run, orphaned, workflow.plan, services.clock.now(), services.chance.commit_id())
        key = origin.workflow, run.head.version, run.head.fingerprint
        plan = await services.read(lambda: self._registry.stored_plan(services.store, *key))
        happening: Migrated | None = None
        with trio.move_on_after(PATIENCE):
            happening = await ask_migrate(workflow, run, plan, "")
        if happening is None:
            raise VersionMismatch(f"migrate took more than {PATIENCE:g} s")
        worker = self._worker.id
        if worker is None:
            return None
        happening = msgspec.structs.replace(happening, worker=worker, slot=_slot_of(services, run, workflow))
        claim = gated(services, workflow, run, happening)
        passed = await self._claimer.throttles.passed(run, workflow.plan, claim)
        return decide(run, passed, workflow.plan, services.clock.now(), services.chance.commit_id())

    async def _commit(self, run: RunDoc, decision: Decision, workflow: Workflow[Any, Any]) -> None:
        told = trio.Event()

        def tell(outcome: Outcome) -> None:
            applied = isinstance(outcome, Applied)
            if applied:
                self._services.counts.claimed(run, decision.run)
                self._services.committed(decision.run, (decision,))
            if applied and decision.run.head.lease is not None:
                self._crew.drive(decision.run, workflow)
            else:
                self._crew.cancel_reservation(run.origin.id)
            told.set()

        self._services.committer.post(Update(run, decision.run, decision.touched), tell)
        await told.wait()

    # --- refusals ------------------------------------------------------------------------------------------

    def _refuse(self, run: RunDoc, workflow: Workflow[Any, Any], error: Exception) -> None:
        self._remember(run)
        old, new = f"{workflow.id} {run.head.version}", workflow.version
        self._services.report(f"run {run.public_id} of {old} is not taken over by {new}", error, run)

    def _remember(self, run: RunDoc) -> None:
        """As it is now; of too many the oldest are asked about again."""
        self._refused.pop(run.origin.id, None)
        self._refused[run.origin.id] = run.head.revision
        if len(self._refused) > _MOST_REFUSED:
            del self._refused[next(iter(self._refused))]


def _slot_of(services: Services, run: RunDoc, workflow: Workflow[Any, Any]) -> SlotDoc | None:
    """What a run queues for that has no slot, if the version that takes it over has a limit."""
    if run.head.slot is not None and run.head.slot.state != "left":
        return None
    slot = slot_for(services, workflow, run.origin)
    return None if slot is None else msgspec.structs.replace(slot, state="queued")
