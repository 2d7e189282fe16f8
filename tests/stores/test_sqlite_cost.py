import re
import sqlite3
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
import trio.testing

from streamline_trio._core.documents import StepDoc
from streamline_trio._core.store import (
    Cursor,
    Delete,
    Insert,
    Route,
    RunQuery,
    SortKey,
    Update,
)
from streamline_trio.stores.sqlite import _find, _reader, _statements, _turns
from streamline_trio.testing._conformance_base import after, record, sample
from tests.stores.opening import opened

ROUTE = Route("w", "1")
SLEEPERS = 200_000
REPEATED = (  # the reads that the engine repeats for as long as it runs
    *("DUE", "EARLIEST", "COUNT_DUE", "FIRST_PRIORITY", "NEXT_PRIORITY", "NEXT_ROUTE"),
    *("LEASED", "ATTENTIVE", "HOLDERS", "HOLDER", "LABELLED", "NAMESAKES", "PARTS", "ROWS"),
    *("SIDE", "SIDES", "DUE_SIDES", "QUEUED", "COUNT_QUEUED"),
)


@asynccontextmanager
async def recorded(store):
    """What is written inside the block: part names, and '*' for a run whose indexed columns are set."""
    writer = store._writer
    written: list[str] = []
    writer.create_function("told", 1, written.append)
    for event, row in (("INSERT", "new"), ("UPDATE", "new"), ("DELETE", "old")):
        writer.execute(f"CREATE TEMP TRIGGER on_{event} AFTER {event} ON parts BEGIN SELECT told({row}.part); END")
    writer.execute("CREATE TEMP TRIGGER on_head AFTER UPDATE OF head ON runs BEGIN SELECT told('head'); END")
    indexed = "status, version, due_at, worker, attention"
    writer.execute(f"CREATE TEMP TRIGGER on_index AFTER UPDATE OF {indexed} ON runs BEGIN SELECT told('*'); END")
    yield written
    for name in ("on_INSERT", "on_UPDATE", "on_DELETE", "on_head", "on_index"):
        writer.execute(f"DROP TRIGGER {name}")


async def test_a_commit_writes_only_what_it_changed(path):
    """A step that ends and one that begins are two parts and the head; no other part and no index is touched."""
    steps = {f"s{number}": StepDoc(status="done") for number in range(50)}
    run = sample("r1", worker="w", steps=steps, checkpoints={"s1/x": b"1"}, memos={}, tags=("t",))
    async with opened(path) as store:
        await store.write([Insert(run)])
        async with recorded(store) as written:
            now = after(run, steps={**steps, "s50": StepDoc(status="running")}, current_step="s50")
            now = msgspec.structs.replace(now, steps={**now.steps, "s49": StepDoc(status="done", attempts=2)})
            changes = store._writer.total_changes
            await store.write([Update(run, now)])
            assert sorted(written) == ["head", "step/s49", "step/s50"]
            assert store._writer.total_changes - changes == 3
            written.clear()
            await store.write([Update(now, after(now, checkpoints={}))])
            assert sorted(written) == ["checkpoint/s1/x", "head"]


async def test_indexed_columns_are_written_when_they_change(path):
    """Parking a run moves it in the indexes, and a head that only grows older does not."""
    run = sample("r1", worker="w")
    async with opened(path) as store:
        await store.write([Insert(run)])
        async with recorded(store) as written:
            parked = after(run, status="waiting", worker=None, due_at=7)
            await store.write([Update(run, parked)])
            assert sorted(written) == ["*", "head"]
            written.clear()
            await store.write([Update(parked, after(parked, updated_at=9))])
            assert written == ["head"]


async def test_deleting_leaves_no_row_in_any_table(path):
    """After a delete no table holds a row of the run."""
    run = sample(
        "r1",
        tags=("a",),
        meta=b"\x81\xa1a\x01",
        idempotency_key="k",
        records={"k": record("signal", signal="s", tokens=("t",))},
    )
    async with opened(path) as store:
        await store.write([Insert(run), *(Insert(sample(f"other{n}")) for n in range(3))])
        before = rows_by_table(store)
        await store.write([Delete(run.id, run.head.revision)])
        gone = {table: before[table] - count for table, count in rows_by_table(store).items()}
        assert gone == {"runs": 1, "parts": 3, "keys": 2, "labels": 3, "rows": 0, "sides": 0}


