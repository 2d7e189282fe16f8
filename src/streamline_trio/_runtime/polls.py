"""When to look again at what others wrote."""

from __future__ import annotations

import trio

from streamline_trio._runtime.clock import Chance

LEAST_PAUSE = 0.02
_PAUSE_PER_LOOK = 10


class Polls:
    """The rhythm of all who look from time to time: each poll interval, or sooner, since somebody has written.

    Looking never takes more than a small share of the time: what took long is not done again so soon.
    """

    def __init__(self, interval: float, chance: Chance) -> None:
        self._interval = interval
        self._chance = chance
        self._stirred = trio.Event()

    def stir(self) -> None:
        """Somebody has written."""
        self._stirred.set()
        self._stirred = trio.Event()

    def pause(self) -> float:
        """Seconds until the next look when nothing is known: less than the interval, since looking takes time."""
        return self._interval * (0.7 + self._chance.roll() / 5)

    def poll(self) -> Poll:
        """The rhythm of one who looks."""
        return Poll(self)

    @property
    def stirred(self) -> trio.Event:
        """Set when somebody writes from now on."""
        return self._stirred


class Poll:
    """One who looks, and sleeps in between."""

    def __init__(self, polls: Polls) -> None:
        self._polls = polls
        self._looked_at = trio.current_time()
        self._stirred = polls.stirred

    async def next(self) -> None:
        """Until it is time to look again."""
        took = trio.current_time() - self._looked_at
        pause = self._polls.pause()
        with trio.move_on_after(pause):
            await trio.sleep(max(LEAST_PAUSE, took * _PAUSE_PER_LOOK))
            await self._stirred.wait()
        # What is written from now on may be missed by the look that follows.
        self._stirred = self._polls.stirred
        self._looked_at = trio.current_time()
