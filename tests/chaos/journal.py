"""Append-only files: a line is there once it is written, whoever is killed then (the page cache survives)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Literal

import msgspec
import trio

from streamline_trio import StepContext
from tests.chaos.records import NEVER, Call, Completed, Did, Entered, Invoked, Left, Line, Reply

now = time.monotonic
_encode = msgspec.json.encode
_decode_line = msgspec.json.Decoder(Line).decode
_decode_event = msgspec.json.Decoder(Invoked | Completed).decode

EFFECTS = "effects"
HISTORY = "history.jsonl"


class Appender:
    """One file, each line one write."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, record: msgspec.Struct) -> None:
        os.write(self._file, _encode(record) + b"\n")

    def close(self) -> None:
        os.close(self._file)


class Tail:
    """Reads files that grow, line by line; a last line without its end is not there yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}

    def lines(self) -> Iterator[Line]:
        """What has come since the last call."""
        for path in sorted(self._folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            yield from map(_decode_line, whole.splitlines())


class Journal:
    """What the handlers of one process do."""

    def __init__(self, folder: Path) -> None:
        self.pid = os.getpid()
        self._file = Appender(folder / EFFECTS / f"{self.pid}.jsonl")
        self._numbers = count(1)

    def add(self, line: Line) -> None:
        self._file.add(line)

    def did(self, ctx: StepContext[Any, Any], entry: str, what: str, value: object = None) -> None:
        self.add(Did(entry=entry, run=ctx.run_id, what=what, value=value, at=now()))

    @contextmanager
    def inside(self, ctx: StepContext[Any, Any]) -> Iterator[str]:
        """Around the body of a handler, in whatever thread."""
        step = ctx._driver.run.step(ctx.step_id)
        entry = f"{self.pid}.{next(self._numbers)}"
        self.add(
            Entered(
                entry=entry,
                run=ctx.run_id,
                step=ctx.step_id,
                generation=step.generation,
                attempt=step.attempts,
                fence=ctx._driver.writer.fence,
                pid=self.pid,
                at=now(),
            )
        )
        how: Literal["returned", "failed", "unwound"] = "unwound"
        try:
            yield entry
            how = "returned"
        except trio.Cancelled:
            raise
        except Exception:
            how = "failed"
            raise
        finally:
            self.add(Left(entry=entry, how=how, at=now()))


def read_history(path: Path) -> list[Call]:
    """The calls, in the order in which they began."""
    begun: dict[int, Invoked] = {}
    ended: dict[int, Completed] = {}
    for event in map(_decode_event, path.read_bytes().splitlines()):
        if isinstance(event, Invoked):
            begun[event.request.id] = event
        else:
            ended[event.reply.id] = event
    return [_joined(event, ended.get(number)) for number, event in begun.items()]


def _joined(begin: Invoked, end: Completed | None) -> Call:
    reply = Reply(id=begin.request.id, outcome="info") if end is None else end.reply
    return Call(
        request=begin.request,
        door=begin.door,
        invoked=begin.at,
        reply=reply,
        ended=NEVER if end is None else end.at,
    )
