"""A store in the memory of this process: the reference for every other one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import trio

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import DataCorruption
from streamline_trio._core.status import RUN_STATUSES
from streamline_trio._core.store import (
    Applied,
    Corrupt,
    Cursor,
    Hint,
    Route,
    RowKind,
    RunQuery,
    SideDoc,
    SortKey,
    Tally,
    Verdict,
    Write,
)
from streamline_trio._core.tenancy import public_id
from streamline_trio.stores._derived import UniqueKey, hint_of
from streamline_trio.stores._match import matcher, page_of
from streamline_trio.stores._memory_content import Content
from streamline_trio.stores._watchers import Watchers, has_ended


class MemoryStore:
    """Runs in a dict, for tests, simulations and programs that need no durability.

    It lives as long as the object and over any number of `trio.run`s: what is durable in other stores is kept
    when a trio run ends, while worker locks and listeners end with theirs. Every method yields once, before
    it reads or writes; that is the only cancel point, and what follows is atomic. Nothing but the order of
    calls decides what happens: no thread, clock or randomness.

    Args:
        exclusive: what the engine is told about other processes. False makes it poll and beat as with a store
            that is shared; for simulations.
    """

    def __init__(self, *, exclusive: bool = True) -> None:
        self._exclusive = exclusive
        self._content = Content()
        self._locks: dict[str, trio.lowlevel.TrioToken] = {}
        self._watchers = Watchers()

    @property
    def exclusive(self) -> bool:
        """Whether hints reach everybody who shares this store."""
        return self._exclusive

    async def open(self) -> None:
        """Nothing to make ready."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Nothing to release: what is stored stays until the object is dropped."""
        await trio.lowlevel.checkpoint()

    async def write(self, batch: Sequence[Write]) -> list[Verdict]:
        """Apply a batch (conditions 1 to 8); listeners are told before it returns."""
        await trio.lowlevel.checkpoint()
        verdicts = [self._content.apply(write) for write in batch]
        for write, verdict in zip(batch, verdicts, strict=True):
            if isinstance(verdict, Applied) and (hint := hint_of(write)) is not None:
                self._watchers.tell(hint)
        return verdicts

    def spoil(self, run_id: str) -> None:
        """Make the stored run undecodable from now on, for tests of what happens then."""
        self._content.spoiled.add(run_id)

    async def load(self, run_id: str) -> RunDoc | None:
        """The run, or None; `DataCorruption` after `spoil`."""
        await trio.lowlevel.checkpoint()
        return self._load(run_id)

    async def load_many(self, run_ids: Sequence[str]) -> list[RunDoc | None]:
        """The runs in the order asked; None for those that do not exist or do not decode."""
        await trio.lowlevel.checkpoint()
        return [None if run_id in self._content.spoiled else self._content.runs.get(run_id) for run_id in run_ids]

    async def by_active_key(self, key: str) -> RunDoc | None:
        """The active run that holds the key."""
        await trio.lowlevel.checkpoint()
        return self._load(self._content.keys.get(UniqueKey("active_key", key)))

    async def by_token(self, digest: str) -> RunDoc | None:
        """The run with the open wait that the token answers."""
        await trio.lowlevel.checkpoint()
        return self._load(self._content.keys.get(UniqueKey("token", digest)))

    async def namesakes(self, run_id: str, limit: int) -> list[str]:
        """Stored ids of the runs of tenants that have this public id, in order."""
        await trio.lowlevel.checkpoint()
        return self._content.namesakes.after(run_id, "", limit)

    async def awaiting(self, signal: str, tenant: str | None, after: str, limit: int) -> list[str]:
        """Ids of runs with an open wait for the signal in the tenant's scope, in id order after `after`."""
        await trio.lowlevel.checkpoint()
        return self._content.awaiting.after((tenant, signal), after, limit)

    async def due(self, routes: Sequence[Route], now: int, limit: int, *, skip: int = 0) -> list[RunDoc | Corrupt]:
        """Unleased runs whose time has come; its cost does not grow with the runs that sleep."""
        await trio.lowlevel.checkpoint()
        return [self._given(run_id) for run_id in self._content.due.take(routes, now, limit, skip)]

    async def due_in_turn(
        self, routes: Sequence[Route], now: int, after: str | None, limit: int
    ) -> list[RunDoc | Corrupt]:
        """Some of them, of one tenant after the other; of each the ones that have waited longest."""
        await trio.lowlevel.checkpoint()
        return [self._given(run_id) for run_id in self._content.turns.take(routes, now, after, limit)]

    async def next_due(self, routes: Sequence[Route]) -> int | None:
        """The earliest `due_at` on the routes, past or future; None if there is none."""
        await trio.lowlevel.checkpoint()
        return self._content.due.earliest(routes)

    async def errands(self, now: int, limit: int) -> list[RunDoc | Corrupt]:
        """Runs with an errand that any worker may do by now, earliest first."""
        await trio.lowlevel.checkpoint()
        return [self._given(run_id) for run_id in self._content.errands.take(now, limit)]

    async def queued(self, bucket: str, limit: int) -> list[RunDoc | Corrupt]:
        """The first of the runs that wait for a slot of the bucket."""
        await trio.lowlevel.checkpoint()
        return [self._given(run_id) for run_id in self._content.queued.first(bucket, limit)]

    async def count_queued(self, bucket: str) -> int:
        """How many wait for a slot of the bucket."""
        await trio.lowlevel.checkpoint()
        return self._content.queued.count(bucket)

    async def leased(self, worker: str, *, attention: bool, limit: int, after: str = "") -> list[RunDoc | Corrupt]:
        """Runs leased to the worker, in id order after `after`; with `attention` only those that have it."""
        await trio.lowlevel.checkpoint()
        group = self._content.attention if attention else self._content.leased
        return [self._given(run_id) for run_id in group.after(worker, after, limit)]

    async def leased_by_priority(self, worker: str, limit: int, *, skip: int = 0) -> list[RunDoc | Corrupt]:
        """Runs leased to the worker, highest priority first, then by id."""
        await trio.lowlevel.checkpoint()
        runs = self._content.runs
        order = sorted(self._content.leased.of(worker), key=lambda run_id: (-runs[run_id].origin.priority, run_id))
        return [self._given(run_id) for run_id in order[skip : skip + limit]]

    async def lease_holders(self) -> list[str]:
        """The distinct workers that leases name, sorted."""
        await trio.lowlevel.checkpoint()
        return sorted(self._content.leased.names())

    async def find(self, query: RunQuery, *, sort: SortKey, limit: int, after: Cursor | None) -> list[RunDoc]:
        """A page of runs; it walks all runs, or with `parent` the children of that run."""
        await trio.lowlevel.checkpoint()
        runs = [run for run in self._matching(query) if run.id not in self._content.spoiled]
        return page_of(runs, sort, limit, after)

    async def count(self, query: RunQuery) -> int:
        """How many runs match, those that do not decode included."""
        await trio.lowlevel.checkpoint()
        return len(self._matching(query))

    async def tally(self, now: int) -> Tally:
        """Counts by status (each of them, also at 0), and of what is due by now."""
        await trio.lowlevel.checkpoint()
        statuses = Counter(run.head.status for run in self._content.runs.values())
        due_by_route = self._content.due.counts(now)
        oldest = self._content.due.oldest()
        return Tally(
            by_status={status: statuses[status] for status in RUN_STATUSES},
            due=sum(due_by_route.values()),
            oldest_due=oldest if due_by_route else None,
            due_by_route=due_by_route,
        )

    async def rows(self, run_id: str, kind: RowKind) -> list[bytes]:
        """The rows of a run, oldest first."""
        await trio.lowlevel.checkpoint()
        return list(self._content.rows.get(run_id, {}).get(kind, ()))

    async def side(self, kind: str, key: str) -> SideDoc | None:
        """A side document."""
        await trio.lowlevel.checkpoint()
        return self._content.sides.get((kind, key))

    async def sides(
        self, kind: str, *, after: str = "", due_before: int | None = None, limit: int = 1000
    ) -> list[SideDoc]:
        """Side documents of a kind in key order after `after`; with `due_before` those due until then."""
        await trio.lowlevel.checkpoint()
        index = self._content.side_index
        if due_before is None:
            return [self._content.sides[kind, key] for key in index.after(kind, after, limit)]
        return [self._content.sides[kind, key] for key in index.due(kind, due_before, after, limit)]

    async def hold_worker(self, worker: str) -> None:
        """Take the lock of this worker id; the end of this trio run releases it."""
        await trio.lowlevel.checkpoint()
        self._locks[worker] = trio.lowlevel.current_trio_token()

    async def drop_worker(self, worker: str) -> None:
        """Release the lock."""
        await trio.lowlevel.checkpoint()
        if self._locks.pop(worker, None) is not None:
            self._watchers.tell(Hint(run_id="", worker=worker))

    async def worker_gone(self, worker: str) -> bool:
        """Whether nobody holds the lock: dropped, never taken, or its trio run is over."""
        await trio.lowlevel.checkpoint()
        token = self._locks.get(worker)
        return token is None or has_ended(token)

    def watch(self, listener: Callable[[Hint], None]) -> Callable[[], None]:
        """Call `listener` after each write that has something to tell, until this trio run ends."""
        return self._watchers.add(listener)

    def _load(self, run_id: str | None) -> RunDoc | None:
        if run_id is None:
            return None
        if run_id in self._content.spoiled:
            raise self._corruption(run_id)
        return self._content.runs.get(run_id)

    def _given(self, run_id: str) -> RunDoc | Corrupt:
        if run_id in self._content.spoiled:
            return Corrupt(run_id, str(self._corruption(run_id)))
        return self._content.runs[run_id]

    def _corruption(self, run_id: str) -> DataCorruption:
        return DataCorruption(f"run {public_id(run_id)!r} cannot be read: it was spoiled", run=public_id(run_id))

    def _matching(self, query: RunQuery) -> list[RunDoc]:
        if query.parent is None:
            runs = list(self._content.runs.values())
        else:
            runs = [self._content.runs[run_id] for run_id in self._content.children.of(query.parent)]
        return list(filter(matcher(query), runs))
