"""Defining workflows: what is taken, what is refused, and what a run gets from a definition."""

# ruff: noqa: ARG002, ARG005, PLW0108 - stand-ins have the parameters of their protocol

import functools
from dataclasses import dataclass
from typing import Any, Generic, TypedDict

import msgspec
import pytest
import typing_extensions
from hypothesis import given
from hypothesis import strategies as st

from streamline_trio._core import definition, payload
from streamline_trio._core.definition import Workflow
from streamline_trio._core.errors import DefinitionError, StepNotFound, ValidationError
from streamline_trio._core.options import StepOptions, StepSpec
from streamline_trio._core.plan import Plan, StepPlan, make_plan
from streamline_trio._core.retry import RetryPolicy
from streamline_trio._core.step import Step

InT = typing_extensions.TypeVar("InT")
StT = typing_extensions.TypeVar("StT", default=InT)


class StepContext(Generic[InT, StT]):
    pass


class OrderIn(msgspec.Struct):
    order_id: str
    cents: int = 0


class OrderState(msgspec.Struct):
    order_id: str
    status: str = "new"


class OtherState(msgspec.Struct):
    order_id: str
    status: str = "other"


@dataclass
class Charge:
    charge_id: str


def fetch(ctx) -> int:
    return 1


async def parse(ctx) -> list[str]:
    return []


def untyped(ctx):
    return None


def _sealed(*ids, **options):
    workflow = Workflow("w", **options)
    for step_id in ids:
        workflow.add_step(step_id, untyped)
    workflow.seal()
    return workflow


# Building


def test_decorated_functions_are_the_steps_in_order():
    """Proves that both forms of the decorator add steps, async and sync, in the order of definition."""
    workflow = Workflow("order", version="2.0.0", tags=["shop"])

    @workflow.step
    async def review(ctx) -> bool:
        """Look at it."""
        return True

    @workflow.step(attempts=5, timeout=30)
    def charge(ctx) -> Charge:
        return Charge("c-1")

    @workflow.step(id="ship-it")
    async def ship(ctx) -> None:
        pass

    assert list(workflow.steps) == ["review", "charge", "ship-it"]
    assert (review.id, review.workflow_id, review.is_async, review.returns) == ("review", "order", True, bool)
    assert (charge.is_async, charge.returns, charge.options.attempts) == (False, Charge, 5)
    assert (getattr(review, "__name__", None), review.__doc__) == ("review", "Look at it.")
    assert workflow.seal().steps == (
        StepPlan(id="review", retry=RetryPolicy()),
        StepPlan(id="charge", retry=RetryPolicy(attempts=5), timeout=30.0),
        StepPlan(id="ship-it", retry=RetryPolicy()),
    )
    assert repr(workflow) == "<Workflow order 2.0.0: review, charge, ship-it>"
    assert repr(charge) == "<Step order/charge -> Charge>"
    assert repr(Workflow("empty")) == "<Workflow empty 1.0.0: no steps>"


def test_a_map_of_steps_makes_the_same_plan():
    """Proves that the map, with specs or bare handlers, is another constructor of the same thing."""
    mapped = Workflow("w", steps={"fetch": fetch, "parse": StepSpec(parse, attempts=5)})
    added = Workflow("w")
    added.add_step("fetch", fetch)
    added.add_step("parse", parse, attempts=5)
    assert mapped.seal() == added.seal()
    assert mapped.steps["parse"].handler is parse


def test_ids_may_have_dashes_underscores_and_capitals():
    """S024: proves which ids are taken, for workflows and for steps."""
    workflow = Workflow(
        "my-workflow_v2", steps={"step-one": fetch, "step_two": fetch, "stepThree": fetch, "4": fetch}
    )
    assert [step.id for step in workflow.seal().steps] == ["step-one", "step_two", "stepThree", "4"]


def test_timeouts_are_those_of_the_definition():
    """S067: proves that each step holds its own timeout, over the default one."""
    workflow = Workflow("w", defaults=StepOptions(timeout=7))
    workflow.add_step("short", untyped, timeout=0.5)
    workflow.add_step("long", untyped, timeout=60)
    workflow.add_step("default", untyped)
    assert [step.options.timeout for step in workflow.steps.values()] == [0.5, 60.0, 7.0]
    assert [step.timeout for step in workflow.seal().steps] == [0.5, 60.0, 7.0]


