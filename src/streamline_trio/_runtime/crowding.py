"""Where in the queue a worker reads, so that several workers do not all fight for its head.

All workers that read the head of one queue at once find the same runs, and one of them gets each: the others have
read, decided and sent in vain, and made the store refuse. Whoever was mostly refused therefore reads somewhere in
a stretch of several pages, chosen by chance, and goes back to the head when nobody disputes what it takes. It never
passes over a higher priority (condition 10 of the store).
"""

from __future__ import annotations

from collections.abc import Callable

WIDEST = 16
"""Over how many pages workers spread at most."""


class Crowding:
    """What one worker knows of the others from what it was refused. Pure."""

    def __init__(self) -> None:
        self._pages = 1

    def skip(self, places: int, roll: Callable[[], float]) -> int:
        """How many runs to pass over; `roll` gives a number in [0, 1), where there is a choice."""
        return 0 if self._pages == 1 else int(roll() * self._pages) * places

    def told(self, claimed: int, refused: int) -> None:
        """What became of a page of claims."""
        if refused > claimed / 4:
            self._pages = min(WIDEST, self._pages * 2)
        elif refused == 0 and claimed:
            self._pages = max(1, self._pages - 1)
