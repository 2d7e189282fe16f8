"""One entry of one handler: calls it under its scopes and says what happened."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

import trio

from streamline_trio._core import payload
from streamline_trio._core.checking import storable_text
from streamline_trio._core.documents import ErrorDoc, RunDoc
from streamline_trio._core.errors import StepTimeout, SuspensionError, error_code, message_of
from streamline_trio._core.happenings import (
    AttemptFailed,
    CancelUnwound,
    DeadlinePassed,
    Finished,
    HandedBack,
    Happening,
    Skipped,
    Suspended,
    UndoFailed,
    Undone,
    WentTo,
)
from streamline_trio._core.step import Step
from streamline_trio._runtime.context import StepContext
from streamline_trio._runtime.guards import Guarding
from streamline_trio._runtime.limits import check_size
from streamline_trio._runtime.middleware import tell_end, tell_entry
from streamline_trio._runtime.suspension import Goto, Suspender

if TYPE_CHECKING:
    from streamline_trio._runtime.driver import Driver

_MAX_TRACEBACK = 8_000
_MAX_MESSAGE = 10_000
_MAX_CODE = 200


class Attempt:
    """Enters the handler of the current step once, in a scope that the driver has opened.

    The scope is cancelled to abort the handler, or to unwind it for a suspension.
    """

    __slots__ = ("_ctx", "_driver", "_error", "_guarding", "_limit", "_result", "_step", "_suspender")

    _ending: type[Finished | Undone] = Finished

    def __init__(self, driver: Driver, step: Step[Any], scope: trio.CancelScope) -> None:
        self._driver = driver
        self._step = step
        self._suspender: Suspender = Suspender(step.id, scope)
        self._ctx: StepContext[Any, Any, Any] = StepContext(driver, step, self._suspender)
        self._limit: trio.CancelScope | None = None
        self._guarding: Guarding | None = None
        self._error: BaseException | None = None
        self._result: Any = None

    @property
    def _held(self) -> dict[str, Any]:
        writer = self._driver.writer
        return {"worker": writer.worker, "fence": writer.fence, "step": self._step.id}

    def abort(self) -> None:
        """Cancel the handler; why, the driver remembers."""
        self._suspender.root.scope.cancel()

    def noticed(self, run: RunDoc, touched: Iterable[str] | None) -> None:
        """The run changed under the handler: of its records at most these, if it is known which."""
        self._suspender.noticed(run, touched)

    def enter(self) -> Awaitable[Happening]:
        """Call the handler; what happened. `trio.Cancelled` passes if the scope was cancelled."""
        timeout = self._timeout
        return self._guarded() if timeout is None else self._limited(timeout)

    @property
    def _timeout(self) -> float | None:
        return self._step.options.timeout

    def end(self) -> None:
        """The handler has come to its end: its context is void."""
        self._suspender.ended = True

    async def _limited(self, timeout: float) -> Happening:
        """At most for so many seconds: what a handler brings later, in spite of the cancellation, is too late."""
        self._limit = trio.CancelScope(deadline=trio.current_time() + timeout)
        happening: Happening | None = None
        with self._limit:
            happening = await self._guarded()
        if happening is None or (isinstance(happening, self._ending) and self._limit.cancel_called):
            return self._timed_out()
        return happening

    def _timed_out(self) -> AttemptFailed | UndoFailed:
        step = self._step
        error = StepTimeout(f"step {step.id} exceeded its timeout of {step.options.timeout:g} s", step=step.id)
        return self.failed(error)

    async def _guarded(self) -> Happening:
        """The handler's result or failure."""
        try:
            return await self._call()
        except (KeyboardInterrupt, SystemExit, GeneratorExit, trio.Cancelled, BaseExceptionGroup) as error:
            if isinstance(error, ExceptionGroup):
                return self.failed(error)  # pyright: ignore[reportUnknownArgumentType] - a group of any errors
            raise
        except BaseException as error:  # noqa: BLE001 - whatever else a handler raises is its failure
            return self.failed(error)

    async def _call(self) -> Happening:
        if self._step.has_predicates and await self._is_skipped():
            return Skipped(**self._held, release=self._driver.leaving)
        if self._driver.workflow.hooks is not None:
            await self._admit()
        self._suspender.entered()
        handler = self._step.handler
        result = await (handler(self._ctx) if self._step.is_async else self._in_thread(handler))
        if self._guarding is not None:
            self._result = result
        return self._finished(result)

    async def _admit(self) -> None:
        """Middleware is told, at the expense of nobody's timeout; guards are asked once in each attempt."""
        limit = self._limit
        if limit is not None:
            left, limit.deadline = limit.deadline - trio.current_time(), math.inf
            await tell_entry(self._driver, self._ctx)
            limit.deadline = trio.current_time() + left
        else:
            await tell_entry(self._driver, self._ctx)
        hooks = self._driver.workflow.hooks
        if hooks is not None and hooks.guards:
            self._guarding = Guarding(self._driver, self._ctx)
            attempt = self._ctx.attempt
            records = self._driver.run.records.values()
            await self._guarding.admit(again=any(record.attempt == attempt for record in records))

    def ending(self) -> None:
        """How it ended is about to be committed: whoever is told of it shall see this attempt, not the next one."""
        self._suspender.ended_attempt = self._ctx.attempt

    async def tell(self, happening: Happening, error: BaseException | None) -> None:
        """Tell guards and middleware what was committed; `error`: in place of what the handler has brought."""
        failure, self._error = error or self._error, None
        if self._guarding is not None and isinstance(happening, Finished | AttemptFailed):
            await self._guarding.tell(self._result if isinstance(happening, Finished) else None, failure)
        await tell_end(self._driver, self._ctx, happening, failure)

    def settle(self, happening: Happening | None) -> Happening | None:
        """What may be written, given why the handler was stopped, if it was; None if nothing may.

        `happening` is None if the cancelled scope has unwound the handler.
        """
        reason = self._driver.abort_reason
        if reason == "lost":
            return None
        if happening is None:
            return self._unwound(reason)
        if reason == "leave" and isinstance(happening, AttemptFailed | UndoFailed):
            return HandedBack(worker=self._driver.writer.worker, fence=self._driver.writer.fence)
        return happening

    def _unwound(self, reason: str | None) -> Happening:
        """Who cancelled the scope: those who abort come first, then the step's timeout, then the handler itself."""
        held: dict[str, Any] = {"worker": self._driver.writer.worker, "fence": self._driver.writer.fence}
        if reason == "cancel":
            return CancelUnwound(release=self._driver.leaving, **held)
        if reason == "leave":
            return HandedBack(**held)
        if self._limit is not None and self._limit.cancel_called:
            return self._timed_out()
        return self._suspended() or DeadlinePassed(release=self._driver.leaving, **held)

    async def _is_skipped(self) -> bool:
        """Ask the predicates, in the begun step; not again once it has suspended, or a part of it is done."""
        if self._driver.run.records or self._driver.run.pieces:
            return False
        options = self._step.options
        state = self._ctx.state
        if options.skip_if is not None and await _ask(options.skip_if, state):
            return True
        return options.run_if is not None and not await _ask(options.run_if, state)

    async def _in_thread(self, handler: Callable[..., Any]) -> Any:
        result = await self._driver.threads.run(handler, self._ctx)
        return await result if inspect.isawaitable(result) else result

    def _finished(self, value: Any) -> Happening:
        if self._suspender.root.wanted is not None:
            raise SuspensionError(
                f"step {self._step.id} swallowed the cancellation that unwinds it for a suspension:"
                " let trio.Cancelled pass",
                step=self._step.id,
            )
        what = f"the output of step {self._step.id}"
        output = payload.encode(value, what=what)
        check_size(output, self._driver.max_payload(self._step), self._driver, self._step.id, "the output")
        if value is not None or self._step.returns is not Any:
            self._step.decoder.decode(output, what=what)
        writer = self._driver.writer
        return Finished(
            worker=writer.worker,
            fence=writer.fence,
            step=self._step.id,
            output=output,
            release=self._driver.leaving,
        )

    def _suspended(self) -> Happening | None:
        wanted = self._suspender.root.wanted
        if wanted is None:
            return None
        if isinstance(wanted, Goto):
            return WentTo(target=wanted.target, release=self._driver.leaving, **self._held)
        replayed = tuple(self._suspender.replayed.items())
        return Suspended(
            asks=tuple(wanted.asks),
            replayed=replayed,
            kept=tuple(wanted.kept),
            release=self._driver.leaving,
            **self._held,
        )

    def failed(self, error: BaseException) -> AttemptFailed | UndoFailed:
        """The attempt failed with this error."""
        if self._driver.workflow.hooks is not None:
            self._error = error
        return AttemptFailed(
            error=describe_error(error, self._step.id),
            retriable=self._step.options.retry_on.allows(error),
            roll=self._driver.services.chance.roll(),
            release=self._driver.leaving,
            **self._held,
        )


async def _ask(predicate: Any, state: Any) -> bool:
    answer = predicate(state)
    return bool(await answer if inspect.isawaitable(answer) else answer)


def describe_error(error: BaseException, step: str) -> ErrorDoc:
    """An exception as it is stored with a step and run."""
    text = "".join(traceback.format_exception(error))
    return ErrorDoc(
        code=storable_text(error_code(error), _MAX_CODE),
        message=storable_text(message_of(error), _MAX_MESSAGE),
        type=storable_text(type(error).__name__, _MAX_CODE),
        step=step,
        traceback=storable_text(text[-_MAX_TRACEBACK:], _MAX_TRACEBACK),
    )
