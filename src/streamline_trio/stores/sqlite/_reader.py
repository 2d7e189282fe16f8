"""Reads on one connection, each inside a transaction that the caller begins, so that it sees one state.

The statements that must not cost more as runs gather name their index: SQLite fails rather than scan.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby

from streamline_trio._core.codec import join
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import DataCorruption
from streamline_trio._core.status import RUN_STATUSES
from streamline_trio._core.store import Corrupt, Route, RowKind, SideDoc, Tally
from streamline_trio._core.tenancy import namesakes_range
from streamline_trio.stores._derived import UniqueKey, signal_label
from streamline_trio.stores._turns import skipped
from streamline_trio.stores.sqlite._statements import PARTS_OF_RUNS, run_all

PARTS = """
    SELECT 'head', head FROM runs WHERE id = ?1 UNION ALL SELECT part, body FROM parts WHERE run_id = ?1
"""
HOLDER = "SELECT run_id FROM keys WHERE kind = ? AND key = ?"
LABELLED = "SELECT run_id FROM labels WHERE label = ? AND run_id > ? ORDER BY run_id LIMIT ?"
NAMESAKES = "SELECT id FROM runs WHERE id >= ? AND id < ? ORDER BY id LIMIT ?"
LEASED = "SELECT id FROM runs INDEXED BY runs_leased WHERE worker = ? AND id > ? ORDER BY id LIMIT ?"
ATTENTIVE = """
    SELECT id FROM runs INDEXED BY runs_leased
    WHERE worker = ? AND attention = 1 AND id > ? ORDER BY id LIMIT ?
"""
INHERITED = """
    SELECT id FROM runs INDEXED BY runs_leased WHERE worker = ? ORDER BY priority DESC, id LIMIT ? OFFSET ?
"""
HOLDERS = """
    WITH RECURSIVE holders (worker) AS (
        SELECT min(worker) FROM runs INDEXED BY runs_leased WHERE worker IS NOT NULL
        UNION ALL
        SELECT (SELECT min(worker) FROM runs INDEXED BY runs_leased WHERE worker > holders.worker)
        FROM holders WHERE holders.worker IS NOT NULL
    )
    SELECT worker FROM holders WHERE worker IS NOT NULL
"""
FIRST_PRIORITY = """
    SELECT priority FROM runs INDEXED BY runs_due
    WHERE workflow = ? AND version = ? AND due_at IS NOT NULL ORDER BY priority DESC LIMIT 1
"""
NEXT_PRIORITY = """
    SELECT priority FROM runs INDEXED BY runs_due
    WHERE workflow = ? AND version = ? AND priority < ? AND due_at IS NOT NULL ORDER BY priority DESC LIMIT 1
"""
DUE = """
    SELECT due_at, id FROM runs INDEXED BY runs_due
    WHERE workflow = ? AND version = ? AND priority = ? AND due_at <= ? ORDER BY due_at, id LIMIT ?
"""
ERRANDS = """
    SELECT id FROM runs INDEXED BY runs_errands WHERE errand_at <= ? ORDER BY errand_at, id LIMIT ?
"""
QUEUED = """
    SELECT id FROM runs INDEXED BY runs_queued WHERE queue = ? ORDER BY priority DESC, ticket, id LIMIT ?
"""
COUNT_QUEUED = "SELECT count(*) FROM runs INDEXED BY runs_queued WHERE queue = ?"
EARLIEST = """
    SELECT due_at FROM runs INDEXED BY runs_due
    WHERE workflow = ? AND version = ? AND priority = ? AND due_at IS NOT NULL ORDER BY due_at LIMIT 1
"""
COUNT_DUE = """
    SELECT count(*) FROM runs INDEXED BY runs_due
    WHERE workflow = ? AND version = ? AND priority = ? AND due_at <= ?
"""
FIRST_ROUTE = """
    SELECT workflow, version FROM runs INDEXED BY runs_due
    WHERE due_at IS NOT NULL ORDER BY workflow, version LIMIT 1
"""
NEXT_ROUTE = """
    SELECT workflow, version FROM runs INDEXED BY runs_due
    WHERE (workflow, version) > (?, ?) AND due_at IS NOT NULL ORDER BY workflow, version LIMIT 1
