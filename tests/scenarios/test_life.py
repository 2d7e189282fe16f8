"""Lifecycle, state, outputs and conditions: scenarios S001 to S040."""

import dataclasses
import datetime as dt
import functools
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import trio

from streamline_trio import (
    DataCorruption,
    InvalidState,
    InvalidTransition,
    MemoryStore,
    NonRetriable,
    OutputMissing,
    RunCancelled,
    RunFailed,
    RunNotFound,
    SqliteStore,
    Step,
    StepCompleted,
    StepContext,
    StepSkipped,
    StoreUnavailable,
    ValidationError,
    Workflow,
    WorkflowCompleted,
    all_,
    any_,
    equals,
    greater,
    has,
    in_,
    less,
    not_,
    not_equals,
    open_engine,
    testing,
)
from streamline_trio._core.status import (
    ACTIVE,
    RUN_TRANSITIONS,
    SETTLED,
    STEP_TRANSITIONS,
    RunStatus,
    StepStatus,
    check_run_transition,
    check_step_transition,
    is_settled,
    run_sources,
)
from streamline_trio._core.store import Insert, Verdict, Write
from tests.scenarios.worlds import between, in_virtual_time, settled


class Tally(msgspec.Struct):
    value: int = 0


class Notes(msgspec.Struct):
    first: str = ""
    second: str = ""
    third: str = ""


def arithmetic() -> Workflow[Tally, Tally]:
    """Adds one, then doubles."""
    workflow = Workflow("arithmetic", input=Tally)

    @workflow.step
    async def increment(ctx: StepContext[Tally]) -> None:
        await ctx.set(value=ctx.state.value + 1)

    @workflow.step
    async def double(ctx: StepContext[Tally]) -> None:
        await ctx.set(value=ctx.state.value * 2)

    return workflow


# --- running ---------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_two_steps_run_and_share_the_state():
    """S001: two steps run to the end by themselves over one state, and a started run is running."""
    workflow = arithmetic()
    async with open_engine("memory:", workflow) as engine:
        run = await engine.start(workflow, Tally())
        begun = await run.get()
        assert begun.id == run.id
        assert (begun.workflow, begun.version, begun.status) == ("arithmetic", "1.0.0", "running")
        ended = await run.wait()
    assert ended.status == "done"
    assert ended.state == Tally(2)
    assert {step.id: step.status for step in ended.steps.values()} == {"increment": "done", "double": "done"}


@in_virtual_time
async def test_without_a_worker_nothing_runs_until_it_is_driven():
    """S002: an engine without a worker runs nothing; `drive` does, to the end. (Our start is a draft till then.)"""
    workflow = arithmetic()
    async with open_engine("memory:", workflow, worker=False) as engine:
        run = await engine.start(workflow, Tally(20))
        await trio.sleep(3600)
        waiting = await run.get()
        assert (waiting.status, waiting.started_at, waiting.state) == ("draft", None, Tally(20))
        assert {step.status for step in waiting.steps.values()} == {"pending"}
        ended = await run.drive()
    assert ended.status == "done"
    assert ended.state == Tally(42)


@in_virtual_time
async def test_another_definition_of_the_workflow_reads_the_run():
    """S003: a second object of the same workflow, on another engine, sees what the first one's run has stored."""
    store = MemoryStore()
    run = await settled(arithmetic(), Tally(1), store)
    async with open_engine(store, arithmetic(), worker=False) as engine:
        again = await engine.get(run.id)
    assert again == run
    assert (again.status, again.state) == ("done", Tally(4))


@in_virtual_time
async def test_state_writes_survive_between_steps_and_are_what_is_stored():
    """S004: later steps see earlier writes, and the stored state is the returned one."""
    store = MemoryStore()
    workflow = Workflow("notes", state=lambda _: Notes())
    seen = []

    @workflow.step
    async def one(ctx: StepContext[Any, Notes]) -> None:
        await ctx.set(first="a")

    @workflow.step
    async def two(ctx: StepContext[Any, Notes]) -> None:
        seen.append(ctx.state)
        await ctx.set(second=ctx.state.first + "b")

    @workflow.step
    async def three(ctx: StepContext[Any, Notes]) -> None:
        seen.append(ctx.state)
        await ctx.set(third=ctx.state.second + "c")

    run = await settled(workflow, None, store)
    assert seen == [Notes("a"), Notes("a", "ab")]
    assert run.state == Notes("a", "ab", "abc")
    stored = await store.load(run.id)
    assert stored is not None
    assert msgspec.msgpack.decode(stored.state) == msgspec.to_builtins(run.state)


@in_virtual_time
async def test_steps_run_once_in_the_order_of_their_definition():
    """S011: every step runs exactly once, in order, as its first attempt."""
    workflow, order = Workflow("ordered"), []
    for name in ("step1", "step2", "step3"):

        async def handler(ctx: StepContext) -> None:
            order.append((ctx.step_id, ctx.attempt))

        workflow.add_step(name, handler)
    run = await settled(workflow)
    assert order == [("step1", 1), ("step2", 1), ("step3", 1)]
    assert [(step.status, step.attempts) for step in run.steps.values()] == [("done", 1)] * 3


@in_virtual_time
async def test_durations_and_ends_are_recorded():
    """S012: finished and failed steps tell when they ended and how long they took, to the millisecond."""
    workflow = Workflow("timed")

    @workflow.step
    async def instant(ctx: StepContext) -> None:
        pass

    @workflow.step
    async def slow(ctx: StepContext) -> None:
        await trio.sleep(0.15)

    @workflow.step(attempts=1)
    async def failing(ctx: StepContext) -> None:
        await trio.sleep(0.05)
        raise OSError

    run = await settled(workflow)
    assert {step.id: step.duration for step in run.steps.values()} == {
        "instant": 0,
        "slow": 0.15,
        "failing": 0.05,
    }
    assert [step.status for step in run.steps.values()] == ["done", "done", "failed"]
    assert [between(run.created_at, step.ended_at) for step in run.steps.values()] == [0, 0.15, 0.2]
    assert run.ended_at == run.steps["failing"].ended_at
    assert between(run.created_at, run.ended_at) == 0.2


@in_virtual_time
async def test_ids_may_have_dashes_underscores_and_capitals():
    """S024: ids of letters, digits, dashes and underscores work, up to 100 characters."""
    workflow = Workflow("my-flow_v2")

    async def handler(ctx: StepContext) -> str:
        return ctx.step_id

    names = ["with-dash", "with_underscore", "camelCase", "x" * 100]
    for name in names:
        workflow.add_step(name, handler)
    run = await settled(workflow)
    assert run.status == "done"
    assert [step.output for step in run.steps.values()] == names


