"""Verbs on many runs: delete, cancel, retry whatever matches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import trio
from typing_extensions import Unpack

from streamline_trio._core.checking import check_reason
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import InvalidState, RunNotFound, StoreUnavailable, StreamlineError
from streamline_trio._core.happenings import CancelAsked, Happening, Retried
from streamline_trio._core.status import RunStatus
from streamline_trio._core.store import Cursor, RunQuery
from streamline_trio._runtime.queries import RunFilters, query_of
from streamline_trio._runtime.removing import remove_settled

if TYPE_CHECKING:
    from streamline_trio._runtime.machinery import Machinery

_AT_ONCE = 200
_ACTING_AT_ONCE = 100
_Groups: TypeAlias = Sequence[tuple[RunStatus, ...]]
"""Statuses that are gone through together. Stores page through one faster; a run that moves between those of one
group is not missed."""

_ACTIVE: tuple[RunStatus, ...] = ("draft", "running", "waiting")
_RETRIABLE: _Groups = (("failed",), ("compensation_failed",))
_DELETABLE: _Groups = (*_RETRIABLE, ("done",), ("cancelled",), ("compensated",))
"""First those that may be the last to need others."""

_NOT_CANCELLED: tuple[RunStatus, ...] = ("done", "failed", "compensated", "compensation_failed")


class BulkProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a bulk verb has come: of the runs `seen` so far it took effect on `done`."""

    seen: int
    done: int


OnProgress: TypeAlias = Callable[[BulkProgress], object]
"""Called after each batch, in the caller's task; what it raises ends the verb there."""

_Batch: TypeAlias = Callable[[Sequence[RunDoc]], Awaitable[int]]


class BulkVerbs:
    """The verbs of an engine on all runs that match filters."""

    _machinery: Machinery

    async def delete(self, *, on_progress: OnProgress | None = None, **filters: Unpack[RunFilters]) -> int:
        """Delete the settled runs that match all filters, with everything stored of them; how many.

        Children of a run that has not settled, or has failed after joining them and may be retried, are left, since
        it may still read them, and so are runs that have yet to tell others of their end.

        As all bulk verbs it goes through the runs that were created before the call (by this engine's clock),
        oldest first, a few hundred at a time. Each run by itself is changed whole or not at all.
        `StoreUnavailable`, or a cancellation, leaves the rest undone: call again.
        """
        services = self._machinery.services
        return await self._each_batch(
            query_of(filters), _DELETABLE, on_progress, lambda runs: remove_settled(services, runs)
        )

    async def cancel_all(
        self, *, reason: str | None = None, on_progress: OnProgress | None = None, **filters: Unpack[RunFilters]
    ) -> int:
        """Cancel the runs that match all filters and have not settled; how many are, or are about to be.

        Runs that undo what they did because they failed are left to it, unless `status` names `compensating`: then
        the rest stays undone. Runs that settle meanwhile are passed over. A parent is cancelled before its
        children, which it cancels too. Durable when it returns; otherwise as `delete`, and each run as by
        `RunHandle.cancel`.
        """
        check_reason(reason, "the reason of a cancellation")
        query = query_of(filters)
        stops_undoing = query.status is not None and "compensating" in query.status
        statuses = (*_ACTIVE, "compensating") if stops_undoing else _ACTIVE
        happening = CancelAsked(reason=reason, stops_undoing=stops_undoing)

        async def cancel(runs: Sequence[RunDoc]) -> int:
            done = 0
            while runs:
                ids = {run.id for run in runs}
                first = [run for run in runs if run.origin.parent is None or run.origin.parent.run not in ids]
                done += await self._act_on(first or runs, happening, "cancel_all", _NOT_CANCELLED)
                tried = {run.id for run in first or runs}
                runs = [run for run in runs if run.id not in tried]
            return done

        return await self._each_batch(query, (statuses,), on_progress, cancel)

    async def retry_all(self, *, on_progress: OnProgress | None = None, **filters: Unpack[RunFilters]) -> int:
        """Retry the `failed` and `compensation_failed` runs that match all filters; how many.

        `dead_lettered=True` takes up dead letters again. Children are left alone unless `parent` is given: a parent
        that is retried starts those that failed anew, and what a child does must not be done twice. Runs that
        somebody else has taken up meanwhile, and those whose idempotency key another run has by now, are passed
        over. Durable when it returns; otherwise as `delete`, and each run as by `RunHandle.retry`.
        """
        query = query_of(filters)

        async def retry(runs: Sequence[RunDoc]) -> int:
            meant = [run for run in runs if run.origin.parent is None or query.parent is not None]
            return await self._act_on(meant, Retried(), "retry_all", ())

        return await self._each_batch(query, _RETRIABLE, on_progress, retry)

    # --- batches -------------------------------------------------------------------------------------------

    async def _each_batch(
        self, query: RunQuery, groups: _Groups, on_progress: OnProgress | None, act: _Batch
    ) -> int:
        """Page through what matches now; nothing that is created, or matches, later keeps it going."""
        await trio.lowlevel.checkpoint()
        end = self._machinery.services.clock.now() + 1
        end = end if query.created_before is None else min(end, query.created_before)
        seen = done = 0
        for group in groups:
            wanted = tuple(status for status in group if query.status is None or status in query.status)
            asked = msgspec.structs.replace(query, status=wanted, created_before=end)
            page = await self._page_after(asked, None)
            while page:
                done += await act(page)
                seen += len(page)
                if on_progress is not None:
                    on_progress(BulkProgress(seen=seen, done=done))
                page = await self._page_after(asked, page)
        return done

    async def _page_after(self, query: RunQuery, page: Sequence[RunDoc] | None) -> list[RunDoc]:
        """The page that follows, or the first one; empty after the last."""
        if not query.status or (page is not None and len(page) < _AT_ONCE):
            return []
        after = None if page is None else Cursor(page[-1].origin.created_at, page[-1].id)
        services = self._machinery.services
        return await services.read(
            lambda: services.store.find(query, sort="created_at", limit=_AT_ONCE, after=after)
        )

    async def _act_on(
        self, runs: Sequence[RunDoc], happening: Happening, verb: str, missed: Collection[RunStatus]
    ) -> int:
        """Let it happen to each, many at a time; how many it happened to: of those whose status is not `missed`."""
        limiter = trio.CapacityLimiter(_ACTING_AT_ONCE)
        done: list[RunDoc] = []
        failures: list[StoreUnavailable] = []

        async def one(run: RunDoc) -> None:
            async with limiter:
                try:
                    after = await self._machinery.act(run.id, happening, run)
                except (InvalidState, RunNotFound):
                    return
                except StoreUnavailable as error:
                    failures.append(error)
                except StreamlineError as error:
                    self._machinery.services.report(f"{verb} passes over run {run.id}", error, run)
                else:
                    done.append(after)

        async with trio.open_nursery() as nursery:
            for run in runs:
                nursery.start_soon(one, run)
        if failures:
            raise StoreUnavailable(str(failures[0])) from failures[0]
        return sum(run.head.status not in missed for run in done)
