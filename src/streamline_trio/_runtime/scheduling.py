"""How schedules are made: what is checked before anything is stored, and the engine's verb."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, overload

from streamline_trio._core.definition import Workflow
from streamline_trio._core.durations import seconds_of, to_millis
from streamline_trio._core.errors import InvalidState, WorkflowNotFound
from streamline_trio._core.recurrence import Recurrence
from streamline_trio._core.schedule_verbs import differences
from streamline_trio._core.schedules import SCHEDULES, ScheduleDoc, key_of, with_due
from streamline_trio._core.store import Applied, Failed
from streamline_trio._runtime.schedule_checks import (
    check_schedule_id,
    checked_input,
    checked_rule,
    stored_options,
)
from streamline_trio._runtime.schedule_firing import decode_schedule, write_of
from streamline_trio._runtime.schedule_snapshot import Schedule
from streamline_trio._runtime.schedules import Schedules, tell, view
from streamline_trio._runtime.starting import StartOptions, check

if TYPE_CHECKING:
    from streamline_trio._runtime.machinery import Machinery
    from streamline_trio._runtime.tenancy import Scope

InputT = TypeVar("InputT")


class Scheduling:
    """What an engine does with schedules."""

    _machinery: Machinery
    _scope: Scope

    @property
    def schedules(self) -> Schedules:
        """The schedules on the store: get, find, pause, unpause, run_now, update, delete, preview."""
        return Schedules(self._machinery, self._scope)

    @overload
    async def schedule(
        self,
        workflow: Workflow[InputT, Any],
        input: InputT,
        *,
        every: Recurrence,
        id: str | None = None,
        version: str | None = None,
        jitter: float | timedelta = 0,
        priority: int = 0,
        tenant: str | None = None,
        user: str | None = None,
        tags: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
    ) -> Schedule: ...
    @overload
    async def schedule(
        self,
        workflow: Workflow[None, Any] | str,
        input: Any = None,
        *,
        every: Recurrence,
        id: str | None = None,
        version: str | None = None,
        jitter: float | timedelta = 0,
        priority: int = 0,
        tenant: str | None = None,
        user: str | None = None,
        tags: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
    ) -> Schedule: ...
    async def schedule(
        self,
        workflow: Workflow[Any, Any] | str,
        input: Any = None,
        *,
        every: Recurrence,
        id: str | None = None,
        version: str | None = None,
        jitter: float | timedelta = 0,
        priority: int = 0,
        tenant: str | None = None,
        user: str | None = None,
        tags: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
    ) -> Schedule:
        """Start a run of the workflow at each occurrence of the rule; the schedule is durable when this returns.

        Exactly one run for each firing, whatever workers do; each has `priority`, `tenant`, `user`, `tags` and
        `meta`, and is of the highest version that the worker has which fires, or of `version`. `jitter` puts each
        firing off by chance, by at most so many seconds and never past the next. The same schedule under the same
        `id` again is that one, so that programs may declare theirs whenever they start; another one under a used id
        is `InvalidState`. Without an id, each call makes a schedule. Raises `ValidationError`, `WorkflowNotFound`,
        `StoreUnavailable` (it may or may not be stored: with an id, call again). Cancelled, it may be stored too.
        """
        machinery, owner = self._machinery, self._scope.demanded(tenant).tenant
        known = machinery.registry.resolve(workflow)
        if version is not None:
            found = machinery.registry.meant(known.id, version)
            if found is None:
                raise WorkflowNotFound(
                    f"this engine was not given workflow {known.id!r} {version}", workflow=known.id, version=version
                )
            known = found
        options = StartOptions(priority=priority, user=user, tags=tags, meta=meta, tenant=owner)
        check(f"schedule of {known.id}", options)
        if id is not None:
            check_schedule_id(id)
        now, chance = machinery.services.clock.now(), machinery.services.chance
        doc = ScheduleDoc(
            id=chance.run_id(now) if id is None else id,
            tenant=owner,
            incarnation=chance.commit_id(),
            workflow=known.id,
            version=version,
            input=checked_input(known, input),
            every=checked_rule(every),
            jitter=to_millis(seconds_of(jitter, what="jitter")),
            created_at=now,
            updated_at=now,
            anchor=now,
            after=now,
            **stored_options(options),
        )
        return await create(machinery, with_due(doc))


async def create(machinery: Machinery, doc: ScheduleDoc) -> Schedule:
    """Store it; the same one that is stored already is that one."""
    services = machinery.services
    while True:
        side = await services.read(lambda: services.store.side(SCHEDULES, key_of(doc.id, doc.tenant)))
        stored = None if side is None else decode_schedule(side)
        if stored is not None and stored.deleted_at is None:
            other = differences(stored, doc)
            if not other:
                return view(machinery, stored)
            raise InvalidState(
                f"schedule {doc.id!r} exists and is another one ({', '.join(other)} differ):"
                " change it by engine.schedules.update",
                action="schedule",
                schedule=doc.id,
            )
        verdict = await services.committer.submit(write_of(doc, None if side is None else side.revision))
        if isinstance(verdict, Failed):
            raise verdict.error
        if isinstance(verdict, Applied):
            tell(machinery, doc)
            return view(machinery, doc)
