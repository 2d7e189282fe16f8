"""Checks of how runs are found: conditions 10, 11 and 12, and the reads that have no number."""

from __future__ import annotations

from typing import Any, get_args

from streamline_trio._core.documents import Parent, RunDoc
from streamline_trio._core.errors import DataCorruption
from streamline_trio._core.status import RUN_STATUSES
from streamline_trio._core.store import (
    Corrupt,
    Cursor,
    Delete,
    Quarantine,
    Refused,
    Route,
    RunQuery,
    SortKey,
    Store,
    Update,
)
from streamline_trio.testing._conformance_base import (
    NotConformant,
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
)

W1 = Route("w", "1")
W2 = Route("w", "2")
V1 = Route("v", "1")


def _ids(runs: list[RunDoc | Corrupt]) -> list[str]:
    return [run.run_id if isinstance(run, Corrupt) else run.id for run in runs]


@check(10)
async def due_runs_come_by_priority_then_time(subject: Subject) -> None:
    """Highest priority first over all routes asked, then earliest due; the limit cuts the end."""
    async with opened(subject) as store:
        await put(
            store,
            sample("late", due_at=90),
            sample("early", due_at=10),
            sample("urgent", due_at=95, priority=100, workflow="v"),
            sample("idle", due_at=1, priority=-100),
            sample("middle", due_at=50, workflow="v"),
            sample("newer", due_at=60, version="2"),
        )
        order = ["urgent", "early", "middle", "newer", "late", "idle"]
        for limit in range(1, 8):
            runs = await store.due([W1, V1, W2], 100, limit)
            expect(_ids(runs), order[:limit], f"due, limit {limit}")
        expect((await store.due([W1], 100, 1))[0], sample("early", due_at=10), "the run itself")


@check(10)
async def passing_over_stays_within_the_highest_priority(subject: Subject) -> None:
    """Some of the first priority are passed over, but never so many that fewer are left of it than the limit."""
    async with opened(subject) as store:
        first = [sample(f"r{n}", due_at=n, priority=5, workflow="wv"[n % 2]) for n in range(6)]
        low = [sample(f"low{n}", due_at=n + 1) for n in range(4)]
        await put(store, *first, *low, sample("soon", due_at=101, priority=9))
        routes = [W1, V1]
        for skip, limit, given in [
            (0, 2, "r0 r1"),
            (1, 2, "r1 r2"),
            (4, 2, "r4 r5"),
            (5, 2, "r4 r5"),
            (99, 2, "r4 r5"),
            (99, 6, "r0 r1 r2 r3 r4 r5"),
            (3, 7, "r0 r1 r2 r3 r4 r5 low0"),
            (99, 11, "r0 r1 r2 r3 r4 r5 low0 low1 low2 low3"),
        ]:
            runs = await store.due(routes, 100, limit, skip=skip)
            expect(_ids(runs), given.split(), f"due, limit {limit}, skip {skip}")
        expect(await store.due([W2], 100, 2, skip=3), [], "due on a route without runs")


@check(10)
async def only_what_is_due_here_is_given(subject: Subject) -> None:
    """Not before its time, not on other routes, not while leased or without a due time."""
    async with opened(subject) as store:
        await put(
            store,
            sample("now", due_at=100),
            sample("soon", due_at=101),
            sample("leased", worker="x"),
            sample("parked", status="waiting"),
            sample("elsewhere", due_at=1, workflow="v"),
            sample("later", due_at=1, version="2"),
            sample("both", due_at=1, worker="x"),
        )
        expect(_ids(await store.due([W1], 100, 9)), ["now"], "due")
        expect(_ids(await store.due([], 100, 9)), [], "due on no route")
        expect(_ids(await store.due([W1, W1], 100, 9)), ["now"], "due on the same route twice")
        expect(_ids(await store.due([Route("x", "1")], 100, 9)), [], "due on an unknown route")


@check(10)
async def a_claimed_run_leaves_the_queue(subject: Subject) -> None:
    """Claiming, parking, settling and deleting take a run out of the queue; handing back enters it again."""
    async with opened(subject) as store:
        run = sample("r1", due_at=5)
        await put(store, run, sample("r2", due_at=6))
        claimed = after(run, worker="x", due_at=None, fence=1)
        await must(store, Update(run, claimed))
        expect(_ids(await store.due([W1], 9, 9)), ["r2"], "due after a claim")
        back = after(claimed, worker=None, due_at=7)
        await must(store, Update(claimed, back))
        expect(_ids(await store.due([W1], 9, 9)), ["r2", "r1"], "due after a hand-over")
        moved_version = after(back, version="2")
        await must(store, Update(back, moved_version))
        expect(_ids(await store.due([W1], 9, 9)), ["r2"], "due after its version changed")
        expect(_ids(await store.due([W2], 9, 9)), ["r1"], "due on the new version")
        await must(store, moved(moved_version, status="done", due_at=None), Delete("r2", 1))
        expect(_ids(await store.due([W1, W2], 9, 9)), [], "due at the end")


