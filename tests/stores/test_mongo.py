import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pymongo
import pytest
import trio
import trio.testing

from streamline_trio import cli
from streamline_trio._core.documents import Parent, RunDoc, StepDoc, Try
from streamline_trio._core.errors import StoreUnavailable, ValidationError
from streamline_trio._core.store import (
    AppendRows,
    Applied,
    Insert,
    KeyTaken,
    PutSide,
    Refused,
    RunQuery,
    Update,
)
from streamline_trio.stores.mongo import MongoStore, _indexes
from streamline_trio.stores.mongo._indexes import INDEXES
from streamline_trio.testing._conformance_base import after, moved, sample
from tests.mongo_server import free_port
from tests.stores.mongo_opening import ROUTE, Commands, counted, opened, packed

AT = 1_774_748_000_125


# --- the layout --------------------------------------------------------------------------------------------------


async def test_a_run_is_a_natural_document(databases):
    """Fields by name, instants as dates, state and outputs as values, steps by id: what other tools can query."""
    url = databases.url()
    step = StepDoc(
        status="done",
        attempts=2,
        position=1,
        started_at=AT,
        ended_at=AT + 1,
        output=packed({"total": 12.5}),
        tries=(Try(attempt=1, worker="w1", started_at=AT, ended_at=AT, outcome="failed"),),
    )
    run = sample(
        "r1",
        workflow="orders",
        version="2",
        tenant="acme",
        tags=("express",),
        meta=packed({"shop": 7}),
        input=packed({"order": 1}),
        idempotency_key="o-1",
        parent=Parent(run="p", step="s"),
        created_at=AT,
        updated_at=AT + 5,
        due_at=AT + 9,
        state=packed({"items": [{"sku": "a"}], "paid": datetime(2026, 3, 29, tzinfo=UTC)}),
        steps={"pay": step},
        checkpoints={"pay/a.b": packed(1)},
        seen={"s": AT},
        commits=(1, 2**62),
    )
    async with opened(url) as store:
        assert await store.write([Insert(run)]) == [Applied()]
        stored = databases.of(url).runs.find_one({"state.items.sku": "a", "steps.pay.status": "done"})
    labels = stored.pop("labels")
    assert stored.pop("due_since") == stored["due_at"]
    assert len(labels) == 2
    assert stored == {
        "_id": "r1",
        "workflow": "orders",
        "version": "2",
        "route": "orders\n2",
        "tenant": "acme",
        "tags": ["express"],
        "meta": {"shop": 7},
        "input": {"order": 1},
        "idempotency_key": "o-1",
        "active_key": "tacme\norders\no-1",
        "parent": {"run": "p", "step": "s"},
        "start_id": 1,
        "fingerprint": "f",
        "status": "running",
        "priority": 0,
        "revision": 1,
        "fence": 0,
        "commits": [1, 2**62],
        "created_at": date(AT),
        "updated_at": date(AT + 5),
        "due_at": date(AT + 9),
        "state": {"items": [{"sku": "a"}], "paid": datetime(2026, 3, 29, tzinfo=UTC)},
        "steps": {
            "pay": {
                "status": "done",
                "attempts": 2,
                "position": 1,
                "started_at": date(AT),
                "ended_at": date(AT + 1),
                "output": {"total": 12.5},
                "tries": [
                    {
                        "attempt": 1,
                        "worker": "w1",
                        "started_at": date(AT),
                        "ended_at": date(AT),
                        "outcome": "failed",
                    }
                ],
            }
        },
        "checkpoints": {"pay/a%2Eb": 1},
        "seen": {"s": date(AT)},
    }


