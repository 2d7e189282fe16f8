"""The memory store's index of due runs by tenant."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.store import Route
from streamline_trio.stores._turns import dealt, in_turn, most_tenants, waits_since

Entry = tuple[int, str, int]


class TurnQueue:
    """Unleased runs with a due time: sorted (since, id, due_at) for each tenant and route."""

    def __init__(self) -> None:
        self._tenants: dict[str | None, dict[Route, list[Entry]]] = {}

    def add(self, run: RunDoc) -> None:
        """Enter the run if it is unleased and has a due time."""
        if (entry := _entry(run)) is not None:
            insort(self._tenants.setdefault(run.origin.tenant, {}).setdefault(_route(run), []), entry)

    def discard(self, run: RunDoc) -> None:
        """Take out what `add` entered for this same document."""
        entry = _entry(run)
        routes = self._tenants.get(run.origin.tenant, {})
        queue = routes.get(_route(run), [])
        if entry is None or (at := bisect_left(queue, entry)) == len(queue) or queue[at] != entry:
            return
        del queue[at]
        if not queue:
            del routes[_route(run)]
        if not routes:
            del self._tenants[run.origin.tenant]

    def take(self, routes: Sequence[Route], now: int, after: str | None, limit: int) -> list[str]:
        """Ids of due runs of one tenant after the other, those first that have waited longest."""
        hands: list[list[str]] = []
        for tenant in in_turn(self._tenants.keys(), after):
            if len(hands) == most_tenants(limit):
                break
            if hand := self._due(tenant, routes, now, limit):
                hands.append(hand)
        return dealt(hands, limit)

    def _due(self, tenant: str | None, routes: Iterable[Route], now: int, limit: int) -> list[str]:
        found: list[Entry] = []
        for route in dict.fromkeys(routes):
            queue = self._tenants[tenant].get(route, [])
            past = queue[: bisect_left(queue, (now + 1, "", 0))]
            found += [entry for entry in past if entry[2] <= now][:limit]
        return [run_id for _, run_id, _ in sorted(found)[:limit]]


def _entry(run: RunDoc) -> Entry | None:
    since, due_at = waits_since(run), run.head.due_at
    return None if since is None or due_at is None else (since, run.id, due_at)


def _route(run: RunDoc) -> Route:
    return Route(run.origin.workflow, run.head.version)
