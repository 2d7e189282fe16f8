"""Takes due runs, and those of dead workers, into free capacity; each claim is a decided, guarded commit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import trio

from streamline_trio._core.decide import Decision, decide
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import StoreUnavailable, StreamlineError
from streamline_trio._core.happenings import CancelAsked, Claimed, Slotted
from streamline_trio._core.plan import Plan
from streamline_trio._core.store import Applied, Corrupt, Quarantine, Refused, Update
from streamline_trio._core.tenancy import told_id
from streamline_trio._runtime.committer import Outcome
from streamline_trio._runtime.crew import FRAGILE_FROM, Crew
from streamline_trio._runtime.crowding import Crowding
from streamline_trio._runtime.drift import Drift
from streamline_trio._runtime.fair_share import FairShare
from streamline_trio._runtime.lapses import Lapses
from streamline_trio._runtime.observer import Observer
from streamline_trio._runtime.orphans import orphans_among
from streamline_trio._runtime.pacing import gated
from streamline_trio._runtime.registry import Registry
from streamline_trio._runtime.services import Services
from streamline_trio._runtime.throttles import Throttles
from streamline_trio._runtime.worker import Worker

BATCH = 100
_REFUSED_PAUSE = 0.05


class Claimer:
    """Sleeps until a run is due (or may be), then claims."""

    def __init__(
        self, services: Services, registry: Registry, crew: Crew, worker: Worker, observer: Observer
    ) -> None:
        self._services = services
        self._registry = registry
        self._crew = crew
        self._worker = worker
        self._observer = observer
        self._wake = trio.Event()
        self._until = math.inf
        self._set_aside: dict[str, float] = {}
        self._share = FairShare()
        self._crowding = Crowding()
        self.is_behind: bool = False
        """Whether more may be due than there are places, so that whoever took one at once would jump the queue."""
        self.lapses: Lapses = Lapses(services, registry)
        self.drift: Drift = Drift(services, registry)
        self.throttles: Throttles = Throttles(services)

    def notify(self, due_at: int) -> None:
        """A run fell due, or will; cheap, may be called for nothing."""
        if due_at < self._until:
            self._until = due_at
            self._wake.set()

    def wake(self) -> None:
        """Look now."""
        self._until = -math.inf
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        circuit = self._services.circuit
        while True:
            if circuit.is_open:
                await circuit.pause()
            self._wake = trio.Event()
            try:
                pause = await self._round()
            except StoreUnavailable as error:
                circuit.failed("read", error)
                self._services.logger.warning("claiming pauses: %s", error)
                pause = self._services.options.poll_interval
            with trio.move_on_after(pause):
                await self._wake.wait()

    async def _round(self) -> float:
        """Claim what there is; seconds to sleep afterwards."""
        self._until = math.inf
        if self._worker.id is None or self._crew.free <= 0:
            await self._until_able()
        limit = min(self._crew.free, BATCH)
        if limit <= 0:
            return 0
        if self._worker.id is None:
            return _REFUSED_PAUSE
        taken = 0
        for dead in sorted(self._observer.dead):
            taken += await self._take_over(dead, limit - taken)
        found = await self._take_due(limit - taken) if taken < limit else limit
        if taken + found >= limit:
            return 0
        return await self._pause()

    async def _until_able(self) -> None:
        """Until there is a place and an id to claim under."""
        if self._crew.free <= 0:
            self.is_behind = True
            await self._crew.wait_changed()
        if self._worker.id is None:
            await self._worker.enlist()

    async def _pause(self) -> float:
        """Until the next run is due, and no longer than other processes may go unheard."""
        services = self._services
        due_at = await services.store.next_due(self._registry.routes)
        longest = math.inf
        if not services.store.exclusive:
            longest = services.polls.pause()
        if due_at is None:
            return longest
        until = min(self._until, due_at)
        self._until = until
        pause = (until - services.clock.now()) / 1000
        if pause <= 0:
            pause = _REFUSED_PAUSE * (0.5 + services.chance.roll())
        return min(pause, longest)

    # --- due runs ------------------------------------------------------------------------------------------

    async def _take_due(self, limit: int) -> int:
        """Claim due runs; how many were found."""
        services, now = self._services, self._services.clock.now()
        skip = self._crowding.skip(limit, services.chance.roll)
        # One more than there are places tells whether all that is due fits.
        asked = limit + 1 + len(self._set_aside)
        found = await services.store.due(self._registry.routes, now, asked, skip=skip)
        services.circuit.worked("read")
        runs = [run for run in found if not self._is_set_aside(run)]
        self.is_behind = len(runs) > limit
        if self.is_behind:
            runs = await self._share_out(limit, runs, now)
        else:
            self._share.all_fits()
        claims = await self._claim(runs, lease_dead=False)
        self._crowding.told(claims.succeeded, claims.refused)
        return len(runs)

    async def _share_out(self, limit: int, by_priority: list[RunDoc | Corrupt], now: int) -> list[RunDoc | Corrupt]:
        """More is due than fits: who gets a place."""
        began, share = trio.current_time(), self._share
        in_turn = share.due_in_turn(limit, began)
        share.more_is_due(limit)
        if not in_turn:
            return by_priority[:limit]
        store, asked = self._services.store, in_turn + len(self._set_aside)
        found = await store.due_in_turn(self._registry.routes, now, share.after, asked)
        share.looked(began, trio.current_time())
        waited = [run for run in found if not self._is_set_aside(run)][:in_turn]
        return share.choose(limit, by_priority, waited)

    # --- runs of dead workers ------------------------------------------------------------------------------

    async def _take_over(self, worker: str, limit: int) -> int:
        """Claim runs of a worker that is gone, highest priority first; when none is left, forget it."""
        taken, stayed = 0, 0
        while taken < limit and self._crew.free > 0:
            page = await self._services.store.leased_by_priority(worker, limit - taken, skip=stayed)
            if not page:
                if not stayed:
                    await self._observer.forget(worker)
                break
            mine = [run for run in page if self._may_take_over(run)]
            claims = await self._claim(mine, lease_dead=True)
            taken += claims.succeeded
            # Whoever was faster has taken it: it is not in the way of the next page.
            gone = claims.succeeded + claims.refused + claims.set_aside + await self._let_go(worker, page)
            stayed += len(page) - gone
        return taken

    async def _let_go(self, dead: str, page: Sequence[RunDoc | Corrupt]) -> int:
        finder = self._worker.id
        return 0 if finder is None else await self.lapses.let_go(dead, page, finder)

    def _may_take_over(self, run: RunDoc | Corrupt) -> bool:
        """Ours to run; of those that may be killing workers, one at a time."""
        if isinstance(run, Corrupt):
            return True
        if self._registry.workflow_for(run) is None and run.head.status != "draft":
            return False
        return run.head.streak < FRAGILE_FROM or self._crew.fragile == 0

    # --- the claim -----------------------------------------------------------------------------------------

    async def _claim(self, runs: Sequence[RunDoc | Corrupt], *, lease_dead: bool) -> _Countdown:
        """Decide and commit each; what became of them. Returns when all have their verdicts."""
        waiting = _Countdown()
        worker = self._worker.id
        if worker is None:
            return waiting
        recoveries = self._services.options.max_recoveries
        happening = Claimed(worker=worker, lease_dead=lease_dead, max_recoveries=recoveries)
        orphans = await orphans_among(self._services, runs)
        held: list[tuple[RunDoc, Plan]] = []
        for run in runs:
            if isinstance(run, Corrupt):
                waiting.add()
                self.quarantine(run, waiting.count_set_aside)
            elif self._crew.try_reserve(run.origin.id):
                orphaned = orphans.get(run.origin.id)
                if orphaned is not None:
                    self._claim_one(run, CancelAsked(reason=orphaned), waiting)
                elif run.head.throttle is not None and (plan := self._plan_if_held(run)) is not None:
                    held.append((run, plan))
                else:
                    self._claim_one(run, happening, waiting)
        if held:
            await self._claim_held(held, happening, waiting)
        await waiting.wait()
        return waiting

    def _plan_if_held(self, run: RunDoc) -> Plan | None:
        """The plan of a run whose throttle is to be asked; None if there is nothing to ask."""
        workflow = self._registry.workflow_for(run)
        return workflow.plan if workflow is not None and self.throttles.holds(run, workflow.plan) else None

    async def _claim_held(
        self, held: Sequence[tuple[RunDoc, Plan]], happening: Claimed, waiting: _Countdown
    ) -> None:
        """Claim those that their throttles let begin, slot the others; what could not be asked is set aside."""
        left = {run.origin.id for run, _ in held}
        try:
            for run, answer in await self.throttles.happenings(held, happening):
                if answer is not None:
                    left.discard(run.origin.id)
                    self._claim_one(run, answer, waiting)
        finally:
            for run_id in left:
                self._crew.cancel_reservation(run_id)
                self._set_aside[run_id] = trio.current_time() + self._services.options.poll_interval

    def _claim_one(self, run: RunDoc, happening: Claimed | CancelAsked | Slotted, waiting: _Countdown) -> None:
        run_id, workflow = run.origin.id, self._registry.workflow_for(run)
        lease_dead = not isinstance(happening, Slotted) and happening.lease_dead
        fragile = lease_dead and run.head.streak >= FRAGILE_FROM and waiting.fragile
        if workflow is None or fragile:
            self._crew.cancel_reservation(run_id)
            return
        self.drift.notice(run, workflow.plan)
        try:
            if isinstance(happening, Claimed):
                happening = gated(self._services, workflow, run, happening)
            now, commit = self._services.clock.now(), self._services.chance.commit_id()
            decision = decide(run, happening, workflow.plan, now, commit)
        except StreamlineError as error:
            self._crew.cancel_reservation(run_id)
            self._set_aside[run_id] = trio.current_time() + self._services.options.poll_interval
            self._services.logger.warning("run %s cannot be claimed: %s", run_id, error)
            return
        waiting.fragile = waiting.fragile or run.head.streak >= FRAGILE_FROM
        waiting.add()
        self._services.committer.post(
            Update(run, decision.run, decision.touched),
            lambda outcome: self._claimed(outcome, run, decision, workflow, waiting),
        )

    def _claimed(
        self,
        outcome: Outcome,
        before: RunDoc,
        decision: Decision,
        workflow: Workflow[Any, Any],
        waiting: _Countdown,
    ) -> None:
        """The committer tells what became of a claim."""
        run = decision.run
        applied = isinstance(outcome, Applied)
        if applied:
            self._services.counts.claimed(before, run)
            self._services.committed(run, (decision,))
        if applied and run.head.lease is not None:
            self._crew.drive(run, workflow)
        else:
            self._crew.cancel_reservation(run.origin.id)
        waiting.count_down(outcome)

    def quarantine(self, run: Corrupt, told: Callable[[Outcome], None] = lambda _outcome: None) -> None:
        """Take a run that does not decode out of every queue, and report it."""
        error = StreamlineError(f"run {told_id(run.run_id)} cannot be decoded and is set aside: {run.error}")
        self._services.report("quarantine", error)
        self._services.committer.post(Quarantine(run.run_id), told)

    def _is_set_aside(self, run: RunDoc | Corrupt) -> bool:
        until = self._set_aside.get(_id_of(run))
        if until is None:
            return False
        if until > trio.current_time():
            return True
        del self._set_aside[_id_of(run)]
        return False


def _id_of(run: RunDoc | Corrupt) -> str:
    return run.run_id if isinstance(run, Corrupt) else run.origin.id


class _Countdown:
    """Waits for the verdicts of one round of claims, and counts them."""

    __slots__ = ("_done", "_left", "fragile", "refused", "set_aside", "succeeded")

    def __init__(self) -> None:
        self._left = 0
        self._done = trio.Event()
        self.succeeded = 0
        self.refused = 0
        self.set_aside = 0
        self.fragile = False

    def add(self) -> None:
        self._left += 1

    def count_down(self, outcome: Outcome) -> None:
        self.succeeded += isinstance(outcome, Applied)
        self.refused += isinstance(outcome, Refused)
        self._tell()

    def count_set_aside(self, _outcome: Outcome) -> None:
        self.set_aside += 1
        self._tell()

    def _tell(self) -> None:
        self._left -= 1
        if not self._left:
            self._done.set()

    async def wait(self) -> None:
        if self._left:
            await self._done.wait()
        else:
            await trio.lowlevel.checkpoint()
