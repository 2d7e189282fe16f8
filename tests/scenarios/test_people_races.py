"""People and workers at the same time, through several engines on every store: one of them is first."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio

from streamline_trio import (
    Approved,
    Engine,
    InvalidState,
    Rejected,
    RunHandle,
    StepContext,
    TimedOut,
    TokenInvalid,
    Withdrawn,
    Workflow,
)
from streamline_trio.testing import parked
from tests.scenarios.test_several_workers import opened, store, through, until  # noqa: F401 - a fixture among them

ROUNDS = 4
Decision = Approved[int] | Rejected | Withdrawn | TimedOut
Call = Callable[[], Awaitable[object]]


class Asking:
    """A step that asks for an approval, then one that notes that it has gone on."""

    def __init__(self, timeout: float | None = None) -> None:
        self.tokens: dict[str, str] = {}
        self.went_on: list[str] = []
        self.flow: Workflow[Any, Any] = Workflow("asking")

        @self.flow.step
        async def ask(ctx: StepContext[Any]) -> Decision:
            async def tell(token: str) -> None:
                self.tokens[ctx.run_id] = token

            return await ctx.request_approval("pay?", returns=int, timeout=timeout, on_token=tell)

        @self.flow.step
        async def use(ctx: StepContext[Any]) -> None:
            self.went_on.append(ctx.run_id)

    async def begin(self, engine: Engine) -> RunHandle:
        handle = await engine.start(self.flow)
        assert (await parked(handle)).status == "waiting"
        return handle

    def token(self, handle: RunHandle) -> str:
        return self.tokens[handle.id]


async def who_won(*calls: Call) -> list[int]:
    """Which of the calls, all under way at once, were not refused."""
    won: list[int] = []

    async def call(place: int) -> None:
        try:
            await calls[place]()
            won.append(place)
        except (InvalidState, TokenInvalid):
            pass

    async with trio.open_nursery() as nursery:
        for place in range(len(calls)):
            nursery.start_soon(call, place)
    return won


async def test_an_answer_against_the_deadline(store):  # noqa: F811 - the fixture
    """S474, S475: however close an approval comes to its deadline, there is one outcome: if the approver was told
    yes the run has it, if he was refused it has timed out; and the run goes on once."""
    world = Asking(timeout=0.25)
    outcomes: set[str] = set()
    async with opened(store, world.flow) as (one, two):
        for number in range(8):
            handle = await world.begin(one)
            opened_at = trio.current_time()
            await trio.sleep_until(opened_at + 0.19 + number * 0.012)
            won = await who_won(partial(two.approve, world.token(handle), 7))
            await handle.wait()
            outcome = await handle.output(world.flow.steps["ask"])
            assert outcome == (Approved(7) if won else TimedOut())
            outcomes.add(type(outcome).__name__)
            assert world.went_on.count(handle.id) == 1


async def test_approvers_at_the_same_time(store):  # noqa: F811 - the fixture
    """S476: of an approval, a rejection and a withdrawal at once through two engines, one counts; the others are
    told that they came too late."""
    world = Asking()
    async with opened(store, world.flow) as (one, two):
        for number in range(ROUNDS):
            handle = await world.begin(one)
            token = world.token(handle)
            calls: list[Call] = [
                partial(one.approve, token, number),
                partial(two.reject, token, "no"),
                partial(two.run(handle.id).withdraw, "never mind"),
                partial(two.run(handle.id).approve, 99),
            ]
            (won,) = await who_won(*calls)
            await handle.wait()
            decided = (Approved(number), Rejected("no"), Withdrawn("never mind"), Approved(99))
            assert await handle.output(world.flow.steps["ask"]) == decided[won]
            assert world.went_on.count(handle.id) == 1


async def test_a_decision_against_a_rewind(store):  # noqa: F811 - the fixture
    """Proves that a decision and a rewind at once leave a whole run: it goes on with the decision, or asks afresh
    under another token; the old token is used up either way."""
    world = Asking()
    async with opened(store, world.flow) as (one, two):
        for _ in range(ROUNDS):
            handle = await world.begin(one)
            token = world.token(handle)
            await who_won(partial(one.approve, token, 1), partial(two.run(handle.id).rewind, "ask"))

            async def is_at_rest(handle: RunHandle = handle) -> bool:
                return (await handle.get()).status in {"waiting", "done"}

            await until(is_at_rest)
            with pytest.raises(TokenInvalid):
                await two.approve(token, 2)
            if (await handle.get()).status == "waiting":
                await until(partial(_has_another, world, handle, token))
                await two.approve(world.token(handle), 3)
            assert (await handle.wait()).status == "done"


async def _has_another(world: Asking, handle: RunHandle, token: str) -> bool:
    return world.token(handle) != token


async def test_one_fork_through_each_engine(store):  # noqa: F811 - the fixture
    """Proves that forks made at once through two engines are two runs, each driven once."""
    world = Asking()
    async with opened(store, world.flow) as (one, two):
        handle = await world.begin(one)
        await handle.approve(5)
        await handle.wait()
        forks: list[RunHandle] = []

        async def fork(engine: Engine) -> None:
            forks.append(await through(engine, handle).fork("use"))

        await who_won(partial(fork, one), partial(fork, two))
        for each in forks:
            run = await each.wait()
            assert (run.status, run.steps["ask"].output) == ("done", Approved(5))
        assert len({each.id for each in forks}) == 2
        assert sorted(world.went_on) == sorted([handle.id, *(each.id for each in forks)])


async def test_one_output_is_pinned(store):  # noqa: F811 - the fixture
    """Proves that two people who pin outputs at once leave one of them, whole, with its version."""
    flow: Workflow[Any, Any] = Workflow("flow", state=lambda _: {"n": 0})

    @flow.step(keep_outputs=5)
    async def generate(ctx: StepContext[Any, Any]) -> int:
        await ctx.set(n=ctx.state["n"] + 1)
        return int(ctx.state["n"])

    async with opened(store, flow) as (one, two):
        handle = await one.start(flow)
        await handle.wait()
        for _ in range(2):
            await handle.rewind("generate")
            await handle.wait()
        for _ in range(ROUNDS):
            calls: list[Call] = [
                partial(handle.pin_output, 1, "generate"),
                partial(two.run(handle.id).pin_output, 2, "generate"),
            ]
            assert len(await who_won(*calls)) == 2
            step = (await two.get(handle.id)).steps["generate"]
            assert step.output == step.pinned
            assert [version.output for version in step.history] == [1, 2]
