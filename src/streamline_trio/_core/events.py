"""Facts that the engine publishes after the commit that made them true.

`name` is what listeners match (`step.*`). Each event carries the run it is about, the revision of the commit
that made it true and the instant of that commit; events of one run arrive in the order of their revisions.
`engine.error` (but for compensations), `engine.definition_changed` and `scheduler.circuit_open` have no commit
behind them, and the last no run either.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import whenever

from streamline_trio._core.durations import instant_of


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all events."""

    name: ClassVar[str] = ""
    run_id: str
    workflow: str
    tenant: str | None = None
    revision: int = 0
    at_millis: int = 0

    @property
    def at(self) -> whenever.Instant:
        """When it became true."""
        return instant_of(self.at_millis)


class WorkflowStarted(Event, frozen=True, kw_only=True):
    """The run has begun its first step."""

    name: ClassVar[str] = "workflow.started"


class WorkflowCompleted(Event, frozen=True, kw_only=True):
    """The run is done."""

    name: ClassVar[str] = "workflow.completed"


class WorkflowFailed(Event, frozen=True, kw_only=True):
    """The run has failed. `compensating`: it has not settled, what it did is undone first."""

    name: ClassVar[str] = "workflow.failed"
    code: str = ""
    message: str = ""
    step: str | None = None
    compensating: bool = False


class WorkflowWaiting(Event, frozen=True, kw_only=True):
    """The run is parked."""

    name: ClassVar[str] = "workflow.waiting"
    step: str = ""


class WorkflowResumed(Event, frozen=True, kw_only=True):
    """A wait of a parked run has its outcome; the run goes on when a worker takes it."""

    name: ClassVar[str] = "workflow.resumed"
    step: str = ""


class WorkflowPaused(Event, frozen=True, kw_only=True):
    """Nothing more begins until the run is unpaused."""

    name: ClassVar[str] = "workflow.paused"
    reason: str | None = None


class WorkflowUnpaused(Event, frozen=True, kw_only=True):
    """A paused run may go on."""

    name: ClassVar[str] = "workflow.unpaused"


class WorkflowCancelled(Event, frozen=True, kw_only=True):
    """The run is cancelled. `compensating`: it has not settled, what it did is undone first."""

    name: ClassVar[str] = "workflow.cancelled"
    reason: str | None = None
    compensating: bool = False


class WorkflowCompensating(Event, frozen=True, kw_only=True):
    """The undoing of these steps begins, in this order."""

    name: ClassVar[str] = "workflow.compensating"
    steps: tuple[str, ...] = ()


class WorkflowCompensated(Event, frozen=True, kw_only=True):
    """Everything that was to be undone is undone; the run has settled."""

    name: ClassVar[str] = "workflow.compensated"


class WorkflowCompensationFailed(Event, frozen=True, kw_only=True):
    """The run has settled, and these steps could not be undone."""

    name: ClassVar[str] = "workflow.compensation_failed"
    steps: tuple[str, ...] = ()


class WorkflowRecovered(Event, frozen=True, kw_only=True):
    """The run was taken over from a worker that is gone."""

    name: ClassVar[str] = "workflow.recovered"
    worker: str = ""
    lost_worker: str = ""
    recoveries: int = 0


class WorkflowMigrated(Event, frozen=True, kw_only=True):
    """The run has gone over to another version of its workflow, by that one's `migrate`."""

    name: ClassVar[str] = "workflow.migrated"
    from_version: str = ""
    version: str = ""


class WorkflowRetry(Event, frozen=True, kw_only=True):
    """Somebody asked for what failed to be tried again."""

    name: ClassVar[str] = "workflow.retry"
    step: str | None = None


class WorkflowRewound(Event, frozen=True, kw_only=True):
    """Somebody sent the run back to an earlier step."""

    name: ClassVar[str] = "workflow.rewound"
    step: str = ""


