"""What must be true of children that their parents no longer wait for.

Parents and children are stored apart, so that no single write can take a child back. What must hold is said of the
order of writes:

- Once a parent no longer waits for a child and has nothing left to do about it, the child is over or being
  cancelled, or it was stored so late that nobody could.
- A child that is stored after its parent has stopped waiting never begins: who claims it reads the parent after the
  child. One that was stored before may still begin, by a claim that read the parent before; the first law has it
  cancelled then.

A branch that may outlive its join is stored late for good, as far as anybody can tell who reads the parent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection

from streamline_trio._core.documents import Record, RunDoc
from streamline_trio._core.status import SETTLED


class Offspring:
    """Follows every write of parents and children. A group is the children of one suspension."""

    def __init__(self, newest: Callable[[str], RunDoc], deleted: Collection[str], revived: Collection[str]) -> None:
        self._newest = newest
        self._deleted = deleted
        self._revived = revived
        self._children: defaultdict[str, list[str]] = defaultdict(list)
        self._dropped: set[str] = set()
        self._late: set[str] = set()
        self._to_cancel: defaultdict[str, set[str]] = defaultdict(set)

    def follow(self, before: RunDoc | None, after: RunDoc) -> list[str]:
        """The laws that this write breaks; `after` is the newest version of its run by now."""
        wrong = self._of_child(before, after)
        if before is not None and before.records is not after.records:
            dropped = {record.group for key, record in before.records.items() if _is_dropped(record, key, after)}
            self._dropped |= dropped
            self._to_cancel[after.id] |= dropped
        for group in sorted(self._to_cancel.get(after.id, ())):
            if not any(errand.kind == "cancel" and errand.group == group for errand in after.outbox.values()):
                self._to_cancel[after.id].remove(group)
                wrong += self._not_over(after, group)
        return wrong

    def _of_child(self, before: RunDoc | None, after: RunDoc) -> list[str]:
        parent = after.origin.parent
        if parent is None or not parent.group:
            return []
        if before is None:
            self._children[parent.group].append(after.id)
            if parent.group in self._dropped:
                self._late.add(after.id)
            return []
        begins = before.head.started_at is None and after.head.started_at is not None
        if begins and after.id in self._late and not parent.detached and after.id not in self._revived:
            return [f"{after.id}: began though {parent.run} had stopped waiting before it was stored"]
        return []

    def _not_over(self, parent: RunDoc, group: str) -> list[str]:
        return [
            f"{child}: goes on though {parent.id} no longer waits for it, and nothing is left to be done about it"
            for child in self._children[group]
            if self._goes_on(child)
        ]

    def _goes_on(self, child: str) -> bool:
        head = self._newest(child).head
        if child in self._late or child in self._deleted or child in self._revived:
            return False
        return head.status not in SETTLED and head.status != "compensating" and not head.cancel_requested


def _is_dropped(record: Record, key: str, after: RunDoc) -> bool:
    """Whether it waited for children before this write, and does not any more; those it keeps go on."""
    if not record.group or not record.is_open:
        return False
    now = after.records.get(key)
    if now is None or now.group != record.group:
        return True
    return not now.is_open and not now.keeps_losers
