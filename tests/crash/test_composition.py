"""Steps of many parts under every mishap: each store call fails, each write is a crash or a lost lease."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest
import trio

from streamline_trio import Done, Engine, MemoryStore, Next, Signal, StepContext, Workflow
from streamline_trio.testing import CrashAt, DeliverTwice, FailCall, LoseLeaseAt, sweep

Ctx = StepContext[Any, Any]
go = Signal("go", int)
heard = Signal("heard", int)


class Parts:
    """A run with a scatter whose keys sleep, wait, listen and run, and a loop that does, and one who listens.

    `kept` is what is paid with a key of its own: twice is once. `calls` counts how often it was tried.
    """

    def __init__(self) -> None:
        self.kept: set[str] = set()
        self.calls: Counter[str] = Counter()
        self.parts: Workflow[Any, Any] = Workflow("parts")
        self.parts.add_step("fan", self._fan)
        self.parts.add_step("turns", self._turns)
        self.ear: Workflow[Any, Any] = Workflow("ear")
        self.ear.add_step("listen", self._listen)

    def _pay(self, ctx: Ctx, part: str) -> None:
        self.calls[part] += 1
        self.kept.add(ctx.idempotency_key(part))

    async def _fan(self, ctx: Ctx) -> Any:
        async def sleeps() -> str:
            await ctx.sleep(0.2)
            self._pay(ctx, "sleeps")
            return "slept"

        async def listens() -> int:
            payload = await ctx.wait_for(go)
            self._pay(ctx, "listens")
            return payload

        async def runs(name: str) -> str:
            await trio.sleep(0.3)
            self._pay(ctx, name)
            await ctx.emit(heard, len(name), run="ear")
            return name

        fns: dict[str, Any] = {
            "sleeps": sleeps,
            "listens": listens,
            "r": partial(runs, "r"),
            "rr": partial(runs, "rr"),
        }
        return await ctx.scatter(fns, concurrency=3)

    async def _turns(self, ctx: Ctx) -> Any:
        async def body(log: list[int], i: int) -> Next[list[int]] | Done[list[int]]:
            self._pay(ctx, f"turn {i}")
            await ctx.emit(heard, 10 + i, run="ear")
            await ctx.sleep(0.03)
            log = [*log, i]
            return Next(log) if i < 2 else Done(log)

        return await ctx.loop([], body)

    async def _listen(self, ctx: Ctx) -> list[int]:
        return [await ctx.wait_for(heard) for _ in range(5)]

    async def plays(self, engine: Engine) -> Any:
        """The scenario: what came of it, and what was paid."""
        self.kept.clear()
        self.calls.clear()
        ear = await engine.start(self.ear, None, run_id="ear")
        handle = await engine.start(self.parts, None, run_id="parts")
        await engine.emit(go, 7, run=handle, id="mail")
        assert await handle.result() == [0, 1, 2]
        took = await ear.result()
        for part, calls in self.calls.items():
            entries = 2 if part.startswith("turn") else 1  # what precedes a wait is called again after it
            assert calls <= entries + 1, f"{part} was called {calls} times"
        return [await handle.output("fan"), sorted(took), sorted(self.kept)]


@pytest.mark.parametrize(
    ("exclusive", "mishaps"),
    [
        (True, (FailCall, CrashAt, LoseLeaseAt, DeliverTwice)),
        (False, (CrashAt, LoseLeaseAt)),  # it polls, so that calls that could fail are many
    ],
)
def test_no_mishap_costs_a_part_or_makes_one_twice(exclusive, mishaps):
    """Proves that whatever call fails and wherever a worker dies, each part is kept and each signal comes once."""
    parts = Parts()
    played = sweep(
        parts.plays,
        parts.parts,
        parts.ear,
        mishaps=mishaps,
        store=lambda: MemoryStore(exclusive=exclusive),
    )
    assert {type(mishap) for mishap in played} == set(mishaps)
    assert len(played) > 50
