"""One decision in the making: reads the old run, gathers what changes, builds the new run.

Rules check first and change after; a rule that raises leaves nothing behind, since the run it was given is
immutable and the turn is thrown away.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

import msgspec

from streamline_trio._core.decide import outbox, slotting
from streamline_trio._core.documents import (
    KEPT_COMMITS,
    KEPT_TRIES,
    KEPT_WAITS,
    ErrorDoc,
    Head,
    Lease,
    Outcome,
    Record,
    RunDoc,
    StepDoc,
    Try,
    WaitNote,
)
from streamline_trio._core.due import due_at
from streamline_trio._core.errors import DataCorruption, InvalidState, LeaseLost
from streamline_trio._core.events import (
    Event,
    StepFailed,
    StepStarted,
    WorkflowCancelled,
    WorkflowCompensating,
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowResumed,
)
from streamline_trio._core.happenings import Held
from streamline_trio._core.plan import Plan
from streamline_trio._core.rollback import steps_to_undo
from streamline_trio._core.status import RunStatus, StepStatus, check_run_transition, check_step_transition
from streamline_trio._core.store import Touched

_replace = msgspec.structs.replace


MapName = Literal["steps", "records", "pieces", "checkpoints", "memos", "inbox", "seen", "outbox"]


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The next run, and what to publish once it is committed. Nothing to do: `run` is the same object.

    `touched` names the entries of the run's maps that may differ from before.
    """

    run: RunDoc
    touched: Touched = {}
    _at: int = 0
    _facts: Sequence[tuple[type[Event], dict[str, Any]]] = ()

    @property
    def events(self) -> tuple[Event, ...]:
        """The events, made when they are asked for: mostly nobody listens."""
        origin, revision = self.run.origin, self.run.head.revision
        return tuple(
            event(
                run_id=self.run.public_id,
                workflow=origin.workflow,
                tenant=origin.tenant,
                revision=revision,
                at_millis=self._at,
                **fields,
            )
            for event, fields in self._facts
        )


