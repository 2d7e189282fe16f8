"""Leases: who is held to be dead, when, and what a worker does that is."""

from __future__ import annotations

import functools
import gc
from contextlib import AsyncExitStack
from typing import Any

import hypothesis
import msgspec
import pytest
import trio
import trio.testing
from hypothesis import strategies as st

from streamline_trio import LeaseLost, MemoryStore, Workflow, open_engine
from streamline_trio._core.decide import StartRequest, admit, decide
from streamline_trio._core.documents import ErrorDoc, Lease, Origin
from streamline_trio._core.happenings import (
    Ask,
    AttemptFailed,
    CancelUnwound,
    CheckpointSaved,
    DeadlinePassed,
    Finished,
    HandedBack,
    Held,
    Memoized,
    Skipped,
    StateSet,
    Suspended,
    WaitOpened,
    WentTo,
)
from streamline_trio._core.status import SETTLED
from streamline_trio._core.store import Applied, Insert, PutSide, Update
from streamline_trio._runtime.clock import Chance
from streamline_trio._runtime.worker import WORKERS
from streamline_trio.testing import crash, run
from streamline_trio.testing._witness import Witness
from tests.crash.faulty_store import BrokenStore, LocklessStore, ParkingStore
from tests.crash.scenes import (
    LEASE,
    OPTIONS,
    POLL,
    Gate,
    enlist_phantom,
    heard,
    insert_leased,
    returns_done,
    rewrite_worker,
    simple,
    virtual,
    worker_states,
)
from tests.crash.witness import until

SELF_ABORT = LEASE * 0.8
LOOK = LEASE / 3 + POLL


def shared() -> MemoryStore:
    """A store that others may write."""
    return MemoryStore(exclusive=False)


def is_beat(write: Any) -> bool:
    """A worker's document is written, not removed."""
    return isinstance(write, PutSide) and write.kind == WORKERS and write.body is not None


def beats(name: str, args: tuple[Any, ...]) -> bool:
    """A write that has a beat in it."""
    return name == "write" and any(is_beat(write) for write in args[0])


# --- who is dead, and when ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lease", [LEASE, 30.0])
@virtual
async def test_a_silent_worker_is_dead_after_a_whole_lease_of_its_own(lease):
    """Proves that silence is measured on the observer's clock, over the lease of the silent one, and no less."""
    store, workflow = shared(), simple(returns_done)
    await enlist_phantom(store, "w-silent", lease=lease)
    await insert_leased(store, workflow, "r", "w-silent")
    began = trio.current_time()
    async with open_engine(store, workflow, **OPTIONS) as engine:
        await heard(engine, "workflow.recovered")
        assert lease <= trio.current_time() - began <= lease + LOOK
        assert (await engine.run("r").wait()).recoveries == 1


@virtual
async def test_a_beat_gives_a_whole_lease_more():
    """Proves that a worker is not held to be dead while its beat moves, however rarely."""
    store, workflow = shared(), simple(returns_done)
    await enlist_phantom(store, "w-slow")
    await insert_leased(store, workflow, "r", "w-slow")
    async with open_engine(store, workflow, **OPTIONS) as engine:
        for _ in range(5):
            await trio.sleep(LEASE - POLL)
            await rewrite_worker(store, "w-slow")
            assert (await engine.get("r")).recoveries == 0
        last = trio.current_time()
        await heard(engine, "workflow.recovered")
        assert LEASE <= trio.current_time() - last <= LEASE + LOOK + LOOK


