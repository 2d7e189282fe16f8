"""Debounces: starts that follow each other become one run, with the input of the last of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import trio

from streamline_trio import (
    Branch,
    Debounce,
    Engine,
    InvalidState,
    MemoryStore,
    Recurrence,
    Run,
    RunHandle,
    Signal,
    StepContext,
    StoreUnavailable,
    Trigger,
    ValidationError,
    Workflow,
    open_engine,
)
from streamline_trio._core.broadcasts import BROADCASTS, decode_broadcast
from streamline_trio._core.decide import StartRequest, admit, decide
from streamline_trio._core.documents import Origin, active_key
from streamline_trio._core.happenings import Bumped
from streamline_trio._core.schedules import SCHEDULES, ScheduleDoc
from streamline_trio._core.store import PutSide
from streamline_trio._runtime.pacing import debounced as with_key
from streamline_trio._runtime.starting import StartOptions, start
from streamline_trio.testing import WrappedStore, crash
from tests.integration.test_writes import Counting
from tests.scenarios.worlds import at_rest, between, idle, in_virtual_time

Context = StepContext[Any, Any]


def debounced(window: float, **options: Any) -> tuple[Workflow[Any, Any], list[Any]]:
    """A workflow of one step, and when its runs ran on trio's clock, with their inputs."""
    key, longest = options.pop("key", None), options.pop("max_wait", None)
    workflow: Workflow[Any, Any] = Workflow("flow", debounce=Debounce(window, key, longest), **options)
    calls: list[Any] = []

    @workflow.step
    async def step(ctx: Context) -> Any:
        assert ctx.input == ctx.state, "the first state is made of the last input"
        calls.append((trio.current_time(), ctx.input))
        return ctx.input

    return workflow, calls


async def start_every(
    seconds: float, engine: Engine, workflow: Workflow[Any, Any], values: list[Any]
) -> list[RunHandle]:
    handles = list[RunHandle]()
    for value in values:
        handles.append(await engine.start(workflow, value))
        await trio.sleep(seconds)
    return handles


def due_in(run: Run) -> float:
    """Seconds from its creation until it is due."""
    return between(run.created_at, run.due_at)


@in_virtual_time
async def test_a_first_start_is_a_draft_that_waits():
    """S297: Proves that one start is a pending draft, due after its window, and is told to be debounced."""
    flow, calls = debounced(30)
    async with open_engine("memory:", flow) as engine:
        run = await at_rest(await engine.start(flow))
        assert (run.status, run.held_by, due_in(run)) == ("draft", "debounce", 30)
        assert calls == []


@in_virtual_time
async def test_each_start_puts_it_off():
    """S299: Proves that a second start makes the same draft due later, a window from then."""
    flow, _ = debounced(10)
    async with open_engine("memory:", flow) as engine:
        first = await (await engine.start(flow, 1)).get()
        await trio.sleep(0.05)
        second = await (await engine.start(flow, 2)).get()
        assert (second.id, second.input, second.state) == (first.id, 2, 2)
        assert between(first.due_at, second.due_at) == pytest.approx(0.05)


@in_virtual_time
async def test_keys_are_independent():
    """S300: Proves that each key has a draft of its own."""
    flow, calls = debounced(30, key=lambda value: value["user"])
    async with open_engine("memory:", flow) as engine:
        handles = [await engine.start(flow, {"user": user}) for user in ("u-1", "u-1", "u-2")]
        assert handles[0].id == handles[1].id != handles[2].id
        assert await engine.count() == 2
        for handle in handles:
            await handle.wait()
    assert len(calls) == 2


@in_virtual_time
async def test_without_a_key_there_is_one_draft():
    """S301: a debounce needs no key here: Proves that without one all starts of the workflow become one run."""
    flow, calls = debounced(30)
    async with open_engine("memory:", flow) as engine:
        handles = [await engine.start(flow, value) for value in ("u-1", "u-2")]
        assert handles[0].id == handles[1].id
        await handles[0].wait()
    assert calls == [(30, "u-2")]


