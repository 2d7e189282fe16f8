"""The fake context: everything a handler can ask of a real one, without an engine."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import inspect
from typing import Any

import msgspec
import pytest
import trio
import whenever

from streamline_trio import (
    MemoryStore,
    OutputMissing,
    Signal,
    StepContext,
    StepNotFound,
    SuspensionError,
    ValidationError,
    WaitTimedOut,
    WaitWithdrawn,
    Workflow,
    open_engine,
)
from streamline_trio._core.tenancy import unique_name
from streamline_trio.testing import FakeContext, NotGiven, WentTo, parked, run

START = whenever.Instant.from_utc(2026, 1, 1)


class OrderIn(msgspec.Struct, frozen=True):
    id: str
    cents: int


class State(msgspec.Struct):
    status: str = "new"
    by: str | None = None


class Kind(enum.Enum):
    A = "a"


@dataclasses.dataclass
class Point:
    x: int


approved = Signal("approved", OrderIn)
order = Workflow("order", version="2.0.0", input=OrderIn, state=lambda i: State(status=f"new {i.id}"))


@order.step
async def price(ctx: StepContext[OrderIn, State]) -> OrderIn:
    return ctx.input


@order.step
async def charge(ctx: StepContext[OrderIn, State]) -> str:
    return ctx.idempotency_key()


MEMBERS = {
    name: thing
    for kind in reversed(StepContext.__mro__)
    if kind.__module__.startswith("streamline_trio")
    for name, thing in vars(kind).items()
    if not name.startswith("_")
}
INPUT = OrderIn("o-1", 5)


@pytest.mark.parametrize("name", MEMBERS)
def test_it_has_every_member_with_the_same_signature(name):
    """Proves that the fake is in step with the real context: members, parameters, defaults, sync or async."""
    real: Any = MEMBERS[name]
    fake: Any = inspect.getattr_static(FakeContext, name)
    assert fake is not real
    assert type(fake) is type(real)
    if isinstance(real, property):
        return
    ours, theirs = inspect.signature(fake), inspect.signature(real)
    assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
        (p.name, p.kind, p.default) for p in theirs.parameters.values()
    ]
    assert inspect.iscoroutinefunction(fake) == inspect.iscoroutinefunction(real)


def test_a_member_that_is_missing_is_found():
    """Proves that the comparison above sees a method that only the real context has."""
    assert "wait" in MEMBERS
    assert len(MEMBERS) > 20
    assert inspect.getattr_static(FakeContext, "not_there", None) is None


async def test_it_is_who_it_was_made_to_be():
    """Proves that what identifies a call is what the test says."""
    ctx = FakeContext(
        charge,
        workflow=order,
        input=INPUT,
        attempt=3,
        run_id="r-7",
        tenant="t",
        meta={"a": (1, 2)},
        cancelled_reason="why",
    )
    assert isinstance(ctx, StepContext)
    assert (ctx.run_id, ctx.workflow, ctx.version, ctx.step_id) == ("r-7", "order", "2.0.0", "charge")
    assert (ctx.attempt, ctx.tenant, ctx.meta, ctx.cancelled_reason) == (3, "t", {"a": [1, 2]}, "why")
    run = unique_name("t", "r-7")
    assert (await charge(ctx), ctx.idempotency_key("refund")) == (f"{run}:charge", f"{run}:charge:refund")
    plain: Any = FakeContext("s", workflow="w")
    assert (plain.workflow, plain.version, plain.step_id, plain.attempt) == ("w", "1.0.0", "s", 1)
    assert FakeContext(charge).workflow == "order"


async def test_keys_are_those_of_a_run():
    """Proves that an idempotency key in a unit test looks as in a run."""
    async with open_engine(MemoryStore(), order) as engine:
        handle = await engine.start(order, INPUT)
        key = await handle.result()
    assert await charge(FakeContext(charge, run_id=handle.id)) == key


def test_input_and_state_come_from_storage():
    """Proves that objects keep their types, and that changing what was read changes nothing kept."""
    ctx: Any = FakeContext(input=INPUT, state=State())
    assert ctx.input == INPUT
    assert ctx.input is not INPUT
    ctx.state.status = "changed"
    assert ctx.state == State()
    assert FakeContext(input=INPUT).state == INPUT
    assert FakeContext(charge, workflow=order, input=INPUT).state == State("new o-1")
    assert FakeContext(charge, workflow=order, input={"id": "o-2", "cents": 1}).input == OrderIn("o-2", 1)
    assert FakeContext(charge, workflow=order, input=INPUT, state={"by": "me"}).state == State(by="me")
    for value in (None, 1, "x", {"a": [1]}, Kind.A, Point(2), dt.date(2026, 1, 1)):
        assert FakeContext(input=value).input == value


@pytest.mark.parametrize(
    "make",
    [
        lambda: FakeContext(input=object()),
        lambda: FakeContext(charge, workflow=order, input={"id": 5}),
        lambda: FakeContext(charge, workflow=order, input=INPUT, state=5),
        lambda: FakeContext(outputs={price: "five"}),
        lambda: FakeContext(workflow=order, input=INPUT, outputs={"price": "five"}),
    ],
)
def test_what_a_run_could_not_hold_is_refused(make):
    """Proves that a test cannot give what a run never has."""
    with pytest.raises(ValidationError):
        make()


async def test_state_is_changed_by_set_alone():
    """Proves that `set` checks fields and values, and that a test sees each change."""
    ctx: Any = FakeContext(state=State())
    await ctx.set(status="paid", by="me")
    await ctx.set(by=None)
    assert ctx.state == State("paid")
    assert ctx.changes == [{"status": "paid", "by": "me"}, {"by": None}]
    for wrong in ({"sum": 5}, {"status": 5}):
        with pytest.raises(ValidationError):
            await ctx.set(**wrong)
    assert ctx.state == State("paid")
    plain: Any = FakeContext(input={"a": 1})
    await plain.set(b=2)
    assert (plain.state, plain.input) == ({"a": 1, "b": 2}, {"a": 1})


def test_outputs_are_the_given_ones():
    """Proves that outputs are rebuilt in their types, and that missing ones are as in a run."""
    ctx: Any = FakeContext(charge, workflow=order, input=INPUT, outputs={"price": {"id": "x", "cents": 1}})
    assert ctx.output(price) == ctx.output("price") == ctx.outputs.price == OrderIn("x", 1)
    assert ctx.outputs.charge is None
    assert ctx.output(charge, None) is None
    with pytest.raises(OutputMissing, match="step charge of run run has no output"):
        ctx.output(charge)
    with pytest.raises(AttributeError, match="no step 'chrage'"):
        _ = ctx.outputs.chrage
    plain: Any = FakeContext(outputs={price: INPUT, "other": Point(1), "none": None})
    assert (plain.output(price), plain.output("other"), plain.output("none")) == (INPUT, Point(1), None)


async def test_sleeps_end_at_once_and_move_time_on():
    """Proves that a handler's sleeps are seen, and that no time is spent on them."""
    ctx: Any = FakeContext()
    began = trio.current_time()
    await ctx.sleep(dt.timedelta(days=3))
    assert ctx.now == START.add(hours=72)
    await ctx.sleep_until(START)
    assert ctx.now == START.add(hours=72)
    await ctx.sleep_until(START.add(hours=100))
    assert ctx.now == START.add(hours=100)
    assert [(asked.kind, asked.due_at) for asked in ctx.asked] == [
        ("timer", START.add(hours=72)),
        ("timer", START),
        ("timer", START.add(hours=100)),
    ]
    assert trio.current_time() - began < 60
    with pytest.raises(ValidationError):
        await ctx.sleep(-1)


