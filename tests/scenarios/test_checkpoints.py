"""What a step saves while it runs (LOOP, first half): checkpoints, `once`, and the keys it gives to the outside."""

from typing import Any

import msgspec

from streamline_trio import Engine, MemoryStore, StepContext, Workflow, open_engine
from tests.scenarios.worlds import in_virtual_time, one_step

Context = StepContext[Any, Any]


class Progress(msgspec.Struct):
    count: int
    last: str


async def played(workflow: Workflow[Any, Any], engine: Engine | None = None) -> Any:
    """The run as it ended."""
    if engine is not None:
        return await (await engine.start(workflow)).wait()
    async with open_engine("memory:", workflow) as opened:
        return await (await opened.start(workflow)).wait()


@in_virtual_time
async def test_there_is_no_checkpoint_at_first() -> None:
    """S141: a step that has saved nothing sees nothing, or the default that it asks for."""

    async def step(ctx: Context) -> list[Any]:
        return [ctx.checkpoint_value(), ctx.checkpoint_value(int, default=0)]

    assert (await played(one_step(step))).output == [None, 0]


@in_virtual_time
async def test_a_checkpoint_is_stored_before_the_step_ends() -> None:
    """S142: Proves that a checkpoint is in the store when `checkpoint` returns, while the step still runs."""
    store, seen = MemoryStore(), list[Any]()

    async def step(ctx: Context) -> None:
        await ctx.checkpoint({"last": 42, "items": [1, 2]})
        seen.append((await engine.get(ctx.run_id)).steps["step"])

    workflow = one_step(step)
    async with open_engine(store, workflow) as engine:
        await played(workflow, engine)
    assert [(state.status, state.checkpoints) for state in seen] == [
        ("running", {"default": {"last": 42, "items": [1, 2]}})
    ]


@in_virtual_time
async def test_the_last_checkpoint_survives_a_failure() -> None:
    """S143: Proves that what was saved before a step failed for good is still there, and no more than that."""
    handled = list[int]()

    async def step(ctx: Context) -> None:
        for place, item in enumerate([10, 20, 30, 40, 50]):
            handled.append(item)
            await ctx.checkpoint(place + 1)
            if item == 30:
                raise ValueError("the third")

    run = await played(one_step(step, attempts=1))
    assert (run.status, handled) == ("failed", [10, 20, 30])
    assert run.steps["step"].checkpoints == {"default": 3}


@in_virtual_time
async def test_an_attempt_goes_on_after_the_last_checkpoint() -> None:
    """S145: twenty items with a checkpoint and a heartbeat each; the next attempt begins where one failed."""
    handled = list[int]()

    async def step(ctx: Context) -> dict[str, int]:
        for item in range(ctx.checkpoint_value(int, default=0), 20):
            if item == 7 and ctx.attempt == 1:
                raise ValueError("once")
            handled.append(item)
            await ctx.checkpoint(item + 1)
            await ctx.heartbeat()
        return {"total": len(handled)}

    run = await played(one_step(step))
    assert (run.output, handled) == ({"total": 20}, list(range(20)))


@in_virtual_time
async def test_a_checkpoint_has_a_type() -> None:
    """S146: Proves that a structured checkpoint comes back as what it was."""

    async def step(ctx: Context) -> int:
        for item in ["a", "b", "c"]:
            saved = ctx.checkpoint_value(Progress, default=Progress(0, ""))
            await ctx.checkpoint(Progress(saved.count + 1, item))
        assert ctx.checkpoint_value(Progress) == Progress(3, "c")
        total: int = ctx.checkpoint_value(Progress).count
        return total

    assert (await played(one_step(step))).output == 3


@in_virtual_time
async def test_an_output_is_no_checkpoint() -> None:
    """S147, S148: Proves that later steps see what a step returned, and that its checkpoints are its own."""
    flow: Workflow[Any, Any] = Workflow("flow")
    handled = list[int]()

    @flow.step
    async def first(ctx: Context) -> str:
        for item in range(3):
            handled.append(item)
            await ctx.checkpoint(item)
        return "output"

    @flow.step
    async def second(ctx: Context) -> list[Any]:
        handled.extend(range(10, 13))
        return [ctx.output(first), ctx.checkpoint_value()]

    assert (await played(flow)).output == ["output", None]
    assert handled == [0, 1, 2, 10, 11, 12]


@in_virtual_time
async def test_once_is_once_over_attempts_and_of_any_size() -> None:
    """S159, S160: Proves that a memo is kept over attempts, also above the 10 KB where the original gave up."""
    calls = list[str]()

    async def step(ctx: Context) -> int:
        def charge() -> str:
            calls.append("charge")
            return "x" * 20_000

        value = await ctx.once("charge", charge)
        if ctx.attempt == 1:
            raise ValueError("after the charge")
        return len(value)

    run = await played(one_step(step))
    assert (run.output, calls, run.steps["step"].attempts) == (20_000, ["charge"], 2)


@in_virtual_time
async def test_a_key_for_the_outside_is_stable() -> None:
    """S161: Proves that a key names run, step and scope, and is the same in every attempt."""
    keys = list[tuple[str, str]]()

    async def step(ctx: Context) -> str:
        keys.append((ctx.idempotency_key(), ctx.idempotency_key("charge")))
        if ctx.attempt < 3:
            raise ValueError("again")
        return ctx.run_id

    workflow = one_step(step)
    async with open_engine("memory:", workflow) as engine:
        ids = [(await played(workflow, engine)).output for _ in range(2)]
    assert keys == [(f"{run}:step", f"{run}:step:charge") for run in ids for _ in range(3)]
