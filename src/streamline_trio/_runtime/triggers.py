"""Starting runs of the workflows that a broadcast triggers: one for each trigger, in the whole cluster.

Which workflows those are is read when the signal is emitted, and stored with the broadcast. Their code is needed to
start them: the highest version that a live worker has decides. A worker that has it does so at once; else the
broadcast's key is put where such workers look, however long that takes. The run's id follows from the broadcast,
so that who does it again finds the run there.
"""

from __future__ import annotations

from typing import Any

import trio

from streamline_trio._core import payload
from streamline_trio._core.broadcasts import (
    BROADCASTS,
    LISTENERS,
    BroadcastDoc,
    decode_broadcast,
    fired,
    is_pending,
    triggered_run,
    triggers_of,
)
from streamline_trio._core.checking import storable_repr
from streamline_trio._core.definition import Workflow
from streamline_trio._core.due import NOW
from streamline_trio._core.errors import StoreUnavailable, StreamlineError, TenantRequired
from streamline_trio._core.events import EngineError
from streamline_trio._core.signals import Signal, signal_name
from streamline_trio._core.start_options import Trigger
from streamline_trio._core.store import Applied, Failed, PutSide, SideDoc
from streamline_trio._core.tenancy import check_tenant
from streamline_trio._core.versions import version_key
from streamline_trio._runtime.deliveries import amend, baton
from streamline_trio._runtime.machinery import Machinery
from streamline_trio._runtime.services import Services
from streamline_trio._runtime.starting import StartOptions, start
from streamline_trio._runtime.workers import live_routes

_AT_ONCE = 100
_LONGEST_ERROR = 10_000


async def triggered_by(services: Services, signal: str) -> tuple[str, ...]:
    """Ids of the workflows of which any version that was ever given to an engine is triggered by the signal."""
    begins = f"{signal}\n"
    found: dict[str, None] = {}
    after = begins
    while True:
        page = await services.read(lambda after=after: services.store.sides(LISTENERS, after=after, limit=_AT_ONCE))  # type: ignore[misc]  # a lambda with a default
        mine = [side.key for side in page if side.key.startswith(begins)]
        found |= dict.fromkeys(key.split("\n")[1] for key in mine)
        if len(mine) < _AT_ONCE:
            return tuple(found)
        after = mine[-1]


async def fire(machinery: Machinery, doc: BroadcastDoc, workflow: str, *, again: bool) -> bool:
    """Start what the broadcast triggers of a workflow, perhaps `again`; False if that is for another worker to do.

    What cannot be started is told as `engine.error`, and not tried again. Raises `StoreUnavailable`.
    """
    mine = await _mine(machinery, workflow)
    if mine is None:
        return False
    await _start_all(machinery, doc, mine, again=again)
    return True


async def _start_all(machinery: Machinery, doc: BroadcastDoc, mine: Workflow[Any, Any], *, again: bool) -> None:
    for index, trigger in enumerate(mine.rules.triggers):
        if signal_name(trigger.signal) == doc.signal:
            await _start(machinery, doc, mine, trigger, triggered_run(doc.key, mine.id, index), again=again)


async def _mine(machinery: Machinery, workflow: str) -> Workflow[Any, Any] | None:
    """The version that this worker has of the workflow, if no live worker has a higher one."""
    mine, services = machinery.registry.meant(workflow, None), machinery.services
    if mine is None or not machinery.is_worker:
        return None
    live = await services.read(lambda: live_routes(services.store))
    own = version_key(mine.version)
    is_outdone = any(route.workflow == mine.id and version_key(route.version) > own for route in live)
    return None if is_outdone else mine


async def _start(
    machinery: Machinery,
    doc: BroadcastDoc,
    workflow: Workflow[Any, Any],
    trigger: Trigger,
    run_id: str,
    *,
    again: bool,
) -> None:
    try:
        value, tenant = _told(trigger, doc)
        if tenant is None and machinery.services.options.tenancy == "required":
            raise TenantRequired(f"signal {doc.signal!r} triggers workflow {workflow.id!r}, and names no tenant")
        options = StartOptions(
            run_id=run_id, tenant=tenant, emission=doc.key, again_since=doc.at if again else None
        )
        await start(machinery, workflow, value, options)
    except StoreUnavailable:
        raise
    except _Broken as broken:
        _report(machinery.services, doc, workflow.id, broken.error)
    except StreamlineError as error:
        _report(machinery.services, doc, workflow.id, error)