async def test_waits_get_the_given_answers():
    """Proves that answers go by name, reason or signal, in order, each once, and in the type that is wanted."""
    ctx: Any = FakeContext(
        answers=[
            ("agree?", "yes"),
            (approved, {"id": "a", "cents": 1}),
            ("approved", OrderIn("b", 2)),
            ("second look", {"x": 1}),
            ("unasked", 1),
        ]
    )
    assert await ctx.wait("agree?", returns=str, timeout=60, meta={"k": 1}) == "yes"
    assert await ctx.wait_for(approved, match={"cents": 2}) == OrderIn("b", 2)
    assert await ctx.wait_for(approved) == OrderIn("a", 1)
    assert await ctx.wait("agree?", returns=Point, name="second look") == Point(1)
    assert ctx.unused == ["unasked"]
    first, second, third, fourth = ctx.asked
    assert (first.kind, first.reason, first.meta, first.token) == ("human", "agree?", {"k": 1}, None)
    assert first.due_at == START.add(seconds=60)
    assert (second.kind, second.signal, second.match) == ("signal", "approved", {"cents": 2})
    assert (third.match, third.due_at, fourth.name) == (None, None, "second look")


async def test_what_was_not_given_is_told():
    """Proves that a wait without an answer says what to write, and does not hang."""
    ctx: Any = FakeContext("review", answers={"agree": 1, approved: INPUT})
    with pytest.raises(NotGiven, match=r"step review asks for 'agree\?' \(human\)") as missing:
        await ctx.wait("agree?")
    assert "FakeContext(answers={'agree?': ...})" in str(missing.value)
    assert "left are: 'agree', 'approved'" in str(missing.value)
    with pytest.raises(NotGiven, match=r"give an answer that matches \{'cents': 9\} with"):
        await ctx.wait_for(approved, match={"cents": 9})
    with pytest.raises(NotGiven, match="left are: none"):
        await FakeContext[Any]().wait_for("other")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (WaitTimedOut, WaitTimedOut),
        (WaitWithdrawn, WaitWithdrawn),
        (WaitTimedOut("late"), WaitTimedOut),
        (KeyError("planted"), KeyError),
        (5, ValidationError),
    ],
)
async def test_answers_may_be_failures(answer, error):
    """Proves that an exception is raised, and that an answer of the wrong type is refused as in a run."""
    ctx: Any = FakeContext(answers={"agree?": answer})
    with pytest.raises(error):
        await ctx.wait("agree?", returns=str)


