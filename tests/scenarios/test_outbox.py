"""The outbox: what must happen elsewhere happens, whoever dies, and at most as often as it does no harm."""

from typing import Any

import msgspec
import pytest
import trio

from streamline_trio import (
    Branch,
    Engine,
    MemoryStore,
    RunHandle,
    StepContext,
    Workflow,
    open_engine,
)
from streamline_trio._core.decide import StartRequest, admit
from streamline_trio._core.decide.outbox import PATIENCE
from streamline_trio._core.documents import Errand, Origin, Parent, RunDoc
from streamline_trio._core.store import Applied, Insert, Update
from streamline_trio._runtime.errands import Errands
from streamline_trio.testing import crash
from tests.crash.faulty_store import Act, BrokenStore, WrappedStore
from tests.scenarios.worlds import idle, in_virtual_time, one_step

Context = StepContext[Any, Any]
LEASE = 9.0
SHARED: dict[str, Any] = {"lease": LEASE, "poll_interval": 1.0}

asking: Workflow[Any, Any] = Workflow("asking")


@asking.step
async def ask(ctx: Context) -> int:
    answer: int = await ctx.wait("how many?", returns=int)
    return answer


async def wait_for_child(ctx: Context) -> Any:
    return await ctx.child(asking)


parent_flow = one_step(wait_for_child)


def touches(run_id: str) -> Any:
    """Whether a store call writes this run."""

    def breaks(name: str, args: tuple[Any, ...]) -> bool:
        return name == "write" and any(isinstance(w, Update) and w.before.id == run_id for w in args[0])

    return breaks


async def begun(engine: Engine) -> tuple[RunHandle, RunHandle]:
    """A parent that waits, and its child."""
    run = await engine.start(parent_flow)
    await trio.sleep(10)
    (child,) = await engine.find(parent=run, status="waiting")
    return run, engine.run(child.id)


async def outbox_of(store: Any, run_id: str) -> list[str]:
    run = await store.load(run_id)
    return [errand.kind for errand in run.outbox.values()]


@pytest.mark.parametrize("exclusive", [True, False])
@in_virtual_time
async def test_a_nudge_that_was_lost_is_taken_over(exclusive):
    """S237: the worker that settled the child dies before it could tell the parent; another does, after a while."""
    store = MemoryStore(exclusive=exclusive)
    broken = BrokenStore(store)
    async with open_engine(store, parent_flow, **SHARED) as heir:
        async with open_engine(broken, asking, **SHARED) as engine:
            run, child = await begun(heir)
            broken.breaks, broken.broken = touches(run.id), True
            await engine.run(child.id).resume(5)
            await child.wait()
            await trio.sleep(1)
            assert await outbox_of(store, child.id) == ["nudge"]
            settled_at = trio.current_time()
            await crash(engine)
        assert (await run.wait(1000)).output == 5
        assert trio.current_time() - settled_at <= PATIENCE / 1000 + LEASE / 3 + 2
        await trio.sleep(1)
        assert await outbox_of(store, child.id) == []


@in_virtual_time
async def test_a_nudge_that_was_lost_waits_for_the_next_engine():
    """Proves that on a store that only one process can reach, the next one to open it does what was left."""
    store = MemoryStore()
    broken = BrokenStore(store)
    async with open_engine(broken, parent_flow, asking) as engine:
        run, child = await begun(engine)
        broken.breaks, broken.broken = touches(run.id), True
        await child.resume(5)
        await child.wait()
        await crash(engine)
    await trio.sleep(1000)
    async with open_engine(store, parent_flow, asking) as engine:
        assert (await engine.run(run.id).wait(100)).output == 5


@in_virtual_time
async def test_leaving_waits_for_the_errands_under_way():
    """Proves that an engine that is left right after a child has settled tells the parent first."""
    store = MemoryStore()
    async with open_engine(store, parent_flow) as other:
        async with open_engine(store, asking) as engine:
            run, child = await begun(other)
            await engine.run(child.id).resume(5)
            await child.wait()
        assert await outbox_of(store, child.id) == []
        assert (await run.wait(1)).output == 5


@in_virtual_time
async def test_an_outage_delays_a_nudge_and_does_not_lose_it():
    """Proves that an errand is tried again for as long as the store is unavailable and the engine is open."""
    store = BrokenStore(MemoryStore())
    async with open_engine(store, parent_flow, asking) as engine:
        run, child = await begun(engine)
        given_up = list[Any]()
        engine.on("engine.error", given_up.append)
        store.breaks, store.broken = touches(run.id), True
        await child.resume(5)
        await trio.sleep(300)
        assert (await run.get()).status == "waiting"
        store.broken = False
        assert (await run.wait(100)).output == 5
        assert given_up == []


