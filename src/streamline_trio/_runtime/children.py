"""Starts the children of one suspension and reads how they have ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec
import trio

from streamline_trio._core import payload
from streamline_trio._core.decide import Decision, StartRequest, admit
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import Origin, Parent, Record, RunDoc
from streamline_trio._core.errors import ChildFailed, OutputMissing, RunNotFound, StoreUnavailable, ValidationError
from streamline_trio._core.happenings import Ask, BranchesStarted
from streamline_trio._core.joins import JoinPolicy, bits_of, branch_id, ended_with, room_of
from streamline_trio._core.status import SETTLED
from streamline_trio._core.step import Step
from streamline_trio._core.store import Applied, Failed, Insert
from streamline_trio._core.tenancy import stored_id
from streamline_trio._runtime.committer import Outcome
from streamline_trio._runtime.joined import BranchResult, JoinResult
from streamline_trio._runtime.pacing import paced
from streamline_trio._runtime.slot_wishes import slot_for
from streamline_trio._runtime.snapshot import RunError, output_of
from streamline_trio._runtime.viewing import view, warn_of_types

if TYPE_CHECKING:
    from streamline_trio._runtime.driver import Driver
    from streamline_trio._runtime.services import Services

CHUNK = 100
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 1.0
_GONE = "its run is no longer stored"


class ChildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is to be: its place in the suspension, its definition, and its input as it is stored."""

    index: int = 0
    branch: str = ""
    workflow: Workflow[Any, Any]
    value: Any


class ChildOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What may be said of a child beside the workflow and its input."""

    priority: int
    tags: tuple[str, ...] = ()
    meta: bytes | None = None
    user: str | None = None


class _Draft:
    """A child that is to be inserted."""

    __slots__ = ("decision", "run")

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.run: RunDoc = decision.run


class ChildStarter:
    """The children of one suspension of one step."""

    __slots__ = ("_driver", "_options", "_requests", "_services", "_step")

    def __init__(self, driver: Driver, step: str, requests: Sequence[ChildRequest], options: ChildOptions) -> None:
        self._driver = driver
        self._services: Services = driver.services
        self._step = step
        self._requests = requests
        self._options = options

    def check(self) -> None:
        """Raise what is wrong with any of the inputs, before anything is written."""
        for request in self._requests:
            request.workflow.seal()
            request.workflow.initial_state(request.workflow.input_payload(request.value))

    async def start(self, ask: Ask, record: Record, held: Mapping[str, Any]) -> Ask:
        """Store as many children as may be under way; the ask that says how far that has come.

        In chunks, each noted in the record once it is stored, so that after a crash the next entry goes on from
        there; the last one is left to the write that parks. A child that is stored already is adopted.
        """
        started = record.started
        while (chunk := self._next(record, started)) and record.is_open:
            await self._publish(chunk)
            await self._insert(ask.key, record, chunk)
            started += len(chunk)
            if not self._next(record, started):
                break
            noted = BranchesStarted(step=self._step, key=ask.key, group=record.group, started=started, **held)
            run = await self._driver.commit(noted)
            now = run.records.get(ask.key)
            if now is None or now.group != record.group:
                break
            record = now
        return msgspec.structs.replace(ask, started=started)

    def _next(self, record: Record, started: int) -> Sequence[ChildRequest]:
        """Those that are to be started now."""
        room = room_of(msgspec.structs.replace(record, started=started))
        return self._requests[started : started + max(min(room, CHUNK), 0)]

    async def _publish(self, chunk: Sequence[ChildRequest]) -> None:
        """See that every definition is stored: also those that this engine was not given."""
        services = self._services
        for workflow in {id(request.workflow): request.workflow for request in chunk}.values():
            await services.read(lambda workflow=workflow: services.registry.take_foreign(workflow, services.store))  # type: ignore[misc]  # a lambda with a default

    async def _insert(self, key: str, record: Record, chunk: Sequence[ChildRequest]) -> None:
        """Insert them, and again what may not have been stored; returns when each is."""
        left, pause = [self._draft(key, record, request) for request in chunk], _FIRST_PAUSE
        while True:
            left = await self._insert_once(left)
            if not left:
                return
            await trio.sleep(pause * (0.5 + self._services.chance.roll()))
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _insert_once(self, drafts: Sequence[_Draft]) -> list[_Draft]:
        """One try; those of which it stays unknown whether they were stored."""
        doubtful: list[_Draft] = []
        failures: list[Exception] = []
        pending = len(drafts)
        told = trio.Event()

        def tell_of(draft: _Draft) -> Callable[[Outcome], None]:
            def tell(outcome: Outcome) -> None:
                nonlocal pending
                pending -= 1
                if isinstance(outcome, Applied):
                    self._services.committed(draft.run, (draft.decision,))
                elif isinstance(outcome, StoreUnavailable):
                    doubtful.append(draft)
                elif isinstance(outcome, Failed):
                    failures.append(outcome.error)
                if not pending:
                    told.set()

            return tell

        for draft in drafts:
            self._services.committer.post(Insert(draft.run), tell_of(draft))
        await told.wait()
        if failures:
            raise failures[0]
        return doubtful

    def _draft(self, key: str, record: Record, request: ChildRequest) -> _Draft:
        services, run, workflow, options = self._services, self._driver.run, request.workflow, self._options
        now = services.clock.now()
        value = workflow.input_payload(request.value)
        name = record.group if record.kind == "child" else branch_id(record.group, request.index)
        origin = Origin(
            id=stored_id(run.origin.tenant, name),
            workflow=workflow.id,
            start_id=services.chance.commit_id(),
            created_at=now,
            input=value,
            tenant=run.origin.tenant,
            priority=options.priority,
            user=options.user,
            tags=tuple(dict.fromkeys((*workflow.tags, *options.tags))),
            meta=options.meta,
            parent=Parent(
                run=run.origin.id,
                step=self._step,
                key=key,
                group=record.group,
                branch=request.branch,
                index=request.index,
                generation=run.step(self._step).generation,
                detached=record.keeps_losers,
            ),
        )
        slot = slot_for(services, workflow, origin)
        start = paced(StartRequest(origin=origin, state=workflow.initial_state(value), slot=slot), workflow)
        return _Draft(admit(start, workflow.plan, now))


async def child_failed(services: Services, tenant: str | None, record: Record, workflow: str) -> ChildFailed:
    """The error of a child that did not end well; it carries the child as it is now, if it is still stored."""
    stored = await services.read(lambda: services.store.load(stored_id(tenant, record.group)))
    run = None if stored is None else await view(services, stored)
    why = _why(record)
    return ChildFailed(
        f"child {record.group} of workflow {workflow} {why}", run=run, run_id=record.group, status=record.status
    )


def last_step(workflow: Workflow[Any, Any]) -> Step[Any]:
    """The step whose output is that of the run, unless it is skipped."""
    return workflow.steps[workflow.plan.steps[-1].id]


def child_output(record: Record, workflow: Workflow[Any, Any]) -> Any:
    """The output of a child that is done, or what was given in its place, in the declared type.

    None if it is done without one: all its steps were skipped.
    """
    if record.value is None:
        return None
    step = last_step(workflow) if record.note is None else workflow.steps.get(record.note)
    decoder = payload.decoder(Any) if step is None else step.decoder
    return decoder.decode(record.value, what=f"the output of child {record.group}")


def failure_of_join(record: Record, keys: Sequence[str]) -> str:
    """What to say of a join of which a branch has failed."""
    bad = bits_of(record.ended) & ~bits_of(record.good)
    first = (bad & -bad).bit_length() - 1
    return f"branch {keys[first]!r} {_why(record)}"


def _why(record: Record) -> str:
    ended = {"failed": "failed", "cancelled": "was cancelled"}.get(record.status, f"ended as {record.status}")
    message = "" if record.error is None else record.error.message
    return f"{ended}: {message}" if message else ended


async def join_result(
    services: Services, tenant: str | None, record: Record, branches: Sequence[tuple[str, Workflow[Any, Any]]]
) -> JoinResult:
    """The branches that had ended when the join was over, read from their runs."""
    ended, good = bits_of(record.ended), bits_of(record.good)
    places = [place for place in range(len(branches)) if ended >> place & 1]
    results: dict[str, BranchResult] = {}
    for start in range(0, len(places), CHUNK):
        chunk = places[start : start + CHUNK]
        ids = [branch_id(record.group, place) for place in chunk]
        keys = [stored_id(tenant, run_id) for run_id in ids]
        stored = await services.read(lambda keys=keys: services.store.load_many(keys))  # type: ignore[misc]  # a lambda with a default
        for place, run_id, run in zip(chunk, ids, stored, strict=True):
            key, workflow = branches[place]
            results[key] = _branch_result(services, run_id, run, workflow, is_good=bool(good >> place & 1))
    satisfied = good != 0 if record.policy in {"any", "race"} else record.outcome == "value"
    return JoinResult(policy=cast("JoinPolicy", record.policy), satisfied=satisfied, branches=results)


def _branch_result(
    services: Services, run_id: str, run: RunDoc | None, workflow: Workflow[Any, Any], *, is_good: bool
) -> BranchResult:
    """How it settled is what the join was told, also if somebody has taken it up again since.

    `OutputMissing` if the output of a branch that was done is not there any more: it was rewound, or deleted.
    """
    if is_good:
        if run is None or run.head.status != "done":
            why = (
                "it is no longer stored"
                if run is None
                else f"somebody has taken it up again, and it is {run.head.status}"
            )
            raise OutputMissing(f"branch {run_id} was done when the join was over, but {why}", run_id=run_id)
        return BranchResult(run_id=run_id, status="done", output=_output(services, run, workflow))
    if run is None:
        return BranchResult(run_id=run_id, status="failed", error=RunError(code=RunNotFound.code, message=_GONE))
    status = run.head.status if run.head.status in SETTLED and run.head.status != "done" else "failed"
    return BranchResult(run_id=run_id, status=status, error=_error_of(run))


def _output(services: Services, run: RunDoc, workflow: Workflow[Any, Any]) -> Any:
    try:
        return output_of(run, workflow)
    except ValidationError as error:
        warn_of_types(services, run, error)
        return output_of(run, None)


def _error_of(run: RunDoc) -> RunError | None:
    told = ended_with(run.head.error, run.head.cancel_reason, run.head.status)
    if told is None:
        return None
    return RunError(code=told.code, message=told.message, type=told.type, step=told.step)
