"""The public view of a stored run, with the definitions that are at hand."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import ValidationError, WorkflowNotFound
from streamline_trio._core.plan import Plan
from streamline_trio._runtime.snapshot import Run, snapshot

if TYPE_CHECKING:
    from streamline_trio._runtime.services import Services


async def view(services: Services, run: RunDoc) -> Run:
    """The public snapshot of a stored run; in plain data where its types are unknown or have changed."""
    plan: Plan | None = None
    registry = services.registry
    with suppress(WorkflowNotFound):
        plan = await services.read(lambda: registry.plan_for(run, services.store))
    try:
        return snapshot(run, plan, registry.workflow_for(run))
    except ValidationError as error:
        warn_of_types(services, run, error)
        return snapshot(run, plan, None)


def warn_of_types(services: Services, run: RunDoc, error: ValidationError) -> None:
    """Say that a run is shown in plain data."""
    services.logger.warning("run %s does not fit its workflow's types: %s", run.origin.id, error)
