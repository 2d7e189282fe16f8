"""Events: order, names, filters, revisions, frames, and one end of each run (S421 to S436, S453)."""

from collections import Counter
from typing import Any

import pytest
import trio

from streamline_trio import (
    Engine,
    Event,
    MemoryStore,
    Run,
    StepContext,
    ValidationError,
    Workflow,
    open_engine,
)
from streamline_trio._core.codec import split
from streamline_trio._core.events import EVENTS
from tests.scenarios.test_several_workers import opened, store  # noqa: F401 - a fixture
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, passing

Context = StepContext[Any, Any]
ENDS = ("workflow.completed", "workflow.failed", "workflow.cancelled")


async def told(workflow: Workflow[Any, Any], *names: str, **options: Any) -> tuple[Run, list[Any]]:
    """One run and the events of its life."""
    async with open_engine("memory:", workflow, **options) as engine:
        heard: list[Any] = []
        for name in names or ("*",):
            engine.on(name, heard.append)
        run = await (await engine.start(workflow)).wait()
        await idle()
        return run, heard


def label(event: Any) -> str:
    return f"{event.name} {event.step}" if getattr(event, "step", None) else event.name


@in_virtual_time
async def test_the_order_of_a_successful_run():
    """S421: the start first, then each step's start and completion strictly by turns, the end last."""
    flow: Workflow[Any, Any] = Workflow("flow")
    passing(flow, "s1", "s2", "s3")
    _, heard = await told(flow)
    assert [label(event) for event in heard] == [
        "workflow.started",
        *(f"step.{what} {step}" for step in ("s1", "s2", "s3") for what in ("started", "completed")),
        "workflow.completed",
    ]


@in_virtual_time
async def test_a_failed_step_says_what_and_where():
    """S423: `step.failed` has the step, the run and the error; `workflow.failed` follows with the same error."""
    flow: Workflow[Any, Any] = Workflow("flow")

    @flow.step(attempts=1)
    async def bad(_ctx: Context) -> None:
        raise ValueError("kaboom")

    run, heard = await told(flow, "*.failed")
    assert [(event.name, event.run_id, event.step, event.code, event.message) for event in heard] == [
        (name, run.id, "bad", "workflow.step.failed", "kaboom") for name in ("step.failed", "workflow.failed")
    ]
    assert run.error is not None
    assert run.error.message == "kaboom"


@in_virtual_time
async def test_a_subscription_to_some_names():
    """S424: only the names that were asked for come, also frames when they are asked for."""
    flow: Workflow[Any, Any] = Workflow("flow")

    @flow.step
    async def one(ctx: Context) -> None:
        ctx.stream("frame")

    names = ("workflow.started", "step.completed", "step.stream")
    _, heard = await told(flow, *names)
    assert {event.name for event in heard} == set(names)


@in_virtual_time
async def test_a_subscription_to_one_run():
    """S425, S426: events of other runs do not come; after the block none come at all."""
    flow: Workflow[Any, Any] = Workflow("flow")
    passing(flow, "one")
    async with open_engine("memory:", flow) as engine:
        first = await engine.start(flow, delay=1)
        async with engine.events(run=first) as events:
            await (await engine.start(flow)).wait()
            await first.wait()
            heard = [await anext(events) for _ in range(4)]
            assert {event.run_id for event in heard} == {first.id}
        later: list[Any] = []
        unsubscribe = engine.on("*", later.append)
        unsubscribe()
        await (await engine.start(flow)).wait()
        await idle()
    assert later == []


