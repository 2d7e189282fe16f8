"""Checks of what stands beside the runs: rows, side documents, worker locks, hints. Conditions 5, 6 and 14."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from streamline_trio._core.store import (
    AppendRows,
    Applied,
    Hint,
    Insert,
    PutSide,
    Refused,
    SideDoc,
    Update,
    Verdict,
)
from streamline_trio.testing._conformance_base import (
    NotConformant,
    Subject,
    after,
    check,
    expect,
    expect_kinds,
    must,
    one,
    opened,
    put,
    sample,
    using,
)


@check(5)
async def a_side_document_is_compare_and_set(subject: Subject) -> None:
    """It is written, replaced and removed only from the revision that is stored."""
    async with opened(subject) as store:
        expect(await store.side("k", "a"), None, "a document that is not there")
        expect_kinds([await one(store, PutSide("k", "a", 1, b"x"))], Refused)
        await must(store, PutSide("k", "a", None, b"one", 5))
        expect(await store.side("k", "a"), SideDoc("k", "a", 1, b"one", 5), "a new document")
        expect_kinds([await one(store, PutSide("k", "a", None, b"x"))], Refused)
        await must(store, PutSide("k", "a", 1, b"two"))
        expect(await store.side("k", "a"), SideDoc("k", "a", 2, b"two", None), "the replaced document")
        expect_kinds([await one(store, PutSide("k", "a", 1, None))], Refused)
        await must(store, PutSide("k", "a", 2, None))
        expect(await store.side("k", "a"), None, "the removed document")
        await must(store, PutSide("k", "a", None, b"new"), PutSide("k2", "a", None, b"other kind"))
        expect(await store.side("k", "a"), SideDoc("k", "a", 1, b"new", None), "the document made anew")
        await must(store, PutSide("k", "a", 1, None), PutSide("k", "a", None, b"again", first=2**62 - 1))
        expect(
            await store.side("k", "a"), SideDoc("k", "a", 2**62 - 1, b"again", None), "one with a first revision"
        )
        expect_kinds([await one(store, PutSide("k", "a", 1, b"x"))], Refused)
        await must(store, PutSide("k", "a", 2**62 - 1, b"next", first=7))
        expect(await store.side("k", "a"), SideDoc("k", "a", 2**62, b"next", None), "the one after it")


@check(5)
async def of_racing_side_writes_one_is_applied(subject: Subject) -> None:
    """Many tasks that write from one revision: one wins."""
    async with opened(subject) as store:
        for expected in (None, 1):
            verdicts: list[Verdict] = []

            async def enter(body: bytes, expected: int | None, verdicts: list[Verdict]) -> None:
                verdicts.append(await one(store, PutSide("k", "a", expected, body)))

            async with trio.open_nursery() as nursery:
                for number in range(6):
                    nursery.start_soon(enter, bytes([number]), expected, verdicts)
            expect(sum(isinstance(verdict, Applied) for verdict in verdicts), 1, "writes applied")


@check(5)
async def side_documents_are_listed_by_key(subject: Subject) -> None:
    """Those of a kind in key order and in pages, with a bound only those due until then."""
    async with opened(subject) as store:
        due = {"d": 30, "a": None, "c": 10, "b": 20}
        await must(store, *(PutSide("k", key, None, b"", at) for key, at in due.items()))
        await must(store, PutSide("other", "e", None, b"", 1))
        expect(await _keys(store.sides("k")), ["a", "b", "c", "d"], "all")
        expect(await _keys(store.sides("k", limit=2)), ["a", "b"], "the first page")
        expect(await _keys(store.sides("k", after="b", limit=9)), ["c", "d"], "the next page")
        expect(await _keys(store.sides("k", due_before=20)), ["b", "c"], "due until 20")
        expect(await _keys(store.sides("k", due_before=30, after="b", limit=1)), ["c"], "a page of the due")
        expect(await _keys(store.sides("nothing")), [], "of an unknown kind")
        await must(store, PutSide("k", "b", 1, b"", None))
        expect(await _keys(store.sides("k", due_before=20)), ["c"], "after one lost its due time")


async def _keys(docs: Awaitable[list[SideDoc]]) -> list[str]:
    return [doc.key for doc in await docs]


@check(6)
async def rows_are_a_ring_in_order_of_arrival(subject: Subject) -> None:
    """Of each run and kind the newest rows remain; the run's revision is not touched."""
    async with opened(subject) as store:
        await put(store, sample("r1"), sample("r2"))
        await must(store, AppendRows("r1", "log", (b"1", b"2"), 3), AppendRows("r1", "log", (b"3", b"4"), 3))
        await must(store, AppendRows("r2", "log", (b"other run",), 3))
        await must(store, AppendRows("r1", "progress", tuple(b"%d" % n for n in range(12)), 10))
        expect(await store.rows("r1", "log"), [b"2", b"3", b"4"], "log rows")
        expect(await store.rows("r1", "progress"), [b"%d" % n for n in range(2, 12)], "progress rows")
        expect(await store.rows("r2", "log"), [b"other run"], "rows of the other run")
        await must(store, AppendRows("r1", "log", (), 1), AppendRows("r1", "log", (b"5",), 2))
        expect(await store.rows("r1", "log"), [b"4", b"5"], "log rows after a smaller ring")
        expect(await store.load("r1"), sample("r1"), "the run")
        expect(await store.rows("nobody", "log"), [], "rows of a run that is not there")


