"""The engine: what programs do with runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import msgspec
import whenever
from typing_extensions import Unpack

from streamline_trio._core import payload as payloads
from streamline_trio._core.approvals import approval, rejection
from streamline_trio._core.checking import check_reason, is_text
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.durations import instant_of
from streamline_trio._core.errors import InvalidState, RunNotFound, TokenInvalid, ValidationError
from streamline_trio._core.happenings import Answered, Withdrawn
from streamline_trio._core.local_time import LocalTime
from streamline_trio._core.signals import Signal
from streamline_trio._core.store import RunQuery
from streamline_trio._core.tenancy import check_tenant
from streamline_trio._runtime.bulk import BulkVerbs
from streamline_trio._runtime.emission import emit
from streamline_trio._runtime.handle import RunHandle, handle_of, place_of
from streamline_trio._runtime.publisher import Listener, Subscription
from streamline_trio._runtime.queries import (
    Page,
    RunFilters,
    Sort,
    check_paging,
    cursor_after,
    decode_cursor,
    query_of,
)
from streamline_trio._runtime.scheduling import Scheduling
from streamline_trio._runtime.snapshot import Run
from streamline_trio._runtime.starting import StartOptions, start
from streamline_trio._runtime.stats import Stats, WorkerInfo, gather_stats, list_workers
from streamline_trio._runtime.tenancy import Scope
from streamline_trio._runtime.tokens import digest_of
from streamline_trio._runtime.version_history import VersionInfo, list_versions

if TYPE_CHECKING:
    from streamline_trio._runtime.machinery import Machinery

InputT = TypeVar("InputT")
T = TypeVar("T")

_LONGEST_ID = 1000


class PendingWait(msgspec.Struct, frozen=True, kw_only=True):
    """A person is waited for; `approval`: to approve or reject."""

    run_id: str
    workflow: str
    step: str
    key: str
    reason: str
    name: str
    meta: dict[str, Any]
    opened_at: whenever.Instant
    due_at: whenever.Instant | None
    user: str | None
    tags: tuple[str, ...]
    approval: bool = False
    tenant: str | None = None


class Engine(BulkVerbs, Scheduling):
    """Starts runs, reads them, signals them and, unless opened with `worker=False`, drives them.

    Made by `open_engine`. All coroutines are cancel points; those that write are atomic, and what they have
    begun is carried out also if they are cancelled.
    """

    def __init__(self, machinery: Machinery, scope: Scope) -> None:
        self._machinery = machinery
        self._scope = scope

    @property
    def worker_id(self) -> str | None:
        """The id under which this engine holds runs now; None if it holds none."""
        return self._machinery.worker.id

    def scoped(self, tenant: str) -> Engine:
        """The same engine confined to one tenant: another tenant's run is `RunNotFound` to every verb.

        `ValidationError` for what cannot be a tenant, and for another tenant than the one that it is confined to
        already: a scope cannot be widened. It costs nothing and need not be closed.
        """
        return Engine(self._machinery, self._scope.within(check_tenant(tenant)))

    @overload
    async def start(
        self,
        workflow: Workflow[InputT, Any],
        input: InputT,
        *,
        idempotency_key: str | None = None,
        priority: int = 0,
        delay: float | timedelta | None = None,
        run_at: datetime | whenever.Instant | whenever.ZonedDateTime | LocalTime | None = None,
        tenant: str | None = None,
        user: str | None = None,
        tags: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> RunHandle: ...
    @overload
    async def start(
        self,
        workflow: Workflow[None, Any] | str,
        input: Any = None,
        *,
        idempotency_key: str | None = None,
        priority: int = 0,
        delay: float | timedelta | None = None,
        run_at: datetime | whenever.Instant | whenever.ZonedDateTime | LocalTime | None = None,
        tenant: str | None = None,
        user: str | None = None,
        tags: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> RunHandle: ...
    async def start(
        self,
        workflow: Workflow[Any, Any] | str,
        input: Any = None,
        *,
        idempotency_key: str | None = None,
        priority: int = 0,
        delay: float | timedelta | None = None,
        run_at: datetime | whenever.Instant | whenever.ZonedDateTime | LocalTime | None = None,
        tenant: str | None = None,
        user: str | None = None,
        tags: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> RunHandle:
        """Start a run; it is durable when this returns.

        With an active run of the same tenant, workflow and `idempotency_key`, that run's handle. `delay` (seconds)
        and `run_at` put the start off; a `run_at` in the past starts at once. `priority` is from -100 to 100,
        higher first. Keys and the `run_id` are the tenant's own: others may use the same. Raises `InvalidState` for
        a `run_id` in use, `TenantRequired` if the engine demands a tenant, `ValidationError` for input that does
        not fit, `WorkflowNotFound`. If the acknowledgement is lost and cannot be had (`StoreUnavailable`), the run
        may have started: start again with the same key. Cancelled, it may have started too.
        """
        scope = self._scope.demanded(tenant)
        options = StartOptions(
            idempotency_key=idempotency_key,
            priority=priority,
            delay=delay,
            run_at=run_at,
            user=user,
            tags=tags,
            meta=meta,
            run_id=run_id,
            tenant=scope.tenant,
        )
        known = self._machinery.registry.resolve(workflow)
        return handle_of(self._machinery, await start(self._machinery, known, input, options))

    def run(self, run_id: str, *, tenant: str | None = None) -> RunHandle:
        """A handle on a run, without looking whether there is one.

        Without a tenant and outside a scope it is the run of that id that belongs to no tenant, else the only one
        that does; the handle's verbs raise `ValidationError` if several do.
        """
        if not is_text(run_id, _LONGEST_ID):
            raise ValidationError(f"a run id has 1 to {_LONGEST_ID} characters, not {repr(run_id)[:100]}")
        return RunHandle(self._machinery, run_id, self._scope.within(tenant))

    async def get(self, run_id: str, *, tenant: str | None = None) -> Run:
        """The run as it is stored now. Raises `RunNotFound`, and what `run` says."""
        return await self.run(run_id, tenant=tenant).get()

    # --- many runs -----------------------------------------------------------------------------------------

    async def find(
        self,
        *,
        sort: Sort = "-created_at",
        limit: int = 100,
        cursor: str | None = None,
        **filters: Unpack[RunFilters],
    ) -> Page[Run]:
        """Runs that match all filters, a page at a time; pass `cursor` of a page to get the next one."""
        runs = await self._page(await self._query(filters), sort, limit, cursor)
        items = [await self._machinery.view(run) for run in runs[:limit]]
        return Page(items, cursor_after(runs[limit - 1], sort) if len(runs) > limit else None)

    async def count(self, **filters: Unpack[RunFilters]) -> int:
        """How many runs match all filters."""
        query = await self._query(filters)
        services = self._machinery.services
        return await services.read(lambda: services.store.count(query))

    async def pending(
        self,
        workflow: Workflow[Any, Any] | str | None = None,
        *,
        limit: int = 100,
        cursor: str | None = None,
        tenant: str | None = None,
        user: str | None = None,
        tags: Sequence[str] = (),
    ) -> Page[PendingWait]:
        """Whom the runs wait for: open human waits, of the newest runs first. Tokens are never listed."""
        asked = {"workflow": workflow, "tenant": tenant, "user": user, "tags": tags, "waiting": "human"}
        query = await self._query(asked)
        runs = await self._page(query, "-created_at", limit, cursor)
        waits = [wait for run in runs[:limit] for wait in _pending_of(run)]
        return Page(waits, cursor_after(runs[limit - 1], "-created_at") if len(runs) > limit else None)

    async def _query(self, filters: Mapping[str, Any]) -> RunQuery:
        return await query_of(self._machinery, self._scope, filters)

    async def _page(self, query: RunQuery, sort: Sort, limit: int, cursor: str | None) -> list[RunDoc]:
        """One run more than asked for, which tells whether there is a next page."""
        check_paging(sort, limit)
        after = decode_cursor(cursor, sort)
        services = self._machinery.services
        return await services.read(lambda: services.store.find(query, sort=sort, limit=limit + 1, after=after))

    # --- signals and people --------------------------------------------------------------------------------

    @overload
    async def emit(
        self,
        signal: Signal[T],
        payload: T,
        *,
        run: RunHandle | str | None = None,
        tenant: str | None = None,
        id: str | None = None,
        match: Mapping[str, Any] | None = None,
    ) -> None: ...
    @overload
    async def emit(
        self,
        signal: Signal[None] | str,
        payload: Any = None,
        *,
        run: RunHandle | str | None = None,
        tenant: str | None = None,
        id: str | None = None,
        match: Mapping[str, Any] | None = None,
    ) -> None: ...
    async def emit(
        self,
        signal: Signal[Any] | str,
        payload: Any = None,
        *,
        run: RunHandle | str | None = None,
        tenant: str | None = None,
        id: str | None = None,
        match: Mapping[str, Any] | None = None,
    ) -> None:
        """Emit a signal, durably.

        With `run` it is kept until that run waits for it, in order of arrival (`InvalidState` if the run is
        settled or has 1,000 signals that it has not taken), or cancels it if its workflow says so (`cancel_on`).

        Without, it is a broadcast to the runs of the tenant, or if none is given to those that belong to none: it
        wakes those that wait for it now, cancels those that their workflow's `cancel_on` matches, and starts a run
        of each workflow that it triggers. `match` selects among the runs by fields of theirs. It returns when the
        first 1,000 are reached; the rest follow, whatever becomes of this process. A run takes each broadcast at
        most once. What cannot be started is an `engine.error`.

        A signal with an `id` that was emitted before to the same target (within 24 h) does nothing; without one
        each call is a signal of its own.
        """
        if run is None:
            scope, place = self._scope.demanded(tenant), None
        else:
            scope = self._scope.within(tenant)
            place = place_of(self._machinery, run, scope)
        await emit(self._machinery, signal, payload, run=place, id=id, match=match, tenant=scope.tenant)

    async def resume(self, token: str, payload: Any = None) -> None:
        """Answer the wait that the token belongs to. `TokenInvalid`, or `ValidationError` (still open).

        A token that a tenant's run has chosen by itself is known in the tenant's scope only.
        """
        run, digest = await self._by_token(token)
        given = payloads.encode(payload, what="the answer")
        await self._act_by_token(run, Answered(payload=given, token=digest))

    async def withdraw(self, token: str, reason: str | None = None) -> None:
        """End the wait that the token belongs to without an answer. `TokenInvalid`."""
        check_reason(reason, "the reason of a withdrawal")
        run, digest = await self._by_token(token)
        await self._act_by_token(run, Withdrawn(token=digest, reason=reason))

    async def approve(self, token: str, data: Any = None) -> None:
        """Approve what the token belongs to. `TokenInvalid`, or `ValidationError` for data that does not fit.

        A wait that is no approval takes it only if what it returns has the form of an approval.
        """
        await self._decide(token, approval(data), "approve")

    async def reject(self, token: str, reason: str | None = None) -> None:
        """Reject what the token belongs to, as `approve` does. `TokenInvalid`, `ValidationError`."""
        await self._decide(token, rejection(reason), "reject")

    async def _decide(self, token: str, payload: bytes, verb: Literal["approve", "reject"]) -> None:
        run, digest = await self._by_token(token)
        await self._act_by_token(run, Answered(payload=payload, token=digest, verb=verb))

    async def _by_token(self, token: str) -> tuple[str, str]:
        if not is_text(token, _LONGEST_ID):
            raise TokenInvalid("this token is unknown, used or expired")
        scope, services = self._scope.demanded(), self._machinery.services
        minted = digest_of(token)
        for digest in (digest_of(token, scope.tenant), minted) if scope.confined else (minted,):
            run = await services.read(lambda digest=digest: services.store.by_token(digest))  # type: ignore[misc]  # a lambda with a default
            if run is not None and (not scope.confined or run.origin.tenant == scope.tenant):
                return run.origin.id, digest
        raise TokenInvalid("this token is unknown, used or expired")

    async def _act_by_token(self, run_id: str, happening: Answered | Withdrawn) -> None:
        """Whoever holds a token learns nothing of the run's state but whether the token is good."""
        try:
            await self._machinery.act(run_id, happening)
        except (InvalidState, RunNotFound) as error:
            raise TokenInvalid("this token is unknown, used or expired") from error

    # --- watching ------------------------------------------------------------------------------------------

    def events(self, *names: str, run: RunHandle | str | None = None) -> AbstractAsyncContextManager[Subscription]:
        """Listen to what this process commits: names or globs such as `step.*`; all without a name.

        Up to 10,000 events wait for the listener; what it is too slow for is dropped and counted. In a tenant's
        scope only events of its runs; outside, `run` as an id means those of every tenant that has one of it.
        """
        publisher = self._machinery.services.publisher
        if run is None:
            return publisher.subscribe(*names, includes=self._scope.includes)
        place = place_of(self._machinery, run, self._scope)
        place.scope.demanded()
        return publisher.subscribe(*names, run=place.run_id, includes=place.scope.includes)

    def on(self, name: str, listener: Listener) -> Callable[[], None]:
        """Call `listener(event)` (sync or async) for each event; returns the function that ends it.

        A listener that raises is logged and published as `engine.error`; it never reaches a run.
        """
        return self._machinery.services.publisher.on(name, listener, self._scope.includes)

    async def stats(self) -> Stats:
        """Counts over the store, and what this engine does. `InvalidState` in a tenant's scope: it tells of all."""
        self._require_everything("stats")
        return await gather_stats(self._machinery)

    async def versions(self, workflow: Workflow[Any, Any] | str) -> list[VersionInfo]:
        """Every version of a workflow that an engine on this store was ever given, the highest first.

        It tells which of them live workers have and how many active runs are on each: a version without any can be
        retired. Nothing for a workflow that nobody knows. Counts from the store, each as of its own instant; in a
        tenant's scope of its runs.
        """
        name = workflow if isinstance(workflow, str) else workflow.id
        return await list_versions(self._machinery.services, name, self._scope.tenant)

    async def workers(self) -> list[WorkerInfo]:
        """The live workers on this store. `InvalidState` in a tenant's scope."""
        self._require_everything("workers")
        return await list_workers(self._machinery)

    def _require_everything(self, verb: str) -> None:
        if self._scope.confined:
            raise InvalidState(f"{verb} tells of all tenants: ask the engine outside a scope", action=verb)


def _pending_of(run: RunDoc) -> list[PendingWait]:
    return [
        PendingWait(
            run_id=run.public_id,
            workflow=run.origin.workflow,
            step=run.head.current_step or "",
            key=key,
            reason=record.reason,
            name=record.name,
            meta={} if record.meta is None else msgspec.msgpack.decode(record.meta),
            opened_at=instant_of(record.opened_at),
            due_at=None if record.due_at is None else instant_of(record.due_at),
            tenant=run.origin.tenant,
            user=run.origin.user,
            tags=run.origin.tags,
            approval=record.approval,
        )
        for key, record in run.records.items()
        if record.is_open and record.kind == "human"
    ]
