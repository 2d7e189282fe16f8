"""A loop inside a step that keeps its state after every iteration."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import trio

from streamline_trio._core import payload
from streamline_trio._core.checking import is_whole
from streamline_trio._core.errors import LoopLimitExceeded, SuspensionError, ValidationError
from streamline_trio._core.signature import UnresolvedAnnotation, first_parameter_type
from streamline_trio._runtime.frames import Frame
from streamline_trio._runtime.pieces import Pieces

T_co = TypeVar("T_co", covariant=True)
_PLAIN = (type(None), bool, int, float, str, dict, list)


@dataclass(frozen=True, slots=True)
class Next(Generic[T_co]):
    """What a loop's body returns to go on, with the state of the next iteration."""

    state: T_co


@dataclass(frozen=True, slots=True)
class Done(Generic[T_co]):
    """What a loop's body returns to end the loop, with the loop's value."""

    value: T_co


class Loop:
    """One call of loop in one entry."""

    __slots__ = ("_body", "_path", "_pieces", "_returns", "_states")

    def __init__(
        self, pieces: Pieces, path: str, body: Callable[[Any, int], Any], states: payload.Decoder, returns: Any
    ) -> None:
        self._pieces = pieces
        self._path = path
        self._body = body
        self._states = states
        self._returns = payload.decoder(returns)

    async def run(self, initial: Any, max_iterations: int) -> Any:
        """From the last iteration that is kept until the body is done."""
        await trio.lowlevel.checkpoint()
        piece = self._pieces.run.pieces.get(self._path)
        if piece is not None and piece.done:
            return self._returns.decode(piece.value, what="the value of a loop")
        round = 0 if piece is None else piece.round
        state = self._encoded(initial) if piece is None else piece.value
        while round < max_iterations:
            outcome = await self._iterate(self._states.decode(state, what="the state of a loop"), round)
            round += 1
            if isinstance(outcome, Done):
                value = self._pieces.encoded(outcome.value, "the value of a loop", self._returns)
                await self._save(value, round, done=True)
                return self._returns.decode(value, what="the value of a loop")
            state = self._encoded(outcome.state)
            await self._save(state, round, done=False)
        step = self._pieces.step
        raise LoopLimitExceeded(
            f"step {step}: a loop ran {round} iterations, its max_iterations, and was not done",
            step=step,
            max_iterations=max_iterations,
        )

    async def _iterate(self, state: Any, round: int) -> Next[Any] | Done[Any]:
        """Call the body in a frame of its own."""
        strand = self._pieces.suspender.strand
        outer = strand.frame
        strand.frame = Frame(self._prefix(round))
        try:
            outcome = self._body(state, round)
            if inspect.isawaitable(outcome):
                outcome = await outcome
        finally:
            strand.frame = outer
        step = self._pieces.step
        if strand.wanted is not None:
            raise SuspensionError(
                f"step {step}: the body of a loop swallowed the cancellation that unwinds it for a suspension:"
                " let trio.Cancelled pass",
                step=step,
            )
        if not isinstance(outcome, Next | Done):
            raise ValidationError(
                f"step {step}: the body of a loop returns Next(state) or Done(value), not {repr(outcome)[:100]}",
                step=step,
            )
        return outcome  # pyright: ignore[reportUnknownVariableType] - of any type

    def _encoded(self, state: Any) -> bytes:
        return self._pieces.encoded(state, "the state of a loop", self._states)

    async def _save(self, value: bytes, round: int, *, done: bool) -> None:
        await self._pieces.save(self._path, value, within=self._prefix(round - 1), round=round, done=done)

    def _prefix(self, round: int) -> str:
        return f"{self._path}:{round}/"


def check_loop(body: object, max_iterations: object) -> None:
    """Raise `ValidationError` for arguments that make no sense."""
    if not callable(body):
        raise ValidationError(f"loop: the body is a function of state and iteration, not {repr(body)[:100]}")
    if not is_whole(max_iterations, 1):
        raise ValidationError(f"loop: max_iterations is a whole number from 1, not {max_iterations!r}")


def decoder_of_states(initial: object, body: Callable[..., Any]) -> payload.Decoder:
    """What states are rebuilt as: the type of the body's first parameter, else that of the initial state.

    Raises `ValidationError` if the annotation names what cannot be stored. An initial state of a type that cannot
    be rebuilt, and plain data, come back as plain data.
    """
    try:
        told = first_parameter_type(body)
    except UnresolvedAnnotation as error:
        raise ValidationError(f"loop: the first parameter of its body: {error}") from error
    if told is not None:
        try:
            return payload.decoder(told)
        except TypeError as error:
            raise ValidationError(f"loop: the state of its body: {error}") from error
    kind = type(initial)
    try:
        return payload.decoder(Any if kind in _PLAIN else kind)
    except TypeError:
        return payload.decoder(Any)
