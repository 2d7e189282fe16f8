"""Checks of how runs are written: conditions 1 to 4, 7, 13, 15 and 16."""

from __future__ import annotations

from functools import partial

import trio
from msgspec.structs import replace

from streamline_trio._core.documents import (
    ErrorDoc,
    Memo,
    Message,
    Parent,
    RunDoc,
    Scheduled,
    StepDoc,
    Try,
    WaitNote,
    active_key,
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
    Store,
    Update,
    Verdict,
    Write,
)
from streamline_trio.testing._conformance_base import (
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
    sample,
    using,
)

UNENCODABLE = sample("unencodable", pause_reason="\ud800")
KEYED = sample("r1", idempotency_key="k")


def rich_run(run_id: str = "rich") -> RunDoc:
    """A run that has something in every part, under keys of any text."""
    odd = ("", "/", "a/b", "ünï-☃-𝄞", 'it\'s "%s" $.x', "nul\0", "x" * 500)
    origin = {
        "input": bytes(range(256)),
        "tenant": "t",
        "priority": -100,
        "user": "u",
        "tags": odd,
        "meta": b"\x81\xa1a\x01",
        "idempotency_key": "k",
        "parent": Parent(run="p", step="s"),
        "scheduled": Scheduled(at=5, local="2026-03-29 02:30", zone="Europe/Berlin", gap=True),
        "start_id": 2**63 - 1,
    }
    error = ErrorDoc(code="c", message="m", type="t", step="s", traceback="x" * 5000)
    trial = Try(attempt=1, worker="w", started_at=1, ended_at=2, outcome="failed")
    note = WaitNote(kind="human", name="n", opened_at=1, resolved_at=2, outcome="value")
    step = StepDoc(status="done", output=b"", error=error, tries=(trial,), waits=(note,))
    return sample(
        run_id,
        **origin,
        commits=(1, 2**63 - 1),
        error=error,
        state=b"\0" * 100_000,
        steps=dict.fromkeys(odd, step),
        records={key: record(tokens=(key,), shape=b"", due_at=7) for key in odd},
        checkpoints=dict.fromkeys(odd, b"\xc1"),
        memos=dict.fromkeys(odd, Memo(step="s", value=b"")),
        inbox=dict.fromkeys(odd, Message(signal="s", payload=b"", id="i", at=1)),
        seen=dict.fromkeys(odd, 2**53),
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


@check(3)
async def an_update_needs_the_stored_revision(subject: Subject) -> None:
    """An update decided on an older revision, or of a run that is gone, is refused and changes nothing."""
    async with opened(subject) as store:
        run = sample("r1")
        newer = after(run, state=b"\x01")
        await put(store, run)
        await must(store, Update(run, newer))
        expect_kinds([await one(store, Update(run, after(run, state=b"\x02")))], Refused)
        expect_kinds([await one(store, moved(sample("nobody")))], Refused)
        expect(await store.load("r1"), newer, "the run")
        expect(await store.load("nobody"), None, "a run that is not there")


@check(3)
async def of_two_racing_updates_one_is_applied(subject: Subject) -> None:
    """Two tasks that decide on the same revision do not both win."""
    async with opened(subject) as store:
        run = sample("r1")
        await put(store, run)
        writes: list[Write] = [moved(run, state=b"\x01"), moved(run, state=b"\x02")]
        verdicts = await _race(store, writes)
        expect(sorted(type(v).__name__ for v in verdicts), ["Applied", "Refused"], "verdicts")
        winner = writes[[isinstance(verdict, Applied) for verdict in verdicts].index(True)]
        expect(isinstance(winner, Update) and winner.after, await store.load("r1"), "the run")


@check(3)
async def an_update_may_change_any_part(subject: Subject) -> None:
    """Parts are added, replaced and removed, each alone and all at once."""
    async with opened(subject) as store:
        bare, rich = sample("rich"), rich_run()
        bare = replace(bare, origin=rich.origin)
        stored = replace(rich, head=bare.head)
        await put(store, stored)
        for name in ("steps", "records", "checkpoints", "memos", "inbox", "seen", "state"):
            stored = await _step(store, stored, **{name: getattr(bare, name)})
        stored = await _step(store, stored, **{name: getattr(rich, name) for name in ("steps", "records", "seen")})
        fewer = {key: value for key, value in stored.steps.items() if key != "/"}
        await _step(store, stored, steps=fewer | {"a/b": StepDoc(status="running")}, error=rich.head.error)


@check(3)
async def the_origin_never_changes(subject: Subject) -> None:
    """An update that would change what is written once is Failed."""
    async with opened(subject) as store:
        run = sample("r1")
        await put(store, run)
        other = replace(after(run), origin=replace(run.origin, tenant="another"))
        expect_kinds([await one(store, Update(run, other))], Failed)
        expect(await store.load("r1"), run, "the run")


@check(4)
async def an_id_is_inserted_once(subject: Subject) -> None:
    """A second run under a known id is refused; the first stays. That comes before any taken key."""
    async with opened(subject) as store:
        await put(store, KEYED)
        expect_kinds([await one(store, Insert(sample("r1", idempotency_key="k", state=b"\x01")))], Refused)
        expect(await store.load("r1"), KEYED, "the run")
        verdicts = await _race(store, [Insert(sample("r2", state=bytes([n]))) for n in range(4)])
        expect(sum(isinstance(verdict, Applied) for verdict in verdicts), 1, "inserts applied")


@check(4)
async def an_active_key_has_one_holder(subject: Subject) -> None:
    """A second active run of the key is told the holder; other tenants and workflows have keys of their own."""
    async with opened(subject) as store:
        await put(store, KEYED)
        expect(
            await one(store, Insert(sample("r2", idempotency_key="k"))),
            KeyTaken("active_key", "r1"),
            "verdict",
        )
        await put(store, sample("r3", idempotency_key="k", tenant="t"))
        await put(store, sample("r4", idempotency_key="k", workflow="other"))
        expect(await store.by_active_key(active_key(KEYED) or ""), KEYED, "the holder")
        expect(await store.by_active_key("nothing"), None, "the holder of another key")


@check(4)
async def of_racing_starts_one_gets_the_key(subject: Subject) -> None:
    """However many start at once under one key, one is applied and all others are told that one."""
    async with opened(subject) as store:
        runs = [sample(f"r{number}", idempotency_key="k") for number in range(8)]
        verdicts = await _race(store, [Insert(run) for run in runs])
        holder = await store.by_active_key(active_key(KEYED) or "")
        winner = "" if holder is None else holder.id
        wanted = [Applied() if run.id == winner else KeyTaken("active_key", winner) for run in runs]
        expect(verdicts, wanted, "verdicts")


@check(4)
async def settling_gives_the_key_up(subject: Subject) -> None:
    """A settled run holds no key, and gets it back by a retry only if it is free."""
    async with opened(subject) as store:
        await put(store, KEYED)
        settled = after(KEYED, status="failed")
        await must(store, Update(KEYED, settled))
        expect(await store.by_active_key(active_key(KEYED) or ""), None, "the holder")
        other = sample("r2", idempotency_key="k")
        await put(store, other)
        retry = moved(settled, status="running")
        expect(await one(store, retry), KeyTaken("active_key", "r2"), "a retry while another holds the key")
        await must(store, moved(other, status="cancelled"), retry)
        expect(await store.by_active_key(active_key(KEYED) or ""), retry.after, "the holder after the retry")


@check(4)
async def a_token_has_one_open_wait(subject: Subject) -> None:
    """A token is taken while its wait is open, also for a second wait of the same run, and free afterwards."""
    async with opened(subject) as store:
        waiting = sample("r1", records={"a": record(tokens=("t1", "t2"))})
        await put(store, waiting, sample("r2"))
        rival = moved(sample("r2"), records={"b": record(tokens=("t2",))})
        expect(await one(store, rival), KeyTaken("token", "r1"), "verdict")
        twice = moved(waiting, records={**waiting.records, "b": record(tokens=("t1",))})
        expect(await one(store, twice), KeyTaken("token", "r1"), "the same token twice in one run")
        both = sample("r3", records={"a": record(tokens=("t3",)), "b": record(tokens=("t3",))})
        expect(await one(store, Insert(both)), KeyTaken("token", "r3"), "the same token twice in a new run")
        expect(await store.by_token("t2"), waiting, "the holder")
        answered = moved(waiting, records={"a": record(tokens=("t1", "t2"), outcome="value")})
        await must(store, answered, rival)
        expect(await store.by_token("t1"), None, "the holder of an answered token")
        expect(await store.by_token("t2"), rival.after, "the next holder")


@check(7)
async def what_cannot_be_encoded_has_failed(subject: Subject) -> None:
    """A write without a stored form is Failed with one of our errors, alone and among others."""
    async with opened(subject) as store:
        run = sample("r1")
        await put(store, run)
        verdicts = [await one(store, Insert(UNENCODABLE))]
        verdicts += await store.write([moved(run, steps={"\ud800": StepDoc()}), Insert(sample("r2"))])
        expect_kinds(verdicts, Failed, Failed, Applied)
        errors = [verdict.error for verdict in verdicts if isinstance(verdict, Failed)]
        expect([isinstance(error, StreamlineError) for error in errors], [True, True], "errors are ours")
        expect(await store.load("r1"), run, "the run")


@check(13)
async def deleting_removes_everything(subject: Subject) -> None:
    """After a delete nothing of the run is found by any way, and a new run under its id starts empty."""
    async with opened(subject) as store:
        run = replace(rich_run(), records={"s": record("signal", signal="s", tokens=("t",))})
        run = replace(run, head=replace(run.head, due_at=5))
        await put(store, run)
        await must(store, AppendRows("rich", "log", (b"x",), 9), AppendRows("rich", "progress", (b"x",), 9))
        expect_kinds([await one(store, Delete("rich", 2)), await one(store, Delete("nobody", 1))], Refused, Refused)
        expect(await store.load("rich"), run, "the run after refused deletes")
        await must(store, Delete("rich", 1))
        await _expect_nothing_of(store, run)
        await put(store, sample("rich", tenant="t"))
        expect(await store.load("rich"), sample("rich", tenant="t"), "a new run under the same id")
        await _expect_no_rows_of(store, run)


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


@check(16)
async def what_is_read_equals_what_was_written(subject: Subject) -> None:
    """Every field of every part comes back equal, whatever the keys, also when it was empty or large."""
    async with opened(subject) as store:
        run = rich_run()
        await put(store, run, sample("bare", state=b"", input=b""), sample("large", state=b"\xab" * 2_000_000))
        expect(await store.load("rich"), run, "the rich run")
        expect(await store.load("bare"), sample("bare", state=b"", input=b""), "the bare run")
        expect(await store.load("large"), sample("large", state=b"\xab" * 2_000_000), "the large run")
        expect(await store.load_many(["bare", "nobody", "rich"]), [await store.load("bare"), None, run], "many")
        expect(await store.load("nobody"), None, "a run that is not there")
        expect(await store.load_many([]), [], "no runs")


@check(9, needs="twin")
async def others_see_what_was_written(subject: Subject) -> None:
    """A second store object on the same content reads a write as soon as it is applied, and the guards hold."""
    if subject.twin is None:
        return
    async with opened(subject) as store:
        other = subject.twin(store)
        async with using(other):
            run = sample("r1", due_at=5)
            await put(store, run)
            expect(await other.load("r1"), run, "the run in the other store")
            claimed = after(run, worker="w1", due_at=None)
            await must(other, Update(run, claimed))
            expect_kinds([await one(store, Update(run, after(run, worker="w2", due_at=None)))], Refused)
            expect(await store.lease_holders(), ["w1"], "lease holders")
            verdicts: list[Verdict] = []
            async with trio.open_nursery() as nursery:
                for place, writer in enumerate([store, other] * 4):
                    write = Insert(sample(f"k{place}", idempotency_key="k"))
                    nursery.start_soon(_collect, writer, write, verdicts)
            expect(sum(isinstance(verdict, Applied) for verdict in verdicts), 1, "starts under one key")


async def _collect(store: Store, write: Write, verdicts: list[Verdict]) -> None:
    verdicts.append(await one(store, write))


async def _race(store: Store, writes: list[Write]) -> list[Verdict]:
    verdicts: dict[int, Verdict] = {}

    async def enter(place: int, write: Write) -> None:
        verdicts[place] = await one(store, write)

    async with trio.open_nursery() as nursery:
        for place, write in enumerate(writes):
            nursery.start_soon(enter, place, write)
    return [verdicts[place] for place in range(len(writes))]


async def _step(store: Store, run: RunDoc, **fields: object) -> RunDoc:
    moved_on = moved(run, **fields)
    await must(store, moved_on)
    expect(await store.load(run.id), moved_on.after, f"the run after a change of {', '.join(fields)}")
    return moved_on.after


async def _expect_nothing_of(store: Store, run: RunDoc) -> None:
    expect(await store.load(run.id), None, "the run")
    expect(await store.by_active_key(active_key(run) or ""), None, "its active key")
    expect(await store.by_token("t"), None, "its token")
    expect(await store.awaiting("s", "t", "", 9), [], "its signal wait")
    expect(await store.count(RunQuery()), 0, "runs counted")
    expect(await store.count(RunQuery(meta={"a": 1}, tags=("/",))), 0, "runs counted by tag and meta")
    expect((await store.tally(10**9)).due, 0, "runs due")
    await _expect_no_rows_of(store, run)


async def _expect_no_rows_of(store: Store, run: RunDoc) -> None:
    expect(await store.rows(run.id, "log"), [], "log rows")
    expect(await store.rows(run.id, "progress"), [], "progress rows")
