"""Emitting signals, durably: addressed to one run, or broadcast to all that wait.

An addressed signal is one commit on its run. A broadcast is a side document first (acknowledged once that is
stored), then one commit per waiting run; whoever finds it unfinished goes on with it, and no run takes it twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import trio

from streamline_trio._core import payload
from streamline_trio._core.checking import is_mapping, is_text
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import (
    InvalidState,
    RunNotFound,
    StoreUnavailable,
    StreamlineError,
    ValidationError,
)
from streamline_trio._core.happenings import SignalArrived
from streamline_trio._core.signals import Signal, signal_name
from streamline_trio._core.store import Applied, Failed, PutSide, Refused, SideDoc
from streamline_trio._runtime.committer import Outcome
from streamline_trio._runtime.machinery import Machinery
from streamline_trio._runtime.tenancy import Place, scope_of

BROADCASTS = "broadcast"
KEPT = 24 * 60 * 60 * 1000
_AT_ONCE = 100
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


class BroadcastDoc(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A broadcast: what was emitted, and whether it has reached everybody who waited."""

    signal: str
    payload: bytes
    id: str
    at: int
    tenant: str | None = None
    match: dict[str, Any] = {}
    done: bool = False


_decode = msgspec.msgpack.Decoder(BroadcastDoc).decode
_encode = msgspec.msgpack.encode


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
    """Store the signal where it is to go, and see that those who wait get it: of this tenant, or without any."""
    name = signal_name(signal)
    type_ = Any if isinstance(signal, str) else signal.type
    stored = payload.convert_input(value, type_, what=f"the payload of signal {name!r}")
    if id is not None and not is_text(id, _MAX_ID):
        raise ValidationError(f"a signal's id has 1 to {_MAX_ID} characters, not {id!r}")
    given = id is not None
    id = machinery.services.chance.signal_id() if id is None else id
    if run is not None:
        if match is not None:
            raise ValidationError("match selects among the runs that wait: it does not go with run=")
        arrived = SignalArrived(signal=name, payload=stored, id=id, remembered=given)
        await run.do(lambda key: machinery.act(key, arrived))
        return
    await _broadcast(
        machinery,
        BroadcastDoc(
            signal=name,
            payload=stored,
            id=id,
            at=machinery.services.clock.now(),
            tenant=tenant,
            match=_checked(match),
        ),
    )


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
    """Returns once it is stored and has reached everybody who waited, as far as they could be reached.

    The delivery is the engine's, not the emitter's, who may be cancelled. On a store that nobody else can write
    it is due at once: whoever opens it after a crash goes on with it.
    """
    services = machinery.services
    stored_doc, name = _encode(doc), doc.signal
    key = f"{doc.tenant or ''}\n{name}\n{doc.id}"
    left_to_others_at = doc.at if services.store.exclusive else doc.at + int(services.options.lease * 1000)
    outcomes: list[Outcome] = []
    finished = trio.Event()

    async def deliver(*, new: bool) -> None:
        try:
            if new:
                await _deliver(machinery, SideDoc(BROADCASTS, key, 1, stored_doc, left_to_others_at))
            if services.store.exclusive:
                await sweep_broadcasts(machinery)
        except StoreUnavailable as error:
            services.logger.warning("signal %s is stored and goes out later: %s", name, error)
        finally:
            finished.set()

    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if isinstance(outcome, Applied | Refused):
            services.spawn(lambda: deliver(new=isinstance(outcome, Applied)))
        else:
            finished.set()

    services.committer.post(PutSide(BROADCASTS, key, None, stored_doc, left_to_others_at), tell)
    await finished.wait()
    if isinstance(outcomes[0], StoreUnavailable):
        raise StoreUnavailable(f"signal {name!r} may or may not have been emitted") from outcomes[0]
    if isinstance(outcomes[0], Failed):
        raise outcomes[0].error


async def _deliver(machinery: Machinery, side: SideDoc) -> None:
    """To everybody who waits now; then it is only kept to know its id again.

    With runs that could not be reached it stays unfinished, and is gone on with when it falls due.
    """
    doc, services = _decode(side.body), machinery.services
    after = ""
    unreached: list[str] = []
    while True:
        page = await services.read(
            lambda after=after: services.store.awaiting(doc.signal, doc.tenant, after, _AT_ONCE)  # type: ignore[misc]  # a lambda with a default
        )
        if not page:
            break
        async with trio.open_nursery() as nursery:
            for run_id in page:
                nursery.start_soon(_deliver_to, machinery, run_id, doc, unreached)
        after = page[-1]
    if unreached:
        return
    done = _encode(msgspec.structs.replace(doc, done=True))
    await services.committer.submit(PutSide(BROADCASTS, side.key, side.revision, done, doc.at + KEPT))


async def _deliver_to(machinery: Machinery, run_id: str, doc: BroadcastDoc, unreached: list[str]) -> None:
    try:
        if doc.match and not _matches(await machinery.load(run_id), doc.match):
            return
        await machinery.act(
            run_id, SignalArrived(signal=doc.signal, payload=doc.payload, id=doc.id, addressed=False)
        )
    except (RunNotFound, InvalidState):
        return
    except StoreUnavailable:
        unreached.append(run_id)
    except StreamlineError as error:
        machinery.services.report(f"signal {doc.signal!r} does not fit run {run_id}", error)


def _matches(run: RunDoc, match: dict[str, Any]) -> bool:
    """All fields equal; of `tags` and `meta` what is asked for must be there."""
    return all(_has(run, field, value) for field, value in match.items())


def _has(run: RunDoc, field: str, value: Any) -> bool:
    if field == "tags":
        return set(value) <= set(run.origin.tags)
    if field == "meta":
        stored = run.origin.meta
        meta: dict[str, Any] = {} if stored is None else msgspec.msgpack.decode(stored)
        return all(key in meta and meta[key] == wanted for key, wanted in value.items())
    return bool(_field(run, field) == value)


def _field(run: RunDoc, field: str) -> object:
    if field == "id":
        return run.public_id
    return getattr(run.origin if hasattr(run.origin, field) else run.head, field)


async def sweep_broadcasts(machinery: Machinery) -> None:
    """Go on with broadcasts whose emitter is gone; drop those that nobody can repeat any more."""
    services = machinery.services
    now, after = services.clock.now(), ""
    while True:
        page = await services.store.sides(BROADCASTS, after=after, due_before=now, limit=_AT_ONCE)
        if not page:
            return
        for side in page:
            if _decode(side.body).done:
                services.committer.post(PutSide(BROADCASTS, side.key, side.revision, None), _forget)
            else:
                await _deliver(machinery, side)
        after = page[-1].key


def _forget(_outcome: Outcome) -> None:
    """What could not be dropped is dropped by the next sweep."""