@check(10)
async def next_due_is_the_earliest(subject: Subject) -> None:
    """The earliest due time of the routes asked, past or future, whatever the priority."""
    async with opened(subject) as store:
        expect(await store.next_due([W1]), None, "next due in an empty store")
        await put(
            store,
            sample("a", due_at=50, priority=5),
            sample("b", due_at=20),
            sample("c", due_at=10, workflow="v"),
            sample("d", worker="x"),
        )
        expect(await store.next_due([W1]), 20, "next due")
        expect(await store.next_due([W1, V1]), 10, "next due of two routes")
        expect(await store.next_due([W2]), None, "next due of a route without runs")
        expect(await store.next_due([]), None, "next due of no route")


@check(17)
async def errands_come_earliest_first_of_whichever_run(subject: Subject) -> None:
    """Whoever holds the run, whatever its status and route; not before their time, and not once they are done."""
    async with opened(subject) as store:
        late = sample("late", errand_at=90, status="done")
        await put(
            store,
            late,
            sample("held", errand_at=20, worker="x"),
            sample("b", errand_at=10, workflow="v", priority=-5),
            sample("a", errand_at=10, due_at=1, paused=True),
            sample("none", due_at=1),
        )
        for limit in range(1, 5):
            expect(
                _ids(await store.errands(90, limit)), ["a", "b", "held", "late"][:limit], f"errands, limit {limit}"
            )
        expect(await store.errands(9, 9), [], "errands before their time")
        expect((await store.errands(90, 9))[-1], late, "the run itself")
        await must(store, moved(late, errand_at=None), moved(sample("none", due_at=1), errand_at=5))
        expect(_ids(await store.errands(90, 9)), ["none", "a", "b", "held"], "after one is done and one is new")
        await must(store, Delete("b", 1))
        expect(_ids(await store.errands(90, 9)), ["none", "a", "held"], "after one is deleted")


@check(17, needs="spoil")
async def errands_of_a_run_that_does_not_decode(subject: Subject) -> None:
    """Such a run is Corrupt; quarantined it is there no more, and after its next update it is again."""
    if subject.spoil is None:
        return
    async with opened(subject) as store:
        await put(store, sample("bad", errand_at=1), sample("good", errand_at=2))
        await subject.spoil(store, "bad")
        found = await store.errands(9, 9)
        expect([isinstance(run, Corrupt) for run in found], [True, False], "which is corrupt")
        good = sample("good", errand_at=2)
        await must(store, Quarantine("bad"), Quarantine("good"))
        expect(await store.errands(9, 9), [], "errands of runs in quarantine")
        await must(store, moved(good))
        expect(await store.errands(9, 9), [after(good)], "errands after the next update")


@check(11, needs="spoil")
async def a_run_that_does_not_decode_is_told(subject: Subject) -> None:
    """It is Corrupt in the queues, an error to load, left out of lists, and harms no other run."""
    if subject.spoil is None:
        return
    async with opened(subject) as store:
        await put(store, sample("bad", due_at=1), sample("good", due_at=2))
        await put(store, sample("held", worker="x", attention=True), sample("fine", worker="x"))
        await subject.spoil(store, "bad")
        await subject.spoil(store, "held")
        due = await store.due([W1], 9, 9)
        expect(_ids(due), ["bad", "good"], "due")
        expect([isinstance(run, Corrupt) for run in due], [True, False], "which is corrupt")
        expect(_ids(await store.leased("x", attention=False, limit=9)), ["fine", "held"], "leased")
        expect(await store.load_many(["bad", "good"]), [None, sample("good", due_at=2)], "load_many")
        found = await store.find(RunQuery(), sort="created_at", limit=9, after=None)
        expect(_ids([*found]), ["fine", "good"], "found")
        found = await store.find(RunQuery(), sort="created_at", limit=1, after=None)
        expect(_ids([*found]), ["fine"], "found on a page of one, which the run left out must not make empty")
        try:
            await store.load("bad")
        except DataCorruption:
            return
        raise NotConformant("load of a run that does not decode did not raise DataCorruption")


@check(11, needs="spoil")
async def quarantine_takes_a_run_out_of_every_queue(subject: Subject) -> None:
    """A quarantined run is neither due nor leased, stays in the store, and can be deleted."""
    if subject.spoil is None:
        return
    async with opened(subject) as store:
        await put(store, sample("bad", due_at=1), sample("held", worker="x", attention=True))
        await subject.spoil(store, "bad")
        await subject.spoil(store, "held")
        await must(store, Quarantine("bad"), Quarantine("held"), Quarantine("bad"))
        expect(await store.due([W1], 9, 9), [], "due")
        expect(await store.next_due([W1]), None, "next due")
        expect(await store.leased("x", attention=True, limit=9), [], "leased")
        expect(await store.lease_holders(), [], "lease holders")
        await must(store, Delete("bad", 1))
        expect(await store.load("bad"), None, "the deleted run")
        expect_kinds([await one(store, Quarantine("bad"))], Refused)


