"""Checks of how due runs are given to tenants in turn: condition 19."""

from __future__ import annotations

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.store import TENANTS_AT_ONCE, Corrupt, Delete, Quarantine, Route, Store, Update
from streamline_trio.testing._conformance_base import (
    NotConformant,
    Subject,
    after,
    check,
    expect,
    must,
    opened,
    put,
    sample,
)

W1 = Route("w", "1")
W2 = Route("w", "2")
V1 = Route("v", "1")


def _ids(runs: list[RunDoc | Corrupt]) -> str:
    return " ".join(run.run_id if isinstance(run, Corrupt) else run.id for run in runs)


async def _given(store: Store, after_tenant: str | None, limit: int, now: int = 1000) -> str:
    return _ids(await store.due_in_turn([W1, V1], now, after_tenant, limit))


@check(18)
async def tenants_have_their_turns_in_a_circle(subject: Subject) -> None:
    """In the order of their names after the one before, then those without a tenant, then the names up to it."""
    async with opened(subject) as store:
        for tenant in ("a", "b", "c", "é"):
            await put(store, *(sample(f"{tenant}{n}", tenant=tenant, due_at=n + 1) for n in range(5)))
        await put(store, sample("none0", due_at=7), sample("none1", due_at=8))
        for after_tenant, limit, given in [
            (None, 1, "a0"),
            ("a", 1, "b0"),
            ("aa", 2, "b0 c0"),
            ("c", 2, "é0 none0"),
            ("é", 3, "none0 a0 b0"),
            (None, 5, "a0 b0 c0 é0 none0"),
            ("b", 7, "c0 é0 none0 a0 b0 c1 é1"),
            ("z", 99, "é0 none0 a0 b0 c0 é1 none1 a1 b1 c1 é2 a2 b2 c2 é3 a3 b3 c3 é4 a4 b4 c4"),
        ]:
            expect(await _given(store, after_tenant, limit), given, f"in turn after {after_tenant}, limit {limit}")
        expect(await store.due_in_turn([], 1000, None, 9), [], "in turn on no route")
        expect(await store.due_in_turn([W2], 1000, "a", 9), [], "in turn on a route without runs")
        expect(await store.due_in_turn([W1], 1000, "a", 1), [sample("b0", tenant="b", due_at=1)], "the run itself")


@check(18)
async def each_gives_what_has_waited_longest(subject: Subject) -> None:
    """Whatever the priority and the route; what is due at once waits since it was ready or made."""
    async with opened(subject) as store:
        await put(
            store,
            sample("timer", due_at=300, priority=-100),
            sample("ready", due_at=0, ready_at=200, workflow="v"),
            sample("draft", due_at=0, created_at=100, status="draft", priority=100),
            sample("late", due_at=400),
            sample("tie", due_at=400, priority=9),
            sample("elsewhere", due_at=1, version="2"),
        )
        expect(await _given(store, None, 9), "draft ready timer late tie", "in turn")
        expect(await _given(store, None, 2), "draft ready", "the first two in turn")


@check(18)
async def only_what_is_due_has_a_turn(subject: Subject) -> None:
    """Sleepers, held and settled runs give their tenant no turn; nor does what is ready only by a faster clock."""
    async with opened(subject) as store:
        await put(
            store,
            sample("sleeping", tenant="a", due_at=1001),
            sample("held", tenant="b", worker="x"),
            sample("parked", tenant="c", status="waiting"),
            sample("faster", tenant="d", due_at=0, ready_at=1001),
            sample("now", tenant="e", due_at=1000),
            sample("asleep", due_at=5000),
        )
        expect(await _given(store, None, 9), "now", "in turn")
        expect(await _given(store, "e", 9), "now", "in turn after itself")
        expect(await _given(store, None, 9, now=1001), "sleeping faster now", "in turn a little later")


