"""What the parts of one engine share."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import trio

from streamline_trio._core.checking import storable_repr
from streamline_trio._core.decide import Decision
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import StoreUnavailable
from streamline_trio._core.events import EngineError
from streamline_trio._core.status import SETTLED
from streamline_trio._core.store import Store
from streamline_trio._runtime.circuit import Circuit
from streamline_trio._runtime.clock import Chance, Clock
from streamline_trio._runtime.committer import GroupCommitter
from streamline_trio._runtime.polls import Polls
from streamline_trio._runtime.publisher import Publisher
from streamline_trio._runtime.registry import Registry

T = TypeVar("T")

_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 1.0
_LONGEST_ERROR = 10_000


@dataclass(frozen=True, kw_only=True)
class Options:
    """How an engine was opened; durations in seconds."""

    name: str | None
    max_concurrent_runs: int
    lease: float
    poll_interval: float
    drain_timeout: float
    max_recoveries: int
    tenancy: Literal["optional", "required"] = "optional"


@dataclass(kw_only=True)
class Services:
    """The store, the clock and the channels between the parts of one engine."""

    store: Store
    clock: Clock
    chance: Chance
    circuit: Circuit
    options: Options
    polls: Polls
    logger: logging.Logger
    nursery: trio.Nursery
    token: trio.lowlevel.TrioToken
    committer: GroupCommitter
    publisher: Publisher
    settled: Callable[[RunDoc], None]
    due: Callable[[int], None]
    emit: Callable[..., Awaitable[None]]
    errands: Callable[[RunDoc], None]
    registry: Registry

    def spawn(self, task: Callable[[], Awaitable[Any]]) -> None:
        """Run a task for as long as the engine is open."""
        self.nursery.start_soon(task)

    def committed(self, run: RunDoc, decisions: Sequence[Decision]) -> None:
        """A commit of ours was applied: tell whoever waits for what it made true."""
        if self.publisher.is_heard:
            for decision in decisions:
                self.publisher.publish(decision.events)
        head = run.head
        if head.errand_at is not None:
            self.errands(run)
        if head.due_at is not None:
            self.due(head.due_at)
        elif head.status in SETTLED:
            self.settled(run)

    async def read(self, fetch: Callable[[], Awaitable[T]]) -> T:
        """Read from the store, again if it is unavailable, for at most one lease."""
        pause, deadline = _FIRST_PAUSE, trio.current_time() + self.options.lease
        while True:
            try:
                found = await fetch()
            except StoreUnavailable as error:
                self.circuit.failed("read", error)
                if trio.current_time() + pause > deadline:
                    raise
                await trio.sleep(pause * (0.5 + self.chance.roll()))
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                self.circuit.worked("read")
                return found

    def report(self, context: str, error: BaseException, run: RunDoc | None = None) -> None:
        """Something went wrong that no caller is told of."""
        text = storable_repr(error, _LONGEST_ERROR)
        self.logger.error("%s: %s", context, text, exc_info=error)
        origin = None if run is None else run.origin
        event = EngineError(
            run_id="" if origin is None else origin.id,
            workflow="" if origin is None else origin.workflow,
            tenant=None if origin is None else origin.tenant,
            at_millis=self.clock.now(),
            context=context,
            error=text,
        )
        self.publisher.publish((event,))
