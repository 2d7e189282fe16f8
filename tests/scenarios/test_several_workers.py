"""Several workers on one store, each with a connection of its own: on memory, SQLite and MongoDB."""

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from streamline_trio import (
    Branch,
    Done,
    Engine,
    InvalidState,
    MemoryStore,
    Next,
    RunHandle,
    Signal,
    StepContext,
    StoreUnavailable,
    WaitTimedOut,
    Workflow,
    open_engine,
)
from streamline_trio._core.decide import StartRequest, admit
from streamline_trio._core.documents import Origin
from streamline_trio._core.store import Insert, Update
from streamline_trio._runtime.store_urls import store_from
from streamline_trio.stores.mongo import _stream
from streamline_trio.testing import FaultyStore, crash, parked
from tests.crash.faulty_store import BrokenStore
from tests.scenarios.worlds import one_step, passing

LEASE = 1.0
LONG = 30.0
ROUNDS = 5
BRANCHES = 10
Store = Callable[[], Any]
Context = StepContext[Any, Any]
news = Signal("news", int)


@pytest.fixture(params=["memory", "sqlite", "mongodb"])
def store(request, tmp_path, monkeypatch) -> Store:
    """What each engine opens to reach the same runs."""
    if request.param == "memory":
        shared = MemoryStore(exclusive=False)
        return lambda: shared
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path}/runs.db"
    monkeypatch.setattr(_stream, "PATIENCE", 0.05)  # closing a change stream waits no longer than this
    url = request.getfixturevalue("databases").url()
    return lambda: url


@asynccontextmanager
async def opened(store: Store, *workflows: Workflow[Any, Any], count: int = 2) -> AsyncGenerator[list[Engine]]:
    """So many engines that run the workflows, each as a process of its own would."""
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(open_engine(store(), *workflows, lease=LEASE, poll_interval=0.1))
            for _ in range(count)
        ]
        with trio.fail_after(LONG):
            yield engines


async def all_at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What each of them gave, or raised, with all of them under way together."""
    outcomes: list[Any] = [None] * len(calls)

    async def call(place: int) -> None:
        try:
            outcomes[place] = await calls[place]()
        except InvalidState as refused:
            outcomes[place] = refused

    async with trio.open_nursery() as nursery:
        for place in range(len(calls)):
            nursery.start_soon(call, place)
    return outcomes


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Until it does; asked from time to time, as people do who share nothing but the store."""
    while not await holds():  # noqa: ASYNC110 - it is for what no event tells of
        await trio.sleep(0.02)


def through(engine: Engine, handle: RunHandle) -> RunHandle:
    return engine.run(handle.id)


async def test_one_key_started_through_every_engine(store):
    """S336: engines that know the same workflow, started under one key at once: one run, each step once."""
    calls = list[str]()
    may_end = trio.Event()
    flow: Workflow[Any, Any] = Workflow("flow")
    passing(flow, "one", calls=calls)

    @flow.step
    async def two(_ctx):
        calls.append("two")
        await may_end.wait()

    async with opened(store, flow, count=3) as engines:
        for number in range(ROUNDS):
            key = f"key {number}"
            may_end = trio.Event()  # a run that has settled leaves its key to the next start
            handles = await all_at_once(*(partial(e.start, flow, idempotency_key=key) for e in engines))
            assert len({handle.id for handle in handles}) == 1
            may_end.set()
            assert (await handles[0].wait()).recoveries == 0
        assert await engines[0].count() == ROUNDS
    assert Counter(calls) == {"one": ROUNDS, "two": ROUNDS}


async def test_due_runs_are_claimed_once_each(store):
    """S329, S330: what falls due for all workers at once is claimed by one each, none twice and none never."""
    flow: Workflow[Any, Any] = Workflow("flow")
    calls = list[str]()

    @flow.step
    async def step(ctx):
        calls.append(ctx.run_id)
        assert ctx._driver.run.head.fence == 1

    async with opened(store, flow, count=3) as engines, trio.open_nursery() as nursery:
        handles = list[RunHandle]()

        async def start(number: int) -> None:
            handles.append(await engines[number % 3].start(flow, delay=0.3))

        for number in range(24):
            nursery.start_soon(start, number)

        async def all_done() -> bool:
            return len(handles) == 24 and await engines[0].count(status="done") == 24

        await until(all_done)
    assert sorted(calls) == sorted(handle.id for handle in handles)