def test_the_tenant_survives_a_bump():
    """S302: Proves that a bump replaces input and state and leaves the tenant; tenants never share a draft."""
    flow, _ = debounced(30)
    flow.seal()

    def first(tenant: str | None) -> Any:
        origin = Origin(id="r", workflow="flow", start_id=1, created_at=1, input=b"\x01", tenant=tenant)
        return admit(with_key(StartRequest(origin=origin, state=b"\x01"), flow), flow.plan, 1).run

    bumped = decide(first("org-A"), Bumped(input=b"\x02", state=b"\x02"), flow.plan, 5, 7).run
    assert (bumped.origin.tenant, bumped.origin.input, bumped.state) == ("org-A", b"\x02", b"\x02")
    assert bumped.origin == msgspec.structs.replace(first("org-A").origin, input=b"\x02")
    assert len({active_key(first(tenant)) for tenant in ("org-A", "org-B", None)}) == 3


@in_virtual_time
async def test_parallel_bumps_keep_one_draft():
    """S304: Proves that of twenty starts at once on a draft all get its id and it has the input of the last."""
    flow, calls = debounced(10)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow, -1)
        await trio.sleep(3)
        ids = set[str]()
        order = list[int]()

        async def start(value: int) -> None:
            order.append(value)
            ids.add((await engine.start(flow, value)).id)

        async with trio.open_nursery() as nursery:
            for value in range(20):
                nursery.start_soon(start, value)
        run = await handle.get()
        assert ids == {handle.id}
        assert await engine.count() == 1
        assert (run.input, due_in(run)) == (order[-1], 13)
        await handle.wait()
    assert calls == [(13, order[-1])]


@pytest.mark.parametrize("count", [2, 20])
@in_virtual_time
async def test_parallel_first_starts_make_one_draft(count):
    """S305: Proves that of starts at once without a draft one makes it and the others find it."""
    flow, calls = debounced(10)
    store = Counting(MemoryStore())
    async with open_engine(store, flow) as engine:  # type: ignore[arg-type]  # it has the methods by name
        ids = set[str]()

        async def start(value: int) -> None:
            ids.add((await engine.start(flow, value)).id)

        async with trio.open_nursery() as nursery:
            for value in range(count):
                nursery.start_soon(start, value)
        assert len(ids) == await engine.count() == 1
        # Those that come together are written together.
        assert store.writes["Insert"] + store.writes["Update"] <= 3
        assert store.refused == {}
        await engine.run(ids.pop()).wait()
    assert len(calls) == 1


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_it_fires_once_with_the_last_input(kind, tmp_path):
    """S306: Proves in real time that five starts in a row run once, with the fifth input, a window later."""
    flow, calls = debounced(1.0)
    store = "memory:" if kind == "memory" else f"sqlite:///{tmp_path}/runs.db"
    async with open_engine(store, flow, poll_interval=0.05) as engine:
        await start_every(0.02, engine, flow, list(range(4)))
        last = trio.current_time()
        await (await engine.start(flow, 4)).wait()
        assert await engine.count() == 1
    ((at, value),) = calls
    assert value == 4
    assert at - last >= 0.99


@in_virtual_time
async def test_it_waits_no_longer_than_max_wait():
    """Proves that a key that is started without pause runs all the same, and then opens a new window."""
    flow, calls = debounced(10, max_wait=25)
    async with open_engine("memory:", flow) as engine:
        handles = await start_every(6, engine, flow, list(range(10)))
        await handles[-1].wait()
    assert calls == [(25, 4), (55, 9)]
    assert len({handle.id for handle in handles}) == 2


@in_virtual_time
async def test_a_start_after_the_end_of_the_window_opens_another():
    """Proves that a draft that has fired, and one that was cancelled, take no further start."""
    flow, calls = debounced(10)
    async with open_engine("memory:", flow) as engine:
        first = await engine.start(flow, 1)
        await first.wait()
        second = await engine.start(flow, 2)
        await second.cancel()
        third = await engine.start(flow, 3)
        await third.wait()
        assert len({first.id, second.id, third.id}) == 3
        assert (await second.get()).status == "cancelled"
    assert calls == [(10, 1), (20, 3)]


class _Slow(WrappedStore):
    """Once asked to, it looks for a pending draft for two seconds."""

    is_slow = False

    async def around(self, name: str, args: tuple[Any, ...], act: Any) -> Any:  # noqa: ARG002 - the protocol's
        if name == "by_active_key" and self.is_slow:
            await trio.sleep(2)
        return await act()


