"""Workflows drawn at random, as data: what each step does, in words of `Op`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from streamline_trio.testing._world_choices import Chooser
from streamline_trio.testing._world_misuse import STALE_VERBS


class Op(msgspec.Struct, frozen=True):
    """One thing that a handler does; what `size` means depends on the kind, `parts` are what is in it."""

    kind: str
    size: float = 0
    parts: tuple[Op, ...] = ()


class Undo(msgspec.Struct, frozen=True):
    """How a step is undone: it takes some seconds, and fails `flaky` times of `attempts`."""

    flaky: int
    attempts: int
    when: str
    seconds: float


class StepProgram(msgspec.Struct, frozen=True):
    """What one step does, and its options."""

    ops: tuple[Op, ...]
    attempts: int
    timeout: float | None = None
    skip: bool | None = None
    undo: Undo | None = None
    keep: int = 0


class Rules(msgspec.Struct, frozen=True):
    """What a workflow says about its starts; numbers are limits and seconds, 0 is none.

    `keyed`: there is a bucket for each of the keys; `triggered` by the signal that starts runs; `cancelled` by the
    other one: of those that it "matches", or of "all".
    """

    limit: int = 0
    when_full: Literal["queue", "reject"] = "queue"
    rate: int = 0
    window: float = 0
    quiet: float = 0
    longest: float = 0
    keyed: bool = False
    triggered: bool = False
    cancelled: Literal["", "matches", "all"] = ""


NO_RULES = Rules()
OLDER, NEWER = "1.0.0", "2.0.0"


def name_of(step_id: str) -> str:
    """A step that is called s1 in one version may be called v1 in another."""
    return f"s{step_id[1:]}" if step_id[1:] else step_id


class Program(msgspec.Struct, frozen=True):
    """One version of a workflow."""

    id: str
    steps: tuple[StepProgram, ...]
    timeout: float | None = None
    undoes_cancelled: bool = False
    is_watched: bool = False
    """Whether it has guards and middleware, which look on."""
    version: str = OLDER
    ids: tuple[str, ...] = ()
    """Of the steps, in order."""
    rules: Rules = NO_RULES

    @property
    def names(self) -> tuple[str, ...]:
        """What tells the steps, in every version."""
        return tuple(map(name_of, self.ids))

    def place(self, step_id: str) -> int:
        """Where a step stands, from 0."""
        return self.ids.index(step_id)

    def ops(self) -> list[Op]:
        """Everything that its handlers do."""
        return [op for step in self.steps for op in flattened(step.ops)]


def flattened(ops: Sequence[Op]) -> list[Op]:
    """The operations and all that are in them."""
    return [found for op in ops for found in (op, *flattened(op.parts))]


CHILD, GRANDCHILD = "c0", "c1"

KINDS: tuple[tuple[str, int], ...] = (
    ("effect", 5),
    ("work", 4),
    ("sleep", 3),
    ("wait", 4),
    ("signal", 4),
    ("once", 3),
    ("set", 2),
    ("checkpoint", 2),
    ("flaky", 2),
    ("back", 2),
    ("jump", 1),
    ("token", 2),
    ("stubborn", 2),
    ("tidy", 1),
    ("log", 1),
    ("ask", 1),
    ("die", 1),
    ("linger", 2),
    ("leak", 1),
    ("stale", 1),
    ("stray", 1),
    ("scatter", 4),
    ("loop", 4),
    ("child", 3),
    ("join", 3),
    ("emit", 2),
    ("approve", 2),
    ("pin", 1),
)
_IN_PARTS: tuple[tuple[str, int], ...] = (
    ("effect", 4),
    ("work", 2),
    ("sleep", 3),
    ("wait", 3),
    ("signal", 2),
    ("once", 1),
    ("flaky", 1),
    ("token", 1),
    ("emit", 1),
    ("set", 1),
)
_IN_CHILDREN: tuple[tuple[str, int], ...] = (
    ("effect", 4),
    ("work", 3),
    ("sleep", 3),
    ("wait", 1),
    ("flaky", 1),
    ("die", 1),
    ("scatter", 1),
)
_SIZES: dict[str, Sequence[float]] = {
    "work": (0.2, 1.0, 3.0, 12.0),
    "linger": (5.0, 40.0),
    "stubborn": (1.0, 12.0),
    "tidy": (1.0, 0.3),
    "sleep": (0.5, 0.0, 5.0, 20.0),
    "wait": (0, 3.0, 20.0),
    "token": (0, 20.0),
    "ask": (3.0, 20.0),
    "approve": (0, 20.0),
    "signal": (0, 3.0, 20.0),
    "flaky": (1, 2, 3),
    "once": (0, 1),
    "leak": (1, 2, 3),
    "stale": tuple(range(STALE_VERBS)),
    "stray": (1, 2, 3),
    "scatter": (0, 1, 2),
    "loop": (1, 2, 3),
    "child": (0, 1),
    "join": tuple(range(8)),
}
_MOST_PARTS = 3


def draw_program(chooser: Chooser, id: str) -> Program:
    """A workflow of one to three steps."""
    saga = chooser.one_in(2)
    steps = tuple(_draw_step(chooser, KINDS, saga=saga) for _ in range(1 + chooser.below(3)))
    return _program(
        id,
        steps,
        timeout=chooser.one_of((None, None, None, None, 15.0)),
        undoes_cancelled=saga and chooser.one_in(3),
        is_watched=chooser.one_in(4),
    )


def draw_short_program(chooser: Chooser, id: str) -> Program:
    """A workflow of one or two steps that mostly goes on by itself."""
    saga = chooser.one_in(4)
    steps = tuple(_draw_step(chooser, _IN_CHILDREN, saga=saga) for _ in range(1 + chooser.below(2)))
    return _program(id, steps, timeout=chooser.one_of((None, None, 30.0)))


def draw_children(chooser: Chooser) -> tuple[Program, Program]:
    """The workflows that the others start: one that may have a child itself, and that child."""
    grandchild = _program(GRANDCHILD, (_draw_step(chooser, _IN_CHILDREN, saga=False),))
    kinds = (*_IN_CHILDREN, ("child", 2))
    saga = chooser.one_in(4)
    steps = tuple(_draw_step(chooser, kinds, saga=saga) for _ in range(1 + chooser.below(2)))
    return _program(CHILD, steps), grandchild


def _program(id: str, steps: tuple[StepProgram, ...], **options: Any) -> Program:
    return Program(id, steps, ids=tuple(f"s{number}" for number in range(len(steps))), **options)


def _draw_step(chooser: Chooser, kinds: Sequence[tuple[str, int]], *, saga: bool) -> StepProgram:
    if saga and chooser.one_in(3):
        kinds = (("die", 1), ("flaky", 1), ("effect", 1))
    ops = tuple(_draw_op(chooser, kinds, depth=0) for _ in range(chooser.below(5)))
    attempts = chooser.one_of((3, 2, 1))
    undo = _draw_undo(chooser) if saga and not chooser.one_in(4) else None
    if not chooser.one_in(5):
        return StepProgram(ops, attempts=attempts, undo=undo)
    return StepProgram(
        ops,
        attempts=attempts,
        timeout=chooser.one_of((None, 2.0)),
        skip=chooser.one_of((None, False, True)),
        undo=undo,
        keep=chooser.one_of((0, 2)),
    )


def _draw_undo(chooser: Chooser) -> Undo:
    return Undo(
        flaky=chooser.one_of((0, 0, 1, 3)),
        attempts=chooser.one_of((3, 1)),
        when=chooser.one_of(("finished", "finished", "started")),
        seconds=chooser.one_of((0.2, 3.0, 12.0)),
    )


def _draw_op(chooser: Chooser, kinds: Sequence[tuple[str, int]], *, depth: int) -> Op:
    kind = chooser.weighted(kinds)
    size = chooser.one_of(_SIZES[kind]) if kind in _SIZES else 0
    if kind not in {"scatter", "loop"}:
        return Op(kind, size)
    inner = _IN_PARTS if depth else (*_IN_PARTS, ("scatter", 1), ("loop", 1))
    count = 1 + chooser.below(_MOST_PARTS)
    return Op(kind, size, tuple(_draw_op(chooser, inner, depth=depth + 1) for _ in range(count)))
