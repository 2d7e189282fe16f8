"""Wall time, ids and chance: the only module that reads them.

Monotonic time is `trio.current_time()` everywhere. Wall time decides only when timers fire, never who may write.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from trio.testing import MockClock

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [high + low for high in _CROCKFORD for low in _CROCKFORD]


class Clock(Protocol):
    """Where an engine reads wall time."""

    def now(self) -> int:
        """Milliseconds since the epoch."""
        ...


class WallClock:
    """The machine's clock."""

    def now(self) -> int:
        """Milliseconds since the epoch."""
        return time.time_ns() // 1_000_000


class VirtualClock:
    """Wall time that runs with trio's clock: `start` plus what has passed there since."""

    def __init__(self, start: int, trio_clock: MockClock | None = None) -> None:
        self._start = start
        self._entry = trio.current_time()
        self._trio_clock = trio_clock
        self._holds = 0

    def now(self) -> int:
        """Milliseconds since the epoch; a microsecond of float noise never makes a timer early or late.

        Handlers in threads ask too, where only the clock itself knows the time.
        """
        current = trio.current_time() if self._trio_clock is None else self._trio_clock.current_time()
        micros = round((current - self._entry) * 1_000_000)
        return self._start + micros // 1000

    @contextmanager
    def held(self) -> Generator[None]:
        """Time does not skip inside: a worker thread is at work, which trio's clock cannot see."""
        if self._trio_clock is None:
            yield
            return
        self._holds += 1
        self._trio_clock.autojump_threshold = float("inf")
        try:
            yield
        finally:
            self._holds -= 1
            if not self._holds:
                self._trio_clock.autojump_threshold = 0.0


virtual_clock: ContextVar[VirtualClock | None] = ContextVar("virtual_clock", default=None)


class Chance:
    """Ids and randomness. With a seed it is reproducible, and its tokens are guessable: for simulations only."""

    def __init__(self, seed: int | None = None) -> None:
        self._random: Random = secrets.SystemRandom() if seed is None else Random(seed)
        self._fast = Random(self._random.getrandbits(64))
        self._seeded = seed is not None
        self._ticket = 0
        self._pid = os.getpid()
        self._commits = self._commit_numbers()

    def _commit_numbers(self) -> Iterator[int]:
        """A random start and then one by one: two processes meet with negligible chance."""
        return count(self._random.getrandbits(62))

    def commit_id(self) -> int:
        """A number that no other commit has (63 bits)."""
        return next(self._commits) & 0x7FFF_FFFF_FFFF_FFFF

    def ticket(self, now: int) -> int:
        """A number that grows from one to the next, a thousand for each millisecond."""
        self._ticket = max(self._ticket + 1, now * 1000)
        return self._ticket

    def run_id(self, now: int) -> str:
        """26 characters that sort by time (48 bits of milliseconds, 80 of chance)."""
        value = (now & 0xFFFF_FFFF_FFFF) << 80 | self._fast.getrandbits(80)
        return "".join([_PAIRS[(value >> shift) & 1023] for shift in range(120, -1, -10)])

    def worker_id(self) -> str:
        """A name for one life of one worker; never used twice."""
        return f"w-{self._random.getrandbits(80):020x}"

    def signal_id(self) -> str:
        """An id for a signal whose sender gave none."""
        return f"{self._random.getrandbits(96):024x}"

    def token(self) -> str:
        """An unguessable token (256 bits)."""
        return f"{self._random.getrandbits(256):064x}" if self._seeded else secrets.token_urlsafe(32)

    def roll(self) -> float:
        """A number in [0, 1)."""
        return self._fast.random()
