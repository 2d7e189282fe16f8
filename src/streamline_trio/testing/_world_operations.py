"""Operations of drawn programs: each does one thing that a handler may do, and compares what it sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import Any

import msgspec
import trio

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import NonRetriable, WaitTimedOut, WaitWithdrawn
from streamline_trio._runtime.context import StepContext
from streamline_trio.testing._world_drawing import Op, Program, name_of

Context = StepContext[Any, Any, Any]


class Flaky(Exception):
    """A failure that another attempt may not meet."""

    code = "flaky"


class Operations(ABC):
    """What handlers do one thing at a time; `where` tells one operation of a step from the others."""

    def __init__(self) -> None:
        self.effects: Counter[tuple[str, str, str]] = Counter()
        self._values = 0
        self._tokens: list[tuple[str, str]] = []

    @abstractmethod
    def _wrong(self, text: str) -> None:
        """Note that a promise was not kept."""

    @abstractmethod
    def _stored(self, ctx: Context) -> RunDoc | None:
        """The run as it is stored; None when this handler's lease is not the stored one any more."""

    @abstractmethod
    def _program(self, ctx: Context) -> Program:
        """What the handler's workflow was drawn as."""

    def next_value(self) -> int:
        """Another number than ever before."""
        self._values += 1
        return self._values

    # --- working -------------------------------------------------------------------------------------------

    async def _do_effect(self, ctx: Context, _op: Op, where: str, _got: list[Any]) -> None:
        self._effect(ctx, where)

    async def _do_work(self, _ctx: Context, op: Op, _where: str, _got: list[Any]) -> None:
        await trio.sleep(op.size)

    async def _do_linger(self, ctx: Context, op: Op, _where: str, _got: list[Any]) -> None:
        """Work until the run is paused or its worker leaves, but not for ever: the step ends in between."""
        driver = ctx._driver  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - shipped with it
        for _ in range(int(op.size * 2)):
            if driver.leaving or driver.run.head.paused:
                return
            await trio.sleep(0.5)

    async def _do_stubborn(self, _ctx: Context, op: Op, _where: str, _got: list[Any]) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(op.size)

    async def _do_tidy(self, ctx: Context, op: Op, where: str, _got: list[Any]) -> None:
        try:
            await trio.sleep(op.size)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(op.size)
            self._effect(ctx, where)

    # --- waiting -------------------------------------------------------------------------------------------

    async def _do_sleep(self, ctx: Context, op: Op, _where: str, _got: list[Any]) -> None:
        await ctx.sleep(op.size)

    async def _do_wait(self, ctx: Context, op: Op, where: str, got: list[Any]) -> None:
        name = f"wait {where}"
        try:
            got.append(await ctx.wait("answer", name=name, returns=int, timeout=op.size or None))
        except (WaitTimedOut, WaitWithdrawn) as error:
            got.append(type(error).__name__)
        self._compare(ctx, f"={name}", got[-1])

    async def _do_token(self, ctx: Context, op: Op, where: str, got: list[Any]) -> None:
        async def pass_on(token: str) -> None:
            self._tokens.append((stored_as(ctx), token))
            await trio.sleep(0.1)

        name = f"wait {where}"
        try:
            value = await ctx.wait("answer", name=name, returns=int, timeout=op.size or None, on_token=pass_on)
            got.append(value)
        except (WaitTimedOut, WaitWithdrawn) as error:
            got.append(type(error).__name__)
        self._compare(ctx, f"={name}", got[-1])

    async def _do_ask(self, ctx: Context, op: Op, where: str, got: list[Any]) -> None:
        """A wait whose end without an answer fails the step."""
        got.append(await ctx.wait("answer", name=f"wait {where}", returns=int, timeout=op.size))

    async def _do_signal(self, ctx: Context, op: Op, where: str, got: list[Any]) -> None:
        name = f"signal {where}"
        try:
            got.append(await ctx.wait_for("st"[len(where) % 2], name=name, timeout=op.size or None))
        except WaitTimedOut as error:
            got.append(type(error).__name__)
        self._compare(ctx, f"={name}", got[-1])

    # --- keeping -------------------------------------------------------------------------------------------

    async def _do_once(self, ctx: Context, op: Op, where: str, got: list[Any]) -> None:
        key = "shared" if op.size else f"{name_of(ctx.step_id)}/{where}"

        async def act() -> int:
            known = self._stored(ctx)
            if known is not None and key in known.memos:
                self._wrong(f"{ctx.run_id}: once({key}) is called again though its result is stored")
            await trio.sleep(0.1)
            return self.next_value()

        value: int = await ctx.once(key, act, returns=int)
        got.append(value)
        stored = self._stored(ctx)
        if stored is not None and (memo := stored.memos.get(key)) is not None and plain_of(memo.value) != value:
            self._wrong(f"{ctx.run_id}: once({key}) gave {value}, and {plain_of(memo.value)} is stored")

    async def _do_set(self, ctx: Context, _op: Op, _where: str, _got: list[Any]) -> None:
        await ctx.set(count=ctx.state["count"] + 1)
        if ctx.state["count"] < 1:
            self._wrong(f"{ctx.run_id}: the state was counted up and is {ctx.state['count']}")

    async def _do_checkpoint(self, ctx: Context, _op: Op, where: str, _got: list[Any]) -> None:
        value = ctx.checkpoint_value(int, f"c{where}", 0) + 1
        await ctx.checkpoint(value, f"c{where}")
        if ctx.checkpoint_value(int, f"c{where}") != value:
            self._wrong(f"{ctx.run_id}: checkpoint c{where} is not what was saved")

    async def _do_pin(self, ctx: Context, _op: Op, _where: str, _got: list[Any]) -> None:
        """Take an older output of the step before, if it has any."""
        program = self._program(ctx)
        place = program.place(ctx.step_id)
        before = program.ids[max(place - 1, 0)]
        history = ctx.output_history(before) if place else []
        if history and ctx.output(before, default=None) is not None:
            await ctx.pin_output(history[0].version, before)

    async def _do_log(self, ctx: Context, _op: Op, where: str, _got: list[Any]) -> None:
        ctx.log("line", where=where)
        ctx.progress(50)
        ctx.stream(where)

    # --- leaving -------------------------------------------------------------------------------------------

    async def _do_flaky(self, ctx: Context, op: Op, _where: str, _got: list[Any]) -> None:
        if ctx.attempt <= op.size:
            raise Flaky(f"attempt {ctx.attempt} of {ctx.step_id} fails")

    async def _do_die(self, _ctx: Context, _op: Op, _where: str, _got: list[Any]) -> None:
        raise NonRetriable("so drawn")

    async def _do_back(self, ctx: Context, _op: Op, _where: str, _got: list[Any]) -> None:
        """Go back once: the steps that are reset know it by their generation."""
        if "~" not in ctx.idempotency_key():
            program = self._program(ctx)
            await ctx.goto(program.ids[max(program.place(ctx.step_id) - 1, 0)])

    async def _do_jump(self, ctx: Context, _op: Op, _where: str, _got: list[Any]) -> None:
        program = self._program(ctx)
        target = program.place(ctx.step_id) + 2
        if target < len(program.steps):
            await ctx.goto(program.ids[target])

    # --- what handlers see ---------------------------------------------------------------------------------

    def _effect(self, ctx: Context, where: str) -> None:
        if not is_gone(ctx):
            self.effects[stored_as(ctx), name_of(ctx.step_id), where] += 1

    def _compare(self, ctx: Context, key: str, seen: Any) -> None:
        """What a wait gave is the one outcome that is stored."""
        run = self._stored(ctx)
        if run is None:
            return
        record = next((record for path, record in run.records.items() if path.endswith(key)), None)
        told = {"timed_out": "WaitTimedOut", "withdrawn": "WaitWithdrawn"}
        stored = None if record is None else told.get(record.outcome or "", plain_of(record.value))
        if record is None or record.outcome is None or stored != seen:
            self._wrong(f"{ctx.run_id}: wait {key} gave {seen!r}, and {stored!r} is stored")


def stored_as(ctx: Context) -> str:
    """The id under which its run is stored, which has the tenant in it."""
    return ctx._driver.run.id  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - shipped with it


def is_gone(ctx: Context) -> bool:
    """Whether the process of this handler is dead."""
    return bool(ctx._driver.services.store.is_gone)  # type: ignore[attr-defined]  # noqa: SLF001


def plain_of(value: bytes | None) -> Any:
    """A payload as plain data."""
    return None if value is None else msgspec.msgpack.decode(value)
