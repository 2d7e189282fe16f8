"""`RunQuery` and its order over runs in memory: the meaning that every other store's query has to have."""

from __future__ import annotations

from collections.abc import Callable

from streamline_trio._core.documents import RunDoc, waiting_kinds
from streamline_trio._core.store import Cursor, RunQuery, SortKey
from streamline_trio.stores._derived import meta_values, wanted_meta

Predicate = Callable[[RunDoc], bool]


def matcher(query: RunQuery) -> Predicate:
    """Whether a run matches the query."""
    tests = [*_of_origin(query), *_of_head(query)]
    return lambda run: all(test(run) for test in tests)


def _of_origin(query: RunQuery) -> list[Predicate]:
    tests: list[Predicate] = []
    if query.workflow is not None:
        tests.append(lambda run: run.origin.workflow == query.workflow)
    if query.tenant is not None:
        tests.append(lambda run: run.origin.tenant == query.tenant)
    if query.user is not None:
        tests.append(lambda run: run.origin.user == query.user)
    if query.parent is not None:
        tests.append(lambda run: run.origin.parent is not None and run.origin.parent.run == query.parent)
    if query.tags:
        wanted_tags = frozenset(query.tags)
        tests.append(lambda run: wanted_tags.issubset(run.origin.tags))
    if query.meta:
        wanted = wanted_meta(query.meta).items()
        tests.append(lambda run: wanted <= meta_values(run.origin.meta).items())
    tests += _between(lambda run: run.origin.created_at, query.created_after, query.created_before)
    return tests


def _of_head(query: RunQuery) -> list[Predicate]:
    tests: list[Predicate] = []
    status, waiting = query.status, query.waiting
    if status is not None:
        tests.append(lambda run: run.head.status in status)
    if query.version is not None:
        tests.append(lambda run: run.head.version == query.version)
    if query.paused is not None:
        tests.append(lambda run: run.head.paused == query.paused)
    if query.dead_lettered is not None:
        tests.append(lambda run: run.head.dead_lettered == query.dead_lettered)
    if waiting is not None:
        tests.append(lambda run: waiting in waiting_kinds(run))
    tests += _between(lambda run: run.head.updated_at, query.updated_after, query.updated_before)
    return tests


def _between(value: Callable[[RunDoc], int], after: int | None, before: int | None) -> list[Predicate]:
    tests: list[Predicate] = []
    if after is not None:
        tests.append(lambda run: value(run) >= after)
    if before is not None:
        tests.append(lambda run: value(run) < before)
    return tests


def page_of(runs: list[RunDoc], sort: SortKey, limit: int, after: Cursor | None) -> list[RunDoc]:
    """The page after the cursor; a descending sort also descends among equal sort values."""

    def place(run: RunDoc) -> tuple[int, str]:
        return sort_value(run, sort), run.id

    descending = sort.startswith("-")
    if after is not None:
        end = (after.value, after.run_id)
        runs = [run for run in runs if (place(run) < end if descending else place(run) > end)]
    return sorted(runs, key=place, reverse=descending)[:limit]


def sort_value(run: RunDoc, sort: SortKey) -> int:
    """What the run is sorted by."""
    return run.origin.created_at if sort.endswith("created_at") else run.head.updated_at