@in_virtual_time
async def test_a_draft_is_not_older_than_its_window():
    """Proves that a start that found the window over is created then, and not before the run that fired."""
    flow, _ = debounced(10)
    store = _Slow(MemoryStore())
    async with open_engine(store, flow) as engine:
        first = await engine.start(flow, 1)
        await trio.sleep(9)
        store.is_slow = True
        second = await (await engine.start(flow, 2)).get()
        assert second.id != first.id
        assert between((await first.wait()).started_at, second.created_at) == 1


@in_virtual_time
async def test_a_trigger_that_is_repeated_adopts_its_run():
    """Proves that who goes on with a broadcast that opened a window finds its run, also once that has begun."""
    flow, calls = debounced(10)
    async with open_engine("memory:", flow) as engine:
        options = StartOptions(run_id="r", emission="broadcast")
        for _ in range(2):
            assert await start(engine._machinery, flow, 1, options) == "r"
            await trio.sleep(20)
    assert calls == [(10, 1)]


@in_virtual_time
async def test_while_it_runs_the_next_window_is_open():
    """Proves that a run that waits for long keeps nobody from the next one."""
    flow: Workflow[Any, Any] = Workflow("flow", debounce=Debounce(10))

    @flow.step
    async def step(ctx: Context) -> None:
        await ctx.sleep(1_000)

    async with open_engine("memory:", flow) as engine:
        first = await engine.start(flow)
        await trio.sleep(20)
        second = await engine.start(flow)
        assert first.id != second.id
        await trio.sleep(20)
        assert await engine.count(status="waiting") == 2


@in_virtual_time
async def test_a_paused_draft_takes_starts_and_fires_when_it_goes_on():
    """Proves that bumps reach a paused draft, that it does not begin, and that unpausing lets it go on."""
    flow, calls = debounced(10)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow, 1)
        await handle.pause()
        assert (await engine.start(flow, 2)).id == handle.id
        await trio.sleep(100)
        assert (await handle.get()).status == "draft"
        assert (await engine.start(flow, 3)).id == handle.id
        await handle.unpause()
        await handle.wait()
    assert calls == [(110, 3)]


@in_virtual_time
async def test_retry_and_fork_are_not_debounced_again():
    """Proves that a run that has run goes on at once when it is taken up, and its fork begins at once."""
    flow: Workflow[Any, Any] = Workflow("flow", debounce=Debounce(10))
    calls = list[float]()

    @flow.step(attempts=1)
    async def step(_ctx: Context) -> None:
        calls.append(trio.current_time())
        if len(calls) == 1:
            raise ValueError("planned")

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        assert (await handle.wait()).status == "failed"
        pending = await engine.start(flow)
        await handle.retry()
        await handle.wait()
        await (await handle.fork(step)).wait()
        assert calls == [10, 10, 10]
        await pending.wait()
    assert calls == [10, 10, 10, 20]


@in_virtual_time
async def test_children_are_runs_of_their_own():
    """Proves that a child is not debounced: its parent waits for that very run."""
    flow, calls = debounced(10)
    parent: Workflow[Any, Any] = Workflow("parent")

    @parent.step
    async def joins(ctx: Context) -> Any:
        joined = await ctx.join({str(number): Branch(flow, number) for number in range(3)})
        return sorted(branch.output for branch in joined.branches.values())

    async with open_engine("memory:", flow, parent) as engine:
        assert await (await engine.start(parent)).result() == [0, 1, 2]
    assert len(calls) == 3


@in_virtual_time
async def test_what_several_starts_cannot_share_is_refused():
    """Proves that a debounced start takes no key and no time of its own, and that nothing is stored then."""
    flow, _ = debounced(10)
    async with open_engine("memory:", flow) as engine:
        bad: list[dict[str, Any]] = [
            {"idempotency_key": "k"},
            {"delay": 1},
            {"run_at": datetime(2030, 1, 1, tzinfo=UTC)},
        ]
        for options in bad:
            with pytest.raises(ValidationError, match="a debounced start takes no"):
                await engine.start(flow, **options)
        assert await engine.count(workflow="flow") == 0


