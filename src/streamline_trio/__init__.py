"""Durable workflows on trio: runs are documents, steps are checkpoints, structured concurrency drives them."""

from __future__ import annotations

from streamline_trio._core.approvals import (
    Approved,
    Rejected,
    TimedOut,
    Withdrawn,
)
from streamline_trio._core.conditions import (
    all_,
    any_,
    equals,
    greater,
    has,
    in_,
    less,
    not_,
    not_equals,
)
from streamline_trio._core.definition import (
    Workflow,
)
from streamline_trio._core.documents import (
    ForkedFrom,
    Lease,
    Parent,
)
from streamline_trio._core.errors import (
    ChildFailed,
    ConcurrencyLimitReached,
    DataCorruption,
    DefinitionError,
    GuardRefused,
    InvalidState,
    InvalidTransition,
    JoinFailed,
    LeaseLost,
    LoopLimitExceeded,
    NonRetriable,
    OutputMissing,
    PayloadTooLarge,
    RunCancelled,
    RunFailed,
    RunNotFound,
    RunTimeout,
    ScheduleNotFound,
    StepNotFound,
    StepTimeout,
    StoreUnavailable,
    StreamlineError,
    SuspensionError,
    SuspensionMismatch,
    TenantRequired,
    TokenInvalid,
    ValidationError,
    VersionMismatch,
    WaitTimedOut,
    WaitWithdrawn,
    WorkflowNotFound,
)
from streamline_trio._core.events import (
    DefinitionChanged,
    EngineError,
    Event,
    SchedulerCircuitOpen,
    SchedulerError,
    StepCompensated,
    StepCompleted,
    StepFailed,
    StepProgress,
    StepRetryScheduled,
    StepSkipped,
    StepStarted,
    StepStream,
    StepWaiting,
    WorkflowCancelled,
    WorkflowCompensated,
    WorkflowCompensating,
    WorkflowCompensationFailed,
    WorkflowCompleted,
    WorkflowDeadLettered,
    WorkflowFailed,
    WorkflowMigrated,
    WorkflowPaused,
    WorkflowRecovered,
    WorkflowResumed,
    WorkflowRetry,
    WorkflowRewound,
    WorkflowStarted,
    WorkflowUnpaused,
    WorkflowWaiting,
)
from streamline_trio._core.local_time import (
    LocalTime,
)
from streamline_trio._core.occurrences import (
    Occurrence,
)
from streamline_trio._core.options import (
    StepOptions,
    StepSpec,
)
from streamline_trio._core.recurrence import (
    Recurrence,
)
from streamline_trio._core.retention import (
    Retention,
)
from streamline_trio._core.signals import (
    Signal,
)
from streamline_trio._core.start_options import (
    CancelOn,
    Concurrency,
    Debounce,
    Throttle,
    Trigger,
)
from streamline_trio._core.step import (
    Step,
)
from streamline_trio._core.store import (
    Store,
)
from streamline_trio._runtime.bulk import (
    BulkProgress,
)
from streamline_trio._runtime.context import (
    StepContext,
)
from streamline_trio._runtime.engine import (
    Engine,
    PendingWait,
)
from streamline_trio._runtime.guards import (
    Guard,
    GuardCall,
)
from streamline_trio._runtime.handle import (
    LogLine,
    Progress,
    RunHandle,
)
from streamline_trio._runtime.history import (
    OutputVersion,
)
from streamline_trio._runtime.joined import (
    Branch,
    BranchResult,
    JoinResult,
)
from streamline_trio._runtime.loop import (
    Done,
    Next,
)
from streamline_trio._runtime.metrics import (
    RunMetrics,
    StepMetrics,
)
from streamline_trio._runtime.middleware import (
    Middleware,
)
from streamline_trio._runtime.opening import (
    open_engine,
)
from streamline_trio._runtime.parallel import (
    Settled,
    parallel,
)
from streamline_trio._runtime.publisher import (
    Subscription,
)
from streamline_trio._runtime.queries import (
    Page,
)
from streamline_trio._runtime.schedule_snapshot import (
    Schedule,
)
from streamline_trio._runtime.schedules import (
    Schedules,
)
from streamline_trio._runtime.snapshot import (
    CompensationState,
    Run,
    RunCompensation,
    RunError,
    RunSlot,
    ScheduledStart,
    StepState,
    WaitState,
)
from streamline_trio._runtime.stats import (
    SlotUse,
    Stats,
    Unclaimable,
    WorkerInfo,
)
from streamline_trio._runtime.timeline import (
    TimelineEntry,
)
from streamline_trio._runtime.tree import (
    RunTree,
)
from streamline_trio._runtime.version_history import (
    VersionInfo,
)
from streamline_trio.stores.memory import (
    MemoryStore,
)
from streamline_trio.stores.mongo import (
    MongoStore,
)
from streamline_trio.stores.sqlite import (
    SqliteStore,
)

