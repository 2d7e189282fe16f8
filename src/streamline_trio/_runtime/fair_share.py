"""Whom a worker takes next while more is due than fits: mostly by priority, a share in turn.

Priority alone starves: whoever has enough to do at a high priority, or simply enough, is all that is ever taken.
So of every four runs that are claimed under such pressure one is taken in turn: the tenants one after the other
(those without a tenant count as one), of each the run that has waited longest, whatever its priority. So a run
is claimed after a number of claims that depends only on how many tenants have work and how many older runs its
own tenant has, whatever else arrives.

Nothing is asked for as long as all that is due fits. Where the turn gives nothing but what priority would have
given, it is asked for more rarely, and what looking costs is never more than a small part of the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.store import Corrupt

SHARE = 4
"""Of so many claims one is made in turn."""

LONGEST_REST = 3
_MOST_OWED = 100.0
_PAUSE_PER_LOOK = 10

Due = RunDoc | Corrupt


class FairShare:
    """The account of one worker. Pure: it is told what was found and what o'clock it is."""

    def __init__(self) -> None:
        self.after: str | None = None
        """The tenant that had its turn last."""
        self._owed = 0.0
        self._rest = 0
        self._rested = 0
        self._not_before = -math.inf

    def all_fits(self) -> None:
        """Everything that is due is taken: nobody is owed anything."""
        self._owed = 0.0
        self._rest = 0
        self._rested = 0

    def due_in_turn(self, places: int, at: float) -> int:
        """How many of so many places go by turn now; 0: need not ask."""
        if self._owed < 1 or at < self._not_before:
            return 0
        if self._rested < self._rest:
            self._rested += 1
            return 0
        return min(int(self._owed), max(1, places // 2))

    def more_is_due(self, places: int) -> None:
        """So many places are given away, and more is due."""
        self._owed = min(_MOST_OWED, self._owed + places / SHARE)

    def choose(self, places: int, by_priority: Sequence[Due], in_turn: Sequence[Due]) -> list[Due]:
        """Who gets the places: those in turn, and by priority as many as fit beside them."""
        first = {_id_of(run): run for run in in_turn[:places]}
        would_have = {_id_of(run) for run in by_priority[:places]}
        self._rested = 0
        self._rest = min(LONGEST_REST, self._rest + 1) if first.keys() <= would_have else 0
        self._owed = max(0.0, self._owed - len(first))
        self.after = _last_tenant(in_turn, self.after)
        rest = [run for run in by_priority if _id_of(run) not in first]
        return [*first.values(), *rest[: places - len(first)]]

    def looked(self, began: float, ended: float) -> None:
        """What the look has cost, on the clock of `due_in_turn`."""
        self._not_before = ended + (ended - began) * _PAUSE_PER_LOOK


def _last_tenant(in_turn: Sequence[Due], before: str | None) -> str | None:
    """Of the tenants in the order in which they come, the last new one."""
    tenants = dict.fromkeys(run.origin.tenant for run in in_turn if isinstance(run, RunDoc))
    return list(tenants)[-1] if tenants else before


def _id_of(run: Due) -> str:
    return run.run_id if isinstance(run, Corrupt) else run.origin.id