@in_virtual_time
async def test_a_run_id_is_that_of_the_start_that_opens_the_window():
    """Proves that an id names a new draft only, and that one in use is refused to its start and to no other."""
    flow, _ = debounced(10)
    async with open_engine("memory:", flow) as engine:
        assert (await engine.start(flow, 1, run_id="a", tags=["t"])).id == "a"
        assert (await engine.start(flow, 2, run_id="b", tags=["u"])).id == "a"
        run = await engine.get("a")
        assert (run.input, run.tags) == (2, ("t",))
        await engine.run("a").wait()
        errors = list[Exception]()
        ids = list[str]()

        async def start(**options: Any) -> None:
            try:
                ids.append((await engine.start(flow, 3, **options)).id)
            except InvalidState as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: start(run_id="a"))
            for _ in range(3):
                nursery.start_soon(start)
        # In whatever order they came: the start that asked for it either opened the window or joined another's.
        assert len(ids) + len(errors) == 4
        assert len(set(ids)) == 1
        assert len(errors) <= 1
        assert ids[0] != "a"


@in_virtual_time
async def test_a_clock_that_is_behind_makes_nothing_due_sooner():
    """S304: Proves that the due time is the latest that any start has asked for, whatever its clock says."""
    flow, _ = debounced(10)
    flow.seal()
    origin = Origin(id="r", workflow="flow", start_id=1, created_at=100_000, input=b"\x01")
    run = admit(with_key(StartRequest(origin=origin, state=b"\x01"), flow), flow.plan, 100_000).run
    run = decide(run, Bumped(input=b"\x02", state=b"\x02"), flow.plan, 98_000, 7).run
    assert (run.head.due_at, run.origin.input) == (110_000, b"\x02")
    await trio.lowlevel.checkpoint()


@in_virtual_time
async def test_the_latest_start_brings_its_version():
    """Proves that a start of a newer version takes the draft along: it has the newer input, state and steps."""
    store = MemoryStore()
    old: Workflow[Any, Any] = Workflow("flow", version="1.0.0", debounce=Debounce(10), input=int)
    old.add_step("old", lambda _ctx: "old")
    new: Workflow[Any, Any] = Workflow("flow", version="2.0.0", debounce=Debounce(20), input=str)
    new.add_step("new", lambda _ctx: "new")
    async with open_engine(store, old) as one, open_engine(store, new) as two:
        handle = await one.start(old, 1)
        await trio.sleep(1)
        assert (await two.start(new, "two")).id == handle.id
        run = await two.run(handle.id).wait()
        assert (run.version, run.input, run.output) == ("2.0.0", "two", "new")
        assert between(run.created_at, run.started_at) == 21


@in_virtual_time
async def test_the_latest_start_brings_what_cancels_it():
    """Proves that a draft is cancelled by the signals of the version that it has by its last start."""
    old: Workflow[Any, Any] = Workflow("flow", version="1.0.0", debounce=Debounce(10))
    new: Workflow[Any, Any] = Workflow("flow", version="2.0.0", debounce=Debounce(10), cancel_on=["stop"])
    for flow in (old, new):
        flow.add_step("step", lambda ctx: ctx.input)
    store = MemoryStore()
    async with open_engine(store, old) as one, open_engine(store, new) as two:
        handle = await one.start(old, 1)
        await two.start(new, 2)
        await two.emit("stop")
        assert (await at_rest(handle)).status == "cancelled"


@in_virtual_time
async def test_the_timeout_counts_from_when_it_fires():
    """Proves that bumps move the run's own deadline too."""
    flow: Workflow[Any, Any] = Workflow("flow", debounce=Debounce(10), timeout=15)

    @flow.step
    async def step(ctx: Context) -> None:
        await ctx.sleep(10)

    async with open_engine("memory:", flow) as engine:
        handles = await start_every(8, engine, flow, [1, 2, 3, 4])
        assert (await handles[0].wait()).status == "done"


@in_virtual_time
async def test_a_pending_draft_outlives_its_engine():
    """Proves that a draft that was acknowledged fires on whatever worker comes, and takes starts meanwhile."""
    store = MemoryStore()
    flow, calls = debounced(10)
    async with open_engine(store, flow) as engine:
        handle = await engine.start(flow, 1)
        await crash(engine)
    async with open_engine(store, flow, worker=False) as client:
        await trio.sleep(50)
        assert (await client.start(flow, 2)).id == handle.id
    async with open_engine(store, flow) as engine:
        await engine.run(handle.id).wait()
    assert calls == [(60, 2)]