@in_virtual_time
async def test_a_greeting_with_a_time_stamp():
    """S026: a typed date in the state comes back as a date, not as text."""

    class Hello(msgspec.Struct):
        greeting: str = ""
        at: dt.datetime | None = None

    workflow = Workflow("hello", input=str, state=lambda _: Hello())

    @workflow.step
    async def greet(ctx: StepContext[str, Hello]) -> None:
        await ctx.set(greeting=f"Hello, {ctx.input}!")

    @workflow.step
    async def stamp(ctx: StepContext[str, Hello]) -> None:
        await ctx.set(at=dt.datetime(2026, 7, 29, 12, tzinfo=dt.UTC))

    @workflow.step
    async def log(ctx: StepContext[str, Hello]) -> None:
        ctx.log(ctx.state.greeting)

    run = await settled(workflow, "Ada")
    assert run.status == "done"
    assert run.state == Hello("Hello, Ada!", dt.datetime(2026, 7, 29, 12, tzinfo=dt.UTC))


@pytest.mark.parametrize("card_works", [True, False])
@in_virtual_time
async def test_an_order_pipeline(card_works):
    """S027: the happy pipeline ends done with one event per step; a dead card fails it where it stands."""
    workflow, charges = Workflow("order"), []

    @workflow.step
    async def validate(ctx: StepContext) -> None: ...

    @workflow.step(attempts=2)
    async def charge(ctx: StepContext) -> None:
        charges.append(ctx.attempt)
        if not card_works:
            raise RuntimeError("declined")

    @workflow.step
    async def fulfil(ctx: StepContext) -> None: ...

    @workflow.step
    async def notify(ctx: StepContext) -> None: ...

    async with open_engine("memory:", workflow) as engine, engine.events("step.completed") as events:
        run = await (await engine.start(workflow)).wait()
    completed = [event.step async for event in events if isinstance(event, StepCompleted)]
    statuses = [step.status for step in run.steps.values()]
    if card_works:
        assert (run.status, statuses, charges) == ("done", ["done"] * 4, [1])
        assert completed == ["validate", "charge", "fulfil", "notify"]
    else:
        assert (run.status, charges) == ("failed", [1, 2])
        assert statuses == ["done", "failed", "pending", "pending"]
        assert completed == ["validate"]
        assert run.error is not None
        assert (run.error.code, run.error.step, run.error.type) == (
            "workflow.step.failed",
            "charge",
            "RuntimeError",
        )
        assert run.error.message == "declined"
        assert "RuntimeError: declined" in (run.error.traceback or "")
        assert run.error == run.steps["charge"].error
        assert run.ended_at is not None


@in_virtual_time
async def test_a_business_branch_by_data_is_no_skipping():
    """S025: handlers that find nothing to do and say so in their output are done, not skipped."""
    workflow = Workflow("shipping", input=str)

    @workflow.step
    async def express(ctx: StepContext[str]) -> dict[str, Any]:
        return {"method": "express"} if ctx.input == "express" else {"skipped": True}

    @workflow.step
    async def standard(ctx: StepContext[str]) -> dict[str, Any]:
        return {"method": "standard"} if ctx.input == "standard" else {"skipped": True}

    for kind, other in (("express", "standard"), ("standard", "express")):
        run = await settled(workflow, kind)
        assert [step.status for step in run.steps.values()] == ["done", "done"]
        assert run.steps[kind].output == {"method": kind}
        assert run.steps[other].output == {"skipped": True}


# --- waiting for the end ---------------------------------------------------------------------------------------


@in_virtual_time
async def test_waiting_for_a_run_returns_or_times_out():
    """S028: `wait` gives the settled run, or says in time that it timed out and in which status the run is."""
    workflow = Workflow("patient", input=bool)

    @workflow.step
    async def perhaps(ctx: StepContext[bool]) -> str:
        return await ctx.wait("approval", returns=str) if ctx.input else "at once"

    async with open_engine("memory:", workflow) as engine:
        quick = await engine.start(workflow, False)
        assert (await quick.wait(timeout=5)).status == "done"
        assert await quick.result(timeout=5) == "at once"
        parked, began = await engine.start(workflow, True), trio.current_time()
        with pytest.raises(TimeoutError, match=r"timed out.*waiting"):
            await parked.wait(timeout=0.5)
        assert trio.current_time() - began == pytest.approx(0.5)
        with pytest.raises(TimeoutError, match="timed out"):
            await parked.result(timeout=0.5)
        for verb in (engine.run("nobody").wait, engine.run("nobody").result, engine.run("nobody").get):
            with pytest.raises(RunNotFound, match="nobody"):
                await verb()
        with pytest.raises(RunNotFound):
            await engine.get("nobody")


@in_virtual_time
async def test_the_result_of_a_run_that_ends_badly_is_an_error_that_carries_it():
    """Proves that `result` raises `RunFailed` or `RunCancelled` with the settled run and its cause's message."""
    workflow = Workflow("bad", input=bool)

    @workflow.step(attempts=1)
    async def fail(ctx: StepContext[bool]) -> None:
        if ctx.input:
            raise RuntimeError("out of paper")
        await ctx.wait("nobody answers")

    async with open_engine("memory:", workflow) as engine:
        with pytest.raises(RunFailed, match="out of paper") as failure:
            await (await engine.start(workflow, True)).result()
        assert failure.value.run.status == "failed"
        parked = await engine.start(workflow, False)
        await parked.cancel("no need")
        with pytest.raises(RunCancelled, match="no need") as cancelled:
            await parked.result()
    assert (cancelled.value.run.status, cancelled.value.run.cancel_reason) == ("cancelled", "no need")


@in_virtual_time
async def test_a_delayed_start_is_a_draft_until_it_is_claimed():
    """S029: a start that has to wait is a draft with nothing begun; a claim makes it run, at its time."""
    workflow = arithmetic()
    async with open_engine("memory:", workflow) as engine:
        run = await engine.start(workflow, Tally(), delay=60)
        draft = await run.get()
        assert (draft.status, draft.fence, draft.started_at) == ("draft", 0, None)
        assert [step.status for step in draft.steps.values()] == ["pending", "pending"]
        ended = await run.wait()
    assert (ended.status, ended.fence) == ("done", 1)
    assert between(ended.created_at, ended.started_at) == 60


# --- outputs ---------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_the_output_of_a_run_is_that_of_its_last_step():
    """S005: the run's output is its last step's, also of one step only, and not a skipped one's."""
    workflow = Workflow("objects")
    for name in ("a", "b", "c"):

        async def give(ctx: StepContext) -> dict[str, Any]:
            return {"by": ctx.step_id, "deep": [1, {"x": None}]}

        workflow.add_step(name, give)
    workflow.add_step("d", lambda _: 1, skip_if=lambda _: True)
    assert (await settled(workflow)).output == {"by": "c", "deep": [1, {"x": None}]}
    single = Workflow("single")
    single.add_step("only", lambda _: [1, 2])
    assert (await settled(single)).output == [1, 2]


