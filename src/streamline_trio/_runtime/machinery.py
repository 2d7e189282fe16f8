"""All parts of one open engine, wired together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from streamline_trio._core.decide import decide
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import (
    InvalidState,
    LeaseLost,
    StoreUnavailable,
    ValidationError,
    WorkflowNotFound,
)
from streamline_trio._core.happenings import CancelAsked, Happening, Rewound, TakenUp
from streamline_trio._core.plan import Plan
from streamline_trio._core.store import Applied, Failed, KeyTaken, Update
from streamline_trio._core.tenancy import public_id
from streamline_trio._runtime.claimer import Claimer
from streamline_trio._runtime.committer import Outcome
from streamline_trio._runtime.crew import Crew
from streamline_trio._runtime.debounces import Debounces
from streamline_trio._runtime.deliveries import Deliveries
from streamline_trio._runtime.migrator import Migrator
from streamline_trio._runtime.observer import Observer
from streamline_trio._runtime.pacing import throttle_of
from streamline_trio._runtime.registry import Registry
from streamline_trio._runtime.services import Services
from streamline_trio._runtime.slot_wishes import slot_for
from streamline_trio._runtime.snapshot import Run, output_of
from streamline_trio._runtime.tenancy import no_run
from streamline_trio._runtime.viewing import view, warn_of_types
from streamline_trio._runtime.watcher import Watcher
from streamline_trio._runtime.worker import Worker
from streamline_trio._runtime.writer import HolderGone

if TYPE_CHECKING:
    from streamline_trio._runtime.schedule_firing import ScheduleFiring
    from streamline_trio._runtime.slots import Slots


@dataclass(kw_only=True)
class Machinery:
    """What the public verbs are made of."""

    services: Services
    registry: Registry
    crew: Crew
    worker: Worker
    observer: Observer
    claimer: Claimer
    debounces: Debounces
    migrator: Migrator | None
    watcher: Watcher
    is_worker: bool
    crash: Callable[[], Awaitable[None]]
    take_up: Callable[[str, TakenUp, RunDoc | None], Awaitable[RunDoc]]
    slots: Slots = field(init=False)
    deliveries: Deliveries = field(default_factory=Deliveries)
    firing: ScheduleFiring = field(init=False)

    async def load(self, run_id: str) -> RunDoc:
        """The run as it is stored now; `RunNotFound`."""
        store = self.services.store
        run = await self.services.read(lambda: store.load(run_id))
        if run is None:
            raise no_run(run_id)
        return run

    async def view(self, run: RunDoc) -> Run:
        """The public snapshot of a stored run; in plain data where its types are unknown or have changed."""
        return await view(self.services, run)

    async def plan_of(self, run: RunDoc) -> Plan | None:
        """The plan that a stored run is pinned to, if there is one."""
        with suppress(WorkflowNotFound):
            return await self.services.read(lambda: self.registry.plan_for(run, self.services.store))
        return None

    def output(self, run: RunDoc) -> Any:
        """What a run that is done has come to; as plain data where its type is unknown or has changed."""
        try:
            return output_of(run, self.registry.workflow_for(run))
        except ValidationError as error:
            warn_of_types(self.services, run, error)
            return output_of(run, None)

    async def act(self, run_id: str, happening: Happening, known: RunDoc | None = None) -> RunDoc:
        """Let something happen to a run, whoever holds it; the run afterwards.

        Decided on what is stored, committed by compare-and-set, decided again if somebody was faster. A run
        that is driven here goes through its driver's writer, which reads nothing; so does the first try on a run
        that is `known`, if that is how it is stored. What lets a settled run go on passes the limit again.
        """
        if isinstance(happening, TakenUp):
            return await self.take_up(run_id, happening, known)
        return await self.act_once(run_id, happening, known)

    async def act_once(self, run_id: str, happening: Happening, known: RunDoc | None = None) -> RunDoc:
        """The same for what needs no slot, or has it."""
        while True:
            driver = self.crew.drivers.get(run_id)
            if driver is not None and driver.writer.is_held:
                try:
                    return await driver.writer.commit(happening)
                except HolderGone:
                    continue
                except LeaseLost:
                    if driver.writer.is_held:
                        raise  # the happening names another lease
                    continue
            run = await self._act_on_stored(known or await self.load(run_id), happening)
            if run is not None:
                return run
            known = None

    async def _act_on_stored(self, run: RunDoc, happening: Happening) -> RunDoc | None:
        """One try; None if the run changed in between."""
        services = self.services
        plan = await services.read(lambda: self.registry.plan_for(run, services.store))
        happening = await self._knowing_the_holder(run, self._knowing_the_bucket(run, happening))
        decision = decide(run, happening, plan, services.clock.now(), services.chance.commit_id())
        if decision.run is run:
            return run
        outcomes: list[Outcome] = []
        told = trio.Event()

        def tell(outcome: Outcome) -> None:
            outcomes.append(outcome)
            if isinstance(outcome, Applied):
                services.committed(decision.run, (decision,))
            told.set()

        services.committer.post(Update(run, decision.run, decision.touched), tell)
        await told.wait()
        return _result(outcomes[0], decision.run)

    def _knowing_the_bucket(self, run: RunDoc, happening: Happening) -> Happening:
        """A run that began before its workflow had a limit has no bucket on record."""
        if not isinstance(happening, TakenUp) or (workflow := self.registry.workflow_for(run)) is None:
            return happening
        if run.head.throttle is None:
            happening = msgspec.structs.replace(happening, throttle=throttle_of(workflow, run.origin))
        slot = slot_for(self.services, workflow, run.origin) if run.head.slot is None else None
        return happening if slot is None else msgspec.structs.replace(happening, bucket=slot.bucket)

    async def _knowing_the_holder(self, run: RunDoc, happening: Happening) -> Happening:
        """Some verbs act at once if the worker that holds the run is dead."""
        lease = run.head.lease
        if lease is None or not isinstance(happening, CancelAsked | Rewound):
            return happening
        dead = await self.services.read(lambda: self.observer.is_dead(lease.worker))
        return msgspec.structs.replace(happening, lease_dead=dead)


def _result(outcome: Outcome, run: RunDoc) -> RunDoc | None:
    if isinstance(outcome, Applied):
        return run
    if isinstance(outcome, StoreUnavailable):
        raise StoreUnavailable(str(outcome)) from outcome
    if isinstance(outcome, Failed):
        raise outcome.error
    if isinstance(outcome, KeyTaken):
        raise InvalidState(
            f"the idempotency key of run {run.public_id} has been taken since by run {public_id(outcome.holder)}",
            action="take up",
            status=run.head.status,
            allowed=(),
            holder=public_id(outcome.holder),
        )
    return None