def date(instant):
    """The instant as other tools read it."""
    return datetime.fromtimestamp(instant // 1000, UTC).replace(microsecond=instant % 1000 * 1000)


async def test_an_update_writes_what_changed(databases):
    """Of a run with many steps only the fields and entries that differ are sent."""
    sent = []

    class Sent(Commands):
        def started(self, event):
            if event.command_name == "bulkWrite":
                sent.append(event.command["ops"])

    url = databases.url()
    client: pymongo.MongoClient[Any] = pymongo.MongoClient(url, event_listeners=[Sent()])
    with client:
        async with opened(client.get_default_database()) as store:
            steps = {f"s{number}": StepDoc(status="done", output=packed("x" * 100)) for number in range(50)}
            run = sample("r1", worker="w", fence=1, steps=steps)
            await store.write([Insert(run)])
            done = after(run, steps={**steps, "s7": StepDoc(status="running")}, updated_at=AT)
            sent.clear()
            assert await store.write([Update(run, done)]) == [Applied()]
    ((operation,),) = sent
    change = operation["updateMods"]
    assert set(change["$set"]) == {"revision", "updated_at", "steps.s7", "lease"}
    assert set(change["$unset"]) == {"due_at", "quarantined"}
    assert operation["filter"] == {"_id": "r1", "revision": 1}


# --- round trips -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 100])
async def test_a_batch_of_updates_is_one_command(databases, number):
    """However many runs a batch updates, also together with side documents: one command, with each verdict."""
    async with counted(databases) as (store, commands):
        runs = [sample(f"r{place}") for place in range(number)]
        await store.write([*map(Insert, runs)])
        assert commands.take() == ["bulkWrite"]
        batch = [moved(run, paused=True) for run in runs]
        assert await store.write([*batch, PutSide("k", "s", None, b"\xc0")]) == [Applied()] * (number + 1)
        assert commands.take() == ["bulkWrite"]
        assert await store.write([*batch, PutSide("k", "s", None, b"\xc0")]) == [Refused()] * (number + 1)
        assert commands.take() == ["bulkWrite"]


async def test_a_claim_of_a_hundred_runs_is_two_commands(databases):
    """One find of what is due and one write; that some were lost to others costs nothing more."""
    async with counted(databases) as (store, commands):
        runs = [sample(f"r{number}", due_at=number) for number in range(100)]
        await store.write([*map(Insert, runs)])
        commands.take()
        found = [run for run in await store.due([ROUTE], 100, 100) if isinstance(run, RunDoc)]
        assert commands.take() == ["find"]
        await store.write([moved(found[0], due_at=None, worker="other")])
        commands.take()
        verdicts = await store.write([moved(run, due_at=None, worker="w") for run in found])
        assert verdicts == [Refused(), *[Applied()] * 99]
        assert commands.take() == ["bulkWrite"]


async def test_claims_lost_to_others_cost_one_look(databases):
    """Commits tell whether a write that met nothing was applied at a first attempt: three commands in all."""
    async with counted(databases) as (store, commands):
        runs = [sample(f"r{number}", due_at=number) for number in range(20)]
        await store.write([*map(Insert, runs)])
        commands.take()
        found = [run for run in await store.due([ROUTE], 100, 100) if isinstance(run, RunDoc)]
        mine = [moved(run, due_at=None, worker="w", commits=(place + 1,)) for place, run in enumerate(found)]
        await store.write([moved(run, due_at=None, worker="other", commits=(99,)) for run in found[:5]])
        assert commands.take() == ["find", "bulkWrite"]
        assert await store.write(mine) == [Refused()] * 5 + [Applied()] * 15
        assert commands.take() == ["bulkWrite", "find"]


async def test_a_claim_on_an_older_server_is_three_commands_at_most(databases, monkeypatch):
    """Before 8.0: one find, one write, and only when some were lost one look at which."""
    monkeypatch.setattr("streamline_trio.stores.mongo._client.CLIENT_BULK_WIRE_VERSION", 10**6)
    async with counted(databases) as (store, commands):
        runs = [sample(f"r{number}", due_at=number) for number in range(20)]
        await store.write([*map(Insert, runs)])
        commands.take()
        found = [run for run in await store.due([ROUTE], 100, 100) if isinstance(run, RunDoc)]
        half = [moved(run, due_at=None, worker="w") for run in found]
        assert await store.write(half[:10]) == [Applied()] * 10
        assert commands.take() == ["find", "update"]
        assert await store.write(half) == [Refused()] * 10 + [Applied()] * 10
        assert commands.take() == ["update", "find"]


async def test_each_read_is_one_command(databases):
    """What the engine asks all the time costs one round trip each."""
    async with counted(databases) as (store, commands):
        await store.write([Insert(sample("r1", due_at=1)), Insert(sample("r2", worker="w"))])
        commands.take()
        await store.load("r1")
        await store.load_many(["r1", "r2"])
        await store.next_due([ROUTE])
        await store.leased("w", attention=True, limit=9)
        await store.sides("worker")
        assert commands.take() == ["find"] * 5
        await store.lease_holders()
        assert commands.take() == ["distinct"]


async def test_rows_that_go_with_a_commit_cost_one_more_command(databases):
    """The fence of a run that the batch has just written need not be read."""
    async with counted(databases) as (store, commands):
        run = sample("r1", worker="w", fence=1)
        await store.write([Insert(run), AppendRows("r1", "log", (packed("a"),), 9, 1)])
        commands.take()
        await store.write([moved(run), AppendRows("r1", "log", (packed("b"),), 9, 1)])
        assert commands.take() == ["bulkWrite", "bulkWrite"]
        assert await store.rows("r1", "log") == [packed("a"), packed("b")]


async def test_a_taken_key_costs_one_read(databases):
    """The holder is looked up once, for all writes of the batch that met a key."""
    async with counted(databases) as (store, commands):
        await store.write([Insert(sample("r1", idempotency_key="k"))])
        commands.take()
        rivals = [Insert(sample(f"x{number}", idempotency_key="k")) for number in range(1)]
        assert await store.write([*rivals, Insert(sample("y"))]) == [KeyTaken("active_key", "r1"), Applied()]
        assert commands.take() == ["bulkWrite", "find"]


# --- indexes -----------------------------------------------------------------------------------------------------


async def test_indexes_are_created_once_and_verified(databases):
    """Opening makes exactly the declared indexes; opening again makes none."""
    url = databases.url()
    async with opened(url):
        pass
    database = databases.of(url)
    found = {
        (name, index["name"])
        for name in ("runs", "rows", "sides", "payloads")
        for index in database[name].list_indexes()
        if index["name"] != "_id_"
    }
    assert found == {(index.collection, index.name) for index in INDEXES}
    commands = Commands()
    client: pymongo.MongoClient[Any] = pymongo.MongoClient(url, event_listeners=[commands])
    with client:
        async with opened(client, client.get_default_database().name):
            assert "createIndexes" not in commands.take()


async def test_an_index_that_is_another_is_told(databases):
    """An index of our name with other keys, or a missing one that must not be made, keeps the store closed."""
    url = databases.url()
    store = MongoStore(url, ensure_indexes=False)
    with pytest.raises(ValidationError, match="lacks the index 'due'"):
        await store.open()
    databases.of(url).runs.create_index([("workflow", 1)], name="due")
    with pytest.raises(ValidationError, match=r"'due' of .* is not the one of this release"):
        await MongoStore(url).open()


def test_indexes_are_of_documented_forms():
    """Partial filters are `$exists: true` or an equality, and no index holds two arrays."""
    arrays = {"tokens", "labels", "tags", "waiting", "commits"}
    for index in INDEXES:
        for wanted in (index.only or {}).values():
            assert wanted is True or wanted == {"$exists": True}
        assert len(arrays & index.keys.keys()) <= 1
    names = [(index.collection, index.name) for index in INDEXES]
    assert len(names) == len(set(names))


# --- the connection ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mongodb://localhost", "names no database"),
        ("mongodb://localhost/", "names no database"),
        ("http://localhost/x", "begins with mongodb://"),
    ],
)
def test_a_url_that_names_no_database_is_refused(url, why):
    """What is wrong with a URL is said at once."""
    with pytest.raises(ValidationError, match=why):
        MongoStore(url)


