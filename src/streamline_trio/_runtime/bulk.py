"""Verbs on many runs: delete, cancel, retry whatever matches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import trio
from typing_extensions import Unpack

from streamline_trio._core.checking import check_reason
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import (
    ConcurrencyLimitReached,
    InvalidState,
    RunNotFound,
    StoreUnavailable,
    StreamlineError,
)
from streamline_trio._core.happenings import CancelAsked, Happening, Retried
from streamline_trio._core.status import RunStatus
from streamline_trio._core.store import Cursor, RunQuery
from streamline_trio._runtime.orphans import with_active_parents
from streamline_trio._runtime.queries import RunFilters, query_of
from streamline_trio._runtime.removing import remove_settled

if TYPE_CHECKING:
    from streamline_trio._runtime.machinery import Machinery
    from streamline_trio._runtime.tenancy import Scope

_AT_ONCE = 200
_ACTING_AT_ONCE = 100
_Groups: TypeAlias = Sequence[tuple[RunStatus, ...]]
"""Statuses that are gone through together. Stores page through one faster; a run that moves between those of one
group is not missed."""

_ACTIVE: tuple[RunStatus, ...] = ("draft", "running", "waiting")
_ACTIVE_OR_UNDOING: tuple[RunStatus, ...] = (*_ACTIVE, "compensating")
_RETRIABLE: _Groups = (("failed",), ("compensation_failed",))
_DELETABLE: _Groups = (*_RETRIABLE, ("done",), ("cancelled",), ("compensated",))
"""First those that may be the last to need others."""

_NOT_CANCELLED: tuple[RunStatus, ...] = ("done", "failed", "compensated", "compensation_failed")


class BulkProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a bulk verb has come: of the runs it has `seen` to so far it took effect on `done`."""

    seen: int
    done: int


OnProgress: TypeAlias = Callable[[BulkProgress], object]
"""Called after each batch, in the caller's task; what it raises ends the verb there."""


class _Meter:
    """Adds up how far a verb has come, and tells whoever wants to know."""

    __slots__ = ("_tell", "done", "seen")

    def __init__(self, tell: OnProgress | None) -> None:
        self._tell = tell
        self.seen = 0
        self.done = 0

    def add(self, seen: int, done: int) -> None:
        """One batch more."""
        self.seen += seen
        self.done += done
        if self._tell is not None and seen:
            self._tell(BulkProgress(seen=self.seen, done=self.done))


