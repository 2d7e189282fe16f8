"""What an engine tells of the whole store and of itself."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import msgspec
import whenever

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.due import due_since
from streamline_trio._core.durations import instant_of
from streamline_trio._core.slots import SLOTS, decode_bucket, parts_of
from streamline_trio._core.status import RunStatus
from streamline_trio._core.store import Route, RunQuery
from streamline_trio._runtime.worker import WorkerDoc
from streamline_trio._runtime.workers import live_routes, live_workers

if TYPE_CHECKING:
    from streamline_trio._runtime.machinery import Machinery


_LOOKED_AT = 100
_BUCKETS = 100
_DEAD_LETTERS = RunQuery(dead_lettered=True)


class Unclaimable(msgspec.Struct, frozen=True, kw_only=True):
    """Due runs of a workflow version that no live worker has."""

    workflow: str
    version: str
    runs: int


class SlotUse(msgspec.Struct, frozen=True, kw_only=True):
    """A bucket of slots that runs hold: `holding` of `limit`, the limit of who came in last, and how many queue."""

    workflow: str
    tenant: str | None
    key: str | None
    holding: int
    limit: int
    queued: int


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts over the whole store, and of this one engine since it was opened.

    Of the store, as of now: `queue_depth` runs are due, the oldest for `due_lag` seconds; `by_status` has every
    status, also at 0, of which `running` and `waiting` are two; `dead_letters` have failed because their workers
    died too often in a row; `unclaimable` tells of due runs that no live worker has the code for.

    Of this engine: `driving` runs right now, `claims` of runs and, among them or not its to run, `recoveries` from
    workers that were gone; `commits` in `batches`; sync handlers in `abandoned_threads`; runs `expired` that it
    has removed for their age, and `swept` what dead processes had left behind in the store.

    `buckets` are the first 100 in which slots are held, in the order of their names, and `slots` how many are held
    in each of them, by `workflow` or `workflow:key`.
    """

    queue_depth: int
    due_lag: float
    by_status: dict[RunStatus, int]
    running: int
    waiting: int
    unclaimable: tuple[Unclaimable, ...]
    driving: int
    commits: int
    batches: int
    abandoned_threads: int
    slots: dict[str, int] = {}
    buckets: tuple[SlotUse, ...] = ()
    dead_letters: int = 0
    claims: int = 0
    recoveries: int = 0
    expired: int = 0
    swept: int = 0


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that lives. `loop_lag` is by how many seconds its last beat was late."""

    id: str
    name: str | None
    versions: dict[str, tuple[str, ...]]
    capacity: int
    running: int
    loop_lag: float
    started_at: whenever.Instant
    beat_at: whenever.Instant
    host: str
    pid: int


async def gather_stats(machinery: Machinery) -> Stats:
    """Counts from the store, and this engine's own."""
    services = machinery.services
    now = services.clock.now()
    tally = await services.read(lambda: services.store.tally(now))
    unclaimable = _unclaimable(tally.due_by_route, await services.read(lambda: live_routes(services.store)))
    for missing in unclaimable:
        machinery.claimer.lapses.warn(Route(missing.workflow, missing.version))
    buckets = await _buckets(machinery)
    return Stats(
        queue_depth=tally.due,
        due_lag=await _due_lag(machinery, list(tally.due_by_route), now),
        by_status=tally.by_status,
        running=tally.by_status.get("running", 0),
        waiting=tally.by_status.get("waiting", 0),
        unclaimable=unclaimable,
        driving=len(machinery.crew.drivers),
        commits=services.committer.commits,
        batches=services.committer.batches,
        abandoned_threads=machinery.crew.threads.abandoned,
        slots={_name(use): use.holding for use in buckets},
        buckets=buckets,
        dead_letters=await services.read(lambda: services.store.count(_DEAD_LETTERS)),
        claims=services.counts.claims,
        recoveries=services.counts.recoveries,
        expired=services.counts.expired,
        swept=services.counts.swept,
    )


async def _buckets(machinery: Machinery) -> tuple[SlotUse, ...]:
    """Read one after the other, each as of its own instant."""
    services = machinery.services
    found: list[SlotUse] = []
    for side in await services.read(lambda: services.store.sides(SLOTS, limit=_BUCKETS)):
        bucket = decode_bucket(side.body)
        tenant, workflow, key = parts_of(side.key)
        found.append(
            SlotUse(
                workflow=workflow,
                tenant=tenant,
                key=key,
                holding=len(bucket.holders),
                limit=bucket.limit,
                queued=await services.read(lambda name=side.key: services.store.count_queued(name)),  # type: ignore[misc]  # a lambda with a default
            )
        )
    return tuple(found)


def _name(use: SlotUse) -> str:
    name = use.workflow if use.key is None else f"{use.workflow}:{use.key}"
    return name if use.tenant is None else f"{use.tenant}/{name}"


async def _due_lag(machinery: Machinery, routes: list[Route], now: int) -> float:
    """Seconds for which the run that has waited longest wants a worker, among the next to be claimed."""
    services = machinery.services
    page = await services.read(lambda: services.store.due(routes, now, _LOOKED_AT))
    since = [due_since(run.origin, run.head) for run in page if isinstance(run, RunDoc)]
    oldest = min((at for at in since if at is not None), default=now)
    return max(now - oldest, 0) / 1000


def _unclaimable(due: dict[Route, int], routes: Collection[Route]) -> tuple[Unclaimable, ...]:
    return tuple(
        Unclaimable(workflow=route.workflow, version=route.version, runs=runs)
        for route, runs in sorted(due.items(), key=lambda item: (item[0].workflow, item[0].version))
        if route not in routes
    )


async def list_workers(machinery: Machinery) -> list[WorkerInfo]:
    """The live workers, by id."""
    services = machinery.services
    live = await services.read(lambda: live_workers(services.store))
    return [_info(worker, doc) for worker, doc in sorted(live.items())]


def _info(worker: str, doc: WorkerDoc) -> WorkerInfo:
    versions: dict[str, tuple[str, ...]] = {}
    for route in doc.routes:
        versions[route.workflow] = (*versions.get(route.workflow, ()), route.version)
    return WorkerInfo(
        id=worker,
        name=doc.name,
        versions=versions,
        capacity=doc.capacity,
        running=doc.running,
        loop_lag=doc.loop_lag,
        started_at=instant_of(doc.started_at),
        beat_at=instant_of(doc.beat_at),
        host=doc.host,
        pid=doc.pid,
    )