@in_virtual_time
async def test_a_run_that_has_not_ended_has_no_output():
    """S006: a parked run has no output, though a step of it has."""
    workflow = Workflow("half")
    workflow.add_step("first", lambda _: "made")

    @workflow.step
    async def second(ctx: StepContext) -> None:
        await ctx.wait("go")

    async with open_engine("memory:", workflow, worker=False) as engine:
        run = await (await engine.start(workflow)).drive()
    assert (run.status, run.output, run.ended_at) == ("waiting", None, None)
    assert run.steps["first"].output == "made"


@in_virtual_time
async def test_outputs_chain_through_steps():
    """S007: each step builds on the output before it; a later one combines two."""
    workflow = Workflow("chain")

    @workflow.step
    async def s1(ctx: StepContext) -> int:
        return 1

    def adding(before: Step[int]) -> Step[int]:
        async def add(ctx: StepContext) -> int:
            return ctx.output(before) + 1

        return workflow.add_step(f"s{len(workflow.steps) + 1}", add)

    assert adding(adding(adding(adding(s1)))).id == "s5"
    assert (await settled(workflow)).output == 5

    both = Workflow("both")
    a, b = both.add_step("a", lambda _: 100), both.add_step("b", lambda _: 200)
    both.add_step("sum", lambda ctx: ctx.output(a) + ctx.output(b))
    assert (await settled(both)).output == 300


@in_virtual_time
async def test_the_output_of_an_unknown_or_unfinished_step():
    """S008: an output that is not there is the default, or `OutputMissing` where none is given (our rule)."""
    workflow = Workflow("asking")

    @workflow.step(skip_if=lambda _: True)
    async def skipped(ctx: StepContext) -> int:
        return 1

    @workflow.step
    async def ask(ctx: StepContext) -> list[Any]:
        for missing in ("nowhere", skipped, later, "ask"):
            with pytest.raises(OutputMissing):
                ctx.output(missing)
        return [ctx.output(name, None) for name in ("nowhere", skipped, later)]

    @workflow.step
    async def later(ctx: StepContext) -> int:
        return 2

    async with open_engine("memory:", workflow) as engine:
        handle = await engine.start(workflow)
        run = await handle.wait()
        assert (run.status, run.steps["ask"].output) == ("done", [None, None, None])
        assert await handle.output(later) == 2
        assert await handle.output("later") == 2
        for missing in ("nowhere", skipped):
            with pytest.raises(OutputMissing):
                await handle.output(missing)


@in_virtual_time
async def test_the_outputs_mapping_lists_all_steps_in_order():
    """S009: `ctx.outputs` has every declared step in order, also unfinished ones; an unknown name has no value."""
    workflow = Workflow("listing")
    workflow.add_step("first", lambda _: 1)

    @workflow.step
    async def second(ctx: StepContext) -> dict[str, Any]:
        assert list(ctx.outputs) == ["first", "second"]
        assert len(ctx.outputs) == 2
        assert ctx.outputs.second is None
        assert ctx.outputs.get("third") is None
        with pytest.raises(AttributeError, match="third"):
            _ = ctx.outputs.third
        return dict(ctx.outputs)

    assert (await settled(workflow)).output == {"first": 1, "second": None}


@in_virtual_time
async def test_later_steps_compute_from_the_outputs_mapping():
    """S010: fetch, parse and save pass their results on through `ctx.outputs`."""
    workflow = Workflow("pipeline")

    @workflow.step
    async def fetch(ctx: StepContext) -> str:
        return "<li>one</li><li>two</li>"

    @workflow.step
    async def parse(ctx: StepContext) -> dict[str, Any]:
        return {"items": ctx.outputs.fetch.count("<li>")}

    @workflow.step
    async def save(ctx: StepContext) -> dict[str, bool]:
        return {"saved": ctx.outputs["parse"]["items"] > 0}

    run = await settled(workflow)
    assert run.status == "done"
    assert (run.steps["parse"].output, run.steps["save"].output) == ({"items": 2}, {"saved": True})


@pytest.mark.parametrize("value", [0, False, "", None, [], {}, 0.0, {"a": [{"b": {"c": [None, 0, ""]}}]}], ids=repr)
@in_virtual_time
async def test_falsy_and_nested_outputs_are_values(value):
    """S037: 0, False, empty text and None are outputs, read back unchanged by a later step and from the store."""
    workflow, seen = Workflow("falsy"), []
    give = workflow.add_step("give", lambda _: value)
    workflow.add_step("take", lambda ctx: seen.append((ctx.output(give), ctx.output("give", "default"))))
    store = MemoryStore()
    run = await settled(workflow, None, store)
    assert repr(seen) == repr([(value, value)])
    assert repr(run.steps["give"].output) == repr(value)
    async with open_engine(store, workflow, worker=False) as engine:
        assert repr(await engine.run(run.id).output(give)) == repr(value)


@in_virtual_time
async def test_large_state_input_and_output():
    """S036: ten thousand list entries, a thousand objects and 20 levels come back whole."""
    workflow: Workflow[Any, Any] = Workflow("large", input=list[dict[str, str]], state=lambda _: {"items": []})
    nested: Any = "bottom"
    for _ in range(20):
        nested = {"down": [nested]}

    @workflow.step
    async def fill(ctx: StepContext) -> Any:
        assert len(ctx.input) == 1000
        await ctx.set(items=list(range(10_000)))
        return nested

    @workflow.step
    async def look(ctx: StepContext) -> int:
        assert ctx.output(fill) == nested
        return len(ctx.state["items"])

    run = await settled(workflow, [{"text": "x" * 100} for _ in range(1000)])
    assert (run.status, run.output) == ("done", 10_000)
    assert run.state["items"] == list(range(10_000))


# --- skipping --------------------------------------------------------------------------------------------------


class Options(msgspec.Struct):
    value: int = 15
    status: str = "active"
    data: str | None = "test"
    flag: bool = False