@check(6)
async def rows_need_the_run_and_the_fence(subject: Subject) -> None:
    """Rows of a run that is gone, or under a fence that is no longer the stored one, are refused."""
    async with opened(subject) as store:
        run = sample("r1", fence=1)
        await put(store, run)
        await must(store, AppendRows("r1", "log", (b"1",), 9, 1), AppendRows("r1", "log", (b"2",), 9))
        claimed = after(run, fence=2)
        verdicts = await store.write([Update(run, claimed), AppendRows("r1", "log", (b"late",), 9, 1)])
        expect_kinds(verdicts, Applied, Refused)
        expect_kinds([await one(store, AppendRows("nobody", "log", (b"x",), 9))], Refused)
        expect(await store.rows("r1", "log"), [b"1", b"2"], "rows")


@check(14)
async def a_held_worker_is_not_gone(subject: Subject) -> None:
    """While a lock is held nobody is told that its worker is gone; it can be dropped, and other ids taken."""
    async with opened(subject) as store:
        await store.hold_worker("w/1 ü")
        await store.hold_worker("w2")
        expect(await store.worker_gone("w/1 ü"), False, "gone while held")
        await store.drop_worker("w/1 ü")
        await store.worker_gone("w/1 ü")
        expect(await store.worker_gone("w2"), False, "the other, gone while held")
        await store.drop_worker("w2")
        await store.drop_worker("never held")


@check(14, needs="twin")
async def a_lock_is_seen_by_others(subject: Subject) -> None:
    """A second store object on the same content sees a held lock as held, and asking does not take it."""
    if subject.twin is None:
        return
    async with opened(subject) as store:
        other = subject.twin(store)
        async with using(other):
            await store.hold_worker("w")
            for _ in range(3):
                expect(await other.worker_gone("w"), False, "gone while held by another")
            await other.hold_worker("x")
            expect(await store.worker_gone("x"), False, "the other's, gone while held")
            await store.drop_worker("w")
            await other.drop_worker("x")


@check(None)
async def hints_tell_what_happened(subject: Subject) -> None:
    """Listeners hear of runs that fell due, need their holder, or settled, until they stop listening."""
    async with opened(subject) as store:
        heard: list[Hint] = []
        stop = store.watch(heard.append)
        run = sample("r1", due_at=7)
        await put(store, run)
        await _expect_hint(heard, lambda hint: hint.run_id == "r1" and hint.due_at == run.head.due_at, "a due run")
        held = after(run, due_at=None, worker="w")
        asked = after(held, attention=True)
        settled = after(asked, worker=None, attention=False, status="done")
        await must(store, Update(run, held))
        await must(store, Update(held, asked))
        await _expect_hint(heard, lambda hint: hint.run_id == "r1" and hint.worker == "w", "attention")
        await must(store, Update(asked, settled))
        await _expect_hint(heard, lambda hint: hint.run_id == "r1" and hint.settled, "a settled run")
        stop()
        heard.clear()
        await put(store, sample("r2", due_at=8))
        expect(heard, [], "hints after the end")


@check(None)
async def refused_writes_give_no_hint(subject: Subject) -> None:
    """What was not applied is not told."""
    async with opened(subject) as store:
        run = sample("r1")
        await put(store, run)
        heard: list[Hint] = []
        store.watch(heard.append)
        expect_kinds([await one(store, Update(after(run), after(after(run), due_at=5)))], Refused)
        expect_kinds([await one(store, Insert(sample("r1", due_at=5)))], Refused)
        expect(heard, [], "hints")


@check(None)
async def an_exclusive_store_tells_of_side_documents(subject: Subject) -> None:
    """Where nobody polls, a side document that gets a due time is told, with an empty run id."""
    async with opened(subject) as store:
        heard: list[Hint] = []
        store.watch(heard.append)
        await must(store, PutSide("schedule", "s", None, b"", 9))
        if store.exclusive and not heard:
            raise NotConformant("no hint of a side document with a due time")
        expect([(hint.run_id, hint.due_at) for hint in heard], [("", 9)] * len(heard), "hints")


async def _expect_hint(heard: list[Hint], wanted: Callable[[Hint], bool], what: str) -> None:
    await trio.lowlevel.checkpoint()
    if not any(map(wanted, heard)):
        raise NotConformant(f"no hint of {what} among {heard}")
