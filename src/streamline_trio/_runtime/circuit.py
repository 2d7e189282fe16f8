"""Whether the store can be reached: the circuit opens after some failures in a row and closes by itself.

Whoever asks the store tells it what came of that; while nothing has failed, that is one look at an attribute. Reads
and writes count apart, since a store may answer the ones and refuse the others. While the circuit is open, claiming
and care pause before they try again, the longer the outage lasts the longer; the first success of what failed,
whoever has it, closes the circuit and ends their pauses.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Literal

import trio

from streamline_trio._core.errors import StoreUnavailable
from streamline_trio._runtime.clock import Chance

Way = Literal["read", "write"]

FAILURES = 3
"""So many failures in a row open the circuit."""
MOMENT = 0.05
"""Failures within so many seconds are one: what was under way together fails together."""
LONGEST_PAUSE = 5.0
_SHORTEST_PAUSE = 0.1
_FORGOTTEN = 600.0


class _Row:
    """Failures in a row, of reads or of writes."""

    __slots__ = ("failures", "last")

    def __init__(self) -> None:
        self.failures = 0
        self.last = -math.inf

    def is_past(self, now: float) -> bool:
        """Whether it is so long ago that it belongs to another outage."""
        return now - self.last > _FORGOTTEN

    def add(self, now: float) -> None:
        if self.is_past(now):
            self.failures = 0
        if now - self.last >= MOMENT:
            self.failures += 1
            self.last = now


class Circuit:
    """Counts failures, tells of an outage once, and holds back those who work from time to time.

    `opened` is called with the number of failures and the last of them. `longest` bounds a pause, in seconds.
    """

    def __init__(
        self,
        chance: Chance,
        logger: logging.Logger,
        *,
        longest: float,
        opened: Callable[[int, StoreUnavailable], None],
    ) -> None:
        self._chance = chance
        self._logger = logger
        self._longest = min(longest, LONGEST_PAUSE)
        self._opened = opened
        self._rows: dict[Way, _Row] = {"read": _Row(), "write": _Row()}
        self._since = 0.0
        self._closed = trio.Event()
        self._in_trouble = False
        self.is_open: bool = False

    def failed(self, way: Way, error: StoreUnavailable) -> None:
        """The store could not be reached, or did not say what became of a write."""
        now = trio.current_time()
        self._in_trouble = True
        if self.is_open and all(row.is_past(now) for row in self._rows.values()):
            self._close()  # nobody has asked since for what failed then
        row = self._rows[way]
        row.add(now)
        if self.is_open or row.failures < FAILURES:
            return
        self.is_open, self._since, self._closed = True, now, trio.Event()
        self._logger.error("the store is unavailable (%s failed %d times): %s", way, row.failures, error)
        self._opened(row.failures, error)

    def worked(self, way: Way) -> None:
        """The store answered."""
        if not self._in_trouble:
            return
        self._rows[way] = _Row()
        self._in_trouble = any(row.failures for row in self._rows.values())
        if self.is_open and all(row.failures < FAILURES for row in self._rows.values()):
            self._logger.warning("the store answers again, after %.1f s", trio.current_time() - self._since)
            self._close()

    def _close(self) -> None:
        self.is_open = False
        self._closed.set()

    async def pause(self) -> None:
        """Half as long as the outage has lasted, at random by up to a half less, or until it is over.

        Call it only while it is open. A cancel point.
        """
        length = min(max((trio.current_time() - self._since) / 2, _SHORTEST_PAUSE), self._longest)
        with trio.move_on_after(length * (0.5 + self._chance.roll() / 2)):
            await self._closed.wait()
