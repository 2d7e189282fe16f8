"""What callers see of a stored run: plain frozen structs with decoded values and real instants."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Literal, TypeVar

import msgspec
import whenever

from streamline_trio._core import payload
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import (
    CompensationDoc,
    CompensationStatus,
    ErrorDoc,
    ForkedFrom,
    Lease,
    Parent,
    Record,
    RunDoc,
    SlotDoc,
    StepDoc,
)
from streamline_trio._core.due import due_since
from streamline_trio._core.durations import instant_of
from streamline_trio._core.joins import bits_of
from streamline_trio._core.plan import Plan
from streamline_trio._core.rollback import in_undo_order
from streamline_trio._core.slots import parts_of
from streamline_trio._core.status import RunStatus, StepStatus
from streamline_trio._core.tenancy import public_id
from streamline_trio._runtime.history import OutputVersion, output_versions


class RunError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a step or run failed: `code` is one of ours, or the exception's own."""

    code: str
    message: str
    type: str = ""
    step: str | None = None
    traceback: str | None = None


class WaitState(msgspec.Struct, frozen=True, kw_only=True):
    """An open wait of a step: for a timer, a person (`human`), a signal, a child or a join.

    `approval`: the person is to approve or reject. `child` is the run id of a child. Of a join, `policy` and how
    many `branches` it has, of which `started` have been started and `ended` have settled; the run id of one is
    `child`, a hyphen, and its number from 0.
    """

    kind: str
    opened_at: whenever.Instant
    due_at: whenever.Instant | None = None
    name: str = ""
    reason: str = ""
    signal: str = ""
    meta: dict[str, Any] = {}
    child: str = ""
    policy: str = ""
    branches: int = 0
    started: int = 0
    ended: int = 0
    approval: bool = False


class ScheduledStart(msgspec.Struct, frozen=True, kw_only=True):
    """When the run was to start, and what the zone's rules made of a local time.

    `schedule` is the id of the schedule that started the run, if one did; `at` is then the occurrence.
    """

    at: whenever.Instant
    local: str = ""
    zone: str = ""
    gap: bool = False
    fold: bool = False
    schedule: str = ""


class CompensationState(msgspec.Struct, frozen=True, kw_only=True):
    """How the undoing of a step stands; `attempts` counts calls of the compensation, crashed ones included."""

    status: CompensationStatus
    attempts: int = 0
    error: RunError | None = None
    started_at: whenever.Instant | None = None
    ended_at: whenever.Instant | None = None
    retry_at: whenever.Instant | None = None


class RunCompensation(msgspec.Struct, frozen=True, kw_only=True):
    """What of a run is undone, and what is to be, in that order; `pending` in a settled run: it was cancelled."""

    steps: dict[str, CompensationStatus]


