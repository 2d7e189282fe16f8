"""The gate before the store of a simulated world: every call parks, twice, until the director lets it go on.

A call parks before it is carried out and, if the director likes, once more with its reply in hand. So a reply can
come late, by any time, and a call can be applied long after its caller was given up for dead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import trio

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import StoreUnavailable
from streamline_trio._core.store import AppendRows, Delete, Hint, Insert, PutSide, Route, Update, Verdict, Write
from streamline_trio._runtime.worker import WORKERS
from streamline_trio.testing._witness import writing
from streamline_trio.testing._wrapped_store import Act, WrappedStore

Release = Literal["go", "fail before", "fail after", "go, hold the reply"]


class Call:
    """One store call at the gate."""

    __slots__ = ("_let_go", "args", "held", "name", "node", "number", "release", "replied")

    def __init__(self, number: int, node: str, name: str, args: tuple[Any, ...]) -> None:
        self.number: int = number
        self.node: str = node
        self.name: str = name
        self.args: tuple[Any, ...] = args
        self.held: bool = False
        self.replied: bool = False
        self.release: Release = "go"
        self._let_go = trio.Event()

    def let_go(self, release: Release) -> None:
        """Let it go on, so."""
        self.release = release
        self._let_go.set()

    async def wait(self) -> Release:
        """Until it is let go."""
        await self._let_go.wait()
        self._let_go = trio.Event()
        return self.release

    @property
    def is_beat(self) -> bool:
        """Whether it carries a beat of a worker."""
        return self.name == "write" and any(
            isinstance(write, PutSide) and write.kind == WORKERS and write.expected and write.body
            for write in self.args[0]
        )

    def __str__(self) -> str:
        text = f"{self.name}({', '.join(map(_text, self.args[:1]))})"
        return f"the reply to {text}" if self.replied else text


class Gate:
    """All calls that are parked, oldest first. Once `is_open` they pass.

    At the last of `most`, `too_many` is called.
    """

    def __init__(self, seen: Callable[[Call, str], None], *, most: int, too_many: Callable[[], None]) -> None:
        self.parked: dict[int, Call] = {}
        self.is_open: bool = False
        self.calls: int = 0
        self._seen = seen
        self._most = most
        self._too_many = too_many

    def count(self) -> int:
        """The number of the next call."""
        self.calls += 1
        if self.calls == self._most:
            self._too_many()
        return self.calls

    def open(self) -> None:
        """From now on everything passes, those that are parked first."""
        self.is_open = True
        for call in self.parked.values():
            call.let_go("go")

    async def park(self, call: Call) -> Release:
        """Wait at the gate."""
        if self.is_open:
            await trio.lowlevel.checkpoint()
            return "go"
        self.parked[call.number] = call
        try:
            return await call.wait()
        finally:
            del self.parked[call.number]

    def tell(self, call: Call, what: str) -> None:
        """Note what became of a call."""
        self._seen(call, what)


class GatedStore(WrappedStore):
    """One worker's way to the shared store."""

    def __init__(
        self, inner: Any, gate: Gate, node: str, *, routes: frozenset[Route], locks: bool, hints: bool
    ) -> None:
        super().__init__(inner)
        self.gate: Gate = gate
        self.node: str = node
        self.is_gone: bool = False
        """Its process is dead: nothing of it reaches the store any more."""
        self.is_leaving: bool = False
        """Its engine drains."""
        self.routes: frozenset[Route] = routes
        """The versions that its process has."""
        self._locks = locks
        self._hints = hints

    async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
        if self.is_gone:
            return await self._nothing(name)
        call = Call(self.gate.count(), self.node, name, args)
        release = await self.gate.park(call)
        if self.is_gone:
            return await self._nothing(name)
        if release == "fail before":
            raise StoreUnavailable(f"{name} fails before it was carried out")
        reply = await self._act(name, act)
        if release == "go, hold the reply":
            call.replied, call.held = True, True
            release = await self.gate.park(call)
        if self.is_gone:
            return await self._nothing(name)
        if name == "write":
            self.gate.tell(call, _verdicts(reply))
        if release in {"fail before", "fail after"}:
            raise StoreUnavailable(f"{name} fails after it was carried out")
        return reply

    def cut(self) -> None:
        """The process behind it is dead: of what is parked nothing is carried out any more."""
        self.is_gone = True
        for call in self.gate.parked.values():
            if call.node == self.node:
                call.let_go("go")

    async def _act(self, name: str, act: Act) -> Any:
        if name == "worker_gone" and not self._locks:
            await trio.lowlevel.checkpoint()
            return False
        writing.set(self)
        with trio.CancelScope(shield=True):
            return await act()

    async def _nothing(self, name: str) -> None:
        """What a dead process hears of the store."""
        if name != "drop_worker":
            await trio.sleep_forever()

    def watch(self, listener: Callable[[Hint], None]) -> Callable[[], None]:
        def hear(hint: Hint) -> None:
            if self._hints and not self.is_gone:
                listener(hint)

        unwatch: Callable[[], None] = self.inner.watch(hear)
        return unwatch


def _verdicts(verdicts: list[Verdict]) -> str:
    return ", ".join(type(verdict).__name__.lower() for verdict in verdicts)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text_of_write, cast("Sequence[Any]", value)))
    return str(value)


def _text_of_write(write: Write | Any) -> str:
    match write:
        case Insert(run):
            return f"insert {_brief(run)}"
        case Update(before, after):
            return f"update {before.id} rev {before.head.revision} -> {_brief(after)}"
        case Delete(run_id, revision):
            return f"delete {run_id} rev {revision}"
        case PutSide(kind, key, expected, body):
            verb = "remove" if body is None else "put"
            return f"{verb} {kind} {key.strip()} after rev {expected}".replace("\n", " ")
        case AppendRows(run_id, kind, rows, _, _):
            return f"{len(rows)} {kind} rows of {run_id}"
        case _:
            return str(write)


def _brief(run: RunDoc) -> str:
    head = run.head
    text = f"{run.id} {head.status}"
    if head.current_step is not None:
        text += f" at {head.current_step}"
    if head.lease is not None:
        text += f", {head.lease.worker[:6]} fence {head.lease.fence}"
    return text + ("" if head.due_at is None else ", due") + (", paused" if head.paused else "")
