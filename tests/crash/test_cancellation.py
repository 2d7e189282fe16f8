"""Every public coroutine is a cancel point; what it has begun to write is carried out; the engine goes on."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from streamline_trio import (
    Approved,
    Branch,
    Done,
    Engine,
    MemoryStore,
    Recurrence,
    RunHandle,
    Schedule,
    ScheduleNotFound,
    Schedules,
    Signal,
    StepContext,
    Workflow,
    open_engine,
)
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.status import SETTLED
from streamline_trio._core.store import Insert, PutSide, Update
from streamline_trio._runtime.worker import WORKERS
from streamline_trio.testing import run
from streamline_trio.testing._time import START
from tests.crash.faulty_store import ParkingStore, When
from tests.crash.scenes import virtual

note = Signal("note", int)
TOKEN = "a token of the caller"  # noqa: S105 - it opens nothing but the wait of a test

_DAILY = Recurrence.daily("12:00", "UTC")

Call = Callable[[], Awaitable[object]]


_WORKFLOW: Workflow[str, str] = Workflow("work", input=str)


@_WORKFLOW.step(attempts=1, keep_outputs=1)
async def step(ctx: StepContext[str, str]) -> int:
    """Its input says what it does."""
    match ctx.input:
        case "parked" | "paused":
            answer: int = await ctx.wait("reason", returns=int, token=TOKEN)
            return answer
        case "asking":
            decision = await ctx.request_approval("reason", returns=int, token=TOKEN)
            return decision.data if isinstance(decision, Approved) else 0
        case "listening":
            return await ctx.wait_for(note)
        case "held":
            await trio.sleep(500)
        case "failed":
            raise ValueError("planned")
        case _:
            ctx.log("line")
    return 1


class Scene:
    """An engine on a store that can park writes, with run `r` in a state of one's choice."""

    def __init__(self, engine: Engine, store: ParkingStore, *, drives: bool) -> None:
        self.drives = drives
        self.engine = engine
        self.store = store
        self.handle: RunHandle = engine.run("r")
        self.revision = 0

    async def begin(self, state: str) -> None:
        """Bring the run into the state: what `step` makes of it, or a draft, or no run at all."""
        if state == "none":
            return
        if state in {"scheduled", "stopped"}:
            await self.engine.schedule(_WORKFLOW, "x", every=_DAILY, id="s")
            if state == "stopped":
                await self.engine.schedules.pause("s")
            return
        await self.engine.start(_WORKFLOW, state, run_id="r", delay=1000 if state == "draft" else None)
        await trio.testing.wait_all_tasks_blocked()
        if state == "paused":
            await self.handle.pause()
        if state == "twice":
            await self.handle.rewind("step")
            await self.handle.wait()
        self.revision = (await self.document()).head.revision

    async def document(self) -> RunDoc:
        """The run, as it is stored."""
        document: RunDoc = await self.store.inner.load("r")
        return document


@asynccontextmanager
async def scene(state: str, *, when: When = "before") -> AsyncIterator[Scene]:
    store = ParkingStore(MemoryStore(), when)
    async with open_engine(store, _WORKFLOW, worker=state != "undriven", drain_timeout=0) as engine:
        made = Scene(engine, store, drives=state != "undriven")
        await made.begin(state)
        try:
            yield made
        finally:
            store.release()


class Case:
    """One coroutine: the state it is called in, the call, and how to see its effect (None: it writes nothing)."""

    def __init__(
        self,
        state: str,
        call: Callable[[Scene], Call],
        took: Callable[[Scene], Awaitable[bool]] | None = None,
    ) -> None:
        self.state = state
        self.call = call
        self.took = took


def is_of_the_call(batch: list[Any]) -> bool:
    """Anything but a worker that signs on."""
    return any(not isinstance(write, PutSide) or write.kind != WORKERS for write in batch)


def reads(state: str, call: Callable[[Scene], Call]) -> Case:
    return Case(state, call)


def stored(holds: Callable[[RunDoc], bool]) -> Callable[[Scene], Awaitable[bool]]:
    async def took(scene: Scene) -> bool:
        return holds(await scene.document())

    return took


async def is_driven_to_its_end(scene: Scene) -> bool:
    with trio.fail_after(60):
        return (await scene.handle.wait()).status == "done"


async def is_written(scene: Scene) -> bool:
    return (await scene.document()).head.revision > scene.revision


async def is_deleted(scene: Scene) -> bool:
    return await scene.store.inner.load("r") is None


