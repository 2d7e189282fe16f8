"""The one way in: what every new run passes, however it comes about, and every run that is taken up again.

A run of a workflow with a `Concurrency` is stored first, as a draft that wants a slot; its outbox says that
somebody has to look for one. The process that stored it does so at once, any worker should that process die.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import trio

from streamline_trio._core.decide import Decision, StartRequest, admit, has_same_cause
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import WANTS_SLOT, RunDoc, SlotDoc, unique_key
from streamline_trio._core.errors import ConcurrencyLimitReached, InvalidState, StoreUnavailable, StreamlineError
from streamline_trio._core.happenings import Happening, SlotAsked, SlotRefused, TakenUp
from streamline_trio._core.slots import parts_of
from streamline_trio._core.store import Applied, Failed, Insert, KeyTaken
from streamline_trio._core.tenancy import public_id
from streamline_trio._runtime.committer import Outcome
from streamline_trio._runtime.machinery import Machinery
from streamline_trio._runtime.pacing import enter_soon
from streamline_trio._runtime.services import Services
from streamline_trio._runtime.slots import Answer

_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5


async def begin(machinery: Machinery, workflow: Workflow[Any, Any], request: StartRequest) -> str:
    """The stored id of the new run, or of the active one that holds the same key.

    Returns once it is stored, and if it needs a slot, once it has one, queues, or `ConcurrencyLimitReached`.
    """
    while True:
        with_slot = _renewed(machinery.services, request)
        try:
            outcome = await _store(machinery, with_slot, workflow)
        except LostSlot:
            continue
        if isinstance(outcome, Applied):
            return request.origin.id
        if isinstance(outcome, Failed):
            raise outcome.error
        if isinstance(outcome, StoreUnavailable):
            raise StoreUnavailable(f"run {public_id(request.origin.id)} may or may not have started") from outcome
        if isinstance(outcome, KeyTaken):
            found: str | None = outcome.holder
        else:
            found = await _why_refused(machinery, request)
        if found is not None and await _is_decided(machinery, request, found):
            return found


def _renewed(services: Services, request: StartRequest) -> StartRequest:
    """Each try is a wish of its own."""
    if request.slot is None:
        return request
    slot = msgspec.structs.replace(request.slot, acquisition=services.chance.commit_id())
    return msgspec.structs.replace(request, slot=slot)


async def _store(machinery: Machinery, request: StartRequest, workflow: Workflow[Any, Any]) -> Outcome:
    slot = request.slot
    if slot is None or slot.state not in WANTS_SLOT:
        return await _insert(machinery, workflow, request)
    return await admitted(
        machinery, slot, request.origin.id, workflow.id, lambda: _insert(machinery, workflow, request)
    )


async def admitted(
    machinery: Machinery, slot: SlotDoc, run_id: str, workflow: str, store: Callable[[], Awaitable[Outcome]]
) -> Outcome:
    """Store a draft that wants a slot; returns once that is decided, or raises that there is none.

    Raises `LostSlot` if it was dropped because we were taken for dead: then it was not started.
    """
    answer = machinery.slots.expect(slot.acquisition)
    try:
        outcome = await store()
        if isinstance(outcome, Applied):
            await _require_slot(machinery, slot, answer, run_id, workflow)
        return outcome
    finally:
        machinery.slots.forget(slot.acquisition)


async def _require_slot(machinery: Machinery, slot: SlotDoc, answer: Answer, run_id: str, workflow: str) -> None:
    """Wait for the answer. One that queues is safe without; what is refused is to be told."""
    came = await answer.wait(machinery.services.options.lease)
    if not slot.rejects or answer.is_granted:
        return
    if not came:
        raise StoreUnavailable(
            f"run {public_id(run_id)} may or may not have got its slot: the store does not answer"
        )
    if answer.holding < slot.limit:
        raise LostSlot
    raise limit_reached(slot, answer.holding, workflow)


def limit_reached(slot: SlotDoc, holding: int, workflow: str) -> ConcurrencyLimitReached:
    """The error for who is refused."""
    _, _, key = parts_of(slot.bucket)
    of = "" if key is None else f" of {key!r}"
    return ConcurrencyLimitReached(
        f"{holding} runs of workflow {workflow}{of} go on already, and the limit is {slot.limit}",
        workflow=workflow,
        key=key,
        limit=slot.limit,
        holding=holding,
    )


async def _is_decided(machinery: Machinery, request: StartRequest, holder: str) -> bool:
    """Whether the run is there to stay; one that may yet be refused is waited for, and False if it was."""
    if request.slot is None:
        return True
    services, pause = machinery.services, _FIRST_PAUSE
    while True:
        run = await services.read(lambda: services.store.load(holder))
        if run is None:
            return False
        slot = run.head.slot
        if slot is None or slot.state != "asked" or not slot.attended:
            return True
        await trio.sleep(pause * (0.5 + services.chance.roll()))
        pause = min(pause * 2, _LONGEST_PAUSE)


async def _why_refused(machinery: Machinery, request: StartRequest) -> str | None:
    """The id exists: ours after all, somebody's key, or a clash; None: it is gone again."""
    store, origin = machinery.services.store, request.origin
    if origin.idempotency_key is not None:
        key = unique_key(origin.tenant, origin.workflow, origin.idempotency_key)
        holder = await machinery.services.read(lambda: store.by_active_key(key))
        if holder is not None:
            return holder.origin.id
    stored = await machinery.services.read(lambda: store.load(origin.id))
    if stored is None:
        return None
    if has_same_cause(stored.origin, origin):
        return origin.id
    raise InvalidState(
        f"cannot start run {stored.public_id}: the id is in use",
        action="start",
        status=stored.head.status,
        allowed=(),
        run_id=stored.public_id,
    )


