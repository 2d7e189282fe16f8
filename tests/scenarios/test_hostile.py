"""What callers and handlers should not do, and what must come of it all the same."""

from __future__ import annotations

import asyncio

import pytest
import trio

from streamline_trio import (
    InvalidState,
    MemoryStore,
    SqliteStore,
    StepContext,
    ValidationError,
    Workflow,
    open_engine,
)
from streamline_trio.testing import run as run_virtual
from tests.scenarios.worlds import in_virtual_time, one_step


@pytest.mark.parametrize("reason", [5, "\udce9", "x" * 10_001])
@in_virtual_time
async def test_a_reason_that_cannot_be_stored_is_refused(reason):
    """Proves that a reason which is no storable text changes nothing: the run stays readable and goes on."""
    workflow = one_step(lambda ctx: ctx.wait("answer me"))
    async with open_engine("memory:", workflow) as engine:
        run = await engine.start(workflow)
        await trio.testing.wait_all_tasks_blocked()
        before = (await run.get()).revision
        for verb in (run.cancel, run.pause, run.withdraw):
            with pytest.raises(ValidationError, match="reason"):
                await verb(reason)
        assert (await run.get()).revision == before


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_failure_whose_text_cannot_be_encoded_fails_the_run(store, tmp_path):
    """Proves that a file name that is no UTF-8 in an exception's text does not wedge the run."""
    calls: list[int] = []

    async def handler(ctx: StepContext) -> None:
        calls.append(ctx.attempt)
        ctx.log("\udce9", odd=object())
        ctx.progress(5, message="\udce9")
        raise ValueError("cannot open caf\udce9.txt")

    workflow = one_step(handler, attempts=2, retry_delay=0)
    chosen = MemoryStore() if store == "memory" else SqliteStore(tmp_path / "runs.db")
    async with open_engine(chosen, workflow) as engine:
        run = await (await engine.start(workflow)).wait(timeout=20)
        assert run.error is not None
        assert (run.status, calls, run.error.message) == ("failed", [1, 2], "cannot open caf\\udce9.txt")
        assert [line.message for line in await engine.run(run.id).logs()] == ["\\udce9", "\\udce9"]


@in_virtual_time
async def test_a_foreign_cancellation_fails_its_own_run_only():
    """Proves that an exception that is no Exception, and no interrupt, ends the run and not the engine."""

    async def handler(ctx: StepContext) -> None:
        raise asyncio.CancelledError

    workflow, other = one_step(handler), Workflow("other")

    @other.step
    async def fine(ctx: StepContext) -> int:
        return 7

    async with open_engine("memory:", workflow, other) as engine:
        assert (await (await engine.start(workflow)).wait()).status == "failed"
        assert await (await engine.start(other)).result() == 7


async def test_a_closed_engine_answers_instead_of_hanging():
    """Proves that verbs after the block, and waits that were pending when it was left, raise `InvalidState`."""
    workflow = one_step(lambda ctx: ctx.sleep(1))
    refused: list[str] = []

    async def wait() -> None:
        with pytest.raises(InvalidState, match="closed"):
            await run.wait()
        refused.append("wait")

    async with trio.open_nursery() as nursery:
        async with open_engine("memory:", workflow) as engine:
            run = await engine.start(workflow, delay=100)
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
        for verb in (run.cancel, run.wait, lambda: engine.start(workflow), lambda: engine.emit("x")):
            with pytest.raises(InvalidState, match="closed"):
                await verb()
    assert refused == ["wait"]


class SetBack:
    """A clock that somebody sets back."""

    def __init__(self) -> None:
        self.offset = 0

    def now(self) -> int:
        return 1_800_000_000_000 + int(trio.current_time() * 1000) % 1_000_000_000 + self.offset


def test_a_clock_that_is_set_back_delays_nothing_that_is_ready():
    """Proves that an answered run and a new one go on at once although the wall clock went back an hour."""

    async def main() -> None:
        clock = SetBack()
        workflow = one_step(lambda ctx: ctx.wait_for("go"))
        async with open_engine("memory:", workflow, clock=clock) as engine, open_engine("memory:") as _:
            run = await engine.start(workflow)
            await trio.testing.wait_all_tasks_blocked()
            await run.pause()
            await engine.emit("go", 1, run=run)
            clock.offset = -3_600_000
            await run.unpause()
            assert await run.result(timeout=3) == 1

    run_virtual(main)


@in_virtual_time
async def test_a_repeated_retry_is_a_no_op():
    """Proves that retrying a run that was just taken up again changes nothing, and one that is done refuses."""
    fails = [True]

    async def handler(ctx: StepContext) -> str:
        if fails[0]:
            raise ValueError("no")
        await ctx.sleep(10)
        return "yes"

    workflow = one_step(handler, attempts=1)
    async with open_engine("memory:", workflow) as engine:
        run = await engine.start(workflow)
        await run.wait()
        fails[0] = False
        await run.retry()
        await run.retry()
        assert await run.result() == "yes"
        with pytest.raises(InvalidState):
            await run.retry()