def test_a_client_needs_the_name_of_a_database():
    """A client alone does not say where runs are."""
    server: Any = object()
    with pytest.raises(ValidationError, match="name of a database"):
        MongoStore(server)


def test_without_pymongo_the_error_names_the_extra(monkeypatch):
    """Who has not installed the driver is told how."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ValidationError, match=r"streamline-trio\[mongo\]"):
        MongoStore("mongodb://localhost/x")


async def test_a_server_that_is_not_there_is_unavailable_in_time(databases):
    """Opening gives up after the timeout, and so does a call on a store that is not open, at once."""
    store = MongoStore(f"mongodb://127.0.0.1:{free_port()}/x", timeout=0.2)
    with trio.fail_after(5):
        with pytest.raises(StoreUnavailable):
            await store.open()
        with pytest.raises(StoreUnavailable, match="is not open"):
            await store.load("r1")


async def test_a_given_client_stays_open(databases):
    """Closing the store leaves a client that it was given to its owner."""
    url = databases.url()
    client: pymongo.MongoClient[Any] = pymongo.MongoClient(url)
    with client:
        database = client.get_default_database()
        async with opened(client, database.name) as store:
            assert await store.write([Insert(sample("r1", worker="w"))]) == [Applied()]
            await store.open()
            await store.aclose()
            assert await store.lease_holders() == ["w"]
        assert database.runs.count_documents({}) == 1


async def test_writes_are_durable_and_reads_are_of_a_majority(databases):
    """S350: whatever the client is set to, a majority journals writes, and no failover takes back what was read."""
    url = databases.url("w=1&journal=false&readConcernLevel=local&readPreference=secondary")
    async with opened(url) as store:
        database = store._backend._database
        assert database.write_concern.document == {"w": "majority", "j": True}
        assert database.read_concern.level == "majority"
        assert database.read_preference == pymongo.ReadPreference.PRIMARY


async def test_a_begun_write_is_carried_out(databases, monkeypatch):
    """A caller that is cancelled while the server works still gets its verdict; one that waits never begins."""
    verdicts = []
    async with opened(databases.url(), pool_size=1) as store:
        began, go_on = threading.Event(), threading.Event()
        write = store._backend.writer.write

        def held(batch):
            began.set()
            go_on.wait()
            return write(batch)

        monkeypatch.setattr(store._backend.writer, "write", held)

        async def begin(run_id):
            verdicts.append((run_id, await store.write([Insert(sample(run_id))])))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin, "first")
            await trio.to_thread.run_sync(began.wait)
            nursery.start_soon(begin, "second")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            go_on.set()
        assert verdicts == [("first", [Applied()])]
        assert await store.load("second") is None


def test_an_index_knows_its_own():
    """Keys in another order, another filter or uniqueness is another index."""
    index = _indexes.Index("runs", "x", {"a": 1, "b": -1}, {"a": {"$exists": True}}, unique=True)
    stored = {"key": {"a": 1, "b": -1}, "unique": True, "partialFilterExpression": {"a": {"$exists": True}}}
    assert index.is_like(stored)
    others: list[dict[str, Any]] = [{"key": {"b": -1, "a": 1}}, {"unique": False}, {"partialFilterExpression": {}}]
    for other in others:
        assert not index.is_like(stored | other)


def test_trio_runs_in_threads_share_one_store(databases):
    """Runs that use one store object at once, each in its own thread, get what they ask for, and lose nothing."""
    store = MongoStore(databases.url(), pool_size=2, change_streams=False)
    together = threading.Barrier(3, timeout=30)

    async def use(name: str) -> None:
        await store.open()
        for number in range(5):
            together.wait()
            async with trio.open_nursery() as nursery:
                for reader in range(6):
                    nursery.start_soon(store.load, f"{name}{reader}")
                assert await store.write([Insert(sample(f"{name}{number}"))]) == [Applied()]
        await store.aclose()

    with ThreadPoolExecutor(3) as threads:
        for ended in [threads.submit(trio.run, use, name) for name in "abc"]:
            ended.result()
    trio.run(store.open)
    assert trio.run(store.count, RunQuery()) == 15
    trio.run(store.aclose)


def test_the_command_line_creates_and_checks_indexes(databases, capsys):
    """Operators can prepare a database before the first worker opens it, and see what it lacks."""
    url = databases.url()
    assert cli.main(["ensure-indexes", "--store", url, "--check"]) == cli.FAILED
    assert "lacks the index 'due'" in capsys.readouterr().err
    assert cli.main(["ensure-indexes", "--store", url, "--timeout", "60"]) == 0
    assert cli.main(["ensure-indexes", "--store", url, "--check"]) == 0
    assert capsys.readouterr().out == "every index is there\n" * 2
    databases.of(url)["runs"].drop_index("due")
    assert cli.main(["ensure-indexes", "--store", url, "--check"]) == cli.FAILED


def test_the_command_line_refuses_what_is_no_mongodb(capsys):
    """Another store has no indexes to be ensured."""
    assert cli.main(["ensure-indexes", "--store", "sqlite:///runs.db"]) == cli.FAILED
    assert "begins with mongodb:// or mongodb+srv://" in capsys.readouterr().err
