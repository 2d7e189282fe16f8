"""The workflows an engine has, and the plans of those it only knows from the store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from streamline_trio._core.broadcasts import LISTENERS, listener_key
from streamline_trio._core.checking import is_a
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import DefinitionError, WorkflowNotFound
from streamline_trio._core.payload import NULL
from streamline_trio._core.plan import Plan
from streamline_trio._core.store import PutSide, Route, SideDoc, Store
from streamline_trio._core.versions import version_key

DEFINITIONS = "definition"

_decode_plan = msgspec.msgpack.Decoder(Plan).decode


class Registry:
    """Workflows by (id, version); plans of others by fingerprint, read once and kept."""

    def __init__(self, workflows: Iterable[Workflow[Any, Any]]) -> None:
        self._workflows: dict[tuple[str, str], Workflow[Any, Any]] = {}
        self._plans: dict[tuple[str, str, str], Plan] = {}
        for workflow in workflows:
            self._add(workflow)
        self._triggered = tuple(
            dict.fromkeys(known.id for known in self._workflows.values() if known.rules.triggers)
        )
        self.routes: tuple[Route, ...] = tuple(Route(workflow, version) for workflow, version in self._workflows)

    def _add(self, workflow: Workflow[Any, Any]) -> None:
        if not is_a(workflow, Workflow):
            raise DefinitionError(f"open_engine takes workflows, not {workflow!r}")
        key = workflow.id, workflow.version
        if self._workflows.get(key, workflow) is not workflow:
            raise DefinitionError(
                f"workflow {workflow.id!r} is given twice in version {workflow.version}", workflow=workflow.id
            )
        workflow.seal()
        self._workflows[key] = workflow

    def workflow_for(self, run: RunDoc) -> Workflow[Any, Any] | None:
        """The definition this run is pinned to, if the engine has it."""
        return self._workflows.get((run.origin.workflow, run.head.version))

    def resolve(self, workflow: Workflow[Any, Any] | str) -> Workflow[Any, Any]:
        """The workflow meant by a handle or an id (of several versions the highest one)."""
        if isinstance(workflow, Workflow):
            known = self._workflows.get((workflow.id, workflow.version))
            if known is workflow:
                return workflow
            raise WorkflowNotFound(f"this engine was not given workflow {workflow.id!r} {workflow.version}")
        found = self.meant(workflow, None)
        if found is None:
            raise WorkflowNotFound(f"this engine has no workflow {workflow!r}", workflow=workflow)
        return found

    @property
    def triggered(self) -> tuple[str, ...]:
        """Ids of the workflows of which a version that the engine has is started by signals."""
        return self._triggered

    def meant(self, workflow: str, version: str | None) -> Workflow[Any, Any] | None:
        """This version of the workflow, or the highest one that the engine has; None if it has none."""
        if version is not None:
            return self._workflows.get((workflow, version))
        found = [known for (id_, _), known in self._workflows.items() if id_ == workflow]
        return max(found, key=lambda known: version_key(known.version), default=None)

    @property
    def migrating(self) -> dict[str, Workflow[Any, Any]]:
        """By workflow, the highest version of those that take runs of others over."""
        takers = [workflow for workflow in self._workflows.values() if workflow.migrate is not None]
        return {taker.id: taker for taker in sorted(takers, key=lambda taker: version_key(taker.version))}

    def known(self, workflow: Workflow[Any, Any] | str) -> Workflow[Any, Any]:
        """The workflow of a child: one by its id, or a definition, also one that the engine was not given."""
        if isinstance(workflow, Workflow):
            workflow.seal()
            return workflow
        return self.resolve(workflow)

    async def publish(self, store: Store) -> None:
        """Store each definition once, for processes that do not have its code."""
        plans = [workflow.plan for workflow in self._workflows.values()]
        await self._publish(store, plans, listeners=[listener for plan in plans for listener in _listeners(plan)])

    async def take_foreign(self, workflow: Workflow[Any, Any], store: Store) -> None:
        """Seal a workflow that is not ours and store its definition, once, so that runs of it can be started."""
        plan = workflow.seal()
        key = plan.workflow, plan.version, plan.fingerprint
        if self._workflows.get(key[:2]) is not workflow and key not in self._plans:
            await self._publish(store, [plan])
            self._plans[key] = plan

    async def _publish(self, store: Store, plans: Iterable[Plan], *, listeners: Sequence[PutSide] = ()) -> None:
        writes = [
            *listeners,
            *(
                PutSide(DEFINITIONS, _key(plan.workflow, plan.version, plan.fingerprint), None, _encode(plan))
                for plan in plans
            ),
        ]
        missing = [write for write in writes if await store.side(write.kind, write.key) is None]
        if missing:
            await store.write(missing)

    async def plan_for(self, run: RunDoc, store: Store) -> Plan:
        """The plan the run is pinned to: the engine's own, or the stored one."""
        workflow = self.workflow_for(run)
        if workflow is not None:
            return workflow.plan
        key = run.origin.workflow, run.head.version, run.head.fingerprint
        plan = await self.stored_plan(store, *key)
        if plan is None:
            raise WorkflowNotFound(
                f"no definition of workflow {key[0]!r} {key[1]} is stored", workflow=key[0], version=key[1]
            )
        return plan

    async def stored_plan(self, store: Store, workflow: str, version: str, fingerprint: str) -> Plan | None:
        """The plan of this fingerprint as it is stored, None if it is not; read once."""
        key = workflow, version, fingerprint
        if key not in self._plans:
            side = await store.side(DEFINITIONS, _key(*key))
            if side is None:
                return None
            self._plans[key] = _decode_plan(side.body)
        return self._plans[key]


async def stored_plans(store: Store, workflow: str) -> list[Plan]:
    """Every definition of a workflow that was ever given to an engine on this store."""
    plans: list[Plan] = []
    page: list[SideDoc] = []
    while True:
        # Keys are ids, which hold no slash, with what follows: those of one workflow stand together.
        page = await store.sides(DEFINITIONS, after=page[-1].key if page else f"{workflow}/")
        mine = [side for side in page if side.key.startswith(f"{workflow}/")]
        plans += [_decode_plan(side.body) for side in mine]
        if not page or len(mine) < len(page):
            return plans


def _listeners(plan: Plan) -> list[PutSide]:
    """What a broadcast finds the plan by."""
    keys = (listener_key(signal, plan.workflow, plan.version) for signal in plan.triggered_by)
    return [PutSide(LISTENERS, key, None, NULL) for key in keys]


def _key(workflow: str, version: str, fingerprint: str) -> str:
    return f"{workflow}/{version}/{fingerprint}"


def _encode(plan: Plan) -> bytes:
    return msgspec.msgpack.encode(plan)
