"""Checks of batches as wholes: conditions 1, 2, 7 and 15."""

from __future__ import annotations

from functools import partial

import trio
from msgspec.structs import replace

from streamline_trio._core.documents import (
    StepDoc,
)
from streamline_trio._core.errors import StreamlineError
from streamline_trio._core.store import (
    AppendRows,
    Applied,
    Delete,
    Failed,
    Insert,
    KeyTaken,
    PutSide,
    Refused,
    RunQuery,
    Update,
)
from streamline_trio.testing._conformance_base import (
    KEYED,
    UNENCODABLE,
    Subject,
    after,
    check,
    expect,
    expect_kinds,
    moved,
    must,
    one,
    opened,
    put,
    record,
    rich_run,
    sample,
)


@check(1)
async def verdicts_come_in_order(subject: Subject) -> None:
    """One verdict per write, in order, and a refused write keeps no other from being applied."""
    async with opened(subject) as store:
        run = sample("r1")
        await put(store, run)
        verdicts = await store.write(
            [
                Insert(sample("r2")),
                moved(after(run), paused=True),
                Insert(UNENCODABLE),
                Insert(KEYED),
                Delete("nobody", 1),
                PutSide("kind", "key", 7, b""),
                AppendRows("nobody", "log", (b"",), 10),
                Insert(sample("r3")),
                PutSide("kind", "key", None, b"body"),
                AppendRows("r3", "log", (b"row",), 10),
            ]
        )
        wanted = [Applied, Refused, Failed, Refused, Refused, Refused, Refused, Applied, Applied, Applied]
        expect_kinds(verdicts, *wanted)
        expect(await store.load("r1"), run, "the run of the refused writes")
        expect(await store.load("r3"), sample("r3"), "a run of the same batch")
        expect(await store.rows("r3", "log"), [b"row"], "rows of the same batch")


@check(1)
async def an_empty_batch_has_no_verdicts(subject: Subject) -> None:
    """Nothing to write is no error."""
    async with opened(subject) as store:
        expect(await store.write([]), [], "verdicts")


@check(1)
async def writes_of_a_batch_apply_in_order(subject: Subject) -> None:
    """A write sees what earlier ones of its batch did."""
    async with opened(subject) as store:
        await put(store, KEYED)
        verdicts = await store.write(
            [
                Insert(sample("r2", idempotency_key="k")),
                moved(KEYED, status="done"),
                Insert(sample("r3", idempotency_key="k")),
                PutSide("kind", "key", None, b"1"),
                PutSide("kind", "key", 1, b"2"),
            ]
        )
        expect_kinds(verdicts, KeyTaken, Applied, Applied, Applied, Applied)


@check(1)
async def a_large_batch_is_many_writes(subject: Subject) -> None:
    """Hundreds of writes at once have their verdicts and effects one by one."""
    async with opened(subject) as store:
        runs = [sample(f"r{number}") for number in range(300)]
        await put(store, *runs)
        stale = [after(run) if number % 3 == 0 else run for number, run in enumerate(runs)]
        verdicts = await store.write([moved(run, paused=True) for run in stale])
        expect_kinds(verdicts, *(Refused if number % 3 == 0 else Applied for number in range(300)))
        loaded = await store.load_many([run.id for run in runs])
        paused = [run is not None and run.head.paused for run in loaded]
        expect(paused, [number % 3 != 0 for number in range(300)], "which are paused")


@check(2)
async def what_is_not_applied_leaves_no_trace(subject: Subject) -> None:
    """A write that meets a taken key changes nothing: no part, no queue, no other key."""
    async with opened(subject) as store:
        other = sample("r2", due_at=5, records={"a": record(tokens=("mine",))})
        await put(store, sample("r1", records={"a": record(tokens=("taken",))}), other)
        grown = after(other, due_at=9, steps={"s": StepDoc()}, state=b"\x01")
        grown = replace(grown, records={"b": record(tokens=("new", "taken"))})
        expect(await one(store, Update(other, grown)), KeyTaken("token", "r1"), "verdict")
        expect(await store.load("r2"), other, "the run")
        expect(await store.by_token("mine"), other, "the holder of its token")
        expect(await store.by_token("new"), None, "the holder of the token it did not get")
        expect(await store.count(RunQuery()), 2, "number of runs")
        await must(store, moved(other, state=b"\x02"))


@check(2)
async def a_refused_insert_leaves_no_trace(subject: Subject) -> None:
    """The parts of a run that was not taken do not appear in one that later is."""
    async with opened(subject) as store:
        await put(store, KEYED)
        refused = sample("r2", idempotency_key="k", steps={"s": StepDoc()}, tags=("x",), meta=b"\x81\xa1a\x01")
        expect(await one(store, Insert(refused)), KeyTaken("active_key", "r1"), "verdict")
        expect(await store.load("r2"), None, "the run")
        expect(await store.find(RunQuery(tags=("x",)), sort="created_at", limit=9, after=None), [], "found")
        await put(store, sample("r2"))
        expect(await store.load("r2"), sample("r2"), "the run inserted later")


@check(2)
async def what_was_written_survives_closing(subject: Subject) -> None:
    """A store object that is closed and opened again has what it had."""
    async with opened(subject) as store:
        await put(store, rich_run())
        await must(store, PutSide("kind", "key", None, b"body"), AppendRows("rich", "log", (b"row",), 1))
        await store.aclose()
        await store.open()
        expect(await store.load("rich"), rich_run(), "the run")
        expect(await store.rows("rich", "log"), [b"row"], "the rows")
        side = await store.side("kind", "key")
        expect(side is not None and side.body, b"body", "the side document")


@check(7)
async def what_cannot_be_encoded_has_failed(subject: Subject) -> None:
    """A write without a stored form is Failed with one of our errors, alone and among others."""
    async with opened(subject) as store:
        run = sample("r1")
        await put(store, run)
        verdicts = [await one(store, Insert(UNENCODABLE))]
        verdicts += await store.write([moved(run, steps={"\ud800": StepDoc()}), Insert(sample("r2"))])
        expect_kinds(verdicts, Failed, Failed, Applied)
        errors: list[object] = [verdict.error for verdict in verdicts if isinstance(verdict, Failed)]
        expect([isinstance(error, StreamlineError) for error in errors], [True, True], "errors are ours")
        expect(await store.load("r1"), run, "the run")


@check(15)
async def a_cancelled_write_is_whole_or_absent(subject: Subject) -> None:
    """A caller that is cancelled leaves each of its writes applied whole or not at all, and a working store."""
    async with opened(subject) as store:
        runs = [sample(f"r{number}") for number in range(20)]
        updates = [moved(run, steps={"s": StepDoc()}, state=b"\x01", status="done") for run in runs]
        await put(store, *runs)
        async with trio.open_nursery() as nursery:
            for update in updates:
                nursery.start_soon(partial(store.write, [update]))
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        for update, stored in zip(updates, await store.load_many([run.id for run in runs]), strict=True):
            expect(stored in {0: update.before, 1: update.after}.values(), True, "old or new as a whole")
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.write([Insert(sample("late"))])
        await put(store, sample("working"))
