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

from streamline_trio._core.decide import Decision, StartRequest, admit, decide, has_same_cause
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import InvalidState, StoreUnavailable, StreamlineError
from streamline_trio._core.happenings import Bumped
from streamline_trio._core.store import Applied, Cursor, Failed, Insert, RunQuery, Update
from streamline_trio._core.tenancy import public_id
from streamline_trio._runtime.committer import Outcome, has_closed
from streamline_trio._runtime.services import Services

_AT_ONCE = 1000
_PAGE = 200
_SKEW = 60_000


class _Start:
    """One start that waits to be told its run."""

    __slots__ = ("again_since", "error", "request", "run_id", "told", "workflow")

    def __init__(self, workflow: Workflow[Any, Any], request: StartRequest, again_since: int | None) -> None:
        self.workflow = workflow
        self.request = request
        self.again_since = again_since
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


class _HasBegun(Exception):
    """The opening start has opened its window before, and that is over."""


class Debounces:
    """The debounced starts of one engine: those that come while a write is under way become the next write."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lines: dict[str, list[_Start]] = {}

    async def start(
        self, workflow: Workflow[Any, Any], request: StartRequest, again_since: int | None = None
    ) -> str:
        """The id of the pending run that has this input now, unless a later start has replaced it already.

        A broadcast or firing that is repeated, as one of `again_since` may be, goes into the run that it is in.
        What was begun goes on if the caller is cancelled. Raises `InvalidState` for a run id in use,
        `StoreUnavailable` if it stays unknown whether it was started.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._services.committer.is_closed:
            raise has_closed()
        key, start = request.debounce, _Start(workflow, request, again_since)
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
                    group = await self._not_carried_out(group)
                    run_id = await self._carry_out(key, group) if group else ""
                except _HasBegun:
                    group[0].tell(group[0].request.origin.id)
                    line[:0] = group[1:]
                except _IdInUse as clash:
                    group[0].fail(_in_use(public_id(group[0].request.origin.id), str(clash)))
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

    async def _not_carried_out(self, group: list[_Start]) -> list[_Start]:
        """Those that are not in a run yet, as far as they may be; the others are told."""
        left: list[_Start] = []
        for start in group:
            found = None if start.again_since is None else await self._run_of(start, start.again_since)
            if found is None:
                left.append(start)
            else:
                start.tell(found)
        return left

    async def _run_of(self, start: _Start, since: int) -> str | None:
        """The run that the start is in; it was changed when that happened."""
        services, origin, causes = self._services, start.request.origin, set(start.request.causes)
        query = RunQuery(workflow=origin.workflow, tenant=origin.tenant, updated_after=since - _SKEW)
        after: Cursor | None = None
        while True:
            page = await services.read(
                lambda after=after: services.store.find(query, sort="-created_at", limit=_PAGE, after=after)  # type: ignore[misc]  # a lambda with a default
            )
            for run in page:
                if run.head.debounce is not None and causes.intersection(run.head.debounce.causes):
                    return run.id
            if len(page) < _PAGE:
                return None
            after = Cursor(page[-1].origin.created_at, page[-1].id)

    async def _carry_out(self, key: str, group: Sequence[_Start]) -> str:
        """Open a window, or change the draft that is pending; the last of the group has the say."""
        store, services = self._services.store, self._services
        while True:
            pending = await services.read(lambda: store.by_active_key(key))
            if pending is None:
                found = await self._open(group)
            else:
                found = await self._bump(pending, group)
            if found is not None:
                return found

    async def _open(self, group: Sequence[_Start]) -> str | None:
        """Insert a draft with the id and labels of the first and the input of the last; None if somebody has."""
        services, first, last = self._services, group[0].request, group[-1].request
        now = services.clock.now()
        origin = msgspec.structs.replace(first.origin, input=last.origin.input, created_at=now)
        request = msgspec.structs.replace(
            first, origin=origin, state=last.state, slot=last.slot, causes=_causes_of(group)
        )
        decision = admit(request, group[-1].workflow.plan, now)
        outcome = await self._write(Insert(decision.run), decision)
        if isinstance(outcome, Applied):
            return origin.id
        stored = await services.read(lambda: services.store.load(origin.id))
        if stored is None:
            return None
        is_repeated = origin.emission != "" and stored.origin.emission == origin.emission
        if is_repeated or stored.origin.start_id == origin.start_id:
            return origin.id
        if has_same_cause(stored.origin, origin):
            raise _HasBegun
        raise _IdInUse(stored.head.status)

    async def _bump(self, pending: RunDoc, group: Sequence[_Start]) -> str | None:
        """Give the draft the input of the last and put it off; None if it has moved meanwhile."""
        services, start = self._services, group[-1]
        asked = start.request
        happening = Bumped(input=asked.origin.input, state=asked.state, slot=asked.slot, causes=_causes_of(group))
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
            raise StoreUnavailable(f"run {decision.run.public_id} may or may not have started") from outcome
        return outcome


def _causes_of(group: Sequence[_Start]) -> tuple[int, ...]:
    return tuple(cause for start in group for cause in start.request.causes)


def _in_use(run_id: str, status: str) -> InvalidState:
    return InvalidState(
        f"cannot start run {run_id}: the id is in use", action="start", status=status, allowed=(), run_id=run_id
    )
