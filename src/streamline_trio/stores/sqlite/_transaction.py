"""The writes of one transaction.

The write lock is held from the start, so what guards need is read once for the whole batch and stays true. Each
write then has its verdict before anything of it is written: none can fail half-way, and what is to be done is
gathered and done by few statements at the end.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from streamline_trio._core.store import (
    AppendRows,
    Applied,
    Delete,
    Failed,
    KeyTaken,
    PutSide,
    Quarantine,
    Refused,
    Verdict,
)
from streamline_trio.stores._derived import NO_KEYS, NO_LABELS, KeyChange, UniqueKey
from streamline_trio.stores.sqlite import _statements as sql
from streamline_trio.stores.sqlite._changes import Ready, RunInsert, RunUpdate
from streamline_trio.stores.sqlite._columns import moving

_APPLIED = Applied()
_REFUSED = Refused()


class Stored(NamedTuple):
    """What guards ask of a stored run."""

    no: int
    revision: int
    fence: int
    quarantined: int


class Transaction:
    """Decides and carries out writes, inside a transaction that the caller begins and ends."""

    def __init__(self, connection: sqlite3.Connection, writes: list[Ready]) -> None:
        self._connection = connection
        self._writes = writes
        self._stored: dict[str, Stored] = {}
        self._holders: dict[UniqueKey, str] = {}
        self._pending: defaultdict[sql.Statement, list[sql.Row]] = defaultdict(list)
        self._touched: set[str] = set()

    def run(self) -> list[Verdict]:
        """Carry out all writes."""
        self._read_guards({write.run_id for write in self._writes if not isinstance(write, PutSide | Failed)})
        self._read_holders()
        verdicts = [self._one(write) for write in self._writes]
        self._flush()
        return verdicts

    def _read_guards(self, run_ids: Iterable[str]) -> None:
        wanted = list(run_ids)
        for cursor in sql.run_all(self._connection, sql.FIND_RUNS, list(enumerate(wanted))):
            (found,) = cursor.fetchone()
            for line in found.split(",") if found else ():
                place, *stored = map(int, line.split(" "))
                self._stored[wanted[place]] = Stored(*stored)

    def _read_holders(self) -> None:
        gained = {
            key: None
            for write in self._writes
            if isinstance(write, RunInsert | RunUpdate)
            for key in write.keys.gained
        }
        for cursor in sql.run_all(self._connection, sql.FIND_KEYS, list(gained)):
            for kind, key, run_id in cursor:
                self._holders[UniqueKey(kind, key)] = run_id

    def _one(self, write: Ready) -> Verdict:
        if isinstance(write, Failed):
            return write
        if isinstance(write, PutSide):
            return self._put_side(write)
        if isinstance(write, AppendRows):
            return self._append_rows(write)
        return self._one_run(write)

    def _one_run(self, write: RunInsert | RunUpdate | Delete | Quarantine) -> Verdict:
        match write:
            case RunInsert():
                return self._insert(write)
            case RunUpdate():
                return self._update(write)
            case Delete(run_id, revision):
                return self._delete(run_id, revision)
            case Quarantine(run_id):
                return self._quarantine(run_id)

    def _insert(self, write: RunInsert) -> Verdict:
        run_id = write.run_id
        if self._guard(run_id) is not None:
            return _REFUSED
        if (taken := self._change_keys(write.keys, run_id)) is not None:
            return taken
        self._do(sql.INSERT_RUNS, [write.columns])
        self._do(sql.PUT_PARTS, [(run_id, part, body) for part, body in write.parts.items()])
        self._do(sql.PUT_LABELS, [(label, run_id) for label in write.labels])
        self._stored[run_id] = Stored(0, write.revision, write.fence, 0)
        return _APPLIED

    def _update(self, write: RunUpdate) -> Verdict:
        run_id = write.run_id
        stored = self._guard(run_id)
        if stored is None or stored.revision != write.expected:
            return _REFUSED
        if (taken := self._change_keys(write.keys, run_id)) is not None:
            return taken
        self._put_head(stored, write)
        self._put_parts(write)
        self._stored[run_id] = Stored(stored.no, write.revision, write.fence, 0)
        return _APPLIED

    def _put_head(self, stored: Stored, write: RunUpdate) -> None:
        columns = moving(write.after) if stored.quarantined else write.moving
        if columns is None:
            self._do(sql.UPDATE_HEADS, [(stored.no, *write.head)])
        else:
            self._do(sql.UPDATE_RUNS, [(stored.no, *write.head, *columns)])

    def _put_parts(self, write: RunUpdate) -> None:
        run_id = write.run_id
        for part, body in write.parts.items():
            if body is None:
                self._do(sql.REMOVE_PARTS, [(run_id, part)])
            else:
                self._do(sql.PUT_PARTS, [(run_id, part, body)])
        if write.labels is NO_LABELS:
            return
        added, removed = write.labels
        self._do(sql.PUT_LABELS, [(label, run_id) for label in added])
        self._do(sql.REMOVE_LABELS, [(label, run_id) for label in removed])

    def _delete(self, run_id: str, revision: int) -> Verdict:
        stored = self._guard(run_id)
        if stored is None or stored.revision != revision:
            return _REFUSED
        for kind, key in self._connection.execute(sql.DELETE_KEYS, (run_id,)):
            self._holders.pop(UniqueKey(kind, key), None)
        self._do(sql.DELETE_RUNS, [(stored.no,)])
        for statement in (sql.DELETE_PARTS, sql.DELETE_LABELS, sql.DELETE_ROWS):
            self._do(statement, [(run_id,)])
        del self._stored[run_id]
        return _APPLIED

    def _quarantine(self, run_id: str) -> Verdict:
        stored = self._guard(run_id)
        if stored is None:
            return _REFUSED
        self._do(sql.QUARANTINE_RUNS, [(stored.no,)])
        self._stored[run_id] = stored._replace(quarantined=1)
        return _APPLIED

    def _put_side(self, write: PutSide) -> Verdict:
        name = (write.kind, write.key)
        execute = self._connection.execute
        if write.expected is None and write.body is None:
            return _REFUSED if execute(sql.HAS_SIDE, name).fetchone() else _APPLIED
        if write.expected is None:
            done = execute(sql.INSERT_SIDE, (*name, write.first, write.body, write.due_at))
        elif write.body is None:
            done = execute(sql.DELETE_SIDE, (*name, write.expected))
        else:
            done = execute(sql.UPDATE_SIDE, (write.body, write.due_at, *name, write.expected))
        return _APPLIED if done.rowcount else _REFUSED

    def _append_rows(self, write: AppendRows) -> Verdict:
        stored = self._stored.get(write.run_id)
        if stored is None or (write.fence is not None and write.fence != stored.fence):
            return _REFUSED
        ring = (write.run_id, write.kind)
        (last,) = self._connection.execute(sql.LAST_ROW, ring).fetchone()
        rows = [(*ring, last + place, body) for place, body in enumerate(write.rows, 1)]
        sql.run_all(self._connection, sql.PUT_ROWS, rows)
        self._connection.execute(sql.TRIM_ROWS, (*ring, last + len(rows) - write.keep))
        return _APPLIED

    def _guard(self, run_id: str) -> Stored | None:
        """What is stored of the run; what earlier writes of the batch did to the same run is done first."""
        if run_id in self._touched:
            self._flush()
            self._read_guards([run_id])
        self._touched.add(run_id)
        return self._stored.get(run_id)

    def _change_keys(self, change: KeyChange, run_id: str) -> KeyTaken | None:
        if change is NO_KEYS:
            return None
        claimed: set[UniqueKey] = set()
        for key in change.gained:
            holder = run_id if key in claimed else self._holders.get(key)
            if holder is not None:
                return KeyTaken(key.kind, holder)
            claimed.add(key)
        for key in change.lost:
            self._holders.pop(key, None)
        self._holders |= dict.fromkeys(change.gained, run_id)
        self._do(sql.REMOVE_KEYS, change.lost)
        self._do(sql.PUT_KEYS, [(*key, run_id) for key in change.gained])
        return None

    def _do(self, statement: sql.Statement, rows: Iterable[sql.Row]) -> None:
        self._pending[statement].extend(rows)

    def _flush(self) -> None:
        for statement in sql.ORDER:
            if rows := self._pending.get(statement):
                sql.run_all(self._connection, statement, rows)
        self._pending.clear()
        self._touched.clear()
