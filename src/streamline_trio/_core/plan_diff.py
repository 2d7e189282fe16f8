"""What is different between two plans of one workflow version, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from streamline_trio._core.plan import Plan, StepPlan

_OF_PLAN = tuple(
    name for name in Plan.__struct_fields__ if name not in {"workflow", "version", "fingerprint", "steps"}
)
_OF_STEP = tuple(name for name in StepPlan.__struct_fields__ if name != "id")


def plan_diff(old: Plan, new: Plan) -> tuple[str, ...]:
    """One line for each step that was added, removed or moved, and for each option that changed."""
    return (*_steps(old, new), *_options(old, new))


def _steps(old: Plan, new: Plan) -> Iterator[str]:
    # dicts: in order, and quick to look into
    were, are = dict.fromkeys(step.id for step in old.steps), dict.fromkeys(step.id for step in new.steps)
    order = list(are)
    for place, step_id in enumerate(are):
        if step_id not in were:
            where = f"after {order[place - 1]!r}" if place else "at the beginning"
            yield f"step {step_id!r} was added {where}"
    for step_id in were:
        if step_id not in are:
            yield f"step {step_id!r} was removed"
    stood, stand = [step_id for step_id in were if step_id in are], [step_id for step_id in are if step_id in were]
    if stood != stand:
        yield f"steps were reordered: {', '.join(stood)} -> {', '.join(stand)}"


def _options(old: Plan, new: Plan) -> Iterator[str]:
    yield from _changes(old, new, _OF_PLAN, "workflow")
    was = {step.id: step for step in old.steps}
    for step in new.steps:
        if step.id in was:
            yield from _changes(was[step.id], step, _OF_STEP, f"step {step.id!r}")


def _changes(old: msgspec.Struct, new: msgspec.Struct, names: Iterable[str], where: str) -> Iterator[str]:
    """The fields that differ, those of nested structs by their own names."""
    for name in names:
        was, now = getattr(old, name), getattr(new, name)
        if was == now:
            continue
        if isinstance(was, msgspec.Struct) and isinstance(now, msgspec.Struct):
            yield from _changes(was, now, was.__struct_fields__, f"{where}, {name}")
        else:
            yield f"{where}, {name}: {_told(was)} -> {_told(now)}"


def _told(value: object) -> str:
    if isinstance(value, msgspec.Struct):
        return "given"
    return "none" if value is None else repr(value)