@virtual
async def test_a_beat_that_comes_in_time_saves_a_worker():
    """Proves that a worker that beats while another is marking it dead lives on, with its runs."""
    inner, workflow = shared(), simple(returns_done)
    store = ParkingStore(inner)
    await enlist_phantom(inner, "w-slow")
    await insert_leased(inner, workflow, "r", "w-slow")
    async with open_engine(store, workflow, **{**OPTIONS, "lease": 30.0}) as engine:
        store.close(lambda batch: any(is_beat(write) and write.key == "w-slow" for write in batch))
        await store.parked.wait()
        await rewrite_worker(inner, "w-slow")
        store.release()
        await trio.sleep(LEASE - POLL)
        assert (await engine.get("r")).recoveries == 0
        assert (await worker_states(inner))["w-slow"] == "live"


@virtual
async def test_a_look_at_the_others_may_fail_half_way():
    """Proves that a store that fails between two workers' documents leaves nothing open, and is asked again."""
    inner, workflow = shared(), simple(returns_done)
    store = BrokenStore(inner, lambda name, _args: name == "worker_gone")
    for worker in ("w-1", "w-2"):
        await enlist_phantom(inner, worker)
    await insert_leased(inner, workflow, "r", "w-2")
    async with open_engine(store, workflow, **OPTIONS) as engine:
        store.broken = True
        await trio.sleep(LEASE)
        store.broken = False
        gc.collect()  # what was left open would be told of now, as an error
        with trio.fail_after(LEASE + 2 * LOOK):
            assert (await engine.run("r").wait()).recoveries == 1


@virtual
async def test_a_released_lock_needs_no_lease():
    """Proves that a worker whose lock is gone is dead at once, at the next poll."""
    store, workflow = shared(), simple(returns_done)
    await enlist_phantom(store, "w-gone")
    await insert_leased(store, workflow, "r", "w-gone")
    async with open_engine(store, workflow, **OPTIONS) as engine:
        await trio.sleep(LEASE / 2)
        await store.drop_worker("w-gone")
        released = trio.current_time()
        await heard(engine, "workflow.recovered")
        assert trio.current_time() - released <= POLL


@pytest.mark.parametrize("already_open", [True, False])
@virtual
async def test_a_lease_of_a_worker_without_a_document_is_claimable(already_open):
    """Proves that a lease which names nobody does not keep its run for ever."""
    store, workflow = shared(), simple(returns_done)
    if not already_open:
        await insert_leased(store, workflow, "r", "w-nobody")
    async with open_engine(store, workflow, **OPTIONS) as engine:
        if already_open:
            await insert_leased(store, workflow, "r", "w-nobody")
        with trio.fail_after(LEASE + LOOK):
            seen = await engine.run("r").wait()
        assert (seen.status, seen.recoveries) == ("done", 1)


@virtual
async def test_the_heir_of_a_dead_worker_clears_it_away():
    """Proves that nothing is left of a dead worker once its runs are taken over."""
    store, workflow = shared(), simple(returns_done)
    await enlist_phantom(store, "w-silent")
    await insert_leased(store, workflow, "r", "w-silent")
    async with open_engine(store, workflow, **OPTIONS) as engine:
        await engine.run("r").wait()
        await trio.sleep(2 * LEASE)
        assert await worker_states(store) == {engine.worker_id: "live"}


# --- a worker that is dead, or may be held to be -------------------------------------------------------------


@pytest.mark.parametrize("hangs", [False, True])
@virtual
async def test_a_worker_that_cannot_beat_stops_itself_before_others_may_take_over(hangs):
    """Proves that a worker whose beats fail or hang aborts its handlers within its lease less the grace."""
    store, gate = shared(), Gate()
    broken, parking = BrokenStore(store, beats), ParkingStore(store)
    workflow = gate.workflow()
    async with open_engine(parking if hangs else broken, workflow, **OPTIONS) as engine:
        run_ = await engine.start(workflow)
        await gate.entered.wait()
        await trio.sleep(LEASE)
        first = engine.worker_id
        sent = trio.current_time()  # at the latest, a beat goes out here
        broken.broken = True
        parking.close(lambda batch: any(is_beat(write) for write in batch))
        await trio.testing.wait_all_tasks_blocked()
        await until(lambda: gate.left, within=SELF_ABORT, pause=0.1)
        assert gate.left[0][0] == "cancelled"
        assert gate.left[0][1] - sent <= SELF_ABORT
        assert engine.worker_id != first
        broken.broken = False
        parking.release()
        gate.open.set()
        seen = await run_.wait()
        assert (seen.status, seen.recoveries) == ("done", 1)
        assert engine.worker_id not in {None, first}