@pytest.mark.parametrize("skip", [True, False])
@in_virtual_time
async def test_skip_if_skips_in_no_time(skip):
    """S013: a step whose `skip_if` holds is skipped with no duration and no call; else it runs in its place."""
    workflow, called = Workflow("optional", input=Options), []
    workflow.add_step("first", lambda _: called.append("first"))
    workflow.add_step("optional", lambda _: called.append("optional"), skip_if=lambda state: state.flag)
    workflow.add_step("last", lambda _: called.append("last"))
    async with open_engine("memory:", workflow) as engine, engine.events("step.*") as events:
        run = await (await engine.start(workflow, Options(flag=skip))).wait()
    ended = [(event.name, event.step) async for event in events if isinstance(event, StepSkipped | StepCompleted)]
    optional = run.steps["optional"]
    assert run.status == "done"
    if skip:
        assert called == ["first", "last"]
        assert (optional.status, optional.duration, optional.output) == ("skipped", 0, None)
        assert optional.ended_at is not None
        assert ended[1] == ("step.skipped", "optional")
    else:
        assert called == ["first", "optional", "last"]
        assert {step.status for step in run.steps.values()} == {"done"}
        assert ended[1] == ("step.completed", "optional")


@in_virtual_time
async def test_several_skipped_steps_still_complete_the_run():
    """S014, S034: a run whose steps are all done or skipped is done; also one that skips everything."""
    workflow = Workflow("gaps")
    workflow.add_step("start", lambda _: 1)
    for name in ("x", "y", "z"):
        workflow.add_step(name, lambda _: 2, skip_if=lambda _: True)
    workflow.add_step("finish", lambda _: 3)
    run = await settled(workflow)
    assert [step.status for step in run.steps.values()] == ["done", "skipped", "skipped", "skipped", "done"]
    assert run.status == "done"
    empty = Workflow("empty")
    empty.add_step("a", lambda _: 1, run_if=lambda _: False)
    run = await settled(empty)
    assert (run.status, run.output, run.steps["a"].status) == ("done", None, "skipped")


@pytest.mark.parametrize("flag", [False, True])
@in_virtual_time
async def test_run_if(flag):
    """S015: `run_if` false skips the step and its writes; true runs it. Predicates may be async."""
    workflow = Workflow("guarded", input=Options)

    async def wanted(state: Options) -> bool:
        await trio.lowlevel.checkpoint()
        return state.flag

    @workflow.step(run_if=wanted)
    async def write(ctx: StepContext[Options]) -> None:
        await ctx.set(status="written")

    run = await settled(workflow, Options(flag=flag))
    assert run.status == "done"
    assert run.steps["write"].status == ("done" if flag else "skipped")
    assert run.state.status == ("written" if flag else "active")


CONDITIONS = [
    (has("data"), True),
    (has("nothing"), False),
    (equals("status", "active"), True),
    (equals("status", "inactive"), False),
    (not_equals("status", "inactive"), True),
    (greater("value", 10), True),
    (greater("value", 20), False),
    (less("value", 20), True),
    (less("value", 10), False),
    (in_("status", ("active", "new")), True),
    (all_(has("data"), greater("value", 10)), True),
    (all_(has("data"), greater("value", 20)), False),
    (any_(less("value", 10), equals("status", "active")), True),
    (not_(has("data")), False),
    (lambda state: state.value % 2 == 1, True),
]


@in_virtual_time
async def test_conditions_decide_over_the_state():
    """S016: every condition helper decides, as `skip_if` and as `run_if`, over the run's state."""
    workflow = Workflow("conditions", input=Options)
    for number, (condition, _) in enumerate(CONDITIONS):
        workflow.add_step(f"skip{number}", lambda _: None, skip_if=condition)
        workflow.add_step(f"run{number}", lambda _: None, run_if=condition)
    run = await settled(workflow, Options())
    statuses = {step.id: step.status for step in run.steps.values()}
    for number, (_, holds) in enumerate(CONDITIONS):
        assert statuses[f"skip{number}"] == ("skipped" if holds else "done"), number
        assert statuses[f"run{number}"] == ("done" if holds else "skipped"), number


@pytest.mark.parametrize(
    ("skip", "run", "status"),
    [(True, True, "skipped"), (True, False, "skipped"), (False, True, "done"), (False, False, "skipped")],
)
@in_virtual_time
async def test_both_predicates_must_allow_a_step(skip, run, status):
    """S016: with `skip_if` and `run_if` both given, both must allow the step (ours; the original ignores one)."""
    workflow = Workflow("both")
    workflow.add_step("it", lambda _: None, skip_if=lambda _: skip, run_if=lambda _: run)
    assert (await settled(workflow)).steps["it"].status == status


@in_virtual_time
async def test_a_predicate_sees_what_earlier_steps_wrote():
    """S017: a wait's answer does not change the state; predicates see only what a step sets."""

    class Article(msgspec.Struct):
        score: float = 0.0
        approved: bool = False

    workflow = Workflow("article", state=lambda _: Article())

    @workflow.step
    async def analyze(ctx: StepContext[Any, Article]) -> None:
        await ctx.set(score=0.4)

    @workflow.step
    async def review(ctx: StepContext[Any, Article]) -> Any:
        return await ctx.wait("low score") if ctx.state.score < 0.8 else None

    workflow.add_step("publish", lambda _: "published", run_if=lambda state: state.approved)
    async with open_engine("memory:", workflow) as engine, engine.events("workflow.waiting") as parked:
        run = await engine.start(workflow)
        await anext(parked)
        waiting = await run.get()
        assert (waiting.status, waiting.current_step) == ("waiting", "review")
        await run.resume({"approved": True})
        ended = await run.wait()
    assert (ended.status, ended.steps["publish"].status) == ("done", "skipped")
    assert ended.steps["review"].output == {"approved": True}


@in_virtual_time
async def test_a_predicate_that_raises_is_a_failure_of_the_step():
    """W18: a predicate that raises fails the attempt, is retried, and fails the run with its message."""
    workflow, asked = Workflow("broken"), []

    def broken(_state: Any) -> bool:
        asked.append(1)
        raise KeyError("no such flag")

    workflow.add_step("it", lambda _: None, skip_if=broken, attempts=2)
    run = await settled(workflow)
    assert (run.status, run.steps["it"].status, len(asked)) == ("failed", "failed", 2)
    assert run.error is not None
    assert "no such flag" in run.error.message


# --- many runs -------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_five_runs_at_once():
    """S018: runs of one workflow are driven at the same time: five of 50 ms take 50 ms."""
    workflow = Workflow("side-by-side", input=Options)

    @workflow.step
    async def work(ctx: StepContext[Options]) -> None:
        await trio.sleep(0.05)
        await ctx.set(flag=True)

    async with open_engine("memory:", workflow) as engine:
        began = trio.current_time()
        runs = [await engine.start(workflow, Options()) for _ in range(5)]
        ended = [await run.wait() for run in runs]
        assert trio.current_time() - began == pytest.approx(0.05)
    assert [(run.status, run.state.flag) for run in ended] == [("done", True)] * 5


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "runs.db")


