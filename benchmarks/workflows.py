"""The workflows that are measured, and what their handlers leave behind for those who count."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import trio

from streamline_trio import StepContext, Workflow

Handler = Callable[[StepContext[Any, Any]], Coroutine[Any, Any, None]]

YEAR = 365 * 86_400.0
_GATHERED_EVERY = 0.05


class Effect(msgspec.Struct, frozen=True):
    """A side effect: a handler was entered or left; `at` is the machine's monotonic clock."""

    what: Literal["entered", "left"]
    run: str
    step: str
    worker: str
    at: float


_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(Effect).decode


class Effects:
    """Side effects of all processes in one file, one a line; each is one atomic append."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._counted = 0
        self._read = 0

    def read(self) -> list[Effect]:
        """Everything so far; a line that is being written is left out."""
        if not self.path.exists():
            return []
        return [_decode(line) for line in self.path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

    async def has(self, count: int) -> bool:
        """Whether there are so many; looks only at what is new since it was asked last."""
        await trio.lowlevel.checkpoint()
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
            self._read += len(new)
            self._counted += new.count(b"\n")
        return self._counted >= count

    @contextmanager
    def open(self) -> Iterator[Callable[[Effect], object]]:
        """The function that appends."""
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            yield lambda effect: os.write(file, _encode(effect) + b"\n")
        finally:
            os.close(file)


async def gather(write: Callable[[Effect], object], effects: list[Effect]) -> None:
    """Write what handlers have put into the list, now and then: a system call in each would be measured too."""
    while True:
        await trio.sleep(_GATHERED_EVERY)
        while effects:
            write(effects.pop())


def workflow_of(steps: int, handler: Handler) -> Workflow[Any, Any]:
    """A workflow of that many equal steps. Its plan, and so its documents, do not depend on the handler."""
    return Workflow(f"bench-{steps}", steps={f"step-{number}": handler for number in range(1, steps + 1)})


async def nothing(ctx: StepContext[Any, Any]) -> None:
    """A step that does nothing: what is left is the engine."""


async def nap(ctx: StepContext[Any, Any]) -> None:
    """A step that sleeps longer than anybody measures."""
    await ctx.sleep(YEAR)


def signing(write: Callable[[Effect], object], worker: str, seconds: float | None) -> Handler:
    """A step that takes so long (None: for ever) and signs when it was entered and, if it takes time, left."""

    async def sign(ctx: StepContext[Any, Any]) -> None:
        write(Effect("entered", ctx.run_id, ctx.step_id, worker, time.monotonic()))
        if seconds is None:
            await trio.sleep_forever()
        elif seconds:
            await trio.sleep(seconds)
            write(Effect("left", ctx.run_id, ctx.step_id, worker, time.monotonic()))

    return sign