@virtual
async def test_a_beat_counts_from_when_it_was_sent():
    """Proves that a beat whose acknowledgement was slow does not lengthen the lease by that."""
    parking, gate = ParkingStore(shared(), "after"), Gate()
    broken = BrokenStore(parking, beats)
    workflow = gate.workflow()
    async with open_engine(broken, workflow, **OPTIONS) as engine:
        await engine.start(workflow)
        await gate.entered.wait()
        parking.close(lambda batch: any(is_beat(write) for write in batch))
        await parking.parked.wait()
        sent = trio.current_time()
        await trio.sleep(LEASE / 3)
        broken.broken = True
        parking.release()
        await until(lambda: gate.left, within=LEASE, pause=0.1)
        assert gate.left[0][1] - sent <= SELF_ABORT
        broken.broken = False


def entered_at_least(gate: Gate, count: int) -> bool:
    return len(gate.entries) >= count


HELD: list[Held] = [
    Finished(worker="w", fence=2, step="step", output=b"\xc0"),
    Skipped(worker="w", fence=2, step="step"),
    AttemptFailed(worker="w", fence=2, step="step", error=ErrorDoc(code="c", message="m"), retriable=True),
    Suspended(worker="w", fence=2, step="step", asks=()),
    WaitOpened(worker="w", fence=2, step="step", ask=Ask(key="k", kind="timer", ask="timer", place=0)),
    WentTo(worker="w", fence=2, step="step", target="step"),
    StateSet(worker="w", fence=2, state=b"\xc0"),
    CheckpointSaved(worker="w", fence=2, step="step", name="n", value=b"\xc0"),
    Memoized(worker="w", fence=2, step="step", key="k", value=b"\xc0"),
    HandedBack(worker="w", fence=2),
    CancelUnwound(worker="w", fence=2),
    DeadlinePassed(worker="w", fence=2),
]


@pytest.mark.parametrize("happening", HELD, ids=lambda happening: type(happening).__name__)
@pytest.mark.parametrize(
    "lease", [None, Lease(worker="w", fence=1), Lease(worker="w", fence=3), Lease(worker="v", fence=2)]
)
def test_only_the_holder_under_its_own_fence_decides(happening, lease):
    """Proves that each thing only a holder can bring about is refused under another worker's or an older lease."""
    workflow = simple(returns_done)
    origin = Origin(id="r", workflow="work", start_id=1, created_at=1, input=b"\xc0")
    run_ = admit(StartRequest(origin=origin, state=b"\xc0"), workflow.seal(), 1, "w").run
    run_ = msgspec.structs.replace(run_, head=msgspec.structs.replace(run_.head, lease=lease, fence=2))
    with pytest.raises(LeaseLost):
        decide(run_, happening, workflow.plan, 2)


@virtual
async def test_what_enlisting_took_is_of_the_lease():
    """Proves that an id that was slow to get has that much less time to beat before its handlers are aborted."""
    store, gate = ParkingStore(shared()), Gate()
    workflow = gate.workflow()
    async with open_engine(store, workflow, **OPTIONS) as engine:
        store.close(lambda batch: any(is_beat(write) and write.expected is None for write in batch))
        assert engine.worker_id is not None
        await rewrite_worker(store.inner, engine.worker_id, state="dead")
        await store.parked.wait()
        sent = trio.current_time()
        await trio.sleep(SELF_ABORT - 0.5)
        store.release()
        store.close(lambda batch: any(is_beat(write) for write in batch))
        with trio.move_on_after(1):
            await engine.start(workflow)
        await trio.sleep_until(sent + SELF_ABORT + 0.1)
        assert len(gate.left) == len(gate.entries), "no handler is live"
        store.release()