class WorkflowDeadLettered(Event, frozen=True, kw_only=True):
    """The run was recovered too often without progress; `workflow.failed` follows."""

    name: ClassVar[str] = "workflow.dead_lettered"
    recoveries: int = 0


class StepStarted(Event, frozen=True, kw_only=True):
    """A call of the step's handler begins (not a re-entry after a wait)."""

    name: ClassVar[str] = "step.started"
    step: str = ""
    attempt: int = 0


class StepCompleted(Event, frozen=True, kw_only=True):
    """The step is done."""

    name: ClassVar[str] = "step.completed"
    step: str = ""
    attempt: int = 0
    duration: float | None = None


class StepFailed(Event, frozen=True, kw_only=True):
    """The step has failed for good."""

    name: ClassVar[str] = "step.failed"
    step: str = ""
    attempt: int = 0
    code: str = ""
    message: str = ""


class StepRetryScheduled(Event, frozen=True, kw_only=True):
    """An attempt failed; the next one begins at `retry_at`."""

    name: ClassVar[str] = "step.retry_scheduled"
    step: str = ""
    attempt: int = 0
    attempts: int = 0
    retry_at_millis: int = 0
    code: str = ""
    message: str = ""

    @property
    def retry_at(self) -> whenever.Instant:
        """When the next attempt is due."""
        return instant_of(self.retry_at_millis)


class StepWaiting(Event, frozen=True, kw_only=True):
    """The step waits: for a timer, a person, a signal, a child or the branches of a join."""

    name: ClassVar[str] = "step.waiting"
    step: str = ""
    kind: str = ""
    reason: str = ""
    due_at_millis: int | None = None

    @property
    def due_at(self) -> whenever.Instant | None:
        """When the wait ends by itself, if it does."""
        return None if self.due_at_millis is None else instant_of(self.due_at_millis)


class StepSkipped(Event, frozen=True, kw_only=True):
    """The step was skipped: by its predicates, or because it went to another step."""

    name: ClassVar[str] = "step.skipped"
    step: str = ""
    goto: str | None = None


class StepCompensated(Event, frozen=True, kw_only=True):
    """The step is undone, by this attempt at it."""

    name: ClassVar[str] = "step.compensated"
    step: str = ""
    attempt: int = 0


class StepStream(Event, frozen=True, kw_only=True):
    """A frame that a handler streams; never stored."""

    name: ClassVar[str] = "step.stream"
    step: str = ""
    attempt: int = 0
    seq: int = 0
    frame: Any = None


class StepProgress(Event, frozen=True, kw_only=True):
    """Progress that a handler reports."""

    name: ClassVar[str] = "step.progress"
    step: str = ""
    percent: float | None = None
    message: str | None = None
    data: dict[str, Any] = {}


class EngineError(Event, frozen=True, kw_only=True):
    """Something went wrong in the engine that no caller is told of."""

    name: ClassVar[str] = "engine.error"
    context: str = ""
    error: str = ""


class DefinitionChanged(Event, frozen=True, kw_only=True):
    """A run is on a version whose definition was another one when it began; told once for each earlier definition.

    `differences` says line by line what is not as it was. `run_id` is that of the run it was noticed at.
    """

    name: ClassVar[str] = "engine.definition_changed"
    version: str = ""
    old_fingerprint: str = ""
    fingerprint: str = ""
    differences: tuple[str, ...] = ()


class SchedulerCircuitOpen(Event, frozen=True, kw_only=True):
    """The store keeps failing: claiming and care pause until it answers again. Told once for each outage."""

    name: ClassVar[str] = "scheduler.circuit_open"
    failures: int = 0
    error: str = ""


class SchedulerError(Event, frozen=True, kw_only=True):
    """A firing of a schedule came to nothing for good; the schedule goes on."""

    name: ClassVar[str] = "scheduler.error"
    schedule: str = ""
    occurrence_millis: int = 0
    error: str = ""


EVENTS: tuple[type[Event], ...] = tuple(Event.__subclasses__())
