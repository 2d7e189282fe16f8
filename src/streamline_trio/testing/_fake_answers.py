"""What a fake context was asked, and what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec
import whenever

from streamline_trio import Signal, ValidationError, WaitTimedOut, WaitWithdrawn
from streamline_trio._core import payload
from streamline_trio._core.checking import is_a, is_mapping


class NotGiven(AssertionError):
    """A handler asked its fake context for something that the test has not given."""


class WentTo(BaseException):
    """A handler left its step by `ctx.goto`. No `Exception`, so that no handler swallows it.

    Attributes:
        step: the id of the step that it went to.
    """

    def __init__(self, step: str) -> None:
        super().__init__(f"the handler went to step {step}")
        self.step: str = step


class Asked(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True):
    """A suspension that a handler asked for: a `timer`, a `human` wait, a `signal`, a `child` or a `join`.

    `due_at` is when a sleep ends, or a wait times out; `token` is the one that was passed on, if any; `approval`
    tells `request_approval` from `wait`. Of a child `workflow` and `input` tell what was to be started, of a join
    the inputs in `branches`.
    """

    kind: Literal["timer", "human", "signal", "child", "join"]
    name: str | None = None
    reason: str | None = None
    signal: str | None = None
    due_at: whenever.Instant | None = None
    match: dict[str, Any] | None = None
    meta: dict[str, Any] | None = None
    token: str | None = None
    approval: bool = False
    workflow: str | None = None
    input: Any = None
    policy: str | None = None
    branches: dict[str, Any] | None = None

    @property
    def title(self) -> str:
        """What to give an answer under."""
        return self.name or self.reason or self.signal or self.workflow or self.kind


AnswersLike = Mapping[Any, Any] | Iterable[tuple[Any, Any]]


class Answers:
    """Given answers, in order; each is taken once."""

    def __init__(self, given: AnswersLike) -> None:
        self.left: list[tuple[str, Any]] = [(_name_of(key), value) for key, value in _pairs_of(given)]

    def take(self, asked: Asked, type_: Any, step: str) -> Any:
        """The first answer that fits, rebuilt in the type that is wanted; an exception is raised."""
        return self._outcome(self._taken(asked, step), type_, asked, step)

    def take_as_given(self, asked: Asked, step: str) -> Any:
        """The first answer that fits, as it was given; an exception is raised."""
        value = self._taken(asked, step)
        if isinstance(value, BaseException):
            raise value
        return value

    def _taken(self, asked: Asked, step: str) -> Any:
        titles = {asked.name, asked.reason, asked.signal, asked.workflow}
        for place, (key, value) in enumerate(self.left):
            if key in titles and _matches(value, asked.match):
                del self.left[place]
                return value
        given = ", ".join(repr(key) for key, _ in self.left) or "none"
        wanted = f" that matches {asked.match!r}" if asked.match else ""
        raise NotGiven(
            f"step {step} asks for {asked.title!r} ({asked.kind}): give an answer{wanted} with"
            f" FakeContext(answers={{{asked.title!r}: ...}}), or an exception for it to raise; left are: {given}"
        )

    def _outcome(self, value: Any, type_: Any, asked: Asked, step: str) -> Any:
        if value is WaitTimedOut:
            raise WaitTimedOut(f"nobody answered {asked.title!r} in time", step=step, wait=asked.title)
        if value is WaitWithdrawn:
            raise WaitWithdrawn(f"the wait {asked.title!r} was withdrawn", step=step, wait=asked.title, reason=None)
        if isinstance(value, BaseException):
            raise value
        return payload.rebuild(value, type_, what=f"the answer to {asked.title!r}")


def _pairs_of(given: Any) -> list[tuple[Any, Any]]:
    if is_mapping(given):
        return list(given.items())
    if isinstance(given, str) or not is_a(given, Iterable):
        raise ValidationError(f"answers= is a mapping, or a list of pairs, not {given!r}")
    return [_pair_of(pair) for pair in given]


def _pair_of(given: Any) -> tuple[Any, Any]:
    match given:
        case (key, value):
            return key, value
        case _:
            raise ValidationError(f"answers= is a list of pairs (what is asked, the answer), and {given!r} is none")


def _name_of(key: Any) -> str:
    if isinstance(key, Signal):
        return key.name
    if not isinstance(key, str):
        raise ValidationError(f"answers are given by the name, the reason or the signal of a wait, not by {key!r}")
    return key


def _matches(value: Any, match: dict[str, Any] | None) -> bool:
    if match is None or isinstance(value, BaseException | type):
        return True
    plain: Any = payload.rebuild(value, Any, what="an answer")
    return is_a(plain, dict) and all(key in plain and plain[key] == match[key] for key in match)
