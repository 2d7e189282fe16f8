"""The worker processes: started, killed, frozen, dismissed, and started again."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import trio

from tests.chaos.journal import now
from tests.chaos.records import Fault, Reply, Request
from tests.chaos.worker import UNAVAILABLE

ROOT = Path(__file__).parents[2]
_decode_reply = msgspec.json.Decoder(Reply).decode
_READY_WITHIN = 60.0
_ENDED_BY_ITSELF = -1
"""In place of the exit status 0 of a process that nobody had told to end."""


class Process:
    """One process, from its start to its end."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self.pid: int = process.pid
        self.is_ready = False
        self.is_frozen = False
        self.is_armed = False
        self.ready = trio.Event()
        self.exited = trio.Event()
        self.killed_at: float | None = None
        self.dismissed_at: float | None = None
        self._waiting: dict[int, Callable[[Reply | None], None]] = {}

    @property
    def status(self) -> int | None:
        return self._process.returncode

    @property
    def is_gone(self) -> bool:
        return self.killed_at is not None or self.dismissed_at is not None or self.exited.is_set()

    async def listen(self) -> None:
        """Hear it until it ends; whoever still waits for a reply then gets none."""
        assert self._process.stdout is not None
        rest = b""
        async for data in self._process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._hear(line)
        await self._process.wait()
        self.exited.set()
        self.ready.set()
        for tell in list(self._waiting.values()):
            tell(None)

    def _hear(self, line: bytes) -> None:
        if line == b"ready":
            self.is_ready = True
            self.ready.set()
            return
        reply = _decode_reply(line)
        if reply.id in self._waiting:
            self._waiting[reply.id](reply)

    async def ask(self, request: Request) -> Reply | None:
        """Have its engine carry out a request; None if the process ends first."""
        replies: list[Reply | None] = []
        told = trio.Event()

        def tell(reply: Reply | None) -> None:
            replies.append(reply)
            told.set()

        self._waiting[request.id] = tell
        try:
            if self.exited.is_set() or not await self._send(request):
                return None
            await told.wait()
        finally:
            del self._waiting[request.id]
        return replies[0]

    async def _send(self, request: Request) -> bool:
        """One line, and whole: a second sender would find the pipe busy, were it ever full."""
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send_all(msgspec.json.encode(request) + b"\n")
        except (trio.BrokenResourceError, trio.BusyResourceError, trio.ClosedResourceError):
            return False
        return True

    async def disarm(self) -> None:
        """It will not die by itself any more, unless it is about to."""
        await self._send(Request(id=0, verb="disarm", job=0))

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)


class Crew:
    """So many processes at all times; whoever is gone is replaced."""

    def __init__(self, nursery: trio.Nursery, folder: Path, size: int) -> None:
        self._nursery = nursery
        self._folder = folder
        self.slots: list[Process | None] = [None] * size
        self.faults: list[Fault] = []
        self.exits: dict[int, int | None] = {}
        self.kills = 0
        self.freezes = 0
        self._closing = False

    @property
    def able(self) -> list[Process]:
        """Those that can be asked something, as far as known."""
        return [p for p in self.slots if p is not None and p.is_ready and not p.is_frozen and not p.is_gone]

    @property
    def living(self) -> list[Process]:
        """Those that nothing was done to yet."""
        return [p for p in self.slots if p is not None and not p.is_frozen and not p.is_gone]

    async def fill(self) -> None:
        """Start a process in every slot, and wait until all are ready."""
        for slot in range(len(self.slots)):
            await self._start(slot)
        with trio.fail_after(_READY_WITHIN):
            for process in self.living:
                await process.ready.wait()

    async def _start(self, slot: int, *arming: str) -> None:
        command = [sys.executable, "-m", "tests.chaos.worker", str(self._folder), *arming]
        with (self._folder / f"worker-{slot}.log").open("ab") as log:
            process = Process(
                await self._nursery.start(
                    partial(
                        trio.run_process,
                        command,
                        cwd=ROOT,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        check=False,
                        deliver_cancel=_kill,
                        start_new_session=True,
                    )
                )
            )
        process.is_armed = bool(arming)
        self.slots[slot] = process
        self._nursery.start_soon(self._attend, slot, process)

    async def _attend(self, slot: int, process: Process) -> None:
        """Hear the process; when it is gone, say what became of it and start the next."""
        await process.listen()
        if process.killed_at is not None or (process.is_armed and process.status == -signal.SIGKILL):
            since = process.killed_at if process.killed_at is not None else now()
            self.faults.append(Fault(kind="killed", pid=process.pid, since=since, until=now()))
            self.kills += 1
        elif process.status != UNAVAILABLE:
            by_itself = process.dismissed_at is None and process.status == 0
            self.exits[process.pid] = _ENDED_BY_ITSELF if by_itself else process.status
            since = process.dismissed_at if process.dismissed_at is not None else now()
            self.faults.append(Fault(kind="left", pid=process.pid, since=since, until=now()))
        if not self._closing:
            await self._start(slot, *self.arming())

    def arming(self) -> tuple[str, ...]:
        """How the next process is to be killed at a write, if it is; the nemesis says so."""
        return ()

    # --- faults --------------------------------------------------------------------------------------------

    def kill(self, process: Process) -> None:
        """SIGKILL, also of a frozen process."""
        process.killed_at = now()
        process.signal(signal.SIGKILL)

    async def freeze(self, process: Process, seconds: float, *, then_kill: bool = False) -> None:
        """SIGSTOP, and after a while SIGCONT or SIGKILL."""
        process.is_frozen, since = True, now()
        process.signal(signal.SIGSTOP)
        await trio.sleep(seconds)
        if process.exited.is_set() or process.killed_at is not None:
            return
        if then_kill:
            self.kill(process)
        else:
            process.signal(signal.SIGCONT)
            self.freezes += 1
        self.faults.append(Fault(kind="frozen", pid=process.pid, since=since, until=now()))
        process.is_frozen = False

    def dismiss(self, process: Process) -> None:
        """SIGTERM: it drains, hands its runs back and ends; one that has ended before is left alone."""
        if not process.exited.is_set():
            process.dismissed_at = now()
            process.signal(signal.SIGTERM)

    async def close(self, within: float) -> None:
        """Dismiss everybody and see them gone; who does not go is killed, and has no exit status."""
        self._closing = True
        leaving = [process for process in self.slots if process is not None and not process.exited.is_set()]
        with trio.move_on_after(within):
            async with trio.open_nursery() as nursery:
                for process in leaving:
                    nursery.start_soon(self._dismiss_when_ready, process)
        for process in leaving:
            if not process.exited.is_set():
                self.exits[process.pid] = None

    async def _dismiss_when_ready(self, process: Process) -> None:
        """Before it is, it does not know yet what a SIGTERM means."""
        await process.ready.wait()
        self.dismiss(process)
        await process.exited.wait()


async def _kill(process: trio.Process) -> None:
    process.kill()
    await trio.lowlevel.checkpoint()
