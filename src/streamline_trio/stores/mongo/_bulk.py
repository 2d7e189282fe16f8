"""Sends a set of writes that do not depend on each other, and tells of each what the server did with it.

Servers from 8.0 on take all of them in one command and answer one by one. Before, there is one command for each
collection, and it only counts: unless all writes were met, those that were are found by the mark that each sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import bson
from bson.objectid import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import DeleteOne, InsertOne, ReplaceOne, UpdateOne
from pymongo.database import Database
from pymongo.errors import BulkWriteError, ClientBulkWriteException, OperationFailure
from pymongo.results import ClientBulkWriteResult

from streamline_trio.stores.mongo._changes import with_fields
from streamline_trio.stores.mongo._client import DURABLE, TRANSIENT, Server, Stored

Operation = InsertOne[Stored] | UpdateOne | ReplaceOne[Stored] | DeleteOne
MARK = "marked"


@dataclass(slots=True)
class Order:
    """One write of one document: what it is found by, what is to be done, and the commit it records."""

    collection: str
    insert: RawBSONDocument | None = None
    where: Mapping[str, Any] | None = None
    update: dict[str, Any] | None = None
    replace: RawBSONDocument | None = None
    upsert: bool = False
    commit: int | None = None
    is_met: bool = False
    is_new: bool = False
    code: int = 0
    error: str = ""

    def operation(self, namespace: str | None = None) -> Operation:
        """What the driver takes."""
        if self.insert is not None:
            return InsertOne(cast("Stored", self.insert), namespace)
        where = self.where or {}
        if self.update is not None:
            return UpdateOne(where, self.update, upsert=self.upsert, namespace=namespace)
        if self.replace is not None:
            return ReplaceOne(where, cast("Stored", self.replace), namespace=namespace)
        return DeleteOne(where, namespace=namespace)


class Sender:
    """Sends orders to one database."""

    def __init__(self, database: Database[Stored], server: Server) -> None:
        self._database = database
        self._send = self._send_at_once if server.has_client_bulk else self._send_by_collection

    def send(self, orders: Sequence[Order]) -> None:
        """Carry them out, durably; each knows its outcome afterwards.

        Raises `PyMongoError` when it is unknown of any of them.
        """
        if not orders:
            return
        self._send(orders)
        for order in orders:
            if order.code in TRANSIENT:
                raise OperationFailure(order.error, order.code)

    def _send_at_once(self, orders: Sequence[Order]) -> None:
        name = self._database.name
        models = [order.operation(f"{name}.{order.collection}") for order in orders]
        # The driver leaves the kind of document open.
        bulk_write = self._database.client.bulk_write  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        try:
            result = bulk_write(models, ordered=False, verbose_results=True, write_concern=DURABLE)
        except ClientBulkWriteException as error:
            if error.error is not None or error.write_concern_errors:
                raise
            failures = cast("list[Stored]", error.write_errors or [])
            for failure in failures:
                _failed(orders[int(failure["idx"])], failure)
            if error.partial_result is None:  # every single one failed
                return
            result = error.partial_result
        _note_results(orders, result)

    def _send_by_collection(self, orders: Sequence[Order]) -> None:
        for name in dict.fromkeys(order.collection for order in orders):
            self._send_to(name, [order for order in orders if order.collection == name])

    def _send_to(self, name: str, orders: Iterable[Order]) -> None:
        collection = self._database[name]
        counted: list[Order] = []
        for order in orders:
            if order.insert is None and order.update is None and order.replace is None:
                # Of what is gone afterwards nobody could tell who removed it.
                order.is_met = collection.delete_one(order.where or {}).deleted_count > 0
            else:
                counted.append(order)
        if not counted:
            return
        mark = ObjectId()
        for order in counted:
            _set_mark(order, mark)
        details = self._carry_out(name, counted)
        sound = [order for order in counted if not order.code]
        for upserted in details["upserted"]:
            counted[upserted["index"]].is_new = True
        if details["nInserted"] + details["nMatched"] + len(details["upserted"]) == len(sound):
            met = sound
        else:
            met = self._marked(name, sound, mark)
        for order in met:
            order.is_met = True

    def _carry_out(self, name: str, orders: Sequence[Order]) -> Mapping[str, Any]:
        try:
            result = self._database[name].bulk_write([order.operation() for order in orders], ordered=False)
        except BulkWriteError as error:
            details = cast("Stored", error.details)
            if details.get("writeConcernErrors"):
                raise
            failures = cast("list[Stored]", details["writeErrors"])
            for failure in failures:
                _failed(orders[int(failure["index"])], failure)
            return details
        return result.bulk_api_result

    def _marked(self, name: str, orders: Sequence[Order], mark: ObjectId) -> list[Order]:
        """The orders whose documents bear the mark or, if others wrote them since, list the commit."""
        updates = {(order.where or {})["_id"]: order for order in orders if order.insert is None}
        met = [order for order in orders if order.insert is not None]
        for stored in self._database[name].find({"_id": {"$in": list(updates)}}, {MARK: 1, "commits": 1}):
            order = updates[stored["_id"]]
            if stored.get(MARK) == mark or order.commit in stored.get("commits", ()):
                met.append(order)
        return met


def _note_results(orders: Sequence[Order], result: ClientBulkWriteResult) -> None:
    for place in result.insert_results:
        orders[place].is_met = True
    for place, updated in result.update_results.items():
        orders[place].is_new = updated.upserted_id is not None
        orders[place].is_met = updated.matched_count > 0 or orders[place].is_new
    for place, deleted in result.delete_results.items():
        orders[place].is_met = deleted.deleted_count > 0


def _failed(order: Order, failure: Mapping[str, Any]) -> None:
    order.code = int(failure.get("code") or -1)
    order.error = str(failure.get("errmsg") or failure)


def _set_mark(order: Order, mark: ObjectId) -> None:
    if order.update is not None:
        fields = order.update.get("$set", RawBSONDocument(bson.encode({})))
        order.update = {**order.update, "$set": with_fields(fields, {MARK: mark})}
    elif order.replace is not None:
        order.replace = with_fields(order.replace, {MARK: mark})