async def is_forked(scene: Scene) -> bool:
    await trio.testing.wait_all_tasks_blocked()
    page = await scene.engine.find(limit=10)
    return [run.status for run in page if run.forked_from is not None and run.forked_from.run == "r"] == ["done"]


def scheduled(holds: Callable[[Schedule], bool]) -> Callable[[Scene], Awaitable[bool]]:
    async def took(scene: Scene) -> bool:
        return holds(await scene.engine.schedules.get("s"))

    return took


async def is_unscheduled(scene: Scene) -> bool:
    with pytest.raises(ScheduleNotFound):
        await scene.engine.schedules.get("s")
    return True


async def is_run_once(scene: Scene) -> bool:
    await trio.sleep(20)
    return [run.status for run in await scene.engine.find(tags=[]) if run.scheduled is not None] == ["done"]


async def took_the_signal(scene: Scene) -> bool:
    return (await is_driven_to_its_end(scene)) and await scene.handle.result() == 5


ENGINE: dict[str, list[Case]] = {
    "start": [Case("none", lambda s: lambda: s.engine.start(_WORKFLOW, "x", run_id="r"), is_driven_to_its_end)],
    "schedule": [
        Case(
            "none",
            lambda s: lambda: s.engine.schedule(_WORKFLOW, "x", every=_DAILY, id="s"),
            scheduled(lambda schedule: not schedule.paused),
        )
    ],
    "get": [reads("done", lambda s: lambda: s.engine.get("r"))],
    "find": [reads("done", lambda s: s.engine.find)],
    "count": [reads("done", lambda s: s.engine.count)],
    "stats": [reads("done", lambda s: s.engine.stats)],
    "versions": [reads("done", lambda s: lambda: s.engine.versions("flow"))],
    "workers": [reads("done", lambda s: s.engine.workers)],
    "pending": [reads("parked", lambda s: s.engine.pending)],
    "delete": [Case("done", lambda s: s.engine.delete, is_deleted)],
    "cancel_all": [
        Case("parked", lambda s: s.engine.cancel_all, stored(lambda run: run.head.status == "cancelled")),
        Case("held", lambda s: s.engine.cancel_all, is_written),
    ],
    "retry_all": [Case("failed", lambda s: s.engine.retry_all, is_written)],
    "emit": [
        Case("listening", lambda s: lambda: s.engine.emit(note, 5, run="r"), took_the_signal),
        Case("listening", lambda s: lambda: s.engine.emit(note, 5), took_the_signal),
        Case("held", lambda s: lambda: s.engine.emit(note, 5, run="r"), stored(lambda run: len(run.inbox) == 1)),
    ],
    "resume": [Case("parked", lambda s: lambda: s.engine.resume(TOKEN, 5), took_the_signal)],
    "approve": [Case("asking", lambda s: lambda: s.engine.approve(TOKEN, 5), took_the_signal)],
    "reject": [Case("asking", lambda s: lambda: s.engine.reject(TOKEN), is_driven_to_its_end)],
    "withdraw": [
        Case("parked", lambda s: lambda: s.engine.withdraw(TOKEN), stored(lambda run: run.head.status != "waiting"))
    ],
}

OF_SCHEDULES: dict[str, list[Case]] = {
    "get": [reads("scheduled", lambda s: lambda: s.engine.schedules.get("s"))],
    "find": [reads("scheduled", lambda s: s.engine.schedules.find)],
    "preview": [reads("scheduled", lambda s: lambda: s.engine.schedules.preview("s"))],
    "pause": [Case("scheduled", lambda s: lambda: s.engine.schedules.pause("s"), scheduled(lambda s: s.paused))],
    "unpause": [
        Case("stopped", lambda s: lambda: s.engine.schedules.unpause("s"), scheduled(lambda s: not s.paused))
    ],
    "update": [
        Case(
            "scheduled",
            lambda s: lambda: s.engine.schedules.update("s", jitter=3),
            scheduled(lambda s: s.jitter == 3),
        )
    ],
    "delete": [Case("scheduled", lambda s: lambda: s.engine.schedules.delete("s"), is_unscheduled)],
    "run_now": [Case("scheduled", lambda s: lambda: s.engine.schedules.run_now("s"), is_run_once)],
}

