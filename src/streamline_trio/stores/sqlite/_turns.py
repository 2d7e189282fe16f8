"""Due runs by tenant: each tenant of a route is found by a seek from the one before, its runs by a range."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.store import Corrupt, Route
from streamline_trio.stores._turns import dealt, in_turn, most_tenants
from streamline_trio.stores.sqlite._reader import load_all

DUE_TENANTS = """
    WITH RECURSIVE tenants (tenant) AS (
        SELECT min(tenant) FROM runs INDEXED BY runs_turns
        WHERE workflow = ?1 AND version = ?2 AND tenant >= ?3 AND tenant <= ?4 AND due_at IS NOT NULL
        UNION ALL
        SELECT (
            SELECT min(tenant) FROM runs INDEXED BY runs_turns
            WHERE workflow = ?1 AND version = ?2 AND tenant > tenants.tenant AND tenant <= ?4 AND due_at IS NOT NULL
        )
        FROM tenants WHERE tenants.tenant IS NOT NULL
    )
    SELECT tenant FROM tenants
    WHERE tenant IS NOT NULL AND EXISTS (
        SELECT 1 FROM runs INDEXED BY runs_turns
        WHERE workflow = ?1 AND version = ?2 AND runs.tenant = tenants.tenant AND since <= ?5 AND due_at <= ?5
    )
    LIMIT ?6
"""
DUE_OF_TENANT = """
    SELECT since, id FROM runs INDEXED BY runs_turns
    WHERE workflow = ? AND version = ? AND tenant IS ? AND since <= ? AND due_at <= ? ORDER BY since, id LIMIT ?
"""
_BEYOND_ALL_NAMES = b""  # no text is greater than a blob


def due_in_turn(
    connection: sqlite3.Connection, routes: Sequence[Route], now: int, after: str | None, limit: int
) -> list[RunDoc | Corrupt]:
    """Runs of one tenant after the other, those first that have waited longest."""
    hands: list[list[str]] = []
    asked, most = list(dict.fromkeys(routes)), most_tenants(limit)
    for tenant in _tenants(connection, asked, now, after, most):
        if len(hands) < most and (hand := _of_tenant(connection, asked, tenant, now, limit)):
            hands.append(hand)
    return load_all(connection, dealt(hands, limit))


def _tenants(
    connection: sqlite3.Connection, routes: Sequence[Route], now: int, after: str | None, most: int
) -> list[str | None]:
    """The next tenants that have due runs, beside them the runs without a tenant, which may have none."""
    found: set[str | None] = {None}
    first = "" if after is None else after + "\0"
    stretches: list[tuple[str, str | bytes]] = [(first, _BEYOND_ALL_NAMES)]
    if after is not None:
        stretches.append(("", after))
    for first, last in stretches:
        for route in routes:
            values = (route.workflow, route.version, first, last, now, most)
            found.update(tenant for (tenant,) in connection.execute(DUE_TENANTS, values))
        if len(found) > most:
            break
    return in_turn(found, after)


def _of_tenant(
    connection: sqlite3.Connection, routes: Sequence[Route], tenant: str | None, now: int, limit: int
) -> list[str]:
    entries = [
        entry
        for route in routes
        for entry in connection.execute(DUE_OF_TENANT, (route.workflow, route.version, tenant, now, now, limit))
    ]
    return [run_id for _, run_id in sorted(entries)[:limit]]