@check(11)
async def quarantine_leaves_the_content_alone(subject: Subject) -> None:
    """The document stays as it was, and its next update enters the queues it belongs to."""
    async with opened(subject) as store:
        run = sample("r1", worker="x", fence=1)
        await put(store, run, sample("r2", due_at=1))
        await must(store, Quarantine("r1"), Quarantine("r2"))
        expect(await store.load("r1"), run, "the run")
        await must(store, moved(run, state=b"\x01"), moved(sample("r2", due_at=1), state=b"\x01"))
        expect(await store.lease_holders(), ["x"], "lease holders after an update")
        expect(_ids(await store.due([W1], 9, 9)), ["r2"], "due after an update")


@check(12)
async def pages_are_total_under_ties(subject: Subject) -> None:
    """Following the cursor gives every run once and in order, also when most sort values are equal."""
    async with opened(subject) as store:
        times = [1, 1, 1, 2, 2, 3, 3, 3, 3, 4]
        names = ["a", "B", "é", "c", "b", "d", "f", "e", "\U0001f600", "0"]
        runs = [
            sample(name, created_at=time, updated_at=10 - time) for name, time in zip(names, times, strict=True)
        ]
        await put(store, *runs)
        for sort in get_args(SortKey):
            for size in (1, 2, 3, 10, 11):
                await _follow(store, runs, sort, size)


@check(12)
async def every_filter_filters(subject: Subject) -> None:
    """Each field of a query alone, and several together, give the runs that match."""
    async with opened(subject) as store:
        runs = [
            sample("plain"),
            sample("full", tenant="t", user="u", tags=("a", "b"), parent=Parent(run="p", step="s")),
            sample("meta", meta=b"\x83\xa1a\x01\xa1b\x92\x01\xc3\xa1c\xc0", workflow="v", version="2"),
            sample("old", created_at=10, updated_at=500, status="failed", dead_lettered=True, tags=("a",)),
            sample("human", records={"k": record()}, status="waiting", paused=True),
            sample("signal", records={"k": record("signal", signal="s"), "t": record("timer")}),
            sample("answered", records={"k": record(outcome="value")}, tenant="t"),
        ]
        await put(store, *runs)
        for query, names in _FILTERS:
            found = await store.find(query, sort="created_at", limit=99, after=None)
            expect(sorted(run.id for run in found), sorted(names.split()), f"found by {query}")
            expect(await store.count(query), len(names.split()), f"counted by {query}")


_FILTERS: tuple[tuple[RunQuery, str], ...] = (
    (RunQuery(), "plain full meta old human signal answered"),
    (RunQuery(workflow="v"), "meta"),
    (RunQuery(version="2"), "meta"),
    (RunQuery(workflow="w", version="2"), ""),
    (RunQuery(status=("failed", "waiting")), "old human"),
    (RunQuery(status=()), ""),
    (RunQuery(tenant="t"), "full answered"),
    (RunQuery(user="u"), "full"),
    (RunQuery(tags=("a",)), "full old"),
    (RunQuery(tags=("b", "a")), "full"),
    (RunQuery(tags=("c",)), ""),
    (RunQuery(meta={}), "plain full meta old human signal answered"),
    (RunQuery(meta={"a": 1}), "meta"),
    (RunQuery(meta={"a": 1.0, "b": (1, True)}), "meta"),
    (RunQuery(meta={"a": True}), ""),
    (RunQuery(meta={"a": "1"}), ""),
    (RunQuery(meta={"c": None}), "meta"),
    (RunQuery(meta={"d": None}), ""),
    (RunQuery(parent="p"), "full"),
    (RunQuery(created_after=1000), "plain full meta human signal answered"),
    (RunQuery(created_before=1000), "old"),
    (RunQuery(created_before=1001, created_after=10), "plain full meta old human signal answered"),
    (RunQuery(updated_after=501), "plain full meta human signal answered"),
    (RunQuery(updated_before=501), "old"),
    (RunQuery(paused=True), "human"),
    (RunQuery(paused=False), "plain full meta old signal answered"),
    (RunQuery(waiting="human"), "human"),
    (RunQuery(waiting="signal"), "signal"),
    (RunQuery(waiting="timer"), "signal"),
    (RunQuery(dead_lettered=True), "old"),
    (RunQuery(dead_lettered=False), "plain full meta human signal answered"),
    (RunQuery(tenant="t", workflow="w", tags=("a",), user="u", status=("running",)), "full"),
    (RunQuery(tenant="t", waiting="human"), ""),
)


