"""A worker takes a run of another version over: one write that moves the run to its plan and claims it.

Steps are known by their ids. A finished step keeps its output under its new id, also where the new plan has no such
step. The current step goes on as it stands, waits and all, if it stays the same one under whatever id; every other
step that has not finished is as if it had not begun. What has finished never runs again by a migration: a plan that
would come to it is refused, unless the migration leaves the step out.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from streamline_trio._core.decide import slotting
from streamline_trio._core.decide.claiming import claimed
from streamline_trio._core.decide.stepping import last_done
from streamline_trio._core.decide.turn import MapName, Turn
from streamline_trio._core.documents import StepDoc
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.events import WorkflowMigrated
from streamline_trio._core.happenings import Migrated
from streamline_trio._core.status import FINISHED_STEP

_replace = msgspec.structs.replace

MIGRATABLE = frozenset({"draft", "running", "waiting"})


def migrated(turn: Turn, happening: Migrated) -> None:
    """Move an unleased run that is due to this plan, and claim it."""
    if turn.lease is not None or turn.paused or turn.status not in MIGRATABLE:
        raise turn.invalid("migrate", "it is paused, settled, undone or held by a worker", *sorted(MIGRATABLE))
    _check_current_step(turn, happening)
    kept = _kept(turn, happening)
    steps = _steps(turn, happening, kept)
    _check_ahead(turn, happening, steps)
    _replace_entries(turn, "steps", steps)
    _rename_keys(turn, kept)
    if not _stays(turn, happening):
        turn.drop_records(keep_outcomes=False)
        turn.drop("pieces", list(turn.pieces))
    turn.current_step = happening.current_step
    turn.state = turn.state if happening.state is None else happening.state
    turn.change(
        version=turn.plan.version,
        fingerprint=turn.plan.fingerprint,
        cancelled_by=turn.plan.cancel_signals,
        output_step=kept.get(turn.head.output_step or "") or last_done(turn),
    )
    slotting.migrate(turn, happening.slot)
    turn.emit(WorkflowMigrated, from_version=turn.head.version, version=turn.plan.version)
    claimed(turn, happening)


def _stays(turn: Turn, happening: Migrated) -> bool:
    """Whether the current step is the one that it was, under whatever id."""
    new = happening.current_step
    return new is not None and happening.steps.get(new, new) == turn.current_step


def _check_current_step(turn: Turn, happening: Migrated) -> None:
    new = happening.current_step
    if (new is None) != (turn.current_step is None):
        why = "a run that has begun stands at a step" if new is None else "a run that has not begun stands nowhere"
        raise _refused("current_step", why)
    if new is not None and not any(step.id == new for step in turn.plan.steps):
        raise _refused("current_step", f"{turn.plan.workflow} {turn.plan.version} has no step {new!r}")


def _kept(turn: Turn, happening: Migrated) -> dict[str, str]:
    """The steps that stay as they are, from the old id to the new one."""
    kept: dict[str, str] = {}
    for new, old in happening.steps.items():
        step = turn.steps.get(old)
        if old in kept:
            raise _refused("steps", f"{old!r} cannot become both {kept[old]!r} and {new!r}")
        if step is None:
            continue
        if step.status in FINISHED_STEP or (new == happening.current_step and _stays(turn, happening)):
            kept[old] = new
    return kept


def _steps(turn: Turn, happening: Migrated, kept: Mapping[str, str]) -> dict[str, StepDoc]:
    """The steps' documents under their new ids."""
    steps: dict[str, StepDoc] = {}
    for old, new in kept.items():
        step = turn.steps[old]
        output = happening.outputs.get(new, step.output)
        steps[new] = _replace(step, output=output, keyed=step.keyed if new == old else step.keyed or old)
    # A step that begins anew must not have the idempotency keys of its first time.
    for plan in turn.plan.steps:
        was = turn.steps.get(plan.id)
        if was is not None and plan.id not in steps:
            steps[plan.id] = StepDoc(generation=was.generation + 1, tries=was.tries)
    return steps


def _check_ahead(turn: Turn, happening: Migrated, steps: Mapping[str, StepDoc]) -> None:
    """No finished step lies before the run."""
    current = happening.current_step
    for plan in turn.plan.steps if current is None else turn.plan.steps[turn.plan.index(current) :]:
        step = steps.get(plan.id)
        if step is not None and step.status in FINISHED_STEP:
            raise _refused(
                f"steps[{plan.id!r}]", f"it is {step.status} and would run again: leave it out of steps if it shall"
            )


def _rename_keys(turn: Turn, kept: Mapping[str, str]) -> None:
    """Checkpoints and memos belong to steps. A memo outlives its step, since its function ran once for the run."""
    checkpoints: dict[str, bytes] = {}
    for key, value in turn.checkpoints.items():
        step_id, slash, name = key.partition("/")
        if step_id in kept:
            checkpoints[kept[step_id] + slash + name] = value
    _replace_entries(turn, "checkpoints", checkpoints)
    for key, memo in list(turn.memos.items()):
        if kept.get(memo.step, memo.step) != memo.step:
            turn.put("memos", key, _replace(memo, step=kept[memo.step]))


def _replace_entries(turn: Turn, name: MapName, entries: Mapping[str, object]) -> None:
    """Make the map these entries, touching only those that differ."""
    before: Mapping[str, object] = getattr(turn, name)
    changed = {key: value for key, value in entries.items() if before.get(key) != value}
    turn.drop(name, [key for key in before if key not in entries])
    for key, value in changed.items():
        turn.put(name, key, value)


def _refused(field: str, why: str) -> ValidationError:
    return ValidationError(f"{field}: {why}", field=field)
