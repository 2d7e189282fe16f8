"""The two state machines, as data.

A run moves along `RUN_TRANSITIONS`, each of its steps along `STEP_TRANSITIONS`. Every change that `decide`
makes is checked against these tables, hop by hop: one write may carry a step over several hops (a goto resets
a finished step and begins it again), and each hop must be legal. The diagrams in the documentation are
generated from the same tables.

A run that is `running` without a lease is ready: it was answered, handed back or unpaused, and waits only for
a worker. A run that is `waiting` is parked: on a timer, a person, a signal or a retry. A run that is `compensating`
undoes its steps: it has failed, in the same write, or it was cancelled and is to be undone. It has come to rest
only after that.
"""

from __future__ import annotations

from typing import Literal, get_args

from streamline_trio._core.errors import InvalidTransition

RunStatus = Literal[
    "draft",
    "running",
    "waiting",
    "done",
    "failed",
    "cancelled",
    "compensating",
    "compensated",
    "compensation_failed",
]
StepStatus = Literal["pending", "running", "waiting", "done", "failed", "skipped"]

RUN_STATUSES: tuple[RunStatus, ...] = get_args(RunStatus)
STEP_STATUSES: tuple[StepStatus, ...] = get_args(StepStatus)

RUN_TRANSITIONS: dict[RunStatus, frozenset[RunStatus]] = {
    "draft": frozenset({"running", "failed", "cancelled"}),
    "running": frozenset({"waiting", "done", "failed", "cancelled", "compensating"}),
    "waiting": frozenset({"running", "failed", "cancelled", "compensating"}),
    "done": frozenset({"running"}),
    "failed": frozenset({"running", "compensating"}),
    "cancelled": frozenset(),
    "compensating": frozenset({"compensated", "compensation_failed", "cancelled"}),
    "compensated": frozenset(),
    "compensation_failed": frozenset({"compensating"}),
}

STEP_TRANSITIONS: dict[StepStatus, frozenset[StepStatus]] = {
    "pending": frozenset({"running", "failed"}),
    "running": frozenset({"pending", "waiting", "done", "failed", "skipped"}),
    "waiting": frozenset({"pending", "running", "failed"}),
    "done": frozenset({"pending"}),
    "failed": frozenset({"pending"}),
    "skipped": frozenset({"pending"}),
}

ACTIVE: frozenset[RunStatus] = frozenset({"draft", "running", "waiting", "compensating"})
SETTLED: frozenset[RunStatus] = frozenset(RUN_STATUSES) - ACTIVE
FINISHED_STEP: frozenset[StepStatus] = frozenset({"done", "skipped"})


def is_settled(status: RunStatus) -> bool:
    """Whether a run in this status has come to rest: nothing moves it but an explicit rewind or retry."""
    return status in SETTLED


def check_run_transition(run_id: str, source: RunStatus, target: RunStatus) -> None:
    """Raise `InvalidTransition` unless the table allows the move."""
    if target not in RUN_TRANSITIONS[source]:
        raise InvalidTransition(
            f"run {run_id} cannot go from {source} to {target}",
            entity="run",
            entity_id=run_id,
            from_status=source,
            to_status=target,
        )


def check_step_transition(run_id: str, step: str, source: StepStatus, target: StepStatus) -> None:
    """Raise `InvalidTransition` unless the table allows the move."""
    if target not in STEP_TRANSITIONS[source]:
        raise InvalidTransition(
            f"step {step} of run {run_id} cannot go from {source} to {target}",
            entity="step",
            entity_id=step,
            from_status=source,
            to_status=target,
        )


def run_sources(target: RunStatus) -> frozenset[RunStatus]:
    """Every run status from which the target can be reached in one hop."""
    return frozenset(source for source, targets in RUN_TRANSITIONS.items() if target in targets)
