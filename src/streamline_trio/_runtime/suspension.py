"""How a handler suspends: it asks, its own cancel scope unwinds it, it is entered again with an outcome.

A handler is one strand, each key of a scatter in it another: a task with a cancel scope of its own, that unwinds
by itself. A strand calls within a frame: the handler's, a key's, or that of the iteration it is in.

Every suspension in a frame has a key (its name, or its kind and ordinal) and a place (its how-manieth it is). An
outcome that is recorded under the key is given back at once. Within one attempt, asking in another order or for
something else is a `SuspensionMismatch`: the handler is not deterministic. Records of earlier attempts are a memo:
an unlike ask is asked afresh.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Never, Protocol

import trio

from streamline_trio._core.documents import Record, RunDoc
from streamline_trio._core.errors import SuspensionError, SuspensionMismatch
from streamline_trio._core.happenings import Ask
from streamline_trio._core.joins import goes_on
from streamline_trio._runtime.frames import CompositeKind, Frame, Subtrees, composite, frame_of

MAX_SUSPENSIONS = 1000


class Goto:
    """The wish to go on at another step."""

    __slots__ = ("target",)

    def __init__(self, target: str) -> None:
        self.target: str = target


class Parking(NamedTuple):
    """The wish to wait: for what is asked now, and for open records of keys that were not called again."""

    asks: Sequence[Ask]
    kept: Sequence[str] = ()


class Strand:
    """One line of execution: its task, the scope that unwinds it, where it is, and what it wants to unwind for."""

    __slots__ = ("_frame", "scope", "task", "wanted")

    def __init__(self, scope: trio.CancelScope, frame: Frame | None = None) -> None:
        self.scope: trio.CancelScope = scope
        self.task: trio.lowlevel.Task | None = None
        self.wanted: Parking | Goto | None = None
        self._frame = frame

    @property
    def frame(self) -> Frame:
        """Where it is; most handlers never ask."""
        if self._frame is None:
            self._frame = Frame("")
        return self._frame

    @frame.setter
    def frame(self, frame: Frame) -> None:
        self._frame = frame


class Known:
    """What the run has of this step, by frame and place."""

    __slots__ = ("pieces", "places", "records")

    def __init__(self, run: RunDoc, attempt: int) -> None:
        self.records: Subtrees = Subtrees(run.records)
        self.pieces: Subtrees = Subtrees(run.pieces)
        self.places: dict[tuple[str, int], str] = {
            (frame_of(key), record.place): key for key, record in run.records.items() if record.attempt == attempt
        }


class Sleeper(Protocol):
    """Who has keys that wait while others run."""

    def resolved(self, key: str) -> None:
        """The record is not open any more."""
        ...

    def stir(self) -> None:
        """The run was paused, or may go on."""
        ...


class Suspender:
    """One entry of one handler: its strands, and what they have asked so far."""

    __slots__ = (
        "_is_paused",
        "_known",
        "_sleepers",
        "_step",
        "_strands",
        "ended",
        "ended_attempt",
        "replayed",
        "root",
        "sleeping",
    )

    def __init__(self, step: str, scope: trio.CancelScope) -> None:
        self.root: Strand = Strand(scope)
        self.replayed: dict[str, int] = {}
        self.ended: bool = False
        self.ended_attempt: int = 0
        self.sleeping: dict[str, Sleeper] = {}
        self._sleepers: list[Sleeper] = []
        self._is_paused = False
        self._step = step
        self._strands: dict[trio.lowlevel.Task, Strand] = {}
        self._known: Known | None = None

    def entered(self) -> None:
        """The calling task is the handler's own."""
        self.root.task = trio.lowlevel.current_task()

    # --- strands -------------------------------------------------------------------------------------------

    def add(self, strand: Strand) -> None:
        """The calling task is this strand from now."""
        strand.task = trio.lowlevel.current_task()
        self._strands[strand.task] = strand

    def remove(self, strand: Strand) -> None:
        """The strand has come to its end."""
        if strand.task is not None:
            del self._strands[strand.task]

    @property
    def strand(self) -> Strand:
        """The strand of the calling task; a task that is none of its own counts with the handler."""
        if not self._strands:
            return self.root
        return self._strands.get(trio.lowlevel.current_task(), self.root)

    def require_possible(self, what: str) -> Strand:
        """The calling strand; `SuspensionError` where unwinding it cannot work, before anything is recorded."""
        if self.ended:
            raise SuspensionError(
                f"step {self._step}: {what} was called on the context of a call that has ended", step=self._step
            )
        strand = self.strand
        if strand.task is not trio.lowlevel.current_task():
            raise SuspensionError(
                f"step {self._step}: {what} must be called in the handler's own task,"
                " not in a nursery's child, a thread or a background task",
                step=self._step,
            )
        if _is_shielded(strand.scope):
            raise SuspensionError(
                f"step {self._step}: {what} cannot unwind a handler from inside a shielded cancel scope",
                step=self._step,
            )
        if strand.wanted is not None:
            raise SuspensionError(
                f"step {self._step}: {what} was called while the handler unwinds for another suspension",
                step=self._step,
            )
        if strand.frame.places >= MAX_SUSPENSIONS:
            raise SuspensionError(
                f"step {self._step}: more than {MAX_SUSPENSIONS} suspensions in one step: use ctx.loop",
                step=self._step,
            )
        return strand

    def require_handler(self, what: str) -> None:
        """Raise `SuspensionError` in a scatter key."""
        if self.strand is not self.root:
            raise SuspensionError(f"step {self._step}: {what} cannot be called in a scatter key", step=self._step)

    async def unwind(self, wanted: Ask | Parking | Goto) -> Never:
        """Leave the strand: cancels the scope it runs in; `finally` blocks run, nurseries unwind."""
        strand = self.strand
        strand.wanted = Parking((wanted,)) if isinstance(wanted, Ask) else wanted
        strand.scope.cancel()
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    # --- what is asked -------------------------------------------------------------------------------------

    def key_of(self, kind: str, name: str | None) -> str:
        """The key of the next suspension of this kind."""
        frame = self.strand.frame
        if name is not None:
            return f"{frame.prefix}={name}"
        return f"{frame.prefix}{kind}#{frame.ordinal(kind)}"

    def place(self) -> int:
        """The place of the next suspension."""
        return self.strand.frame.place()

    def composite(self, kind: CompositeKind, name: str | None) -> str:
        """The path of the next scatter or loop of the calling strand."""
        frame = self.require_possible(kind).frame
        frame.place()
        segment = composite(kind, name, frame.ordinal(kind) if name is None else 0)
        if name is not None:
            self._require_new(frame, segment, name)
        return frame.prefix + segment

    def recorded(self, run: RunDoc, ask: Ask) -> Record | None:
        """The record of an earlier entry for this ask, after checking that the handler asks the same again."""
        frame = self.strand.frame
        self._require_new(frame, ask.key, ask.name)
        if not run.records:
            return None
        attempt = run.step(self._step).attempts
        record = run.records.get(ask.key)
        if record is not None and record.attempt == attempt:
            if record.place != ask.place or record.ask != ask.ask:
                raise self._mismatch(ask, record)
        else:
            other = run.records.get(self.known(run).places.get((frame.prefix, ask.place), ""))
            if other is not None and other.attempt == attempt and other.place == ask.place:
                raise self._mismatch(ask, other)
        if record is None or record.ask != ask.ask:
            return None
        if record.attempt != attempt and record.outcome is not None:
            self.replayed[ask.key] = ask.place
        return record

    def _require_new(self, frame: Frame, key: str, name: str) -> None:
        if key in frame.keys:
            raise SuspensionError(f"step {self._step}: the name {name!r} is used twice", step=self._step)
        frame.keys.add(key)

    def _mismatch(self, ask: Ask, record: Record) -> SuspensionMismatch:
        asked, before = ask.ask.replace("\n", " "), record.ask.replace("\n", " ")
        where = f" ({frame})" if (frame := frame_of(ask.key)) else ""
        return SuspensionMismatch(
            f"step {self._step} is not deterministic: suspension {ask.place + 1}{where} asks for {asked!r},"
            f" where it asked for {before!r} (place {record.place + 1}) before it was unwound",
            step=self._step,
        )

    # --- what is there -------------------------------------------------------------------------------------

    def known(self, run: RunDoc) -> Known:
        """What the run has of this step; gathered once, kept up to date by those who add to it."""
        if self._known is None:
            self._known = Known(run, run.step(self._step).attempts)
        return self._known

    def opened(self, asks: Iterable[Ask]) -> None:
        """These have become records of this attempt."""
        known = self._known
        if known is not None:
            for ask in asks:
                known.records.add(ask.key)
                known.places[frame_of(ask.key), ask.place] = ask.key

    # --- keys that sleep while others run ------------------------------------------------------------------

    def watch(self, sleeper: Sleeper, run: RunDoc) -> None:
        """Tell it when one of its records is resolved."""
        self._is_paused = run.head.paused
        self._sleepers.append(sleeper)

    def forget(self, sleeper: Sleeper, keys: Iterable[str]) -> None:
        """It is not to be told any more."""
        self._sleepers.remove(sleeper)
        for key in keys:
            self.sleeping.pop(key, None)

    def noticed(self, run: RunDoc, touched: Iterable[str] | None) -> None:
        """The run changed: of its records at most these, if it is known which."""
        if not self._sleepers:
            return
        for key in tuple(self.sleeping) if touched is None else touched:
            sleeper = self.sleeping.get(key)
            if sleeper is not None and ((record := run.records.get(key)) is None or goes_on(record)):
                sleeper.resolved(key)
        if run.head.paused != self._is_paused:
            self._is_paused = run.head.paused
            for sleeper in self._sleepers:
                sleeper.stir()


def _is_shielded(scope: trio.CancelScope) -> bool:
    """Whether cancelling the scope would not reach the caller: seen through the effective deadline."""
    if scope.cancel_called:
        return False
    before = scope.deadline
    scope.deadline = -float("inf")
    try:
        return trio.current_effective_deadline() != -float("inf")
    finally:
        scope.deadline = before
