"""Starts of debounced workflows: one pending draft for each key, which every further start puts off.

The store keeps it to one: a pending draft holds the key as an active run holds its idempotency key, and gives it up
by the write that begins or ends it. A start either opens a window, by inserting a draft that takes the key, or
changes the draft that has it, by a commit that is refused if the draft has just begun: then it looks again. So a
start that was acknowledged is in the draft that was pending then, or in a later one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import trio

from streamline_trio._core.decide import Decision, StartRequest, admit, decide
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import InvalidState, StoreUnavailable, StreamlineError
from streamline_trio._core.happenings import Bumped
from streamline_trio._core.same_start import is_same_start
from streamline_trio._core.store import Applied, Failed, Insert, Update
from streamline_trio._runtime.committer import Outcome, has_closed
from streamline_trio._runtime.services import Services

_AT_ONCE = 1000


class _Start:
    """One start that waits to be told its run."""

    __slots__ = ("error", "request", "run_id", "told", "workflow")

    def __init__(self, workflow: Workflow[Any, Any], request: StartRequest) -> None:
        self.workflow = workflow
        self.request = request
        self.run_id = ""
        self.error: StreamlineError | None = None
        self.told = trio.Event()

    def tell(self, run_id: str) -> None:
        """Its run is this one, durably."""
        self.run_id = run_id
        self.told.set()

    def fail(self, error: StreamlineError) -> None:
        """It did not start, or may not have."""
        self.error = error
        self.told.set()


class _IdInUse(Exception):
    """The id that the opening start asked for is that of another run."""


class Debounces:
    """The debounced starts of one engine: those that come while a write is under way become the next write."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lines: dict[str, list[_Start]] = {}

    async def start(self, workflow: Workflow[Any, Any], request: StartRequest) -> str:
        """The id of the pending run that has this input now, unless a later start has replaced it already.

        What was begun goes on if the caller is cancelled. Raises `InvalidState` for a run id in use,
        `StoreUnavailable` if it stays unknown whether it was started.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._services.committer.is_closed:
            raise has_closed()
        key, start = request.debounce, _Start(workflow, request)
        assert key is not None, "the workflow is debounced"
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = []
            self._services.spawn(lambda: self._serve(key))
        line.append(start)
        await start.told.wait()
        if start.error is not None:
            raise start.error
        return start.run_id

    async def _serve(self, key: str) -> None:
        """Carry out all that have come, until nobody comes."""
        line = self._lines[key]
        try:
            while line:
                group, line[:] = line[:_AT_ONCE], line[_AT_ONCE:]
                try:
                    run_id = await self._carry_out(key, group)
                except _IdInUse as clash:
                    group[0].fail(_in_use(group[0].request.origin.id, str(clash)))
                    line[:0] = group[1:]
                except StreamlineError as error:
                    for start in group:
                        start.fail(error)
                except BaseException:
                    line[:0] = group
                    raise
                else:
                    for start in group:
                        start.tell(run_id)
        finally:
            del self._lines[key]
            for start in line:
                start.fail(StoreUnavailable("the engine closed before it was known whether the run had started"))

    async def _carry_out(self, key: str, group: Sequence[_Start]) -> str:
        """Open a window, or change the draft that is pending; the last of the group has the say."""
        store, services = self._services.store, self._services
        while True:
            pending = await services.read(lambda: store.by_active_key(key))
            if pending is None:
                found = await self._open(group)
            else:
                found = await self._bump(pending, group[-1])
            if found is not None:
                return found

    async def _open(self, group: Sequence[_Start]) -> str | None:
        """Insert a draft with the id and labels of the first and the input of the last; None if somebody has."""
        services, first, last = self._services, group[0].request, group[-1].request
        origin = msgspec.structs.replace(first.origin, input=last.origin.input)
        request = msgspec.structs.replace(first, origin=origin, state=last.state, slot=last.slot)
        decision = admit(request, group[-1].workflow.plan, services.clock.now())
        outcome = await self._write(Insert(decision.run), decision)
        if isinstance(outcome, Applied):
            return origin.id
        stored = await services.read(lambda: services.store.load(origin.id))
        if stored is None:
            return None
        if is_same_start(stored.origin, origin):
            return origin.id
        raise _IdInUse(stored.head.status)

    async def _bump(self, pending: RunDoc, start: _Start) -> str | None:
        """Give the draft the new input and put it off; None if it has moved meanwhile."""
        services = self._services
        asked = start.request
        happening = Bumped(input=asked.origin.input, state=asked.state, slot=asked.slot)
        try:
            decision = decide(
                pending, happening, start.workflow.plan, services.clock.now(), services.chance.commit_id()
            )
        except InvalidState:
            return None
        outcome = await self._write(Update(pending, decision.run, decision.touched), decision)
        return pending.origin.id if isinstance(outcome, Applied) else None

    async def _write(self, write: Insert | Update, decision: Decision) -> Outcome:
        outcomes: list[Outcome] = []
        told = trio.Event()

        def tell(outcome: Outcome) -> None:
            outcomes.append(outcome)
            if isinstance(outcome, Applied):
                self._services.committed(decision.run, (decision,))
            told.set()

        self._services.committer.post(write, tell)
        await told.wait()
        (outcome,) = outcomes
        if isinstance(outcome, Failed):
            raise outcome.error
        if isinstance(outcome, StoreUnavailable):
            raise StoreUnavailable(f"run {decision.run.origin.id} may or may not have started") from outcome
        return outcome


def _in_use(run_id: str, status: str) -> InvalidState:
    return InvalidState(
        f"cannot start run {run_id}: the id is in use", action="start", status=status, allowed=(), run_id=run_id
    )
