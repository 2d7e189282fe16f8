"""The Store protocol: what the engine asks of storage, with numbered conditions.

A store applies guarded changes; it decides nothing. The conditions:

 1. `write` takes a batch and answers with one verdict per write, in order. Writes of a batch are independent:
    one that is refused never keeps another from being applied. A batch holds at most one write per run
    (`Insert`, `Update`, `Delete`), and any number of others; they are applied in order.
 2. A write is applied whole or not at all, and an applied one is durable when `write` returns.
 3. `Update` is applied only if the stored revision equals `before.head.revision` (compare-and-set); else
    `Refused`. Only what differs between `before` and `after` need be written. The origin is written once: an
    update that would change it is `Failed`. Of a draft (as it is before the update) the input may be replaced.
 4. `Insert` is refused if the id exists. No two active runs hold one `active_key`, no two open waits one token:
    the write that would make it so gets `KeyTaken` naming the holder (which may be the run itself, for a token
    that it claims twice), and is not applied. `Refused` comes before `KeyTaken`.
 5. `PutSide` is applied only if the stored side document has the expected revision (None: must not exist).
 6. `AppendRows` is applied only if the run exists and, when a fence is given, it is the stored one; else
    `Refused`. Of each (run, kind) only the newest `keep` rows remain, in order of arrival.
 7. `Failed` means: certainly not applied, and trying again will not help (too large, not encodable).
 8. If `write` raises `StoreUnavailable`, any write of the batch may or may not have been applied. Any other
    exception of a store is a bug.
 9. Reads are linearizable: they see every write that was applied before they began, by whomever.
10. `due` gives runs without a lease whose `due_at` has come, on the given routes: highest priority first, then
    earliest due. Its cost grows with what it returns, not with the runs that sleep or belong to other routes.
    `skip` passes over so many of the highest priority that is due, but leaves `limit` of them, or all if there
    are no more.
11. A stored run that does not decode is given as `Corrupt`, by `due` and `leased`; `load` raises
    `DataCorruption`, and so do `by_active_key` and `by_token`. `Quarantine` takes it out of every queue until
    its next update, without touching its content; it is `Refused` if there is no such run.
12. `find` pages by keyset: (sort value, id) after the cursor; the order is total, and a descending sort reverses
    both. A page is short only if no more runs follow.
13. Deleting a run removes everything stored of it: parts, rows, payloads, keys.
14. A worker lock, where the store has them, is released by the operating system when its holder dies.
    `worker_gone` is True only if that worker certainly cannot write any more; False means unknown.
15. No method is left half done by cancellation: a write that was begun is carried out. Waiting for it may be
    a cancel point only before it has begun.
16. What is read equals what was written: decode(encode(run)) == run, byte for byte in the payloads. The order
    of a map's entries is not kept.
17. `errands` gives the runs whose `errand_at` has come, earliest first, whoever holds them and whatever their
    status and route; one that does not decode as `Corrupt`. Its cost grows with what it returns.
18. `namesakes` gives the stored ids of the tenants' runs that have a public id (see `_core.tenancy`), in order.
    Its cost grows with what it returns.
19. `due_in_turn` gives runs that `due` would give, whatever their priority, of tenants in turn: in the order of
    their names after `after`, then the runs without a tenant as if they were one, then the names up to `after`
    itself; of the first `limit` that have any, at most `TENANTS_AT_ONCE`. Each gives those that have waited
    longest, one by one in turn, until there are `limit`. They wait since their `due_at`, what is due at once
    since it was ready (`due_since`); what waits only from a later instant than `now` is not given. The cost grows
    with what is returned and with the tenants that have unleased runs on the routes, not with their runs.
20. `leased_by_priority` gives the runs leased to a worker, highest priority first, then by id, `skip` of them
    passed over. Its cost may grow with the leases of that worker, not with anything else.
21. `queued` gives the runs that wait in line for a slot of the bucket (`queued_in`): highest priority first, then
    lowest ticket, then by id; one that does not decode as `Corrupt`. Its cost grows with what it returns, however
    many wait. `count_queued` counts them.

`streamline_trio.testing.conformance` checks all of it for any store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Literal, Protocol, runtime_checkable

import msgspec

from streamline_trio._core.documents import RunDoc, WaitKind
from streamline_trio._core.errors import StreamlineError
from streamline_trio._core.status import RunStatus

TENANTS_AT_ONCE = 10
"""Of how many tenants one look gives runs (condition 19)."""

RowKind = Literal["log", "progress"]
SortKey = Literal["created_at", "-created_at", "updated_at", "-updated_at"]


class _Frozen(msgspec.Struct, frozen=True):
    """Base of the small values that cross the protocol."""


class Insert(_Frozen, frozen=True, gc=False):
    """Store a new run."""

    run: RunDoc


Touched = Mapping[str, AbstractSet[str]]


class Update(_Frozen, frozen=True, gc=False):
    """Replace `before` by `after`, if `before` is still what is stored.

    `touched` saves the store comparing long maps: if given, entries of `RunDoc`'s maps other than those it names
    are the same in both. A store may ignore it.
    """

    before: RunDoc
    after: RunDoc
    touched: Touched | None = None


class Delete(_Frozen, frozen=True):
    """Remove a run and all that is stored of it, if its revision is still this one."""

    run_id: str
    revision: int


class Quarantine(_Frozen, frozen=True):
    """Take a run that does not decode out of every queue (no due time, no lease, no errands)."""

    run_id: str


class SideDoc(_Frozen, frozen=True):
    """A small document beside the runs: a worker, a broadcast, a definition. `body` is msgpack."""

    kind: str
    key: str
    revision: int
    body: bytes
    due_at: int | None = None


class PutSide(_Frozen, frozen=True):
    """Write a side document (`body` None: remove it) if the stored revision is the expected one.

    The stored revision becomes `expected + 1`, or `first` when it is new, also after a removal: a key whose
    document is made anew must not be written by those who knew the old one, so whoever removes documents lets
    them begin at numbers that do not meet.
    """

    kind: str
    key: str
    expected: int | None
    body: bytes | None
    due_at: int | None = None
    first: int = 1


class AppendRows(_Frozen, frozen=True):
    """Append rows that belong to a run, outside its revision."""

    run_id: str
    kind: RowKind
    rows: tuple[bytes, ...]
    keep: int
    fence: int | None = None


Write = Insert | Update | Delete | Quarantine | PutSide | AppendRows


class Applied(_Frozen, frozen=True, gc=False):
    """The write was applied."""


class Refused(_Frozen, frozen=True, gc=False):
    """The guard did not hold; nothing was written."""


class KeyTaken(_Frozen, frozen=True):
    """Another run holds the key; nothing was written."""

    key: Literal["active_key", "token"]
    holder: str


class Failed(_Frozen, frozen=True):
    """Nothing was written, and trying again will not help."""

    error: StreamlineError


Verdict = Applied | Refused | KeyTaken | Failed


class Corrupt(_Frozen, frozen=True):
    """A stored run that does not decode."""

    run_id: str
    error: str


class Route(_Frozen, frozen=True):
    """What a worker can run: one version of one workflow."""

    workflow: str
    version: str


class RunQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A filter over runs; what is None does not filter. `tags` must all be there; `meta` by equal values.

    The `after` bounds are inclusive, the `before` bounds exclusive (instants in milliseconds).
    """

    workflow: str | None = None
    status: tuple[RunStatus, ...] | None = None
    tenant: str | None = None
    user: str | None = None
    tags: tuple[str, ...] = ()
    meta: Mapping[str, object] | None = None
    parent: str | None = None
    created_after: int | None = None
    created_before: int | None = None
    updated_after: int | None = None
    updated_before: int | None = None
    paused: bool | None = None
    waiting: WaitKind | None = None
    dead_lettered: bool | None = None
    version: str | None = None


