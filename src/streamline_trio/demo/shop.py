"""The world outside the workflow, in two files that every process of the demo can append to.

`ledger.jsonl` gets a line for each side effect, before the step that did it returns: it is the witness that
knows nothing of the engine. `mails.jsonl` is the outbox of mails to people.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec
import trio

from streamline_trio import NonRetriable, StepContext
from streamline_trio.demo.orders import NO_CREDIT, Order, has_carrier, share

REFUNDED_LATE = 0.5
"""For this part of the orders the first call for a refund is not answered."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A side effect, done (`ok`) or refused by the other side; or that one was undone (`undo`).

    `at` is the machine's monotonic clock.
    """

    run: str
    order: str
    step: str
    attempt: int
    key: str
    ok: bool
    worker: str
    pid: int
    at: float
    undo: bool = False

    @property
    def what(self) -> str:
        """The step, or the undoing of it."""
        return undoing(self.step) if self.undo else self.step


class Mail(msgspec.Struct, frozen=True, kw_only=True):
    """A mail with a link in it: whoever has the token may answer."""

    run: str
    order: str
    cents: int
    token: str


class ProviderDown(ConnectionError):
    """The payment provider did not answer; nothing was charged."""


def undoing(step: str) -> str:
    """What the undoing of a step is called."""
    return f"undoing {step}"


class Shop:
    """What handlers do to the world, seen from one process."""

    def __init__(self, folder: Path, worker: str) -> None:
        self.ledger: Path = folder / "ledger.jsonl"
        self.mails: Path = folder / "mails.jsonl"
        self._worker = worker

    async def work(self, ctx: StepContext[Order, Any], longest: float, *, undo: bool = False) -> None:
        """Be busy for a while, then do the side effect, or undo it."""
        await trio.sleep(longest * (0.3 + 0.7 * share(ctx.input.order_id, ctx.step_id)))
        self.book(ctx, undo=undo)

    async def put_back(self, ctx: StepContext[Order, Any]) -> None:
        """The goods go back to their shelf."""
        await self.work(ctx, 0.1, undo=True)

    async def hand_over(self, ctx: StepContext[Order, Any]) -> None:
        """To the carrier, if one takes the parcel."""
        if not has_carrier(ctx.input):
            raise NonRetriable(f"no carrier takes it to {ctx.input.city}")
        await self.work(ctx, 0.15)

    async def charge(self, ctx: StepContext[Order, Any]) -> None:
        """The payment provider: declines some cards, and does not answer the first calls for some orders."""
        order = ctx.input
        outages = int(share(order.order_id, "outages") * 6) - 3
        await trio.sleep(0.05 + 0.1 * share(order.order_id, f"charge {ctx.attempt}"))
        if order.card == NO_CREDIT:
            raise NonRetriable(f"the card ending {order.card} was declined")
        if ctx.attempt <= outages:
            self.book(ctx, ok=False)
            raise ProviderDown("the payment provider did not answer")
        self.book(ctx)

    async def refund(self, ctx: StepContext[Order, Any]) -> None:
        """The payment provider pays back, though for some orders not at the first call."""
        await trio.sleep(0.05 + 0.1 * share(ctx.input.order_id, f"refund {ctx.attempt}"))
        if ctx.attempt == 1 and share(ctx.input.order_id, "refund") < REFUNDED_LATE:
            self.book(ctx, ok=False, undo=True)
            raise ProviderDown("the payment provider did not answer")
        self.book(ctx, undo=True)

    def book(self, ctx: StepContext[Order, Any], *, ok: bool = True, undo: bool = False) -> None:
        """Write the ledger's line."""
        line = Line(
            run=ctx.run_id,
            order=ctx.input.order_id,
            step=ctx.step_id,
            attempt=ctx.attempt,
            key=ctx.idempotency_key("compensate" if undo else None),
            ok=ok,
            worker=self._worker,
            pid=os.getpid(),
            at=time.monotonic(),
            undo=undo,
        )
        _append(self.ledger, line)

    async def mail(self, ctx: StepContext[Order, Any], token: str) -> None:
        """Ask a person."""
        order = ctx.input
        _append(self.mails, Mail(run=ctx.run_id, order=order.order_id, cents=order.cents, token=token))
        await trio.lowlevel.checkpoint()


def _append(path: Path, line: msgspec.Struct) -> None:
    """One write to the end of the file: lines of several processes do not mix, and a killed one leaves no half."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, msgspec.json.encode(line) + b"\n")
    finally:
        os.close(descriptor)


class Tail:
    """Reads a file that grows, line by line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def lines(self) -> list[bytes]:
        """The whole lines that have come since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.splitlines()
