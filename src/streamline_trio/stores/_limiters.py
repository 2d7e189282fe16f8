"""How many threads a store keeps busy at a time."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import trio


class LimiterPerRun:
    """A capacity limiter for each trio run that uses a store; those of another run could not be waited for."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._limiters: WeakKeyDictionary[trio.lowlevel.TrioToken, trio.CapacityLimiter] = WeakKeyDictionary()

    def here(self) -> trio.CapacityLimiter:
        """That of the present trio run."""
        token = trio.lowlevel.current_trio_token()
        limiter = self._limiters.get(token)
        if limiter is None:
            limiter = self._limiters[token] = trio.CapacityLimiter(self._tokens)
        return limiter