async def test_a_step_can_be_called_by_itself():
    """Proves that calling a step calls its handler with the context as it is."""
    workflow = Workflow("w")
    ctx = object()

    @workflow.step
    async def echo(ctx):
        return ctx

    same = workflow.add_step("same", lambda ctx: ctx)
    assert await echo(ctx) is ctx
    assert same(ctx) is ctx


def test_one_handler_may_serve_several_workflows():
    """Proves that a step given as a handler lends its function, read as async as it is."""
    first, second = Workflow("first"), Workflow("second")
    lent = second.add_step("lent", first.add_step("own", parse, attempts=9))
    assert (lent.handler, lent.is_async, lent.returns) == (parse, True, list[str])
    assert (lent.workflow_id, lent.options.attempts) == ("second", 3)


def test_the_steps_cannot_be_changed_from_outside():
    """Proves that the mapping of steps is a view to read."""
    steps: Any = Workflow("w").steps
    with pytest.raises(TypeError):
        steps["x"] = None


# Refusals


@pytest.mark.parametrize("bad", ["", "a b", "a.b", "a/b", "ü", "x" * 101, 5, None, "a\n"])
def test_a_bad_workflow_id_is_refused(bad):
    """Proves which ids a workflow cannot have."""
    with pytest.raises(DefinitionError, match="its id must be 1 to 100 letters"):
        Workflow(bad)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("version", bad) for bad in ("", "latest", "1.", "1..2", "1.0 beta", "1" * 51, 2, None, "1.0\n")],
        *[("timeout", bad) for bad in (0, -1, "30", True, float("inf"))],
        *[("max_payload_bytes", bad) for bad in (0, -1, 2.0, True)],
        *[("max_step_logs", bad) for bad in (-1, 1.5, None, True, 10**9)],
        *[("tags", bad) for bad in ("shop", ["a", ""], [1], None, 3, ["x" * 101], ["a\nb"])],
        *[("input", bad) for bad in (complex, lambda value: value, list[complex])],
        *[("state", bad) for bad in (5, "OrderState", lambda: None, lambda one, two: None)],
        *[("steps", bad) for bad in ([fetch], "fetch", 3)],
        *[("outputs", bad) for bad in (int, "Outputs", dict[str, int])],
        *[("defaults", bad) for bad in ({"attempts": 3}, 3)],
    ],
)
def test_a_bad_workflow_option_is_refused_by_name(option, value):
    """Proves that every bad option of a workflow is refused, naming workflow and option."""
    options = {"steps": {"fetch": fetch}, option: value}
    with pytest.raises(DefinitionError, match=f"^workflow 'order', option '{option}': ") as caught:
        Workflow("order", **options)
    assert (caught.value.meta["workflow"], caught.value.meta["option"]) == ("order", option)


@pytest.mark.parametrize("version", ["1", "1.0", "2.0.0", "10.2.3-rc.1", "1.0.0+build.5", "2024-01-01", "v3"])
def test_versions_look_like_versions(version):
    """Proves which version texts are taken."""
    assert Workflow("w", version=version).version == version


def test_a_second_step_of_the_same_id_is_refused():
    """Proves that ids are unique in a workflow."""
    workflow = Workflow("w", steps={"fetch": fetch})
    with pytest.raises(DefinitionError, match=r"workflow 'w', step 'fetch', option 'id': .*already"):
        workflow.step(fetch)


def test_a_handler_without_a_name_needs_an_id():
    """Proves that a lambda or a partial cannot be decorated without `id`, and the error says so."""
    workflow = Workflow("w")
    with pytest.raises(DefinitionError, match=r"option 'id'.*given with id="):
        workflow.step(functools.partial(untyped))
    with pytest.raises(DefinitionError, match=r"option 'id'"):
        workflow.step(lambda ctx: None)
    assert workflow.step(id="named")(functools.partial(untyped)).id == "named"


def test_a_spec_cannot_rename_its_key():
    """Proves that in the map the key is the id."""
    given: Any = {"id": "other"}
    with pytest.raises(DefinitionError, match="step 'fetch', option 'id': its id is the key"):
        Workflow("w", steps={"fetch": StepSpec(fetch, **given)})


def test_an_empty_workflow_cannot_be_sealed():
    """Proves that a workflow needs a step."""
    with pytest.raises(DefinitionError, match="workflow 'w': it has no steps"):
        Workflow("w").seal()


def test_a_sealed_workflow_takes_no_step():
    """Proves that the definition is final once an engine has taken it."""
    workflow = _sealed("one")
    assert workflow.sealed
    with pytest.raises(DefinitionError, match=r"workflow 'w', step 'two': .*sealed"):
        workflow.add_step("two", untyped)
    assert workflow.seal() is workflow.plan


