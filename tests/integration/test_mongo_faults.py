"""Faults of a MongoDB server while two workers drive runs: every run ends done, each step's effect comes once.

Fail points hold for a whole server, so that these tests have one of their own. The driver repeats nothing here:
each fault reaches the store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import pymongo
import pytest
import trio
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from streamline_trio import Engine, StepContext, StoreUnavailable, Workflow, open_engine
from streamline_trio.stores.mongo import MongoStore, _client, _stream
from tests.mongo_server import Databases, Server, needs_own_server, private
from tests.stores.mongo_opening import hurry

pytestmark = needs_own_server

TIMEOUT = 0.7
# The driver repeats nothing, and asks again soon after an error whether the server is well: it cannot be told so,
# as a server that steps down does.
BARE = "retryReads=false&serverMonitoringMode=poll&heartbeatFrequencyMS=500"
STEPPED_DOWN = {"errorCode": 10107}
CUT = {"closeConnection": True}
SLOW = {"blockConnection": True, "blockTimeMS": 1000}
UNSURE = {"writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}}
SHUTDOWN = {"writeConcernError": {"code": 91, "errmsg": "shutting down"}}
READS = [STEPPED_DOWN, CUT, SLOW]
WRITES = [*READS, UNSURE, SHUTDOWN]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with private() as server:
        yield server


@pytest.fixture
def databases(server: Server) -> Iterator[Databases]:
    found = Databases(server.url)
    yield found
    found.drop()


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stream, "PATIENCE", 0.05)


class Faults(CommandListener):
    """Makes commands of the store fail, and notes which did."""

    def __init__(self, client: pymongo.MongoClient[Any]) -> None:
        self._admin = client.admin
        self.met: Counter[str] = Counter()

    def started(self, event: CommandStartedEvent) -> None:
        pass

    def succeeded(self, event: CommandSucceededEvent) -> None:
        if "writeConcernError" in event.reply:
            self.met[event.command_name] += 1

    def failed(self, event: CommandFailedEvent) -> None:
        self.met[event.command_name] += 1

    @contextmanager
    def on(self, commands: list[str], fault: dict[str, Any], times: int | None = None) -> Iterator[None]:
        """While the block lasts; `times` at most."""
        data = {"failCommands": commands, "appName": "streamline_trio", **fault}
        mode = "alwaysOn" if times is None else {"times": times}
        self._admin.command("configureFailPoint", "failCommand", mode=mode, data=data)
        try:
            yield
        finally:
            self._admin.command("configureFailPoint", "failCommand", mode="off")


@pytest.fixture
def faults(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Clients that stores make from now on tell it what they meet."""
    found = Faults(databases.client)
    monkeypatch.setattr(_client, "MongoClient", partial(pymongo.MongoClient, event_listeners=[found]))
    return found


class Shop:
    """A workflow that logs, sleeps, calls twice and returns something large; notes the effects of its steps."""

    def __init__(self) -> None:
        self.effects: Counter[tuple[str, str]] = Counter()
        self.workflow: Workflow[Any, Any] = Workflow("shop")
        for name in ("reserve", "pay", "send"):
            self.workflow.add_step(name, getattr(self, name))

    def _note(self, ctx: StepContext[Any, Any]) -> None:
        self.effects[ctx.run_id, ctx.step_id] += 1

    async def reserve(self, ctx: StepContext[Any, Any]) -> str:
        ctx.log("reserving")
        self._note(ctx)
        return "x" * 300_000

    async def pay(self, ctx: StepContext[Any, Any]) -> int:
        await ctx.sleep(0.01)
        self._note(ctx)
        return 7

    async def send(self, ctx: StepContext[Any, Any]) -> str:
        self._note(ctx)
        return "sent"

    async def sell(self, engine: Engine, other: Engine, number: int) -> None:
        """Start so many runs, half of them for the other engine's eyes, and see that each is done exactly once."""
        started = [await engine.start(self.workflow) for _ in range(number)]
        for handle in started:
            assert await other.run(handle.id).result() == "sent"
            run = await handle.get()
            assert (run.status, run.recoveries) == ("done", 0)
            assert [self.effects[handle.id, step] for step in run.steps] == [1, 1, 1]
        assert (await engine.stats()).queue_depth == 0
        assert await engine.delete(workflow="shop") >= number