async def test_fifty_runs_keep_their_own_arithmetic(store):
    """S019: fifty runs at once have ids of their own and each comes to its own sum."""
    workflow, values = arithmetic(), {}
    workflow.add_step("verify", lambda ctx: values.update({ctx.run_id: ctx.state.value}))
    async with open_engine(store, workflow) as engine:
        runs: list[Any] = []

        async def start() -> None:
            runs.append(await engine.start(workflow, Tally()))

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(start)
        ended = [await run.wait() for run in runs]
    assert len({run.id for run in runs}) == 50
    assert {run.status for run in ended} == {"done"}
    assert set(values) == {run.id for run in runs}
    assert set(values.values()) == {2}


@in_virtual_time
async def test_interleaved_runs_never_see_each_other():
    """S020: runs that interleave at every wait keep their own states and inputs."""
    workflow = Workflow("secrets", input=dict[str, Any])

    @workflow.step
    async def one(ctx: StepContext) -> None:
        await trio.sleep(ctx.input["delay"])
        await ctx.set(mark=ctx.input["index"] * 10)
        await trio.sleep(0.03 - ctx.input["delay"])

    @workflow.step
    async def two(ctx: StepContext) -> Any:
        await ctx.sleep(ctx.input["delay"])
        return ctx.state

    async with open_engine("memory:", workflow) as engine:
        inputs: list[dict[str, Any]] = [{"index": i, "delay": i % 3 / 100, "secret": f"s{i}"} for i in range(12)]
        runs = [await engine.start(workflow, value) for value in inputs]
        ended = [await run.wait() for run in runs]
    for value, run in zip(inputs, ended, strict=True):
        assert run.state == run.output == {**value, "mark": value["index"] * 10}


@in_virtual_time
async def test_ten_runs_of_five_steps():
    """S021: ten runs of five steps each end with every step done and their total written."""
    workflow = Workflow("five", input=Tally)
    for number in range(1, 6):

        async def write(ctx: StepContext[Tally], number=number) -> None:
            await ctx.set(value=number)

        workflow.add_step(f"step{number}", functools.partial(write, number=number))
    async with open_engine("memory:", workflow) as engine:
        runs = [await engine.start(workflow, Tally()) for _ in range(10)]
        for run in runs:
            ended = await run.wait()
            assert (ended.status, ended.state) == ("done", Tally(5))
            assert [step.status for step in ended.steps.values()] == ["done"] * 5


@pytest.mark.parametrize("capacity", [1000, 7])
@in_virtual_time
async def test_hundreds_of_runs_that_sleep_all_complete(capacity):
    """S022: all of 500 runs with a tiny durable sleep complete, also on a worker with few places."""
    workflow, calls = Workflow("naps"), []

    @workflow.step
    async def nap(ctx: StepContext) -> None:
        calls.append(ctx.run_id)
        await ctx.sleep(0.01)

    workflow.add_step("end", lambda_async(calls))
    async with open_engine("memory:", workflow, max_concurrent_runs=capacity) as engine:
        runs = [await engine.start(workflow) for _ in range(500)]
        statuses = [(await run.wait()).status for run in runs]
    assert statuses == ["done"] * 500
    # The sleeping step is entered twice, the other once.
    assert sorted(calls) == sorted(run.id for run in runs for _ in range(3))


def lambda_async(calls: list[str]) -> Any:
    async def note(ctx: StepContext) -> None:
        calls.append(ctx.run_id)

    return note


# --- input and state -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [{}, None, {"a": [1]}, 7], ids=repr)
@in_virtual_time
async def test_without_a_state_the_state_is_a_copy_of_the_input(value):
    """S023: without `state=` the state is the input, and changing it leaves the input alone."""
    workflow = Workflow("plain")

    @workflow.step
    async def look(ctx: StepContext) -> Any:
        assert ctx.state == ctx.input == value
        if isinstance(value, dict | None):
            await ctx.set(added=1)
        return ctx.input == value

    run = await settled(workflow, value)
    assert (run.status, run.output) == ("done", True)
    assert run.input == value
    assert run.state == ({**(value or {}), "added": 1} if isinstance(value, dict | None) else value)


@in_virtual_time
async def test_what_a_handler_holds_is_never_what_is_stored():
    """Proves that state, input and outputs are rebuilt at each access: changing the objects changes nothing."""
    workflow = Workflow("copies", input=dict[str, list[int]])
    kept: list[list[int]] = []

    @workflow.step
    async def give(ctx: StepContext) -> list[int]:
        ctx.state["a"].append(9)
        ctx.input["a"].append(9)
        assert ctx.state == ctx.input == {"a": [1]}
        kept.append([1])
        return kept[0]

    @workflow.step
    async def take(ctx: StepContext) -> list[int]:
        kept[0].append(2)
        ctx.output(give).append(3)
        return ctx.output(give)

    value = {"a": [1]}
    async with open_engine("memory:", workflow) as engine:
        handle = await engine.start(workflow, value)
        value["a"].append(5)
        run = await handle.wait()
    assert (run.input, run.state, run.output) == ({"a": [1]}, {"a": [1]}, [1])


@dataclasses.dataclass
class Parcel:
    weight: float
    labels: tuple[str, ...] = ()


class Route(msgspec.Struct):
    stops: list[Parcel]
    when: dt.timedelta


@in_virtual_time
async def test_values_keep_their_annotated_types():
    """Proves that a value is its annotated type wherever it is read: in handlers, by handles, after a restart."""
    store = MemoryStore()
    workflow = Workflow("typed", input=Parcel, state=lambda i: Route([i], dt.timedelta(0)))

    @workflow.step
    async def plan(ctx: StepContext[Parcel, Route]) -> Route:
        assert ctx.input == Parcel(2.5, ("fragile",))
        await ctx.set(when=dt.timedelta(hours=2))
        return ctx.state

    @workflow.step
    async def untyped(ctx):
        return ctx.output(plan)

    expected = Route([Parcel(2.5, ("fragile",))], dt.timedelta(hours=2))
    async with open_engine(store, workflow) as engine:
        plain: Any = {"weight": 2.5, "labels": ["fragile"]}
        handle = await engine.start(workflow, plain)
        assert (await handle.wait()).steps["plan"].output == expected
    async with open_engine(store, workflow, worker=False) as engine:
        run = await engine.get(handle.id)
        assert (run.input, run.state, run.steps["plan"].output) == (expected.stops[0], expected, expected)
        assert await engine.run(handle.id).output(plan) == expected
    assert run.output == {"stops": [{"weight": 2.5, "labels": ["fragile"]}], "when": "PT7200S"}


