"""Payloads of a mebibyte everywhere: they come back, are written once, and go with their run."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import trio

from streamline_trio import Signal, SqliteStore, StepContext, Workflow, open_engine

LARGE = 1 << 20
TABLES = ("runs", "parts", "keys", "labels", "rows")

Context = StepContext[dict[str, bytes], dict[str, bytes], Any]
paid = Signal("paid", bytes)


def large(letter: str) -> bytes:
    return letter.encode() * LARGE


asked: list[trio.Event] = []


async def tell(_token: str) -> None:
    asked[-1].set()


async def keep(ctx: Context) -> bytes:
    await ctx.set(state=large("s"))
    await ctx.checkpoint(large("c"))
    assert await ctx.once("key", lambda: large("o"), returns=bytes) == large("o")
    assert await ctx.wait_for(paid) == large("p")
    assert await ctx.wait("who?", returns=bytes, token="a" * 20, on_token=tell) == large("a")
    assert ctx.checkpoint_value(bytes) == large("c")
    return large("r")


async def small(ctx: Context) -> int:
    await ctx.sleep(0.01)
    return 1


async def check(ctx: Context) -> list[int]:
    found = [ctx.input["input"], ctx.state["state"], ctx.output("keep")]
    assert found == [large("i"), large("s"), large("r")]
    return [len(value) for value in found]


WORKFLOW = Workflow(
    "large",
    input=dict[str, bytes],
    state=lambda _input: dict[str, bytes](state=b""),
    steps={"keep": keep, **{f"small-{number}": small for number in range(5)}, "check": check},
)


def size_of_log(path: Path) -> int:
    return path.with_name(path.name + "-wal").stat().st_size


def test_on_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    asked.append(trio.Event())

    async def main() -> None:
        async with open_engine(SqliteStore(path), WORKFLOW) as engine:
            run = await engine.start(WORKFLOW, {"input": large("i")}, tags=["a"])
            await engine.emit(paid, large("p"), run=run)
            await asked[-1].wait()
            await engine.resume("a" * 20, large("a"))
            assert await run.result() == [LARGE] * 3
            # Eight payloads, and nine steps that write none of them again.
            assert size_of_log(path) < 12 * LARGE
            assert await engine.delete() == 1
        with sqlite3.connect(path) as connection:
            counts = [connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES]  # noqa: S608
        connection.close()
        assert counts == [0] * len(TABLES)

    trio.run(main)
