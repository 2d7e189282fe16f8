"""Checks of what keeps a write from being applied: conditions 3, 4 and 9."""

from __future__ import annotations

from typing import Any

import trio
from msgspec.structs import replace

from streamline_trio._core.documents import DebounceDoc, active_key, debounce_key
from streamline_trio._core.store import (
    Applied,
    Failed,
    Insert,
    KeyTaken,
    Refused,
    Store,
    Update,
    Verdict,
    Write,
)
from streamline_trio.testing._conformance_base import (
    KEYED,
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
async def the_origin_never_changes(subject: Subject) -> None:
    """An update that would change what is written once is Failed."""
    async with opened(subject) as store:
        run = sample("r1")
        await put(store, run)
        other = replace(after(run), origin=replace(run.origin, tenant="another"))
        expect_kinds([await one(store, Update(run, other))], Failed)
        expect(await store.load("r1"), run, "the run")


@check(3)
async def the_input_of_a_draft_may_be_replaced(subject: Subject) -> None:
    """A draft's input changes, small and large, and nothing else of its origin; that of other runs does not."""
    async with opened(subject) as store:
        draft = sample("r1", status="draft", tags=("t",), due_at=5)
        await put(store, draft)
        for payload in (b"\x01", b"\xc5\xff\xff" + b"x" * 65_535, b"\x02"):
            newer = replace(after(draft, due_at=6), origin=replace(draft.origin, input=payload))
            await must(store, Update(draft, newer))
            expect(await store.load("r1"), newer, "the draft")
            draft = newer
        other = replace(after(draft), origin=replace(draft.origin, input=b"\x03", tags=()))
        expect_kinds([await one(store, Update(draft, other))], Failed)
        started = after(draft, status="running")
        await must(store, Update(draft, started))
        late = replace(after(started), origin=replace(started.origin, input=b"\x03"))
        expect_kinds([await one(store, Update(started, late))], Failed)
        expect(await store.load("r1"), started, "the run")


@check(4)
async def a_debounced_draft_holds_its_key(subject: Subject) -> None:
    """While it is pending nobody else holds its key; the write that fires, starts or cancels it gives it up."""
    async with opened(subject) as store:
        key = debounce_key("t", "w", "k")
        waits = DebounceDoc(key=key, first_at=1, until_at=9)
        ends: list[dict[str, Any]] = [
            {"debounce": replace(waits, fired=True)},
            {"status": "running"},
            {"status": "cancelled"},
        ]
        for number, change in enumerate(ends):
            pending = sample(f"p{number}", status="draft", debounce=waits)
            await put(store, pending)
            bumped = moved(pending, debounce=replace(waits, starts=2))
            rival = sample(f"q{number}", status="draft", debounce=waits)
            expect(await one(store, Insert(rival)), KeyTaken("active_key", f"p{number}"), "verdict")
            await must(store, bumped)
            expect(await store.by_active_key(key), bumped.after, "the holder")
            expect(await one(store, Insert(rival)), KeyTaken("active_key", f"p{number}"), "verdict after a bump")
            over = moved(bumped.after, **change)
            await must(store, over)
            expect(await store.by_active_key(key), None, "the holder of a key that was given up")
            await put(store, rival)
            expect(await store.by_active_key(key), rival, "the next holder")
            await must(store, moved(rival, status="cancelled"))
            await must(store, moved(over.after, state=b"\x01"))
            expect(await store.by_active_key(key), None, "the holder after later writes")


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
