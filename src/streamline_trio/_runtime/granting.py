"""Tells a run that it has its slot; where there is a worker with a free place, the same write begins it."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from streamline_trio._core.decide import Decision, decide
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import DataCorruption, StoreUnavailable, StreamlineError
from streamline_trio._core.happenings import Claimed, SlotGranted
from streamline_trio._core.plan import Plan
from streamline_trio._core.slots import has_use_for
from streamline_trio._core.status import SETTLED
from streamline_trio._core.store import Applied, Failed, Touched, Update
from streamline_trio._runtime.committer import Outcome
from streamline_trio._runtime.machinery import Machinery

_NO_PLAN = Plan(workflow="", version="", fingerprint="", steps=())
"""To have a slot is a matter of the engine alone: what the definition says does not come into it."""


async def grant(machinery: Machinery, run: RunDoc, acquisition: int) -> bool:
    """Until the run knows; False if it has no use for this slot any more.

    A settled run that somebody wants to take up again is told by whoever wants that.
    """
    known: RunDoc | None = run
    while has_use_for(known, acquisition):
        assert known is not None
        if known.head.slot is None or known.head.slot.state == "held":
            return True
        if known.head.status in SETTLED:
            return await still_used(machinery, run.id, acquisition, None)
        outcome = await _commit(machinery, known, SlotGranted(acquisition=acquisition))
        if isinstance(outcome, Applied):
            return True
        if isinstance(outcome, Failed):
            raise outcome.error
        if isinstance(outcome, StoreUnavailable):
            raise StoreUnavailable(str(outcome)) from outcome
        known = await reload(machinery, run.id)
    return False


async def reload(machinery: Machinery, run_id: str) -> RunDoc | None:
    """The run as it is stored now, or None if there is none; `DataCorruption`."""
    services = machinery.services
    return await services.read(lambda: services.store.load(run_id))


async def still_used(machinery: Machinery, run_id: str, acquisition: int, known: RunDoc | None) -> bool:
    """Whether the run needs the entry; one that cannot be read may."""
    if known is not None:
        return has_use_for(known, acquisition)
    try:
        return has_use_for(await reload(machinery, run_id), acquisition)
    except DataCorruption:
        return True


async def _commit(machinery: Machinery, run: RunDoc, happening: SlotGranted) -> Outcome:
    """One guarded try, which is carried out also if we are not there any more."""
    services = machinery.services
    workflow = _reserve(machinery, run)
    commit, now = services.chance.commit_id(), services.clock.now()
    granted = decide(run, happening, _NO_PLAN, now, commit)
    decisions = [granted]
    if workflow is not None:
        decisions += _claim(machinery, granted.run, workflow, now, commit)
    last = decisions[-1].run
    outcomes: list[Outcome] = []
    done = trio.Event()

    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if isinstance(outcome, Applied):
            services.committed(last, decisions)
        if workflow is not None:
            if isinstance(outcome, Applied) and last.head.lease is not None:
                machinery.crew.drive(last, workflow)
            else:
                machinery.crew.cancel_reservation(run.id)
        done.set()

    services.committer.post(Update(run, last, _touched(decisions)), tell)
    await done.wait()
    return outcomes[0]


def _reserve(machinery: Machinery, run: RunDoc) -> Workflow[object, object] | None:
    """Its definition, with a place reserved, if it may begin here and now.

    A child is left to the claimer, who looks whether its parent still wants it, and so is a throttled run.
    """
    workflow = machinery.registry.workflow_for(run)
    if workflow is None or not machinery.is_worker or machinery.worker.id is None:
        return None
    if run.origin.parent is not None or run.head.paused or workflow.plan.throttle is not None:
        return None
    if machinery.claimer.is_behind:
        return None  # it stands in line
    return workflow if machinery.crew.try_reserve(run.id) else None


def _claim(
    machinery: Machinery, run: RunDoc, workflow: Workflow[object, object], now: int, commit: int
) -> list[Decision]:
    """The claim that goes with the grant; none if the run cannot be claimed as it is."""
    worker = machinery.worker.id
    assert worker is not None
    machinery.claimer.drift.notice(run, workflow.plan)
    happening = Claimed(worker=worker, max_recoveries=machinery.services.options.max_recoveries)
    try:
        return [decide(run, happening, workflow.plan, now, commit)]
    except StreamlineError:
        return []


def _touched(decisions: list[Decision]) -> Touched:
    if len(decisions) == 1:
        return decisions[0].touched
    merged: dict[str, set[str]] = {}
    for decision in decisions:
        touched: Mapping[str, object] = decision.touched
        for name in touched:
            merged.setdefault(name, set()).update(decision.touched[name])
    return merged