class Everything:
    """A run that brings about nearly every event."""

    def __init__(self) -> None:
        self.flow: Workflow[Any, Any] = Workflow("everything")

        @self.flow.step(attempts=2, retry_delay=1, jitter=0)
        async def retried(ctx: Context) -> None:
            ctx.progress(1)
            ctx.stream("frame")
            if ctx.attempt == 1:
                raise OSError("once")

        @self.flow.step(skip_if=lambda _: True)
        async def skipped(_ctx: Context) -> None: ...

        @self.flow.step
        async def waits(ctx: Context) -> None:
            await ctx.wait("go?")

        @self.flow.step(attempts=1)
        async def fails(_ctx: Context) -> None:
            raise ValueError("planned")

    async def play(self, engine: Engine) -> str:
        handle = await engine.start(self.flow)
        await trio.sleep(2)
        await handle.pause()
        await handle.unpause()
        await handle.resume(1)
        await handle.wait()
        await handle.retry()
        await handle.wait()
        await handle.rewind("waits")
        assert (await at_rest(handle)).status == "waiting"
        await handle.cancel()
        await handle.wait()
        await idle()
        return handle.id


@in_virtual_time
async def test_everything_is_told_by_default():
    """S427: a listener without a list of names gets every event there is of a run: retries, pauses, waits, skips,
    frames, the end of each of its lives."""
    world, heard = Everything(), list[Any]()
    async with open_engine("memory:", world.flow) as engine:
        engine.on("*", heard.append)
        await world.play(engine)
    expected = {event.name for event in EVENTS} - {
        "workflow.completed",
        "workflow.recovered",
        "workflow.dead_lettered",
        "engine.error",
        "engine.definition_changed",
        "scheduler.circuit_open",
        "scheduler.error",
        "step.compensated",
        "workflow.compensated",
        "workflow.compensating",
        "workflow.compensation_failed",
        "workflow.migrated",
    }
    assert expected <= {event.name for event in heard}


@in_virtual_time
async def test_revisions_and_times_never_go_back():
    """S428: of one run, revisions and times of its events only grow, and each step's events name the step."""
    world, heard = Everything(), list[Event]()
    async with open_engine("memory:", world.flow) as engine:
        engine.on("*", heard.append)
        run_id = await world.play(engine)
        final = await engine.get(run_id)
    assert [event.at_millis for event in heard] == sorted(event.at_millis for event in heard)
    committed = [event.revision for event in heard if event.name not in {"step.stream", "step.progress"}]
    assert committed == sorted(committed)
    assert committed[0] == 1
    assert committed[-1] == final.revision
    steps = {event.step for event in heard if event.name.startswith("step.")}  # type: ignore[attr-defined]  # they have one
    assert steps == set(final.steps)


def test_names():
    """S429: every event has one name of its own, `<what>.<past tense>`, and says so in one place."""
    names = [event.name for event in EVENTS]
    assert len(set(names)) == len(names) >= 22
    assert all(name.partition(".")[0] in {"workflow", "step", "engine", "scheduler"} for name in names)
    assert "workflow.paused" in names


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("step.started", {"step.started"}),
        ("*", {event.name for event in EVENTS}),
        ("workflow.*", {event.name for event in EVENTS if event.name.startswith("workflow.")}),
        ("*.failed", {"workflow.failed", "step.failed"}),
        ("step.re*", {"step.retry_scheduled"}),
    ],
)
@in_virtual_time
async def test_globs(pattern, matches):
    """S430: a name matches itself only, a glob what it says and nothing of other resources."""
    async with open_engine("memory:") as engine, engine.events(pattern) as events:
        assert {event.name for event in EVENTS if events.wants(event(run_id="r", workflow="w"))} == matches


@pytest.mark.parametrize("pattern", ["workflow.nothing", "step", "streamline:*", ""])
@in_virtual_time
async def test_a_pattern_that_matches_nothing(pattern):
    """S430: a name that no event has is refused at once, with the names there are."""
    async with open_engine("memory:") as engine:
        with pytest.raises(ValidationError, match="no event"):
            engine.on(pattern, print)