@in_virtual_time
async def test_input_that_does_not_fit_starts_nothing():
    """Proves that a start with wrong input raises `ValidationError` naming the place, and stores nothing."""
    workflow = arithmetic()
    async with open_engine("memory:", workflow) as engine:
        wrong: Any
        for wrong in ({"value": "seven"}, 3, None, object()):
            with pytest.raises(ValidationError, match="input of workflow 'arithmetic'"):
                await engine.start(workflow, wrong)
        assert await engine.count() == 0


@pytest.mark.parametrize("fields", [{"valeu": 1}, {"value": "one"}, {"value": object()}])
@in_virtual_time
async def test_a_state_write_that_does_not_fit_fails_the_step_at_once(fields):
    """Proves that `ctx.set` checks names and types, leaves the state alone, and is not retried."""
    workflow = Workflow("strict", input=Tally)

    @workflow.step
    async def write(ctx: StepContext[Tally]) -> None:
        await ctx.set(value=1)
        await ctx.set(**fields)

    run = await settled(workflow, Tally())
    assert (run.status, run.steps["write"].attempts, run.state) == ("failed", 1, Tally(1))
    assert run.error is not None
    assert run.error.code == "workflow.validation_error"


@in_virtual_time
async def test_a_state_write_survives_the_failure_of_its_step():
    """Proves that `ctx.set` is durable at once: the next attempt and the failed run have it."""
    workflow, seen = Workflow("surviving", input=Tally), []

    @workflow.step(attempts=2, retry_delay=0)
    async def write(ctx: StepContext[Tally]) -> None:
        seen.append(ctx.state.value)
        await ctx.set(value=ctx.state.value + 1)
        raise RuntimeError

    run = await settled(workflow, Tally())
    assert (seen, run.status, run.state) == ([0, 1], "failed", Tally(2))


# --- sync handlers ---------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_sync_handler_runs_in_a_thread_and_uses_its_context():
    """Proves that a sync handler runs in a thread, reads its context, and writes through `trio.from_thread`."""
    workflow, main = Workflow("threads", input=Tally), threading.get_ident()

    @workflow.step
    def compute(ctx: StepContext[Tally]) -> Any:
        assert threading.get_ident() != main
        ctx.log("in a thread")
        ctx.progress(50)
        trio.from_thread.run(functools.partial(ctx.set, value=ctx.state.value + 1))
        trio.from_thread.run(ctx.checkpoint, 5)
        return ctx.state.value + ctx.checkpoint_value(int)

    async with open_engine("memory:", workflow) as engine:
        handle = await engine.start(workflow, Tally(1))
        run = await handle.wait()
        assert run.error is None
        assert (run.status, run.output, run.state) == ("done", 7, Tally(2))
        assert [line.message for line in await handle.logs()] == ["in a thread"]


@in_virtual_time
async def test_a_sync_handler_cannot_suspend():
    """Proves that a wait in a thread is a loud `SuspensionError` at once, before anything is recorded."""
    workflow = Workflow("stuck")

    @workflow.step
    def wait(ctx: StepContext) -> None:
        trio.from_thread.run(ctx.sleep, 5)

    run = await settled(workflow)
    assert (run.status, run.steps["wait"].attempts) == ("failed", 1)
    assert run.error is not None
    assert run.error.code == "workflow.suspension"


@in_virtual_time
async def test_a_step_is_callable_for_unit_tests():
    """Proves that a `Step` calls its handler with whatever context a test gives."""
    workflow = Workflow("callable")

    @workflow.step
    async def double(ctx: StepContext[int]) -> int:
        return ctx.input * 2

    @workflow.step
    def triple(ctx: StepContext[int]) -> int:
        return ctx.input * 3

    class Fake:
        input = 21

    assert await double(Fake()) == 42
    assert triple(Fake()) == 63
    assert (double.id, triple.id) == ("double", "triple")


# --- the state machines ----------------------------------------------------------------------------------------

LEGAL_RUN: dict[RunStatus, set[RunStatus]] = {
    "draft": {"running", "cancelled", "failed"},
    "running": {"waiting", "done", "failed", "cancelled", "compensating"},
    "waiting": {"running", "cancelled", "failed", "compensating"},
    "done": {"running"},
    "failed": {"running", "compensating"},
    "compensating": {"compensated", "compensation_failed", "cancelled"},
    "compensation_failed": {"compensating"},
    "cancelled": set(),
    "compensated": set(),
}


def test_legal_run_transitions():
    """S030: the run table is the original's, but drafts and parked runs can fail (a run has a deadline here), a
    cancelled run can be undone, and a failed compensation can be retried."""
    assert {source: set(targets) for source, targets in RUN_TRANSITIONS.items()} == LEGAL_RUN
    refused: list[tuple[RunStatus, RunStatus]]
    refused = [("draft", "done"), ("waiting", "done"), ("cancelled", "running")]
    for source, target in refused:
        with pytest.raises(InvalidTransition):
            check_run_transition("r", source, target)
    assert RUN_TRANSITIONS["cancelled"] == RUN_TRANSITIONS["compensated"] == frozenset()


def test_legal_step_transitions():
    """S031: the step table is the original's, but a step is skipped from running: predicates are asked in the
    begun step; and a goto or rewind resets skipped steps too."""
    assert {source: set(targets) for source, targets in STEP_TRANSITIONS.items()} == {
        "pending": {"running", "failed"},
        "running": {"pending", "waiting", "done", "failed", "skipped"},
        "waiting": {"pending", "running", "failed"},
        "done": {"pending"},
        "failed": {"pending"},
        "skipped": {"pending"},
    }
    refused: list[tuple[StepStatus, StepStatus]]
    refused = [("done", "running"), ("done", "failed"), ("skipped", "done")]
    for source, target in refused:
        with pytest.raises(InvalidTransition):
            check_step_transition("r", "s", source, target)


def test_an_illegal_transition_is_a_typed_error():
    """S032: it names entity, id, from and to. (Code and status are API.md's: invalid_transition, 409.)"""
    with pytest.raises(InvalidTransition, match="r1 cannot go from cancelled to running") as caught:
        check_run_transition("r1", "cancelled", "running")
    error = caught.value
    assert (error.entity, error.entity_id, error.from_status, error.to_status) == (
        "run",
        "r1",
        "cancelled",
        "running",
    )
    assert (error.code, error.status) == ("workflow.invalid_transition", 409)
    sources = run_sources("cancelled")
    assert {"draft", "running", "waiting"} <= sources
    assert sources.isdisjoint({"done", "failed", "cancelled"})


def test_settled_is_not_the_same_as_without_an_exit():
    """S033: settled runs are done, failed, cancelled and the compensated ones; only some have no way out."""
    assert {status for status in RUN_TRANSITIONS if is_settled(status)} == SETTLED
    assert {"done", "failed", "cancelled", "compensated", "compensation_failed"} == SETTLED
    assert {"draft", "running", "waiting", "compensating"} == ACTIVE
    exits = {status for status, targets in RUN_TRANSITIONS.items() if targets}
    assert "cancelled" not in exits
    assert {"done", "failed"} <= exits


