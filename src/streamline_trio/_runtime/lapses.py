"""Runs of dead workers that no live worker has the code for: their leases are given up.

They are then due like any other run, so that they are counted as unclaimable, and the first worker that comes with
the code (or with a `migrate` that takes them over) claims them.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from streamline_trio._core.decide import Decision, decide
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import StoreUnavailable, StreamlineError
from streamline_trio._core.happenings import LeaseLapsed
from streamline_trio._core.store import Applied, Corrupt, Route, Update
from streamline_trio._runtime.committer import Outcome
from streamline_trio._runtime.registry import Registry
from streamline_trio._runtime.services import Services
from streamline_trio._runtime.workers import live_routes

_MOST_TOLD = 10_000


class Lapses:
    """Gives leases up, and warns once of each version that is missing."""

    def __init__(self, services: Services, registry: Registry) -> None:
        self._services = services
        self._registry = registry
        self._told: set[Route] = set()

    def warn(self, route: Route) -> None:
        """Runs of this version are due and no live worker has it."""
        if route not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(route)
            self._services.logger.warning(
                "runs of workflow %s %s are due, and no live worker has that version", route.workflow, route.version
            )

    async def let_go(self, dead: str, page: Sequence[RunDoc | Corrupt], finder: str) -> int:
        """Give up the leases that nobody alive can take over; how many. Reads only if there are foreign runs."""
        foreign = [run for run in page if isinstance(run, RunDoc) and self._registry.workflow_for(run) is None]
        if not foreign:
            return 0
        recoveries = self._services.options.max_recoveries
        routes = await live_routes(self._services.store)
        posted: list[_Posted] = []
        for run in foreign:
            route = Route(run.origin.workflow, run.head.version)
            if route not in routes:
                self.warn(route)
                posted += await self._post(run, LeaseLapsed(worker=finder, lost=dead, max_recoveries=recoveries))
        return sum([await lapse.is_applied() for lapse in posted])

    async def _post(self, run: RunDoc, happening: LeaseLapsed) -> list[_Posted]:
        """Hand one to the committer; nothing if it cannot be decided, since its definition was never stored."""
        services = self._services
        try:
            plan = await self._registry.plan_for(run, services.store)
            decision = decide(run, happening, plan, services.clock.now(), services.chance.commit_id())
        except StoreUnavailable:
            raise
        except StreamlineError as error:
            services.logger.warning("the lease of run %s is not given up: %s", run.origin.id, error)
            return []
        lapse = _Posted(services, run, decision)
        services.committer.post(Update(run, decision.run, decision.touched), lapse.told)
        return [lapse]


class _Posted:
    """A lapse on its way to the store."""

    __slots__ = ("_before", "_decision", "_outcome", "_services", "_told")

    def __init__(self, services: Services, before: RunDoc, decision: Decision) -> None:
        self._services = services
        self._before = before
        self._decision = decision
        self._outcome: Outcome | None = None
        self._told = trio.Event()

    def told(self, outcome: Outcome) -> None:
        """The committer tells what became of it."""
        self._outcome = outcome
        if isinstance(outcome, Applied):
            self._services.counts.claimed(self._before, self._decision.run)
            self._services.committed(self._decision.run, (self._decision,))
        self._told.set()

    async def is_applied(self) -> bool:
        """Whether it was, once that is known."""
        await self._told.wait()
        return isinstance(self._outcome, Applied)