class BulkVerbs:
    """The verbs of an engine on all runs that match filters."""

    _machinery: Machinery
    _scope: Scope

    async def delete(self, *, on_progress: OnProgress | None = None, **filters: Unpack[RunFilters]) -> int:
        """Delete the settled runs that match all filters, with everything stored of them; how many.

        Children of a run that has not settled, or has failed after joining them and may be retried, are left, since
        it may still read them, and so are runs that have yet to tell others of their end.

        As all bulk verbs it goes through the runs that were created before the call (by this engine's clock),
        oldest first, a few hundred at a time. Each run by itself is changed whole or not at all.
        `StoreUnavailable`, or a cancellation, leaves the rest undone: call again.
        """
        meter, services = _Meter(on_progress), self._machinery.services

        async def delete(runs: Sequence[RunDoc]) -> None:
            meter.add(len(runs), await remove_settled(services, runs))

        await self._each_page(self._until_now(await self._query(filters)), _DELETABLE, delete)
        return meter.done

    async def cancel_all(
        self, *, reason: str | None = None, on_progress: OnProgress | None = None, **filters: Unpack[RunFilters]
    ) -> int:
        """Cancel the runs that match all filters and have not settled; how many were asked to, or are cancelled.

        Runs that undo what they did because they failed are left to it, unless `status` names `compensating`: then
        the rest stays undone. Runs that settle meanwhile are passed over. Parents go before their children, which
        they cancel too: those that are gone by then are not counted. Durable when it returns; otherwise as
        `delete`, and each run as by `RunHandle.cancel`.
        """
        check_reason(reason, "the reason of a cancellation")
        meter, query = _Meter(on_progress), self._until_now(await self._query(filters))
        stops_undoing = query.status is not None and "compensating" in query.status
        groups = (_ACTIVE_OR_UNDOING if stops_undoing else _ACTIVE,)
        happening = CancelAsked(reason=reason, stops_undoing=stops_undoing)
        is_left = True
        while is_left:
            seen = meter.seen
            is_left = await self._cancel_generation(query, groups, happening, meter)
            if is_left and meter.seen == seen:  # their parents do not match
                await self._cancel_generation(query, groups, happening, meter, waits_for_parents=False)
                break
        return meter.done

    async def _cancel_generation(
        self,
        query: RunQuery,
        groups: _Groups,
        happening: CancelAsked,
        meter: _Meter,
        *,
        waits_for_parents: bool = True,
    ) -> bool:
        """Cancel those whose parents are, or have none; whether others are left for the next time.

        A parent that saw its child cancelled first would fail, and undo what it did, instead of being cancelled.
        """
        is_left = False

        async def cancel(runs: Sequence[RunDoc]) -> None:
            nonlocal is_left
            wanted = [run for run in runs if not run.head.cancel_requested]
            if waits_for_parents:
                waiting = await with_active_parents(self._machinery.services, wanted)
                is_left = is_left or bool(waiting)
                wanted = [run for run in wanted if run.id not in waiting]
            done = await self._act_on(wanted, happening, "cancel_all")
            meter.add(len(wanted), sum(run.head.status not in _NOT_CANCELLED for run in done))

        await self._each_page(query, groups, cancel)
        return is_left

    async def retry_all(self, *, on_progress: OnProgress | None = None, **filters: Unpack[RunFilters]) -> int:
        """Retry the `failed` and `compensation_failed` runs that match all filters; how many.

        `dead_lettered=True` takes up dead letters again. Children are left alone unless `parent` is given: a parent
        that is retried starts those that failed anew, and what a child does must not be done twice. Passed over are
        runs that somebody else has taken up meanwhile, those whose idempotency key another run has by now, and
        those that do not queue and find no slot. Durable when it returns; otherwise as `delete`, and each run as by
        `RunHandle.retry`.
        """
        meter, query = _Meter(on_progress), self._until_now(await self._query(filters))

        async def retry(runs: Sequence[RunDoc]) -> None:
            wanted = [run for run in runs if run.origin.parent is None or query.parent is not None]
            meter.add(len(wanted), len(await self._act_on(wanted, Retried(), "retry_all")))

        await self._each_page(query, _RETRIABLE, retry)
        return meter.done

    async def _query(self, filters: RunFilters) -> RunQuery:
        return await query_of(self._machinery, self._scope, filters)

    # --- pages ---------------------------------------------------------------------------------------------

    def _until_now(self, query: RunQuery) -> RunQuery:
        """The query without what will be created from now on, which would keep a verb going."""
        now = self._machinery.services.clock.now() + 1
        before = now if query.created_before is None else min(now, query.created_before)
        return msgspec.structs.replace(query, created_before=before)

    async def _each_page(
        self, query: RunQuery, groups: _Groups, act: Callable[[Sequence[RunDoc]], Awaitable[None]]
    ) -> None:
        """Page through what matches, each run once."""
        await trio.lowlevel.checkpoint()
        for group in groups:
            wanted = tuple(status for status in group if query.status is None or status in query.status)
            asked = msgspec.structs.replace(query, status=wanted)
            page = await self._page_after(asked, None)
            while page:
                await act(page)
                page = await self._page_after(asked, page)

    async def _page_after(self, query: RunQuery, page: Sequence[RunDoc] | None) -> list[RunDoc]:
        """The page that follows, or the first one; empty after the last."""
        if not query.status or (page is not None and len(page) < _AT_ONCE):
            return []
        after = None if page is None else Cursor(page[-1].origin.created_at, page[-1].id)
        services = self._machinery.services
        return await services.read(
            lambda: services.store.find(query, sort="created_at", limit=_AT_ONCE, after=after)
        )

    async def _act_on(self, runs: Sequence[RunDoc], happening: Happening, verb: str) -> list[RunDoc]:
        """Let it happen to each, many at a time; those it happened to, as they are now."""
        limiter = trio.CapacityLimiter(_ACTING_AT_ONCE)
        done: list[RunDoc] = []
        failures: list[StoreUnavailable] = []

        async def one(run: RunDoc) -> None:
            async with limiter:
                try:
                    done.append(await self._machinery.act(run.id, happening, run))
                except (InvalidState, RunNotFound, ConcurrencyLimitReached):
                    return
                except StoreUnavailable as error:
                    failures.append(error)
                except StreamlineError as error:
                    self._machinery.services.report(f"{verb} passes over run {run.public_id}", error, run)

        async with trio.open_nursery() as nursery:
            for run in runs:
                nursery.start_soon(one, run)
        if failures:
            raise StoreUnavailable(str(failures[0])) from failures[0]
        return done