class Cursor(_Frozen, frozen=True):
    """Where a page ended: the sort value and id of its last run."""

    value: int
    run_id: str


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """Counts over the whole store: of every status, also at 0, and of the routes where anything is due."""

    by_status: dict[RunStatus, int]
    due: int
    oldest_due: int | None
    due_by_route: dict[Route, int]


class Hint(msgspec.Struct, frozen=True, kw_only=True):
    """Something was written: a run fell due, its holder should look at it, or it settled. Never relied upon.

    With an empty `run_id` a side document fell due, or the lock of `worker` was dropped; with nothing else either,
    somebody has written something.
    """

    run_id: str
    due_at: int | None = None
    worker: str | None = None
    settled: bool = False


@runtime_checkable
class Sweeper(Protocol):
    """What a store may have besides, if processes that die can leave things behind in it that no run refers to."""

    async def sweep(self) -> int:
        """Remove some of them; how many. Workers call it once a minute: it is cheap, however much is stored."""
        ...


@runtime_checkable
class Store(Protocol):
    """See the module's docstring for the conditions. All coroutines may raise `StoreUnavailable`."""

    @property
    def exclusive(self) -> bool:
        """True if no other process can reach this store, so that hints reach everybody who shares it."""
        ...

    async def open(self) -> None:
        """Make ready for use; calls are counted, each is paired with `aclose`."""
        ...

    async def aclose(self) -> None:
        """Undo one `open`; the last one releases everything."""
        ...

    async def write(self, batch: Sequence[Write]) -> list[Verdict]:
        """Apply a batch (conditions 1 to 8)."""
        ...

    async def load(self, run_id: str) -> RunDoc | None:
        """The run, or None."""
        ...

    async def load_many(self, run_ids: Sequence[str]) -> list[RunDoc | None]:
        """The runs in the order asked; None for those that do not exist or do not decode."""
        ...

    async def by_active_key(self, key: str) -> RunDoc | None:
        """The active run that holds the key."""
        ...

    async def by_token(self, digest: str) -> RunDoc | None:
        """The run with the open wait that the token answers."""
        ...

    async def namesakes(self, run_id: str, limit: int) -> list[str]:
        """Stored ids of the runs of tenants that have this public id (condition 18)."""
        ...

    async def awaiting(self, signal: str, tenant: str | None, after: str, limit: int) -> list[str]:
        """Ids of runs in the tenant's scope whose `heard_signals` has the signal, in id order after `after`.

        They have an open wait for it, or have not settled and are cancelled by it. A page is short only if no more
        follow. `tenant` None is a scope of its own: the runs without a tenant.
        """
        ...

    async def due(self, routes: Sequence[Route], now: int, limit: int, *, skip: int = 0) -> list[RunDoc | Corrupt]:
        """Unleased runs whose time has come (condition 10)."""
        ...

    async def due_in_turn(
        self, routes: Sequence[Route], now: int, after: str | None, limit: int
    ) -> list[RunDoc | Corrupt]:
        """Some of them, of one tenant after the other (condition 19)."""
        ...

    async def next_due(self, routes: Sequence[Route]) -> int | None:
        """The earliest `due_at` on the routes, past or future; None if there is none."""
        ...

    async def errands(self, now: int, limit: int) -> list[RunDoc | Corrupt]:
        """Runs that have something in their outbox that any worker may do by now (condition 17)."""
        ...

    async def queued(self, bucket: str, limit: int) -> list[RunDoc | Corrupt]:
        """The first of the runs that wait for a slot of the bucket (condition 21)."""
        ...

    async def count_queued(self, bucket: str) -> int:
        """How many wait for a slot of the bucket."""
        ...

    async def leased(self, worker: str, *, attention: bool, limit: int, after: str = "") -> list[RunDoc | Corrupt]:
        """Runs leased to the worker, in id order after `after`; with `attention` only those that have it."""
        ...

    async def leased_by_priority(self, worker: str, limit: int, *, skip: int = 0) -> list[RunDoc | Corrupt]:
        """Runs leased to the worker, those first that are to be taken over first (condition 20)."""
        ...

    async def lease_holders(self) -> list[str]:
        """The distinct workers that leases name."""
        ...

    async def find(self, query: RunQuery, *, sort: SortKey, limit: int, after: Cursor | None) -> list[RunDoc]:
        """A page of runs (condition 12); runs that do not decode are left out."""
        ...

    async def count(self, query: RunQuery) -> int:
        """How many runs match."""
        ...

    async def tally(self, now: int) -> Tally:
        """Counts by status, and of what is due by now (in all and by route)."""
        ...

    async def rows(self, run_id: str, kind: RowKind) -> list[bytes]:
        """The rows of a run, oldest first."""
        ...

    async def side(self, kind: str, key: str) -> SideDoc | None:
        """A side document."""
        ...

    async def sides(
        self, kind: str, *, after: str = "", due_before: int | None = None, limit: int = 1000
    ) -> list[SideDoc]:
        """Side documents of a kind in key order after `after`; with `due_before` those due until then."""
        ...

    async def hold_worker(self, worker: str) -> None:
        """Take the lock of this worker id, to be held until `drop_worker` or death."""
        ...

    async def drop_worker(self, worker: str) -> None:
        """Release the lock."""
        ...

    async def worker_gone(self, worker: str) -> bool:
        """Whether the worker certainly cannot write any more (condition 14)."""
        ...

    def watch(self, listener: Callable[[Hint], None]) -> Callable[[], None]:
        """Call `listener` (at once, in the trio thread) after writes by anybody, as far as the store can tell.

        Returns the function that ends it. An exclusive store tells of every write.
        """
        ...