def rows_by_table(store):
    tables = ("runs", "parts", "keys", "labels", "rows", "sides")
    return {table: store._writer.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}  # noqa: S608


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """A file with 200,000 sleepers, which nobody has analysed."""
    path = tmp_path_factory.mktemp("crowded") / "runs.db"

    async def fill():
        async with opened(path) as store:
            await store.write([Insert(sample("sleeper", due_at=10**6)), Insert(sample("now", due_at=5))])
            await store.write([Insert(sample("held", worker="me"))])
            crowd(store._writer, SLEEPERS)

    trio.run(fill)
    return path


def crowd(connection, number):
    """Copy the sleeper: a third each in three priorities, all on one route, all due later."""
    columns = [str(row[1]) for row in connection.execute("PRAGMA table_info(runs)") if row[1] not in {"no", "id"}]
    values = [
        {"due_at": "due_at + n", "since": "since + n", "priority": "n % 3"}.get(column) or column
        for column in columns
    ]
    connection.execute(
        f"""
        WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {number})
        INSERT INTO runs (id, {", ".join(columns)})
        SELECT 's' || n, {", ".join(values)} FROM numbers, runs WHERE id = 'sleeper'
        """  # noqa: S608
    )


def plan(connection, statement, values=None):
    values = [1] * (len(set(re.findall(r"\?\d+", statement))) or statement.count("?")) if values is None else values
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]


def test_due_is_a_range_in_its_index(crowded):
    """On a file of 200,000 sleepers without statistics, what is due is found by a range on the due time."""
    connection = sqlite3.connect(crowded)
    (step,) = plan(connection, _reader.DUE)
    assert step == (
        "SEARCH runs USING COVERING INDEX runs_due (workflow=? AND version=? AND priority=? AND due_at<?)"
    )
    connection.close()


@pytest.mark.parametrize("name", REPEATED)
def test_reads_of_the_engine_never_scan(crowded, name):
    """S332, S349: no query that the engine repeats walks a table or a whole index."""
    connection = sqlite3.connect(crowded)
    steps = plan(connection, getattr(_reader, name))
    connection.close()
    assert not [step for step in steps if step.startswith("SCAN") and "holders" not in step]


@pytest.mark.parametrize("statement", [_turns.DUE_TENANTS, _turns.DUE_OF_TENANT])
def test_turns_are_ranges_in_their_index(crowded, statement):
    """Proves that tenants and their due runs are found by seeks in the index of turns, beside 200,000 sleepers."""
    connection = sqlite3.connect(crowded)
    steps = [step for step in plan(connection, statement) if "runs" in step]
    connection.close()
    assert steps
    for step in steps:
        assert step.startswith("SEARCH runs USING COVERING INDEX runs_turns (workflow=? AND version=? AND tenant")
    assert any("since<?" in step for step in steps)


def test_leases_in_the_order_of_take_over_are_found_by_worker(crowded):
    """Proves that only the leases of that worker are put in order."""
    connection = sqlite3.connect(crowded)
    steps = plan(connection, _reader.INHERITED)
    connection.close()
    assert steps[0] == "SEARCH runs USING INDEX runs_leased (worker=?)"


@pytest.mark.parametrize("rows", [1, 2, 4, 256])
def test_writes_never_scan(crowded, rows):
    """However many rows a statement has, SQLite finds each by its key."""
    connection = sqlite3.connect(crowded)
    statements = [value for value in vars(_statements).values() if isinstance(value, _statements.Statement)]
    steps = [step for statement in statements for step in plan(connection, _statements.text_of(statement, rows))]
    connection.close()
    assert len(statements) > 10
    tables = ("runs", "parts", "keys", "labels", "rows", "sides")
    assert not [step for step in steps if step.startswith(tuple(f"SCAN {table}" for table in tables))]


@pytest.mark.parametrize(
    ("query", "sort", "index"),
    [
        (RunQuery(), "-created_at", "runs_created"),
        (RunQuery(status=("failed",)), "-created_at", "runs_status"),
        (RunQuery(status=("done",), updated_before=5), "updated_at", "runs_settled"),
        (RunQuery(status=("done",), updated_after=5), "updated_at", "runs_settled"),
        (RunQuery(dead_lettered=True), "-created_at", "runs_dead"),
        (RunQuery(dead_lettered=True, status=("failed",), created_before=5), "created_at", "runs_dead"),
        (RunQuery(parent="p"), "created_at", "runs_children"),
        (RunQuery(tags=("rare",)), "-created_at", "labels"),
    ],
)
def test_lists_use_an_index(crowded, query, sort, index):
    """S418: the lists that people, tenants and retention ask for are served by an index."""
    connection = sqlite3.connect(crowded)
    statement, values = _find.page_statement(query, sort, 100, None)
    steps = plan(connection, statement, values)
    connection.close()
    assert any(index in step for step in steps), steps


