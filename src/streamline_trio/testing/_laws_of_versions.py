"""What must be true of runs in a world where workers have different versions of the code."""

from __future__ import annotations

from msgspec.structs import replace

from streamline_trio._core.documents import RunDoc, StepDoc
from streamline_trio._core.status import FINISHED_STEP
from streamline_trio._core.store import PutSide, Route
from streamline_trio._runtime.worker import decode_worker

_MIGRATABLE = {"draft", "running", "waiting"}


def route_of(run: RunDoc) -> Route:
    """The version that the run is pinned to."""
    return Route(run.origin.workflow, run.head.version)


def is_migration(before: RunDoc, after: RunDoc) -> bool:
    """Whether this write took the run over to another version; a further start of a debounced draft does not."""
    old, new = before.head.debounce, after.head.debounce
    is_bump = old is not None and new is not None and old.starts != new.starts
    return before.head.version != after.head.version and not is_bump


def check_migration(before: RunDoc, after: RunDoc) -> None:
    """Only a run at rest is taken over, and nothing that it has come to is lost or made up."""
    assert before.head.lease is None, "a run was taken over from a worker that holds it"
    assert not before.head.paused, "a paused run was taken over"
    assert before.head.status in _MIGRATABLE, f"a run was taken over while {before.head.status}"
    known = [_plain(step) for step in before.steps.values()]
    for step_id, step in after.steps.items():
        if step.status in FINISHED_STEP:
            assert _plain(step) in known, f"step {step_id} has finished by a migration"
            known.remove(_plain(step))
    assert {key: memo.value for key, memo in before.memos.items()} == {
        key: memo.value for key, memo in after.memos.items()
    }, "a migration changed what `once` remembers"
    assert before.inbox == after.inbox, "a migration changed the inbox"


def _plain(step: StepDoc) -> StepDoc:
    """Without what a migration may change; the claim that it is may begin to undo the step."""
    return replace(step, keyed="", output=None, compensation=None)


class LiveVersions:
    """Which versions live workers have, by their stored documents, and since when; told in numbers of writes."""

    def __init__(self) -> None:
        self._writes = 0
        self._live: dict[str, tuple[int, frozenset[Route]]] = {}
        self._changed: dict[str, int] = {}

    def worker(self, write: PutSide) -> None:
        """A worker's document was stored or removed."""
        self._writes += 1
        doc = None if write.body is None else decode_worker(write.body)
        if doc is None or doc.state == "dead":
            self._live.pop(write.key, None)
        elif write.key not in self._live:
            self._live[write.key] = self._writes, frozenset(doc.routes)

    def run(self, before: RunDoc | None, after: RunDoc) -> list[str]:
        """A run was stored; what is wrong about it.

        Whoever takes a run over reads which workers live after it has read the run. So it cannot miss one that
        has lived since before the run last changed.
        """
        self._writes += 1
        since = self._changed.get(after.id, 0)
        self._changed[after.id] = self._writes
        if before is None or not is_migration(before, after):
            return []
        return [
            f"{after.id}: was taken over from {before.head.version}, which worker {worker} has"
            for worker, (began, routes) in self._live.items()
            if began < since and route_of(before) in routes
        ]
