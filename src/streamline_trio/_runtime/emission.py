"""Emitting signals, durably: addressed to one run, or broadcast to all whom it concerns.

An addressed signal is one commit on its run. A broadcast is a side document first (acknowledged once that is
stored), then it is delivered: see `delivery`. One that concerns nobody, under an id that nobody else knows, is
nothing at all, and nothing is stored of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import trio

from streamline_trio._core import payload
from streamline_trio._core.broadcasts import BROADCASTS, BroadcastDoc, due_of, encode_broadcast
from streamline_trio._core.broadcasts import delivered as as_delivered
from streamline_trio._core.checking import is_mapping, is_text
from streamline_trio._core.errors import StoreUnavailable, ValidationError
from streamline_trio._core.happenings import SignalArrived
from streamline_trio._core.signals import Signal, signal_name
from streamline_trio._core.store import Applied, Failed, PutSide, Refused, SideDoc
from streamline_trio._runtime.committer import Outcome
from streamline_trio._runtime.deliveries import baton
from streamline_trio._runtime.delivery import PAGE, Delivery, sweep_soon
from streamline_trio._runtime.machinery import Machinery
from streamline_trio._runtime.tenancy import Place, scope_of
from streamline_trio._runtime.triggers import triggered_by

_MAX_ID = 200
_MATCHED = {
    "tags",
    "meta",
    "id",
    "workflow",
    "version",
    "user",
    "priority",
    "idempotency_key",
    "status",
    "current_step",
}


async def emit(
    machinery: Machinery,
    signal: Signal[Any] | str,
    value: Any,
    *,
    run: Place | None,
    id: str | None,
    match: Mapping[str, Any] | None,
    tenant: str | None,
) -> None:
    """Store the signal where it is to go, and see that those whom it concerns get it, in the tenant's scope."""
    name = signal_name(signal)
    type_ = Any if isinstance(signal, str) else signal.type
    stored = payload.convert_input(value, type_, what=f"the payload of signal {name!r}")
    if id is not None and not is_text(id, _MAX_ID):
        raise ValidationError(f"a signal's id has 1 to {_MAX_ID} characters, not {id!r}")
    minted = id is None
    id = machinery.services.chance.signal_id() if id is None else id
    if run is not None:
        if match is not None:
            raise ValidationError("match selects among the runs that wait: it does not go with run=")
        arrived = SignalArrived(signal=name, payload=stored, id=id, remembered=not minted)
        await run.do(lambda key: machinery.act(key, arrived))
        return
    now = machinery.services.clock.now()
    doc = BroadcastDoc(
        signal=name, payload=stored, id=id, at=now, tenant=tenant, match=_checked(match), minted=minted
    )
    await _broadcast(machinery, doc)


async def emit_from_run(
    machinery: Machinery, signal: Signal[Any] | str, value: Any, *, run: str | None, id: str, tenant: str | None
) -> None:
    """Emit what a run emits: it reaches runs of the same tenant only."""
    place = None if run is None else Place(machinery.services, run, scope_of(tenant))
    await emit(machinery, signal, value, run=place, id=id, match=None, tenant=tenant)


def _checked(match: Mapping[str, Any] | None) -> dict[str, Any]:
    """What to select runs by, as plain data."""
    if match is None:
        return {}
    if not is_mapping(match) or not set(match) <= _MATCHED:
        raise ValidationError(f"match is a mapping of {sorted(_MATCHED)}, not {repr(match)[:100]}")
    plain: dict[str, Any] = payload.rebuild(dict(match), dict[str, Any], what="match")
    if not isinstance(plain.get("tags", []), list) or not isinstance(plain.get("meta", {}), dict):
        raise ValidationError("match: tags is a list and meta a mapping")
    return plain


async def _broadcast(machinery: Machinery, doc: BroadcastDoc) -> None:
    """Returns once it is stored and has reached all, or the first many, as far as they could be reached.

    The delivery is the engine's, not the emitter's, who may be cancelled. Whom it concerns is read before it is
    stored: those who listen by then get it, and a workflow that is published later is not started for it.
    """
    services = machinery.services
    services.committer.require_open()
    triggered = await triggered_by(services, doc.signal)
    first = await services.read(lambda: services.store.awaiting(doc.signal, doc.tenant, "", PAGE))
    if not first and not triggered:
        if doc.minted:
            return
        doc = as_delivered(doc)
    doc = msgspec.structs.replace(doc, triggered=triggered)
    due_at = due_of(doc, doc.at) if doc.done else baton(services, doc)
    outcomes: list[Outcome] = []
    told = trio.Event()
    delivery: Delivery | None = None

    def tell(outcome: Outcome) -> None:
        nonlocal delivery
        outcomes.append(outcome)
        if isinstance(outcome, Applied) and not doc.done:
            side = SideDoc(BROADCASTS, doc.key, 1, encode_broadcast(doc), due_at)
            delivery = Delivery(machinery, side, first)
            services.spawn(delivery.run)
        if isinstance(outcome, Applied | Refused):
            sweep_soon(machinery, at_once=isinstance(outcome, Refused))
        told.set()

    services.committer.post(PutSide(BROADCASTS, doc.key, None, encode_broadcast(doc), due_at), tell)
    await told.wait()
    if isinstance(outcomes[0], StoreUnavailable):
        raise StoreUnavailable(f"signal {doc.signal!r} may or may not have been emitted") from outcomes[0]
    if isinstance(outcomes[0], Failed):
        raise outcomes[0].error
    if delivery is not None:
        await delivery.enough.wait()
