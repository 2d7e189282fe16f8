"""Types and the public surface: scenarios S561 to S566. What type checkers say is in tests/type."""

import dataclasses
import importlib.metadata
import importlib.resources
import io
import re
import typing
from decimal import Decimal
from types import ModuleType
from typing import Any

import msgspec
import pytest
import trio
from typing_extensions import TypedDict

import streamline_trio
from streamline_trio import (
    DefinitionError,
    Engine,
    Event,
    MemoryStore,
    Run,
    RunHandle,
    Signal,
    SqliteStore,
    StepContext,
    StepOptions,
    StepSpec,
    Store,
    Workflow,
    open_engine,
)
from tests.scenarios.worlds import at_rest, in_virtual_time, settled


class Page(msgspec.Struct):
    text: str


class Parsed(msgspec.Struct):
    words: int


class Outputs(msgspec.Struct):
    fetch: Page | None = None
    parse: Parsed | None = None


async def fetch(ctx: StepContext[str, str, Outputs]) -> Page:
    return Page(ctx.input * 2)


async def parse(ctx: StepContext[str, str, Outputs]) -> Parsed:
    page = ctx.outputs.fetch
    assert isinstance(page, Page)
    assert ctx.outputs.parse is None
    return Parsed(len(page.text.split()))


# --- the second constructor ------------------------------------------------------------------------------------


@in_virtual_time
async def test_the_steps_map_is_a_second_constructor_of_the_same_workflow():
    """S561, S562: `steps=` defines what decorators define: same order, options, types, and runs."""
    by_map = Workflow(
        "crawl", input=str, steps={"fetch": fetch, "parse": StepSpec(parse, attempts=5)}, outputs=Outputs
    )
    decorated = Workflow("crawl", input=str, outputs=Outputs)
    decorated.step(fetch)
    decorated.step(attempts=5)(parse)
    assert list(by_map.steps) == list(decorated.steps) == ["fetch", "parse"]
    assert [step.options.attempts for step in by_map.steps.values()] == [3, 5]
    assert by_map.seal() == decorated.seal()
    for workflow in (by_map, decorated):
        run = await settled(workflow, "a b ")
        assert (run.status, run.output) == ("done", Parsed(4))


@in_virtual_time
async def test_outputs_are_optional_until_their_step_is_done():
    """S562: a declared output is None before its step is done and after it was skipped, else of its type."""

    async def look(ctx: StepContext[str, str, Outputs]) -> Parsed:
        return Parsed(-1 if ctx.outputs.fetch is None else 1)

    skipping = StepSpec(fetch, skip_if=lambda state: state == "skip")
    workflow = Workflow("crawl", input=str, steps={"fetch": skipping, "parse": look}, outputs=Outputs)
    assert (await settled(workflow, "skip")).output == Parsed(-1)
    assert (await settled(workflow, "fetch")).output == Parsed(1)


class Misspelt(msgspec.Struct):
    fetch: Page
    pasre: Parsed


class WrongType(msgspec.Struct):
    fetch: Page
    parse: Page


class Missing(msgspec.Struct):
    fetch: Page


class AsDict(TypedDict):
    fetch: Page
    parse: Parsed


class AsOptionalDict(typing.TypedDict, total=False):
    fetch: typing.Required[Page | None]
    parse: typing.NotRequired[Parsed]


@dataclasses.dataclass
class AsDataclass:
    parse: Parsed | None
    fetch: Any = None


@pytest.mark.parametrize(
    ("outputs", "complaint"),
    [
        (Outputs, None),
        (AsDict, None),
        (AsOptionalDict, None),
        (AsDataclass, None),
        (Misspelt, r"pasre.*no such step"),
        (WrongType, r"parse.*says.*Page.*returns.*Parsed"),
        (Missing, r"parse.*no field"),
        (int, "Struct"),
    ],
    ids=[
        "right",
        "a typed dict",
        "an optional one",
        "a dataclass",
        "misspelt",
        "wrong type",
        "missing",
        "no record",
    ],
)
def test_declared_outputs_are_checked_at_definition(outputs, complaint):
    """S562: names and types of `outputs=` are compared with the steps when the workflow is defined."""
    if complaint is None:
        Workflow("crawl", input=str, steps={"fetch": fetch, "parse": parse}, outputs=outputs)
        return
    with pytest.raises(DefinitionError, match=complaint):
        Workflow("crawl", input=str, steps={"fetch": fetch, "parse": parse}, outputs=outputs)