async def _insert(machinery: Machinery, workflow: Workflow[Any, Any], request: StartRequest) -> Outcome:
    """Insert the run; the committer, not the caller, sees to it that it is driven once it is stored."""
    services = machinery.services
    worker = await _worker_for(machinery, request)
    decision = admit(request, workflow.plan, services.clock.now(), worker)
    outcomes: list[Outcome] = []
    told = trio.Event()
    slotted: trio.Event | None = None

    def tell(outcome: Outcome) -> None:
        nonlocal slotted
        outcomes.append(outcome)
        _inserted(machinery, workflow, decision, outcome, reserved=worker is not None)
        if isinstance(outcome, Applied):
            slotted = enter_soon(machinery, decision.run, workflow)
        told.set()

    services.committer.post(Insert(decision.run), tell)
    await told.wait()
    if slotted is not None:
        await slotted.wait()
    return outcomes[0]


async def _worker_for(machinery: Machinery, request: StartRequest) -> str | None:
    """Our worker's id with a place reserved, if the run may begin here and now."""
    await trio.lowlevel.checkpoint_if_cancelled()
    worker = machinery.worker.id
    if not machinery.is_worker or not _may_begin(request) or worker is None:
        return None
    if machinery.claimer.is_behind:
        return None  # it stands in line
    return worker if machinery.crew.try_reserve(request.origin.id) else None


def _may_begin(request: StartRequest) -> bool:
    """Whether nothing keeps it from beginning at once."""
    return request.start_at is None and request.slot is None and request.throttle is None


def _inserted(
    machinery: Machinery,
    workflow: Workflow[Any, Any],
    decision: Decision,
    outcome: Outcome,
    *,
    reserved: bool,
) -> None:
    run: RunDoc = decision.run
    if isinstance(outcome, Applied):
        machinery.services.committed(run, (decision,))
        if reserved:
            machinery.crew.drive(run, workflow)
    elif reserved:
        machinery.crew.cancel_reservation(run.origin.id)


# --- taking up again ---------------------------------------------------------------------------------------


async def take_up(machinery: Machinery, run_id: str, happening: TakenUp, known: RunDoc | None = None) -> RunDoc:
    """Let a run go on that may have settled; where its workflow does not queue, only with a slot in hand.

    Raises `ConcurrencyLimitReached` with the run as it was.
    """
    services = machinery.services
    while True:
        acquisition = services.chance.commit_id()
        ticket = services.chance.ticket(services.clock.now())
        happening = msgspec.structs.replace(happening, acquisition=acquisition, ticket=ticket)
        try:
            return await machinery.act_once(run_id, happening, known)
        except ConcurrencyLimitReached:
            known = None  # it takes a slot first
        answer = machinery.slots.expect(acquisition)
        try:
            asking = await machinery.act_once(run_id, SlotAsked(acquisition=acquisition, ticket=ticket))
            slot = asking.head.slot
            if slot is None or slot.acquisition != acquisition:
                await trio.sleep(_LONGEST_PAUSE * services.chance.roll())  # somebody else takes it up
                continue
            await _require_slot(machinery, slot, answer, run_id, asking.origin.workflow)
            return await _go_on(machinery, run_id, happening)
        except LostSlot:
            continue
        finally:
            machinery.slots.forget(acquisition)


class LostSlot(Exception):
    """We were taken for dead while we wanted it, or had it."""


async def _go_on(machinery: Machinery, run_id: str, happening: TakenUp) -> RunDoc:
    """With the slot; it is given back if the run cannot go on after all."""
    try:
        return await machinery.act_once(run_id, happening)
    except ConcurrencyLimitReached as error:
        raise LostSlot from error
    except StreamlineError:
        refusal: Happening = SlotRefused(acquisition=happening.acquisition)
        await machinery.act_once(run_id, refusal)
        raise
