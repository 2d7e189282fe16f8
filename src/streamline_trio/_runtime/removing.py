"""Removing settled runs that nobody needs any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import trio

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import StoreUnavailable
from streamline_trio._core.store import Applied, Delete, Failed
from streamline_trio._runtime.committer import Outcome
from streamline_trio._runtime.orphans import deletable

if TYPE_CHECKING:
    from streamline_trio._runtime.services import Services


async def remove_settled(services: Services, runs: Sequence[RunDoc]) -> int:
    """Remove those that nobody needs; how many. A run that was changed since it was read stays.

    Each is one guarded write, all that can go are posted together, so that they share batches. With their parents
    gone, nobody needs children any more, so those among the runs go next.
    """
    removed, left = 0, list(runs)
    while found := await deletable(services, left):
        removed += await _remove(services, found)
        tried = {run.id for run in found}
        left = [run for run in left if run.id not in tried]
    return removed


async def _remove(services: Services, runs: Sequence[RunDoc]) -> int:
    """Returns when all have their verdicts, and raises what kept any from having one."""
    outcomes: list[Outcome] = []
    told = trio.Event()
    for run in runs:
        services.committer.post(Delete(run.id, run.head.revision), _noting(outcomes, len(runs), told))
    await told.wait()
    for outcome in outcomes:
        if isinstance(outcome, StoreUnavailable):
            raise StoreUnavailable(str(outcome)) from outcome
        if isinstance(outcome, Failed):
            raise outcome.error
    return sum(isinstance(outcome, Applied) for outcome in outcomes)


def _noting(outcomes: list[Outcome], expected: int, told: trio.Event) -> Callable[[Outcome], None]:
    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if len(outcomes) == expected:
            told.set()

    return tell
