"""Which steps of a run are to be undone, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from streamline_trio._core.documents import StepDoc
from streamline_trio._core.plan import CompensationPlan, Plan
from streamline_trio._core.status import FINISHED_STEP


def steps_to_undo(steps: Mapping[str, StepDoc], plan: Plan) -> tuple[str, ...]:
    """The steps that have something to undo, the one that finished last first.

    A step that was begun and did not finish comes before them, if its compensation says so; skipped steps have
    done nothing, and what a fork has copied is not its own to undo. A finished step that could be undone when it
    was begun is listed also if the present code has no compensation of it: nobody shall believe that it is undone.
    """
    compensations = plan.compensations
    found = [step_id for step_id, how in compensations.items() if _has_effect(steps.get(step_id), how)]
    found += [step_id for step_id, step in steps.items() if step_id not in compensations and _is_left_over(step)]
    return in_undo_order(steps, found)


def in_undo_order(steps: Mapping[str, StepDoc], ids: Iterable[str]) -> tuple[str, ...]:
    """These steps, newest first: the one that did not finish, then the others by when they did."""

    def age(step_id: str) -> tuple[bool, int]:
        step = steps[step_id]
        return step.status == "done", -step.position

    return tuple(sorted(ids, key=age))


def _has_effect(step: StepDoc | None, how: CompensationPlan) -> bool:
    if step is None or step.copied:
        return False
    if step.status in FINISHED_STEP:
        return step.status == "done"
    return how.when == "started" and step.attempts > 0


def _is_left_over(step: StepDoc) -> bool:
    return step.undoable and step.status == "done" and not step.copied
