"""Workflows made of others, for processes that are killed: a parent with children, and a saga."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from streamline_trio import Branch, Done, Next, StepContext, Workflow

if TYPE_CHECKING:
    from tests.crash.worker_process import Ledger

Context = StepContext[Any, Any]
BRANCHES = 4
SHOTS = 3


def composed(ledger: Ledger) -> list[Workflow[Any, Any]]:
    """A parent and the workflow of its children; a saga of three steps that fails at the last."""
    return [*_family(ledger), _saga(ledger)]


def _family(ledger: Ledger) -> list[Workflow[Any, Any]]:
    member: Workflow[Any, Any] = Workflow("member", input=int)

    @member.step
    async def half(ctx: Context) -> int:
        ledger.add("half", ctx.run_id, ctx.attempt)
        await trio.sleep(0.01)
        number: int = ctx.input
        return number

    @member.step
    async def whole(ctx: Context) -> int:
        ledger.add("whole", ctx.run_id, ctx.attempt)
        await ctx.sleep(0.02)
        return int(ctx.output("half")) * 2

    family: Workflow[Any, Any] = Workflow("family")

    @family.step
    async def only(ctx: Context) -> int:
        ledger.add("only", ctx.run_id, ctx.attempt)
        return int(await ctx.child(member, 100))

    @family.step
    async def many(ctx: Context) -> int:
        ledger.add("many", ctx.run_id, ctx.attempt)
        joined = await ctx.join({f"b{number}": Branch(member, number) for number in range(BRANCHES)})
        return int(sum(branch.output for branch in joined.branches.values()))

    @family.step
    async def spread(ctx: Context) -> int:
        async def shot(number: int) -> int:
            ledger.add("shot", ctx.run_id, number, ctx.attempt)
            await ctx.sleep(0.01 * number)
            return number

        shots = await ctx.scatter({f"k{number}": _call(shot, number) for number in range(SHOTS)})

        async def turn(state: int, number: int) -> Any:
            ledger.add("turn", ctx.run_id, number, ctx.attempt)
            return Done(state) if number == SHOTS else Next(state + number)

        turns: int = await ctx.loop(0, turn)
        return int(sum(shots.values())) + turns

    return [member, family]


def _call(function: Any, *args: Any) -> Any:
    async def call() -> Any:
        return await function(*args)

    return call


def _saga(ledger: Ledger) -> Workflow[Any, Any]:
    saga: Workflow[Any, Any] = Workflow("order")

    async def act(ctx: Context) -> str:
        ledger.add("act", ctx.run_id, ctx.step_id, ctx.attempt)
        await trio.sleep(0.01)
        return ctx.step_id

    async def undo(ctx: Context) -> None:
        ledger.add("undo", ctx.run_id, ctx.step_id, ctx.idempotency_key("compensate"), ctx.attempt)
        await trio.sleep(0.01)
        if ctx.step_id == "pay" and ctx.attempt == 1:
            raise ValueError("the bank is busy")
        ledger.add("undone", ctx.run_id, ctx.step_id, ctx.output(ctx.step_id))

    for name in ("reserve", "pay", "label"):
        saga.add_step(name, act).compensate(attempts=50, retry_delay=0.02)(undo)

    @saga.step(attempts=1)
    async def ship(ctx: Context) -> None:
        ledger.add("act", ctx.run_id, ctx.step_id, ctx.attempt)
        raise ValueError("no such street")

    return saga
