"""What a workflow's `migrate` makes of a run of another version: asked for, compared and checked."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from streamline_trio._core import payload
from streamline_trio._core.checking import is_mapping
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import ValidationError, VersionMismatch
from streamline_trio._core.happenings import Migrated
from streamline_trio._core.naming import ID_RULE, is_id
from streamline_trio._core.plan import Plan
from streamline_trio._core.step import Step
from streamline_trio._runtime.snapshot import Run, StepState, snapshot

_MAY_DIFFER = frozenset({"version", "current_step", "state", "steps"})
_OF_STEP = tuple(name for name in StepState.__struct_fields__ if name not in {"id", "output"})


async def ask_migrate(workflow: Workflow[Any, Any], run: RunDoc, plan: Plan | None, worker: str) -> Migrated:
    """The claim by which `worker` takes the run over to this version.

    `migrate` sees values as plain data: the types of the other version are not at hand. Raises `VersionMismatch`
    when it gives None, `ValidationError` naming the field that it must not or cannot change, and what it raises.
    """
    assert workflow.migrate is not None
    # A snapshot of its own: what it changes in place must be found too.
    given = workflow.migrate(snapshot(run, plan, None))
    if inspect.isawaitable(given):
        given = await given
    if given is None:
        raise VersionMismatch(f"migrate does not take it over to {workflow.id} {workflow.version}")
    if not isinstance(given, Run):
        raise ValidationError(f"migrate gives a Run or None, not {repr(given)[:100]}")
    known = snapshot(run, plan, None)
    _check_unchanged(given, known, workflow)
    steps, outputs = _steps(given.steps, known.steps, run, workflow)
    return Migrated(
        worker=worker,
        steps=steps,
        outputs=outputs,
        current_step=given.current_step,
        state=_state(given.state, known.state, run, workflow),
    )


def _check_unchanged(given: Run, known: Run, workflow: Workflow[Any, Any]) -> None:
    if given.version not in {known.version, workflow.version}:
        raise _refused("version", f"it is {workflow.version!r} here, not {given.version!r}")
    for name in Run.__struct_fields__:
        if name not in _MAY_DIFFER and not _is_same(getattr(given, name), getattr(known, name), name):
            raise _refused(name, "it must stay as it is")


def _steps(
    given: Any, known: Mapping[str, StepState], run: RunDoc, workflow: Workflow[Any, Any]
) -> tuple[dict[str, str], dict[str, bytes]]:
    """The stored steps by their new ids, and the outputs that change."""
    if not is_mapping(given):
        raise _refused("steps", f"it is a mapping of steps by id, not {repr(given)[:100]}")
    steps: dict[str, str] = {}
    outputs: dict[str, bytes] = {}
    for new, step in given.items():
        where = f"steps[{new!r}]"
        if not is_id(new):
            raise _refused(where, f"an id is {ID_RULE}")
        if not isinstance(step, StepState):
            raise _refused(where, f"it is a StepState, not {repr(step)[:100]}")
        was = known.get(step.id)
        if was is None and step.status != "pending":
            raise _refused(where, f"the run has no step {step.id!r} that has begun")
        if was is None:
            continue
        _check_step(where, step, was)
        if step.id in run.steps:
            steps[new] = step.id
        if not _is_same(step.output, was.output, f"{where}.output"):
            outputs[new] = _output(where, step)
        _check_output(where, outputs.get(new, run.step(step.id).output), workflow.steps.get(new))
    return steps, outputs


def _check_step(where: str, step: StepState, was: StepState) -> None:
    for name in _OF_STEP:
        if not _is_same(getattr(step, name), getattr(was, name), f"{where}.{name}"):
            raise _refused(
                f"{where}.{name}", "it must stay as it is; a step that shall run again is left out of steps"
            )


def _output(where: str, step: StepState) -> bytes:
    if step.status != "done":
        raise _refused(f"{where}.output", f"a step that is {step.status} has none")
    return payload.encode(step.output, what=f"{where}.output")


def _check_output(where: str, output: bytes | None, step: Step[Any] | None) -> None:
    """It must fit the step's type as it is now, also if it stays: better refused than failed by who reads it."""
    if output is not None and step is not None:
        step.decoder.decode(output, what=f"{where}.output")


def _state(given: object, known: object, run: RunDoc, workflow: Workflow[Any, Any]) -> bytes | None:
    """The new state, None if it stays; it must fit this version's type in either case."""
    stays = _is_same(given, known, "state")
    stored = run.state if stays else payload.encode(given, what="state")
    workflow.state_decoder(run.origin.input).decode(stored, what="state")
    return None if stays else stored


def _is_same(given: Any, known: Any, what: str) -> bool:
    """Whether they are stored alike, be it as a struct or as plain data."""
    return payload.encode(given, what=what) == payload.encode(known, what=what)


def _refused(field: str, why: str) -> ValidationError:
    return ValidationError(f"migrate changed {field}: {why}", field=field)


def is_migratable(run: RunDoc) -> bool:
    """Whether `migrate` may be asked about a run that is due: not about one that is paused or being undone."""
    return not run.head.paused and run.head.status in {"draft", "running", "waiting"}