async def test_tokens_are_passed_on():
    """Proves that `on_token` is awaited before the answer, with a valid token."""
    ctx: Any = FakeContext(answers=[("a", 1), ("b", 2)])
    told: list[str] = []

    async def tell(token: str) -> None:
        told.append(token)

    await ctx.wait("a", on_token=tell)
    await ctx.wait("b", on_token=tell, token="a token of my own")
    assert told == [asked.token for asked in ctx.asked]
    assert told[1] == "a token of my own"
    assert len(told[0]) >= 16
    with pytest.raises(ValidationError, match="16"):
        await ctx.wait("c", token="short")


async def test_misuse_is_refused_as_in_a_run():
    """Proves that what a real context refuses whatever the run, the fake refuses too."""
    ctx: Any = FakeContext(answers=[("n", 1), ("n", 2)])
    await ctx.wait("a", name="n")
    with pytest.raises(SuspensionError, match="used twice"):
        await ctx.wait("b", name="n")
    for misuse in (
        lambda: ctx.wait("a", name=""),
        lambda: ctx.wait_for("two words"),
        lambda: ctx.once("", dict),
        lambda: ctx.checkpoint(1, ""),
        lambda: ctx.checkpoint(object()),
        lambda: ctx.sleep_until(dt.datetime(2026, 1, 1)),  # noqa: DTZ001 - that it is naive is the point
    ):
        with pytest.raises(ValidationError):
            await misuse()


async def test_goto_leaves_the_handler():
    """Proves that no handler goes on after `goto`, nor swallows it, and that the target is seen."""

    async def handler(ctx: StepContext[Any, Any]) -> None:
        try:
            await ctx.goto("price")
        except Exception as error:
            raise AssertionError("swallowed") from error

    with pytest.raises(WentTo) as gone:
        await handler(FakeContext(charge, workflow=order, input=INPUT))
    assert gone.value.step == "price"
    with pytest.raises(StepNotFound):
        await FakeContext(charge, workflow=order, input=INPUT).goto("nowhere")


async def test_what_is_kept_is_kept():
    """Proves that checkpoints and memos can be given, are rebuilt, and that `once` calls once."""
    ctx: Any = FakeContext(checkpoints={"page": 3}, memos={"known": {"x": 1}})
    assert ctx.checkpoint_value(int, "page") == 3
    assert ctx.checkpoint_value(int) is None
    assert ctx.checkpoint_value(int, default=0) == 0
    await ctx.checkpoint(Point(1))
    assert ctx.checkpoint_value(Point) == Point(1)
    calls: list[int] = []

    async def slow() -> Point:
        await trio.lowlevel.checkpoint()
        calls.append(1)
        return Point(len(calls))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ctx.once, "new", slow)
    assert await ctx.once("new", slow, Point) == Point(1)
    assert await ctx.once("known", slow, Point) == Point(1)
    assert await ctx.once("sync", lambda: 4) == 4
    assert calls == [1]
    with pytest.raises(ValidationError):
        await ctx.once("wrong", lambda: "x", int)


async def test_what_is_told_is_seen():
    """Proves that lines, progress, frames and heartbeats can be asserted."""
    ctx: Any = FakeContext()
    ctx.log("sent", to="me")
    ctx.progress(50, "half", left=1)
    ctx.stream({"token": "a"})
    await ctx.heartbeat()
    assert ctx.logs == [("sent", {"to": "me"})]
    assert ctx.told == [(50, "half", {"left": 1})]
    assert (ctx.frames, ctx.heartbeats) == ([{"token": "a"}], 1)


def test_a_handler_does_the_same_in_a_run():
    """Proves that one handler gives one result under the fake and in a run, with all that it keeps on the way."""
    workflow: Workflow[Any, Any] = Workflow("w", input=OrderIn, state=lambda _input: State())

    @workflow.step
    async def step(ctx: StepContext[OrderIn, State]) -> list[Any]:
        answer = await ctx.wait("agree?", returns=Point)
        payload = await ctx.wait_for(approved, match={"cents": 2})
        await ctx.sleep(3600)
        await ctx.set(by=payload.id)
        await ctx.checkpoint(payload, "p")
        memo = await ctx.once("k", lambda: Point(answer.x + 1), Point)
        return [answer.x, payload.id, memo.x, ctx.state.by, ctx.checkpoint_value(OrderIn, "p").cents, ctx.attempt]

    async def real() -> Any:
        async with open_engine(MemoryStore(), workflow) as engine:
            handle = await engine.start(workflow, INPUT)
            await parked(handle)
            await handle.resume({"x": 4})
            for cents in (1, 2):
                await engine.emit(approved, OrderIn(f"o-{cents}", cents), run=handle)
            return await handle.result()

    async def fake() -> Any:
        answers = [("agree?", {"x": 4}), (approved, OrderIn("o-1", 1)), (approved, OrderIn("o-2", 2))]
        return await step(FakeContext(step, workflow=workflow, input=INPUT, answers=answers))

    assert run(real) == run(fake) == [4, "o-2", 5, "o-2", 2, 1]
