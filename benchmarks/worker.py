"""A worker process of a benchmark: says that it is ready, waits for `go`, and works until its input ends.

What it has to say goes to standard output, a JSON object a line.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import trio
import trio.testing

from benchmarks.machine import resident_mib, settle_memory
from benchmarks.workflows import Effect, Effects, gather, signing, workflow_of
from streamline_trio import open_engine

STORE = "STREAMLINE_BENCH_STORE"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told when it is started."""

    store: str
    name: str
    effects: str
    steps: int
    seconds: float | None = 0.0
    capacity: int = 100
    lease: float = 15.0


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of itself; `at` is the machine's monotonic clock."""

    what: str
    at: float
    resident_mib: float
    tasks: int


async def work(job: Job) -> None:
    """Drive runs from `go` on; answer each `look` when all is at rest; the end of the input is the end."""
    effects = Effects(Path(job.effects))
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
        words = _words(stdin)
        with effects.open() as write:
            signed: list[Effect] = []
            sign = write if job.seconds is not None else signed.append
            workflow = workflow_of(job.steps, signing(sign, job.name, job.seconds))
            _tell("ready")
            if await anext(words, None) != "go":
                return
            async with open_engine(
                job.store,
                workflow,
                name=job.name,
                drain_timeout=1.0,
                max_concurrent_runs=job.capacity,
                lease=job.lease,
            ):
                settle_memory()
                _tell("open")
                async with trio.open_nursery() as nursery:
                    if job.seconds is None:
                        nursery.start_soon(gather, write, signed)
                    async for word in words:
                        await trio.testing.wait_all_tasks_blocked()
                        _tell(word)
                    nursery.cancel_scope.cancel()


async def _words(stdin: trio.abc.ReceiveStream) -> AsyncIterator[str]:
    """The lines of the input."""
    rest = b""
    async for chunk in stdin:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode()


def _tell(what: str) -> None:
    tasks = trio.lowlevel.current_statistics().tasks_living
    told = Told(what=what, at=time.monotonic(), resident_mib=resident_mib(), tasks=tasks)
    os.write(sys.stdout.fileno(), msgspec.json.encode(told) + b"\n")


def main() -> None:
    """Read the job, given as one JSON argument, and do it; the URL of its store comes by the environment."""
    logging.basicConfig(level=logging.ERROR)
    job = msgspec.json.decode(sys.argv[1], type=Job)
    trio.run(work, msgspec.structs.replace(job, store=os.environ[STORE]))


if __name__ == "__main__":
    main()