def test_there_is_no_plan_before_the_seal():
    """Proves that a plan is only told of a final definition."""
    workflow = Workflow("w", steps={"fetch": fetch})
    assert not workflow.sealed
    with pytest.raises(DefinitionError, match="not sealed"):
        _ = workflow.plan


def test_the_number_of_steps_is_bounded(monkeypatch):
    """Proves that a workflow without end is refused."""
    monkeypatch.setattr(definition, "MAX_STEPS", 2)
    with pytest.raises(DefinitionError, match="at most 2 steps"):
        Workflow("w", steps={"a": fetch, "b": fetch, "c": fetch})


# Outputs


class Outputs(msgspec.Struct):
    fetch: int
    parse: list[str] | None = None


@dataclass
class OutputsDataclass:
    fetch: int
    parse: list[str]


class OutputsDict(TypedDict, total=False):
    fetch: int
    parse: list[str]


class Renamed(msgspec.Struct):
    fetched: int | msgspec.UnsetType = msgspec.field(name="fetch", default=msgspec.UNSET)
    parse: Any = None


class Short(msgspec.Struct):
    fetch: int


class Long(msgspec.Struct):
    fetch: int
    parse: list[str]
    ship: bool


class Unlike(msgspec.Struct):
    fetch: int
    parse: list[int]


@pytest.mark.parametrize("outputs", [Outputs, OutputsDataclass, OutputsDict, Renamed])
def test_outputs_like_the_steps_are_taken(outputs):
    """Proves that structs, dataclasses and typed dicts may type the outputs, allowing for skipped steps."""
    workflow = Workflow("w", steps={"fetch": fetch, "parse": parse}, outputs=outputs)
    workflow.seal()
    assert workflow.outputs_type is outputs


@pytest.mark.parametrize(
    ("outputs", "why"),
    [
        (Short, "workflow 'w', step 'parse', option 'outputs': Short has no field"),
        (Long, "workflow 'w', option 'outputs': Long has a field 'ship', but there is no such step"),
        (Unlike, "step 'parse', option 'outputs': .*list.int.*list.str."),
    ],
)
def test_outputs_unlike_the_steps_are_refused(outputs, why):
    """Proves that names and types are compared at definition time with a map, at the seal without."""
    with pytest.raises(DefinitionError, match=why):
        Workflow("w", steps={"fetch": fetch, "parse": parse}, outputs=outputs)
    decorated = Workflow("w", outputs=outputs)
    decorated.step(fetch)
    decorated.step(parse)
    with pytest.raises(DefinitionError, match=why):
        decorated.seal()


def _maybe(ctx) -> int | None:
    return None


@pytest.mark.parametrize(
    ("field", "fits"),
    [(int | None, True), (None | int, True), (int, False), (str | None, False), (None, False), (Any, True)],
)
def test_an_output_that_may_be_none_must_be_told(field, fits):
    """Proves that a field has to allow None when its step returns it."""
    outputs = msgspec.defstruct("Outs", [("maybe", field)])
    if fits:
        Workflow("w", steps={"maybe": _maybe}, outputs=outputs)
    else:
        with pytest.raises(DefinitionError, match="step 'maybe', option 'outputs'"):
            Workflow("w", steps={"maybe": _maybe}, outputs=outputs)


# Input and state


def _initial(workflow, value):
    stored = workflow.input_payload(value)
    state = workflow.initial_state(stored)
    return workflow.state_decoder(stored).decode(state, what="state")


def test_an_input_is_converted_and_checked():
    """Proves that plain data becomes the input type, defaults filled in, and that nonsense is refused."""
    workflow = Workflow("order", input=OrderIn)
    stored = workflow.input_payload({"order_id": "o-1"})
    assert workflow.input_decoder.decode(stored, what="input") == OrderIn("o-1", 0)
    assert workflow.input_payload(OrderIn("o-1")) == stored
    with pytest.raises(ValidationError, match="the input of workflow 'order'"):
        workflow.input_payload({"order_id": 5})


def test_without_state_the_state_is_a_copy_of_the_input():
    """Proves that the state has the input's value and type."""
    workflow = Workflow("order", input=OrderIn)
    assert _initial(workflow, OrderIn("o-1", 5)) == OrderIn("o-1", 5)
    assert workflow.state_decoder(b"").type is OrderIn


