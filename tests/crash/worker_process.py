"""A worker in a process of its own, to be killed and frozen: the program, its workflows, and what starts it.

As a program it opens an engine, says `ready`, obeys one command a line, and tells what it publishes. It ends
when its input does, so that none outlives the test that started it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import trio
from msgspec.structs import replace

from streamline_trio import Branch, Engine, Run, Signal, StepContext, Workflow, open_engine
from tests.crash.composed import composed

ROOT = Path(__file__).parents[2]
nudge = Signal("nudge", str)


class Ledger:
    """A file of effects that processes append to; a line is there once it is written, whoever dies then."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def add(self, *what: object) -> None:
        line = json.dumps([*what, os.getpid()]) + "\n"
        descriptor = os.open(self.folder / "effects", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def lines(self) -> list[list[Any]]:
        try:
            return [json.loads(line) for line in (self.folder / "effects").read_text().splitlines()]
        except FileNotFoundError:
            return []

    def flag(self, name: str) -> Path:
        """A file whose existence lets a handler go on."""
        return self.folder / name


def workflows(ledger: Ledger) -> list[Workflow[Any, Any]]:  # noqa: C901 - six small workflows
    """Everything that these processes run."""
    chain: Workflow[Any, Any] = Workflow("chain")

    async def link(ctx: StepContext[Any, Any]) -> str:
        ledger.add("chain", ctx.run_id, ctx.step_id, ctx.attempt)
        await trio.sleep(0.01)
        return ctx.step_id

    for step in ("one", "two", "three"):
        chain.add_step(step, link)

    nap: Workflow[Any, Any] = Workflow("nap", input=dict[str, float])

    @nap.step
    async def sleep(ctx: StepContext[dict[str, float], Any]) -> None:
        await ctx.sleep(ctx.input["seconds"])
        ledger.add("woke", ctx.run_id)

    hold: Workflow[Any, Any] = Workflow("hold")

    @hold.step(attempts=1)
    async def grip(ctx: StepContext[Any, Any]) -> str:
        """Until a flag for this attempt is set."""
        ledger.add("entered", ctx.run_id, ctx.attempt)
        try:
            while not ledger.flag(f"{ctx.run_id}.{ctx.attempt}").exists():  # noqa: ASYNC110 - set by another process
                await trio.sleep(0.01)
        except trio.Cancelled:
            ledger.add("cancelled", ctx.run_id, ctx.attempt)
            raise
        ledger.add("returned", ctx.run_id, ctx.attempt)
        return f"attempt {ctx.attempt}"

    fan: Workflow[Any, Any] = Workflow("fan", input=int)

    @fan.step(attempts=1)
    async def spread(ctx: StepContext[int, Any]) -> int:
        """Join so many chains."""
        result = await ctx.join({f"b{number}": Branch(chain) for number in range(ctx.input)}, concurrency=4)
        return len(result.branches)

    gate: Workflow[Any, Any] = Workflow("gate")

    @gate.step
    async def fetch(ctx: StepContext[Any, Any]) -> str:
        ledger.add("fetch", ctx.run_id)
        return "nine char"

    @gate.step
    async def ask(ctx: StepContext[Any, Any]) -> str:
        answer: str = await ctx.wait("person", returns=str)
        return answer

    @gate.step
    async def listen(ctx: StepContext[Any, Any]) -> str:
        return await ctx.wait_for(nudge)

    @gate.step
    async def use(ctx: StepContext[Any, Any]) -> dict[str, Any]:
        return {"len": len(ctx.output("fetch")), "ask": ctx.output("ask"), "listen": ctx.output("listen")}

    retry: Workflow[Any, Any] = Workflow("retry")

    @retry.step(attempts=3, retry_delay=1.0, backoff="fixed", jitter=0)
    async def fails(ctx: StepContext[Any, Any]) -> None:
        ledger.add("tried", ctx.run_id, ctx.attempt)
        raise ValueError("always")

    return [chain, nap, hold, gate, retry, fan, _saga(ledger), *composed(ledger)]


def _saga(ledger: Ledger) -> Workflow[Any, Any]:
    """Three steps to undo; the second undoing waits for a flag of its attempt."""
    saga: Workflow[Any, Any] = Workflow("saga")

    async def do(ctx: StepContext[Any, Any]) -> str:
        return ctx.step_id

    async def undo(ctx: StepContext[Any, Any]) -> None:
        ledger.add("undo", ctx.step_id, ctx.attempt, ctx.idempotency_key("compensate"))
        if ctx.step_id == "two":
            while not ledger.flag(f"{ctx.run_id}.{ctx.attempt}").exists():  # noqa: ASYNC110 - set by another process
                await trio.sleep(0.01)
        ledger.add("undone", ctx.step_id, ctx.attempt, ctx.idempotency_key("compensate"))

    for step in ("one", "two", "three"):
        saga.add_step(step, do).compensate(undo)

    @saga.step(attempts=1)
    async def fail(_ctx: StepContext[Any, Any]) -> None:
        raise ValueError("always")

    return saga


def deployed(ledger: Ledger, number: str) -> Workflow[Any, Any]:
    """One workflow in version 1.0.0, or in 2.0.0 with another name for its first step and a `migrate`."""

    async def prepare(ctx: StepContext[Any, Any]) -> str:
        ledger.add("prepared", ctx.run_id, ctx.version)
        if ctx.input == "hold" and ctx.version == "1.0.0":
            await trio.sleep_forever()
        return ctx.version

    async def ask(ctx: StepContext[Any, Any]) -> str:
        return await ctx.wait_for(nudge)

    async def finish(ctx: StepContext[Any, Any]) -> list[str]:
        ledger.add("finished", ctx.run_id, ctx.version)
        return [ctx.output("set_up" if ctx.version == "2.0.0" else "prepare"), ctx.output("ask"), ctx.version]

    def migrate(run: Run) -> Run:
        ids = {"prepare": "set_up"}
        steps = {ids.get(step_id, step_id): step for step_id, step in run.steps.items()}
        current = run.current_step
        return replace(run, steps=steps, current_step=None if current is None else ids.get(current, current))

    first = "prepare" if number == "1.0.0" else "set_up"
    return Workflow(
        "deployed",
        version=number,
        steps={first: prepare, "ask": ask, "finish": finish},
        migrate=None if number == "1.0.0" else migrate,
    )


# --- the program -------------------------------------------------------------------------------------------


def tell(**line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


async def program(url: str, folder: str, options: dict[str, Any]) -> None:
    known = workflows(Ledger(folder))
    numbers = options.pop("deployed", [])
    names = [] if numbers else options.pop("workflows", None)
    chosen = [workflow for workflow in known if names is None or workflow.id in names]
    chosen += [deployed(Ledger(folder), number) for number in numbers]
    async with open_engine(url, *chosen, **options) as engine, trio.open_nursery() as nursery:
        engine.on("*", lambda event: tell(event=event.name, run=event.run_id))
        tell(ready=engine.worker_id)
        nursery.start_soon(watch_id, engine)
        await obey(engine)
        nursery.cancel_scope.cancel()


async def watch_id(engine: Engine) -> None:
    last = engine.worker_id
    while True:
        await trio.sleep(0.02)
        if engine.worker_id not in {None, last}:
            last = engine.worker_id
            tell(worker=last)


async def obey(engine: Engine) -> None:
    """Carry out commands until the input ends."""
    rest = b""
    async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
        async for data in stdin:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                command = json.loads(line)
                await VERBS[command["do"]](engine, command)
                tell(did=command["do"])


async def start(engine: Engine, command: dict[str, Any]) -> None:
    await engine.start(command["workflow"], command.get("input"), run_id=command["run"])


async def resume(engine: Engine, command: dict[str, Any]) -> None:
    await engine.run(command["run"]).resume(command["payload"])


async def cancel(engine: Engine, command: dict[str, Any]) -> None:
    await engine.run(command["run"]).cancel("asked")


async def emit(engine: Engine, command: dict[str, Any]) -> None:
    await engine.emit(nudge, command["payload"], run=command["run"])


VERBS: dict[str, Callable[[Engine, dict[str, Any]], Any]] = {
    "start": start,
    "resume": resume,
    "cancel": cancel,
    "emit": emit,
}


# --- its starter -------------------------------------------------------------------------------------------


class WorkerProcess:
    """A running program: what it told, and ways to end or stop it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.told: list[dict[str, Any]] = []
        self._news = trio.Event()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def listen(self) -> None:
        """Keep what it tells, with the time of its arrival."""
        assert self._process.stdout is not None
        rest = b""
        async with trio.lowlevel.FdStream(os.dup(self._process.stdout.fileno())) as stdout:
            async for data in stdout:
                *lines, rest = (rest + data).split(b"\n")
                self.told += [{**json.loads(line), "at": trio.current_time()} for line in lines]
                self._news.set()
                self._news = trio.Event()
        self.told.append({"ended": True})
        self._news.set()

    async def tells(self, **wanted: object) -> dict[str, Any]:
        """The first thing it told, or tells, with these values (None: any)."""
        seen = 0
        with trio.fail_after(30):
            while True:
                for line in self.told[seen:]:
                    if all(key in line and value in {None, line[key]} for key, value in wanted.items()):
                        return line
                    assert "ended" not in line, f"it ended before it told {wanted}"
                seen = len(self.told)
                if seen == len(self.told):
                    await self._news.wait()

    async def do(self, verb: str, **command: object) -> None:
        """Have it carry out a command, and wait until it has."""
        assert self._process.stdin is not None
        before = sum("did" in line for line in self.told)
        self._process.stdin.write(json.dumps({"do": verb, **command}).encode() + b"\n")
        self._process.stdin.flush()
        with trio.fail_after(30):
            while sum("did" in line for line in self.told) == before:
                await self._news.wait()

    def kill(self) -> None:
        """SIGKILL, and see it gone."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Whatever state it is in: it is gone afterwards."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


class Site(NamedTuple):
    """What processes share: a store, and a folder for their effects and flags."""

    url: str
    folder: Path


@asynccontextmanager
async def worker_process(site: Site, **options: Any) -> AsyncIterator[WorkerProcess]:
    """A process with an engine on the store; ready when the block is entered, gone when it is left."""
    command = [sys.executable, "-m", "tests.crash.worker_process", site.url, str(site.folder), json.dumps(options)]
    process = WorkerProcess(
        subprocess.Popen(  # noqa: ASYNC220 - from the main thread, at once
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.listen)
            await process.tells(ready=None)
            yield process
            nursery.cancel_scope.cancel()
    finally:
        process.close()


if __name__ == "__main__":
    trio.run(program, sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
