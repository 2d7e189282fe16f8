"""What callers and handlers should not do, and what must come of it all the same."""

from __future__ import annotations

import asyncio
from typing import Any

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


@in_virtual_time
async def test_a_broadcast_selects_by_tags_and_meta():
    """Proves that `match` compares what is asked of tags and meta, and refuses what can match nothing."""

    async def handler(ctx: StepContext) -> Any:
        return await ctx.wait_for("go")

    workflow = one_step(handler)
    async with open_engine("memory:", workflow) as engine:
        one = await engine.start(workflow, tags=["a", "b"], meta={"k": 1})
        two = await engine.start(workflow, tags=["b"], meta={"k": 2})
        await trio.testing.wait_all_tasks_blocked()
        await engine.emit("go", "no", match={"tags": ["a"], "meta": {"k": 2}})
        await engine.emit("go", "yes", match={"tags": ["a"], "meta": {"k": 1}, "workflow": "flow"})
        assert await one.result() == "yes"
        assert (await two.get()).status == "waiting"
        wrong: Any
        for wrong in (5, {"unknown": 1}, {"user": object()}, {"tags": "a"}, {"meta": 1}):
            with pytest.raises(ValidationError, match="match"):
                await engine.emit("go", match=wrong)


@pytest.mark.parametrize(
    "wrong", [{"workflow": 5}, {"user": 5}, {"paused": "x"}, {"tags": [5]}, {"meta": 5}, {"meta": {"a": object()}}]
)
@in_virtual_time
async def test_a_filter_of_the_wrong_kind_is_refused(wrong):
    """Proves that a filter which could match nothing is told, rather than answered with no runs."""
    async with open_engine("memory:") as engine:
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            await engine.find(**wrong)


@in_virtual_time
async def test_a_long_error_text_is_cut():
    """Proves that what a failing handler leaves is bounded, however long its text."""

    async def handler(ctx: StepContext) -> None:
        raise ValueError("x" * 5_000_000)

    workflow = one_step(handler, attempts=1)
    async with open_engine("memory:", workflow) as engine:
        error = (await (await engine.start(workflow)).wait()).error
    assert error is not None
    assert len(error.message) == 10_001
    assert len(error.traceback or "") <= 8_001


@in_virtual_time
async def test_only_given_signal_ids_are_remembered():
    """Proves that a signal without an id leaves nothing behind, and one with an id is known again."""
    store = MemoryStore()
    workflow = one_step(lambda ctx: ctx.wait_for("other"))
    async with open_engine(store, workflow) as engine:
        run = await engine.start(workflow)
        for _ in range(3):
            await engine.emit("go", run=run)
            await engine.emit("go", run=run, id="same")
        stored = await store.load(run.id)
    assert stored is not None
    assert (len(stored.seen), len(stored.inbox)) == (1, 4)


@in_virtual_time
async def test_a_sweep_drops_all_expired_broadcasts():
    """Proves that more expired broadcasts than one page holds are gone after one sweep."""
    store = MemoryStore()
    async with open_engine(store) as engine:
        for number in range(250):
            await engine.emit("go", id=f"n{number}")
        await trio.sleep(25 * 3600)
        await engine.emit("go", id="last")
        await trio.testing.wait_all_tasks_blocked()
    assert [side.key for side in await store.sides("broadcast")] == ["\ngo\nlast"]


async def test_a_store_url_without_a_file_says_so():
    """Proves that `sqlite:///` is told what it lacks."""
    with pytest.raises(ValidationError, match="names no file"):
        async with open_engine("sqlite:///"):
            pass
