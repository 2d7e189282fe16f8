"""The outputs that are kept of steps that are reset, and taking one up again."""

from __future__ import annotations

import msgspec

from streamline_trio._core.decide.turn import Turn
from streamline_trio._core.documents import Lease, OutputVersion
from streamline_trio._core.errors import LeaseLost, ValidationError
from streamline_trio._core.happenings import OutputPinned

_replace = msgspec.structs.replace
_PINNABLE = ("draft", "running", "waiting", "done", "failed")


def archived(turn: Turn, step_id: str) -> tuple[OutputVersion, ...]:
    """The step's history once its output is no longer the step's: with that output, as far as it is to be kept.

    An output that equals the newest one in the history, or was taken from there, is not kept again.
    """
    step, keep = turn.step(step_id), turn.plan.step(step_id).keep_outputs
    history, output = step.history, step.output
    if not keep or step.status != "done" or output is None:
        return history
    newest = history[-1] if history else None
    if newest is not None and newest.output == output:
        return history[-keep:]
    if any(version.version == step.pinned for version in history):
        return history[-keep:]
    version = OutputVersion(
        version=1 if newest is None else newest.version + 1,
        output=output,
        at=turn.now if step.ended_at is None else step.ended_at,
        attempts=step.attempts,
    )
    return (*history, version)[-keep:]


def output_pinned(turn: Turn, happening: OutputPinned) -> bool:
    """Give a finished step an output of its history; False: it has it already."""
    _require_holder(turn, happening)
    turn.plan.index(happening.step)
    step = turn.step(happening.step)
    if turn.status not in _PINNABLE or turn.cancel_requested:
        raise turn.invalid("pin an output of", "its outputs are final", *_PINNABLE)
    if step.status != "done":
        raise turn.invalid("pin an output of", f"step {happening.step} is {step.status}, not done", *_PINNABLE)
    chosen = next((version for version in step.history if version.version == happening.version), None)
    if chosen is None:
        known = ", ".join(str(version.version) for version in step.history) or "none"
        raise ValidationError(
            f"step {happening.step} of run {turn.run.public_id} has no output {happening.version} in its history;"
            f" there are: {known}",
            step=happening.step,
            version=happening.version,
        )
    if step.pinned == happening.version:
        return False
    pinned = _replace(step, output=chosen.output, pinned=chosen.version, pinned_at=turn.now)
    turn.put_step(happening.step, pinned)
    if happening.worker is None and turn.lease is not None:
        turn.change(attention=True)
    return True


def _require_holder(turn: Turn, happening: OutputPinned) -> None:
    if happening.worker is not None and turn.lease != Lease(worker=happening.worker, fence=happening.fence):
        raise LeaseLost(f"the lease on run {turn.run.public_id} is no longer ours", run_id=turn.run.public_id)
