"""What can go wrong in a play, as values: a sweep makes them up, a failure names one, `play` repeats it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, Literal, get_args

import msgspec

from streamline_trio import Step, ValidationError
from streamline_trio._core.step import step_id_of
from streamline_trio.testing._faulty_store import When

Point = Literal["begin", "end"]
Again = Literal["at once", "later"]


class _Mishap(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """A value that prints as it is written."""

    @classmethod
    def at_step(cls, step: str) -> list[Mishap]:
        """The mishap at the points of a step, as far as it has to do with steps."""
        del step
        return []

    def _check_number(self, name: str) -> None:
        number = getattr(self, name)
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ValidationError(f"{type(self).__name__}: {name} is a number from 0 on, not {number!r}")

    def _check_choice(self, name: str, choices: Any) -> None:
        chosen = getattr(self, name)
        if chosen not in get_args(choices):
            known = ", ".join(map(repr, get_args(choices)))
            raise ValidationError(f"{type(self).__name__}: {name} is one of {known}, not {chosen!r}")


class FailCall(_Mishap, frozen=True):
    """The store fails one call of the engine, before or after having carried it out.

    Attributes:
        call: the number of the call, from 0, counted from when the engine is open.
        when: "before" it was carried out, or "after" (the acknowledgement is lost).
    """

    call: int
    when: When = "before"

    variants: ClassVar[tuple[str, ...]] = ("before", "after")

    def __post_init__(self) -> None:
        self._check_number("call")
        self._check_choice("when", When)

    @classmethod
    def at(cls, number: int, variant: Any) -> FailCall:
        """The mishap at a point of a sweep."""
        return cls(number, variant)


class _AtWrite(_Mishap, frozen=True, kw_only=True):
    """At a write of the first worker: its number, or what it does to a step."""

    write: int | None = None
    step: Step[Any] | str | None = None
    on: Point = "end"

    def __post_init__(self) -> None:
        if (self.write is None) == (self.step is None):
            raise ValidationError(f"{type(self).__name__} needs either write= or step=")
        if self.write is not None:
            self._check_number("write")
        self._check_choice("on", Point)


class CrashAt(_AtWrite, frozen=True, kw_only=True):
    """The first worker's process dies at one of its writes; another worker goes on.

    Attributes:
        write: the number of the write, from 0, counted from when the worker is open.
        step: instead of a number: the first write that begins or ends a call of this step's handler.
        on: "end" is the write by which the handler's result, failure or wait becomes durable; "begin" is the one
            after which the handler is called.
        when: "before" it was carried out (at "end": the handler has done everything, nobody knows), or "after".
    """

    when: When = "before"

    variants: ClassVar[tuple[str, ...]] = ("before", "after")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("when", When)

    @classmethod
    def at(cls, number: int, variant: Any) -> CrashAt:
        """The mishap at a point of a sweep."""
        return cls(write=number, when=variant)

    @classmethod
    def at_step(cls, step: str) -> list[Mishap]:
        """The mishap at the points of a step."""
        return [cls(step=step, on=on, when=when) for on in get_args(Point) for when in get_args(When)]


class LoseLeaseAt(_AtWrite, frozen=True, kw_only=True):
    """The first worker is taken for dead at one of its writes, wrongly: another takes the run over.

    The write then arrives all the same, too late, and must be refused; the first worker takes no further runs.

    Attributes:
        write: the number of the write, from 0, among those of runs that the worker holds.
        step: instead of a number: the first such write that ends a call of this step's handler (or with
            `on="begin"` the one that begins it, if the worker held the run before).
        on: "end" or "begin".
    """

    variants: ClassVar[tuple[str, ...]] = ("late",)

    @classmethod
    def at(cls, number: int, variant: Any) -> LoseLeaseAt:
        """The mishap at a point of a sweep."""
        del variant
        return cls(write=number)

    @classmethod
    def at_step(cls, step: str) -> list[Mishap]:
        """The mishap at the points of a step."""
        return [cls(step=step, on=on) for on in get_args(Point)]


class DeliverTwice(_Mishap, frozen=True):
    """One delivery from outside comes twice, as from any webhook or queue that delivers at least once.

    Deliveries are the scenario's calls of `engine.start`, `engine.emit`, `engine.resume`, `engine.withdraw`,
    `handle.resume` and `handle.withdraw`. The second one has the same arguments; the engine may refuse it.

    Attributes:
        delivery: the number of the delivery, from 0.
        again: "at once", or "later": when nothing is under way any more (but at most 5 seconds later).
    """

    delivery: int
    again: Again = "at once"

    variants: ClassVar[tuple[str, ...]] = ("at once", "later")

    def __post_init__(self) -> None:
        self._check_number("delivery")
        self._check_choice("again", Again)

    @classmethod
    def at(cls, number: int, variant: Any) -> DeliverTwice:
        """The mishap at a point of a sweep."""
        return cls(number, variant)


class MishapMissed(AssertionError):
    """The mishap did not happen: the play, or what was done on the stage, never came to that point."""


def check_mishap(mishap: object, steps: Collection[str]) -> None:
    """Raise `ValidationError` unless it is None or a mishap that could happen to workflows with these steps."""
    if mishap is not None and not isinstance(mishap, Mishap):
        raise ValidationError(f"a mishap is a value such as CrashAt(write=0), not {mishap!r}")
    step = getattr(mishap, "step", None)
    step_id = step if step is None else step_id_of(step)
    if step_id is not None and step_id not in steps:
        raise ValidationError(f"{mishap!r}: no workflow here has a step {step_id!r}")


Mishap = FailCall | CrashAt | LoseLeaseAt | DeliverTwice
"""Anything that can go wrong in a play."""
