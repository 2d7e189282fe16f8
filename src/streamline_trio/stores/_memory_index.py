"""The indices of the memory store: sorted lists, so that no query of the engine walks all runs."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Hashable, Iterable
from typing import Any

from streamline_trio._core.documents import RunDoc, queued_in
from streamline_trio._core.store import Route, SideDoc
from streamline_trio.stores._turns import skipped

Entry = tuple[int, str]


class DueQueue:
    """Unleased runs with a due time: sorted (due_at, id) for each route and priority."""

    def __init__(self) -> None:
        self._routes: dict[Route, dict[int, list[Entry]]] = {}

    def add(self, run: RunDoc) -> None:
        """Enter the run if it is unleased and has a due time."""
        if (entry := _due_entry(run)) is not None:
            priorities = self._routes.setdefault(_route(run), {})
            insort(priorities.setdefault(run.origin.priority, []), entry)

    def discard(self, run: RunDoc) -> None:
        """Take out what `add` entered for this same document."""
        entry = _due_entry(run)
        if entry is None:
            return
        priorities = self._routes.get(_route(run), {})
        queue = priorities.get(run.origin.priority, [])
        if _remove(queue, entry) and not queue:
            del priorities[run.origin.priority]

    def take(self, routes: Iterable[Route], now: int, limit: int, skip: int = 0) -> list[str]:
        """Ids of due runs: highest priority first, then earliest due, then by id; `skip` of the first priority."""
        by_priority: dict[int, list[list[Entry]]] = {}
        for route in dict.fromkeys(routes):
            for priority, queue in self._routes.get(route, {}).items():
                by_priority.setdefault(priority, []).append(queue)
        found: list[str] = []
        for priority in sorted(by_priority, reverse=True):
            room = limit - len(found)
            if room <= 0:
                break
            most = room + (0 if found else skip)
            due = [entry for queue in by_priority[priority] for entry in queue[: min(most, _due(queue, now))]]
            found += [run_id for _, run_id in skipped(sorted(due)[:most], room)]
        return found

    def earliest(self, routes: Iterable[Route]) -> int | None:
        """The earliest due time on the routes."""
        queues = (queue for route in routes for queue in self._routes.get(route, {}).values())
        return min((queue[0][0] for queue in queues), default=None)

    def oldest(self) -> int | None:
        """The earliest due time of all."""
        return self.earliest(self._routes)

    def counts(self, now: int) -> dict[Route, int]:
        """How many runs are due, of each route that has any."""
        counts = {
            route: sum(_due(queue, now) for queue in priorities.values())
            for route, priorities in self._routes.items()
        }
        return {route: count for route, count in counts.items() if count}


class ErrandQueue:
    """Runs with something to be done elsewhere: sorted (errand_at, id)."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def add(self, run: RunDoc) -> None:
        """Enter the run if its outbox holds anything."""
        if run.head.errand_at is not None:
            insort(self._entries, (run.head.errand_at, run.id))

    def discard(self, run: RunDoc) -> None:
        """Take out what `add` entered for this same document."""
        if run.head.errand_at is not None:
            _remove(self._entries, (run.head.errand_at, run.id))

    def take(self, now: int, limit: int) -> list[str]:
        """Ids of runs whose errands are due, earliest first."""
        return [run_id for _, run_id in self._entries[: min(limit, _due(self._entries, now))]]


class SlotQueues:
    """Runs that wait for a slot: sorted (priority downwards, ticket, id) for each bucket that has any."""

    def __init__(self) -> None:
        self._buckets: dict[str, list[tuple[int, int, str]]] = {}

    def add(self, run: RunDoc) -> None:
        """Enter the run if it waits for a slot."""
        if (bucket := queued_in(run.head)) is not None:
            insort(self._buckets.setdefault(bucket, []), _place(run))

    def discard(self, run: RunDoc) -> None:
        """Take out what `add` entered for this same document."""
        bucket = queued_in(run.head)
        if bucket is None:
            return
        queue = self._buckets.get(bucket, [])
        if _remove(queue, _place(run)) and not queue:
            del self._buckets[bucket]

    def first(self, bucket: str, limit: int) -> list[str]:
        """Ids of those who are next."""
        return [run_id for _, _, run_id in self._buckets.get(bucket, ())[:limit]]

    def count(self, bucket: str) -> int:
        """How many wait."""
        return len(self._buckets.get(bucket, ()))


class SideIndex:
    """Side documents of each kind: their keys in order, and (due_at, key) of those with a due time."""

    def __init__(self) -> None:
        self._keys: dict[str, list[str]] = {}
        self._due: dict[str, list[Entry]] = {}

    def put(self, before: SideDoc | None, after: SideDoc | None) -> None:
        """A document was written in place of another; None stands for none."""
        if before is not None and before.due_at is not None:
            _remove(self._due[before.kind], (before.due_at, before.key))
        if before is not None and after is None:
            _remove(self._keys[before.kind], before.key)
        if after is not None and before is None:
            insort(self._keys.setdefault(after.kind, []), after.key)
        if after is not None and after.due_at is not None:
            insort(self._due.setdefault(after.kind, []), (after.due_at, after.key))

    def after(self, kind: str, key: str, limit: int) -> list[str]:
        """Keys that come after this one, in order."""
        keys = self._keys.get(kind, [])
        start = bisect_right(keys, key)
        return keys[start : start + limit]

    def due(self, kind: str, now: int, key: str, limit: int) -> list[str]:
        """Keys after this one of those that are due, in order."""
        queue = self._due.get(kind, [])
        return sorted(found for _, found in queue[: _due(queue, now)] if found > key)[:limit]


class Groups:
    """Sorted run ids by group; a group without members does not exist."""

    def __init__(self) -> None:
        self._members: dict[Hashable, list[str]] = {}

    def add(self, group: Hashable, run_id: str) -> None:
        """Enter the run."""
        insort(self._members.setdefault(group, []), run_id)

    def discard(self, group: Hashable, run_id: str) -> None:
        """Take the run out, if it is there."""
        members = self._members.get(group, [])
        if _remove(members, run_id) and not members:
            del self._members[group]

    def after(self, group: Hashable, run_id: str, limit: int) -> list[str]:
        """The members that come after this id, in order."""
        members = self._members.get(group, [])
        start = bisect_right(members, run_id)
        return members[start : start + limit]

    def of(self, group: Hashable) -> list[str]:
        """All members, in order."""
        return list(self._members.get(group, ()))

    def names(self) -> list[Any]:
        """The groups that have members."""
        return list(self._members)


def _due_entry(run: RunDoc) -> Entry | None:
    head = run.head
    return None if head.lease is not None or head.due_at is None else (head.due_at, run.id)


def _place(run: RunDoc) -> tuple[int, int, str]:
    return -run.origin.priority, 0 if run.head.slot is None else run.head.slot.ticket, run.id


def _route(run: RunDoc) -> Route:
    return Route(run.origin.workflow, run.head.version)


def _due(queue: list[Entry], now: int) -> int:
    return bisect_left(queue, (now + 1, ""))


def _remove(items: list[Any], item: Any) -> bool:
    at = bisect_left(items, item)
    if at == len(items) or items[at] != item:
        return False
    del items[at]
    return True