def wrong_id(flow: Workflow[Any, Any]) -> None:
    flow.add_step("no spaces", fetch)


def long_id(flow: Workflow[Any, Any]) -> None:
    flow.add_step("x" * 101, fetch)


def twice(flow: Workflow[Any, Any]) -> None:
    flow.add_step("fetch", fetch)
    flow.add_step("fetch", fetch)


def no_argument(flow: Workflow[Any, Any]) -> None:
    handler: Any = lambda: None  # noqa: E731 - without its argument
    flow.add_step("fetch", handler)


def sealed(flow: Workflow[Any, Any]) -> None:
    flow.add_step("fetch", fetch)
    flow.seal()
    flow.add_step("parse", parse)


def unstorable(flow: Workflow[Any, Any]) -> None:
    flow.add_step("fetch", fetch, returns=io.StringIO)


@pytest.mark.parametrize("wrong", [wrong_id, long_id, twice, no_argument, sealed, unstorable])
def test_wrong_steps_are_told_at_definition(wrong):
    """Proves that ids, duplicates, handlers, sealed workflows and unstorable types are told at once, by name."""
    with pytest.raises(DefinitionError, match="flow"):
        wrong(Workflow("flow"))


@pytest.mark.parametrize("workflow_id", ["", "a b", "a/b", "ü", "x" * 101, None, 5])
def test_wrong_workflow_ids_are_told_at_definition(workflow_id):
    """Proves that a workflow's id has 1 to 100 letters, digits, dashes and underscores."""
    with pytest.raises(DefinitionError):
        Workflow(workflow_id)


async def test_a_workflow_without_steps_and_two_of_one_version_are_refused():
    """Proves that an engine tells at its opening what it cannot run."""
    with pytest.raises(DefinitionError, match="no steps"):
        async with open_engine("memory:", Workflow("empty")):
            pass
    one, other = (Workflow("same", steps={"fetch": fetch}) for _ in range(2))
    with pytest.raises(DefinitionError, match="same"):
        async with open_engine("memory:", one, other):
            pass


# --- typed data ------------------------------------------------------------------------------------------------


class Money(msgspec.Struct, frozen=True):
    amount: Decimal
    currency: typing.Literal["EUR", "USD"] = "EUR"


@in_virtual_time
async def test_returns_types_an_output_that_nothing_annotates():
    """Proves that `returns=` gives an output its type, and that an output that does not fit fails its step."""
    workflow: Workflow[Any, Any] = Workflow("typed")
    give = workflow.add_step("give", lambda _: Money(Decimal("1.50")), returns=Money | None)
    workflow.add_step("take", lambda ctx: repr(ctx.output(give)))
    run = await settled(workflow)
    assert run.steps["give"].output == Money(Decimal("1.50"))
    assert run.output == "Money(amount=Decimal('1.50'), currency='EUR')"
    wrong: Workflow[Any, Any] = Workflow("wrong")
    wrong.add_step("give", lambda _: {"amount": "much"}, returns=Money)
    run = await settled(wrong)
    assert (run.status, run.steps["give"].attempts) == ("failed", 1)
    assert run.error is not None
    assert run.error.code == "workflow.validation_error"
    assert "the output of step give" in run.error.message


@in_virtual_time
async def test_step_annotations_type_the_state():
    """S561: where only the handlers' `StepContext[In, State]` names the state's type, it is that type."""
    workflow: Workflow[Any, Any] = Workflow("annotated", state=lambda _: {"amount": "2"})

    @workflow.step
    async def look(ctx: StepContext[Any, Money]) -> str:
        assert isinstance(ctx.state, Money)
        return ctx.state.currency

    run = await settled(workflow)
    assert (run.output, run.state) == ("EUR", Money(Decimal(2)))


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (object(), r": \$: cannot store an object"),
        ({"deep": [1, open]}, r": \$\.deep\[1\]: cannot store a builtin_function_or_method"),
        (lambda: None, r": \$: cannot store a function"),
        ({1, object()}, r": \$\[\.\.\.\]: cannot store an object"),
        (2**70, r": \$: cannot store an integer outside"),
    ],
    ids=["object", "deep", "function", "in a set", "a huge integer"],
)
@in_virtual_time
async def test_what_cannot_be_stored_fails_the_step_clearly(value, complaint):
    """S566: an output that cannot be encoded fails the step at once, saying what and where."""
    workflow: Workflow[Any, Any] = Workflow("unstorable")
    workflow.add_step("give", lambda _: value)
    run = await settled(workflow)
    assert (run.status, run.steps["give"].attempts, run.lease) == ("failed", 1, None)
    assert run.error is not None
    assert run.error.code == "workflow.validation_error"
    assert re.search("the output of step give" + complaint, run.error.message)