"""
STATUSES = "SELECT status, count(*) FROM runs GROUP BY status"
ROWS = "SELECT body FROM rows WHERE run_id = ? AND kind = ? ORDER BY seq"
SIDE = "SELECT kind, key, revision, body, due_at FROM sides WHERE kind = ? AND key = ?"
SIDES = """
    SELECT kind, key, revision, body, due_at FROM sides
    WHERE kind = ? AND key > ? ORDER BY key LIMIT ?
"""
DUE_SIDES = """
    SELECT kind, key, revision, body, due_at FROM sides INDEXED BY sides_due
    WHERE kind = ? AND key > ? AND due_at <= ? ORDER BY key LIMIT ?
"""


def load(connection: sqlite3.Connection, run_id: str) -> RunDoc | None:
    """The run; `DataCorruption` if it does not decode."""
    parts: dict[str, bytes] = dict(connection.execute(PARTS, (run_id,)))
    return join(parts, run_id) if parts else None


def load_many(connection: sqlite3.Connection, run_ids: Sequence[str]) -> list[RunDoc | None]:
    """The runs in the order asked."""
    found = _load(connection, run_ids)
    return [None if isinstance(run, Corrupt) else run for run in map(found.get, run_ids)]


def load_all(connection: sqlite3.Connection, run_ids: Sequence[str]) -> list[RunDoc | Corrupt]:
    """Those that exist, in the order asked."""
    found = _load(connection, run_ids)
    return [found[run_id] for run_id in run_ids if run_id in found]


def _load(connection: sqlite3.Connection, run_ids: Sequence[str]) -> dict[str, RunDoc | Corrupt]:
    """Those that exist, each as the run or as what is wrong with it."""
    parts = defaultdict[str, dict[str, bytes]](dict)
    for cursor in run_all(connection, PARTS_OF_RUNS, [(run_id,) for run_id in run_ids]):
        for run_id, part, body in cursor:
            parts[run_id][part] = body
    return {run_id: _joined(found, run_id) for run_id, found in parts.items()}


def _joined(parts: dict[str, bytes], run_id: str) -> RunDoc | Corrupt:
    try:
        return join(parts, run_id)
    except DataCorruption as error:
        return Corrupt(run_id, str(error))


def load_holder(connection: sqlite3.Connection, key: UniqueKey) -> RunDoc | None:
    """The run that holds the key."""
    row = connection.execute(HOLDER, key).fetchone()
    return None if row is None else load(connection, row[0])


def namesakes(connection: sqlite3.Connection, run_id: str, limit: int) -> list[str]:
    """Ids of the runs of tenants that have this public id."""
    return _column(connection, NAMESAKES, (*namesakes_range(run_id), limit))


def awaiting(connection: sqlite3.Connection, signal: str, tenant: str | None, after: str, limit: int) -> list[str]:
    """Ids of runs that wait for the signal."""
    return _column(connection, LABELLED, (signal_label(tenant, signal), after, limit))


def due(
    connection: sqlite3.Connection, routes: Sequence[Route], now: int, limit: int, *, skip: int = 0
) -> list[RunDoc | Corrupt]:
    """Runs that are due: one range per route and priority, the highest priorities first."""
    lanes = [(priority, route) for route in dict.fromkeys(routes) for priority in priorities(connection, route)]
    lanes.sort(key=lambda lane: lane[0], reverse=True)
    found: list[str] = []
    for priority, group in groupby(lanes, key=lambda lane: lane[0]):
        room = limit - len(found)
        if room <= 0:
            break
        most = room + (0 if found else skip)
        entries = [
            entry
            for _, route in group
            for entry in connection.execute(DUE, (route.workflow, route.version, priority, now, most))
        ]
        found += [run_id for _, run_id in skipped(sorted(entries)[:most], room)]
    return load_all(connection, found)


def priorities(connection: sqlite3.Connection, route: Route) -> list[int]:
    """The distinct priorities of the route's unleased runs, highest first, by one seek each."""
    found: list[int] = []
    row = connection.execute(FIRST_PRIORITY, (route.workflow, route.version)).fetchone()
    while row is not None:
        found.append(row[0])
        row = connection.execute(NEXT_PRIORITY, (route.workflow, route.version, row[0])).fetchone()
    return found