__version__ = "0.1.0"

__all__ = [
    "Approved",
    "Branch",
    "BranchResult",
    "BulkProgress",
    "CancelOn",
    "ChildFailed",
    "CompensationState",
    "Concurrency",
    "ConcurrencyLimitReached",
    "DataCorruption",
    "Debounce",
    "DefinitionChanged",
    "DefinitionError",
    "Done",
    "Engine",
    "EngineError",
    "Event",
    "ForkedFrom",
    "Guard",
    "GuardCall",
    "GuardRefused",
    "InvalidState",
    "InvalidTransition",
    "JoinFailed",
    "JoinResult",
    "Lease",
    "LeaseLost",
    "LocalTime",
    "LogLine",
    "LoopLimitExceeded",
    "MemoryStore",
    "Middleware",
    "MongoStore",
    "Next",
    "NonRetriable",
    "Occurrence",
    "OutputMissing",
    "OutputVersion",
    "Page",
    "Parent",
    "PayloadTooLarge",
    "PendingWait",
    "Progress",
    "Recurrence",
    "Rejected",
    "Retention",
    "Run",
    "RunCancelled",
    "RunCompensation",
    "RunError",
    "RunFailed",
    "RunHandle",
    "RunMetrics",
    "RunNotFound",
    "RunSlot",
    "RunTimeout",
    "RunTree",
    "Schedule",
    "ScheduleNotFound",
    "ScheduledStart",
    "SchedulerCircuitOpen",
    "SchedulerError",
    "Schedules",
    "Settled",
    "Signal",
    "SlotUse",
    "SqliteStore",
    "Stats",
    "Step",
    "StepCompensated",
    "StepCompleted",
    "StepContext",
    "StepFailed",
    "StepMetrics",
    "StepNotFound",
    "StepOptions",
    "StepProgress",
    "StepRetryScheduled",
    "StepSkipped",
    "StepSpec",
    "StepStarted",
    "StepState",
    "StepStream",
    "StepTimeout",
    "StepWaiting",
    "Store",
    "StoreUnavailable",
    "StreamlineError",
    "Subscription",
    "SuspensionError",
    "SuspensionMismatch",
    "TenantRequired",
    "Throttle",
    "TimedOut",
    "TimelineEntry",
    "TokenInvalid",
    "Trigger",
    "Unclaimable",
    "ValidationError",
    "VersionInfo",
    "VersionMismatch",
    "WaitState",
    "WaitTimedOut",
    "WaitWithdrawn",
    "Withdrawn",
    "WorkerInfo",
    "Workflow",
    "WorkflowCancelled",
    "WorkflowCompensated",
    "WorkflowCompensating",
    "WorkflowCompensationFailed",
    "WorkflowCompleted",
    "WorkflowDeadLettered",
    "WorkflowFailed",
    "WorkflowMigrated",
    "WorkflowNotFound",
    "WorkflowPaused",
    "WorkflowRecovered",
    "WorkflowResumed",
    "WorkflowRetry",
    "WorkflowRewound",
    "WorkflowStarted",
    "WorkflowUnpaused",
    "WorkflowWaiting",
    "all_",
    "any_",
    "equals",
    "greater",
    "has",
    "in_",
    "less",
    "not_",
    "not_equals",
    "open_engine",
    "parallel",
]


def _name_publicly() -> None:
    """Public objects say where they are imported from, in tracebacks too."""
    for name in __all__:
        named = globals()[name]
        if callable(named):
            named.__module__ = __name__


_name_publicly()