@in_virtual_time
async def test_an_outage_while_children_are_stored_is_waited_out():
    """Proves that a step whose children cannot be stored for long goes on with it, and starts each of them once."""

    def inserts(name: str, args: tuple[Any, ...]) -> bool:
        return name == "write" and any(isinstance(write, Insert) for write in args[0])

    async def join(ctx: Context) -> None:
        await ctx.join({"a": Branch(asking), "b": Branch(asking)})

    parent: Workflow[Any, Any] = Workflow("parent")
    parent.add_step("join", join)
    store = BrokenStore(MemoryStore(), inserts)
    async with open_engine(store, parent, asking) as engine:
        run = await engine.start(parent, delay=1)
        store.broken = True
        await trio.sleep(300)
        assert await engine.count(parent=run) == 0
        store.broken = False
        await trio.sleep(10)
        for child in await engine.find(parent=run):
            await engine.run(child.id).resume(1)
        settled = await run.wait(100)
        assert (settled.status, settled.steps["join"].attempts) == ("done", 1)
        assert await engine.count(parent=run) == 2


@in_virtual_time
async def test_two_workers_do_not_both_take_an_errand_up():
    """Proves that of the workers that find an errand due one does it: its parent is written once."""
    store = MemoryStore(exclusive=False)
    written, loaded = list[str](), list[str]()

    class Telling(WrappedStore):
        async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
            outcome = await act()
            if name == "load":
                loaded.append(args[0])
            if name == "write":
                for write, verdict in zip(args[0], outcome, strict=True):
                    if isinstance(write, Update) and isinstance(verdict, Applied):
                        written.append(write.before.id)
            return outcome

    broken = BrokenStore(store)
    async with open_engine(store, parent_flow, **SHARED) as engine:
        async with open_engine(broken, asking, **SHARED) as lost:
            run, child = await begun(engine)
            broken.breaks, broken.broken = touches(run.id), True
            await lost.run(child.id).resume(5)
            await child.wait()
            await crash(lost)
        await crash(engine)
    async with (
        open_engine(Telling(store), asking, **SHARED),
        open_engine(Telling(store), asking, **SHARED),
        open_engine(Telling(store), asking, **SHARED),
    ):
        await trio.sleep(100)
        assert loaded.count(run.id) == written.count(run.id) == 1
        assert written.count(child.id) == 2, "taken up, and done"


@pytest.mark.parametrize(
    "how", ["gone", "cancelled", "settled", "asked afresh", "over", "wanted", "detached", "detached, cancelled"]
)
@pytest.mark.parametrize("driven", [False, True])
@in_virtual_time
async def test_a_child_that_comes_late_does_not_begin_for_nothing(how, driven):
    """S140: a child stored by a worker taken for dead begins only if its parent still waits for that one."""
    store = MemoryStore()
    entered = list[str]()

    async def note(ctx: Context) -> None:
        entered.append(ctx.run_id)

    late = one_step(note)
    parent: Workflow[Any, Any] = Workflow("parent")

    @parent.step
    async def step(ctx: Context) -> None:
        await ctx.child(asking, name="a")
        await ctx.wait("go on?")

    async with open_engine(store, parent, asking) as engine:
        run = await engine.start(parent)
        await idle()
        (child,) = await engine.find(parent=run)
        if how in {"over", "settled", "detached"}:
            await engine.run(child.id).resume(1)
            await idle()
        if how == "settled":
            await run.resume(1)
        elif "cancelled" in how:
            await run.cancel()
        await idle()
        known = child.parent
        assert known is not None
        asked = Parent(
            run="nobody" if how == "gone" else run.id,
            step="step",
            key=known.key,
            group="another" if how == "asked afresh" else known.group,
            detached="detached" in how,
        )
    await store.write([Insert(draft(late, asked))])
    async with open_engine(store, late, worker=not driven) as engine:
        if driven:
            await engine.run("late").drive()
        settled = await engine.run("late").wait(10)
    if how in {"wanted", "detached"}:
        assert (settled.status, entered) == ("done", ["late"])
    else:
        assert (settled.status, entered) == ("cancelled", [])
        assert settled.cancel_reason is not None
        assert asked.run in settled.cancel_reason


def draft(workflow: Workflow[Any, Any], parent: Parent) -> RunDoc:
    origin = Origin(id="late", workflow=workflow.id, start_id=7, created_at=1, input=b"\xc0", parent=parent)
    return admit(StartRequest(origin=origin, state=b"\xc0"), workflow.seal(), 1).run


