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
from streamline_trio._core.errors import InvalidState, TokenInvalid, ValidationError
from streamline_trio._core.happenings import Answered, Withdrawn
from streamline_trio._core.local_time import LocalTime
from streamline_trio._core.signals import Signal
from streamline_trio._core.status import SETTLED
from streamline_trio._core.store import Applied, Delete, RunQuery
from streamline_trio._runtime.emission import emit
from streamline_trio._runtime.handle import RunHandle
from streamline_trio._runtime.orphans import deletable
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
from streamline_trio._runtime.tokens import digest_of
from streamline_trio._runtime.version_history import VersionInfo, list_versions

if TYPE_CHECKING:
    from streamline_trio._runtime.machinery import Machinery

InputT = TypeVar("InputT")
T = TypeVar("T")

_DELETED_AT_ONCE = 200
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


class Engine(Scheduling):
    """Starts runs, reads them, signals them and, unless opened with `worker=False`, drives them.

    Made by `open_engine`. All coroutines are cancel points; those that write are atomic, and what they have
    begun is carried out also if they are cancelled.
    """

    def __init__(self, machinery: Machinery) -> None:
        self._machinery = machinery

    @property
    def worker_id(self) -> str | None:
        """The id under which this engine holds runs now; None if it holds none."""
        return self._machinery.worker.id

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
        user: str | None = None,
        tags: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> RunHandle:
        """Start a run; it is durable when this returns.

        With an active run of the same workflow and `idempotency_key`, that run's handle. `delay` (seconds) and
        `run_at` put the start off; a `run_at` in the past starts at once. `priority` is from -100 to 100, higher
        first. Raises `InvalidState` for a `run_id` in use, `ValidationError` for input that does not fit,
        `WorkflowNotFound`. If the acknowledgement is lost and cannot be had (`StoreUnavailable`), the run may have
        started: start again with the same key. Cancelled, it may have started too.
        """
        options = StartOptions(
            idempotency_key=idempotency_key,
            priority=priority,
            delay=delay,
            run_at=run_at,
            user=user,
            tags=tags,
            meta=meta,
            run_id=run_id,
        )
        known = self._machinery.registry.resolve(workflow)
        return RunHandle(self._machinery, await start(self._machinery, known, input, options))

    def run(self, run_id: str) -> RunHandle:
        """A handle on a run, without looking whether there is one."""
        if not is_text(run_id, _LONGEST_ID):
            raise ValidationError(f"a run id has 1 to {_LONGEST_ID} characters, not {repr(run_id)[:100]}")
        return RunHandle(self._machinery, run_id)

    async def get(self, run_id: str) -> Run:
        """The run as it is stored now. Raises `RunNotFound`."""
        return await self.run(run_id).get()

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
        runs = await self._page(query_of(filters), sort, limit, cursor)
        items = [await self._machinery.view(run) for run in runs[:limit]]
        return Page(items, cursor_after(runs[limit - 1], sort) if len(runs) > limit else None)

    async def count(self, **filters: Unpack[RunFilters]) -> int:
        """How many runs match all filters."""
        query = query_of(filters)
        services = self._machinery.services
        return await services.read(lambda: services.store.count(query))

    async def delete(self, **filters: Unpack[RunFilters]) -> int:
        """Delete the settled runs that match all filters, with everything stored of them; how many.

        Children of a run that has not settled, or has failed after joining them and may be retried, are left, since
        it may still read them, and so are runs that have yet to tell others of their end.
        """
        query = query_of(filters)
        wanted = tuple(status for status in (query.status or sorted(SETTLED)) if status in SETTLED)
        if not wanted:
            return 0
        query = msgspec.structs.replace(query, status=wanted)
        deleted = 0
        cursor: str | None = None
        while True:
            runs = await self._page(query, "created_at", _DELETED_AT_ONCE, cursor)
            left = runs[:_DELETED_AT_ONCE]
            while found := await deletable(self._machinery.services, left):
                for run in found:
                    verdict = await self._machinery.services.committer.submit(Delete(run.id, run.head.revision))
                    deleted += isinstance(verdict, Applied)
                # With their parents gone, nobody needs the children any more.
                gone = {run.id for run in found}
                left = [run for run in left if run.id not in gone]
            if len(runs) <= _DELETED_AT_ONCE:
                return deleted
            cursor = cursor_after(runs[_DELETED_AT_ONCE - 1], "created_at")

    async def pending(
        self,
        workflow: Workflow[Any, Any] | str | None = None,
        *,
        limit: int = 100,
        cursor: str | None = None,
        user: str | None = None,
        tags: Sequence[str] = (),
    ) -> Page[PendingWait]:
        """Whom the runs wait for: open human waits, of the newest runs first. Tokens are never listed."""
        query = query_of({"workflow": workflow, "user": user, "tags": tags, "waiting": "human"})
        runs = await self._page(query, "-created_at", limit, cursor)
        waits = [wait for run in runs[:limit] for wait in _pending_of(run)]
        return Page(waits, cursor_after(runs[limit - 1], "-created_at") if len(runs) > limit else None)

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
        id: str | None = None,
        match: Mapping[str, Any] | None = None,
    ) -> None: ...
    async def emit(
        self,
        signal: Signal[Any] | str,
        payload: Any = None,
        *,
        run: RunHandle | str | None = None,
        id: str | None = None,
        match: Mapping[str, Any] | None = None,
    ) -> None:
        """Emit a signal, durably.

        With `run` it is kept until that run waits for it, in order of arrival (`InvalidState` if the run is
        settled or has 1,000 signals that it has not taken). Without, it wakes the runs that wait for it now;
        `match` selects among them by fields of the run. A signal with an `id` that was emitted before to the
        same target (within 24 h) does nothing; without one each call is a signal of its own.
        """
        target = run.id if isinstance(run, RunHandle) else run
        await emit(self._machinery, signal, payload, run=target, id=id, match=match)

    async def resume(self, token: str, payload: Any = None) -> None:
        """Answer the wait that the token belongs to. `TokenInvalid`, or `ValidationError` (still open)."""
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
        digest = digest_of(token)
        services = self._machinery.services
        run = await services.read(lambda: services.store.by_token(digest))
        if run is None:
            raise TokenInvalid("this token is unknown, used or expired")
        return run.origin.id, digest

    async def _act_by_token(self, run_id: str, happening: Answered | Withdrawn) -> None:
        """Whoever holds a token learns nothing of the run's state but whether the token is good."""
        try:
            await self._machinery.act(run_id, happening)
        except InvalidState as error:
            raise TokenInvalid("this token is unknown, used or expired") from error

    # --- watching ------------------------------------------------------------------------------------------

    def events(self, *names: str, run: RunHandle | str | None = None) -> AbstractAsyncContextManager[Subscription]:
        """Listen to what this process commits: names or globs such as `step.*`; all without a name.

        Up to 10,000 events wait for the listener; what it is too slow for is dropped and counted.
        """
        target = run.id if isinstance(run, RunHandle) else run
        return self._machinery.services.publisher.subscribe(*names, run=target)

    def on(self, name: str, listener: Listener) -> Callable[[], None]:
        """Call `listener(event)` (sync or async) for each event; returns the function that ends it.

        A listener that raises is logged and published as `engine.error`; it never reaches a run.
        """
        return self._machinery.services.publisher.on(name, listener)

    async def stats(self) -> Stats:
        """Counts over the store, and what this engine does."""
        return await gather_stats(self._machinery)

    async def versions(self, workflow: Workflow[Any, Any] | str) -> list[VersionInfo]:
        """Every version of a workflow that an engine on this store was ever given, the highest first.

        It tells which of them live workers have and how many active runs are on each: a version without any can be
        retired. Nothing for a workflow that nobody knows. Counts from the store, each as of its own instant.
        """
        return await list_versions(self._machinery.services, workflow if isinstance(workflow, str) else workflow.id)

    async def workers(self) -> list[WorkerInfo]:
        """The live workers on this store."""
        return await list_workers(self._machinery)


def _pending_of(run: RunDoc) -> list[PendingWait]:
    return [
        PendingWait(
            run_id=run.origin.id,
            workflow=run.origin.workflow,
            step=run.head.current_step or "",
            key=key,
            reason=record.reason,
            name=record.name,
            meta={} if record.meta is None else msgspec.msgpack.decode(record.meta),
            opened_at=instant_of(record.opened_at),
            due_at=None if record.due_at is None else instant_of(record.due_at),
            user=run.origin.user,
            tags=run.origin.tags,
            approval=record.approval,
        )
        for key, record in run.records.items()
        if record.is_open and record.kind == "human"
    ]