@virtual
async def test_a_worker_that_is_marked_dead_retires_its_id():
    """Proves that a worker marked dead by others aborts, takes a new id, and that no id ever comes back."""
    store, gate = shared(), Gate()
    workflow = gate.workflow()
    ids: list[str | None] = []
    async with open_engine(store, workflow, max_recoveries=9, **OPTIONS) as engine:
        run_ = await engine.start(workflow)
        for count in range(1, 5):
            await until(functools.partial(entered_at_least, gate, count), within=2 * LEASE, pause=0.1)
            assert engine.worker_id is not None
            ids.append(engine.worker_id)
            await rewrite_worker(store, engine.worker_id, state="dead")
        gate.open.set()
        seen = await run_.wait()
        assert (seen.status, gate.entries) == ("done", sorted(gate.entries))
    assert len(set(ids)) == len(ids)
    assert await worker_states(store) == {}


@virtual
async def test_what_a_dead_worker_writes_after_the_takeover_is_refused():
    """Proves that once another has the run, the late result of the first is not stored, nor published."""
    store, first, second = shared(), Gate(), Gate()
    parking = ParkingStore(store)
    parking.close(lambda batch: any(is_beat(write) and write.expected for write in batch))
    async with (
        open_engine(parking, slow := first.workflow(), **OPTIONS) as frozen,
        frozen.events("step.completed", "workflow.completed") as late,
        open_engine(store, second.workflow(), **OPTIONS) as heir,
    ):
        run_ = await frozen.start(slow)
        await first.entered.wait()
        assert frozen.worker_id is not None
        old = frozen.worker_id
        await rewrite_worker(store, old, state="dead")
        with trio.fail_after(SELF_ABORT):
            await second.entered.wait()
        first.open.set()
        await trio.testing.wait_all_tasks_blocked()
        assert [how for how, _when in first.left] == ["returned"]
        seen = await heir.get(run_.id)
        assert (seen.status, seen.fence, seen.lease.worker if seen.lease else None) == (
            "running",
            2,
            heir.worker_id,
        )
        parking.release()
        await trio.sleep(2 * LEASE)
        assert frozen.worker_id not in {None, old}
        second.open.set()
        assert (await run_.wait()).status == "done"
        with trio.move_on_after(LEASE):
            async for event in late:
                raise AssertionError(event)


@virtual
async def test_a_verb_reaches_a_run_that_this_worker_has_just_lost():
    """Proves that a cancel through a worker that has lost the run unnoticed is stored, and raises no LeaseLost."""
    store: Any = MemoryStore()
    gate = Gate()
    workflow = gate.workflow()
    async with open_engine(store, workflow, **OPTIONS) as engine:
        handle = await engine.start(workflow)
        await gate.entered.wait()
        await enlist_phantom(store, "heir")
        before = await store.load(handle.id)
        head = msgspec.structs.replace(
            before.head, lease=Lease(worker="heir", fence=2), fence=2, revision=before.head.revision + 1
        )
        taken = msgspec.structs.replace(before, head=head)
        assert await store.write([Update(before, taken)]) == [Applied()]
        await handle.cancel("asked")
        stored = await store.load(handle.id)
    assert stored.head.lease == taken.head.lease
    assert (stored.head.cancel_requested, stored.head.cancel_reason) == (True, "asked")


