"""Tells when a definition is not what it was, though its version is the same."""

from __future__ import annotations

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import StoreUnavailable
from streamline_trio._core.events import DefinitionChanged
from streamline_trio._core.plan import Plan
from streamline_trio._core.plan_diff import plan_diff
from streamline_trio._runtime.registry import Registry
from streamline_trio._runtime.services import Services

_MOST_TOLD = 10_000


class Drift:
    """Compares the fingerprint that a run was last driven under with ours; warns once for each earlier one."""

    def __init__(self, services: Services, registry: Registry) -> None:
        self._services = services
        self._registry = registry
        self._told: set[tuple[str, str, str]] = set()

    def notice(self, run: RunDoc, plan: Plan) -> None:
        """A run is about to be driven by this plan; costs a comparison while nothing has changed."""
        fingerprint = run.head.fingerprint
        if fingerprint == plan.fingerprint:
            return
        key = plan.workflow, plan.version, fingerprint
        if key not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(key)
            self._services.spawn(lambda: self._tell(run, plan))

    async def _tell(self, run: RunDoc, plan: Plan) -> None:
        services, fingerprint = self._services, run.head.fingerprint
        differences = await self._differences(plan, fingerprint)
        services.logger.warning(
            "workflow %s %s has changed since run %s was last driven, and its version has not: %s",
            plan.workflow,
            plan.version,
            run.origin.id,
            "; ".join(differences),
        )
        event = DefinitionChanged(
            run_id=run.public_id,
            workflow=plan.workflow,
            tenant=run.origin.tenant,
            at_millis=services.clock.now(),
            version=plan.version,
            old_fingerprint=fingerprint,
            fingerprint=plan.fingerprint,
            differences=differences,
        )
        services.publisher.publish((event,))

    async def _differences(self, plan: Plan, fingerprint: str) -> tuple[str, ...]:
        store, key = self._services.store, (plan.workflow, plan.version, fingerprint)
        try:
            old = await self._services.read(lambda: self._registry.stored_plan(store, *key))
        except StoreUnavailable:
            return ("what it was cannot be read",)
        if old is None:
            return ("what it was is not stored",)
        return plan_diff(old, plan) or ("in nothing that is stored of it",)