@asynccontextmanager
async def two_engines(url: str, *workflows: Workflow[Any, Any], **options: Any) -> AsyncGenerator[tuple[Any, ...]]:
    """Two workers, each with a client of its own."""
    options = {"poll_interval": 0.1, **options}
    stores = [MongoStore(url), MongoStore(url)]
    async with (
        open_engine(stores[0], *workflows, **options) as one,
        open_engine(stores[1], *workflows, **options) as other,
    ):
        hurry(TIMEOUT, *stores)
        yield one, other


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        ("bulkWrite", WRITES),
        ("insert", [CUT]),
        ("delete", [UNSURE]),
        ("find", READS),
        ("getMore", [CUT, STEPPED_DOWN]),
        ("aggregate", [STEPPED_DOWN]),
        ("distinct", [CUT]),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} faults",
)
async def test_every_command_may_fail(databases, faults, command, kinds):
    """Whatever a command meets, no run is lost and no effect repeated."""
    shop = Shop()
    async with two_engines(databases.url(BARE), shop.workflow) as (one, other):
        for fault in kinds:
            faults.met.clear()
            with faults.on([command], fault, times=1), trio.fail_after(20):
                while command not in faults.met:
                    await shop.sell(one, other, 1)


async def test_every_write_of_an_older_server_may_fail(databases, faults, monkeypatch):
    """The same where there is no bulkWrite for several collections."""
    monkeypatch.setattr(_client, "CLIENT_BULK_WIRE_VERSION", 10**6)
    shop = Shop()
    async with two_engines(databases.url(BARE), shop.workflow) as (one, other):
        for fault in (STEPPED_DOWN, SLOW, UNSURE):
            with faults.on(["insert", "update", "delete"], fault, times=2):
                await shop.sell(one, other, 1)


async def test_a_driver_that_repeats_commands_by_itself(databases, faults):
    """A step-down in the midst of writes that the driver then repeats, as it does unless told otherwise."""
    shop = Shop()
    url = databases.url(BARE).replace("retryWrites=false", "retryWrites=true").replace("retryReads=false&", "")
    fault = {**STEPPED_DOWN, "errorLabels": ["RetryableWriteError"]}
    async with two_engines(url, shop.workflow) as (one, other):
        for kind in (fault, UNSURE):
            with faults.on(["bulkWrite", "find"], kind, times=5):
                await shop.sell(one, other, 2)


@pytest.mark.parametrize("fault", [STEPPED_DOWN, SLOW], ids=["step-down", "slow"])
async def test_callers_are_told_in_bounded_time(databases, faults, fault):
    """As long as nothing works every call ends with StoreUnavailable in time; afterwards all work again."""
    shop, commands = Shop(), ["find", "bulkWrite", "insert", "update", "delete", "aggregate", "getMore", "distinct"]
    url = databases.url(BARE)
    async with two_engines(url, shop.workflow, lease=2) as (one, other), one.events("scheduler.*") as outages:
        settled = await one.start(shop.workflow)
        await settled.wait()
        with faults.on(commands, fault):
            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    for call in (
                        lambda: one.start(shop.workflow),
                        settled.get,
                        one.count,
                        one.find,
                        settled.retry,
                        lambda: one.emit("signal", 1),
                    ):
                        nursery.start_soon(unavailable, call)
            with trio.fail_after(10):
                assert (await anext(outages)).name == "scheduler.circuit_open"
        await shop.sell(one, other, 2)


async def unavailable(call: Any) -> None:
    with pytest.raises(StoreUnavailable):
        await call()