async def test_workers_with_few_places_serve_every_tenant(store):
    """Proves that several workers under pressure claim each run once, and that a tenant with one run among many of
    another has it begun before those are done."""
    begun = list[tuple[str | None, str]]()

    async def handler(ctx: Context) -> None:
        begun.append((ctx.tenant, ctx.run_id))
        await trio.sleep(0.02)

    flow = one_step(handler)
    flow.seal()
    shared = store_from(store())
    await shared.open()
    try:
        for number in range(61):
            tenant = "b" if number == 60 else "a"
            name = f"r{number:02}"
            origin = Origin(
                id=name, workflow="flow", start_id=number, created_at=number, input=b"\xc0", tenant=tenant
            )
            await shared.write([Insert(admit(StartRequest(origin=origin, state=b"\xc0"), flow.plan, number).run)])
    finally:
        await shared.aclose()
    options: dict[str, Any] = {"max_concurrent_runs": 2, "poll_interval": 0.1}
    async with open_engine(store(), flow, **options) as one, open_engine(store(), flow, **options):

        async def all_done() -> bool:
            return await one.count(status="done") == 61

        with trio.fail_after(LONG):
            await until(all_done)
    assert len(set(begun)) == len(begun) == 61
    assert begun.index(("b", "r60")) < 50


async def test_sleepers_wake_once(store):
    """S097, S103: a sleeper that falls due before three workers is woken by one, and not before its time."""
    flow: Workflow[Any, Any] = Workflow("flow")
    calls = list[tuple[str, str]]()

    @flow.step
    async def nap(ctx):
        calls.append(("entered", ctx.run_id))
        began = trio.current_time()
        await ctx.sleep(0.4)
        calls.append(("woken", ctx.run_id))
        assert trio.current_time() - began < 0.4, "the handler was entered again"

    async with opened(store, flow, count=3) as engines:
        began = trio.current_time()
        handles = [await engines[number % 3].start(flow) for number in range(9)]
        for handle in handles:
            run = await handle.wait()
            assert (run.status, run.steps["nap"].attempts, run.recoveries) == ("done", 1, 0)
        assert trio.current_time() - began >= 0.4
    assert Counter(name for name, _ in calls) == {"entered": 18, "woken": 9}
    assert len({run_id for name, run_id in calls if name == "woken"}) == 9


async def test_answers_through_two_engines(store):
    """S085: of two answers at once, through two engines, one counts; the other caller is told."""

    async def handler(ctx: Context) -> Any:
        return await ctx.wait("who decides?")

    flow = one_step(handler)
    async with opened(store, flow) as (one, two):
        for _ in range(ROUNDS):
            handle = await one.start(flow)
            await parked(handle)
            outcomes = await all_at_once(partial(handle.resume, "a"), partial(through(two, handle).resume, "b"))
            assert sum(isinstance(outcome, InvalidState) for outcome in outcomes) == 1
            assert await handle.result() == ("b" if outcomes[1] is None else "a")


async def test_signals_through_two_engines(store):
    """S111, S107: of signals emitted at once by two engines each arrives, once, and one wakes the run."""
    calls = list[int]()

    async def handler(ctx: Context) -> list[int]:
        got = [await ctx.wait_for(news), await ctx.wait_for(news)]
        calls.append(1)
        return got

    flow = one_step(handler)
    async with opened(store, flow) as (one, two):
        for _ in range(ROUNDS):
            handle = await one.start(flow)
            await parked(handle)
            await all_at_once(
                partial(one.emit, news, 1, run=handle, id="a"),
                partial(two.emit, news, 1, run=handle, id="a"),
                partial(two.emit, news, 2, run=handle, id="b"),
            )
            assert sorted(await handle.result()) == [1, 2]
    assert len(calls) == ROUNDS


async def test_a_broadcast_reaches_the_runs_of_all_workers(store):
    """S110: whoever waits gets it, whichever engine started it and whichever emits; once under one id."""

    async def handler(ctx: Context) -> int:
        return await ctx.wait_for(news)

    flow = one_step(handler)
    async with opened(store, flow, count=3) as engines:
        handles = [await engines[number % 3].start(flow) for number in range(9)]
        for handle in handles:
            await parked(handle)
        await all_at_once(*(partial(e.emit, news, 7, id="one") for e in engines))
        assert [await handle.result() for handle in handles] == [7] * 9