@in_virtual_time
async def test_listeners_do_not_get_in_each_others_way():
    """S431, S434: an exact and a glob listener each get theirs, unchanged and the same; one that raises blocks none
    and is reported once for each event."""
    flow: Workflow[Any, Any] = Workflow("flow")
    passing(flow, "one")
    exact, glob, errors = list[Any](), list[Any](), list[Any]()

    def broken(_event: Event) -> None:
        raise RuntimeError("broken")

    async with open_engine("memory:", flow) as engine:
        engine.on("engine.error", errors.append)
        engine.on("step.completed", broken)
        engine.on("step.completed", exact.append)
        engine.on("step.*", glob.append)
        await (await engine.start(flow)).wait()
        await idle()
    assert [event.name for event in exact] == ["step.completed"]
    assert [event.name for event in glob] == ["step.started", "step.completed"]
    assert glob[1] is exact[0]
    assert [error.context for error in errors] == ["listener to step.completed"]


@in_virtual_time
async def test_frames():
    """S435: frames come in order, numbered from 0 in each attempt, with their step; nothing of them is stored."""
    memory, flow = MemoryStore(), Workflow[Any, Any]("flow")

    @flow.step(attempts=2, retry_delay=0)
    async def one(ctx: Context) -> None:
        for number in range(3):
            ctx.stream({"needle": number})
        if ctx.attempt == 1:
            raise OSError("once")

    async with open_engine(memory, flow) as engine:
        heard: list[Any] = []
        engine.on("step.stream", heard.append)
        handle = await engine.start(flow)
        await handle.wait()
        await idle()
        stored = await memory.load(handle.id)
    assert stored is not None
    assert [(event.step, event.attempt, event.seq, event.frame) for event in heard] == [
        ("one", attempt, number, {"needle": number}) for attempt in (1, 2) for number in range(3)
    ]
    assert not any(b"needle" in part for part in split(stored).values())


@in_virtual_time
async def test_frames_after_a_cancellation():
    """S436: what a handler streams once it has ended is dropped, silently."""
    flow: Workflow[Any, Any] = Workflow("flow")
    kept: list[Context] = []

    @flow.step
    async def one(ctx: Context) -> None:
        kept.append(ctx)
        ctx.stream("first")
        await trio.sleep_forever()

    async with open_engine("memory:", flow) as engine:
        heard: list[Any] = []
        engine.on("step.stream", heard.append)
        handle = await engine.start(flow)
        await idle()
        await handle.cancel()
        await handle.wait()
        kept[0].stream("late")
        await idle()
    assert [event.seq for event in heard] == [0]


async def test_one_end_of_each_run(store):  # noqa: F811 - the fixture
    """S453: of 50 runs on two workers, cancelled, failing and passing, each tells one end: the stored one."""
    flow: Workflow[Any, Any] = Workflow("flow")

    @flow.step(attempts=2, retry_delay=0.01)
    async def one(ctx: Context) -> None:
        await trio.sleep(0.01 * (ctx.input % 5))
        if ctx.input % 3 == 0:
            raise OSError("planned")

    @flow.step
    async def two(ctx: Context) -> None:
        await ctx.sleep(0.02)

    heard: list[Any] = []
    async with opened(store, flow) as engines:
        for engine in engines:
            engine.on("workflow.*", heard.append)
        handles = [await engines[number % 2].start(flow, number) for number in range(50)]

        async def cancel(number: int) -> None:
            await trio.sleep(0.003 * number)
            await engines[(number + 1) % 2].run(handles[number].id).cancel()

        async with trio.open_nursery() as nursery:
            for number in range(0, 50, 2):
                nursery.start_soon(cancel, number)
        runs = [await engines[0].run(handle.id).wait() for handle in handles]
        await trio.sleep(0.3)
    ends = Counter((event.run_id, event.name) for event in heard if event.name in ENDS)
    name_of = {"done": "workflow.completed", "failed": "workflow.failed", "cancelled": "workflow.cancelled"}
    assert ends == {(run.id, name_of[run.status]): 1 for run in runs}
    started = Counter(event.run_id for event in heard if event.name == "workflow.started")
    assert all(count == 1 for count in started.values())