HANDLE: dict[str, list[Case]] = {
    "get": [reads("done", lambda s: s.handle.get)],
    "wait": [reads("done", lambda s: s.handle.wait), reads("held", lambda s: s.handle.wait)],
    "result": [reads("done", lambda s: s.handle.result), reads("held", lambda s: lambda: s.handle.result(10))],
    "output": [reads("done", lambda s: lambda: s.handle.output("step"))],
    "logs": [reads("done", lambda s: s.handle.logs)],
    "progress": [reads("done", lambda s: s.handle.progress)],
    "tree": [reads("done", lambda s: s.handle.tree)],
    "timeline": [reads("done", lambda s: s.handle.timeline)],
    "metrics": [reads("done", lambda s: s.handle.metrics)],
    "stream": [reads("held", lambda s: lambda: s.handle.stream().__anext__())],
    "resume": [Case("parked", lambda s: lambda: s.handle.resume(5), took_the_signal)],
    "approve": [Case("asking", lambda s: lambda: s.handle.approve(5), took_the_signal)],
    "reject": [Case("asking", lambda s: s.handle.reject, is_driven_to_its_end)],
    "fork": [Case("done", lambda s: lambda: s.handle.fork("step"), is_forked)],
    "pin_output": [
        Case(
            "twice",
            lambda s: lambda: s.handle.pin_output(1, "step"),
            stored(lambda run: run.step("step").pinned == 1),
        )
    ],
    "withdraw": [
        Case("parked", lambda s: s.handle.withdraw, stored(lambda run: run.head.status != "waiting")),
    ],
    "cancel": [
        Case("parked", lambda s: s.handle.cancel, stored(lambda run: run.head.status == "cancelled")),
        Case("draft", lambda s: s.handle.cancel, stored(lambda run: run.head.status == "cancelled")),
        Case("held", lambda s: s.handle.cancel, stored(lambda run: run.head.cancel_requested)),
    ],
    "pause": [
        Case("parked", lambda s: s.handle.pause, stored(lambda run: run.head.paused)),
        Case("held", lambda s: s.handle.pause, stored(lambda run: run.head.paused)),
    ],
    "unpause": [Case("paused", lambda s: s.handle.unpause, stored(lambda run: not run.head.paused))],
    "rewind": [
        Case(
            "done", lambda s: lambda: s.handle.rewind("step"), stored(lambda run: run.step("step").generation == 1)
        )
    ],
    "retry": [Case("failed", lambda s: s.handle.retry, is_written)],
    "drive": [Case("undriven", lambda s: s.handle.drive, stored(lambda run: run.head.fence == 1))],
}

CASES = [
    pytest.param(case, id=f"{kind}.{name}-{case.state}-{place}")
    for kind, table in (("Engine", ENGINE), ("RunHandle", HANDLE), ("Schedules", OF_SCHEDULES))
    for name, cases in table.items()
    for place, case in enumerate(cases)
]
WRITERS = [param for param in CASES if param.values[0].took is not None]  # type: ignore[union-attr]  # a Case


def coroutines(of: type) -> set[str]:
    """The names of the public coroutines (and async generators) of a class."""
    return {
        name
        for name, member in inspect.getmembers(of)
        if not name.startswith("_") and (inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member))
    }


async def still_works(made: Scene) -> None:
    """The engine starts and ends another run."""
    with trio.fail_after(60):
        if made.drives:
            assert await (await made.engine.start(_WORKFLOW, "other", run_id="other")).result() == 1
        else:
            handle = await made.engine.start(_WORKFLOW, "other", run_id="other")
            assert (await handle.drive()).status == "done"


def test_every_coroutine_has_its_case():
    """Proves that no public coroutine is left out here."""
    assert set(ENGINE) == coroutines(Engine)
    assert set(HANDLE) == coroutines(RunHandle)
    assert set(OF_SCHEDULES) == coroutines(Schedules)
    assert set(IN_HANDLER) == coroutines(StepContext)


@pytest.mark.parametrize("case", CASES)
@virtual
async def test_a_coroutine_in_a_cancelled_scope_is_cancelled(case):
    """Proves that the coroutine is a cancel point: in a cancelled scope it raises `Cancelled`, not later."""
    async with scene(case.state) as made:
        with trio.CancelScope() as scope:
            scope.cancel()
            await case.call(made)()
        assert scope.cancelled_caught
        await still_works(made)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("case", WRITERS)
@virtual
async def test_a_write_that_was_begun_is_carried_out(case, when):
    """Proves that a caller cancelled while its write is under way is free at once, and that it takes effect."""
    async with scene(case.state, when=when) as made, trio.open_nursery() as nursery:
        made.store.close(is_of_the_call)
        scope = trio.CancelScope()
        returned: list[object] = []

        async def call() -> None:
            with scope:
                returned.append(await case.call(made)())

        nursery.start_soon(call)
        with trio.fail_after(10):
            await made.store.parked.wait()
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert scope.cancelled_caught
        assert not returned
        made.store.release()
        await trio.testing.wait_all_tasks_blocked()
        assert await case.took(made)
        await still_works(made)


