"""Removal that is broken off anywhere is taken up by others; bulk verbs that are repeated do the rest."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from streamline_trio import Branch, Engine, MemoryStore, Retention, StepContext, Workflow, open_engine
from streamline_trio._core.store import Delete, PutSide
from streamline_trio._runtime.baton import BATONS
from streamline_trio.testing import CrashAt, FailCall, LoseLeaseAt, crash, sweep
from tests.crash.faulty_store import CutStore, ParkingStore
from tests.crash.scenes import LEASE, OPTIONS, virtual

Context = StepContext[Any, Any]
KEPT = Retention(done=1, failed=2, cancelled=1)


class Shop:
    """Runs of every kind, among them a parent whose branches only it keeps."""

    def __init__(self) -> None:
        self.child: Workflow[Any, Any] = Workflow("child")
        self.child.add_step("step", self._child)
        self.parent: Workflow[Any, Any] = Workflow("parent")
        self.parent.add_step("join", self._parent, attempts=1)
        self.plain: Workflow[Any, Any] = Workflow("plain")
        self.plain.add_step("step", self._child)

    async def _child(self, ctx: Context) -> Any:
        ctx.log("here")
        return await ctx.wait("people") if ctx.input == "waits" else ctx.input

    async def _parent(self, ctx: Context) -> None:
        await ctx.join({"a": Branch(self.child, 1), "b": Branch(self.child, 2)})
        raise ValueError("planned")

    async def until_only_the_waiting_one_is_left(self, engine: Engine) -> list[str]:
        """The scenario: begins with a clean world."""
        await engine.start(self.plain, 1, run_id="one")
        await engine.start(self.parent, None, run_id="parent")
        await engine.start(self.plain, "waits", run_id="waits")
        while [run.id for run in await engine.find()] != ["waits"]:  # noqa: ASYNC110 - no event tells of it
            await trio.sleep(0.5)
        assert (await engine.get("waits")).status == "waiting"
        return [run.id for run in await engine.find()]


@pytest.fixture(params=["memory", "shared memory"])
def store(request) -> Any:
    """Gives a fresh store at each call."""
    return MemoryStore if request.param == "memory" else lambda: MemoryStore(exclusive=False)


@pytest.mark.parametrize("mishap", [FailCall, CrashAt, LoseLeaseAt])
def test_removal_bears_every_mishap(store, mishap):
    """Proves that wherever removal is broken off, by a call that fails or a worker that dies, others finish it."""
    shop = Shop()
    scenario = shop.until_only_the_waiting_one_is_left
    workflows = (shop.parent, shop.child, shop.plain)
    played = sweep(scenario, *workflows, mishaps=[mishap], store=store, retention=KEPT, lease=LEASE)
    assert len(played) > 5


async def _settled(store: Any, workflow: Workflow[Any, Any], count: int) -> None:
    async with open_engine(store, workflow) as engine:
        for number in range(count):
            await (await engine.start(workflow, number)).wait()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("write", [1, 2, 3])
@virtual
async def test_a_worker_that_dies_in_its_turn_is_followed_by_the_next(write, when):
    """Proves that a death with the baton in hand, before, within or after the removal, ends in an empty store."""
    shop, shared = Shop(), MemoryStore(exclusive=False)
    await _settled(shared, shop.plain, 5)
    await trio.sleep(10)
    cut = CutStore(shared, write, when)  # its first write is the one that enlists
    async with open_engine(cut, shop.plain, retention=KEPT, **OPTIONS) as first:
        with trio.fail_after(100):
            await cut.cut.wait()
        async with open_engine(shared, shop.plain, retention=KEPT, **OPTIONS) as second:
            await crash(first)
            with trio.fail_after(10 * LEASE):
                while await second.count():  # noqa: ASYNC110 - no event tells of it
                    await trio.sleep(1)


@virtual
async def test_two_that_take_themselves_for_the_first_do_not_remove_together():
    """Proves that of workers that take their turn at the same time one gets the baton and the others wait."""
    shop, shared = Shop(), MemoryStore(exclusive=False)
    await _settled(shared, shop.plain, 5)
    await trio.sleep(10)
    removing = set[int]()
    most = 0

    class Watched(ParkingStore):
        async def around(self, name: str, args: tuple[Any, ...], act: Any) -> Any:
            nonlocal most
            if name == "write" and any(isinstance(write, Delete) for write in args[0]):
                removing.add(id(self))
                most = max(most, len(removing))
                await trio.sleep(3)
            verdicts = await super().around(name, args, act)
            if name == "write" and any(isinstance(w, PutSide) and w.kind == BATONS for w in args[0]):
                removing.discard(id(self))
            return verdicts

    async def worker(task_status: trio.TaskStatus[None]) -> None:
        async with open_engine(Watched(shared), shop.plain, retention=KEPT, **OPTIONS) as engine:
            engine._machinery.observer.is_first = lambda **_among: True  # type: ignore[method-assign]  # each is
            task_status.started()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            await nursery.start(worker)
        async with open_engine(shared, worker=False) as client:
            with trio.fail_after(10 * LEASE):
                while await client.count():  # noqa: ASYNC110 - no event tells of it
                    await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert most == 1


@pytest.mark.parametrize("verb", ["delete", "cancel_all", "retry_all"])
def test_bulk_verbs_bear_every_mishap(verb):
    """Proves that a bulk verb whose calls fail, or whose workers die, has its whole effect, once for each run."""
    is_broken = True
    flow: Workflow[Any, Any] = Workflow("flow")

    async def step(ctx: Context) -> Any:
        if is_broken and verb == "retry_all":
            raise ValueError("planned")
        return await ctx.wait("people") if verb == "cancel_all" else 1

    flow.add_step("step", step, attempts=1)
    ends = {"delete": "done", "cancel_all": "waiting", "retry_all": "failed"}

    async def scenario(engine: Engine) -> dict[str, int]:
        nonlocal is_broken
        is_broken = True
        for number in range(3):
            await engine.start(flow, run_id=f"r{number}")
        while await engine.count(status=ends[verb]) < 3:  # type: ignore[arg-type]  # noqa: ASYNC110 - a status
            await trio.sleep(0.1)
        is_broken = False
        await getattr(engine, verb)()
        while (left := (await engine.stats()).by_status) and (left["running"] or left["failed"]):  # noqa: ASYNC110
            await trio.sleep(0.1)
        return {status: count for status, count in left.items() if count}

    played = sweep(scenario, flow, mishaps=[FailCall, CrashAt], lease=LEASE)
    assert len(played) > 5
