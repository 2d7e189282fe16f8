"""How a handler suspends: it asks, its own cancel scope unwinds it, it is entered again with an outcome.

Every suspension of one call of a handler has a key (its name, or its kind and ordinal) and a place (its
how-manieth it is). An outcome that is recorded under the key is given back at once. Within one attempt, asking
in another order or for something else is a `SuspensionMismatch`: the handler is not deterministic. Records of
earlier attempts are a memo: an unlike ask is asked afresh.
"""

from __future__ import annotations

from typing import Never

import trio

from streamline_trio._core.documents import Record, RunDoc
from streamline_trio._core.errors import SuspensionError, SuspensionMismatch
from streamline_trio._core.happenings import Ask

MAX_SUSPENSIONS = 1000


class Goto:
    """The wish to go on at another step."""

    __slots__ = ("target",)

    def __init__(self, target: str) -> None:
        self.target: str = target


class _Asked:
    """The suspensions of one entry so far; most entries have none."""

    __slots__ = ("keys", "ordinals", "places")

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.ordinals: dict[str, int] = {}
        self.places: int = 0


class Suspender:
    """One entry of one handler: what it has asked so far, and what it wants now."""

    __slots__ = ("_asked", "_step", "_task", "ended", "ended_attempt", "replayed", "scope", "wanted")

    def __init__(self, step: str, scope: trio.CancelScope) -> None:
        self.scope: trio.CancelScope = scope
        self.wanted: Ask | Goto | None = None
        self.replayed: tuple[tuple[str, int], ...] = ()
        self.ended: bool = False
        self.ended_attempt: int = 0
        self._task: trio.lowlevel.Task | None = None
        self._step = step
        self._asked: _Asked | None = None

    @property
    def asked(self) -> _Asked:
        """What was asked so far."""
        if self._asked is None:
            self._asked = _Asked()
        return self._asked

    def entered(self) -> None:
        """The calling task is the handler's own."""
        self._task = trio.lowlevel.current_task()

    def key_of(self, kind: str, name: str | None) -> str:
        """The key of the next suspension of this kind."""
        if name is not None:
            return f"={name}"
        ordinals = self.asked.ordinals
        ordinal = ordinals.get(kind, 0)
        ordinals[kind] = ordinal + 1
        return f"{kind}#{ordinal}"

    def place(self) -> int:
        """The place of the next suspension."""
        asked = self.asked
        place, asked.places = asked.places, asked.places + 1
        return place

    def require_possible(self, what: str) -> None:
        """Raise `SuspensionError` where unwinding the handler cannot work, before anything is recorded."""
        if self.ended:
            raise SuspensionError(
                f"step {self._step}: {what} was called on the context of a call that has ended", step=self._step
            )
        if self._task is not trio.lowlevel.current_task():
            raise SuspensionError(
                f"step {self._step}: {what} must be called in the handler's own task,"
                " not in a nursery's child, a thread or a background task",
                step=self._step,
            )
        if self._is_shielded():
            raise SuspensionError(
                f"step {self._step}: {what} cannot unwind a handler from inside a shielded cancel scope",
                step=self._step,
            )
        if self.wanted is not None:
            raise SuspensionError(
                f"step {self._step}: {what} was called while the handler unwinds for another suspension",
                step=self._step,
            )
        if self.asked.places >= MAX_SUSPENSIONS:
            raise SuspensionError(
                f"step {self._step}: more than {MAX_SUSPENSIONS} suspensions in one step: use ctx.loop",
                step=self._step,
            )

    def _is_shielded(self) -> bool:
        """Whether cancelling our scope would reach the caller: seen through the effective deadline."""
        if self.scope.cancel_called:
            return False
        before = self.scope.deadline
        self.scope.deadline = -float("inf")
        try:
            return trio.current_effective_deadline() != -float("inf")
        finally:
            self.scope.deadline = before

    def recorded(self, run: RunDoc, ask: Ask) -> Record | None:
        """The record of an earlier entry for this ask, after checking that the handler asks the same again."""
        keys = self.asked.keys
        if ask.key in keys:
            raise SuspensionError(f"step {self._step}: the name {ask.name!r} is used twice", step=self._step)
        keys.add(ask.key)
        attempt = run.step(self._step).attempts
        record = run.records.get(ask.key)
        if record is not None and record.attempt == attempt:
            if record.place != ask.place or record.ask != ask.ask:
                raise self._mismatch(ask, record)
        else:
            for other in run.records.values():
                if other.attempt == attempt and other.place == ask.place:
                    raise self._mismatch(ask, other)
        if record is None or record.ask != ask.ask:
            return None
        if record.attempt != attempt and record.outcome is not None:
            self.replayed += ((ask.key, ask.place),)
        return record

    def _mismatch(self, ask: Ask, record: Record) -> SuspensionMismatch:
        asked, before = ask.ask.replace("\n", " "), record.ask.replace("\n", " ")
        return SuspensionMismatch(
            f"step {self._step} is not deterministic: suspension {ask.place + 1} asks for {asked!r},"
            f" where it asked for {before!r} (place {record.place + 1}) before it was unwound",
            step=self._step,
        )

    async def unwind(self, wanted: Ask | Goto) -> Never:
        """Leave the handler: cancels the scope it runs in; `finally` blocks run, nurseries unwind."""
        self.wanted = wanted
        self.scope.cancel()
        await trio.sleep_forever()
        raise AssertionError("unreachable")
