"""What clients were promised about starts and signals that other starts and signals may overtake."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec

from streamline_trio._core.broadcasts import BroadcastDoc
from streamline_trio._core.checking import is_mapping
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import ConcurrencyLimitReached
from streamline_trio._core.plan import Plan
from streamline_trio._core.slots import parts_of
from streamline_trio._core.start_options import CancelPlan
from streamline_trio._core.status import SETTLED
from streamline_trio.testing._witness import Witness


class Broadcast(NamedTuple):
    """A signal to all of a tenant, with the revisions of the runs when it was asked for."""

    name: str
    payload: bytes
    tenant: str | None
    id: str
    before: dict[str, int]


# --- starts ----------------------------------------------------------------------------------------------------


class Call:
    """One start that is under way; `others` are the inputs of those that were under way beside it."""

    def __init__(self, witness: Witness, input: bytes, *, is_debounced: bool) -> None:
        self.input: bytes = input
        self.others: set[bytes] = {input}
        self._witness = witness
        self._is_debounced = is_debounced
        self._known = {run_id: len(versions) for run_id, versions in witness.versions.items()}

    def acknowledged(self, run_id: str) -> None:
        """Its input is in this run, or that of a start which came at the same time."""
        if not self._is_debounced:
            return
        versions = self._witness.versions.get(run_id, [])
        if not any(run.origin.input in self.others for run in versions[self._known.get(run_id, 0) :]):
            self._witness.wrong.append(f"{run_id}: an acknowledged start of a debounced workflow is not in it")


class Bumps:
    """The starts that are under way, and those of which nobody knows what became of them."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        self._open: list[Call] = []

    @contextmanager
    def call(self, workflow: Workflow[Any, Any], value: Any) -> Generator[Call]:
        """Around one start; if it raises, it may yet come to something."""
        stored = workflow.input_payload(value)
        call = Call(self._witness, stored, is_debounced=workflow.rules.debounce is not None)
        for other in self._open:
            other.others.add(stored)
            call.others.add(other.input)
        self._open.append(call)
        yield call
        self._open.remove(call)


def check_refusal(witness: Witness, error: ConcurrencyLimitReached, since: Mapping[str, int]) -> str | None:
    """What is wrong with being told that there is no slot: there must have been none at some time since then."""
    named: Any = error.meta
    holding, limit = named.get("holding", 0), named.get("limit", 0)
    if not limit or holding < limit:
        return f"it was refused with {holding} of {limit} slots taken"
    buckets = [name for name in witness.flow.marks() if parts_of(name)[1:] == (named["workflow"], named["key"])]
    if not any(witness.flow.was_full(name, limit, since) for name in buckets):
        return f"it was refused though not all of {limit} slots were taken at any time"
    return None


# --- signals that cancel ---------------------------------------------------------------------------------------


class Sent(NamedTuple):
    """A signal on its way: to one run or to all of a tenant."""

    name: str
    payload: bytes
    run_id: str | None
    tenant: str | None
    id: str


class SignalsThatCancel:
    """What `cancel_on` says of the signals that were sent."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        self._sent: list[Sent] = []
        self._known: dict[tuple[str, str], int] = {}
        self._there: dict[tuple[str | None, str, str], dict[str, int]] = {}
        witness.of_broadcasts.append(self._delivered)

    def sent(self, name: str, payload: bytes, run_id: str | None, tenant: str | None, id: str) -> Sent:
        """Note one that somebody is about to emit."""
        versions = self._witness.versions.get(run_id or "", [])
        if run_id is None:
            there = {other: found[-1].head.revision for other, found in self._witness.versions.items() if found}
            self._there.setdefault((tenant, name, id), there)
        else:
            self._known.setdefault((run_id, id), len(versions))
        sent = Sent(name, payload, run_id, tenant, id)
        self._sent.append(sent)
        return sent

    def cancels(self, sent: Sent) -> bool:
        """Whether the run that it has reached has to end by it."""
        return bool(self._rules_of(self._witness.versions[sent.run_id or ""][-1], sent.name))

    def acknowledged(self, sent: Sent) -> list[str]:
        """What is wrong if a run was told to end, and that was acknowledged."""
        run_id = sent.run_id or ""
        since = self._witness.versions[run_id][max(self._known[run_id, sent.id] - 1, 0) :]
        if any(_ends(run) for run in since):
            return []
        return [f"{run_id}: signal {sent.name} was acknowledged, and does not cancel it"]

    def may_have(self, run: RunDoc) -> bool:
        """Whether a signal was sent that may have cancelled the run."""
        return any(
            sent.run_id == run.id
            or (sent.run_id is None and self._meets(run, sent.name, sent.payload, sent.tenant))
            for sent in self._sent
            if self._rules_of(run, sent.name)
        )

    def _delivered(self, doc: BroadcastDoc) -> list[str]:
        """What is wrong once a broadcast has reached all: the runs that were there, match, and go on."""
        name = doc.tenant, doc.signal, doc.id
        if not doc.delivered or name not in self._there:
            return []
        return [
            f"{run_id}: broadcast {doc.signal} was delivered, and does not cancel it"
            for run_id, revision in self._there.pop(name).items()
            if run_id not in self._witness.deleted and self._is_missed(run_id, revision, doc)
        ]

    def _is_missed(self, run_id: str, revision: int, doc: BroadcastDoc) -> bool:
        since = [run for run in self._witness.versions[run_id] if run.head.revision >= revision]
        is_there = bool(since) and since[0].head.revision == revision  # else another was started under its id
        if not is_there or not all(self._meets(run, doc.signal, doc.payload, doc.tenant) for run in since):
            return False
        # One that was created later, by the clocks that both were told, is not meant.
        return since[0].origin.created_at <= doc.at and not any(map(_ends, since))

    def _meets(self, run: RunDoc, name: str, payload: bytes, tenant: str | None) -> bool:
        """Whether it is of that tenant, and its input has what the payload says."""
        if run.origin.tenant != tenant:
            return False
        given, own = msgspec.msgpack.decode(payload), msgspec.msgpack.decode(run.origin.input)
        return any(
            all(_agree(given, theirs, own, mine) for theirs, mine in rule.match.items())
            for rule in self._rules_of(run, name)
        )

    def _rules_of(self, run: RunDoc, name: str) -> list[CancelPlan]:
        """Of all versions of its workflow: which it is on by then is chance."""
        plans: list[Plan] = [
            plan for route, plan in self._witness.plans.items() if route.workflow == run.origin.workflow
        ]
        return [rule for plan in plans for rule in plan.cancel_on if rule.signal == name]


def _agree(given: Any, theirs: str, own: Any, mine: str) -> bool:
    has_both = is_mapping(given) and is_mapping(own) and theirs in given and mine in own
    return has_both and bool(given[theirs] == own[mine])


def _ends(run: RunDoc) -> bool:
    head = run.head
    return head.status in SETTLED or head.status == "compensating" or head.cancel_requested
