"""Worker processes, as the process that starts them sees them. None outlives the block it was started in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import trio

from benchmarks.worker import STORE, Job, Told

ROOT = Path(__file__).parents[1]
_PATIENCE = 60.0
_decode = msgspec.json.Decoder(Told).decode


class WorkerProcess:
    """One worker process, listening to what it is told."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._heard = b""

    async def say(self, word: str) -> None:
        """Tell it: `go`, or `look`."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(word.encode() + b"\n")

    async def hear(self, what: str) -> Told:
        """Wait until it says this; everything else it says before is forgotten."""
        with trio.fail_after(_PATIENCE):
            while (told := await self._next()).what != what:
                pass
        return told

    async def kill(self) -> None:
        """SIGKILL, and wait until it is dead."""
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> None:
        """End its input, so that it drains; returns once it has ended."""
        assert self._process.stdin is not None
        await self._process.stdin.aclose()
        with trio.move_on_after(_PATIENCE):
            await self._process.wait()

    async def _next(self) -> Told:
        assert self._process.stdout is not None
        while b"\n" not in self._heard:
            chunk = await self._process.stdout.receive_some()
            if not chunk:
                raise RuntimeError(f"a worker ended by itself with status {await self._process.wait()}")
            self._heard += chunk
        line, _, self._heard = self._heard.partition(b"\n")
        return _decode(line)


@asynccontextmanager
async def workers(jobs: Sequence[Job]) -> AsyncIterator[list[WorkerProcess]]:
    """Start a process for each job; those that still run at the end of the block are killed.

    A process whose starter dies with SIGKILL sees its input end, and ends too.
    """
    async with trio.open_nursery() as nursery:
        yield [WorkerProcess(await nursery.start(partial(_run, job))) for job in jobs]
        nursery.cancel_scope.cancel()


async def _run(job: Job, task_status: trio.TaskStatus[trio.Process]) -> None:
    told = msgspec.json.encode(msgspec.structs.replace(job, store="")).decode()
    await trio.run_process(
        [sys.executable, "-m", "benchmarks.worker", told],
        cwd=ROOT,
        # A URL may hold a password, and anybody can read the arguments of a process.
        env={**os.environ, STORE: job.store},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        check=False,
        deliver_cancel=_kill,
        # Ctrl-C is for the parent: it ends its workers itself.
        start_new_session=True,
        task_status=task_status,
    )


async def _kill(process: trio.Process) -> None:
    process.kill()
    await trio.lowlevel.checkpoint()
