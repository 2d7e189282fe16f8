"""How often and how long the steps of a run ran and waited, reckoned from the stored run."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from streamline_trio._core.documents import RunDoc, StepDoc
from streamline_trio._core.plan import Plan
from streamline_trio._core.status import RunStatus, StepStatus


class StepMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """One step; durations in seconds, 0 for what has not been.

    `duration` is that of the last attempt, with its waits; `waited` the time it was parked on waits; `active` that
    of all tries known, without the waits. Of a step that is under way they count up to now. Known are the last 20
    failed or crashed tries and the last 20 waits.
    """

    step: str
    status: StepStatus
    attempts: int = 0
    failures: int = 0
    duration: float = 0.0
    active: float = 0.0
    waited: float = 0.0


class RunMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """One run; durations in seconds. `steps` holds every step of the definition, in order.

    `queued` is the time from creation to the first step, `total_duration` that from there to the end, or to now;
    `waited` is the sum over the steps, `recoveries` how often the run was taken over from a worker that was gone.
    """

    run_id: str
    status: RunStatus
    steps: dict[str, StepMetrics]
    total_duration: float = 0.0
    queued: float = 0.0
    waited: float = 0.0
    recoveries: int = 0


def run_metrics(run: RunDoc, plan: Plan | None, now: int) -> RunMetrics:
    """The metrics of a stored run, as of now (milliseconds since the epoch)."""
    origin, head = run.origin, run.head
    ids = [step.id for step in plan.steps] if plan is not None else []
    steps = {step_id: _of_step(run, step_id, now) for step_id in (*ids, *run.steps)}
    end = now if head.ended_at is None else head.ended_at
    begun = end if head.started_at is None else head.started_at
    return RunMetrics(
        run_id=run.public_id,
        status=head.status,
        steps=steps,
        total_duration=_seconds([(begun, end)]),
        queued=_seconds([(origin.created_at, begun)]),
        waited=sum(step.waited for step in steps.values()),
        recoveries=head.recoveries,
    )


def _of_step(run: RunDoc, step_id: str, now: int) -> StepMetrics:
    step = run.step(step_id)
    last = _last_attempt(step, now)
    waits = [(wait.opened_at, wait.resolved_at) for wait in step.waits]
    if step_id == run.head.current_step and step.status == "waiting":
        waits += [(record.opened_at, now) for record in run.records.values() if record.is_open]
    tries = [(tried.started_at, tried.ended_at) for tried in step.tries]
    return StepMetrics(
        step=step_id,
        status=step.status,
        attempts=step.attempts,
        failures=step.failures,
        duration=_seconds(last or tries[-1:]),
        active=_seconds(_without(_joined([*tries, *last]), _joined(waits))),
        waited=_seconds(_joined(waits)),
    )


Span = tuple[int, int]


def _last_attempt(step: StepDoc, now: int) -> list[Span]:
    """The attempt that is not among the tries: it is under way, or did not fail by itself."""
    if step.started_at is None or step.status == "pending":
        return []
    if step.tries and (step.tries[-1].attempt, step.tries[-1].started_at) == (step.attempts, step.started_at):
        return []
    return [(step.started_at, now if step.ended_at is None else step.ended_at)]


def _joined(spans: Iterable[Span]) -> list[Span]:
    """In order, those that overlap as one: waits that were open at the same time count once."""
    joined = list[Span]()
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    return joined


def _without(spans: list[Span], gaps: list[Span]) -> list[Span]:
    """What is left of the spans outside the gaps; both joined."""
    left = list[Span]()
    for start, end in spans:
        at = start
        for opened, closed in gaps:
            if closed > at and opened < end:
                left.append((at, opened))
                at = closed
        left.append((at, end))
    return [(start, end) for start, end in left if end > start]


def _seconds(spans: Iterable[Span]) -> float:
    return sum(max(0, end - start) for start, end in spans) / 1000
