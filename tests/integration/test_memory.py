"""What a run leaves in memory when it has ended: nothing, without the help of the garbage collector."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
import trio.testing

from streamline_trio import MemoryStore, StepContext, Workflow, open_engine, testing
from streamline_trio._runtime.attempt import Attempt
from streamline_trio._runtime.driver import Driver
from streamline_trio._runtime.handler_scope import HandlerScope
from streamline_trio._runtime.writer import RunWriter

Context = StepContext[Any, Any, Any]


@contextmanager
def collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def parts_of_runs() -> Counter[str]:
    kinds = (Driver, RunWriter, HandlerScope, Attempt, StepContext, trio.CancelScope)
    return Counter(type(found).__name__ for found in gc.get_objects() if issubclass(type(found), kinds))


async def returns(ctx: Context) -> int:
    return 1


async def keeps(ctx: Context) -> None:
    await ctx.checkpoint({"a": 1})
    await ctx.once("key", lambda: 2)
    ctx.log("hello")


async def sleeps(ctx: Context) -> None:
    await ctx.sleep(1)


@pytest.mark.parametrize("handler", [returns, keeps, sleeps])
def test_a_run_that_has_ended_leaves_no_cycle_behind(handler: Any) -> None:
    workflow = Workflow("w", steps={"first": handler, "second": returns})

    async def main() -> None:
        async with open_engine(MemoryStore(), workflow) as engine:
            await (await engine.start(workflow, None)).result()
            await trio.testing.wait_all_tasks_blocked()
            before = parts_of_runs()
            for _ in range(5):
                await (await engine.start(workflow, None)).result()
            await trio.testing.wait_all_tasks_blocked()
            assert parts_of_runs() == before

    with collector_off():
        testing.run(main)