class _Broken(Exception):
    """A function of the trigger has failed, with whatever."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error: Exception = error


def _told(trigger: Trigger, doc: BroadcastDoc) -> tuple[Any, str | None]:
    """The run's input and tenant, by the trigger's own functions."""
    signal = trigger.signal
    decoder = signal.decoder if isinstance(signal, Signal) else payload.decoder(Any)
    what = f"the payload of signal {doc.signal!r}"
    given = decoder.decode(doc.payload, what=what)
    try:
        if trigger.input is None:
            value = payload.decoder(Any).decode(doc.payload, what=what)
        else:
            value = trigger.input(given)
        tenant: Any = trigger.tenant(given) if callable(trigger.tenant) else trigger.tenant
    except Exception as error:
        raise _Broken(error) from error
    if tenant is None:
        return value, doc.tenant
    return value, check_tenant(tenant)


def _report(services: Services, doc: BroadcastDoc, workflow: str, error: Exception) -> None:
    """Nobody waits to be told why the run was not started."""
    context, text = f"trigger:{doc.signal}", storable_repr(error, _LONGEST_ERROR)
    services.logger.error("%s of workflow %s: %s", context, workflow, text, exc_info=error)
    now = services.clock.now()
    event = EngineError(run_id="", workflow=workflow, tenant=doc.tenant, at_millis=now, context=context, error=text)
    services.publisher.publish((event,))


def report_unfired(services: Services, doc: BroadcastDoc) -> None:
    """No worker with the code has come in all the time that a broadcast waits for one."""
    for workflow in doc.triggered:
        _report(services, doc, workflow, StreamlineError("no worker that has the workflow has come within a week"))


# --- broadcasts that wait for a worker with the code -----------------------------------------------------------


async def put_off(services: Services, doc: BroadcastDoc, workflow: str) -> None:
    """Tell workers that have the workflow of the broadcast. It may be told already."""
    verdict = await services.committer.submit(PutSide(triggers_of(workflow), doc.key, None, payload.NULL, NOW))
    if isinstance(verdict, Failed):
        raise verdict.error


def look_for_triggers_soon(machinery: Machinery) -> None:
    """Look for broadcasts that wait for a workflow of this worker: one look at a time, and one more if asked."""
    deliveries = machinery.deliveries
    deliveries.again = deliveries.looking
    if machinery.is_worker and machinery.registry.triggered and not deliveries.looking:
        deliveries.looking = True
        machinery.services.spawn(lambda: _look(machinery))


async def _look(machinery: Machinery) -> None:
    services, deliveries = machinery.services, machinery.deliveries
    try:
        while True:
            deliveries.again = False
            try:
                await _look_once(machinery)
            except StoreUnavailable as error:
                services.logger.warning("triggers pause: %s", error)
                # Where something looks from time to time, that will do.
                deliveries.again = services.store.exclusive
                await trio.sleep(services.options.poll_interval * (0.5 + services.chance.roll()))
            if not deliveries.again:
                return
    finally:
        deliveries.looking = False


async def _look_once(machinery: Machinery) -> None:
    services = machinery.services
    now = services.clock.now()
    for workflow in machinery.registry.triggered:
        kind, after = triggers_of(workflow), ""
        while page := await services.store.sides(kind, after=after, due_before=now, limit=_AT_ONCE):
            mine = await _mine(machinery, workflow)
            if mine is None:
                break
            for side in page:
                if not machinery.deliveries.is_leaving:
                    await _take_up(machinery, mine, side)
            after = page[-1].key


async def _take_up(machinery: Machinery, mine: Workflow[Any, Any], told: SideDoc) -> None:
    """Start what this broadcast triggers of the workflow, unless somebody else is at it."""
    services = machinery.services
    stored = await services.read(lambda: services.store.side(BROADCASTS, told.key))
    doc = None if stored is None else decode_broadcast(stored.body)
    revision = told.revision
    if doc is not None and is_pending(doc, mine.id):
        if not services.store.exclusive:
            put_off = PutSide(told.kind, told.key, revision, told.body, baton(services, doc))
            if not isinstance(await services.committer.submit(put_off), Applied):
                return
            revision += 1
        await _start_all(machinery, doc, mine, again=True)
        await amend(services, told.key, lambda doc: fired(doc, mine.id))
    await services.committer.submit(PutSide(told.kind, told.key, revision, None))
