"""A race: four processes start runs at once and drive them, some are killed, the last ones finish the work."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import trio

from streamline_trio import Engine, Run, open_engine
from streamline_trio._core.status import RunStatus
from tests.races.laws import broken, calls_of
from tests.races.workflows import Journal, workflows

ROOT = Path(__file__).parents[2]
PROCESSES = 4
STARTS = 200
LONGEST = 60.0
UNSETTLED: tuple[RunStatus, ...] = ("draft", "running", "waiting", "compensating")


class Result(NamedTuple):
    """How a race went; `faults` are the broken laws."""

    runs: int
    acknowledged: int
    refused: int
    unanswered: int
    kills: int
    seconds: float
    faults: list[str]


async def race(url: str, folder: Path, seed: int, kills: int) -> Result:
    """Run one; the folder and the store are fresh. On a slow store the kills come more slowly too."""
    pace = 4.0 if url.startswith("mongodb") else 1.0
    chance, began = random.Random(seed), trio.current_time()
    values = list(range(STARTS))
    chance.shuffle(values)
    shares = [values[number::PROCESSES] for number in range(PROCESSES)]
    racers = [_Racer(url, folder, seed * 100 + number, share) for number, share in enumerate(shares)]
    journal = Journal(folder)
    try:
        async with open_engine(url, *workflows(journal), worker=False, poll_interval=0.1) as engine:
            for racer in racers:
                await racer.tells("ready")
            for racer in racers:
                racer.go()
            for number in range(kills):
                await trio.sleep(pace * chance.uniform(0.01, 0.3))
                victim = chance.randrange(PROCESSES)
                racers[victim].end()
                asked = {line["asked"] for line in journal.lines() if "asked" in line}
                left = [value for value in shares[victim] if value not in asked]
                racers[victim] = _Racer(url, folder, seed * 100 + PROCESSES + number, left)
                racers[victim].go()
            for racer in racers:
                await racer.tells("started")
            with trio.fail_after(LONGEST):
                while await engine.count(status=UNSETTLED):  # noqa: ASYNC110 - other processes tell nobody
                    await trio.sleep(0.1)
            runs = await _all_runs(engine)
    finally:
        for racer in racers:
            racer.end()
    lines = journal.lines()
    calls = calls_of(lines)
    return Result(
        runs=len(runs),
        acknowledged=sum(call.run is not None for call in calls),
        refused=sum("refused" in line for line in lines),
        unanswered=sum(call.told is None for call in calls),
        kills=kills,
        seconds=trio.current_time() - began,
        faults=broken(lines, runs),
    )


async def _all_runs(engine: Engine) -> list[Run]:
    found: list[Run] = []
    cursor: str | None = None
    while True:
        page = await engine.find(limit=500, cursor=cursor)
        found += page.items
        cursor = page.cursor
        if cursor is None:
            return found


class _Racer:
    """One of the processes."""

    def __init__(self, url: str, folder: Path, seed: int, values: list[int]) -> None:
        command = [sys.executable, "-m", "tests.races.racer", url, str(folder), str(seed), json.dumps(values)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    async def tells(self, word: str) -> None:
        """Until it has said this."""
        assert self._process.stdout is not None
        while (line := await trio.to_thread.run_sync(self._process.stdout.readline)) != f"{word}\n".encode():
            assert line, "a process that nobody killed ended by itself"

    def go(self) -> None:
        """Let it start its runs once it is ready."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")

    def end(self) -> None:
        """SIGKILL, and see it gone; a second time does nothing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