@in_virtual_time
async def test_an_open_file_fails_the_step_and_a_set_is_a_list():
    """S566: an open file cannot be stored; a set can here: as a set where that is annotated, else as a list."""
    workflow: Workflow[Any, Any] = Workflow("sets")
    workflow.add_step("typed", lambda _: {3, 1}, returns=set[int])
    workflow.add_step("plain", lambda _: {3})
    workflow.add_step("file", lambda _: io.StringIO())
    run = await settled(workflow)
    assert (run.steps["typed"].output, run.steps["plain"].output) == ({1, 3}, [3])
    assert (run.status, run.steps["file"].status) == ("failed", "failed")
    assert run.error is not None
    assert "a StringIO" in run.error.message


# --- suspension ------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_catching_broad_exceptions_does_not_break_a_suspension():
    """S565: a suspension unwinds as trio's cancellation does, so that `except Exception` and `finally` are safe."""
    workflow: Workflow[Any, Any] = Workflow("broad")
    passed: list[str] = []

    @workflow.step
    async def work(ctx: StepContext) -> str:
        try:
            await ctx.sleep(60)
        except Exception:  # noqa: BLE001 - that it catches nothing is what is tested
            passed.append("caught")
        finally:
            passed.append("finally")
        return await ctx.wait("go", returns=str)

    async with open_engine("memory:", workflow) as engine:
        handle = await engine.start(workflow)
        assert (await at_rest(handle)).status == "waiting"
        await trio.sleep(61)
        await handle.resume("went")
        assert await handle.result() == "went"
    assert passed == ["finally"] * 3
    assert not issubclass(trio.Cancelled, Exception)


@in_virtual_time
async def test_swallowing_the_cancellation_is_told():
    """S565: a handler that catches even `BaseException` and goes on fails loudly, and at once."""
    workflow: Workflow[Any, Any] = Workflow("swallows")

    @workflow.step
    async def work(ctx: StepContext) -> str:
        try:
            await ctx.sleep(60)
        except BaseException:  # noqa: BLE001 - what it does wrong is what is tested
            return "swallowed"
        return "slept"

    run = await settled(workflow)
    assert (run.status, run.steps["work"].attempts) == ("failed", 1)
    assert run.error is not None
    assert run.error.code == "workflow.suspension"
    assert "swallowed the cancellation" in run.error.message


# --- the surface -----------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    return text.split()


NAMES = words("""
Workflow StepContext Step Signal StepOptions StepSpec open_engine Engine RunHandle Run StepState Store
MemoryStore SqliteStore Page Event
equals not_equals greater less has in_ all_ any_ not_
StreamlineError DefinitionError ValidationError WorkflowNotFound RunNotFound StepNotFound ScheduleNotFound
InvalidState InvalidTransition ConcurrencyLimitReached StepTimeout RunTimeout RunFailed RunCancelled LeaseLost
DataCorruption VersionMismatch PayloadTooLarge TenantRequired TokenInvalid SuspensionMismatch SuspensionError
WaitTimedOut WaitWithdrawn ChildFailed JoinFailed OutputMissing LoopLimitExceeded GuardRefused StoreUnavailable
NonRetriable
WorkflowStarted WorkflowCompleted WorkflowFailed WorkflowWaiting WorkflowResumed WorkflowPaused WorkflowUnpaused
WorkflowCancelled WorkflowRecovered WorkflowRetry WorkflowDeadLettered StepStarted StepCompleted StepFailed
StepWaiting StepSkipped StepRetryScheduled StepStream StepProgress EngineError
SchedulerCircuitOpen
""")

