"""Due runs found by their ids first: of one tenant after the other, or some way down the queue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

from pymongo.collection import Collection

from streamline_trio._core.store import Route
from streamline_trio.stores._turns import dealt, most_tenants, skipped
from streamline_trio.stores.mongo._client import Stored
from streamline_trio.stores.mongo._layout import date, route

Found = list[tuple[str | None, str]]
"""Tenant and id of each run."""

Look = Callable[[Mapping[str, Any]], Found]
"""The first runs of the tenants whose name meets a condition, one tenant after the other."""


def route_names(routes: Sequence[Route]) -> list[str]:
    """The routes as documents name them, each once."""
    return list(dict.fromkeys(route(each.workflow, each.version) for each in routes))


def ids_in_turn(
    runs: Collection[Stored], routes: Sequence[Route], now: int, after: str | None, limit: int
) -> list[str]:
    """Ids of runs of one tenant after the other, those first that have waited longest."""
    look = partial(_look, runs, routes, now, limit)
    return dealt(list(islice(_hands(look, after, limit), most_tenants(limit))), limit)


def _look(
    runs: Collection[Stored], routes: Sequence[Route], now: int, limit: int, tenants: Mapping[str, Any]
) -> Found:
    where = {
        "route": {"$in": route_names(routes)},
        "tenant": tenants,
        "due_since": {"$lte": date(now)},
        "due_at": {"$lte": date(now)},
    }
    found = runs.find(where, {"tenant": 1}).sort([("tenant", 1), ("due_since", 1), ("_id", 1)]).limit(limit)
    return [(stored.get("tenant"), stored["_id"]) for stored in found]


def _hands(look: Look, after: str | None, limit: int) -> Iterator[list[str]]:
    """What each tenant has to do, as far as it could be dealt; the tenants in turn."""
    yield from _named(look, {"$gte": ""} if after is None else {"$gt": after}, {}, limit)
    if nameless := look({"$eq": None}):
        yield [run_id for _, run_id in nameless]
    if after is not None:
        yield from _named(look, {"$gte": ""}, {"$lte": after}, limit)


def _named(look: Look, lower: Mapping[str, Any], upper: Mapping[str, Any], limit: int) -> Iterator[list[str]]:
    """The hands of the tenants whose names are in these bounds."""
    while True:
        page = look({**lower, **upper})
        hands = [(name, [run_id for _, run_id in found]) for name, found in groupby(page, key=itemgetter(0))]
        if len(page) == limit and len(hands) > 1:
            hands.pop()  # it may have been cut, while the first is as long as may be dealt
        yield from (hand for _, hand in hands)
        if len(page) < limit:
            return
        lower = {"$gt": hands[-1][0]}


def ids_further_down(
    runs: Collection[Stored], where: Mapping[str, Any], order: Sequence[tuple[str, int]], limit: int, skip: int
) -> list[str]:
    """Ids from the queue, some runs of the highest priority passed over; told by the index alone."""
    found = [
        (stored["priority"], stored["_id"])
        for stored in runs.find(where, {"priority": 1}).sort(list(order)).limit(limit + skip)
    ]
    first = [run_id for priority, run_id in found if priority == found[0][0]]
    rest = [run_id for priority, run_id in found if priority != found[0][0]]
    return [*skipped(first, limit), *rest][:limit]