@check(18)
async def a_turn_follows_the_run(subject: Subject) -> None:
    """A claim takes a run out, a hand-over enters it again at the end; what is deleted or set aside leaves."""
    async with opened(subject) as store:
        run = sample("r1", tenant="a", due_at=5)
        await put(store, run, sample("r2", tenant="a", due_at=6), sample("r3", tenant="a", due_at=7))
        claimed = after(run, worker="x", due_at=None, fence=1)
        await must(store, Update(run, claimed))
        expect(await _given(store, None, 9), "r2 r3", "in turn after a claim")
        back = after(claimed, worker=None, due_at=0, ready_at=20)
        await must(store, Update(claimed, back))
        expect(await _given(store, None, 9), "r2 r3 r1", "in turn after a hand-over")
        again = after(back, ready_at=1)
        await must(store, Update(back, again))
        expect(await _given(store, None, 9), "r1 r2 r3", "in turn after it has become ready anew")
        elsewhere = after(again, version="2")
        await must(store, Update(again, elsewhere), Delete("r2", 1), Quarantine("r3"))
        expect(await _given(store, None, 9), "", "in turn at the end")
        expect(_ids(await store.due_in_turn([W2], 1000, None, 9)), "r1", "in turn on the new version")


@check(18)
async def one_look_is_at_few_tenants(subject: Subject) -> None:
    """However many there are, one look gives runs of the first few; the next one goes on from there."""
    async with opened(subject) as store:
        names = [f"t{number:02}" for number in range(2 * TENANTS_AT_ONCE)]
        await put(store, *(sample(f"{name}-{n}", tenant=name, due_at=n + 1) for name in names for n in range(2)))
        first, second = names[:TENANTS_AT_ONCE], names[TENANTS_AT_ONCE:]
        expect(await _given(store, None, 99), " ".join(f"{t}-{n}" for n in range(2) for t in first), "the first")
        expect(
            await _given(store, first[-1], 99), " ".join(f"{t}-{n}" for n in range(2) for t in second), "the others"
        )


@check(18, needs="spoil")
async def what_does_not_decode_has_its_turn(subject: Subject) -> None:
    """As `Corrupt`, so that it can be set aside."""
    async with opened(subject) as store:
        await put(store, sample("bad", tenant="a", due_at=1), sample("good", tenant="b", due_at=2))
        assert subject.spoil is not None
        await subject.spoil(store, "bad")
        found = await store.due_in_turn([W1], 1000, None, 9)
        if not found or not isinstance(found[0], Corrupt):
            raise NotConformant(f"a run that does not decode was given in turn as {found[:1]}")
        expect(_ids(found), "bad good", "in turn")


@check(19)
async def leases_come_by_priority(subject: Subject) -> None:
    """Of this worker alone, highest priority first, then by id; from some place on, and as many as asked."""
    async with opened(subject) as store:
        low, high = sample("a", worker="x", priority=-100), sample("c", worker="x", priority=100)
        await put(
            store,
            low,
            high,
            sample("d", worker="x"),
            sample("b", worker="x", workflow="v"),
            sample("other", worker="y", priority=50),
            sample("free", due_at=1),
        )
        order = ["c", "b", "d", "a"]
        for skip in range(6):
            for limit in range(1, 6):
                runs = await store.leased_by_priority("x", limit, skip=skip)
                expect(_ids(runs), " ".join(order[skip : skip + limit]), f"leased, limit {limit}, skip {skip}")
        expect(await store.leased_by_priority("x", 1), [high], "the run itself")
        await must(store, Update(high, after(high, worker=None, due_at=1)))
        expect(_ids(await store.leased_by_priority("x", 9)), "b d a", "leased after a hand-over")
        expect(await store.leased_by_priority("z", 9), [], "leased to nobody")


@check(19, needs="spoil")
async def a_lease_that_does_not_decode_is_told(subject: Subject) -> None:
    """As `Corrupt`, so that it can be set aside."""
    async with opened(subject) as store:
        await put(store, sample("bad", worker="x", priority=1), sample("good", worker="x"))
        assert subject.spoil is not None
        await subject.spoil(store, "bad")
        found = await store.leased_by_priority("x", 9)
        expect([isinstance(run, Corrupt) for run in found], [True, False], "leased")
        expect(_ids(found), "bad good", "leased")
