"""What a write of an engine means: which step's handler it begins or ends, and how to tell a person."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from streamline_trio.store import AppendRows, Delete, Insert, PutSide, Quarantine, RunDoc, Update, Write


def begins(write: Write, step: str) -> bool:
    """Whether a call of the step's handler follows this write."""
    if isinstance(write, Insert):
        return write.run.step(step).status == "running"
    if not isinstance(write, Update):
        return False
    before, after = write.before.step(step), write.after.step(step)
    return after.status == "running" and (before.status != "running" or after.attempts > before.attempts)


def ends(write: Write, step: str) -> bool:
    """Whether this write makes durable how a call of the step's handler ended."""
    if not isinstance(write, Update):
        return False
    before, after = write.before.step(step), write.after.step(step)
    if before.status != "running":
        return False
    return after.status != "running" or after.failures > before.failures or after.generation > before.generation


def is_held_by(write: Write, worker: str | None) -> bool:
    """Whether it changes a run that is leased to the worker."""
    if not isinstance(write, Update) or worker is None:
        return False
    lease = write.before.head.lease
    return lease is not None and lease.worker == worker


def takes_from(write: Write, worker: str | None) -> bool:
    """Whether it takes a run that is leased to the worker away from it."""
    if not is_held_by(write, worker):
        return False
    assert isinstance(write, Update)
    lease = write.after.head.lease
    return write.after.head.fence > write.before.head.fence or lease is None


def told(batch: Sequence[Write]) -> str:
    """The batch in words."""
    return "; ".join(_told(write) for write in batch) or "nothing"


def _told(write: Write) -> str:
    match write:
        case Insert(run):
            return f"the start of run {run.id}"
        case Update(before, after):
            return f"run {after.id}: " + (", ".join(_changes(before, after)) or "what it keeps")
        case Delete(run_id, _):
            return f"the removal of run {run_id}"
        case Quarantine(run_id):
            return f"the quarantine of run {run_id}"
        case AppendRows(run_id, kind, _, _, _):
            return f"{kind} rows of run {run_id}"
        case PutSide(kind, _, _, _, _):
            return f"the document of a {kind}"


def _changes(before: RunDoc, after: RunDoc) -> Iterator[str]:
    for step_id, step in after.steps.items():
        was = before.step(step_id)
        if was.status != step.status:
            yield f"step {step_id} {was.status} -> {step.status}"
        elif was.attempts != step.attempts:
            yield f"step {step_id} attempt {step.attempts}"
    if before.head.status != after.head.status:
        yield f"{before.head.status} -> {after.head.status}"