@check(12)
async def filters_follow_updates(subject: Subject) -> None:
    """A run is found by what it is now, not by what it was."""
    async with opened(subject) as store:
        run = sample("r1", status="waiting", records={"k": record()})
        await put(store, run)
        done = after(run, status="done", records={}, paused=True, updated_at=2000)
        await must(store, Update(run, done))
        for query, wanted in (
            (RunQuery(status=("waiting",)), 0),
            (RunQuery(status=("done",)), 1),
            (RunQuery(waiting="human"), 0),
            (RunQuery(paused=True), 1),
            (RunQuery(updated_after=2000), 1),
        ):
            expect(await store.count(query), wanted, f"counted by {query}")


@check(None)
async def leased_runs_are_listed_by_worker(subject: Subject) -> None:
    """Runs leased to a worker in pages by id, with attention only those that have it; holders each once."""
    async with opened(subject) as store:
        a, b = sample("a", worker="x", attention=True), sample("b", worker="x")
        await put(store, b, a, sample("c", worker="y", attention=True), sample("d", due_at=1))
        expect(await store.leased("x", attention=False, limit=9), [a, b], "leased")
        expect(await store.leased("x", attention=False, limit=1), [a], "the first page")
        expect(await store.leased("x", attention=False, limit=9, after="a"), [b], "the next page")
        expect(await store.leased("x", attention=True, limit=9), [a], "leased with attention")
        expect(await store.leased("z", attention=False, limit=9), [], "leased to nobody")
        expect(sorted(await store.lease_holders()), ["x", "y"], "lease holders")
        seen = after(a, attention=False)
        await must(store, Update(a, seen), Delete("c", 1))
        expect(await store.leased("x", attention=True, limit=9), [], "leased with attention, once seen")
        expect(await store.lease_holders(), ["x"], "lease holders after a delete")
        await must(store, moved(seen, worker=None), moved(b, worker="y"))
        expect(await store.lease_holders(), ["y"], "lease holders after a hand-over")


@check(None)
async def waits_for_a_signal_are_found(subject: Subject) -> None:
    """Runs with an open wait for the signal, of the one tenant or of none, in pages by id."""
    async with opened(subject) as store:
        waits: dict[str, Any] = {"records": {"k": record("signal", signal="s")}}
        a, b = sample("a", **waits), sample("b", **waits)
        await put(store, b, a, sample("c", tenant="t", **waits), sample("d"))
        await put(store, sample("e", records={"k": record("signal", signal="z")}))
        expect(await store.awaiting("s", None, "", 9), ["a", "b"], "awaiting")
        expect(await store.awaiting("s", None, "", 1), ["a"], "the first page")
        expect(await store.awaiting("s", None, "a", 9), ["b"], "the next page")
        expect(await store.awaiting("s", "t", "", 9), ["c"], "of a tenant")
        expect(await store.awaiting("s", "", "", 9), [], "of the tenant with the empty name")
        await must(store, moved(a, records={"k": record("signal", signal="s", outcome="value")}))
        expect(await store.awaiting("s", None, "", 9), ["b"], "after an answer")


@check(None)
async def the_tally_counts(subject: Subject) -> None:
    """Counts by status with each status present, and what is due in all and by route."""
    async with opened(subject) as store:
        await put(
            store,
            sample("a", due_at=10),
            sample("b", due_at=20, priority=3),
            sample("c", due_at=21, workflow="v"),
            sample("d", due_at=5, status="draft", version="2"),
            sample("e", status="done"),
            sample("f", worker="x"),
        )
        tally = await store.tally(20)
        wanted = {**dict.fromkeys(RUN_STATUSES, 0), "running": 4, "draft": 1, "done": 1}
        expect(tally.by_status, wanted, "by status")
        expect((tally.due, tally.oldest_due), (3, 5), "due, oldest due")
        expect(tally.due_by_route, {W1: 2, W2: 1}, "due by route")
        expect((await store.tally(4)).oldest_due, None, "the oldest due before anything is")


async def _follow(store: Store, runs: list[RunDoc], sort: SortKey, size: int) -> None:
    def place(run: RunDoc) -> tuple[int, str]:
        return run.origin.created_at if "created" in sort else run.head.updated_at, run.id

    wanted = [run.id for run in sorted(runs, key=place, reverse=sort.startswith("-"))]
    found: list[str] = []
    cursor: Cursor | None = None
    while page := await store.find(RunQuery(), sort=sort, limit=size, after=cursor):
        found += [run.id for run in page]
        cursor = Cursor(*place(page[-1]))
        if len(found) > len(runs):
            break
    expect(found, wanted, f"pages of {size} by {sort}")
