"""Forking a run: one insert of a draft that is due at once and begins in the middle."""

from __future__ import annotations

import trio

from streamline_trio._core.decide import Decision, ForkRequest
from streamline_trio._core.decide import fork as decide_fork
from streamline_trio._core.documents import RunDoc, SlotDoc
from streamline_trio._core.errors import StoreUnavailable
from streamline_trio._core.plan import Plan
from streamline_trio._core.store import Applied, Failed, Insert
from streamline_trio._core.tenancy import public_id, stored_id
from streamline_trio._runtime.admission import LostSlot, admitted
from streamline_trio._runtime.committer import Outcome
from streamline_trio._runtime.machinery import Machinery
from streamline_trio._runtime.slot_wishes import slot_for


async def fork(machinery: Machinery, run_id: str, from_step: str) -> str:
    """The stored id of the new run. It has what was read of the old one, whatever that does meanwhile."""
    services = machinery.services
    run = await machinery.load(run_id)
    plan = await services.read(lambda: machinery.registry.plan_for(run, services.store))
    while True:
        now = services.clock.now()
        new_id = stored_id(run.origin.tenant, services.chance.run_id(now))
        start_id = services.chance.commit_id()
        slot = _slot_of(machinery, run, plan)
        request = ForkRequest(from_step=from_step, id=new_id, start_id=start_id, slot=slot)
        decision = decide_fork(run, request, plan, now)
        try:
            outcome = await _store(machinery, decision, slot)
        except LostSlot:
            continue
        if isinstance(outcome, Applied):
            return new_id
        if isinstance(outcome, Failed):
            raise outcome.error
        if isinstance(outcome, StoreUnavailable):
            raise StoreUnavailable(
                f"run {public_id(new_id)}, a fork of {run.public_id}, may or may not be there"
            ) from outcome


def _slot_of(machinery: Machinery, run: RunDoc, plan: Plan) -> SlotDoc | None:
    """It needs one of the same bucket, by the limit of its version."""
    if plan.concurrency is None:
        return None
    services, slot = machinery.services, run.head.slot
    if slot is None:
        workflow = machinery.registry.workflow_for(run)
        return None if workflow is None else slot_for(services, workflow, run.origin, attended=True)
    rejects = plan.concurrency.when_full == "reject"
    return SlotDoc(
        bucket=slot.bucket,
        limit=plan.concurrency.limit,
        acquisition=services.chance.commit_id(),
        ticket=services.chance.ticket(services.clock.now()),
        state="asked" if rejects else "queued",
        rejects=rejects,
        attended=rejects,
    )


async def _store(machinery: Machinery, decision: Decision, slot: SlotDoc | None) -> Outcome:
    if slot is None:
        return await _insert(machinery, decision)
    new = decision.run.origin
    return await admitted(machinery, slot, new.id, new.workflow, lambda: _insert(machinery, decision))


async def _insert(machinery: Machinery, decision: Decision) -> Outcome:
    """Carried out, and told to whoever claims, also if the caller is gone."""
    outcomes: list[Outcome] = []
    told = trio.Event()

    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if isinstance(outcome, Applied):
            machinery.services.committed(decision.run, (decision,))
        told.set()

    machinery.services.committer.post(Insert(decision.run), tell)
    await told.wait()
    return outcomes[0]
