"""Priority, turns and the order in which workers take runs: S318, S319, and that nobody starves."""

# ruff: noqa: ARG002, ASYNC110 - a store's wrapper has its parameters; what is waited for happens in skipped time

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio

from streamline_trio import Engine, MemoryStore, StepContext, Workflow, open_engine, testing
from streamline_trio._core.decide import StartRequest, admit
from streamline_trio._core.documents import Origin
from streamline_trio._core.store import Applied, Insert, Refused, Update
from streamline_trio._runtime.claimer import BATCH
from streamline_trio._runtime.clock import Chance, virtual_clock
from streamline_trio.testing import crash
from streamline_trio.testing._wrapped_store import Act, WrappedStore
from tests.scenarios.worlds import idle, in_virtual_time

Context = StepContext[Any, Any]
Flow = Workflow[Any, Any]


class Looked(WrappedStore):
    """Counts the calls of each method."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.calls: dict[str, int] = {}

    async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
        self.calls[name] = self.calls.get(name, 0) + 1
        return await act()


def noting(taken: list[str], *, seconds: float = 0.0) -> Flow:
    """A workflow that notes the id of each run that is begun."""
    flow: Flow = Workflow("flow")

    @flow.step
    async def step(ctx: Context) -> None:
        taken.append(ctx.run_id)
        await trio.sleep(seconds)

    return flow


async def queue(
    store: Any, flow: Flow, ids: Sequence[str], *, tenant: str | None = None, priority: int = 0
) -> None:
    """Drafts that are due at once."""
    flow.seal()
    clock = virtual_clock.get()
    assert clock is not None
    now = clock.now()
    drafts: list[Insert] = []
    for number, name in enumerate(ids):
        origin = Origin(
            id=name,
            workflow=flow.id,
            start_id=number + 1,
            created_at=now,
            input=b"\xc0",
            tenant=tenant,
            priority=priority,
        )
        request = StartRequest(origin=origin, state=b"\xc0")
        drafts.append(Insert(admit(request, flow.plan, now).run))
    for start in range(0, len(drafts), 100):
        assert set(await store.write(drafts[start : start + 100])) == {Applied()}


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number:05}" for number in range(count)]


async def test_priority_is_stored() -> None:
    """S318: proves that a priority is kept with the run, 0 if none is given, and that a child has its parent's."""
    inner: Flow = Workflow("inner")
    outer: Flow = Workflow("outer")

    @inner.step
    async def one(_ctx: Context) -> None: ...

    @outer.step
    async def call(ctx: Context) -> None:
        await ctx.child(inner, None)

    async with open_engine("memory:", inner, outer) as engine:
        plain, urgent = await engine.start(inner), await engine.start(outer, priority=10)
        assert ((await plain.get()).priority, (await urgent.get()).priority) == (0, 10)
        await urgent.result()
        (child,) = (await engine.find(parent=urgent.id)).items
        assert child.priority == 10


@in_virtual_time
async def test_higher_priority_first_and_then_by_age() -> None:
    """S319: proves that what waits for a free place is taken by priority, and by age where that is equal."""
    taken: list[str] = []
    flow = noting(taken, seconds=1)
    async with open_engine("memory:", flow, max_concurrent_runs=1) as engine:
        first = await engine.start(flow, run_id="first")
        for name, priority in [("zero", 0), ("ten", 10), ("five", 5), ("another five", 5), ("zero again", 0)]:
            await engine.start(flow, run_id=name, priority=priority)
            await trio.sleep(0.001)
        await first.wait()
        while await engine.count(status="done") < 6:
            await trio.sleep(1)
    # One of the few claims is made by turn: the one that has waited longest.
    assert taken[:4] == ["first", "ten", "another five", "five"]
    assert sorted(taken[4:]) == ["zero", "zero again"]


@pytest.mark.parametrize("places", [1, 8])
def test_a_noisy_tenant_starves_nobody(places: int) -> None:
    """Proves that a tenant with thousands of due runs delays the single run of another by a few claims only."""

    async def story() -> None:
        taken: list[str] = []
        flow, store = noting(taken, seconds=1), MemoryStore()
        await queue(store, flow, names("a", 2000), tenant="a", priority=50)
        await queue(store, flow, ["z-of-b"], tenant="b")
        await queue(store, flow, ["z-of-nobody"], priority=-100)
        async with open_engine(store, flow, max_concurrent_runs=places, drain_timeout=0):
            while "z-of-b" not in taken or "z-of-nobody" not in taken:
                await trio.sleep(1)
                assert len(taken) <= 16 + 6 * places

    testing.run(story)


@in_virtual_time
async def test_low_priority_is_taken_though_high_ones_keep_coming() -> None:
    """Proves that a run of the lowest priority is not starved by ever more runs of the highest."""
    taken: list[str] = []
    flow, store = noting(taken, seconds=1), MemoryStore()
    await queue(store, flow, ["low"], priority=-100)
    await queue(store, flow, names("high", 4), priority=100)
    async with open_engine(store, flow, max_concurrent_runs=2, drain_timeout=0):
        for number in range(40):
            await queue(store, flow, names(f"high{number}-", 4), priority=100)
            await trio.sleep(1)
            if "low" in taken:
                break
    assert "low" in taken
    assert taken[0].startswith("high")


@in_virtual_time
async def test_a_timer_is_taken_though_starts_keep_coming() -> None:
    """Proves that what was parked until a time is not passed by for ever by what is due at once."""
    taken: list[str] = []
    flow = noting(taken, seconds=1)
    store = MemoryStore()
    async with open_engine(store, flow, worker=False) as client:
        await client.start(flow, run_id="timer", delay=5)
    async with open_engine(store, flow, max_concurrent_runs=2, drain_timeout=0):
        for number in range(40):
            await queue(store, flow, names(f"start{number}-", 4))
            await trio.sleep(1)
            if "timer" in taken:
                break
    assert "timer" in taken