@in_virtual_time
async def test_a_caller_that_is_cancelled_takes_nobody_along():
    """Proves that the start of a cancelled caller is carried out or not, and those that came with it are told."""
    flow, _ = debounced(10)
    async with open_engine("memory:", flow) as engine:
        ids = list[str]()

        async def start() -> None:
            ids.append((await engine.start(flow)).id)

        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def gives_up() -> None:
                with scope:
                    await engine.start(flow)

            nursery.start_soon(gives_up)
            nursery.start_soon(start)
            await trio.lowlevel.checkpoint()
            scope.cancel()
        assert len(ids) == 1
        assert await engine.count() == 1
        await idle()


async def test_after_the_end_a_debounced_start_is_refused():
    """Proves that whoever starts through an engine that has closed is told so, and does not wait for ever."""
    flow, _ = debounced(10)
    async with open_engine("memory:", flow) as engine:
        pass
    with pytest.raises(InvalidState, match="closed"):
        await engine.start(flow)


# --- triggers and schedules ----------------------------------------------------------------------------------

saved = Signal("saved", int)


class Forgetful(WrappedStore):
    """What became of a broadcast, or of a firing, cannot be written; `kind` says of which."""

    def __init__(self, inner: Any, kind: str) -> None:
        super().__init__(inner)
        self._kind = kind

    async def around(self, name: str, args: tuple[Any, ...], act: Any) -> Any:
        if name == "write" and any(self._is_note(write) for write in args[0]):
            raise StoreUnavailable("no answer")
        return await act()

    def _is_note(self, write: Any) -> bool:
        if not isinstance(write, PutSide) or write.kind != self._kind or write.expected is None:
            return False
        return self._kind != SCHEDULES or not msgspec.msgpack.decode(write.body or b"", type=ScheduleDoc).pending


@in_virtual_time
async def test_broadcasts_become_one_draft():
    """S312: five events are one draft, which fires once with the last, in each tenant that they are of."""
    flow, calls = debounced(5, trigger=Trigger(saved))
    async with open_engine("memory:", flow) as engine:
        for number in range(5):
            for tenant in ("a", "b"):
                await engine.emit(saved, number, tenant=tenant)
            await trio.sleep(1)
        assert await engine.count() == 2
        await trio.sleep(10)
        assert [value for _, value in calls] == [4, 4]
        assert {run.tenant for run in await engine.find()} == {"a", "b"}


@pytest.mark.parametrize("is_first", [True, False])
@in_virtual_time
async def test_a_broadcast_that_is_repeated_opens_no_second_window(is_first):
    """Proves that one that its worker could not note is in the run that it went into, also once that has fired."""
    flow, calls = debounced(5, trigger=Trigger(saved))
    errors: list[Any] = []
    inner = MemoryStore(exclusive=False)
    async with open_engine(inner, flow) as other:
        other.on("engine.error", errors.append)
        async with open_engine(Forgetful(inner, BROADCASTS), flow) as first:
            if not is_first:
                await other.emit(saved, 1)
            with trio.move_on_after(1):
                await first.emit(saved, 2, id="told")
            await trio.sleep(1)
            await crash(first)
        (run,) = await other.find()
        assert (run.status, run.input) == ("draft", 2)
        await trio.sleep(8)
        assert [value for _, value in calls] == [2]
        assert await other.delete() == 0, "who repeats it must find the run"
        await other.start(flow, 3)
        await trio.sleep(100)
        assert [value for _, value in calls] == [2, 3]
        assert decode_broadcast((await inner.sides(BROADCASTS))[0].body).done
    assert not errors


@in_virtual_time
async def test_a_firing_that_is_repeated_opens_no_second_window():
    """Proves the same of a schedule, whose worker dies before it could note that the firing has put off a draft."""
    flow, calls = debounced(5)
    inner = MemoryStore(exclusive=False)
    async with open_engine(inner, flow, worker=False) as client:
        await client.schedule(flow, 2, every=Recurrence.every(100, count=1), id="s")
        async with open_engine(Forgetful(inner, SCHEDULES), flow) as first:
            await trio.sleep(99)
            pending = await first.start(flow, 1)
            await trio.sleep(4)
            await crash(first)
        async with open_engine(inner, flow):
            await trio.sleep(100)
            schedule = await client.schedules.get("s")
            assert [value for _, value in calls] == [2]
            assert (schedule.fired, schedule.last_run) == (1, pending.id)
