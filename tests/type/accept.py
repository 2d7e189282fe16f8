"""Calls that must type-check, in mypy and pyright, both strict."""

import datetime as dt
from collections.abc import Callable
from typing import Any, Literal, assert_type

import msgspec

from streamline_trio import (
    Branch,
    BranchResult,
    CompensationState,
    Engine,
    JoinResult,
    LocalTime,
    Occurrence,
    Recurrence,
    Run,
    RunCompensation,
    RunHandle,
    Signal,
    Step,
    StepContext,
    StepOptions,
    StepSpec,
    StepState,
    Workflow,
    all_,
    equals,
    greater,
    not_,
    open_engine,
)


class Order(msgspec.Struct, frozen=True):
    order_id: str
    cents: int = 0


class State(msgspec.Struct):
    status: Literal["new", "free", "paid"] = "new"
    attempts: int = 0


class Charge(msgspec.Struct):
    charge_id: str


class Outputs(msgspec.Struct):
    fetch: str | None = None
    count: int | None = None


# --- workflows and their parameters ----------------------------------------------------------------------------

assert_type(Workflow("plain"), Workflow[Any, Any])
assert_type(Workflow("typed", input=Order), Workflow[Order, Order])
assert_type(Workflow("stateful", input=Order, state=lambda _: State()), Workflow[Order, State])
assert_type(Workflow("list", input=list[Order]), Workflow[list[Order], list[Order]])
assert_type(Workflow("optional", input=Order | None), Workflow[Order | None, Order | None])

order = Workflow(
    "order",
    input=Order,
    state=lambda order: State(attempts=order.cents),
    version="2.0.0",
    defaults=StepOptions(attempts=5, retry_delay=dt.timedelta(seconds=2)),
    timeout=86_400,
    tags=("billing",),
)
approved = Signal("order.approved", bool)
moved = Signal("order.moved", tuple[int, str] | None)
untyped = Signal("order.untyped")

assert_type(approved, Signal[bool])
assert_type(moved, Signal[tuple[int, str] | None])
assert_type(untyped, Signal[Any])


# --- steps: attribute access is typed without annotations in predicates ----------------------------------------


@order.step
async def review(ctx: StepContext[Order, State]) -> bool:
    assert_type(ctx.input, Order)
    assert_type(ctx.state, State)
    assert_type(ctx.state.status, Literal["new", "free", "paid"])
    return await ctx.wait_for(approved, timeout=86_400)


@order.step(attempts=5, timeout=30, backoff="linear", skip_if=lambda state: state.status == "free")
async def charge(ctx: StepContext[Order, State]) -> Charge:
    assert_type(ctx.output(review), bool)
    assert_type(ctx.output(review, None), bool | None)
    assert_type(ctx.output("review"), Any)
    await ctx.set(status="paid")
    return Charge(ctx.idempotency_key("charge"))


@order.step(run_if=all_(not_(equals("status", "free")), greater("attempts", 3)))
def in_thread(ctx: StepContext[Order, State]) -> int:
    return len(ctx.output(charge).charge_id)


async def is_new(state: State) -> bool:
    return state.status == "new"


@order.step(id="other-name", run_if=is_new, retry_on=(OSError, ValueError), jitter=0, max_payload_bytes=None)
async def waits(ctx: StepContext[Order, State]) -> str | None:
    assert_type(await ctx.wait("how many?", returns=int), int)
    assert_type(await ctx.wait("who?", returns=Order), Order)
    assert_type(await ctx.wait("maybe?", returns=str | None), str | None)
    assert_type(await ctx.wait("what?", returns=Any), Any)
    assert_type(await ctx.wait("anything"), Any)
    assert_type(await ctx.wait_for(moved), tuple[int, str] | None)
    assert_type(await ctx.wait_for("by.name"), Any)
    await ctx.sleep(dt.timedelta(days=30))
    await ctx.sleep_until(dt.datetime(2027, 1, 1, tzinfo=dt.UTC))
    await ctx.checkpoint({"page": 3})
    assert_type(await ctx.once("key", lambda: 5), int)
    ctx.log("line", page=3)
    ctx.progress(50, "half", left=2)
    ctx.stream({"token": "x"})
    if ctx.attempt > 2:
        await ctx.goto(review)
    return ctx.cancelled_reason


assert_type(review, Step[bool])
assert_type(charge, Step[Charge])
assert_type(in_thread, Step[int])
assert_type(waits, Step[str | None])


async def plain(ctx: StepContext) -> int:
    assert_type(ctx.input, Any)
    assert_type(ctx.state, Any)
    assert_type(ctx.outputs, Any)
    return 1


assert_type(order.add_step("added", plain, attempts=2), Step[int])

# --- one parameter: the state is the input ---------------------------------------------------------------------

doubled = Workflow("doubled", input=Order)


