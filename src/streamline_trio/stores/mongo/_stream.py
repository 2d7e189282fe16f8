"""Hints of what others write, from the change stream of the runs, where the server has one.

The server filters: only a run that fell due, calls its holder or settled is told; beats of workers and ordinary
commits wake nobody. The stream begins again where it broke off; where there is none, polling has to do.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from pymongo.collection import Collection
from pymongo.errors import OperationFailure, PyMongoError

from streamline_trio._core.store import Hint
from streamline_trio.stores.mongo._client import Stored

PATIENCE = 0.5
"""Seconds that the server holds a question back while it has nothing to tell; closing waits as long."""

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0
_LOST = frozenset({136, 286})  # what the token stands for is not there any more: begin with what comes now
_UNSUPPORTED = frozenset({13, 59, 115, 303, 40573})  # also where this user may not
_TOLD = {"due_at": {"$exists": True}, "calling": {"$exists": True}, "settled": True}
_LOG = logging.getLogger("streamline_trio")


def _one_of(prefix: str) -> list[dict[str, Any]]:
    return [{f"{prefix}.{field}": wanted} for field, wanted in _TOLD.items()]


PIPELINE: list[dict[str, Any]] = [
    {
        "$match": {
            "$or": [
                {"operationType": "insert", "$or": _one_of("fullDocument")},
                {"operationType": "update", "$or": _one_of("updateDescription.updatedFields")},
            ]
        }
    },
    {
        "$project": {
            "documentKey": 1,
            **{f"fullDocument.{field}": 1 for field in _TOLD},
            **{f"updateDescription.updatedFields.{field}": 1 for field in _TOLD},
        }
    },
]


class Stream:
    """A thread that follows the changes of a collection and tells of them."""

    def __init__(self, runs: Collection[Stored], tell: Callable[[Hint], None]) -> None:
        self._runs = runs
        self._tell = tell
        self._ends = threading.Event()
        self._listens = threading.Event()
        self._token: Mapping[str, Any] | None = None
        # A daemon, so that a store which nobody closed does not keep the process alive.
        self._thread = threading.Thread(target=self._follow, name=f"changes of {runs.full_name}", daemon=True)

    def start(self, patience: float) -> None:
        """Begin, and wait this long for the server to listen: what is written from then on is told."""
        self._thread.start()
        self._listens.wait(patience)

    def stop(self, patience: float) -> None:
        """End it, and wait until it has ended; no longer than this for a server that has gone silent."""
        self._ends.set()
        self._thread.join(patience)

    def _follow(self) -> None:
        pause = _FIRST_PAUSE
        while not self._ends.is_set():
            before = self._token
            try:
                self._listen()
            except OperationFailure as error:
                if error.code in _UNSUPPORTED:
                    _LOG.info("no change stream here, so that polling finds what others write: %s", error)
                    break
                if error.code in _LOST:
                    self._token = None
                _LOG.warning("the change stream broke off and begins again: %s", error)
            except PyMongoError as error:
                _LOG.warning("the change stream broke off and begins again: %s", error)
            self._listens.set()  # nobody need wait for what does not come about at once
            if self._token is not before:  # it listened for a while: this is the first break
                pause = _FIRST_PAUSE
            self._ends.wait(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        self._listens.set()

    def _listen(self) -> None:
        wait = int(PATIENCE * 1000)
        with self._runs.watch(PIPELINE, resume_after=self._token, max_await_time_ms=wait) as stream:
            self._listens.set()
            while not self._ends.is_set() and stream.alive:
                change = stream.try_next()
                self._token = stream.resume_token
                if change is not None:
                    self._tell(hint_of_change(change))


def hint_of_change(change: Mapping[str, Any]) -> Hint:
    """What a change tells listeners."""
    fields = change.get("fullDocument") or change.get("updateDescription", {}).get("updatedFields", {})
    due_at = fields.get("due_at")
    return Hint(
        run_id=change["documentKey"]["_id"],
        due_at=None if due_at is None else int(due_at),
        worker=fields.get("calling"),
        settled=bool(fields.get("settled")),
    )
