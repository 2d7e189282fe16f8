"""Removes what nobody refers to: payloads and rows that a process left behind, having died in the midst of a write.

Payloads are stored before the run that refers to them, and cleared, as rows are, after the run has gone or moved
on. Who dies in between leaves them. Each sweep looks at a page of each collection, from where the last one ended,
so that its cost does not grow with what is stored.

 - A payload of a run that is there, at its revision or a later one, and does not refer to it: no write can make the
   run refer to it any more. It is removed at once.
 - Of a run that is not there, the insert may be under way. It is removed only if the run is still missing when so
   much time has gone by that no write can be; measured here, on a monotonic clock, so that clocks that differ
   between machines do not matter.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from pymongo.database import Database

from streamline_trio.stores.mongo._client import Stored
from streamline_trio.stores.mongo._indexes import PAYLOADS, ROWS, RUNS

PAGE = 500
GRACE = 600.0
"""Seconds that the run of a payload or of rows has to be missing."""


class Sweep:
    """Walks through the payloads and rows of one database, a page at a time."""

    def __init__(self, database: Database[Stored]) -> None:
        self._lock = threading.Lock()
        self._walks = (_Walk(database, PAYLOADS), _Walk(database, ROWS))

    def run(self, now: float) -> int:
        """One page of each; `now` in monotonic seconds. How many documents were removed."""
        with self._lock:
            return sum(walk.next_page(now) for walk in self._walks)


class _Walk:
    """The walk through one collection, and what it found without a run on its way."""

    def __init__(self, database: Database[Stored], name: str) -> None:
        self._documents = database[name]
        self._runs = database[RUNS]
        self._after: Any = None
        self._suspects: dict[Any, float] = {}

    def next_page(self, now: float) -> int:
        """Look at the next page and again at old suspects; how many documents were removed."""
        ripe = [key for key, since in self._suspects.items() if now - since >= GRACE][:PAGE]
        found = list(self._page()) + self._again(ripe)
        runs = self._runs_of(found)
        doomed: list[Any] = []
        for document in found:
            key, run = document["_id"], runs.get(_run_of(document))
            if run is None:
                if now - self._suspects.setdefault(key, now) >= GRACE:
                    doomed.append(key)
            elif _is_left_behind(document, run):
                doomed.append(key)
            else:
                self._suspects.pop(key, None)
        for key in (*ripe, *doomed):
            self._suspects.pop(key, None)
        if not doomed:
            return 0
        return self._documents.delete_many({"_id": {"$in": doomed}}).deleted_count

    def _page(self) -> Iterable[Stored]:
        where = {} if self._after is None else {"_id": {"$gt": self._after}}
        page = list(self._documents.find(where, {"run": 1, "revision": 1}).sort("_id", 1).limit(PAGE))
        self._after = page[-1]["_id"] if len(page) == PAGE else None
        return page

    def _again(self, keys: list[Any]) -> list[Stored]:
        if not keys:
            return []
        return list(self._documents.find({"_id": {"$in": keys}}, {"run": 1, "revision": 1}))

    def _runs_of(self, documents: list[Stored]) -> Mapping[str, Stored]:
        """Read after the documents: a run that is there now was, or came, after them."""
        if not documents:
            return {}
        ids = sorted({_run_of(document) for document in documents})
        found = self._runs.find({"_id": {"$in": ids}}, {"revision": 1, "payloads": 1})
        return {run["_id"]: run for run in found}


def _run_of(document: Stored) -> str:
    """A payload names its run; the id of rows holds it: `log/<run>`."""
    run: str = document["run"] if "run" in document else document["_id"].partition("/")[2]
    return run


def _is_left_behind(document: Stored, run: Stored) -> bool:
    """Whether it is a payload that the run, as it is or comes to be, does not refer to."""
    if "revision" not in document or document["revision"] > run.get("revision", 0):
        return False
    return document["_id"] not in run.get("payloads", {}).values()
