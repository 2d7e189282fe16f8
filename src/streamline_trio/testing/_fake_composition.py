"""Scatters and loops of a fake context: in the handler's own task, one part after the other."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import trio

from streamline_trio import Done, LoopLimitExceeded, Next, SuspensionError, ValidationError
from streamline_trio._core import payload
from streamline_trio._core.checking import check_reason
from streamline_trio._runtime.frames import CompositeKind, Frame, composite, escape
from streamline_trio._runtime.loop import check_loop, decoder_of_states
from streamline_trio._runtime.scatter import check_fns


class Emitted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True):
    """A signal that a handler emitted: to a run, by its id, or to all who wait."""

    signal: str
    payload: Any = None
    run: str | None = None


class Lines:
    """Where the handler is, and the parts of its step. `keep` gives the stored form of a value, or refuses it."""

    def __init__(self, step: str, keep: Callable[[Any, str], bytes]) -> None:
        self.frame: Frame = Frame("")
        self._step = step
        self._keep = keep
        self._keys = 0

    def require_new(self, key: str, name: str) -> None:
        """Raise `SuspensionError` for a name that this line has used before."""
        if key in self.frame.keys:
            raise SuspensionError(f"step {self._step}: the name {name!r} is used twice", step=self._step)
        self.frame.keys.add(key)

    def require_handler(self, what: str) -> None:
        """Raise `SuspensionError` in a scatter key."""
        if self._keys:
            raise SuspensionError(f"step {self._step}: {what} cannot be called in a scatter key", step=self._step)

    async def scatter(
        self, fns: Mapping[str, Callable[[], Any]], concurrency: int | None, returns: Any, name: str | None
    ) -> dict[str, Any]:
        """Call each in turn; the first error is raised when all have been called."""
        check_fns(fns, concurrency)
        decoder, path = payload.decoder(returns), self._path("scatter", name)
        await trio.lowlevel.checkpoint()
        results: dict[str, Any] = {}
        errors: list[Exception] = []
        for key, fn in fns.items():
            what = f"the result of scatter key {key!r}"
            try:
                with self._within(f"{path}:{escape(key)}/", keys=1):
                    results[key] = decoder.decode(self._keep(await _value_of(fn), what), what=what)
            except Exception as error:  # noqa: BLE001 - the first one is raised below
                errors.append(error)
        if errors:
            raise errors[0]
        return results

    async def loop(
        self, initial: Any, body: Callable[[Any, int], Any], max_iterations: int, name: str | None, returns: Any
    ) -> Any:
        """Call the body until it is done; it sees its state as rebuilt from storage."""
        check_loop(body, max_iterations)
        decoder, states, path = payload.decoder(returns), decoder_of_states(initial, body), self._path("loop", name)
        await trio.lowlevel.checkpoint()
        state = self._keep(initial, "the state of a loop")
        for iteration in range(max_iterations):
            with self._within(f"{path}:{iteration}/"):
                outcome = body(states.decode(state, what="the state of a loop"), iteration)
                if inspect.isawaitable(outcome):
                    outcome = await outcome
            if isinstance(outcome, Done):
                value: Any = outcome.value  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
                return decoder.decode(self._keep(value, "the value of a loop"), what="the value of a loop")
            if not isinstance(outcome, Next):
                raise ValidationError(
                    f"step {self._step}: the body of a loop returns Next(state) or Done(value),"
                    f" not {repr(outcome)[:100]}"
                )
            following: Any = outcome.state  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            state = self._keep(following, "the state of a loop")
        raise LoopLimitExceeded(
            f"step {self._step}: a loop ran {max_iterations} iterations, its max_iterations, and was not done",
            step=self._step,
            max_iterations=max_iterations,
        )

    def _path(self, kind: CompositeKind, name: str | None) -> str:
        check_reason(name, f"the name of a {kind}", shortest=1)
        frame = self.frame
        frame.place()
        segment = composite(kind, name, frame.ordinal(kind) if name is None else 0)
        if name is not None:
            self.require_new(segment, name)
        return frame.prefix + segment

    @contextmanager
    def _within(self, prefix: str, *, keys: int = 0) -> Generator[None]:
        outer, self.frame = self.frame, Frame(prefix)
        self._keys += keys
        try:
            yield
        finally:
            self.frame = outer
            self._keys -= keys


async def _value_of(fn: Callable[[], Any]) -> Any:
    value = fn()
    return await value if inspect.isawaitable(value) else value