async def test_a_signal_against_the_timeout(store):
    """Whether the signal or the time-out is first, both see the same: what was taken is what the run returns."""

    async def handler(ctx: Context) -> int | None:
        try:
            return await ctx.wait_for(news, timeout=0.2)
        except WaitTimedOut:
            return None

    flow = one_step(handler)
    async with opened(store, flow) as (one, two):
        for number in range(ROUNDS):
            handle = await one.start(flow)
            await parked(handle)
            await trio.sleep(0.12 + number * 0.03)
            (refused,) = await all_at_once(partial(two.emit, news, 1, run=handle))
            run = await handle.wait()
            assert run.status == "done"
            assert run.output in {1, None}
            assert not (refused and run.output), "what was refused is not received"


async def test_a_cancel_against_an_answer(store):
    """Whichever is first through its engine counts; nobody is told that something was done which was not."""

    async def handler(ctx: Context) -> Any:
        return await ctx.wait("go?")

    flow = one_step(handler)
    async with opened(store, flow) as (one, two):
        for _ in range(ROUNDS):
            handle = await one.start(flow)
            await parked(handle)
            answered, cancelled = await all_at_once(
                partial(handle.resume, "go"), partial(through(two, handle).cancel, "no")
            )
            run = await handle.wait()
            assert run.status in {"done", "cancelled"}
            assert cancelled is None
            assert run.status == "cancelled" or answered is None


async def test_the_runs_of_a_crashed_worker(store):
    """S364, S366: an idle worker takes over every run of a dead one, once, and counts each recovery."""
    entered = list[tuple[str, int]]()

    async def handler(ctx: Context) -> int:
        entered.append((ctx.run_id, ctx.attempt))
        if ctx.attempt == 1:
            await trio.sleep_forever()
        return ctx.attempt

    flow = one_step(handler)
    async with opened(store, flow, count=1) as (doomed,):
        handles = [await doomed.start(flow) for _ in range(3)]

        async def all_entered() -> bool:
            return len(entered) == 3

        await until(all_entered)
        async with opened(store, flow) as (heir, _other):
            await crash(doomed)
            for handle in handles:
                run = await through(heir, handle).wait()
                assert (run.status, run.output, run.recoveries, run.fence) == ("done", 2, 1, 2)
    assert Counter(entered) == {(handle.id, attempt): 1 for handle in handles for attempt in (1, 2)}


async def test_a_worker_that_leaves_hands_its_runs_on(store):
    """S351: whoever leaves stops its handlers and gives the runs back; the next worker finishes them at once."""
    left = list[str]()

    async def handler(ctx: Context) -> str:
        if not left:
            try:
                await trio.sleep_forever()
            finally:
                left.append(ctx.run_id)
        return "done"

    flow = one_step(handler)
    async with open_engine(store(), flow, lease=60, drain_timeout=0) as first:
        handle = await first.start(flow)

        async def has_begun() -> bool:
            return "step" in (await handle.get()).steps

        await until(has_begun)
    assert left == [handle.id]
    async with opened(store, flow, count=1) as (second,):
        run = await through(second, handle).wait()
    assert (run.status, run.recoveries, run.steps["step"].attempts) == ("done", 0, 1)


async def test_a_run_that_nobody_here_knows(store):
    """S338: a worker leaves runs of workflows it was not given alone; whoever knows them drives them."""

    async def handler(_ctx: Context) -> str:
        return "done"

    known, other = one_step(handler), Workflow[Any, Any]("other")
    passing(other, "step")
    async with opened(store, other, count=1) as (stranger,):
        async with open_engine(store(), known, worker=False) as client:
            handle = await client.start(known)
        assert (await (await stranger.start(other)).wait()).status == "done"
        assert (await stranger.get(handle.id)).fence == 0
        async with opened(store, known, count=1) as (worker,):
            assert await through(worker, handle).result() == "done"


