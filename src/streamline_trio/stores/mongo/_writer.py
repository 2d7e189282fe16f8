"""Carries out a batch of writes: wave by wave, each as few commands, and finds the verdict of each write."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, get_args

from bson.objectid import ObjectId
from pymongo import DeleteMany
from pymongo.database import Database
from pymongo.errors import OperationFailure, PyMongoError

from streamline_trio._core.errors import PayloadTooLarge, ValidationError
from streamline_trio._core.store import (
    Applied,
    Delete,
    Failed,
    KeyTaken,
    Quarantine,
    Refused,
    RowKind,
    Verdict,
    Write,
)
from streamline_trio.stores._derived import UniqueKey
from streamline_trio.stores.mongo._bulk import Order, Sender
from streamline_trio.stores.mongo._changes import (
    LARGEST,
    Ready,
    RowsPush,
    RunInsert,
    RunUpdate,
    SidePut,
    make_ready,
    rows_name,
    with_fields,
)
from streamline_trio.stores.mongo._client import DUPLICATE_KEY, TOO_LARGE, Server, Stored
from streamline_trio.stores.mongo._indexes import PAYLOADS, ROWS, RUNS, SIDES
from streamline_trio.stores.mongo._layout import QUARANTINED
from streamline_trio.stores.mongo._waves import Waves

_APPLIED = Applied()
_REFUSED = Refused()
_ROUNDS = 20
_LOG = logging.getLogger("streamline_trio")


class Writer:
    """Writes to one database, from any thread."""

    def __init__(self, database: Database[Stored], server: Server) -> None:
        self._database = database
        self._sender = Sender(database, server)

    def write(self, batch: Sequence[Write]) -> list[Verdict]:
        """Carry out the batch. Raises `PyMongoError` when it is unknown what became of it."""
        verdicts: dict[int, Verdict] = {}
        waves: defaultdict[int, dict[int, Ready]] = defaultdict(dict)
        order = Waves()
        for place, write in enumerate(batch):
            ready = make_ready(write)
            if isinstance(ready, Failed):
                verdicts[place] = ready
            else:
                waves[order.number(ready)][place] = ready
        fences: dict[str, int] = {}
        for number in sorted(waves):
            verdicts |= _Wave(self._database, self._sender, waves[number], fences).run()
        return [verdicts[place] for place in range(len(batch))]


class _Wave:
    """Writes that do not depend on each other. `fences` are those of runs that this batch has written."""

    def __init__(
        self, database: Database[Stored], sender: Sender, writes: dict[int, Ready], fences: dict[str, int]
    ) -> None:
        self._database = database
        self._sender = sender
        self._writes = writes
        self._fences = fences
        self._verdicts: dict[int, Verdict] = {}

    def run(self) -> dict[int, Verdict]:
        """The verdicts by place."""
        self._check_rows()
        self._place_payloads()
        self._check_removals()
        self._refuse_double_claims()
        for _ in range(_ROUNDS):
            left = {place: write for place, write in self._writes.items() if place not in self._verdicts}
            if not left:
                break
            self._round(left)
        else:
            # Keys that are taken whenever we write and free whenever we look: somebody else's turn.
            raise OperationFailure("the keys of a write keep changing hands", DUPLICATE_KEY)
        self._remember_fences()
        self._clean_up()
        return self._verdicts

    def _round(self, writes: dict[int, Ready]) -> None:
        """Send them all once; those that met a key which is free by now stay without a verdict."""
        orders = {place: _order_of(write) for place, write in writes.items()}
        self._sender.send(list(orders.values()))
        doubtful: dict[int, Ready] = {}
        unmet: dict[int, RunUpdate] = {}
        new_rings: dict[int, RowsPush] = {}
        for place, order in orders.items():
            write = writes[place]
            if order.code == DUPLICATE_KEY and isinstance(write, SidePut):
                self._verdicts[place] = _REFUSED
            elif order.code == DUPLICATE_KEY:
                doubtful[place] = write
            elif isinstance(write, RunUpdate) and not (order.code or order.is_met) and write.is_doubtful:
                unmet[place] = write
            elif order.code:
                self._verdicts[place] = Failed(_error_of(order))
            else:
                self._verdicts[place] = _APPLIED if order.is_met else _REFUSED
                if order.is_new and isinstance(write, RowsPush):
                    new_rings[place] = write
        self._resolve_rings({p: w for p, w in doubtful.items() if isinstance(w, RowsPush)})
        self._resolve_runs({p: w for p, w in doubtful.items() if isinstance(w, RunInsert | RunUpdate)})
        self._check_new_rings(new_rings)
        self._resolve_unmet(unmet)

    # --- keys and guards -----------------------------------------------------------------------------------

    def _refuse_double_claims(self) -> None:
        """No index sees that a run claims a key twice: such a write is not sent at all."""
        twice = {
            place: write
            for place, write in self._writes.items()
            if isinstance(write, RunInsert | RunUpdate) and write.claims_twice and place not in self._verdicts
        }
        self._resolve_runs(twice)

    def _resolve_runs(self, writes: dict[int, RunInsert | RunUpdate]) -> None:
        """Find out, by one read, what stood against them."""
        if not writes:
            return
        keys = [key for write in writes.values() for key in write.keys.gained]
        asked: list[dict[str, Any]] = [{"_id": {"$in": [write.run_id for write in writes.values()]}}]
        for kind, name in (("active_key", "active_key"), ("token", "tokens")):
            if wanted := [key.key for key in keys if key.kind == kind]:
                asked.append({name: {"$in": wanted}})
        revisions: dict[str, int] = {}
        holders: dict[UniqueKey, str] = {}
        fields = dict.fromkeys(("revision", "active_key", "tokens"), 1)
        for stored in self._database[RUNS].find({"$or": asked}, fields):
            revisions[stored["_id"]] = stored.get("revision", 0)
            holders |= {UniqueKey("token", token): stored["_id"] for token in stored.get("tokens", ())}
            if "active_key" in stored:
                holders[UniqueKey("active_key", stored["active_key"])] = stored["_id"]
        for place, write in writes.items():
            verdict = _verdict(write, revisions.get(write.run_id), holders)
            if verdict is not None:
                self._verdicts[place] = verdict

    def _resolve_unmet(self, writes: dict[int, RunUpdate]) -> None:
        """Either the revision was another, or the document has no room left, or it was met at a first attempt.

        A driver repeats a command whose answer was lost; that a server remembers the first is not relied upon.
        """
        if not writes:
            return
        ids = [write.run_id for write in writes.values()]
        found = self._database[RUNS].find({"_id": {"$in": ids}}, {"revision": 1, "commits": 1})
        runs = {stored["_id"]: stored for stored in found}
        for place, write in writes.items():
            stored = runs.get(write.run_id, {})
            if write.commit is not None and write.commit in stored.get("commits", ()):
                self._verdicts[place] = _APPLIED
            elif not write.is_small and stored.get("revision") == write.expected:
                self._verdicts[place] = Failed(_too_large(write.run_id))
            else:
                self._verdicts[place] = _REFUSED

    def _remember_fences(self) -> None:
        for place, write in self._writes.items():
            if self._verdicts[place] != _APPLIED:
                continue
            if isinstance(write, RunInsert):
                self._fences[write.run_id] = write.fence
            elif isinstance(write, RunUpdate):
                self._fences[write.run_id] = write.after.head.fence
            elif isinstance(write, Delete):
                self._fences.pop(write.run_id, None)

    def _check_removals(self) -> None:
        """What is expected not to be, and is not to be, only has to be looked for."""
        for place, write in self._writes.items():
            if isinstance(write, SidePut) and write.document is None and write.expected is None:
                there = self._database[SIDES].find_one({"_id": write.id}, {"_id": 1})
                self._verdicts[place] = _APPLIED if there is None else _REFUSED

    # --- rows ----------------------------------------------------------------------------------------------

    def _check_rows(self) -> None:
        """Refuse rows of runs that are gone or under another fence.

        An append counts as made when the fence is read: the ring remembers the highest fence that wrote to it, so
        that rows of an earlier one never come after those of a later one.
        """
        pushes = {place: write for place, write in self._writes.items() if isinstance(write, RowsPush)}
        unknown = {write.run_id for write in pushes.values()} - self._fences.keys()
        fences = dict(self._fences)
        if unknown:
            found = self._database[RUNS].find({"_id": {"$in": sorted(unknown)}}, {"fence": 1})
            fences |= {stored["_id"]: stored.get("fence", 0) for stored in found}
        for place, write in pushes.items():
            fence = fences.get(write.run_id)
            if fence is None or (write.fence is not None and write.fence != fence):
                self._verdicts[place] = _REFUSED

    def _resolve_rings(self, writes: dict[int, RowsPush]) -> None:
        """A ring exists, and either bears a later fence or was made a moment ago by somebody else."""
        if not writes:
            return
        found = self._database[ROWS].find({"_id": {"$in": [write.id for write in writes.values()]}}, {"fence": 1})
        fences = {stored["_id"]: stored["fence"] for stored in found}
        for place, write in writes.items():
            if write.fence is not None and fences.get(write.id, 0) > write.fence:
                self._verdicts[place] = _REFUSED

    def _check_new_rings(self, writes: dict[int, RowsPush]) -> None:
        """The run may have been removed after we saw it: then nobody else would remove the new ring."""
        if not writes:
            return
        run_ids = [write.run_id for write in writes.values()]
        found = {stored["_id"] for stored in self._database[RUNS].find({"_id": {"$in": run_ids}}, {"_id": 1})}
        orphaned = {place: write for place, write in writes.items() if write.run_id not in found}
        if orphaned:
            self._database[ROWS].delete_many({"_id": {"$in": [write.id for write in orphaned.values()]}})
            self._verdicts |= dict.fromkeys(orphaned, _REFUSED)

    # --- large payloads ------------------------------------------------------------------------------------

    def _place_payloads(self) -> None:
        """Store the large payloads that are new, before any document refers to them."""
        updates = [
            write for write in self._writes.values() if isinstance(write, RunUpdate) and write.large is not None
        ]
        if updates:
            self._find_kept(updates)
        documents: list[Stored] = []
        for write in self._writes.values():
            if isinstance(write, RunInsert):
                documents += _payload_documents(write, write.large, write.revision)
            elif isinstance(write, RunUpdate) and write.large is not None:
                write.payload_ids = {digest: ObjectId() for digest in write.large if digest not in write.kept}
                documents += _payload_documents(write, write.large, write.after.head.revision)
        if documents:
            self._database[PAYLOADS].insert_many(documents, ordered=False)

    def _find_kept(self, updates: list[RunUpdate]) -> None:
        """Which of their payloads are there already, and stay."""
        ids = [write.run_id for write in updates]
        found = self._database[RUNS].find({"_id": {"$in": ids}}, {"revision": 1, "payloads": 1})
        stored = {(document["_id"], document["revision"]): document.get("payloads", {}) for document in found}
        for write in updates:
            there: dict[str, ObjectId] = stored.get((write.run_id, write.expected), {})
            write.kept = {digest: there[digest] for digest in (write.large or {}) if digest in there}

    def _clean_up(self) -> None:
        """Remove payloads and rows that nothing refers to any more; of no consequence if it does not come to it."""
        try:
            self._remove_payloads()
            removed = [write.run_id for write in self._applied() if isinstance(write, Delete)]
            if removed:
                rings = [rows_name(kind, run_id) for run_id in removed for kind in get_args(RowKind)]
                self._database[ROWS].delete_many({"_id": {"$in": rings}})
        except PyMongoError as error:
            _LOG.warning("what is left of removed payloads and runs could not be cleared: %s", error)

    def _applied(self) -> list[Ready]:
        return [write for place, write in self._writes.items() if self._verdicts[place] == _APPLIED]

    def _remove_payloads(self) -> None:
        applied = self._applied()
        doomed: list[DeleteMany] = []
        for write in applied:
            if isinstance(write, RunUpdate) and write.large is not None:
                # No document of an earlier revision is left: this also removes what a lost attempt left behind.
                kept = {"$nin": list(write.kept.values())}
                doomed.append(DeleteMany({"run": write.run_id, "revision": {"$lte": write.expected}, "_id": kept}))
            elif isinstance(write, Delete):
                doomed.append(DeleteMany({"run": write.run_id, "revision": {"$lte": write.revision}}))
        vain = [
            write
            for place, write in self._writes.items()
            if isinstance(write, RunInsert | RunUpdate) and write.payload_ids and self._verdicts[place] != _APPLIED
        ]
        if vain:
            ids = {payload_id for write in vain for payload_id in write.payload_ids.values()}
            ids -= self._referred_to({write.run_id for write in vain})
            doomed.append(DeleteMany({"_id": {"$in": list(ids)}}))
        if doomed:
            self._database[PAYLOADS].bulk_write(doomed, ordered=False)

    def _referred_to(self, run_ids: set[str]) -> set[ObjectId]:
        """A write that seems refused may have been applied at a first attempt of the driver's."""
        found = self._database[RUNS].find({"_id": {"$in": sorted(run_ids)}}, {"payloads": 1})
        return {payload_id for stored in found for payload_id in stored.get("payloads", {}).values()}


