"""Each index has a query, and each such query finds its way by the index.

Only a real server tells by `explain`; everywhere it is seen that the query asks for what its index is led by.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pymongo
import pytest
from pymongo.monitoring import CommandListener

from streamline_trio._core.store import Cursor, Delete, Insert, RunQuery
from streamline_trio.stores.mongo import MongoStore
from streamline_trio.stores.mongo._indexes import INDEXES, PAYLOADS, RUNS, SIDES
from streamline_trio.testing._conformance_base import sample
from tests.mongo_server import REAL, needs_real_server
from tests.stores.mongo_opening import LARGE, ROUTE, opened

SLEEPERS = 5 if REAL is None else 500
COMMANDS = frozenset({"find", "delete"})
OF_THE_SESSION = frozenset({"lsid", "txnNumber", "maxTimeMS", "readConcern", "writeConcern", "ordered"})
AFTER = Cursor(1, "a")


async def find(store: MongoStore, sort: Any, **filters: Any) -> None:
    await store.find(RunQuery(**filters), sort=sort, limit=5, after=AFTER)


async def remove(store: MongoStore) -> None:
    await store.write([Delete("large", sample("large").head.revision)])


QUERIES: dict[tuple[str, str], Callable[[MongoStore], Awaitable[object]]] = {
    (RUNS, "due"): lambda store: store.due([ROUTE], 5, 100),
    (RUNS, "turns"): lambda store: store.due_in_turn([ROUTE], 5, None, 1),
    (RUNS, "next_due"): lambda store: store.next_due([ROUTE]),
    (RUNS, "errands"): lambda store: store.errands(5, 100),
    (RUNS, "queued"): lambda store: store.queued("b", 100),
    (RUNS, "leased"): lambda store: store.leased("w-1", attention=True, limit=100),
    (RUNS, "active_key"): lambda store: store.by_active_key("k"),
    (RUNS, "tokens"): lambda store: store.by_token("t"),
    (RUNS, "labels"): lambda store: store.awaiting("paid", None, "", 100),
    (RUNS, "created"): lambda store: find(store, "-created_at"),
    (RUNS, "status"): lambda store: find(store, "created_at", status=("waiting",)),
    (RUNS, "settled"): lambda store: find(store, "updated_at", status=("done",)),
    (RUNS, "dead"): lambda store: find(store, "created_at", dead_lettered=True),
    (RUNS, "children"): lambda store: find(store, "created_at", parent="p"),
    (RUNS, "tenants"): lambda store: find(store, "created_at", tenant="t"),
    (SIDES, "due"): lambda store: store.sides("broadcast", due_before=5),
    (PAYLOADS, "of_run"): remove,
}


class Sent(CommandListener):
    """The commands that a client sends, as they can be explained."""

    def __init__(self) -> None:
        self.commands: list[dict[str, Any]] = []

    def started(self, event: Any) -> None:
        if event.command_name in COMMANDS:
            self.commands.append(
                {
                    name: value
                    for name, value in event.command.items()
                    if name[0] != "$" and name not in OF_THE_SESSION
                }
            )

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


async def commands_of(url: str, query: Callable[[MongoStore], Awaitable[object]]) -> list[dict[str, Any]]:
    """What the query sends, on a database with many sleeping runs and a large payload."""
    sent = Sent()
    client: pymongo.MongoClient[Any] = pymongo.MongoClient(url, event_listeners=[sent])
    with client:
        async with opened(client.get_default_database()) as store:
            await store.write([Insert(sample(f"s{n}", due_at=10_000 + n, priority=n % 3)) for n in range(SLEEPERS)])
            await store.write([Insert(sample("large", state=LARGE))])
            sent.commands.clear()
            await query(store)
    return sent.commands


def test_every_index_has_a_query() -> None:
    assert set(QUERIES) == {(index.collection, index.name) for index in INDEXES}


@pytest.mark.parametrize("index", INDEXES, ids=lambda index: f"{index.collection}.{index.name}")
async def test_the_query_asks_for_what_its_index_is_led_by(databases: Any, index: Any) -> None:
    commands = await commands_of(databases.url(), QUERIES[index.collection, index.name])
    command = next(command for command in commands if next(iter(command.values())) == index.collection)
    asked = json.dumps([command.get("filter"), command.get("sort"), command.get("deletes")], default=str)
    assert f'"{next(iter(index.keys))}"' in asked
    for field in index.only or {}:
        assert f'"{field}"' in asked, "else the planner may not use a partial index"


@needs_real_server
@pytest.mark.parametrize("index", INDEXES, ids=lambda index: f"{index.collection}.{index.name}")
async def test_the_query_finds_its_way_by_its_index(databases: Any, index: Any) -> None:
    url = databases.url()
    for command in await commands_of(url, QUERIES[index.collection, index.name]):
        if next(iter(command.values())) != index.collection:
            continue
        told = databases.of(url).command("explain", command, verbosity="queryPlanner")
        plans = json.dumps(told["queryPlanner"], default=str)
        assert f'"indexName": "{index.name}"' in plans, "neither chosen nor considered"
        assert "COLLSCAN" not in json.dumps(told["queryPlanner"]["winningPlan"], default=str)