@in_virtual_time
async def test_a_child_of_a_parent_that_cannot_be_read_begins():
    """Proves that a parent that does not decode is no reason to cancel its child: it may well be waiting."""
    store = MemoryStore()
    async with open_engine(store, parent_flow) as engine:
        run = await engine.start(parent_flow)
        await idle()
        (child,) = await engine.find(parent=run)
        store.spoil(run.id)
        async with open_engine(store, asking) as other:
            await idle()
            assert (await other.get(child.id)).status == "waiting"
            assert await other.delete() == 0


@in_virtual_time
async def test_a_run_with_errands_that_does_not_decode_holds_nobody_up():
    """Proves that it is set aside, and that errands of other runs are done."""
    store = MemoryStore(exclusive=False)
    async with open_engine(store, parent_flow, asking, **SHARED) as engine:
        run, child = await begun(engine)
        stored = await store.load(child.id)
        assert stored is not None
        bad = msgspec.structs.replace(
            stored,
            origin=msgspec.structs.replace(stored.origin, id="bad", parent=None),
            head=msgspec.structs.replace(stored.head, status="done", errand_at=1),
            records={},
        )
        await store.write([Insert(bad)])
        store.spoil("bad")
        errors = list[Any]()
        engine.on("engine.error", errors.append)
        await trio.sleep(2 * LEASE)
        assert await store.errands(1 << 60, 9) == []
        assert "bad" in errors[0].error
        await child.resume(1)
        assert (await run.wait(100)).status == "done"


@in_virtual_time
async def test_settled_runs_that_have_yet_to_tell_are_not_deleted():
    """Proves that `delete` leaves a cancelled parent until its children are cancelled too."""
    store = BrokenStore(MemoryStore())
    async with open_engine(store, parent_flow, asking) as engine:
        run, child = await begun(engine)
        store.breaks, store.broken = touches(child.id), True
        await run.cancel()
        await trio.sleep(100)
        assert await engine.delete() == 0
        store.broken = False
        assert (await child.wait(100)).status == "cancelled"
        await trio.sleep(100)
        assert await engine.delete() == 2


@in_virtual_time
async def test_a_definition_is_not_needed_to_carry_an_errand_out():
    """Proves that an errand of a run whose definition is lost is done all the same."""
    store = MemoryStore(exclusive=False)
    broken = BrokenStore(store)
    async with open_engine(broken, parent_flow, asking, **SHARED) as engine:
        run, child = await begun(engine)
        broken.breaks, broken.broken = touches(run.id), True
        await child.resume(5)
        await child.wait()
        await crash(engine)
    assert isinstance((await store.load(child.id)), RunDoc)
    for (kind, key), _ in list(store._content.sides.items()):
        if kind == "definition" and key.startswith("asking/"):
            del store._content.sides[kind, key]
    async with open_engine(store, parent_flow, **SHARED) as engine:
        assert (await engine.run(run.id).wait(100)).output == 5
        await trio.sleep(10)
        assert await outbox_of(store, child.id) == []


@in_virtual_time
async def test_many_ends_at_once_wake_the_parent_once():
    """Proves that nudges gather: two hundred branches that end together cost their parent a few writes."""

    async def at_once(_ctx: Context) -> None: ...

    quick = one_step(at_once)

    async def join(ctx: Context) -> None:
        await ctx.join({f"b{n}": Branch(quick) for n in range(200)})

    parent: Workflow[Any, Any] = Workflow("parent")
    parent.add_step("join", join)
    async with open_engine("memory:", parent, quick) as engine:
        run = await engine.start(parent)
        settled = await run.wait(100)
        assert settled.status == "done"
        assert settled.revision < 20


@in_virtual_time
async def test_a_page_of_errands_that_are_under_way_is_left_alone():
    """Proves that a worker whose own slow errands fill a whole page does not ask for them over and over."""
    store = MemoryStore(exclusive=False)
    looks = list[float]()

    class Looking(WrappedStore):
        async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
            if name == "errands":
                looks.append(args[0])
                assert len(looks) < 10, "it looks without an end"
            return await act()

    async with open_engine(Looking(store), parent_flow, asking, worker=False) as engine:
        run = await (await engine.start(asking, delay=1)).get()
        sample = await store.load(run.id)
        assert sample is not None
        errand = Errand(kind="nudge", due_at=1, run="nobody", group="g")
        waiting = [
            msgspec.structs.replace(
                sample,
                origin=msgspec.structs.replace(sample.origin, id=f"r{number}"),
                head=msgspec.structs.replace(sample.head, errand_at=1, errands=1),
                outbox={"00000001": errand},
            )
            for number in range(150)
        ]
        await store.write([Insert(each) for each in waiting])
        errands = Errands(engine._machinery)
        errands._under_way = {(each.id, "00000001") for each in waiting}
        await errands.look()
    assert len(looks) == 1
