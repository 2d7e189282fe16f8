"""Schedules as programs see them: how they are read and steered."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from streamline_trio._core.checking import check_reason, is_whole
from streamline_trio._core.definition import Workflow
from streamline_trio._core.durations import instant_of, seconds_of, to_millis
from streamline_trio._core.errors import (
    DataCorruption,
    InvalidState,
    ScheduleNotFound,
    StoreUnavailable,
    ValidationError,
    WorkflowNotFound,
)
from streamline_trio._core.occurrences import Occurrence
from streamline_trio._core.recurrence import Recurrence
from streamline_trio._core.schedule_verbs import asked_now, deleted, paused, unpaused, updated
from streamline_trio._core.schedules import (
    SCHEDULES,
    ScheduleDoc,
    due_at,
    is_foreign,
    key_of,
    run_id_of,
    scope_of,
)
from streamline_trio._core.store import Applied, Failed, SideDoc
from streamline_trio._runtime.handle import RunHandle, handle_of
from streamline_trio._runtime.queries import MAX_LIMIT, Page
from streamline_trio._runtime.schedule_checks import (
    check_schedule_id,
    checked_input,
    checked_rule,
    stored_options,
)
from streamline_trio._runtime.schedule_firing import Ends, decode_schedule, write_of
from streamline_trio._runtime.schedule_snapshot import Schedule, view_of
from streamline_trio._runtime.starting import StartOptions, check

if TYPE_CHECKING:
    from streamline_trio._runtime.machinery import Machinery
    from streamline_trio._runtime.tenancy import Scope

Change = Callable[[ScheduleDoc, int], ScheduleDoc]

_MOST_PREVIEWED = 10_000


def view(machinery: Machinery, doc: ScheduleDoc) -> Schedule:
    """The public snapshot of a stored schedule."""
    return view_of(doc, machinery.registry.meant(doc.workflow, doc.version))


def tell(machinery: Machinery, doc: ScheduleDoc) -> None:
    """It was written: let who fires here know when."""
    due = due_at(doc)
    if due is not None:
        machinery.firing.notify(due)


class Schedules:
    """Reads and steers the schedules on the store; `engine.schedules`.

    All coroutines are cancel points; those that write are atomic, and what they have begun is carried out also if
    they are cancelled. Those that name a schedule raise `ScheduleNotFound`. An id belongs to its tenant: without
    one, and outside a scope, it is that of a schedule without a tenant. All raise `TenantRequired` if the engine
    demands a tenant.
    """

    def __init__(self, machinery: Machinery, scope: Scope) -> None:
        self._machinery = machinery
        self._scope = scope

    async def get(self, id: str, *, tenant: str | None = None) -> Schedule:
        """The schedule as it is stored now."""
        return view(self._machinery, (await self._load(id, tenant))[0])

    async def find(
        self,
        *,
        workflow: Workflow[Any, Any] | str | None = None,
        paused: bool | None = None,
        tenant: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[Schedule]:
        """Schedules in the order of their ids, a page at a time; pass `cursor` of a page to get the next one."""
        if not is_whole(limit, 1, MAX_LIMIT):
            raise ValidationError(f"limit is a whole number from 1 to {MAX_LIMIT}, not {limit!r}")
        wanted = workflow.id if isinstance(workflow, Workflow) else workflow
        place = self._scope.demanded(tenant)
        scope = scope_of(place.tenant) if place.confined else ""
        after = scope if cursor is None else max(scope, _decoded_cursor(cursor))
        found: list[Schedule] = []
        last = after
        services = self._machinery.services
        while True:
            page = await services.read(lambda after=after: services.store.sides(SCHEDULES, after=after))  # type: ignore[misc]  # a lambda with a default
            for side in page:
                if not side.key.startswith(scope):
                    return Page(found)
                doc = _wanted(side, wanted, paused=paused)
                if doc is not None and len(found) == limit:
                    return Page(found, _cursor(last))
                if doc is not None:
                    found.append(view(self._machinery, doc))
                    last = side.key
            if not page:
                return Page(found)
            after = page[-1].key

    async def pause(self, id: str, reason: str | None = None, *, tenant: str | None = None) -> Schedule:
        """Let it fire no more until `unpause`. Runs go on; firings that wait for an earlier run are left out."""
        check_reason(reason, "the reason of a pause")
        return await self._change(id, tenant, lambda doc, now: paused(doc, reason, now))

    async def unpause(self, id: str, *, tenant: str | None = None) -> Schedule:
        """Let it go on with the next firing from now: none of the time in between is made up."""
        return await self._change(id, tenant, unpaused)

    async def run_now(self, id: str, *, tenant: str | None = None) -> RunHandle:
        """Start one run more, at once, whatever the rule and overlap say, and also while it is paused.

        It moves and counts nothing; later firings heed it as they heed any run of the schedule. Raises what
        `engine.start` raises. Where this engine has not the workflow, a worker that has it starts the run at once,
        and until then there is no run under the handle's id. Cancelled, it may have started.
        """
        machinery = self._machinery
        services, firing_service = machinery.services, machinery.firing
        while True:
            doc, revision = await self._load(id, tenant)
            _refuse_foreign(doc, "run_now")
            now = services.clock.now()
            workflow = machinery.registry.meant(doc.workflow, doc.version)
            after, firing = asked_now(doc, now, now if workflow is None else now + firing_service.patience)
            verdict = await services.committer.submit(write_of(after, revision))
            if isinstance(verdict, Failed):
                raise verdict.error
            if isinstance(verdict, Applied):
                break
        handle = handle_of(machinery, run_id_of(after, firing))
        if workflow is not None:
            ends: Ends = {}
            await firing_service.begin_now(revision + 1, after, workflow, firing, ends).wait()
            if firing.name not in ends:
                raise StoreUnavailable(f"run {handle.id} of schedule {id!r} starts as soon as the store answers")
            end = ends[firing.name]
            if isinstance(end, Exception):
                raise end
            return handle_of(machinery, end)
        return handle

    async def update(
        self,
        id: str,
        *,
        every: Recurrence | UnsetType = UNSET,
        input: Any = UNSET,
        jitter: float | timedelta | UnsetType = UNSET,
        priority: int | UnsetType = UNSET,
        user: str | UnsetType | None = UNSET,
        tags: Sequence[str] | UnsetType = UNSET,
        meta: Mapping[str, Any] | UnsetType | None = UNSET,
        tenant: str | None = None,
    ) -> Schedule:
        """Change what is given; the rest stays.

        Another rule counts its `count` afresh and measures an interval from now; other limits of the same rule
        only count on. Runs that were started before keep what they have. `ValidationError`, `WorkflowNotFound`
        where a new input cannot be checked since this engine has not the workflow.
        """
        doc, _ = await self._load(id, tenant)
        changes: dict[str, Any] = {}
        if every is not UNSET:
            changes["every"] = checked_rule(every)
        if jitter is not UNSET:
            changes["jitter"] = to_millis(seconds_of(jitter, what="jitter"))
        workflow = self._machinery.registry.meant(doc.workflow, doc.version)
        if input is not UNSET:
            if workflow is None:
                raise WorkflowNotFound(f"this engine has no workflow {doc.workflow!r}", workflow=doc.workflow)
            changes["input"] = checked_input(workflow, input)
        options = StartOptions(
            priority=doc.priority if priority is UNSET else priority,
            user=doc.user if user is UNSET else user,
            tags=doc.tags if tags is UNSET else tags,
            meta=None if meta is UNSET else meta,
        )
        check(f"update of schedule {id}", options)
        given = {"priority": priority, "user": user, "tags": tags, "meta": meta}
        stored = stored_options(options)
        changes.update({name: stored[name] for name, value in given.items() if value is not UNSET})
        return await self._change(id, tenant, lambda doc, now: updated(doc, changes, now))

    async def delete(self, id: str, *, tenant: str | None = None) -> None:
        """Remove it: nothing fires any more. Its runs go on, and its id may be used again at once."""
        await self._change(id, tenant, deleted)

    async def preview(self, id: str, n: int = 10, *, tenant: str | None = None) -> list[Occurrence]:
        """Its next `n` occurrences, fewer if it ends before; without jitter, and as if it were not paused."""
        if not is_whole(n, 0, _MOST_PREVIEWED):
            raise ValidationError(f"n is a whole number from 0 to {_MOST_PREVIEWED}, not {n!r}")
        doc, _ = await self._load(id, tenant)
        after = max(doc.after, self._machinery.services.clock.now()) if doc.paused else doc.after
        found = doc.every.occurrences(instant_of(after), anchor=instant_of(doc.anchor), passed=doc.spent)
        return list(islice(found, n))

    # --- inside --------------------------------------------------------------------------------------------

    async def _load(self, id: str, tenant: str | None) -> tuple[ScheduleDoc, int]:
        check_schedule_id(id)
        key = key_of(id, self._scope.demanded(tenant).tenant)
        services = self._machinery.services
        side = await services.read(lambda: services.store.side(SCHEDULES, key))
        doc = None if side is None else decode_schedule(side)
        if side is None or doc is None or doc.deleted_at is not None:
            raise ScheduleNotFound(f"there is no schedule {id!r}", schedule=id)
        return doc, side.revision

    async def _change(self, id: str, tenant: str | None, change: Change) -> Schedule:
        """Change what is stored by compare-and-set, again if somebody was faster."""
        services = self._machinery.services
        while True:
            doc, revision = await self._load(id, tenant)
            if change is not deleted:
                _refuse_foreign(doc, "change")
            after = change(doc, services.clock.now())
            if after is doc:
                return view(self._machinery, doc)
            verdict = await services.committer.submit(write_of(after, revision))
            if isinstance(verdict, Failed):
                raise verdict.error
            if isinstance(verdict, Applied):
                tell(self._machinery, after)
                return view(self._machinery, after)


def _refuse_foreign(doc: ScheduleDoc, action: str) -> None:
    if is_foreign(doc):
        raise InvalidState(
            f"schedule {doc.id!r} has a rule of kind {doc.every.kind!r}: only a newer release can change it",
            action=action,
            schedule=doc.id,
        )


def _wanted(side: SideDoc, workflow: str | None, *, paused: bool | None) -> ScheduleDoc | None:
    """The schedule, if it matches; one that does not decode is left out."""
    try:
        doc = decode_schedule(side)
    except DataCorruption:
        return None
    is_wanted = doc.deleted_at is None and workflow in {None, doc.workflow} and paused in {None, doc.paused}
    return doc if is_wanted else None


def _cursor(key: str) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode((SCHEDULES, key))).decode()


def _decoded_cursor(cursor: str) -> str:
    try:
        decoded = base64.urlsafe_b64decode(cursor.encode())
        return msgspec.msgpack.decode(decoded, type=tuple[Literal["schedule"], str])[1]
    except (ValueError, AttributeError, msgspec.DecodeError) as error:
        raise ValidationError("the cursor is not one of ours") from error
