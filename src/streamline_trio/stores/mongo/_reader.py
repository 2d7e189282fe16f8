"""Reads of one database, from any thread. Each sees every write that was acknowledged before it began."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.read_concern import ReadConcern

from streamline_trio._core.documents import RunDoc, queued_in
from streamline_trio._core.errors import DataCorruption
from streamline_trio._core.status import RUN_STATUSES
from streamline_trio._core.store import Corrupt, Cursor, Route, RowKind, RunQuery, SideDoc, SortKey, Tally
from streamline_trio._core.tenancy import namesakes_range, public_id
from streamline_trio.stores._derived import signal_label
from streamline_trio.stores.mongo._changes import rows_name, side_name
from streamline_trio.stores.mongo._client import Server, Stored
from streamline_trio.stores.mongo._indexes import PAYLOADS, ROWS, RUNS, SIDES
from streamline_trio.stores.mongo._layout import FIRST_DATE, date, to_run
from streamline_trio.stores.mongo._payload import from_bson
from streamline_trio.stores.mongo._query import beyond, matching, sort_of
from streamline_trio.stores.mongo._turns import ids_further_down, ids_in_turn, route_names

_ATTEMPTS = 5
_QUEUE = [("priority", -1), ("due_at", 1), ("_id", 1)]
_SINCE_EVER = {"$gte": date(FIRST_DATE)}


class Reader:
    """Reads; `linearizable` where asked, for what must be certain after a lost answer."""

    def __init__(self, database: Database[Stored], server: Server) -> None:
        self._database = database
        self._runs = database[RUNS]
        self._sides = database[SIDES]
        certain = ReadConcern("linearizable" if server.is_replicated else "local")
        self._certain_runs = self._runs.with_options(read_concern=certain)
        self._certain_sides = self._sides.with_options(read_concern=certain)

    def load(self, run_id: str, *, linearizable: bool) -> RunDoc | None:
        """The run; `DataCorruption` if it does not decode."""
        return self._one({"_id": run_id}, self._certain_runs if linearizable else self._runs)

    def load_many(self, run_ids: Sequence[str]) -> list[RunDoc | None]:
        """The runs in the order asked."""
        if not run_ids:
            return []
        found = self._runs.find({"_id": {"$in": list(dict.fromkeys(run_ids))}})
        runs = {run.id: run for run in self._given(found) if isinstance(run, RunDoc)}
        return [runs.get(run_id) for run_id in run_ids]

    def by_active_key(self, key: str) -> RunDoc | None:
        """The holder of the key."""
        return self._one({"active_key": key}, self._runs)

    def by_token(self, digest: str) -> RunDoc | None:
        """The run whose open wait the token answers."""
        return self._one({"tokens": digest}, self._runs)

    def namesakes(self, run_id: str, limit: int) -> list[str]:
        """Ids of the runs of tenants that have this public id."""
        first, beyond = namesakes_range(run_id)
        found = self._runs.find({"_id": {"$gte": first, "$lt": beyond}}, {"_id": 1}).sort("_id", 1).limit(limit)
        return [stored["_id"] for stored in found]

    def awaiting(self, signal: str, tenant: str | None, after: str, limit: int) -> list[str]:
        """Ids of runs that wait for the signal."""
        where = {"labels": signal_label(tenant, signal), "_id": {"$gt": after}}
        return [stored["_id"] for stored in self._runs.find(where, {"_id": 1}).sort("_id", 1).limit(limit)]

    def due(self, routes: Sequence[Route], now: int, limit: int, *, skip: int = 0) -> list[RunDoc | Corrupt]:
        """Runs that are due, merged from one range of the index per route and priority."""
        if not routes:
            return []
        where = {"route": {"$in": route_names(routes)}, "due_at": {"$lte": date(now)}}
        if skip:
            return self._still_due(ids_further_down(self._runs, where, _QUEUE, limit, skip), now)
        found = self._runs.find(where).sort(_QUEUE).limit(limit)
        return [run for run in self._given(found) if isinstance(run, Corrupt) or _is_due(run, now)]

    def due_in_turn(
        self, routes: Sequence[Route], now: int, after: str | None, limit: int
    ) -> list[RunDoc | Corrupt]:
        """Runs that are due, of one tenant after the other."""
        if not routes:
            return []
        return self._still_due(ids_in_turn(self._runs, routes, now, after, limit), now)

    def _still_due(self, run_ids: Sequence[str], now: int) -> list[RunDoc | Corrupt]:
        """These runs in this order, without those that are not due any more."""
        if not run_ids:
            return []
        place = {run_id: number for number, run_id in enumerate(run_ids)}
        found = list(self._runs.find({"_id": {"$in": list(run_ids)}, "due_at": {"$lte": date(now)}}))
        found.sort(key=lambda stored: place[stored["_id"]])
        return [run for run in self._given(found) if isinstance(run, Corrupt) or _is_due(run, now)]

    def next_due(self, routes: Sequence[Route]) -> int | None:
        """The earliest due time."""
        if not routes:
            return None
        where = {"route": {"$in": route_names(routes)}, "due_at": _SINCE_EVER}
        for stored in self._runs.find(where, {"_id": 0, "due_at": 1}).sort("due_at", 1).limit(1):
            return int(stored["due_at"])
        return None

    def errands(self, now: int, limit: int) -> list[RunDoc | Corrupt]:
        """Runs with an errand that any worker may do by now."""
        where = {"errand_at": {"$lte": date(now)}}
        found = self._given(self._runs.find(where).sort([("errand_at", 1), ("_id", 1)]).limit(limit))
        return [run for run in found if isinstance(run, Corrupt) or _has_errand(run, now)]

    def queued(self, bucket: str, limit: int) -> list[RunDoc | Corrupt]:
        """The first of the runs that wait for a slot of the bucket."""
        order = [("priority", -1), ("slot.ticket", 1), ("_id", 1)]
        found = self._given(self._runs.find({"queue": bucket}).sort(order).limit(limit))
        return [run for run in found if isinstance(run, Corrupt) or queued_in(run.head) == bucket]

    def count_queued(self, bucket: str) -> int:
        """How many wait for a slot of the bucket."""
        return self._runs.count_documents({"queue": bucket})

    def leased(self, worker: str, limit: int, after: str, *, attention: bool) -> list[RunDoc | Corrupt]:
        """Runs leased to the worker."""
        where: dict[str, Any] = {"lease.worker": worker, "_id": {"$gt": after}}
        if attention:
            where["attention"] = True
        found = self._given(self._runs.find(where).sort("_id", 1).limit(limit))
        return [run for run in found if isinstance(run, Corrupt) or _is_leased(run, worker)]

    def leased_by_priority(self, worker: str, limit: int, skip: int) -> list[RunDoc | Corrupt]:
        """Runs leased to the worker; the server puts all its leases in order."""
        found = self._runs.find({"lease.worker": worker}).sort([("priority", -1), ("_id", 1)]).skip(skip)
        return [
            run for run in self._given(found.limit(limit)) if isinstance(run, Corrupt) or _is_leased(run, worker)
        ]

    def lease_holders(self) -> list[str]:
        """The distinct workers of leases."""
        return sorted(self._runs.distinct("lease.worker", {"lease.worker": {"$gte": ""}}))

    def find(self, query: RunQuery, sort: SortKey, limit: int, after: Cursor | None) -> list[RunDoc]:
        """A full page as long as runs are left: those that do not decode are replaced by the next ones."""
        field, direction = sort_of(sort)
        found: list[RunDoc] = []
        while len(found) < limit:
            where = [matching(query), *([] if after is None else [beyond(after, sort)])]
            room = limit - len(found)
            cursor = self._runs.find({"$and": where}, allow_disk_use=True)
            stored = list(cursor.sort([(field, direction), ("_id", direction)]).limit(room))
            found += [run for run in self._given(stored) if isinstance(run, RunDoc)]
            if len(stored) < room:
                break
            after = Cursor(int(stored[-1][field]), stored[-1]["_id"])
        return found

    def count(self, query: RunQuery) -> int:
        """How many runs match."""
        return self._runs.count_documents(matching(query))

    def tally(self, now: int) -> Tally:
        """Counts by status from the index of statuses, and of what is due by a range per route."""
        known = {"$match": {"status": {"$in": list(RUN_STATUSES)}}}
        statuses = self._runs.aggregate([known, {"$group": {"_id": "$status", "count": {"$sum": 1}}}])
        counts = {group["_id"]: int(group["count"]) for group in statuses}
        names = self._runs.distinct("route", {"due_at": _SINCE_EVER})
        where = {"route": {"$in": names}, "due_at": {"$lte": date(now)}}
        group = {"_id": "$route", "count": {"$sum": 1}, "oldest": {"$min": "$due_at"}}
        due = list(self._runs.aggregate([{"$match": where}, {"$group": group}]))
        return Tally(
            by_status={status: counts.get(status, 0) for status in RUN_STATUSES},
            due=sum(int(each["count"]) for each in due),
            oldest_due=min((int(each["oldest"]) for each in due), default=None),
            due_by_route={Route(*each["_id"].split("\n", 1)): int(each["count"]) for each in due},
        )

    def rows(self, run_id: str, kind: RowKind) -> list[bytes]:
        """The rows of a run, oldest first."""
        stored = self._database[ROWS].find_one({"_id": rows_name(kind, run_id)})
        return [] if stored is None else [from_bson(row, {}) for row in stored.get("rows", ())]

    def side(self, kind: str, key: str, *, linearizable: bool) -> SideDoc | None:
        """A side document."""
        sides = self._certain_sides if linearizable else self._sides
        stored = sides.find_one({"_id": side_name(kind, key)})
        return None if stored is None else _side(stored)

    def sides(self, kind: str, after: str, due_before: int | None, limit: int) -> list[SideDoc]:
        """Side documents of a kind in key order: their ids are one range."""
        where: dict[str, Any] = {"_id": {"$gt": side_name(kind, after), "$lt": f"{kind}0"}}
        if due_before is not None:
            where |= {"kind": kind, "due_at": {"$lte": date(due_before)}}
        return [_side(stored) for stored in self._sides.find(where).sort("_id", 1).limit(limit)]

    def _one(self, where: dict[str, Any], runs: Collection[Stored]) -> RunDoc | None:
        left = _ATTEMPTS
        while (stored := runs.find_one(where)) is not None:
            large = self._large([stored])
            if not _missing(stored, large):
                return to_run(stored, large)
            left -= 1
            if not left:
                raise _incomplete(stored["_id"])
        return None

    def _given(self, found: Iterable[Stored]) -> list[RunDoc | Corrupt]:
        """What was found, each as the run or as what is wrong with it."""
        documents = list(found)
        large = self._large(documents)
        runs = [self._decoded(stored, large) for stored in documents]
        return [run for run in runs if run is not None]

    def _decoded(self, stored: Stored, large: dict[str, bytes]) -> RunDoc | Corrupt | None:
        run_id: str = stored["_id"]
        try:
            if not _missing(stored, large):
                return to_run(stored, large)
            # It was written again, or removed, between the two reads.
            return self._one({"_id": run_id}, self._runs)
        except DataCorruption as error:
            return Corrupt(run_id, str(error))

    def _large(self, documents: Sequence[Stored]) -> dict[str, bytes]:
        """The large payloads of the documents, by digest: equal digests have equal content."""
        ids = [payload_id for stored in documents for payload_id in stored.get("payloads", {}).values()]
        if not ids:
            return {}
        found = self._database[PAYLOADS].find({"_id": {"$in": ids}}, {"sha256": 1, "body": 1})
        return {payload["sha256"]: payload["body"] for payload in found}


def _is_due(run: RunDoc, now: int) -> bool:
    """Whether it still is: a run whose payload was replaced is read a second time."""
    return run.head.lease is None and run.head.due_at is not None and run.head.due_at <= now


def _has_errand(run: RunDoc, now: int) -> bool:
    return run.head.errand_at is not None and run.head.errand_at <= now


def _is_leased(run: RunDoc, worker: str) -> bool:
    return run.head.lease is not None and run.head.lease.worker == worker


def _missing(stored: Stored, large: dict[str, bytes]) -> bool:
    return any(digest not in large for digest in stored.get("payloads", ()))


def _incomplete(run_id: str) -> DataCorruption:
    told = public_id(run_id)
    return DataCorruption(f"run {told!r} cannot be read: it refers to a payload that is not there", run=told)


def _side(stored: Stored) -> SideDoc:
    due_at = stored.get("due_at")
    return SideDoc(
        kind=stored["kind"],
        key=stored["key"],
        revision=int(stored["revision"]),
        body=from_bson(stored["body"], {}),
        due_at=None if due_at is None else int(due_at),
    )