EVENT_NAMES = words("""
workflow.started workflow.completed workflow.failed workflow.waiting workflow.resumed workflow.paused
workflow.unpaused workflow.cancelled workflow.recovered workflow.retry workflow.dead_lettered
step.started step.completed step.failed step.waiting step.skipped step.retry_scheduled step.stream step.progress
engine.error scheduler.circuit_open
""")


@pytest.mark.parametrize("name", NAMES)
def test_documented_names_exist(name):
    """S563, S564: every documented name can be imported, is in `__all__`, and says that it is public."""
    public = getattr(streamline_trio, name)
    assert name in streamline_trio.__all__
    assert public.__module__ == "streamline_trio"
    assert public.__doc__


def test_the_export_list_is_sorted_and_whole():
    """S564: `__all__` is sorted, without doubles, and holds every public name of the package and nothing more."""
    exported = streamline_trio.__all__
    assert exported == sorted(set(exported))
    named = vars(streamline_trio).items()
    public = {name for name, value in named if not name.startswith("_") and not isinstance(value, ModuleType)}
    public.discard("annotations")
    assert public == set(exported)


def test_the_package_is_typed():
    """S563: the package ships `py.typed`, and tells its version."""
    assert importlib.resources.files("streamline_trio").joinpath("py.typed").is_file()
    assert streamline_trio.__version__ == importlib.metadata.version("streamline-trio")


async def test_documented_events_exist():
    """S564: every documented event can be listened to by name and glob, and its name is on its class."""
    async with open_engine("memory:", worker=False) as engine:
        for name in (*EVENT_NAMES, "workflow.*", "step.*", "*"):
            async with engine.events(name):
                pass
    assert set(EVENT_NAMES) <= {kind.name for kind in Event.__subclasses__()}


def test_documented_members_exist():
    """S564: engines, handles, contexts, runs and steps have their documented members."""
    assert _members(Engine) >= {"start", "run", "get", "find", "count", "delete", "emit", "resume", "withdraw"}
    assert _members(Engine) >= {"pending", "events", "on", "stats", "workers"}
    assert _members(RunHandle) >= {"get", "wait", "result", "output", "resume", "cancel", "pause", "unpause"}
    assert _members(RunHandle) >= {"rewind", "retry", "drive", "logs", "timeline", "stream"}
    assert _members(StepContext) >= set(
        words("""run_id workflow version step_id attempt input state outputs tenant meta cancelled_reason output set
        sleep sleep_until wait wait_for checkpoint checkpoint_value once goto stream log progress heartbeat
        idempotency_key""")
    )
    assert set(Run.__struct_fields__) >= set(
        words("""id workflow version status steps current_step input state output error created_at updated_at
        started_at ended_at due_at scheduled paused priority tenant user tags meta idempotency_key parent lease
        fence revision recoveries cancel_requested cancel_reason compensation""")
    )
    assert set(streamline_trio.StepState.__struct_fields__) >= set(
        words("""id status attempts started_at ended_at duration output error wait retry_at checkpoints history
        pinned compensation""")
    )


def _members(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_stores_are_stores(tmp_path):
    """S563: the shipped stores are `Store`s to `isinstance` too."""
    assert isinstance(MemoryStore(), Store)
    assert isinstance(SqliteStore(tmp_path / "x.db"), Store)


@in_virtual_time
async def test_public_objects_tell_what_they_are():
    """Proves that definitions, signals and handles have a readable `repr`, and handles compare by run."""
    workflow = Workflow("crawl", input=str, steps={"fetch": fetch, "parse": parse})
    assert repr(workflow) == "<Workflow crawl 1.0.0: fetch, parse>"
    assert repr(workflow.steps["fetch"]) == "<Step crawl/fetch -> Page>"
    assert repr(Signal("go", int)) == "Signal('go', int)"
    assert "attempts=2" in repr(StepOptions(attempts=2))
    async with open_engine("memory:", workflow) as engine:
        handle = await engine.start(workflow, "x", run_id="r1")
        assert repr(handle) == "<RunHandle r1>"
        assert {handle, engine.run("r1")} == {handle}
        assert handle != engine.run("r2")
