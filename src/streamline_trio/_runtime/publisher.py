"""Events to those who listen, after the commit. A listener never reaches the engine."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from typing import Any

import trio

from streamline_trio._core.errors import ValidationError
from streamline_trio._core.events import EVENTS, EngineError, Event

_BUFFER = 10_000

Listener = Callable[[Any], Awaitable[None] | None]
Includes = Callable[[Event], bool]


def _all(_event: Event) -> bool:
    return True


class Subscription:
    """An async iterator over events, as they are published. `dropped` counts those it was too slow for."""

    def __init__(
        self,
        patterns: tuple[str, ...],
        run: str | None,
        receive: trio.MemoryReceiveChannel[Event],
        includes: Includes = _all,
    ) -> None:
        self._patterns = patterns
        self._run = run
        self._receive = receive
        self._includes = includes
        self.dropped = 0

    def wants(self, event: Event) -> bool:
        """Whether it listens to this event."""
        if (self._run is not None and event.run_id != self._run) or not self._includes(event):
            return False
        return any(fnmatchcase(event.name, pattern) for pattern in self._patterns)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        """The next event. A cancel point."""
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None


class Publisher:
    """Hands each event to every subscription that wants it, without waiting for anybody."""

    def __init__(self, logger: logging.Logger, spawn: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        self._logger = logger
        self._spawn = spawn
        self._subscriptions: dict[Subscription, trio.MemorySendChannel[Event]] = {}

    @property
    def is_heard(self) -> bool:
        """Whether anybody listens at all."""
        return bool(self._subscriptions)

    def publish(self, events: Sequence[Event]) -> None:
        """Hand out committed events, in order."""
        if not self._subscriptions:
            return
        for event in events:
            for subscription, send in list(self._subscriptions.items()):
                if subscription.wants(event):
                    self._offer(subscription, send, event)

    def _offer(self, subscription: Subscription, send: trio.MemorySendChannel[Event], event: Event) -> None:
        try:
            send.send_nowait(event)
        except trio.WouldBlock:
            subscription.dropped += 1
            if subscription.dropped == 1:
                self._logger.warning("a listener is too slow: events are dropped for it")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._subscriptions.pop(subscription, None)

    @asynccontextmanager
    async def subscribe(
        self, *names: str, run: str | None = None, includes: Includes = _all
    ) -> AsyncGenerator[Subscription]:
        """Listen while the block lasts; nothing published inside it is missed up to 10,000 unread events.

        `run` is a public id, which runs of several tenants may have; `includes` tells which of them are meant.
        """
        subscription = self._open(names, run, includes)
        try:
            yield subscription
        finally:
            self._close(subscription)

    def on(self, name: str, listener: Listener, includes: Includes = _all) -> Callable[[], None]:
        """Call `listener` for each event, one after the other; returns the function that ends it."""
        subscription = self._open((name,), None, includes)

        async def listen() -> None:
            async for event in subscription:
                await self._call(listener, event)

        self._spawn(listen)
        return lambda: self._close(subscription)

    async def _call(self, listener: Listener, event: Event) -> None:
        try:
            waiting = listener(event)
            if waiting is not None:
                await waiting
        except Exception as error:
            self._logger.exception("a listener to %s failed", event.name)
            if event.name != EngineError.name:
                self.publish(
                    (
                        EngineError(
                            run_id=event.run_id,
                            workflow=event.workflow,
                            tenant=event.tenant,
                            context=f"listener to {event.name}",
                            error=repr(error),
                        ),
                    )
                )

    def _open(self, names: tuple[str, ...], run: str | None, includes: Includes) -> Subscription:
        patterns = names or ("*",)
        for pattern in patterns:
            _check_pattern(pattern)
        send, receive = trio.open_memory_channel[Event](_BUFFER)
        subscription = Subscription(patterns, run, receive, includes)
        self._subscriptions[subscription] = send
        return subscription

    def _close(self, subscription: Subscription) -> None:
        send = self._subscriptions.pop(subscription, None)
        if send is not None:
            send.close()

    def close(self) -> None:
        """End every subscription: its iterator stops after what it has not read yet."""
        for subscription in list(self._subscriptions):
            self._close(subscription)


def _check_pattern(pattern: str) -> None:
    """A pattern that can match nothing is a mistake, told at once."""
    if not any(fnmatchcase(event.name, pattern) for event in EVENTS):
        known = ", ".join(sorted(event.name for event in EVENTS))
        raise ValidationError(f"no event is called {pattern!r}; there are: {known}", name=pattern)