def _payload_documents(write: RunInsert | RunUpdate, large: dict[str, bytes], revision: int) -> list[Stored]:
    return [
        {"_id": payload_id, "run": write.run_id, "revision": revision, "sha256": digest, "body": large[digest]}
        for digest, payload_id in write.payload_ids.items()
    ]


def _verdict(write: RunInsert | RunUpdate, revision: int | None, holders: dict[UniqueKey, str]) -> Verdict | None:
    """What stands against the write; None if nothing does any more."""
    if isinstance(write, RunInsert):
        if revision is not None:
            return _REFUSED
    elif revision != write.expected:
        return _REFUSED
    claimed: set[UniqueKey] = set()
    for key in write.keys.gained:
        holder = write.run_id if key in claimed else holders.get(key)
        if holder is not None:
            return KeyTaken(key.kind, holder)
        claimed.add(key)
    return None


def _error_of(order: Order) -> PayloadTooLarge | ValidationError:
    where = order.where if order.where is not None else order.insert
    name = (where or {})["_id"]
    if order.code in TOO_LARGE:
        return _too_large(name)
    return ValidationError(f"the server refuses a write of {name!r}: {order.error}", code=order.code)


def _too_large(name: str) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the document of {name!r} would become larger than a MongoDB document may be (16 MiB): keep large data"
        " elsewhere and return references"
    )


