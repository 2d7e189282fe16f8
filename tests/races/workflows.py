"""What the racing processes start: one workflow for each promise about starts."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import trio

from streamline_trio import Concurrency, Debounce, StepContext, Throttle, Workflow

LIMIT = 3
FEW = 2
RATE, WINDOW = 4, 0.4
QUIET, LONGEST = 0.25, 1.0
KINDS = ("queued", "refused", "throttled", "debounced", "keyed")


class Journal:
    """A file that processes append to: the order of its lines is the order in which things happened."""

    def __init__(self, folder: str | Path) -> None:
        self._path = Path(folder) / "journal"

    def add(self, **line: object) -> None:
        """The line is there once this returns, whoever dies then."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, (json.dumps(line) + "\n").encode())
        finally:
            os.close(descriptor)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._path.read_text().splitlines()]


def _bucket(value: dict[str, Any]) -> str:
    return str(value["key"])


def workflows(journal: Journal) -> list[Workflow[Any, Any]]:
    """All five; each run is inside from `entered` to `left`, also while it sleeps durably."""
    made = [
        Workflow("queued", concurrency=Concurrency(LIMIT, key=_bucket)),
        Workflow("refused", concurrency=Concurrency(FEW, key=_bucket, when_full="reject")),
        Workflow("throttled", throttle=Throttle(RATE, WINDOW, key=_bucket)),
        Workflow("debounced", debounce=Debounce(QUIET, key=_bucket, max_wait=LONGEST)),
        Workflow("keyed"),
    ]

    async def enter(ctx: StepContext[Any, Any]) -> None:
        journal.add(entered=ctx.run_id, workflow=ctx.workflow, key=ctx.input["key"], value=ctx.input["value"])
        await trio.sleep(random.uniform(0, 0.02))

    async def rest(ctx: StepContext[Any, Any]) -> None:
        if ctx.input["value"] % 3 == 0:
            await ctx.sleep(0.03)

    async def leave(ctx: StepContext[Any, Any]) -> int:
        journal.add(left=ctx.run_id, workflow=ctx.workflow, key=ctx.input["key"])
        return int(ctx.input["value"])

    for workflow in made:
        for handler in (enter, rest, leave):
            workflow.add_step(handler.__name__, handler, attempts=1)
    return made
