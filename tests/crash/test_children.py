"""Whatever fails or dies while children are started and awaited: each runs once, and its parent hears of it."""

from collections import Counter
from typing import Any

from streamline_trio import Branch, Engine, StepContext, Workflow
from streamline_trio.testing import sweep

Context = StepContext[Any, Any]

bodies = Counter[int]()

small: Workflow[int, int] = Workflow("small", input=int)


@small.step
async def double(ctx: StepContext[int, int]) -> int:
    return ctx.input * 2


single: Workflow[int, int] = Workflow("single", input=int)


@single.step
async def delegate(ctx: StepContext[int, int]) -> int:
    doubled: int = await ctx.child(small, ctx.input)
    return doubled + 1


fan: Workflow[int, int] = Workflow("fan", input=int)


@fan.step
async def join(ctx: StepContext[int, int]) -> list[int]:
    result = await ctx.join({f"b{n}": Branch(small, n) for n in range(ctx.input)}, concurrency=2)
    return [branch.output for branch in result.branches.values()]


async def stands(engine: Engine, parent: str) -> tuple[Any, ...]:
    """How the children of a parent have ended; nothing may be left to do elsewhere."""
    children = await engine.find(parent=parent)
    return sorted((child.id.partition("-")[2], child.status, child.output) for child in children), len(children)


async def one_child(engine: Engine) -> object:
    run = await engine.start(single, 20, run_id="parent")
    return await run.result(), await stands(engine, "parent")


async def three_branches(engine: Engine) -> object:
    run = await engine.start(fan, 3, run_id="parent")
    return await run.result(), await stands(engine, "parent")


def test_a_child_is_started_once_and_wakes_its_parent_whatever_happens():
    """S137, S140, S237: every store call failed, every write a death: one child, one output, never two."""
    swept = sweep(one_child, single, small)
    assert len(swept) > 60


def test_each_branch_is_started_once_and_wakes_its_parent_whatever_happens():
    """S137, S140: every store call of a join of three failed, every write a death: one child for each branch."""
    swept = sweep(three_branches, fan, small)
    assert len(swept) > 60
