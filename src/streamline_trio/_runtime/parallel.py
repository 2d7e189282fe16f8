"""Several things at once inside a step, in memory: nothing of it is durable."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, Literal, TypeVar, overload

import trio

from streamline_trio._core.checking import is_whole
from streamline_trio._core.durations import seconds_of
from streamline_trio._core.errors import ValidationError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_MODES = ("all", "race", "any", "settled")


@dataclass(frozen=True)
class Settled(Generic[T_co]):
    """How one of several calls ended: its value, or the error it raised."""

    success: bool
    value: T_co | None = None
    error: Exception | None = None


@overload
async def parallel(
    fns: Sequence[Callable[[], Awaitable[T]]],
    mode: Literal["all"] = "all",
    concurrency: int | None = None,
    timeout: float | timedelta | None = None,
) -> list[T]: ...
@overload
async def parallel(
    fns: Sequence[Callable[[], Awaitable[T]]],
    mode: Literal["settled"],
    concurrency: int | None = None,
    timeout: float | timedelta | None = None,
) -> list[Settled[T]]: ...
@overload
async def parallel(
    fns: Sequence[Callable[[], Awaitable[T]]],
    mode: Literal["race", "any"],
    concurrency: None = None,
    timeout: float | timedelta | None = None,
) -> T: ...
async def parallel(
    fns: Sequence[Callable[[], Awaitable[Any]]],
    mode: Literal["all", "race", "any", "settled"] = "all",
    concurrency: int | None = None,
    timeout: float | timedelta | None = None,
) -> Any:
    """Call functions without arguments at the same time, and give what they come to.

    `all`: their results in the order of the functions; the first error is raised and the others are cancelled.
    `settled`: a `Settled` for each, in order; no error is raised. `race`: the first to end decides, by its result
    or its error. `any`: the first result; if every one fails, an `ExceptionGroup` of the errors in order. Those
    that are not needed any more are cancelled, and have ended when it returns.

    `concurrency` is how many run at a time, in modes that need them all. `timeout` is for each call, in seconds:
    one that takes longer fails with `TimeoutError`. A cancel point. Nothing is stored: after a crash all are
    called again (see `StepContext.scatter` for the durable form), and none of them may suspend.
    Raises `ValidationError` for arguments that make no sense.
    """
    calls = _Calls(list(fns), mode, concurrency, timeout)
    return await calls.run()


class _Calls:
    def __init__(
        self,
        fns: list[Callable[[], Any]],
        mode: str,
        concurrency: int | None,
        timeout: float | timedelta | None,
    ) -> None:
        _check(fns, mode, concurrency)
        self._fns = fns
        self._mode = mode
        self._timeout = None if timeout is None else seconds_of(timeout, what="timeout")
        self._limiter = trio.Semaphore(len(fns) + 1 if concurrency is None else concurrency)
        self._ended: dict[int, Settled[Any]] = {}
        self._first: Settled[Any] | None = None

    async def run(self) -> Any:
        async with trio.open_nursery() as nursery:
            for place, fn in enumerate(self._fns):
                nursery.start_soon(self._one, place, fn, nursery.cancel_scope)
        return self._outcome()

    async def _one(self, place: int, fn: Callable[[], Any], scope: trio.CancelScope) -> None:
        async with self._limiter:
            ended = await self._call(place, fn)
        self._ended[place] = ended
        if self._first is None and self._decides(ended):
            self._first = ended
            scope.cancel()

    async def _call(self, place: int, fn: Callable[[], Any]) -> Settled[Any]:
        try:
            if self._timeout is None:
                return Settled(True, value=await _value_of(fn))
            with trio.move_on_after(self._timeout) as scope:
                return Settled(True, value=await _value_of(fn))
        except Exception as error:  # noqa: BLE001 - told or raised as the mode says
            return Settled(False, error=error)
        assert scope.cancelled_caught
        return Settled(
            False, error=TimeoutError(f"call {place} of {len(self._fns)} timed out after {self._timeout:g} s")
        )

    def _decides(self, ended: Settled[Any]) -> bool:
        """Whether the others are not needed any more."""
        return {"all": not ended.success, "race": True, "any": ended.success, "settled": False}[self._mode]

    def _outcome(self) -> Any:
        in_order = [self._ended[place] for place in sorted(self._ended)]
        if self._mode == "settled":
            return in_order
        if self._first is None and self._mode == "any":
            errors = [ended.error for ended in in_order if ended.error is not None]
            raise ExceptionGroup(f"none of {len(errors)} parallel calls succeeded", errors)
        if self._first is None:
            return [ended.value for ended in in_order]
        if self._first.error is not None:
            raise self._first.error
        return self._first.value


def _check(fns: list[Callable[[], Any]], mode: str, concurrency: int | None) -> None:
    if mode not in _MODES:
        raise ValidationError(f"parallel: mode is one of {', '.join(_MODES)}, not {mode!r}")
    for place, fn in enumerate(fns):
        if not callable(fn):
            raise ValidationError(f"parallel: call {place} is a function without arguments, not {fn!r}")
    if concurrency is not None and mode in {"race", "any"}:
        raise ValidationError(f"parallel: mode {mode} starts all at once and takes no concurrency")
    if concurrency is not None and not is_whole(concurrency, 1, 1 << 31):
        raise ValidationError(f"parallel: concurrency is a whole number from 1, not {concurrency!r}")
    if not fns and mode in {"race", "any"}:
        raise ValidationError(f"parallel: mode {mode} needs at least one function")


async def _value_of(fn: Callable[[], Any]) -> Any:
    value = fn()
    return await value if inspect.isawaitable(value) else value