class Turn:
    """The working copy of a run during one decision."""

    __slots__ = (
        "_facts",
        "_head",
        "_touched",
        "cancel_requested",
        "checkpoints",
        "current_step",
        "goes_on_undoing",
        "inbox",
        "lease",
        "memos",
        "now",
        "origin",
        "outbox",
        "paused",
        "pieces",
        "plan",
        "records",
        "run",
        "seen",
        "state",
        "status",
        "steps",
        "undo",
    )

    def __init__(self, run: RunDoc, plan: Plan, now: int) -> None:
        head = run.head
        self.run = run
        self.origin = run.origin
        self.plan = plan
        self.now = now
        self.status: RunStatus = head.status
        self.lease: Lease | None = head.lease
        self.current_step: str | None = head.current_step
        self.paused = head.paused
        self.cancel_requested = head.cancel_requested
        self.undo: tuple[str, ...] = head.undo
        self.goes_on_undoing: bool = False
        self.steps = run.steps
        self.records = run.records
        self.checkpoints = run.checkpoints
        self.memos = run.memos
        self.inbox = run.inbox
        self.seen = run.seen
        self.pieces = run.pieces
        self.outbox = run.outbox
        self.state = run.state
        self._head: dict[str, Any] = {}
        self._facts: list[tuple[type[Event], dict[str, Any]]] = []
        self._touched: dict[str, set[str]] = {}

    # --- reading -------------------------------------------------------------------------------------------

    @property
    def head(self) -> Head:
        """The head as it was before this turn; what the turn changes is in its own attributes."""
        return self.run.head

    def step(self, step_id: str) -> StepDoc:
        """A step as it is now."""
        return self.steps.get(step_id) or _PENDING

    def current(self) -> str:
        """The current step's id; a run without one is corrupt."""
        if self.current_step is None:
            raise DataCorruption(
                f"run {self.run.public_id} is {self.status} without a current step", run_id=self.run.public_id
            )
        return self.current_step

    def require_held(self, happening: Held) -> None:
        """Raise `LeaseLost` unless the run is leased to this worker under this fence."""
        lease = self.lease
        if lease is None or lease.fence != happening.fence or lease.worker != happening.worker:
            raise LeaseLost(f"the lease on run {self.run.public_id} is no longer ours", run_id=self.run.public_id)

    def require_running(self, step_id: str) -> StepDoc:
        """The step, which must be the current one and running."""
        step = self.step(step_id)
        if self.current_step != step_id or step.status != "running":
            raise self.invalid("report on", f"step {step_id} is not the one that runs", "running")
        return step

    def invalid(self, action: str, why: str, *allowed: str) -> InvalidState:
        """The error for a verb that the run's state does not allow."""
        return InvalidState(
            f"cannot {action} run {self.run.public_id}, which is {self.status}: {why}",
            action=action,
            status=self.status,
            allowed=allowed,
        )

    @property
    def is_overdue(self) -> bool:
        """Whether the run's own deadline has passed."""
        deadline = self.changed("deadline")
        return deadline is not None and deadline <= self.now

    # --- changing ------------------------------------------------------------------------------------------

    def change(self, **fields: Any) -> None:
        """Set fields of the head."""
        self._head.update(fields)

    def changed(self, field: str) -> Any:
        """A head field as it is now."""
        return self._head.get(field, getattr(self.run.head, field))

    def emit(self, event: type[Event], **fields: Any) -> None:
        """Publish this once the turn is committed."""
        self._facts.append((event, fields))

    def to(self, status: RunStatus) -> None:
        """Move the run to a status; staying is no move."""
        if status != self.status:
            check_run_transition(self.run.public_id, self.status, status)
            self.status = status

    def put(self, name: MapName, key: str, value: Any) -> None:
        """Set an entry of one of the run's maps."""
        touched = self._touched.get(name) or self._own(name)
        touched.add(key)
        getattr(self, name)[key] = value

    def drop(self, name: MapName, keys: Collection[str]) -> None:
        """Remove entries of one of the run's maps."""
        if keys:
            touched = self._touched.get(name) or self._own(name)
            touched.update(keys)
            entries = getattr(self, name)
            for key in keys:
                del entries[key]

    def touched(self, name: MapName) -> Collection[str]:
        """The entries of one of the run's maps that this turn has set or removed."""
        return self._touched.get(name, ())

    def _own(self, name: MapName) -> set[str]:
        """Make the map one that this turn may change: a copy, since others share the one of the run before."""
        setattr(self, name, getattr(self, name).copy())
        touched = self._touched[name] = set()
        return touched

    def put_step(self, step_id: str, step: StepDoc) -> None:
        """Replace a step's document."""
        touched = self._touched.get("steps") or self._own("steps")
        touched.add(step_id)
        self.steps[step_id] = step

    def move_step(self, step_id: str, status: StepStatus, **fields: Any) -> StepDoc:
        """Move a step to a status, checked against the table, and set fields of it."""
        step = self.steps.get(step_id) or _PENDING
        check_step_transition(self.run.public_id, step_id, step.status, status)
        step = _replace(step, status=status, **fields)
        self.put_step(step_id, step)
        return step

    def put_record(self, key: str, record: Record) -> None:
        """Replace a record of the current step."""
        self.put("records", key, record)

    def drop_records(self, *, keep_outcomes: bool) -> None:
        """Forget the step's records, the open ones (a note of them remains), or all, and then its pieces too."""
        if self.records:
            self._note_dropped()
            self.drop("records", [k for k, r in self.records.items() if not keep_outcomes or r.outcome is None])
        if self.pieces and not keep_outcomes:
            self.drop("pieces", list(self.pieces))

    def _note_dropped(self) -> None:
        dropped = tuple(_note(record, self.now, "dropped") for record in self.records.values() if record.is_open)
        if dropped and self.current_step in self.steps:
            step = self.steps[self.current_step]
            self.put_step(self.current_step, _replace(step, waits=(*step.waits, *dropped)[-KEPT_WAITS:]))

    # --- shared moves --------------------------------------------------------------------------------------

    def begin(self, step_id: str, worker: str) -> None:
        """Call the step's handler: its next attempt."""
        step = self.move_step(
            step_id,
            "running",
            attempts=(self.steps.get(step_id) or _PENDING).attempts + 1,
            started_at=self.now,
            ended_at=None,
            retry_at=None,
            worker=worker,
            undoable=step_id in self.plan.compensations,
        )
        self.current_step = step_id
        self.emit(StepStarted, step=step_id, attempt=step.attempts)

    def release(self) -> None:
        """Give the lease back; a run that could go on is ready from now."""
        self.lease = None
        self.change(attention=False)
        if self.status in {"running", "compensating"}:
            self.ready()

    def ready(self) -> None:
        """The run wants a worker from now."""
        self.change(ready_at=self.now)

    def wake(self) -> None:
        """A wait has come to something: a parked run is ready, the holder of another is asked to look."""
        if self.lease is not None:
            self.change(attention=True)
            return
        step_id = self.current()
        if self.step(step_id).status == "waiting":
            self.move_step(step_id, "running")
            self.to("running")
            self.ready()
            self.emit(WorkflowResumed, step=step_id)

    def note_crash(self, step_id: str, lost_worker: str) -> None:
        """The attempt that was under way ended with its worker."""
        step = self.step(step_id)
        crash = self._try(step, "crashed", lost_worker)
        self.move_step(step_id, "pending", tries=(*step.tries, crash)[-KEPT_TRIES:])

    def note_failure(self, step_id: str, error: ErrorDoc) -> StepDoc:
        """Count a failed attempt; the step stays as it is."""
        step = self.step(step_id)
        holder = "" if self.lease is None else self.lease.worker
        failure = self._try(step, "failed", holder, error)
        step = _replace(step, failures=step.failures + 1, error=error, tries=(*step.tries, failure)[-KEPT_TRIES:])
        self.put_step(step_id, step)
        return step

    def _try(self, step: StepDoc, outcome: Any, worker: str, error: ErrorDoc | None = None) -> Try:
        return Try(
            attempt=step.attempts,
            worker=worker,
            started_at=self.now if step.started_at is None else step.started_at,
            ended_at=self.now,
            outcome=outcome,
            code=error.code if error else "",
            message=error.message if error else "",
        )

    def resolve(self, key: str, outcome: Outcome, *, value: bytes | None = None, note: str | None = None) -> None:
        """Give an open record its outcome, and keep a note of it for the timeline."""
        record = self.records[key]
        self.put_record(
            key, _replace(record, outcome=outcome, value=value, note=note, resolved_at=self.now, tokens=())
        )
        wait = _note(record, self.now, outcome)
        step_id = self.current()
        step = self.step(step_id)
        self.put_step(step_id, _replace(step, waits=(*step.waits, wait)[-KEPT_WAITS:]))

    def settle_done(self) -> None:
        """Every step has finished."""
        self.settle("done")
        self.current_step = None
        self.emit(WorkflowCompleted)

    def settle_failed(self, error: ErrorDoc) -> None:
        """The run fails; a step that had not come to its end fails with it.

        What it did is undone before it rests.
        """
        self._end_current_step(error)
        undo = steps_to_undo(self.steps, self.plan)
        if undo:
            self.to("failed")
        else:
            self.settle("failed")
        self.change(error=error)
        self.emit(WorkflowFailed, code=error.code, message=error.message, step=error.step, compensating=bool(undo))
        self._turn_back(undo)

    def settle_cancelled(self, reason: str | None) -> None:
        """The run is cancelled; a step that had not come to its end fails with it.

        If the workflow says so, what it did is undone before it rests; a run that undoes already stops doing so.
        """
        text = "the run was cancelled" + (f": {reason}" if reason else "")
        self._end_current_step(ErrorDoc(code="workflow.cancelled", message=text, step=self.current_step))
        undo: tuple[str, ...] = ()
        if self.status == "compensating":
            self._stop_undoing()
        elif self.plan.compensate_on_cancel:
            undo = steps_to_undo(self.steps, self.plan)
        if not undo:
            self.settle("cancelled")
        self.cancel_requested = not undo
        self.change(cancel_reason=reason, cancel_requested=not undo)
        self.emit(WorkflowCancelled, reason=reason, compensating=bool(undo))
        self._turn_back(undo)

    def _turn_back(self, undo: tuple[str, ...]) -> None:
        """From here on the run undoes its steps; its deadline was one for doing them."""
        if not undo:
            return
        self.to("compensating")
        self.undo = undo
        self.goes_on_undoing = True
        self.change(deadline=None, retried=False, streak=0)
        self.drop_records(keep_outcomes=False)
        self.emit(WorkflowCompensating, steps=undo)

    def _stop_undoing(self) -> None:
        """The compensation that was under way has not come to its end, and will not."""
        for step_id in self.undo[:1]:
            step = self.step(step_id)
            if step.compensation is not None:
                stopped = _replace(step.compensation, status="pending", retry_at=None)
                self.put_step(step_id, _replace(step, compensation=stopped))

    def _end_current_step(self, error: ErrorDoc) -> None:
        step_id = self.current_step
        if step_id is None:
            return
        step = self.step(step_id)
        if step.status in {"running", "waiting"}:
            self.move_step(step_id, "failed", error=error, ended_at=self.now, retry_at=None)
            self.emit(StepFailed, step=step_id, attempt=step.attempts, code=error.code, message=error.message)
        elif step.retry_at is not None:
            self.put_step(step_id, _replace(step, retry_at=None))

    def settle(self, status: RunStatus) -> None:
        """The run comes to rest in this status."""
        self.to(status)
        self.lease = None
        self.paused = False
        self.change(ended_at=self.now, attention=False, ready_at=None, pause_reason=None, retried=False)
        slotting.leave(self)
        self.drop_records(keep_outcomes=status in {"failed", "compensation_failed"})

    # --- the result ----------------------------------------------------------------------------------------

    def build(self, commit: int | None) -> Decision:
        """The next run: one revision on, its due time computed, stamped with the commit's id.

        What is decided on the result of the same commit belongs to it, and to its revision.
        """
        outbox.fill(self)
        if self.run.head.slot is not None or "slot" in self._head:
            slotting.fill(self)
        if "outbox" in self._touched:
            self.change(errand_at=min((errand.due_at for errand in self.outbox.values()), default=None))
        before = self.run.head
        merged = commit is not None and before.commits[-1:] == (commit,)
        head = _replace(
            before,
            status=self.status,
            lease=self.lease,
            current_step=self.current_step,
            paused=self.paused,
            undo=self.undo,
            revision=before.revision + (not merged),
            updated_at=max(self.now, before.updated_at),
            due_at=None,
            commits=before.commits if merged or commit is None else (*before.commits[1 - KEPT_COMMITS :], commit),
            **self._head,
        )
        if head.lease is None:
            stands_at = self.undo[0] if self.status == "compensating" else self.current_step
            step = None if stands_at is None else self.step(stands_at)
            head = _replace(head, due_at=due_at(head, step, self.records.values()))
        run = RunDoc(
            origin=self.origin,
            head=head,
            state=self.state,
            steps=self.steps,
            records=self.records,
            checkpoints=self.checkpoints,
            memos=self.memos,
            inbox=self.inbox,
            seen=self.seen,
            pieces=self.pieces,
            outbox=self.outbox,
        )
        return Decision(run, self._touched, self.now, self._facts)


def _note(record: Record, now: int, outcome: Outcome | Literal["dropped"]) -> WaitNote:
    return WaitNote(
        kind=record.kind,
        name=record.signal or record.name or record.reason,
        opened_at=record.opened_at,
        resolved_at=now,
        outcome=outcome,
    )


_PENDING = StepDoc()
