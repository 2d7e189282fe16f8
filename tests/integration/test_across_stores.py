"""What one engine writes reaches another on the same SQLite file long before the poll interval is over."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from streamline_trio import Engine, RunCancelled, Signal, SqliteStore, StepContext, Workflow, open_engine
from streamline_trio.store import Hint, PutSide

POLL = 600.0
SOON = 20.0

Context = StepContext[Any, Any, Any]
go = Signal("go", str)


@asynccontextmanager
async def worker_and_client(path: Path, workflow: Workflow[Any, Any]) -> AsyncGenerator[tuple[Engine, Engine]]:
    """Each has a store object of its own, so that neither hears of the other but through the file."""
    async with (
        open_engine(SqliteStore(path), workflow, poll_interval=POLL, lease=POLL) as worker,
        open_engine(SqliteStore(path), workflow, poll_interval=POLL, lease=POLL, worker=False) as client,
    ):
        with trio.fail_after(SOON):
            yield worker, client


def test_a_start_a_signal_and_an_answer(tmp_path: Path) -> None:
    asked = trio.Event()

    async def tell(_token: str) -> None:
        asked.set()

    async def ask(ctx: Context) -> Any:
        return [await ctx.wait_for(go), await ctx.wait("who?", on_token=tell)]

    workflow = Workflow("talks", steps={"ask": ask})

    async def main() -> None:
        async with worker_and_client(tmp_path / "runs.db", workflow) as (_, client):
            run = await client.start(workflow, None)
            await client.emit(go, "now", run=run)
            await asked.wait()
            await run.resume("me")
            assert await run.result() == ["now", "me"]

    trio.run(main)


def test_a_cancellation_reaches_a_handler_that_runs(tmp_path: Path) -> None:
    entered, left = trio.Event(), trio.Event()

    async def hold(ctx: Context) -> None:
        entered.set()
        try:
            await trio.sleep_forever()
        finally:
            left.set()

    workflow = Workflow("holds", steps={"hold": hold})

    async def main() -> None:
        async with worker_and_client(tmp_path / "runs.db", workflow) as (_, client):
            run = await client.start(workflow, None)
            await entered.wait()
            await run.cancel("enough")
            await left.wait()
            with pytest.raises(RunCancelled):
                await run.result()

    trio.run(main)


def test_a_store_tells_that_others_have_written_and_says_nothing_of_itself(tmp_path: Path) -> None:
    heard: list[Hint] = []

    async def main() -> None:
        one, other = SqliteStore(tmp_path / "runs.db"), SqliteStore(tmp_path / "runs.db")
        await one.open()
        await other.open()
        told = trio.Event()

        def hear(hint: Hint) -> None:
            heard.append(hint)
            told.set()

        one.watch(hear)
        for number in range(50):
            await one.write([PutSide("kind", str(number), None, b"")])
        assert heard == []
        await other.write([PutSide("kind", "other", None, b"")])
        with trio.fail_after(SOON):
            await told.wait()
        assert heard == [Hint(run_id="")]
        await one.aclose()
        await other.aclose()

    trio.run(main)
