"""Checks of what waits in line for slots."""

from __future__ import annotations

from collections.abc import Sequence

from streamline_trio._core.documents import RunDoc, SlotDoc, SlotState
from streamline_trio._core.store import Corrupt, Delete, Quarantine
from streamline_trio.testing._conformance_base import (
    Subject,
    after,
    check,
    expect,
    moved,
    must,
    opened,
    put,
    sample,
)

BUCKET = "t\nw\nkey"


def slot(ticket: int, state: SlotState = "queued", bucket: str = BUCKET) -> SlotDoc:
    """A wish for a slot."""
    return SlotDoc(bucket=bucket, limit=1, acquisition=2**63 - 1, ticket=ticket, state=state)


@check(18)
async def the_queue_of_a_bucket_is_in_order(subject: Subject) -> None:
    """Highest priority first, then lowest ticket, then by id; whatever the status; of no other bucket or state."""
    async with opened(subject) as store:
        first = sample("z", slot=slot(9), priority=5, status="draft")
        rest = [sample("b", slot=slot(1)), sample("a", slot=slot(2)), sample("c", slot=slot(2), due_at=4)]
        await put(store, *rest, first, sample("last", slot=slot(0), priority=-1))
        await put(
            store,
            sample("plain", status="draft"),
            sample("later", slot=slot(0, "later")),
            sample("asked", slot=slot(0, "asked")),
            sample("held", slot=slot(0, "held")),
            sample("left", slot=slot(0, "left"), status="done"),
            sample("paused", slot=slot(0), paused=True),
            sample("other", slot=slot(0, bucket="w\nkey")),
        )
        wanted = ["z", "b", "a", "c", "last"]
        for limit in range(1, 7):
            expect(_ids(await store.queued(BUCKET, limit)), wanted[:limit], f"queued, limit {limit}")
        expect((await store.queued(BUCKET, 1))[0], first, "the run itself")
        expect(await store.count_queued(BUCKET), 5, "how many are queued")
        expect(_ids(await store.queued("w\nkey", 9)), ["other"], "queued in another bucket")
        expect(await store.queued("none", 9), [], "queued in a bucket that nobody wants")
        expect(await store.count_queued("none"), 0, "how many want it")


@check(18)
async def the_queue_follows_the_runs(subject: Subject) -> None:
    """Who gets a slot, is paused, settles or is deleted leaves the line; who is unpaused has its place again."""
    async with opened(subject) as store:
        names = ("a", "b", "c", "d", "e")
        runs = {name: sample(name, slot=slot(place)) for place, name in enumerate(names)}
        await put(store, *runs.values())
        await must(store, moved(runs["a"], slot=slot(0, "held"), due_at=0))
        await must(store, moved(runs["b"], paused=True), moved(runs["c"], status="done", slot=slot(2, "left")))
        await must(store, Delete("d", 1))
        expect(_ids(await store.queued(BUCKET, 9)), ["e"], "after the others have left")
        await must(store, moved(after(runs["b"], paused=True), paused=False))
        await must(store, moved(after(runs["a"], slot=slot(0, "held"), due_at=0), slot=slot(7), due_at=None))
        expect(_ids(await store.queued(BUCKET, 9)), ["b", "e", "a"], "after one is back and one queues anew")
        expect(await store.count_queued(BUCKET), 3, "how many are queued")


@check(18, needs="spoil")
async def a_queued_run_that_does_not_decode(subject: Subject) -> None:
    """It is Corrupt, and in no line once it is quarantined, until its next update."""
    if subject.spoil is None:
        return
    async with opened(subject) as store:
        good = sample("good", slot=slot(2))
        await put(store, sample("bad", slot=slot(1)), good)
        await subject.spoil(store, "bad")
        found = await store.queued(BUCKET, 9)
        expect([isinstance(run, Corrupt) for run in found], [True, False], "which is corrupt")
        await must(store, Quarantine("bad"), Quarantine("good"))
        expect(await store.queued(BUCKET, 9), [], "queued in quarantine")
        await must(store, moved(good))
        expect(await store.queued(BUCKET, 9), [after(good)], "queued after the next update")


def _ids(runs: Sequence[RunDoc | Corrupt]) -> list[str]:
    return [run.run_id if isinstance(run, Corrupt) else run.id for run in runs]
