"""Which keys of a scatter are called again, and when: after drains, crashes, and answers by others."""

from collections import Counter
from functools import partial
from typing import Any

import trio

from streamline_trio import Branch, MemoryStore, StepContext, Workflow, open_engine
from streamline_trio.testing import crash
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, one_step

Ctx = StepContext[Any, Any]

_TURNS = 40


async def _rest(_ctx: Ctx) -> None: ...


async def _pass() -> None: ...


@in_virtual_time
async def test_a_key_that_was_drained_before_it_parked_tells_its_token_again():
    """Proves that an open wait whose key had not unwound for it is no reason to leave the key alone."""
    store, told = MemoryStore(), list[str]()

    async def step(ctx: Ctx) -> Any:
        async def asks() -> int:
            async def tell(token: str) -> None:
                if len(told) == 0:
                    told.append("lost")
                    await trio.sleep_forever()
                told.append(token)

            answer: int = await ctx.wait("?", returns=int, on_token=tell)
            return answer

        return await ctx.scatter({"a": asks})

    workflow = one_step(step)
    async with open_engine(store, workflow, drain_timeout=0) as engine:
        handle = await engine.start(workflow, None)
        await idle()
    async with open_engine(store, workflow) as engine:
        run = await at_rest(engine.run(handle.id))
        assert (run.status, run.steps["step"].attempts, len(told)) == ("waiting", 1, 2)
        await engine.resume(told[1], 4)
        assert await engine.run(handle.id).result() == {"a": 4}


@in_virtual_time
async def test_after_a_crash_waiting_keys_are_called_once_more():
    """Proves that a new attempt asks for what the one before it waited for, and keeps the time it was asked at."""
    store, calls = MemoryStore(), Counter[str]()

    async def step(ctx: Ctx) -> Any:
        async def sleeps() -> float:
            calls["sleeps"] += 1
            await ctx.sleep(30)
            return trio.current_time()

        async def runs() -> None:
            calls["runs"] += 1
            await trio.sleep(10 if calls["runs"] > 1 else 1000)

        return await ctx.scatter({"sleeps": sleeps, "runs": runs})

    workflow = one_step(step)
    begun = trio.current_time()
    async with open_engine(store, workflow) as engine:
        handle = await engine.start(workflow, None)
        await trio.sleep(20)
        await crash(engine)
    async with open_engine(store, workflow) as engine:
        found = await engine.run(handle.id).result()
    assert 29 < found["sleeps"] - begun < 32
    assert calls == {"sleeps": 3, "runs": 2}


@in_virtual_time
async def test_a_nested_scatter_wakes_for_any_of_its_keys():
    """Proves that a key with several lines is called when one of them wakes, though the others sleep on."""
    woken: list[tuple[str, int]] = []

    async def step(ctx: Ctx) -> Any:
        async def leaf(name: str, seconds: int) -> None:
            await ctx.sleep(seconds)
            woken.append((name, round(trio.current_time() - begun)))

        async def branch() -> Any:
            return await ctx.scatter({"a": partial(leaf, "a", 10), "b": partial(leaf, "b", 20)})

        await ctx.scatter({"branch": branch, "other": partial(leaf, "other", 30)})

    workflow = one_step(step)
    begun = trio.current_time()
    async with open_engine("memory:", workflow) as engine:
        assert (await (await engine.start(workflow, None)).wait()).status == "done"
    assert woken == [("a", 10), ("b", 20), ("other", 30)]


@in_virtual_time
async def test_an_answer_by_another_process_reaches_a_waiting_key():
    """Proves that what another engine commits to the held run wakes the key, while its sibling runs on."""
    store, answered = MemoryStore(exclusive=False), list[int]()

    async def step(ctx: Ctx) -> Any:
        async def asks() -> None:
            answered.append(await ctx.wait("?", returns=int))

        await ctx.scatter({"a": asks, "b": partial(trio.sleep, 100)})

    workflow = one_step(step)
    async with open_engine(store, workflow) as worker, open_engine(store, worker=False) as client:
        handle = await worker.start(workflow, None)
        await trio.sleep(5)
        await client.run(handle.id).resume(6)
        await trio.sleep(5)
        assert answered == [6]
        assert (await handle.wait()).status == "done"


@in_virtual_time
async def test_a_finished_key_leaves_no_record_behind():
    """Proves that the write that keeps a key's result drops its waits, those of earlier attempts too."""
    store, calls = MemoryStore(), Counter[str]()

    async def step(ctx: Ctx) -> Any:
        async def turns() -> int:
            calls["turns"] += 1
            await ctx.sleep(1)
            if calls["turns"] == 2:
                await ctx.wait("of the first attempt alone")
            return 1

        async def runs() -> None:
            await trio.sleep(10)
            if ctx.attempt == 1:
                raise ValueError("once")
            await trio.sleep(50)

        return await ctx.scatter({"turns": turns, "runs": runs})

    workflow = one_step(step, retry_delay=0)
    async with open_engine(store, workflow) as engine:
        handle = await engine.start(workflow, None)
        await trio.sleep(30)
        document = await store.load(handle.id)
        assert document is not None
        assert (document.records, [*document.pieces]) == ({}, ["scatter#0:turns"])
        assert (await handle.wait()).status == "done"


@in_virtual_time
async def test_an_answer_that_comes_when_the_last_key_ends_calls_its_key():
    """Proves that no instant is lost between the end of the last running key and the write that parks the step."""
    answered = list[float]()

    async def step(ctx: Ctx) -> None:
        async def asks() -> None:
            await ctx.wait("?", name="ask")
            answered.append(trio.current_time())

        async def rests() -> None:
            await ctx.sleep(1000)

        async def works() -> None:
            await trio.sleep(5)

        await ctx.scatter({"asks": asks, "rests": rests, "works": works})

    async with open_engine("memory:", workflow := one_step(step)) as engine:
        for turns in range(_TURNS):
            began = trio.current_time()
            run = await engine.start(workflow)
            await trio.sleep_until(began + 5)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            await run.resume("yes", wait="scatter#0:asks/=ask")
            await trio.sleep(1)
            assert answered.pop() < began + 6, f"after {turns} turns"
            await run.cancel()


@in_virtual_time
async def test_a_join_whose_next_branch_may_start_when_the_last_key_ends_is_kept():
    """Proves that a join with `concurrency` that may go on just when its step parks starts no branch twice."""
    small: Workflow[Any, Any] = Workflow("small")
    small.add_step("small", _rest)

    async def step(ctx: Ctx) -> None:
        async def joins() -> None:
            await ctx.join({str(number): Branch(small) for number in range(3)}, concurrency=1)

        async def loops() -> None:
            for _ in range(2):
                await ctx.child(small)

        async def sleeps() -> None:
            await ctx.sleep(30)

        await ctx.scatter({"joins": joins, "loops": loops, "sleeps": sleeps, "ends": _pass})

    async with open_engine("memory:", workflow := one_step(step), small) as engine:
        for _ in range(_TURNS):
            run = await engine.start(workflow)
            await run.wait()
            assert await engine.count(parent=run) == 5