class StepState(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a run. `duration` is in seconds; `wait` is the first open wait.

    `history` holds earlier outputs, as far as `keep_outputs` allows; `pinned` is the version that the output was
    taken from, if it was.
    """

    id: str
    status: StepStatus
    attempts: int = 0
    started_at: whenever.Instant | None = None
    ended_at: whenever.Instant | None = None
    duration: float | None = None
    output: Any = None
    error: RunError | None = None
    wait: WaitState | None = None
    retry_at: whenever.Instant | None = None
    checkpoints: dict[str, Any] = {}
    history: tuple[OutputVersion, ...] = ()
    pinned: int | None = None
    compensation: CompensationState | None = None


class RunSlot(msgspec.Struct, frozen=True, kw_only=True):
    """How the run stands to the slots of its workflow's `Concurrency`; `key` is None for one without keys.

    `later`: it asks for one at its start time; `queued`: it waits for one; `held`: it has one until it settles.
    """

    state: Literal["later", "queued", "held"]
    key: str | None
    limit: int


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run, as it was stored when it was read. `steps` holds every step of the definition, in order.

    `held_by` says what puts its begin off: its workflow's throttle or debounce; `due_at` is then its slot.
    """

    id: str
    workflow: str
    version: str
    status: RunStatus
    steps: dict[str, StepState]
    current_step: str | None
    input: Any
    state: Any
    output: Any
    error: RunError | None
    created_at: whenever.Instant
    updated_at: whenever.Instant
    started_at: whenever.Instant | None
    ended_at: whenever.Instant | None
    due_at: whenever.Instant | None
    scheduled: ScheduledStart | None
    paused: bool
    priority: int
    tenant: str | None
    user: str | None
    tags: tuple[str, ...]
    meta: dict[str, Any]
    idempotency_key: str | None
    parent: Parent | None
    lease: Lease | None
    fence: int
    revision: int
    recoveries: int
    cancel_requested: bool
    cancel_reason: str | None
    compensation: RunCompensation | None = None
    forked_from: ForkedFrom | None = None
    slot: RunSlot | None = None
    held_by: Literal["throttle", "debounce"] | None = None


_plain = payload.decoder(Any)
RunT = TypeVar("RunT", Parent, ForkedFrom)


def snapshot(run: RunDoc, plan: Plan | None, workflow: Workflow[Any, Any] | None) -> Run:
    """The public view; values in their declared types if the definition is at hand, else plain data."""
    origin, head = run.origin, run.head
    steps = _steps(run, plan, workflow)
    return Run(
        id=run.public_id,
        workflow=origin.workflow,
        version=head.version,
        status=head.status,
        steps=steps,
        current_step=head.current_step,
        input=(_plain if workflow is None else workflow.input_decoder).decode(origin.input, what="input"),
        state=(_plain if workflow is None else workflow.state_decoder(origin.input)).decode(
            run.state, what="state"
        ),
        output=_output(run, steps),
        error=_error(head.error),
        created_at=instant_of(origin.created_at),
        updated_at=instant_of(head.updated_at),
        started_at=_instant(head.started_at),
        ended_at=_instant(head.ended_at),
        due_at=_instant(due_since(origin, head)),
        scheduled=_scheduled(run),
        paused=head.paused,
        priority=origin.priority,
        tenant=origin.tenant,
        user=origin.user,
        tags=origin.tags,
        meta={} if origin.meta is None else msgspec.msgpack.decode(origin.meta),
        idempotency_key=origin.idempotency_key,
        parent=_named(origin.parent),
        lease=head.lease,
        fence=head.fence,
        revision=head.revision,
        recoveries=head.recoveries,
        cancel_requested=head.cancel_requested,
        cancel_reason=head.cancel_reason,
        compensation=_undone(run),
        forked_from=_named(origin.forked_from),
        slot=_slot(head.slot),
        held_by=_held_by(run),
    )


def _slot(slot: SlotDoc | None) -> RunSlot | None:
    if slot is None or slot.state == "left":
        return None
    state = "queued" if slot.state == "asked" else slot.state
    return RunSlot(state=state, key=parts_of(slot.bucket)[2], limit=slot.limit)


def _held_by(run: RunDoc) -> Literal["throttle", "debounce"] | None:
    throttle, debounce = run.head.throttle, run.head.debounce
    if throttle is not None and throttle.stage == "held" and run.head.status in {"draft", "running"}:
        return "throttle"
    if debounce is not None and not debounce.fired and run.head.status == "draft":
        return "debounce"
    return None


def output_of(run: RunDoc, workflow: Workflow[Any, Any] | None) -> Any:
    """The output of the last step that ran, of a run that is done; in its declared type if that is at hand."""
    step_id = run.head.output_step
    doc = None if step_id is None else run.steps.get(step_id)
    return None if step_id is None or doc is None else _decoded(doc.output, step_id, workflow)


def _decoded(output: bytes | None, step_id: str, workflow: Workflow[Any, Any] | None) -> Any:
    if output is None:
        return None
    step = None if workflow is None else workflow.steps.get(step_id)
    return (_plain if step is None else step.decoder).decode(output, what=f"output of {step_id}")


def _output(run: RunDoc, steps: dict[str, StepState]) -> Any:
    """The output of the last step that ran, once the run is done."""
    if run.head.status != "done" or run.head.output_step is None:
        return None
    step = steps.get(run.head.output_step)
    return None if step is None else step.output


def _steps(run: RunDoc, plan: Plan | None, workflow: Workflow[Any, Any] | None) -> dict[str, StepState]:
    order = list(run.steps) if plan is None else [step.id for step in plan.steps]
    known = set(order)
    order += [step_id for step_id in run.steps if step_id not in known]
    checkpoints = _checkpoints(run)
    return {step_id: _step(step_id, run, workflow, checkpoints.get(step_id, {})) for step_id in order}


def _step(step_id: str, run: RunDoc, workflow: Workflow[Any, Any] | None, checkpoints: dict[str, Any]) -> StepState:
    doc = run.steps.get(step_id)
    if doc is None:
        return StepState(id=step_id, status="pending")
    return StepState(
        id=step_id,
        status=doc.status,
        attempts=doc.attempts,
        started_at=_instant(doc.started_at),
        ended_at=_instant(doc.ended_at),
        duration=_duration(doc),
        output=_decoded(doc.output, step_id, workflow),
        error=_error(doc.error),
        wait=_wait(run) if step_id == run.head.current_step else None,
        retry_at=_instant(doc.retry_at),
        checkpoints=checkpoints,
        history=_history(doc, step_id, workflow) if doc.history else (),
        pinned=doc.pinned,
        compensation=_compensation(step_id, run),
    )


def _compensation_of(step_id: str, run: RunDoc) -> CompensationDoc | None:
    """The step's compensation; one that is still to begin is pending."""
    begun = run.step(step_id).compensation
    return CompensationDoc() if begun is None and step_id in run.head.undo else begun


def _compensation(step_id: str, run: RunDoc) -> CompensationState | None:
    doc = _compensation_of(step_id, run)
    if doc is None:
        return None
    return CompensationState(
        status=doc.status,
        attempts=doc.attempts,
        error=_error(doc.error),
        started_at=_instant(doc.started_at),
        ended_at=_instant(doc.ended_at),
        retry_at=_instant(doc.retry_at),
    )


def _undone(run: RunDoc) -> RunCompensation | None:
    found = {step_id: _compensation_of(step_id, run) for step_id in run.steps}
    known: dict[str, CompensationStatus] = {
        step_id: doc.status for step_id, doc in found.items() if doc is not None
    }
    if not known:
        return None
    return RunCompensation(steps={step_id: known[step_id] for step_id in in_undo_order(run.steps, known)})


def _history(doc: StepDoc, step_id: str, workflow: Workflow[Any, Any] | None) -> tuple[OutputVersion, ...]:
    step = None if workflow is None else workflow.steps.get(step_id)
    return output_versions(doc, step_id, None if step is None else step.decoder)


def _checkpoints(run: RunDoc) -> dict[str, dict[str, Any]]:
    """Each step's checkpoints."""
    found = defaultdict[str, dict[str, Any]](dict)
    for key, value in run.checkpoints.items():
        step_id, _, name = key.partition("/")
        found[step_id][name] = _plain.decode(value, what="checkpoint")
    return found


def _wait(run: RunDoc) -> WaitState | None:
    waits = sorted((record for record in run.records.values() if record.is_open), key=_age)
    return wait_state(waits[0]) if waits else None


def _age(record: Record) -> tuple[int, int]:
    return record.opened_at, record.place


def wait_state(record: Record) -> WaitState:
    """The public view of an open wait."""
    return WaitState(
        kind=record.kind,
        opened_at=instant_of(record.opened_at),
        due_at=_instant(record.due_at),
        name=record.name,
        reason=record.reason,
        signal=record.signal,
        meta={} if record.meta is None else msgspec.msgpack.decode(record.meta),
        child=record.group,
        policy=record.policy,
        branches=record.branches,
        started=record.started,
        ended=bits_of(record.ended).bit_count(),
        approval=record.approval,
    )


def _duration(doc: StepDoc) -> float | None:
    if doc.started_at is None or doc.ended_at is None:
        return None
    return (doc.ended_at - doc.started_at) / 1000


def _error(error: ErrorDoc | None) -> RunError | None:
    if error is None:
        return None
    return RunError(
        code=error.code, message=error.message, type=error.type, step=error.step, traceback=error.traceback
    )


def _named(other: RunT | None) -> RunT | None:
    """The run that another one tells of, by the id that its tenant knows."""
    return None if other is None else msgspec.structs.replace(other, run=public_id(other.run))


def _scheduled(run: RunDoc) -> ScheduledStart | None:
    told = run.origin.scheduled
    if told is None:
        return None
    return ScheduledStart(
        at=instant_of(told.at),
        local=told.local,
        zone=told.zone,
        gap=told.gap,
        fold=told.fold,
        schedule=told.schedule,
    )


def _instant(millis: int | None) -> whenever.Instant | None:
    return None if millis is None else instant_of(millis)
