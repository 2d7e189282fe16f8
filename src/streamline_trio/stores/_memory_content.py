"""What a memory store holds, and how a write changes it."""

from __future__ import annotations

from streamline_trio._core.codec import split
from streamline_trio._core.diff import changed
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.store import (
    AppendRows,
    Applied,
    Delete,
    Failed,
    Insert,
    KeyTaken,
    PutSide,
    Quarantine,
    Refused,
    RowKind,
    SideDoc,
    Touched,
    Update,
    Verdict,
    Write,
)
from streamline_trio._core.tenancy import MARK, public_id
from streamline_trio.stores._derived import (
    KeyChange,
    UniqueKey,
    awaited,
    awaited_change,
    key_change,
    origin_changed,
    same_origin,
    unique_keys,
)
from streamline_trio.stores._memory_index import DueQueue, ErrandQueue, Groups, SideIndex, SlotQueues
from streamline_trio.stores._memory_turns import TurnQueue

_APPLIED = Applied()
_REFUSED = Refused()


class Content:
    """Runs, rows and side documents, with the indices over them. Every method is one atomic step.

    Runs are kept as the documents they are, but only what a codec could store is accepted.
    """

    def __init__(self) -> None:
        self.runs: dict[str, RunDoc] = {}
        self.spoiled: set[str] = set()
        self.keys: dict[UniqueKey, str] = {}
        self.due = DueQueue()
        self.turns = TurnQueue()
        self.errands = ErrandQueue()
        self.queued = SlotQueues()
        self.leased = Groups()
        self.attention = Groups()
        self.awaiting = Groups()
        self.children = Groups()
        self.namesakes = Groups()
        self.rows: dict[str, dict[RowKind, tuple[bytes, ...]]] = {}
        self.sides: dict[tuple[str, str], SideDoc] = {}
        self.side_index = SideIndex()

    def apply(self, write: Write) -> Verdict:
        """Apply one write, or say why not."""
        match write:
            case Insert(run):
                return self._insert(run)
            case Update():
                return self._update(write)
            case Delete(run_id, revision):
                return self._delete(run_id, revision)
            case Quarantine(run_id):
                return self._quarantine(run_id)
            case PutSide():
                return self._put_side(write)
            case AppendRows():
                return self._append_rows(write)

    def _insert(self, run: RunDoc) -> Verdict:
        try:
            split(run)
        except ValidationError as error:
            return Failed(error)
        if run.id in self.runs:
            return _REFUSED
        return self._replace(None, run)

    def _update(self, write: Update) -> Verdict:
        before, after = write.before, write.after
        if not same_origin(before, after):
            return Failed(origin_changed(before.origin))
        try:
            changed(before, after, write.touched)
        except ValidationError as error:
            return Failed(error)
        stored = self.runs.get(before.id)
        if stored is None or stored.head.revision != before.head.revision:
            return _REFUSED
        return self._replace(stored, after, write.touched)

    def _replace(self, before: RunDoc | None, after: RunDoc, touched: Touched | None = None) -> Verdict:
        change = key_change(before, after, touched)
        if (taken := self._conflict(change, after.id)) is not None:
            return taken
        self.runs[after.id] = after
        self._change_keys(change, after.id)
        if before is None:
            self._enter_indices(after)
            return _APPLIED
        self._leave_queues(before)
        self._enter_queues(after)
        gained, lost = awaited_change(before, after, touched)
        for signal in gained:
            self.awaiting.add((after.origin.tenant, signal), after.id)
        for signal in lost:
            self.awaiting.discard((after.origin.tenant, signal), after.id)
        return _APPLIED

    def _conflict(self, change: KeyChange, run_id: str) -> KeyTaken | None:
        claimed: set[UniqueKey] = set()
        for key in change.gained:
            holder = run_id if key in claimed else self.keys.get(key)
            if holder is not None:
                return KeyTaken(key.kind, holder)
            claimed.add(key)
        return None

    def _delete(self, run_id: str, revision: int) -> Verdict:
        run = self.runs.get(run_id)
        if run is None or run.head.revision != revision:
            return _REFUSED
        self._leave_indices(run)
        self._change_keys(KeyChange((), unique_keys(run)), run_id)
        del self.runs[run_id]
        self.rows.pop(run_id, None)
        self.spoiled.discard(run_id)
        return _APPLIED

    def _quarantine(self, run_id: str) -> Verdict:
        run = self.runs.get(run_id)
        if run is None:
            return _REFUSED
        self._leave_queues(run)
        return _APPLIED

    def _put_side(self, write: PutSide) -> Verdict:
        name = (write.kind, write.key)
        stored = self.sides.get(name)
        if (None if stored is None else stored.revision) != write.expected:
            return _REFUSED
        made: SideDoc | None = None
        if write.body is None:
            self.sides.pop(name, None)
        else:
            revision = write.first if stored is None else stored.revision + 1
            made = self.sides[name] = SideDoc(write.kind, write.key, revision, write.body, write.due_at)
        self.side_index.put(stored, made)
        return _APPLIED

    def _append_rows(self, write: AppendRows) -> Verdict:
        run = self.runs.get(write.run_id)
        if run is None or (write.fence is not None and write.fence != run.head.fence):
            return _REFUSED
        kinds = self.rows.setdefault(write.run_id, {})
        rows = kinds.get(write.kind, ()) + write.rows
        kinds[write.kind] = rows[max(0, len(rows) - write.keep) :]
        return _APPLIED

    def _change_keys(self, change: KeyChange, run_id: str) -> None:
        for key in change.lost:
            self.keys.pop(key, None)
        for key in change.gained:
            self.keys[key] = run_id

    def _enter_indices(self, run: RunDoc) -> None:
        origin = run.origin
        self._enter_queues(run)
        for signal in awaited(run):
            self.awaiting.add((origin.tenant, signal), run.id)
        if origin.parent is not None:
            self.children.add(origin.parent.run, run.id)
        if MARK in run.id:
            self.namesakes.add(public_id(run.id), run.id)

    def _enter_queues(self, run: RunDoc) -> None:
        head = run.head
        self.due.add(run)
        self.turns.add(run)
        self.errands.add(run)
        self.queued.add(run)
        if head.lease is not None:
            self.leased.add(head.lease.worker, run.id)
            if head.attention:
                self.attention.add(head.lease.worker, run.id)

    def _leave_indices(self, run: RunDoc) -> None:
        self._leave_queues(run)
        for signal in awaited(run):
            self.awaiting.discard((run.origin.tenant, signal), run.id)
        if run.origin.parent is not None:
            self.children.discard(run.origin.parent.run, run.id)
        if MARK in run.id:
            self.namesakes.discard(public_id(run.id), run.id)

    def _leave_queues(self, run: RunDoc) -> None:
        self.due.discard(run)
        self.turns.discard(run)
        self.errands.discard(run)
        self.queued.discard(run)
        if run.head.lease is not None:
            self.leased.discard(run.head.lease.worker, run.id)
            self.attention.discard(run.head.lease.worker, run.id)
