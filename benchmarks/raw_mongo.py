"""The bare loop on MongoDB: the durable writes of a run by plain pymongo, in batches, with no engine and no store.

One thread calls `bulk_write` of one collection, a command for each batch: inserts of the documents that the store
would insert, and updates by `_id` and revision that set and remove the same fields. A majority and its journals
acknowledge them, in a collection with the same indexes. All are made before time is taken. A loop like this knows
only how many of a batch were met, and it has to: nobody else writes here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import bson
from pymongo import InsertOne, MongoClient, UpdateOne

from benchmarks.mongo import database_of
from streamline_trio.store import Insert, Update
from streamline_trio.stores.mongo import _indexes
from streamline_trio.stores.mongo._changes import RunInsert, RunUpdate, make_ready
from streamline_trio.stores.mongo._client import DURABLE

Document = dict[str, Any]
Operation = InsertOne[Document] | UpdateOne


def seconds_of_bulks(
    url: str, writes: Sequence[Insert | Update], groups: Iterator[Sequence[str]]
) -> Iterator[float]:
    """What each batch took: the first write of all runs of a group, then their second, and so on."""
    forms = [_form(write) for write in writes]
    client: MongoClient[Document] = MongoClient(url)
    with client:
        database = database_of(client, url)
        _indexes.ensure(database, create=True)
        runs = database.get_collection(_indexes.RUNS, write_concern=DURABLE)
        for ids in groups:
            for form in forms:
                batch = [_operation(form, run_id) for run_id in ids]
                began = time.perf_counter()
                result = runs.bulk_write(batch, ordered=False)
                yield time.perf_counter() - began
                assert result.inserted_count + result.matched_count == len(ids), "nobody else writes here"


Form = Document | tuple[int, Document]


def _form(write: Insert | Update) -> Form:
    """The document that is inserted, or the revision that is expected and what is done with it."""
    match make_ready(write):
        case RunInsert(document=document):
            return bson.decode(document.raw)
        case RunUpdate(expected=expected, to_set=to_set, to_unset=to_unset):
            return expected, {"$set": bson.decode(to_set.raw), "$unset": to_unset}
        case other:
            raise AssertionError(f"what the engine wrote can be stored: {other}")


def _operation(form: Form, run_id: str) -> Operation:
    if isinstance(form, dict):
        return InsertOne({**form, "_id": run_id})
    expected, update = form
    return UpdateOne({"_id": run_id, "revision": expected}, update)
