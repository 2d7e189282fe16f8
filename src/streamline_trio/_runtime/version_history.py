"""The versions of a workflow that the store knows, for operators."""

from __future__ import annotations

from collections import defaultdict

import msgspec

from streamline_trio._core.plan import Plan
from streamline_trio._core.status import ACTIVE
from streamline_trio._core.store import Route, RunQuery
from streamline_trio._core.versions import version_key
from streamline_trio._runtime.registry import stored_plans
from streamline_trio._runtime.services import Services
from streamline_trio._runtime.workers import live_workers


class VersionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a workflow: its steps in order, and how it stands.

    `workers` are the ids of the live workers that have it, `active` is how many runs on it have not settled.
    `fingerprints` are those of its definitions: several, if it was changed without a new version, and then `steps`
    are those of one of them.
    """

    workflow: str
    version: str
    steps: tuple[str, ...]
    fingerprints: tuple[str, ...]
    workers: tuple[str, ...]
    active: int

    @property
    def is_live(self) -> bool:
        """Whether a live worker has it."""
        return bool(self.workers)


async def list_versions(services: Services, workflow: str, tenant: str | None = None) -> list[VersionInfo]:
    """The stored versions, the highest first; `active` runs of the tenant, if one is given."""
    store = services.store
    plans: defaultdict[str, list[Plan]] = defaultdict(list)
    for plan in await services.read(lambda: stored_plans(store, workflow)):
        plans[plan.version].append(plan)
    live = await services.read(lambda: live_workers(store))
    found: list[VersionInfo] = []
    for version in sorted(plans, key=version_key, reverse=True):
        query = RunQuery(workflow=workflow, version=version, status=tuple(sorted(ACTIVE)), tenant=tenant)
        active = await services.read(lambda query=query: store.count(query))  # type: ignore[misc]  # a lambda with a default
        route = Route(workflow, version)
        found.append(
            VersionInfo(
                workflow=workflow,
                version=version,
                steps=tuple(step.id for step in plans[version][-1].steps),
                fingerprints=tuple(plan.fingerprint for plan in plans[version]),
                workers=tuple(sorted(worker for worker, doc in live.items() if route in doc.routes)),
                active=active,
            )
        )
    return found
