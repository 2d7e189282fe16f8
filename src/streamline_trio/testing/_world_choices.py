"""Where a simulated world takes its choices from: a seed, a record of earlier ones, or any function.

A schedule is what follows from its choices, which are kept as they are made. Zero is always the plainest choice:
no fault, the oldest call, nothing drawn. So a record can be shortened and lowered, and what still fails is
simpler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from streamline_trio._runtime.clock import Chance

T = TypeVar("T")


class Chooser:
    """Chooses whole numbers, and records them.

    Args:
        source: gives a whole number from 0 to below its argument; for Hypothesis
            ``lambda n: data.draw(st.integers(0, n - 1))``.
    """

    def __init__(self, source: Callable[[int], int]) -> None:
        self._source = source
        self.taken: list[int] = []
        """What was chosen so far."""
        self.is_exhausted: bool = False
        """Whether a record has come to its end; from there on everything is zero."""

    @classmethod
    def seeded(cls, seed: int) -> Chooser:
        """Choices that follow from a number."""
        chance = Chance(seed)
        return cls(lambda below: int(chance.roll() * below))

    @classmethod
    def replayed(cls, choices: Sequence[int]) -> Chooser:
        """The recorded choices again, as far as they go and fit; then zeros."""
        left = iter(choices)

        def source(below: int) -> int:
            choice = next(left, None)
            if choice is None:
                chooser.is_exhausted = True
                return 0
            return min(choice, below - 1)

        chooser = cls(source)
        return chooser

    def below(self, count: int) -> int:
        """A whole number from 0 to `count` - 1."""
        if count <= 1:
            return 0
        choice = self._source(count)
        self.taken.append(choice)
        return choice

    def one_of(self, options: Sequence[T]) -> T:
        """One of these; the first is the plainest."""
        return options[self.below(len(options))]

    def one_in(self, count: int) -> bool:
        """True once in `count` times."""
        return count > 0 and self.below(count) == count - 1

    def weighted(self, options: Sequence[tuple[T, int]]) -> T:
        """One of these, as often as its weight says; the first is the plainest."""
        roll = self.below(sum(weight for _, weight in options))
        for option, weight in options:
            if roll < weight:
                return option
            roll -= weight
        raise AssertionError("unreachable: a roll is below the sum of the weights")


def shrink(choices: Sequence[int], still_fails: Callable[[Sequence[int]], bool], *, tries: int = 400) -> list[int]:
    """A simpler record that still fails: blocks are left out, then numbers lowered, until nothing helps.

    `still_fails` is asked at most `tries` times.
    """
    return _Shrinking(list(choices), still_fails, tries).run()


class _Shrinking:
    """One search; the best record so far, and how often the question may be asked still."""

    def __init__(self, best: list[int], still_fails: Callable[[Sequence[int]], bool], tries: int) -> None:
        self._best = best
        self._still_fails = still_fails
        self._left = tries

    def run(self) -> list[int]:
        while self._left > 0:
            before = list(self._best)
            self._shorten()
            self._leave_out()
            self._lower()
            if self._best == before:
                break
        return self._best

    def _try(self, candidate: list[int]) -> bool:
        if self._left <= 0 or candidate == self._best:
            return False
        self._left -= 1
        if not self._still_fails(candidate):
            return False
        self._best = candidate
        return True

    def _shorten(self) -> None:
        """Cut the end off, by halving."""
        keep, known = 0, len(self._best)
        while keep < known and self._left > 0:
            middle = (keep + known) // 2
            if self._try(self._best[:middle]):
                known = middle
            else:
                keep = middle + 1

    def _leave_out(self) -> None:
        size = max(len(self._best) // 2, 1)
        while size and self._left > 0:
            at = 0
            while at < len(self._best) and self._left > 0:
                if not self._try(self._best[:at] + self._best[at + size :]):
                    at += size
            size //= 2

    def _lower(self) -> None:
        for at in range(len(self._best)):
            if at < len(self._best) and self._best[at]:
                lowered = [*self._best]
                for value in (0, self._best[at] // 2, self._best[at] - 1):
                    lowered[at] = value
                    if value < self._best[at] and self._try([*lowered]):
                        break