@in_virtual_time
async def test_a_cancellation_sticks_whatever_the_steps_say():
    """S034: a run that was cancelled cannot become done: a result that arrives later is kept, the run cancelled."""
    workflow, inside = Workflow("sticky"), trio.Event()

    @workflow.step
    async def finish(ctx: StepContext) -> str:
        inside.set()
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
        return "too late"

    async with open_engine("memory:", workflow) as engine:
        handle = await engine.start(workflow)
        await inside.wait()
        await handle.cancel("enough")
        run = await handle.wait()
    assert run.status == "cancelled"
    assert (run.steps["finish"].status, run.steps["finish"].output) == ("done", "too late")
    assert run.output is None


@in_virtual_time
async def test_a_definition_that_lacks_the_current_step_fails_the_run():
    """S035: a run whose current step no worker's definition has fails, with the event. (API.md 7 calls it
    `VersionMismatch`; a document that cannot be read is `DataCorruption`.)"""
    store = MemoryStore()
    before, after = Workflow("moved"), Workflow("moved")

    @before.step
    async def gone(ctx: StepContext) -> None:
        await ctx.wait("go")

    after.add_step("other", lambda _: None)
    async with open_engine(store, before) as engine, engine.events("workflow.waiting") as parked:
        run = await engine.start(before)
        await anext(parked)
    async with open_engine(store, after) as engine, engine.events("workflow.failed") as failed:
        await engine.run(run.id).resume("go")
        ended = await engine.run(run.id).wait()
        told: Any = await anext(failed)
    assert ended.status == "failed"
    assert ended.error is not None
    assert (ended.error.code, ended.error.step) == ("workflow.version_mismatch", "gone")
    assert ended.ended_at is not None
    assert (told.run_id, told.code) == (run.id, "workflow.version_mismatch")


@in_virtual_time
async def test_a_run_that_cannot_be_read_is_told_and_set_aside():
    """S035: a damaged run is reported once as `engine.error`, raises `DataCorruption` to readers, and blocks
    nobody else."""
    store, workflow = MemoryStore(), arithmetic()
    async with open_engine(store, workflow, worker=False) as engine:
        bad, good = [await engine.start(workflow, Tally(), delay=10) for _ in range(2)]
        store.spoil(bad.id)
        with pytest.raises(DataCorruption):
            await bad.get()
    async with open_engine(store, workflow) as engine, engine.events("engine.error") as errors:
        assert (await engine.run(good.id).wait()).status == "done"
        await trio.sleep(3600)
    told: list[Any] = [event async for event in errors]
    assert len(told) == 1
    assert bad.id in told[0].error


# --- examples --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "complaint"),
    [("short", 1000, "at least 10 characters"), ("a good prompt", 50, "100 to 4000"), ("a good prompt", 500, None)],
)
@in_virtual_time
async def test_a_pipeline_that_validates_its_input_in_a_step(prompt, max_tokens, complaint):
    """S038: a first step that refuses the input fails the run at once with its message."""
    workflow: Workflow[Any, Any] = Workflow("ai", state=lambda _: {"approved": False, "published": None})

    @workflow.step
    async def check(ctx: StepContext) -> None:
        if len(ctx.input["prompt"]) < 10:
            raise NonRetriable("the prompt must have at least 10 characters")
        if not 100 <= ctx.input["max_tokens"] <= 4000:
            raise NonRetriable("max_tokens must be from 100 to 4000")

    @workflow.step
    async def generate(ctx: StepContext) -> int:
        await ctx.set(approved=True)
        return 75

    @workflow.step(run_if=lambda state: state["approved"])
    async def publish(ctx: StepContext) -> None:
        await ctx.set(published=f"quality {ctx.output(generate)}")

    run = await settled(workflow, {"prompt": prompt, "max_tokens": max_tokens})
    if complaint:
        assert run.status == "failed"
        assert run.error is not None
        assert complaint in run.error.message
        assert (run.error.code, run.error.step) == ("workflow.non_retriable", "check")
        assert run.steps["check"].attempts == 1
    else:
        assert run.status == "done"
        assert run.state == {"approved": True, "published": "quality 75"}


@pytest.mark.parametrize(
    ("kind", "amount", "expected"),
    [
        ("standard", 100, (11, 0, 111)),
        ("express", 100, (26, 0, 126)),
        ("international", 100, (51, 15, 166)),
        ("standard", 0, None),
    ],
)
@in_virtual_time
async def test_order_totals_by_type(kind, amount, expected):
    """S039: steps that apply only to some orders are skipped for the others, and the total adds up."""
    workflow = Workflow("totals", input=dict[str, Any])
    shipping = {"standard": 11, "express": 26, "international": 51}

    @workflow.step(attempts=1)
    async def validate(ctx: StepContext) -> None:
        if ctx.input["amount"] <= 0:
            raise ValueError("the amount must be positive")

    @workflow.step
    async def ship(ctx: StepContext) -> int:
        return shipping[ctx.input["kind"]]

    @workflow.step(run_if=equals("kind", "international"))
    async def customs(ctx: StepContext) -> int:
        return 15

    @workflow.step
    async def total(ctx: StepContext) -> Any:
        return ctx.input["amount"] + ctx.output(ship) + ctx.output(customs, 0)

    run = await settled(workflow, {"kind": kind, "amount": amount})
    if expected is None:
        assert (run.status, run.error and run.error.message) == ("failed", "the amount must be positive")
    else:
        shipped, duty, summed = expected
        assert run.output == summed
        assert run.steps["ship"].output == shipped
        assert run.steps["customs"].output == (duty or None)
        assert run.steps["customs"].status == ("done" if duty else "skipped")


# --- crashes ---------------------------------------------------------------------------------------------------


class LostReply(MemoryStore):
    """The first insert is applied, but its acknowledgement never comes."""

    def __init__(self) -> None:
        super().__init__()
        self.inserted = trio.Event()

    async def write(self, batch: Sequence[Write]) -> list[Verdict]:
        verdicts = await super().write(batch)
        if not self.inserted.is_set() and any(isinstance(write, Insert) for write in batch):
            self.inserted.set()
            await trio.sleep_forever()
        return verdicts