def test_without_input_anything_comes_back_as_plain_data():
    """Proves that an untyped workflow takes whatever can be stored."""
    workflow = Workflow("order")
    assert workflow.input_type is Any
    assert _initial(workflow, OrderIn("o-1", 5)) == {"order_id": "o-1", "cents": 5}


def _annotated(given: OrderIn) -> OrderState:
    return OrderState(given.order_id)


class FromInput(msgspec.Struct):
    given: OrderIn


class Maker:
    def __call__(self, given: OrderIn) -> OrderState:
        return OrderState(given.order_id)


@pytest.mark.parametrize(
    ("make", "state"),
    [
        (_annotated, OrderState("o-1")),
        (functools.partial(_annotated), OrderState("o-1")),
        (Maker(), OrderState("o-1")),
        (lambda given: OrderState(given.order_id), OrderState("o-1")),
        (lambda given: {"id": given.order_id}, {"id": "o-1"}),
        (FromInput, FromInput(OrderIn("o-1"))),
    ],
)
def test_state_is_made_from_the_input(make, state):
    """Proves that functions, classes and callable objects make the first state, rebuilt in its type."""
    assert _initial(Workflow("order", input=OrderIn, state=make), OrderIn("o-1")) == state


def _no_calls(given):
    raise AssertionError("called only to learn the type")


def test_the_state_type_is_told_without_calling_the_function():
    """Proves the order in which class, return annotation and handlers' annotations tell the state's type."""

    def returning(given) -> OrderState:
        raise AssertionError

    def handler(ctx: StepContext[Any, OtherState]):
        pass

    told = Workflow("w", state=returning, steps={"s": handler})
    told.seal()
    assert told.state_decoder(b"").type is OrderState
    of_class = Workflow("w", state=FromInput, steps={"s": handler})
    of_class.seal()
    assert of_class.state_decoder(b"").type is FromInput
    by_handlers = Workflow("w", state=_no_calls, steps={"s": handler, "t": untyped, "u": handler})
    by_handlers.seal()
    assert by_handlers.state_decoder(b"").type is OtherState


def test_a_state_type_nobody_tells_is_found_by_calling_once():
    """Proves that the function is called on demand, and the type remembered."""
    calls = []

    def make(given):
        calls.append(given)
        return OrderState(given)

    workflow = Workflow("w", state=make)
    stored = workflow.input_payload("o-1")
    assert [workflow.state_decoder(stored).type for _ in range(3)] == [OrderState] * 3
    assert calls == ["o-1"]


def test_handlers_that_disagree_about_the_state_are_refused():
    """Proves that annotations must agree when only they tell the state's type."""

    def one(ctx: StepContext[Any, OrderState]):
        pass

    def two(ctx: StepContext[Any, OtherState]):
        pass

    workflow = Workflow("w", state=lambda given: OrderState(given), steps={"one": one, "two": two})
    with pytest.raises(DefinitionError, match=r"option 'state': steps 'one' and 'two'.*unlike"):
        workflow.seal()
    assert not workflow.sealed
    Workflow("w", state=_annotated, steps={"one": one, "two": two}).seal()


def test_the_function_gets_its_own_copy_of_the_input():
    """Proves that what the state function does to its argument changes no stored input."""

    def make(given: list[int]) -> list[int]:
        given.append(1)
        return given

    workflow = Workflow("w", input=list[int], state=make)
    stored = workflow.input_payload([])
    assert [workflow.initial_state(stored) for _ in range(2)] == [payload.encode([1], what="x")] * 2
    assert stored == payload.encode([], what="x")


def test_an_error_of_the_state_function_is_a_validation_error():
    """Proves that a failing state function refuses the start, with its error chained."""
    workflow = Workflow("order", state=lambda given: given["missing"])
    with pytest.raises(ValidationError, match=r"the state of workflow 'order' .*KeyError: 'missing'") as caught:
        workflow.initial_state(workflow.input_payload({}))
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda given: complex(1, 2), "cannot store"),
        (lambda given: parse(given), "gave an awaitable"),
    ],
)
def test_a_state_that_cannot_be_stored_is_refused(make, why):
    """Proves that unstorable states and coroutines are validation errors."""
    workflow = Workflow("w", state=make)
    with pytest.raises(ValidationError, match=f"the state of workflow 'w'.*{why}"):
        workflow.initial_state(workflow.input_payload(None))


def test_a_state_unlike_its_annotation_is_refused():
    """Proves that a state which could not be rebuilt refuses the start, not the first step."""

    def make(given) -> OrderState:
        unlike: Any = {"status": "new"}
        return unlike  # type: ignore[no-any-return]

    workflow = Workflow("w", state=make)
    with pytest.raises(ValidationError, match=r"the state of workflow 'w'.*order_id"):
        workflow.initial_state(workflow.input_payload(None))