def test_a_page_of_old_runs_is_not_sorted(crowded):
    """Proves that retention and bulk verbs read the next page of one status, and not all that match, to sort it."""
    connection = sqlite3.connect(crowded)
    asked: list[tuple[RunQuery, SortKey]] = [
        (RunQuery(status=("done",), updated_before=5), "updated_at"),
        (RunQuery(status=("done",), created_before=5), "created_at"),
        (RunQuery(status=("failed",), created_before=5, dead_lettered=True), "created_at"),
    ]
    for query, sort in asked:
        statement, values = _find.page_statement(query, sort, 100, Cursor(1, "x"))
        (step,) = plan(connection, statement, values)
        assert step.startswith("SEARCH runs USING INDEX")
    connection.close()


def test_counts_of_statistics_come_from_indexes(crowded):
    """Proves that counts by status, and of dead letters, read narrow indexes and no run."""
    connection = sqlite3.connect(crowded)
    (statuses,) = plan(connection, _reader.STATUSES)
    dead = _find.condition(RunQuery(dead_lettered=True))
    (letters,) = plan(connection, f"SELECT count(*) FROM runs WHERE {dead.where()}", dead.values)  # noqa: S608
    connection.close()
    assert (statuses, letters) == ("SCAN runs USING COVERING INDEX runs_status", "SCAN runs USING INDEX runs_dead")


def steps_of(connection, function):
    """How many instructions SQLite's machine runs for it."""
    steps = 0

    def tick():
        nonlocal steps
        steps += 1

    connection.set_progress_handler(tick, 1)
    function()
    connection.set_progress_handler(None, 1)
    return steps


def test_the_cost_of_a_claim_does_not_grow(crowded, tmp_path):
    """What a worker reads to claim takes the same steps beside 200,000 sleepers as beside 30."""
    small = tmp_path / "small.db"

    async def fill():
        async with opened(small) as store:
            await store.write([Insert(sample("sleeper", due_at=10**6)), Insert(sample("now", due_at=5))])
            await store.write([Insert(sample("held", worker="me"))])
            crowd(store._writer, 30)

    trio.run(fill)
    assert claim_costs(small) == claim_costs(crowded)


def claim_costs(path):
    connection = sqlite3.connect(path, isolation_level=None)
    assert _reader.due(connection, [ROUTE], 99, 10) == [sample("now", due_at=5)]
    assert _reader.next_due(connection, [ROUTE]) == 5
    reads = (
        lambda: _reader.due(connection, [ROUTE], 99, 10),
        lambda: _reader.due(connection, [ROUTE], 99, 10, skip=10),
        lambda: _turns.due_in_turn(connection, [ROUTE], 10**5, None, 10),
        lambda: _reader.leased_by_priority(connection, "me", 10, 0),
        lambda: _reader.next_due(connection, [ROUTE]),
        lambda: _reader.lease_holders(connection),
        lambda: _reader.leased(connection, "me", 10, "", attention=False),
    )
    costs = [steps_of(connection, read) for read in reads]
    connection.close()
    return costs


def test_the_cost_of_a_commit_does_not_grow(crowded, tmp_path):
    """A claim and a hand-over take the same steps beside 200,000 sleepers as beside none."""
    small = tmp_path / "small.db"
    costs = []

    async def measure(path):
        async with opened(path) as store:
            run = sample("mover", due_at=1)
            held = after(run, due_at=None, worker="w")
            batches = [[Insert(run)], [Update(run, held)], [Update(held, after(held, worker=None, due_at=2))]]
            batches.append([Delete("mover", 3)])
            writer = store._writer
            costs.append([steps_of(writer, lambda batch=batch: store._write(batch)) for batch in batches])

    for path in (small, crowded):
        trio.run(measure, path)
    # Searching an empty table ends one step sooner.
    assert all(abs(few - many) <= 1 for few, many in zip(*costs, strict=True))