async def test_a_due_draft_runs_once_and_not_before(store):
    """S341, S342, S326: a start that is delayed waits for its time, and then one of the workers has it."""
    times = list[float]()

    async def handler(_ctx: Context) -> None:
        times.append(trio.current_time())

    flow = one_step(handler)
    async with opened(store, flow) as (one, two):
        began = trio.current_time()
        later = await one.start(flow, delay=3600)
        await (await two.start(flow, delay=0.3)).wait()
        assert (await later.get()).status == "draft"
    assert len(times) == 1
    assert times[0] - began >= 0.3


async def test_each_worker_takes_what_it_has_room_for(store):
    """S328: two workers with room for two runs each drive four at once, never more, and all in the end."""
    now, most = 0, 0

    async def handler(_ctx: Context) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await trio.sleep(0.15)
        now -= 1

    flow = one_step(handler)
    options: dict[str, Any] = {"max_concurrent_runs": 2, "poll_interval": 0.1}
    async with open_engine(store(), flow, **options) as one, open_engine(store(), flow, **options):
        with trio.fail_after(LONG):
            for handle in [await one.start(flow) for _ in range(12)]:
                assert (await handle.wait()).recoveries == 0
    assert 2 < most <= 4


async def test_what_another_worker_wrote_is_seen(store):
    """S335, S574: a run read through any engine is as it is stored, never as that engine knew it last."""
    flow: Workflow[Any, Any] = Workflow("flow", state=lambda _: {"n": 0})
    step_on = [trio.Event() for _ in range(3)]

    async def count(ctx: Context) -> int:
        await ctx.set(n=ctx.state["n"] + 1)
        await step_on[ctx.state["n"] - 1].wait()
        return int(ctx.state["n"])

    for name in ("a", "b", "c"):
        flow.add_step(name, count)
    async with opened(store, flow) as (one, two):
        handle = await one.start(flow)
        for number, event in enumerate(step_on, start=1):

            async def is_seen(number: int = number) -> bool:
                return bool((await through(two, handle).get()).state == {"n": number})

            await until(is_seen)
            event.set()
        assert await through(two, handle).result() == 3


async def test_a_worker_whose_questions_fail_goes_on(store):
    """S344: polls that fail for a while lose nothing: once they pass again, what is due is driven."""
    flow = one_step(_done)
    failing = FaultyStore(store_from(store()), frozenset(range(40)))
    async with open_engine(failing, flow, poll_interval=0.02) as worker:
        failing.armed = True
        async with open_engine(store(), flow, worker=False) as client:
            handle = await client.start(flow)
        with trio.fail_after(LONG):
            while True:
                try:
                    assert await worker.run(handle.id).result() == "done"
                    break
                except StoreUnavailable:
                    await trio.sleep(0.05)
    assert failing.calls > 40


async def _done(_ctx: Context) -> str:
    return "done"


async def test_a_join_is_carried_by_all_workers(store):
    """S228, S237: branches are driven by whichever worker, each once, and their parent hears of every end."""
    calls = list[int]()
    branch: Workflow[Any, Any] = Workflow("branch", input=int)

    @branch.step
    async def work(ctx: StepContext[int, int]) -> int:
        calls.append(ctx.input)
        await trio.sleep(0.02)
        return ctx.input * 2

    async def join(ctx: Context) -> list[int]:
        result = await ctx.join({f"b{n}": Branch(branch, n) for n in range(BRANCHES)})
        return [found.output for found in result.branches.values()]

    flow = one_step(join)
    async with opened(store, flow, branch) as engines:
        handles = await all_at_once(*(partial(engine.start, flow) for engine in engines))
        for handle in handles:
            assert await handle.result() == [2 * n for n in range(BRANCHES)]
    assert Counter(calls) == dict.fromkeys(range(BRANCHES), 2)