def _order_of(write: Ready) -> Order:  # noqa: PLR0911 - one for each kind of write
    match write:
        case RunInsert():
            return Order(RUNS, insert=write.document)
        case RunUpdate():
            return _update_order(write)
        case Delete(run_id, revision):
            return Order(RUNS, where={"_id": run_id, "revision": revision})
        case Quarantine(run_id):
            taken = {name: f"quarantined.{name}" for name in QUARANTINED}
            return Order(RUNS, where={"_id": run_id}, update={"$rename": taken, "$unset": {"calling": ""}})
        case SidePut(side_id, None, document):
            return Order(SIDES, insert=document)
        case SidePut(side_id, expected, document):
            return Order(SIDES, where={"_id": side_id, "revision": expected}, replace=document)
        case RowsPush():
            guard = {} if write.fence is None else {"fence": {"$lte": write.fence}}
            update = {"$push": {"rows": write.rows}, "$max": {"fence": write.fence or 0}}
            return Order(ROWS, where={"_id": write.id, **guard}, update=update, upsert=True)


def _update_order(write: RunUpdate) -> Order:
    where: dict[str, Any] = {"_id": write.run_id, "revision": write.expected}
    if not write.is_small:
        where["$expr"] = {"$lte": [{"$bsonSize": "$$ROOT"}, LARGEST - len(write.to_set.raw)]}
    return Order(RUNS, where=where, update=_change_of(write), commit=write.commit)


def _change_of(write: RunUpdate) -> dict[str, Any]:
    to_set, to_unset = write.to_set, write.to_unset
    if write.large is not None:
        payloads = write.kept | write.payload_ids
        if payloads:
            to_set = with_fields(to_set, {"payloads": payloads})
        else:
            to_unset = {**to_unset, "payloads": ""}
    return {"$set": to_set, "$unset": to_unset}
