"""The verbs of a step context that make one step of many parts: fan-out, loops, and signals sent once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from hashlib import sha256
from typing import Any, TypeVar, cast, overload

import trio
from typing_extensions import TypeForm

from streamline_trio._core import payload
from streamline_trio._core.checking import check_reason
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.signals import Signal, signal_name
from streamline_trio._runtime.frames import escape
from streamline_trio._runtime.guards import guarded
from streamline_trio._runtime.loop import Done, Loop, Next, check_loop, decoder_of_states
from streamline_trio._runtime.pieces import Pieces
from streamline_trio._runtime.scatter import Scatter, check_fns
from streamline_trio._runtime.waits import Waits

T = TypeVar("T")
S = TypeVar("S")


class Composition(Waits):
    """Each keeps what has come to its end by a commit of its own, so that no crash or retry does it again."""

    __slots__ = ()

    @overload
    async def scatter(
        self,
        fns: Mapping[str, Callable[[], Awaitable[object] | object]],
        concurrency: int | None = None,
        *,
        returns: TypeForm[T],
        name: str | None = None,
    ) -> dict[str, T]: ...
    @overload
    async def scatter(
        self,
        fns: Mapping[str, Callable[[], Awaitable[object] | object]],
        concurrency: int | None = None,
        *,
        name: str | None = None,
    ) -> dict[str, Any]: ...
    async def scatter(
        self,
        fns: Mapping[str, Callable[[], Awaitable[object] | object]],
        concurrency: int | None = None,
        returns: Any = Any,
        name: str | None = None,
    ) -> dict[str, Any]:
        """Call functions without arguments at the same time; their results by key, in the order of the mapping.

        Each result is durable before the next key takes its place: after a crash or a failed attempt only keys
        without a result are called. Results are rebuilt as `returns`. `concurrency` is how many run at a time, in
        the order of the mapping; a key that waits does not count.

        A key may suspend: it unwinds alone and is called again from its first line. While others run its wait is
        open (it takes answers, signals and its timeout); when none runs any more, the step parks. A key that fails
        stops no other: when all have finished or suspended, the first error in time is raised as it is, with
        notes of the others.

        A scatter is known again by its ordinal in the step, or by `name`. Raises `ValidationError` for arguments
        that make no sense, `SuspensionError` in a task that cannot be unwound. A cancel point.
        """
        check_fns(fns, concurrency)
        decoder = _decoder(returns, "scatter")
        check_reason(name, "the name of a scatter", shortest=1)
        path = self._suspender.composite("scatter", name)
        await trio.lowlevel.checkpoint_if_cancelled()
        guard = partial(guarded, self._driver, cast("Any", self))
        return await Scatter(self._pieces(), path, fns, concurrency, decoder, guarded=guard).run()

    @overload
    async def loop(
        self,
        initial: Any,
        body: Callable[[S, int], Awaitable[Next[S] | Done[object]] | Next[S] | Done[object]],
        max_iterations: int = 1000,
        name: str | None = None,
        *,
        returns: TypeForm[T],
    ) -> T: ...
    @overload
    async def loop(
        self,
        initial: Any,
        body: Callable[[S, int], Awaitable[Next[S] | Done[object]] | Next[S] | Done[object]],
        max_iterations: int = 1000,
        name: str | None = None,
    ) -> Any: ...
    async def loop(
        self,
        initial: Any,
        body: Callable[[Any, int], Any],
        max_iterations: int = 1000,
        name: str | None = None,
        returns: Any = Any,
    ) -> Any:
        """Call `body(state, iteration)` until it returns `Done(value)`; the value, rebuilt as `returns`.

        `Next(state)` is durable before the next iteration begins: after a crash or a failed attempt only the
        iteration that was under way is repeated, and a loop that is done is not. The state is rebuilt in the type
        of the body's first parameter, else in that of `initial`, else as plain data. The body may suspend.

        A loop is known again by its ordinal in the step, or by `name`. Raises `LoopLimitExceeded` after
        `max_iterations`, which is not retried, `ValidationError` for arguments or results of the body that make
        no sense, `SuspensionError` in a task that cannot be unwound. A cancel point.
        """
        check_loop(body, max_iterations)
        _decoder(returns, "loop")
        states = decoder_of_states(initial, body)
        check_reason(name, "the name of a loop", shortest=1)
        path = self._suspender.composite("loop", name)
        return await Loop(self._pieces(), path, body, states, returns).run(initial, max_iterations)

    async def emit(self, signal: Signal[T] | str, payload: T | Any = None, *, run: Any = None) -> None:
        """Emit a signal once, however often the step is called: to `run` (a handle or id), or to all who wait.

        Durable when it returns, as `Engine.emit`. The call is known again by how often this step (in a scatter
        key or iteration: this part of it) has emitted the signal to this target before; goto and rewind forget
        it. If the process dies in between, the signal is emitted again under the same id, by which those who have
        taken it know it for a day. A cancel point.
        """
        self._require_current()
        target = None if run is None else str(getattr(run, "id", run))
        wanted = signal_name(signal)
        frame = self._suspender.strand.frame
        to = "" if target is None else f"@{escape(target).replace(':', '~2')}"
        call = f"emit{to}:{escape(wanted)}"
        path = f"{self._compensation}{frame.prefix}{call}#{frame.ordinal(call)}"
        if path in self._driver.run.pieces:
            await trio.lowlevel.checkpoint()
            return
        scope = self._driver.run.origin.tenant
        await self._driver.services.emit(signal, payload, run=target, id=self._emission_id(path), tenant=scope)
        await self._pieces().save(path, _NOTHING)

    @property
    def _compensation(self) -> str:
        """What tells the emissions of a compensation from those of the step, and of other compensations."""
        return f"compensate/{escape(self._step.id)}/" if self._driver.is_undoing else ""

    def _emission_id(self, path: str) -> str:
        step = self._driver.run.step(self._step.id)
        told = f"{self.run_id}\n{step.keyed or self._step.id}\n{step.generation}\n{path}"
        return sha256(told.encode()).hexdigest()

    def _pieces(self) -> Pieces:
        return Pieces(self._driver, self._step, self._suspender, lambda: self._held)


_NOTHING = payload.NULL


def _decoder(returns: Any, verb: str) -> payload.Decoder:
    try:
        return payload.decoder(returns)
    except TypeError as error:
        raise ValidationError(f"{verb}: returns={returns!r}: {error}") from error
