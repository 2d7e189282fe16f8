"""Several versions of workflows in one simulated world: which worker has which, as in a rolling deploy.

All of it follows from one number that the world draws anyway, so that worlds of one version are what they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

import trio

from streamline_trio._core.definition import Workflow
from streamline_trio._core.store import Route
from streamline_trio._core.tenancy import stored_id
from streamline_trio._core.versions import version_key
from streamline_trio._runtime.care import LOOKS_PER_LEASE
from streamline_trio._runtime.clock import Chance
from streamline_trio._runtime.migration import is_migratable
from streamline_trio._runtime.snapshot import Run
from streamline_trio.testing._laws_of_versions import route_of

if TYPE_CHECKING:
    from streamline_trio.testing._world import World

Has = Literal["old", "new", "all"]

_DEPLOYS: tuple[tuple[Has, ...], ...] = (
    ("old", "new"),
    ("old", "new", "new", "new", "new", "new"),
    ("old", "old", "new", "new", "new", "new"),
    ("old", "all", "new", "new", "new", "old"),
    ("new", "old", "new"),
    ("all", "new", "old"),
)
"""What one worker after the other has; it goes round."""
_RETIRING = 0.5
_LEASES_TO_MIGRATE = 2
"""Seeing that a version is missing takes a lease at most, and so does a look at what is due."""

playing: ContextVar[str] = ContextVar("streamline_trio_testing_playing", default="")
"""The worker of which the present task is a part."""


class Deploy:
    """The versions of one world."""

    def __init__(self, workflows: Sequence[Workflow[Any, Any]], noise: int) -> None:
        chance = Chance(noise)
        self.workflows: Sequence[Workflow[Any, Any]] = workflows
        self.is_mixed: bool = len({workflow.id for workflow in workflows}) < len(workflows)
        """Whether there is a workflow of which there are several versions."""
        self.retires: bool = chance.roll() < _RETIRING and self.is_mixed
        """Whether only the newest versions stay for a while when the faults stop."""
        self._turns = _DEPLOYS[int(chance.roll() * len(_DEPLOYS))]
        self.counts: Counter[str] = Counter()
        self._asked: dict[tuple[str, str], int] = {}
        self._refused: set[tuple[str, str, int]] = set()

    def turn(self, number: int) -> Has:
        """What the worker of this number has, counted from 0."""
        return self._turns[number % len(self._turns)]

    def given(self, has: Has) -> Sequence[Workflow[Any, Any]]:
        """All versions, or of each workflow the oldest or the newest one."""
        if has == "all" or not self.is_mixed:
            return self.workflows
        order = sorted(self.workflows, key=lambda workflow: version_key(workflow.version), reverse=has == "old")
        picked = {workflow.id: workflow for workflow in order}
        return [workflow for workflow in self.workflows if picked[workflow.id] is workflow]

    def newest(self) -> frozenset[Route]:
        """The newest version of each workflow."""
        return routes_of_all(self.given("new"))

    def takers(self) -> set[str]:
        """The workflows of which the newest version takes others over."""
        return {workflow.id for workflow in self.given("new") if workflow.migrate is not None}

    # --- refusals ------------------------------------------------------------------------------------------

    def asked(self, run: Run) -> str | None:
        """A worker asks `migrate` about a run; what is wrong with that."""
        self.counts["asked"] += 1
        run_id = stored_id(run.tenant, run.id)
        self._asked[playing.get(), run_id] = run.revision
        if (playing.get(), run_id, run.revision) not in self._refused:
            return None
        return f"{run_id}: {playing.get()} asks again about revision {run.revision}, which it has refused"

    def refuses(self, run: Run) -> None:
        """It does not take the run over."""
        self._refused.add((playing.get(), stored_id(run.tenant, run.id), run.revision))

    def heard(self, node: str, event: Any) -> None:
        """A worker tells of something that went wrong: perhaps a refusal."""
        if "is not taken over by" in event.context:
            self.counts["refused"] += 1
            run_id = stored_id(event.tenant, event.run_id)
            self._refused.add((node, run_id, self._asked[node, run_id]))

    def is_refused(self, run_id: str, revision: int) -> bool:
        """Whether some worker has refused the run as it is."""
        return any(key[1:] == (run_id, revision) for key in self._refused)


def routes_of_all(workflows: Sequence[Workflow[Any, Any]]) -> frozenset[Route]:
    """What a worker with these can run."""
    return frozenset(Route(workflow.id, workflow.version) for workflow in workflows)


async def retire(world: World) -> None:
    """The workers with an older version leave.

    The outside brings what is waited for. Then the newest version takes over what is due, where it has a `migrate`.
    """
    deploy, lease = world.deploy, world.scenario.lease
    for node in world.nodes:
        if node.is_alive and node.store.routes != deploy.newest():
            node.leave()
    await world.serve("new")
    while any(node.state == "closing" for node in world.nodes):  # noqa: ASYNC110 - time is skipped
        await trio.sleep(1)
    for run_id in list(world.witness.versions):
        run = world.witness.run(run_id)
        if _may_migrate(world, run_id) and run.head.lease is None and run.head.due_at is None:
            await world.help(run)
    wanted = {run_id: revision for run_id, revision in world.movable().items() if _may_migrate(world, run_id)}
    deploy.counts["wanted in the end"] += len(wanted)
    await trio.sleep(lease * (_LEASES_TO_MIGRATE + 1 / LOOKS_PER_LEASE) + world.scenario.poll_interval)
    for run_id, revision in wanted.items() if world.has_room else ():
        if world.is_left(run_id, revision) and not deploy.is_refused(run_id, revision):
            world.wrong.append(f"{run_id}: the newest version has not taken it over in time")


def _may_migrate(world: World, run_id: str) -> bool:
    """Whether nobody has its version, and the newest one can take it over."""
    run, live = world.witness.run(run_id), [node.store.routes for node in world.nodes if node.is_alive]
    known = any(route_of(run) in routes for routes in live)
    return not known and is_migratable(run) and run.origin.workflow in world.deploy.takers()