async def test_the_end_of_a_parent_reaches_descendants_everywhere(store):
    """S139, S239: three levels, each driven by a worker of its own, are all cancelled with the uppermost."""
    unwound = list[str]()

    async def hold(_ctx: Context) -> None:
        try:
            await trio.sleep_forever()
        finally:
            unwound.append("leaf")

    leaf, middle = Workflow[Any, Any]("leaf"), Workflow[Any, Any]("middle")
    leaf.add_step("hold", hold)

    @middle.step
    async def fan(ctx: Context) -> None:
        await ctx.join({"a": Branch(leaf), "b": Branch(leaf)})

    top = one_step(delegating(middle))
    options: dict[str, Any] = {"lease": LEASE, "poll_interval": 0.1}
    async with (
        open_engine(store(), top, **options) as engine,
        open_engine(store(), middle, **options),
        open_engine(store(), leaf, **options),
    ):
        with trio.fail_after(LONG):
            handle = await engine.start(top)

            async def all_begun() -> bool:
                return await engine.count(workflow="leaf", status="running") == 2

            await until(all_begun)
            await handle.cancel()

            async def all_cancelled() -> bool:
                return await engine.count(status="cancelled") == 4

            await until(all_cancelled)
    assert unwound == ["leaf", "leaf"]


def delegating(workflow: Workflow[Any, Any]) -> Callable[[Context], Any]:
    async def step(ctx: Context) -> Any:
        return await ctx.child(workflow)

    return step


async def test_a_nudge_of_a_worker_that_died_is_delivered_by_another(store):
    """S237: the worker that settled the child cannot tell its parent and dies; another one tells it in time."""
    quick = one_step(_done)
    waiting: Workflow[Any, Any] = Workflow("waiting")

    @waiting.step
    async def step(ctx: Context) -> Any:
        return await ctx.child(quick)

    def is_nudge(name: str, args: tuple[Any, ...]) -> bool:
        return name == "write" and any(
            isinstance(w, Update) and w.before.origin.workflow == "waiting" for w in args[0]
        )

    options: dict[str, Any] = {"lease": LEASE, "poll_interval": 0.1}
    async with open_engine(store(), waiting, **options) as engine:
        dying = BrokenStore(store_from(store()), is_nudge)
        async with open_engine(dying, quick, **options) as lost:
            dying.broken = True
            handle = await engine.start(waiting)
            with trio.fail_after(LONG):

                async def is_done() -> bool:
                    return await engine.count(workflow="flow", status="done") == 1

                await until(is_done)
            await crash(lost)
        assert (await handle.get()).status == "waiting"
        with trio.fail_after(LONG):
            assert await handle.result() == "done"


async def test_the_parts_of_a_step_that_changes_hands(store):
    """S129, S156: a dead worker's heir calls unfinished keys alone; an answer through another worker reaches it."""
    calls, killed = Counter[str](), trio.Event()

    async def handler(ctx: Context) -> Any:
        async def quick() -> str:
            calls["quick"] += 1
            await ctx.emit(news, 1, run=ctx.run_id)
            return "quick"

        async def waits() -> str:
            calls["waits"] += 1
            answer: str = await ctx.wait("word?", returns=str)
            return answer

        async def runs() -> int:
            calls["runs"] += 1
            if calls["runs"] == 1:
                killed.set()
                await trio.sleep_forever()
            return await ctx.wait_for(news)

        async def body(log: list[int], i: int) -> Next[list[int]] | Done[list[int]]:
            calls[f"turn {i}"] += 1
            await ctx.sleep(0.05)
            return Next([*log, i]) if i < 2 else Done(log)

        found = await ctx.scatter({"quick": quick, "waits": waits, "runs": runs}, concurrency=2)
        return [found, await ctx.loop([], body)]

    flow = one_step(handler)
    async with opened(store, flow, count=1) as (doomed,):
        handle = await doomed.start(flow)
        await killed.wait()
        await until(partial(_has_open_wait, handle))
        async with opened(store, flow) as (heir, client):
            await crash(doomed)
            await until(partial(_was_recovered, through(heir, handle)))
            await parked(through(heir, handle))
            await through(client, handle).resume("word")
            run = await through(client, handle).wait()
    assert run.output == [{"quick": "quick", "waits": "word", "runs": 1}, [0, 1]]
    assert (run.recoveries, run.steps["step"].attempts) == (1, 2)
    assert calls == {"quick": 1, "waits": 3, "runs": 3, "turn 0": 2, "turn 1": 2, "turn 2": 2}


async def _has_open_wait(handle: RunHandle) -> bool:
    wait = (await handle.get()).steps["step"].wait
    return wait is not None


async def _was_recovered(handle: RunHandle) -> bool:
    return (await handle.get()).recoveries == 1
