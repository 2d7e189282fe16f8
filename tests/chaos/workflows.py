"""What the runs do: a workflow for each shape. Every output names the body that made it."""

# ruff: noqa: ARG002 - every body has the parameters of its protocol

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import trio

from streamline_trio import StepContext, WaitTimedOut, Workflow
from tests.chaos.journal import Journal
from tests.chaos.records import Job

NOTE = "note"
NOBODY = "nobody"
SHIELDED = 0.8
SLOW = 4.0
TIMEOUT = 0.4
ATTEMPTS = {"flaky": 4, "broken": 2, "late": 3}
"""Limits of the shapes that fail."""


class State(msgspec.Struct):
    """What changes while a run goes on."""

    sets: int = 0
    rounds: int = 0


Context = StepContext[Job, State]
Body = Callable[[Context, str], Awaitable[Any]]


class PlannedFailure(Exception):
    """A handler fails as it must."""


class Shapes:
    """Builds the workflows of one process."""

    def __init__(self, journal: Journal, folder: Path) -> None:
        self._journal = journal
        self._fixed = folder / "fixed"
        self.all: list[Workflow[Any, Any]] = [
            self._shape("plain", one=self._work, two=self._work, three=self._work),
            self._shape("nap", doze=self._doze, work=self._work),
            self._shape("ask", ask=self._ask, use=self._use),
            self._shape("quiet", ask=self._ask_for_a_moment, use=self._use),
            self._shape("listen", listen=self._listen, use=self._use),
            self._shape("herald", hear=self._hear, use=self._use),
            self._shape("flaky", work=self._work, fails=self._fail_sometimes),
            self._shape("broken", work=self._work, fails=self._fail_until_fixed),
            self._shape("late", work=self._work, hangs=self._hang),
            self._shape("once", pay=self._pay, tell=self._pay),
            self._shape("slow", crawl=self._crawl, work=self._work),
            self._shape("back", one=self._work, two=self._work, again=self._go_back, end=self._work),
            self._shape("patch", one=self._patch, two=self._patch, three=self._patch),
            self._shape("shield", work=self._work, hide=self._hide),
            self._threaded(),
        ]

    def _shape(self, shape: str, **bodies: Body) -> Workflow[Job, State]:
        workflow: Workflow[Job, State] = Workflow(shape, input=Job, state=lambda _job: State())
        for step, body in bodies.items():
            options: dict[str, Any] = {"retry_delay": 0.1, "backoff": "fixed"}
            if step in {"fails", "hangs"}:
                options["attempts"] = ATTEMPTS[shape]
            if step == "hangs":
                options["timeout"] = TIMEOUT
            workflow.add_step(step, self._handler(body), **options)
        if shape == "plain":
            workflow.add_step("never", self._handler(self._work), skip_if=lambda _state: True)
            workflow.add_step("last", self._handler(self._use))
        return workflow

    def _handler(self, body: Body) -> Callable[[Context], Awaitable[dict[str, Any]]]:
        async def handler(ctx: Context) -> dict[str, Any]:
            with self._journal.inside(ctx) as entry:
                value = await body(ctx, entry)
            return {"entry": entry, "value": value}

        return handler

    def _threaded(self) -> Workflow[Job, State]:
        workflow: Workflow[Job, State] = Workflow("thread", input=Job, state=lambda _job: State())

        def block(ctx: Context) -> dict[str, Any]:
            with self._journal.inside(ctx) as entry:
                time.sleep(ctx.input.pace)
            return {"entry": entry, "value": None}

        workflow.add_step("block", block)
        workflow.add_step("work", self._handler(self._work))
        return workflow

    # --- bodies --------------------------------------------------------------------------------------------

    async def _work(self, ctx: Context, entry: str) -> None:
        await trio.sleep(ctx.input.pace)

    async def _use(self, ctx: Context, entry: str) -> Any:
        """Tell what the first step left."""
        first = next(iter(ctx.outputs))
        self._journal.did(ctx, entry, "saw", [first, ctx.output(first)["entry"]])
        await trio.sleep(ctx.input.pace)
        return ctx.output(first)["value"]

    async def _doze(self, ctx: Context, entry: str) -> None:
        for part in range(ctx.input.times):
            await ctx.sleep(ctx.input.pace * (part + 1) * 2)
        await trio.sleep(ctx.input.pace)

    async def _ask(self, ctx: Context, entry: str) -> str:
        answer = await ctx.wait("who", returns=str, on_token=self._passes_on(ctx, entry))
        await trio.sleep(ctx.input.pace)
        return answer

    async def _ask_for_a_moment(self, ctx: Context, entry: str) -> str:
        try:
            return await ctx.wait("who", returns=str, timeout=1.0, on_token=self._passes_on(ctx, entry))
        except WaitTimedOut:
            return NOBODY

    def _passes_on(self, ctx: Context, entry: str) -> Callable[[str], Awaitable[None]]:
        async def on_token(token: str) -> None:
            self._journal.did(ctx, entry, "token", token)
            await trio.lowlevel.checkpoint()

        return on_token

    async def _listen(self, ctx: Context, entry: str) -> list[str]:
        return [await ctx.wait_for(NOTE) for _ in range(ctx.input.times)]

    async def _hear(self, ctx: Context, entry: str) -> str:
        heard: str = await ctx.wait_for(herald_of(ctx.input))
        return heard

    async def _fail_sometimes(self, ctx: Context, entry: str) -> None:
        await trio.sleep(ctx.input.pace / 4)
        if ctx.attempt <= ctx.input.times:
            raise PlannedFailure(f"attempt {ctx.attempt}")

    async def _fail_until_fixed(self, ctx: Context, entry: str) -> None:
        await trio.sleep(ctx.input.pace / 4)
        if not (self._fixed / ctx.input.key).exists():
            raise PlannedFailure("it is broken")

    async def _hang(self, ctx: Context, entry: str) -> None:
        await trio.sleep(30 if ctx.attempt <= ctx.input.times else ctx.input.pace / 4)

    async def _pay(self, ctx: Context, entry: str) -> str:
        async def charge() -> str:
            self._journal.did(ctx, entry, "paid", entry)
            await trio.sleep(ctx.input.pace / 2)
            return entry

        paid: str = await ctx.once("payment", charge, returns=str)
        await trio.sleep(ctx.input.pace)
        return paid

    async def _crawl(self, ctx: Context, entry: str) -> None:
        await trio.sleep(SLOW)

    async def _go_back(self, ctx: Context, entry: str) -> None:
        if ctx.state.rounds < ctx.input.times:
            await ctx.set(rounds=ctx.state.rounds + 1)
            await ctx.goto("one")

    async def _patch(self, ctx: Context, entry: str) -> None:
        for _ in range(ctx.input.times):
            mine = ctx.state.sets + 1
            await ctx.set(sets=mine)
            self._journal.did(ctx, entry, "set", mine)
            await trio.sleep(ctx.input.pace / 4)

    async def _hide(self, ctx: Context, entry: str) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(SHIELDED)


def herald_of(job: Job) -> str:
    """The broadcast that is meant for this job's run."""
    return f"herald-{job.number}"


ORDER: dict[str, tuple[str, ...]] = {
    "plain": ("one", "two", "three", "never", "last"),
    "nap": ("doze", "work"),
    "ask": ("ask", "use"),
    "quiet": ("ask", "use"),
    "listen": ("listen", "use"),
    "herald": ("hear", "use"),
    "flaky": ("work", "fails"),
    "broken": ("work", "fails"),
    "late": ("work", "hangs"),
    "once": ("pay", "tell"),
    "slow": ("crawl", "work"),
    "back": ("one", "two", "again", "end"),
    "patch": ("one", "two", "three"),
    "shield": ("work", "hide"),
    "thread": ("block", "work"),
}