@in_virtual_time
async def test_a_start_does_not_jump_the_queue() -> None:
    """Proves that whoever starts runs through the only worker, one after the other, leaves places to those that
    wait already."""
    taken: list[str] = []
    flow, store = noting(taken, seconds=1), MemoryStore()
    async with open_engine(store, flow, max_concurrent_runs=1) as engine:
        busy = await engine.start(flow, run_id="busy")
        await queue(store, flow, ["waiting"], priority=5)
        await idle()

        async def jump(number: int) -> None:
            handle = await engine.start(flow, run_id=f"jump{number}")
            await handle.wait()

        # Its end is what the next start waits for, and what sets a place free.
        await busy.wait()
        for number in range(3):
            await jump(number)
    assert taken.index("waiting") == 1


@in_virtual_time
async def test_what_fits_costs_no_second_look() -> None:
    """Proves that nobody is asked for turns as long as all that is due fits, also in more than one page."""
    taken: list[str] = []
    flow, looked = noting(taken), Looked(MemoryStore())
    await queue(looked, flow, names("r", BATCH + 20))
    async with open_engine(looked, flow):
        await idle()
    assert len(taken) == BATCH + 20
    assert "due_in_turn" not in looked.calls


@in_virtual_time
async def test_one_place_asks_for_a_turn_every_fourth_time_at_most() -> None:
    """Proves what turns cost under pressure: a second look at one in four claims, fewer if it gives nothing new."""
    taken: list[str] = []
    flow, looked = noting(taken, seconds=1), Looked(MemoryStore())
    await queue(looked, flow, names("r", 200))
    async with open_engine(looked, flow, max_concurrent_runs=1, drain_timeout=0):
        await trio.sleep(100.5)
    assert 99 <= len(taken) <= 102
    assert 10 <= looked.calls["due_in_turn"] <= len(taken) / 4


@in_virtual_time
async def test_runs_of_a_dead_worker_go_by_priority() -> None:
    """Proves that a worker with few places takes over the important runs of a dead one first, and all at last."""
    taken: list[str] = []
    flow: Flow = Workflow("flow")
    goes_on = False

    @flow.step
    async def step(ctx: Context) -> None:
        if not goes_on:
            await trio.sleep_forever()
        taken.append(ctx.run_id)
        await trio.sleep(1)

    store = MemoryStore()
    async with open_engine(store, flow) as engine:
        for number in range(9):
            await engine.start(flow, run_id=f"r{number}", priority=number)
        await idle()
        await crash(engine)
    goes_on = True
    async with open_engine(store, flow, max_concurrent_runs=2) as second:
        await _all_done(second, 9)
    assert [sorted(taken[place : place + 2]) for place in range(0, 8, 2)] == [
        ["r7", "r8"],
        ["r5", "r6"],
        ["r3", "r4"],
        ["r1", "r2"],
    ]
    assert taken[8:] == ["r0"]


async def _all_done(engine: Engine, count: int) -> None:
    with trio.fail_after(100):
        while await engine.count(status="done") < count:
            await trio.sleep(1)


class Slow(WrappedStore):
    """A store that takes a while to answer, and counts the verdicts on claims."""

    verdicts: Counter[type[Any]]

    def __init__(self, inner: Any, verdicts: Counter[type[Any]]) -> None:
        super().__init__(inner)
        self.verdicts = verdicts

    async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
        await trio.sleep(0.002)
        answer = await act()
        if name == "write":
            pairs = zip(args[0], answer, strict=True)
            self.verdicts.update(type(verdict) for write, verdict in pairs if isinstance(write, Update))
        return answer


@asynccontextmanager
async def workers(store: MemoryStore, flow: Flow, count: int) -> AsyncGenerator[Counter[type[Any]]]:
    """So many workers with room for everything; the verdicts on what they write of runs."""
    verdicts = Counter[type[Any]]()
    async with AsyncExitStack() as stack:
        for seed in range(count):
            slow, chance = Slow(store, verdicts), Chance(seed)
            await stack.enter_async_context(
                open_engine(slow, flow, max_concurrent_runs=9999, drain_timeout=0, chance=chance)
            )
        yield verdicts


@in_virtual_time
async def test_many_workers_do_not_fight_for_one_page() -> None:
    """Proves that eight workers that claim from one queue are refused about once for each run, and all get some;
    where all read the head of the queue, it is five times."""
    taken: list[str] = []
    flow, store = noting(taken, seconds=100_000), MemoryStore(exclusive=False)
    async with workers(store, flow, 8) as verdicts:
        await queue(store, flow, names("r", 3000))
        while len(taken) < 3000:
            await trio.sleep(0.01)
        assert len(set(taken)) == verdicts[Applied] == 3000
        assert verdicts[Refused] < 2 * 3000
        assert len(await store.lease_holders()) == 8


@in_virtual_time
async def test_crowding_never_passes_over_a_higher_priority() -> None:
    """Proves that workers that read further down the queue still take all of the highest priority first."""
    taken: list[str] = []
    flow, store = noting(taken, seconds=100_000), MemoryStore(exclusive=False)
    async with workers(store, flow, 4):
        await queue(store, flow, names("high", 1000), priority=1)
        await queue(store, flow, names("low", 1500))
        while len(taken) < 2500:
            await trio.sleep(0.01)
    # A share goes by turn, and those who were refused the last page of the first priority go on to the next one.
    high = [place for place, name in enumerate(taken) if name.startswith("high")]
    assert sum(name.startswith("low") for name in taken[: high[900]]) < 500