@doubled.step(skip_if=lambda order: order.cents > 100)
async def double(ctx: StepContext[Order]) -> int:
    assert_type(ctx.input, Order)
    assert_type(ctx.state, Order)
    assert_type(ctx, StepContext[Order, Order])
    return ctx.state.cents * 2


# --- the steps map, with declared outputs ----------------------------------------------------------------------


async def fetch(ctx: StepContext[str, str, Outputs]) -> str:
    return ctx.input


async def count(ctx: StepContext[str, str, Outputs]) -> int:
    assert_type(ctx.outputs, Outputs)
    assert_type(ctx.outputs.fetch, str | None)
    return len(ctx.outputs.fetch or "")


crawl = Workflow("crawl", input=str, steps={"fetch": fetch, "count": StepSpec(count, attempts=5)}, outputs=Outputs)
assert_type(crawl, Workflow[str, str])


# --- compensations ---------------------------------------------------------------------------------------------


saga = Workflow("saga", input=int, compensate_on_cancel=True)


@saga.step
async def book(ctx: StepContext[int]) -> int:
    return ctx.input


@saga.step
def pay(ctx: StepContext[int]) -> Charge:
    return Charge("c-1")


@book.compensate
async def undo(ctx: StepContext[int]) -> None:
    assert_type(ctx.output(book), int)


@pay.compensate(attempts=5, retry_delay=dt.timedelta(seconds=2), timeout=30, when="started")
def undo_in_a_thread(ctx: StepContext[int]) -> str:
    return "undone"


undone: Callable[[StepContext[int]], str] = undo_in_a_thread


async def look_at_a_saga(run: Run) -> None:
    assert_type(run.compensation, RunCompensation | None)
    assert_type(run.steps["a"].compensation, CompensationState | None)


# --- times of a place ------------------------------------------------------------------------------------------

noon = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)
LocalTime(dt.datetime(2026, 6, 1, 12), "Europe/Berlin")  # noqa: DTZ001
assert_type(Recurrence.daily("09:00", "Europe/Berlin", until=noon, count=3, overlap="skip"), Recurrence)
assert_type(Recurrence.weekly(["mon", 5], dt.time(9), "Europe/Berlin", catch_up=2, misfire_grace=5), Recurrence)
assert_type(Recurrence.weekly(range(1, 6), "09:00", "Europe/Berlin"), Recurrence)
assert_type(Recurrence.monthly(-1, "09:00", "Europe/Berlin"), Recurrence)
assert_type(Recurrence.cron("@daily", "Europe/Berlin"), Recurrence)
assert_type(Recurrence.every(dt.timedelta(minutes=5)), Recurrence)
assert_type(Recurrence.every(60).next_after(noon, anchor=noon), Occurrence | None)
assert_type(Recurrence.every(60).between(noon, noon), list[Occurrence])


# --- engines and handles ---------------------------------------------------------------------------------------


async def program() -> None:
    async with open_engine("sqlite:///orders.db", order, doubled, crawl, lease=15, name="one") as engine:
        assert_type(engine, Engine)
        run = await engine.start(order, Order("o-1", 4200), idempotency_key="o-1", tags=["a"], priority=5)
        assert_type(run, RunHandle)
        await engine.start("order", {"order_id": "o-2"}, delay=60)
        await engine.start("order", {"order_id": "o-2"}, run_at=LocalTime("2026-03-29 02:30", "Europe/Berlin"))
        await engine.start("order")
        await engine.start(crawl, "text")
        await engine.start(Workflow("plain"))
        await engine.emit(approved, True, run=run)
        await engine.emit(moved, None)
        await engine.emit(untyped)
        await engine.emit("by.name", {"any": "thing"}, match={"user": "ada"})
        assert_type(await run.output(charge), Charge)
        assert_type(await run.output("charge"), Any)
        settled = await run.wait(timeout=5)
        assert_type(settled, Run)
        assert_type(settled.steps["charge"], StepState)
        assert_type(await run.result(), Any)
        await run.resume(5, step=waits)
        await run.rewind(to=review)
        page = await engine.find(workflow=order, status=["done", "failed"], limit=10)
        assert_type(page.items, list[Run])
        assert_type(page.cursor, str | None)
        assert_type(await engine.count(status="done", tags=["a"]), int)
        async with engine.events("step.*", run=run) as events:
            async for event in events:
                assert_type(event.run_id, str)


async def children(ctx: StepContext[Order, State], handle: RunHandle) -> None:
    plain: Workflow[Any, Any] = Workflow("plain")
    typed = Workflow("typed", input=Order)
    output: int = await ctx.child(typed, Order("o-1"), name="pay", on_failure="return", priority=5, tags=["a"])
    await ctx.child("typed", {"order_id": output})
    await ctx.child(plain, None)
    result = await ctx.join({"a": Branch(typed, Order("o-1")), "b": Branch("plain")}, policy="any", concurrency=2)
    assert_type(result, JoinResult)
    assert_type(result.branches["a"], BranchResult)
    assert_type((await handle.tree(depth=2)).children[0].run, Run)
