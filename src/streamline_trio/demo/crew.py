"""Worker processes, as the process that starts them sees them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import msgspec
import trio

from streamline_trio import StreamlineError
from streamline_trio.demo.worker import Told

_decode = msgspec.json.Decoder(Told).decode
_READY_WITHIN = 30.0


class WorkerFailed(StreamlineError):
    """A worker process ended by itself."""


class WorkerProcess:
    """One worker process. It is killed when the nursery it was started in is cancelled."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.ready_at: float = float("inf")
        self.recovered: list[float] = []
        self._folder = folder
        self._log = folder / f"{name.replace(' ', '-')}.log"
        self._process: trio.Process | None = None
        self._ready = trio.Event()
        self._dismissed = False
        self._exited = trio.Event()

    @property
    def pid(self) -> int | None:
        """The process, once it is started."""
        return None if self._process is None else self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status, once it has ended."""
        return None if self._process is None else self._process.returncode

    async def start(self, nursery: trio.Nursery, store: str) -> None:
        """Start the process; returns at once, long before it is ready."""
        command = [sys.executable, "-P", "-m", "streamline_trio.demo.worker"]
        command += ["--store", store, "--folder", str(self._folder), "--name", self.name]
        with self._log.open("ab") as log:
            self._process = await nursery.start(
                partial(
                    trio.run_process,
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    check=False,
                    deliver_cancel=_kill,
                    # Ctrl-C is for the parent: it decides what becomes of its workers.
                    start_new_session=True,
                )
            )
        nursery.start_soon(self._listen)

    async def ready(self) -> None:
        """Wait until it can work."""
        with trio.move_on_after(_READY_WITHIN) as scope:
            await self._ready.wait()
        if scope.cancelled_caught:
            raise WorkerFailed(f"{self.name} was not ready within {_READY_WITHIN:g} s: {self._last_words()}")

    async def kill(self) -> float:
        """SIGKILL: no handler, no cleanup, no goodbye; when it was sent, on the monotonic clock."""
        self._dismissed = True
        assert self._process is not None
        at = time.monotonic()
        self._process.kill()
        await self._exited.wait()
        return at

    async def stop(self) -> int | None:
        """SIGTERM: it drains and ends; its exit status."""
        self._dismissed = True
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        await self._exited.wait()
        return self.status

    async def _listen(self) -> None:
        """Hear what it says until it ends."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        buffer = bytearray()
        async for chunk in process.stdout:
            buffer += chunk
            *lines, rest = buffer.split(b"\n")
            buffer = bytearray(rest)
            for line in lines:
                self._hear(_decode(line))
        status = await process.wait()
        self._exited.set()
        if not self._dismissed:
            raise WorkerFailed(f"{self.name} ended by itself with status {status}: {self._last_words()}")

    def _hear(self, told: Told) -> None:
        if told.what == "ready":
            self.ready_at = told.at
            self._ready.set()
        else:
            self.recovered.append(told.at)

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines() if self._log.exists() else []
        return lines[-1] if lines else "it said nothing"


async def _kill(process: trio.Process) -> None:
    process.kill()
    await trio.lowlevel.checkpoint()
