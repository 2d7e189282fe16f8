"""Driving a run in the caller: claim it, drive it until it parks or settles."""

from __future__ import annotations

from typing import Any

import trio

from streamline_trio._core.decide import decide
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import InvalidState, StoreUnavailable, WorkflowNotFound
from streamline_trio._core.happenings import CancelAsked, Claimed
from streamline_trio._core.status import SETTLED
from streamline_trio._core.store import Applied, Update
from streamline_trio._runtime.committer import Outcome
from streamline_trio._runtime.driver import Driver
from streamline_trio._runtime.machinery import Machinery
from streamline_trio._runtime.orphans import orphans_among
from streamline_trio._runtime.pacing import gated
from streamline_trio._runtime.services import Services


async def drive(machinery: Machinery, run_id: str) -> None:
    """Claim and drive; if this engine drives the run already, only wait for that."""
    driver = await _driver_of(machinery, run_id)
    if driver is None:
        return
    try:
        await driver.wait_done()
    except trio.Cancelled:
        _hand_back(driver)
        raise


async def _driver_of(machinery: Machinery, run_id: str) -> Driver | None:
    while True:
        driver = machinery.crew.drivers.get(run_id)
        if driver is not None:
            return driver
        run = await machinery.load(run_id)
        lease_dead = await _is_claimable(machinery, run)
        if lease_dead is None:
            return None
        outcome = await _claim(machinery, run, lease_dead=lease_dead)
        if isinstance(outcome, StoreUnavailable):
            raise StoreUnavailable(str(outcome)) from outcome
        if isinstance(outcome, Applied) and run_id not in machinery.crew.drivers:
            return None


async def _is_claimable(machinery: Machinery, run: RunDoc) -> bool | None:
    """Whether its lease is a dead worker's; None if there is nothing to claim."""
    head, lease = run.head, run.head.lease
    if lease is not None:
        if await machinery.services.read(lambda: machinery.observer.is_dead(lease.worker)):
            return True
        raise InvalidState(
            f"cannot drive run {run.public_id}: worker {lease.worker} holds it",
            action="drive",
            status=head.status,
            allowed=("draft", "running", "waiting"),
        )
    if head.status in SETTLED or head.due_at is None or head.due_at > machinery.services.clock.now():
        return None
    return False


async def _claim(machinery: Machinery, run: RunDoc, *, lease_dead: bool) -> Outcome | None:
    """One guarded claim; None if there was no place for it."""
    services, crew = machinery.services, machinery.crew
    workflow = machinery.registry.workflow_for(run)
    if workflow is None:
        raise WorkflowNotFound(
            f"this engine was not given workflow {run.origin.workflow!r} {run.head.version}",
            workflow=run.origin.workflow,
        )
    worker = machinery.worker.id or await machinery.worker.enlist()
    if not crew.try_reserve(run.origin.id):
        if run.origin.id not in crew.drivers:
            await crew.wait_changed()
        return None
    machinery.claimer.drift.notice(run, workflow.plan)
    try:
        claim = await _happening(services, workflow, run, worker, lease_dead=lease_dead)
        happening = await machinery.claimer.throttles.passed(run, workflow.plan, claim)
        decision = decide(run, happening, workflow.plan, services.clock.now(), services.chance.commit_id())
    except BaseException:
        crew.cancel_reservation(run.origin.id)
        raise
    outcomes: list[Outcome] = []
    told = trio.Event()
    is_waited_for = True

    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if isinstance(outcome, Applied):
            services.counts.claimed(run, decision.run)
            services.committed(decision.run, (decision,))
        if isinstance(outcome, Applied) and decision.run.head.lease is not None:
            driver = crew.drive(decision.run, workflow)
            if not is_waited_for:
                _hand_back(driver)
        else:
            crew.cancel_reservation(run.origin.id)
        told.set()

    services.committer.post(Update(run, decision.run, decision.touched), tell)
    try:
        await told.wait()
    except trio.Cancelled:
        is_waited_for = False
        raise
    return outcomes[0]


async def _happening(
    services: Services, workflow: Workflow[Any, Any], run: RunDoc, worker: str, *, lease_dead: bool
) -> CancelAsked | Claimed:
    """The claim; of a child that its parent no longer waits for, the cancellation."""
    for reason in (await orphans_among(services, [run])).values():
        return CancelAsked(reason=reason)
    claim = Claimed(worker=worker, lease_dead=lease_dead, max_recoveries=services.options.max_recoveries)
    return gated(services, workflow, run, claim)


def _hand_back(driver: Driver) -> None:
    """Stop the handler, uncounted: whoever wanted the run driven does not wait for it any more."""
    driver.leave()
    driver.abort("leave")