def next_due(connection: sqlite3.Connection, routes: Iterable[Route]) -> int | None:
    """The earliest due time on the routes."""
    lanes = ((route, priority) for route in routes for priority in priorities(connection, route))
    times = (
        connection.execute(EARLIEST, (route.workflow, route.version, priority)).fetchone()[0]
        for route, priority in lanes
    )
    return min(times, default=None)


def errands(connection: sqlite3.Connection, now: int, limit: int) -> list[RunDoc | Corrupt]:
    """Runs with an errand that any worker may do by now."""
    return load_all(connection, _column(connection, ERRANDS, (now, limit)))


def queued(connection: sqlite3.Connection, bucket: str, limit: int) -> list[RunDoc | Corrupt]:
    """The first of the runs that wait for a slot of the bucket."""
    return load_all(connection, _column(connection, QUEUED, (bucket, limit)))


def count_queued(connection: sqlite3.Connection, bucket: str) -> int:
    """How many wait for a slot of the bucket."""
    return int(connection.execute(COUNT_QUEUED, (bucket,)).fetchone()[0])


def leased(
    connection: sqlite3.Connection, worker: str, limit: int, after: str, *, attention: bool
) -> list[RunDoc | Corrupt]:
    """Runs leased to the worker."""
    run_ids = _column(connection, ATTENTIVE if attention else LEASED, (worker, after, limit))
    return load_all(connection, run_ids)


def leased_by_priority(
    connection: sqlite3.Connection, worker: str, limit: int, skip: int
) -> list[RunDoc | Corrupt]:
    """Runs leased to the worker; all its leases are put in order, without their runs being loaded."""
    return load_all(connection, _column(connection, INHERITED, (worker, limit, skip)))


def lease_holders(connection: sqlite3.Connection) -> list[str]:
    """The distinct workers of leases, by one seek each."""
    return _column(connection, HOLDERS, ())


def tally(connection: sqlite3.Connection, now: int) -> Tally:
    """Counts by status, and of what is due: one range per route and priority."""
    by_status = dict.fromkeys(RUN_STATUSES, 0) | dict(connection.execute(STATUSES))
    due_by_route: dict[Route, int] = {}
    oldest: list[int] = []
    for route in _routes(connection):
        count = 0
        for priority in priorities(connection, route):
            lane = (route.workflow, route.version, priority)
            count += connection.execute(COUNT_DUE, (*lane, now)).fetchone()[0]
            oldest.append(connection.execute(EARLIEST, lane).fetchone()[0])
        if count:
            due_by_route[route] = count
    return Tally(
        by_status=by_status,
        due=sum(due_by_route.values()),
        oldest_due=min(oldest) if due_by_route else None,
        due_by_route=due_by_route,
    )


def _routes(connection: sqlite3.Connection) -> list[Route]:
    found: list[Route] = []
    row = connection.execute(FIRST_ROUTE).fetchone()
    while row is not None:
        found.append(Route(*row))
        row = connection.execute(NEXT_ROUTE, row).fetchone()
    return found


def rows(connection: sqlite3.Connection, run_id: str, kind: RowKind) -> list[bytes]:
    """The rows of a run, oldest first."""
    return [body for (body,) in connection.execute(ROWS, (run_id, kind))]


def side(connection: sqlite3.Connection, kind: str, key: str) -> SideDoc | None:
    """A side document."""
    row = connection.execute(SIDE, (kind, key)).fetchone()
    return None if row is None else SideDoc(*row)


def sides(
    connection: sqlite3.Connection, kind: str, after: str, due_before: int | None, limit: int
) -> list[SideDoc]:
    """Side documents of a kind in key order."""
    if due_before is None:
        found = connection.execute(SIDES, (kind, after, limit))
    else:
        found = connection.execute(DUE_SIDES, (kind, after, due_before, limit))
    return [SideDoc(*row) for row in found]


def _column(connection: sqlite3.Connection, statement: str, values: Sequence[str | bytes | int]) -> list[str]:
    return [value for (value,) in connection.execute(statement, values)]