@pytest.mark.parametrize("kind", [Insert, Update])
@virtual
async def test_what_is_taken_under_a_retired_id_is_not_driven(kind):
    """Proves that a start or claim that lands after its worker has retired leaves the run to the next claim."""
    store, gate = shared(), Gate()
    witness = Witness(store)
    parking = ParkingStore(witness)
    workflow = gate.workflow()
    async with open_engine(parking, workflow, **OPTIONS) as engine, trio.open_nursery() as nursery:
        old = engine.worker_id
        assert old is not None
        parking.close(lambda batch: any(isinstance(write, kind) for write in batch))
        if kind is Insert:
            nursery.start_soon(engine.start, workflow)
        else:
            await engine.start(workflow, delay=0.5)
        await parking.parked.wait()
        await rewrite_worker(store, old, state="dead")
        await trio.sleep(LEASE)  # the worker's beats wait behind its own write: it stops by itself
        assert engine.worker_id != old
        gate.open.set()
        entries = len(gate.entries)
        assert entries == 0
        parking.release()
        with trio.fail_after(3 * LEASE):
            await heard(engine, "workflow.completed")
        (document,) = [versions[-1] for versions in witness.versions.values()]
        assert (document.head.recoveries, document.step("step").attempts) == (1, 2)
        assert gate.entries == [2]


@virtual
async def test_a_retiring_worker_buries_its_id_whatever_is_still_on_its_way():
    """Proves that a beat under way does not keep a retired id alive for others."""
    store = shared()
    parking = ParkingStore(LocklessStore(store))
    async with open_engine(parking, simple(returns_done), **OPTIONS) as engine:
        old = engine.worker_id
        parking.close(lambda batch: any(is_beat(write) for write in batch))
        await until(lambda: engine.worker_id != old, within=LEASE, pause=0.1)
        parking.release()
        await trio.testing.wait_all_tasks_blocked()
        assert (await worker_states(store)).get(str(old), "dead") == "dead"


troubles = st.lists(
    st.tuples(st.floats(0, 20), st.integers(0, 2), st.sampled_from(["break", "heal", "crash", "hang", "go on"])),
    max_size=12,
)


@hypothesis.given(troubles=troubles, seed=st.integers(0, 9999), randomness=st.random_module())
@hypothesis.settings(max_examples=max(40, hypothesis.settings().max_examples // 4))
def test_a_body_is_never_live_in_two_living_workers(troubles, seed, randomness):
    """Proves that whatever fails or hangs for whichever worker, no two bodies of one run are live at once."""
    run(_live_through, troubles, seed)


async def _live_through(troubles: list[tuple[float, int, str]], seed: int) -> None:
    witness = Witness(shared())

    async def work(ctx: Any) -> None:
        with witness.inside(ctx):
            await trio.sleep(2)
            await ctx.checkpoint(ctx.attempt)
            await trio.sleep(3)

    workflow: Workflow[Any, Any] = Workflow("work")
    for step in ("a", "b"):
        workflow.add_step(step, work)
    async with AsyncExitStack() as stack:
        parks = [ParkingStore(witness) for _ in range(3)]
        breaks = [BrokenStore(park, lambda name, _args: name != "drop_worker") for park in parks]
        engines = [
            await stack.enter_async_context(
                open_engine(store, workflow, max_recoveries=99, chance=Chance(seed * 9 + place), **OPTIONS)
            )
            for place, store in enumerate(breaks)
        ]
        runs = [await engine.start(workflow) for engine in engines for _ in range(2)]
        crashed: set[int] = set()
        for pause, place, what in troubles:
            await trio.sleep(pause)
            match what:
                case "break" | "heal":
                    breaks[place].broken = what == "break"
                case "hang":
                    parks[place].close()
                case "go on":
                    parks[place].release()
                case "crash" if len(crashed | {place}) < len(engines):
                    crashed.add(place)
                    await crash(engines[place])
                case _:
                    pass
        for broken in breaks:
            broken.broken = False
        for park in parks:
            park.release()
        await until(lambda: all(witness.run(run_.id).head.status in SETTLED for run_ in runs), within=300, pause=1)
        witness.check()
        assert {witness.run(run_.id).head.status for run_ in runs} == {"done"}