@in_virtual_time
async def test_a_crash_before_the_first_step_loses_nothing():
    """S040: a run that was stored as running, whose worker died before its first step, is taken up by another
    worker and finishes; each step ends once."""
    store, workflow, calls = LostReply(), Workflow("crashing"), []

    @workflow.step
    async def first(ctx: StepContext) -> None:
        calls.append(("first", ctx.attempt))

    @workflow.step
    async def second(ctx: StepContext) -> None:
        calls.append(("second", ctx.attempt))

    async with open_engine(store, workflow) as engine, trio.open_nursery() as nursery:

        async def start() -> None:
            with pytest.raises(StoreUnavailable, match="may or may not have started"):
                await engine.start(workflow, run_id="lost")

        nursery.start_soon(start)
        await store.inserted.wait()
        await testing.crash(engine)
    stored = await store.load("lost")
    assert stored is not None
    assert (stored.head.status, stored.head.current_step, calls) == ("running", "first", [])
    async with open_engine(store, workflow) as engine, engine.events("workflow.recovered") as recovered:
        ended = await engine.run("lost").wait()
        told: Any = await anext(recovered)
        assert (told.name, told.recoveries) == ("workflow.recovered", 1)
    assert ended.status == "done"
    assert calls == [("first", 2), ("second", 1)]
    assert (ended.recoveries, ended.fence) == (1, 2)


@in_virtual_time
async def test_a_draft_whose_starter_died_is_taken_up():
    """S040: a run started by a process that had no worker, and died, is run by the next worker, once."""
    store, workflow = MemoryStore(), arithmetic()
    async with open_engine(store, workflow, worker=False) as engine:
        run = await engine.start(workflow, Tally())
        await testing.crash(engine)
    async with open_engine(store, workflow) as engine:
        ended = await engine.run(run.id).wait()
    assert (ended.status, ended.state, ended.recoveries) == ("done", Tally(2), 0)


# --- events ----------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_events_tell_a_run_in_order():
    """Proves that events come after their commits, in order, each with run, workflow, revision and instant."""
    workflow = Workflow("told", input=bool)
    workflow.add_step("never", lambda _: 1, skip_if=lambda _: True)

    @workflow.step(attempts=2, jitter=0)
    async def work(ctx: StepContext[bool]) -> None:
        if ctx.attempt == 1:
            raise OSError("busy")
        await ctx.sleep(5)
        ctx.stream({"frame": 1})
        ctx.progress(40, "nearly", left=3)
        if not ctx.input:
            raise NonRetriable("no")

    told: list[Any] = []
    async with open_engine("memory:", workflow) as engine, engine.events() as events:
        handle = await engine.start(workflow, True)
        async for event in events:
            told.append(event)
            # What is told is what is stored: never less.
            assert (await handle.get()).revision >= event.revision
            if isinstance(event, WorkflowCompleted):
                break
    assert [event.name for event in told] == [
        "workflow.started",
        "step.started",
        "step.skipped",
        "step.started",
        "step.retry_scheduled",
        "step.started",
        "step.waiting",
        "workflow.waiting",
        "workflow.resumed",
        "step.stream",
        "step.progress",
        "step.completed",
        "workflow.completed",
    ]
    assert {(event.run_id, event.workflow, event.tenant) for event in told} == {(handle.id, "told", None)}
    revisions = [event.revision for event in told]
    assert revisions == sorted(revisions)
    assert revisions[0] == 1
    assert [event.at for event in told] == sorted(event.at for event in told)
    assert between(told[0].at, told[-1].at) == 6
    assert told[9].frame == {"frame": 1}
    assert (told[10].percent, told[10].message, told[10].data) == (40, "nearly", {"left": 3})

    async with open_engine("memory:", workflow) as engine, engine.events("*.failed") as events:
        handle = await engine.start(workflow, False)
        assert (await handle.wait()).status == "failed"
        failures: list[Any] = [await anext(events), await anext(events)]
    assert [(event.name, event.code) for event in failures] == [
        ("step.failed", "workflow.non_retriable"),
        ("workflow.failed", "workflow.non_retriable"),
    ]


@in_virtual_time
async def test_events_may_be_narrowed_by_name_and_run():
    """Proves that a listener hears the names and the run it asked for, and a name of no event is refused."""
    workflow = arithmetic()
    async with open_engine("memory:", workflow) as engine:
        first = await engine.start(workflow, Tally(), delay=1)
        second = await engine.start(workflow, Tally(), delay=1)
        async with engine.events("step.completed", "workflow.completed", run=second) as events:
            await first.wait()
            await second.wait()
            heard = [await anext(events) for _ in range(3)]
        assert {event.run_id for event in heard} == {second.id}
        assert [event.name for event in heard] == ["step.completed", "step.completed", "workflow.completed"]
        with pytest.raises(ValidationError, match=r"step\.complete"):
            async with engine.events("step.complete"):
                pass


@in_virtual_time
async def test_a_listener_that_raises_never_reaches_a_run():
    """Proves that runs go on under a failing listener, which is told as `engine.error`; it may be taken off."""
    workflow = arithmetic()
    heard: list[str] = []

    def broken(event: Any) -> None:
        raise RuntimeError("listener down")

    async def fine(event: Any) -> None:
        await trio.lowlevel.checkpoint()
        heard.append(event.step)

    async with open_engine("memory:", workflow) as engine, engine.events("engine.error") as errors:
        off = engine.on("step.completed", broken)
        engine.on("step.completed", fine)
        assert (await (await engine.start(workflow, Tally())).wait()).status == "done"
        told: list[Any] = [await anext(errors) for _ in range(2)]
        assert [event.error for event in told] == ["RuntimeError('listener down')"] * 2
        off()
        assert (await (await engine.start(workflow, Tally())).wait()).status == "done"
        await trio.sleep(1)
        assert heard == ["increment", "double"] * 2
    assert [event async for event in errors] == []


# --- start options ---------------------------------------------------------------------------------------------


@in_virtual_time
async def test_what_a_start_is_told_is_on_the_run():
    """Proves that user, tags, meta, priority and a run id of the caller's are kept, and `meta` reaches handlers."""
    workflow = Workflow("told", tags=["billing"])

    @workflow.step
    async def look(ctx: StepContext) -> list[Any]:
        return [ctx.run_id, ctx.workflow, ctx.version, ctx.step_id, ctx.attempt, ctx.meta, ctx.tenant]

    async with open_engine("memory:", workflow) as engine:
        handle = await engine.start(
            workflow, None, run_id="mine", user="ada", tags=["vip", "billing"], meta={"trace": "t1"}, priority=5
        )
        run = await handle.wait()
        with pytest.raises(InvalidState):
            await engine.start(workflow, None, run_id="mine")
    assert (run.id, run.user, run.tags, run.meta, run.priority) == (
        "mine",
        "ada",
        ("billing", "vip"),
        {"trace": "t1"},
        5,
    )
    assert run.output == ["mine", "told", "1.0.0", "look", 1, {"trace": "t1"}, None]