def test_states_of_two_types_need_an_annotation():
    """Proves that a type found by calling holds for every run, and a union has to be told."""

    def either(given):
        return OrderState("o") if given else OtherState("o")

    def told(given) -> OrderState | list[int]:
        return OrderState("o") if given else [1]

    workflow = Workflow("w", state=either)
    workflow.initial_state(workflow.input_payload(True))
    with pytest.raises(ValidationError, match=r"was a .*OrderState.* before.*annotate"):
        workflow.initial_state(workflow.input_payload(False))
    assert _initial(Workflow("w", state=told), False) == [1]


async def _async_state(given):
    return OrderState("o")


class _AsyncMaker:
    async def __call__(self, given):
        return OrderState("o")


@pytest.mark.parametrize("make", [_async_state, functools.partial(_async_state), _AsyncMaker()])
def test_an_async_state_function_is_refused(make):
    """Proves that the state is made without waiting."""
    with pytest.raises(DefinitionError, match="workflow 'w', option 'state': must be a sync function"):
        Workflow("w", state=make)


# The plan


def test_lookups_in_a_plan():
    """Proves position, neighbour, first and range of steps, and the error for an unknown one."""
    plan = _sealed("a", "b", "c").plan
    assert [plan.index(step) for step in "abc"] == [0, 1, 2]
    assert [plan.after(step) for step in "abc"] == ["b", "c", None]
    assert plan.first == "a"
    assert plan.step("b") == StepPlan(id="b", retry=RetryPolicy())
    assert plan.between("a", "b") == ("a", "b")
    assert plan.between("b", "b") == ("b",)
    assert plan.between("c", "a") == ()
    for look in (plan.index, plan.step, plan.after, lambda step: plan.between("a", step)):
        with pytest.raises(StepNotFound, match=r"'w', version '1.0.0', has no step 'x'"):
            look("x")


steps_of_plans = st.lists(
    st.builds(
        StepPlan,
        id=st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True),
        retry=st.builds(RetryPolicy, attempts=st.integers(1, 1000), delay=st.floats(0, 1e6)),
        timeout=st.none() | st.floats(0.001, 1e9),
    ),
    min_size=1,
    max_size=20,
    unique_by=lambda step: step.id,
)


@given(steps_of_plans, st.none() | st.floats(0.001, 1e9), st.integers(0, 10**6))
def test_a_plan_survives_storage(steps, timeout, max_step_logs):
    """Proves that a stored plan comes back equal, with working lookups and the same fingerprint."""
    plan = make_plan(workflow="w", version="1", steps=tuple(steps), timeout=timeout, max_step_logs=max_step_logs)
    stored = msgspec.msgpack.encode(plan)
    again = msgspec.msgpack.decode(stored, type=Plan)
    assert again == plan
    assert [again.index(step.id) for step in steps] == list(range(len(steps)))
    assert msgspec.msgpack.encode(again) == stored
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


def test_the_fingerprint_is_that_of_the_definition():
    """Proves that equal definitions have equal fingerprints and that every part of a plan counts."""
    plan = _sealed("a", "b").plan
    assert plan.fingerprint == _sealed("a", "b").plan.fingerprint
    assert len(plan.fingerprint) == 16
    int(plan.fingerprint, 16)
    different = [
        _sealed("b", "a"),
        _sealed("a"),
        _sealed("a", "b", version="2"),
        _sealed("a", "b", timeout=5),
        _sealed("a", "b", max_step_logs=5),
        _sealed("a", "b", defaults=StepOptions(attempts=4)),
        _sealed("a", "b", defaults=StepOptions(timeout=4)),
    ]
    assert len({plan.fingerprint, *(workflow.plan.fingerprint for workflow in different)}) == 8


def test_what_only_code_knows_is_not_in_the_plan():
    """Proves that options without meaning to other processes leave the fingerprint alone."""
    code = StepOptions(skip_if=lambda state: True, retry_on=OSError, max_payload_bytes=5)
    assert _sealed("a").plan == _sealed("a", defaults=code, tags=["x"], max_payload_bytes=9).plan


def test_a_handle_stays_generic_when_the_program_runs():
    """Proves that steps and workflows can be parametrized in annotations."""
    assert Step[int] is not None
    assert Workflow[OrderIn] is not None
    assert Workflow[OrderIn, OrderState] is not None
