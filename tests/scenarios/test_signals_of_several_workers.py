"""Broadcasts among several engines on one store, each with a connection of its own: memory, SQLite and MongoDB."""

from functools import partial
from typing import Any

import trio

from streamline_trio import CancelOn, Signal, StepContext, Trigger, Workflow, open_engine
from tests.scenarios.test_several_workers import LEASE, LONG, all_at_once, opened, store, until

__all__ = ["store"]

Ctx = StepContext[Any, Any]
news = Signal("news", dict[str, int])


def workflows() -> list[Workflow[Any, Any]]:
    """One that waits for the signal, one that it cancels, one that it starts."""
    listening: Workflow[Any, Any] = Workflow("listening")

    @listening.step
    async def listen(ctx: Ctx) -> Any:
        return await ctx.wait_for(news)

    unwanted: Workflow[Any, Any] = Workflow("unwanted", cancel_on=[CancelOn(news, match={"n": "n"})])

    @unwanted.step
    async def park(ctx: Ctx) -> None:
        await ctx.wait("for ever")

    wanted: Workflow[Any, Any] = Workflow("wanted", trigger=Trigger(news, input=lambda data: data["n"]))

    @wanted.step
    async def run(ctx: Ctx) -> Any:
        return ctx.input

    return [listening, unwanted, wanted]


async def test_one_id_from_four_engines_at_once(store):
    """S313: four engines that emit one id at the same time: every wait is answered once, whom it matches is
    cancelled, and one run is started; of three ids, three."""
    flows = workflows()
    async with opened(store, *flows, count=4) as engines:
        first = engines[0]
        for number in range(3):
            handles = [await first.start("listening", None) for _ in range(5)]
            doomed = [await first.start("unwanted", {"n": number}) for _ in range(2)]
            spared = await first.start("unwanted", {"n": 100 + number})

            async def parked(human: int = 3 + number) -> bool:
                return await first.count(waiting="signal") == 5 and await first.count(waiting="human") == human

            await until(parked)
            emissions = [partial(engine.emit, news, {"n": number}, id=f"id-{number}") for engine in engines]
            assert await all_at_once(*emissions) == [None] * 4
            assert [await handle.result() for handle in handles] == [{"n": number}] * 5
            assert [(await handle.wait()).status for handle in doomed] == ["cancelled"] * 2
            assert (await spared.get()).status == "waiting"

        async def all_started() -> bool:
            return await first.count(workflow="wanted", status="done") == 3

        await until(all_started)
        assert sorted([run.output for run in (await first.find(workflow="wanted")).items]) == [0, 1, 2]


async def test_a_client_emits_what_a_worker_starts(store):
    """Proves that what is emitted by a process that has not the code is started by one that has, once, although
    several look."""
    flows = workflows()
    async with opened(store, *flows, count=3) as engines:
        with trio.fail_after(LONG):
            async with open_engine(store(), worker=False, lease=LEASE, poll_interval=0.1) as client:
                for number in range(5):
                    await client.emit(news, {"n": number})

                async def all_started() -> bool:
                    return await client.count(workflow="wanted", status="done") == 5

                await until(all_started)
                assert await client.count(workflow="wanted") == 5
        assert len(engines) == 3