@pytest.mark.parametrize("case", WRITERS)
@virtual
async def test_a_call_cancelled_at_any_point_takes_effect_or_not_at_all(case):
    """Proves that wherever a call is cancelled its effect is whole: seen by the store, or never; and made once."""
    for steps in range(12):
        async with scene(case.state) as made:
            before = made.revision
            finished = False
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cancel_after, steps, scope)
                    await case.call(made)()
                    finished = True
            await trio.testing.wait_all_tasks_blocked()
            document = await made.store.inner.load("r")
            if finished or (document is not None and document.head.revision != before):
                assert await case.took(made)
            await still_works(made)


async def cancel_after(steps: int, scope: trio.CancelScope) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


@pytest.mark.parametrize("verb", ["start", "drive"])
@virtual
async def test_whoever_is_cancelled_leaves_no_place_taken(verb):
    """Proves that the place a cancelled start or drive had reserved is free again once its run has ended."""
    store = ParkingStore(MemoryStore())
    async with open_engine(store, _WORKFLOW, worker=verb == "start", max_concurrent_runs=1) as engine:
        for number in range(5):
            handle = engine.run(f"r{number}")
            if verb == "drive":
                await engine.start(_WORKFLOW, "x", run_id=handle.id)
            store.close(lambda batch: any(isinstance(write, Insert | Update) for write in batch))
            with trio.move_on_after(1) as scope:
                if verb == "start":
                    await engine.start(_WORKFLOW, "x", run_id=handle.id)
                else:
                    await handle.drive()
            assert scope.cancelled_caught
            store.release()
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(60):
                if verb == "drive":
                    await handle.drive()
                assert (await handle.wait()).status == "done"
        assert (await engine.stats()).driving == 0


@virtual
async def test_a_cancelled_drive_hands_the_run_back_also_while_it_claims():
    """Proves that `drive` cancelled during its claim does not drive the run behind its caller's back."""
    store = ParkingStore(MemoryStore())
    async with open_engine(store, _WORKFLOW, worker=False) as engine:
        handle = await engine.start(_WORKFLOW, "held")
        store.close(is_of_the_call)
        with trio.move_on_after(1):
            await handle.drive()
        store.release()
        await trio.testing.wait_all_tasks_blocked()
        document = await handle.get()
        assert (document.status, document.lease, document.recoveries) == ("running", None, 0)
        with trio.move_on_after(1):
            await handle.drive()
        await trio.testing.wait_all_tasks_blocked()
        document = await handle.get()
        assert (document.lease, document.steps["step"].attempts) == (None, 1)


@virtual
async def test_a_broadcast_goes_out_although_its_emitter_is_cancelled():
    """Proves that once a broadcast is stored it reaches all who wait, whatever becomes of the emitter."""
    for steps in range(14):
        store = MemoryStore()
        async with open_engine(store, _WORKFLOW) as engine:
            handles = [await engine.start(_WORKFLOW, "listening") for _ in range(3)]
            await trio.testing.wait_all_tasks_blocked()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cancel_after, steps, scope)
                    await engine.emit(note, 4, id="one")
            await trio.testing.wait_all_tasks_blocked()
            states = {(await handle.get()).status for handle in handles}
            assert states == ({"done"} if await store.sides("broadcast") else {"waiting"})


# --- in a handler --------------------------------------------------------------------------------------------

Ctx = StepContext[Any, dict[str, Any]]


async def _fn() -> int:
    await trio.lowlevel.checkpoint()
    return 2


async def _body(_state: int, _iteration: int) -> Done[int]:
    await trio.lowlevel.checkpoint()
    return Done(2)


