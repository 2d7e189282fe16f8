"""What was acknowledged and has not come true, and what has happened though nobody asked for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamline_trio._core import payload as payloads
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.tenancy import tenant_of
from streamline_trio.testing._laws import TURNED_BACK
from streamline_trio.testing._laws_of_versions import route_of

if TYPE_CHECKING:
    from streamline_trio.testing._world import World


def judge(world: World) -> list[str]:
    """What was acknowledged and is lost, or was done more often than asked; once every run has settled."""
    book, witness = world.clients.book, world.witness
    wrong = [
        f"{run_id}: its start was acknowledged, and it is not stored"
        for run_id in book.acknowledged_starts
        if run_id not in witness.versions or run_id in witness.refused
    ]
    for run_id, key in book.key_holders:
        if run_id in witness.versions and witness.run(run_id).origin.idempotency_key != key:
            wrong.append(f"{run_id}: was given to a caller with key {key}, which it does not have")
    for (run_id, value), times in book.acknowledged.items():
        came = witness.arrived[run_id, value]
        if came < times:
            wrong.append(f"{run_id}: {times} acknowledged {_plain_of(value)!r}, and {came} came")
    for (run_id, value), came in witness.arrived.items():
        issued = book.issued[run_id, value] + book.issued_to_all[value]
        if came > issued:
            wrong.append(f"{run_id}: {issued} issued {_plain_of(value)!r}, and {came} came")
    wrong += [message for run_id in witness.versions for message in _judge_end(world, witness.run(run_id))]
    wrong += [
        f"{run_id}: was deleted, and nobody asked for it"
        for run_id in sorted(witness.deleted - witness.refused)
        if (tenant_of(run_id), witness.run(run_id).origin.workflow) not in book.deletes
    ]
    return wrong + _judge_cancelled(world)


def _judge_cancelled(world: World) -> list[str]:
    """Runs whose cancellation was acknowledged, and that have ended otherwise."""
    book, witness, wrong = world.clients.book, world.witness, list[str]()
    for run_id, revision in book.doomed.items():
        status = witness.run(run_id).head.status
        on_cancel = witness.plans[route_of(witness.run(run_id))].compensate_on_cancel
        if status not in (set(TURNED_BACK) if on_cancel else {"cancelled"}):
            wrong.append(f"{run_id}: its cancellation was acknowledged at revision {revision}, and it is {status}")
    return wrong


def _judge_end(world: World, run: RunDoc) -> list[str]:
    head, book = run.head, world.clients.book
    asked = run.id in book.cancels or run.origin.parent is not None or world.clients.cancelling.may_have(run)
    if head.status == "cancelled" and not asked:
        return [f"{run.id}: was cancelled, and nobody asked for it"]
    if head.error is not None and head.status != "cancelled" and not world.scenario.may_fail(run):
        return [f"{run.id}: must not fail so: {head.error.code} {head.error.message}"]
    return []


def judge_broadcasts(world: World) -> list[str]:
    """Waits that an acknowledged broadcast has passed by; once faults have stopped and all is swept."""
    witness = world.witness
    wrong: list[str] = []
    for broadcast in world.clients.book.broadcasts:
        name = broadcast.name
        for run_id, revision in broadcast.before.items():
            if tenant_of(run_id) != broadcast.tenant:
                continue
            opened = next((run for run in witness.versions[run_id] if run.head.revision == revision), None)
            if opened is None or run_id in witness.deleted:
                continue
            now = witness.run(run_id).records
            for key, record in opened.records.items():
                still = now.get(key)
                waited = record.is_open and record.signal == name
                if waited and still is not None and still.is_open and still.opened_at == record.opened_at:
                    wrong.append(f"{run_id}: broadcast {name} was acknowledged, and its wait {key} is still open")
    return wrong


def _plain_of(value: bytes) -> Any:
    return payloads.decoder(Any).decode(value, what="payload")
