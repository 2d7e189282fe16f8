"""The plan: what of a definition is needed to decide about a run, as stored data.

It is stored once per workflow, version and fingerprint, so that a process which does not
have the code can still resume, cancel, rewind or retry a run.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Literal

import msgspec

from streamline_trio._core.errors import StepNotFound
from streamline_trio._core.retry import RetryPolicy
from streamline_trio._core.start_options import CancelPlan, ConcurrencyPlan, DebouncePlan, ThrottlePlan

_FINGERPRINT_DIGITS = 16


class CompensationPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a step is undone; `when` is "started" for one that is undone too if it failed half-way."""

    retry: RetryPolicy
    timeout: float | None = None
    when: Literal["finished", "started"] = "finished"


class StepPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What must be known of a step without its code; durations in seconds."""

    id: str
    retry: RetryPolicy
    timeout: float | None = None
    keep_outputs: int = 0
    compensation: CompensationPlan | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, dict=True):
    """The steps of one version of a workflow, in order, with their limits.

    Lookups take constant time. Plans are equal when their fields are.
    """

    workflow: str
    version: str
    fingerprint: str
    steps: tuple[StepPlan, ...]
    timeout: float | None = None
    max_step_logs: int = 1000
    compensate_on_cancel: bool = False
    concurrency: ConcurrencyPlan | None = None
    throttle: ThrottlePlan | None = None
    debounce: DebouncePlan | None = None
    triggered_by: tuple[str, ...] = ()
    cancel_on: tuple[CancelPlan, ...] = ()

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {step.id: position for position, step in enumerate(self.steps)}

    @cached_property
    def compensations(self) -> dict[str, CompensationPlan]:
        """How steps are undone, by id, for those that can be."""
        return {step.id: step.compensation for step in self.steps if step.compensation is not None}

    @cached_property
    def cancel_signals(self) -> tuple[str, ...]:
        """Names of the signals that cancel runs of it, each once."""
        return tuple(sorted({rule.signal for rule in self.cancel_on}))

    @property
    def first(self) -> str:
        """The id of the step that runs first."""
        return self.steps[0].id

    def index(self, step_id: str) -> int:
        """The position of a step, from 0; `StepNotFound` when there is none of this id."""
        position = self._positions.get(step_id)
        if position is None:
            raise StepNotFound(
                f"workflow {self.workflow!r}, version {self.version!r}, has no step {step_id!r}",
                workflow=self.workflow,
                version=self.version,
                step=step_id,
            )
        return position

    def step(self, step_id: str) -> StepPlan:
        """The plan of one step; `StepNotFound` when there is none of this id."""
        return self.steps[self.index(step_id)]

    def after(self, step_id: str) -> str | None:
        """The id of the step that follows, None after the last one."""
        following = self.index(step_id) + 1
        return self.steps[following].id if following < len(self.steps) else None

    def between(self, first: str, last: str) -> tuple[str, ...]:
        """The ids from one step up to and including another; none when they stand the other way round."""
        return tuple(step.id for step in self.steps[self.index(first) : self.index(last) + 1])


def make_plan(
    *,
    workflow: str,
    version: str,
    steps: tuple[StepPlan, ...],
    timeout: float | None,
    max_step_logs: int,
    compensate_on_cancel: bool = False,
    concurrency: ConcurrencyPlan | None = None,
    throttle: ThrottlePlan | None = None,
    debounce: DebouncePlan | None = None,
    triggered_by: tuple[str, ...] = (),
    cancel_on: tuple[CancelPlan, ...] = (),
) -> Plan:
    """A plan with its fingerprint.

    The fingerprint is the start of the SHA-256 over everything else in the plan. Fields at
    their defaults are not part of it, so that a field added later changes no fingerprint.
    """
    unsigned = Plan(
        workflow=workflow,
        version=version,
        fingerprint="",
        steps=steps,
        timeout=timeout,
        max_step_logs=max_step_logs,
        compensate_on_cancel=compensate_on_cancel,
        concurrency=concurrency,
        throttle=throttle,
        debounce=debounce,
        triggered_by=triggered_by,
        cancel_on=cancel_on,
    )
    digest = hashlib.sha256(msgspec.msgpack.encode(unsigned, order="deterministic")).hexdigest()
    return msgspec.structs.replace(unsigned, fingerprint=digest[:_FINGERPRINT_DIGITS])