IN_HANDLER: dict[str, Callable[[Ctx], Awaitable[object]]] = {
    "set": lambda ctx: ctx.set(key=1),
    "checkpoint": lambda ctx: ctx.checkpoint(1),
    "once": lambda ctx: ctx.once("key", _fn),
    "heartbeat": lambda ctx: ctx.heartbeat(),
    "sleep": lambda ctx: ctx.sleep(5),
    "sleep_until": lambda ctx: ctx.sleep_until(START.add(seconds=5)),
    "wait": lambda ctx: ctx.wait("reason", returns=int, timeout=5),
    "request_approval": lambda ctx: ctx.request_approval("reason", timeout=5),
    "wait_for": lambda ctx: ctx.wait_for(note, timeout=5),
    "pin_output": lambda ctx: ctx.pin_output(1, "step"),
    "child": lambda ctx: ctx.child(_WORKFLOW, "x"),
    "join": lambda ctx: ctx.join({"a": Branch(_WORKFLOW, "x")}),
    "goto": lambda ctx: ctx.goto("end"),
    "scatter": lambda ctx: ctx.scatter({"key": _fn}),
    "loop": lambda ctx: ctx.loop(0, _body),
    "emit": lambda ctx: ctx.emit("heard", 1, run=ctx.run_id),
}
KEPT: dict[str, Callable[[RunDoc], bool]] = {
    "set": lambda run: b"key" in run.state,
    "checkpoint": lambda run: "step/default" in run.checkpoints,
    "once": lambda run: "key" in run.memos,
}


def handler_workflow(body: Callable[[Ctx], Awaitable[None]]) -> Workflow[Any, Any]:
    workflow: Workflow[Any, Any] = Workflow("handler")

    async def step(ctx: Ctx) -> None:
        await body(ctx)

    async def end(_ctx: Ctx) -> str:
        return "ended"

    workflow.add_step("step", step, attempts=1)
    workflow.add_step("end", end)
    return workflow


@pytest.mark.parametrize("name", IN_HANDLER)
@virtual
async def test_a_context_coroutine_in_a_cancelled_scope_is_cancelled(name):
    """Proves that in a handler's own cancelled scope each coroutine stops there, and the run goes on to its end."""
    caught: list[bool] = []

    async def body(ctx: Ctx) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await IN_HANDLER[name](ctx)
        caught.append(scope.cancelled_caught)

    workflow = handler_workflow(body)
    async with open_engine(MemoryStore(), workflow) as engine:
        with trio.fail_after(100):
            assert await (await engine.start(workflow, {})).result() == "ended"
    assert caught == ([] if name == "goto" else [True])


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", KEPT)
@virtual
async def test_what_a_handler_has_begun_to_keep_is_kept(name, when):
    """Proves that a handler cancelled within while its write is under way goes on, and what it wrote is there."""
    store = ParkingStore(MemoryStore(), when)
    results: list[object] = []

    async def body(ctx: Ctx) -> None:
        store.close()
        with trio.move_on_after(1) as scope:
            await IN_HANDLER[name](ctx)
        assert scope.cancelled_caught
        store.release()
        if name == "once":
            results.append(await ctx.once("key", lambda: 99))
            results.append(await ctx.once("key", lambda: 98))
        elif name == "set":
            assert ctx.state["key"] == 1
            await ctx.set(other=2)

    workflow = handler_workflow(body)
    async with open_engine(store, workflow) as engine:
        handle = await engine.start(workflow, {})
        assert await handle.result() == "ended"
        document = await store.inner.load(handle.id)
        assert KEPT[name](document) or name == "checkpoint"
        if name == "once":
            assert results == [2, 2], "the first result is the one that is remembered"
        if name == "set":
            assert (await handle.get()).state == {"key": 1, "other": 2}


@virtual
async def test_a_step_timeout_during_a_write_leaves_the_run_whole():
    """Proves that a step that times out while its write is under way fails its attempt, the write kept."""
    store = ParkingStore(MemoryStore())
    workflow: Workflow[Any, Any] = Workflow("handler")

    @workflow.step(timeout=2, attempts=2, retry_delay=0)
    async def step(ctx: Ctx) -> int:
        if ctx.attempt == 1:
            store.close()
            await ctx.set(key=1)
        return int(ctx.state["key"])

    async with open_engine(store, workflow) as engine, trio.open_nursery() as nursery:
        handle = await engine.start(workflow, {})

        async def release() -> None:
            await store.parked.wait()
            await trio.sleep(10)
            store.release()

        nursery.start_soon(release)
        assert await handle.result() == 1
        assert (await handle.get()).steps["step"].attempts == 2


def test_after_all_of_it_settles():
    """Proves that a run whose every caller was cancelled settles all the same."""
    statuses: list[str] = []

    async def main() -> None:
        async with scene("listening") as made:
            for verb in (made.handle.pause, made.handle.unpause, made.handle.wait, made.handle.cancel):
                with trio.CancelScope() as scope:
                    made.store.close()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(verb)
                        await trio.testing.wait_all_tasks_blocked()
                        scope.cancel()
                made.store.release()
                await trio.testing.wait_all_tasks_blocked()
            statuses.append((await made.handle.wait()).status)

    run(main)
    assert set(statuses) <= SETTLED
    assert statuses == ["cancelled"]
