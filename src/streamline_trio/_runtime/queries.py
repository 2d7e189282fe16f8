"""Filters of `find`, `count`, `delete` and `pending`, and the pages they give."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, TypeVar, get_args

import msgspec
import whenever

from streamline_trio._core import payload
from streamline_trio._core.checking import is_a, is_mapping, is_text, is_whole
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import RunDoc, WaitKind
from streamline_trio._core.durations import instant_millis
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.status import RUN_STATUSES, RunStatus
from streamline_trio._core.store import Cursor, RunQuery, SortKey
from streamline_trio._runtime.handle import RunHandle, place_of
from streamline_trio._runtime.tenancy import Scope

if TYPE_CHECKING:
    from streamline_trio._runtime.machinery import Machinery

T_co = TypeVar("T_co", covariant=True)

Sort = Literal["created_at", "-created_at", "updated_at", "-updated_at"]
Instant = datetime | whenever.Instant | whenever.ZonedDateTime

MAX_LIMIT = 10_000
_LONGEST = 1000
_KINDS = get_args(WaitKind)
_INSTANTS = ("created_after", "created_before", "updated_after", "updated_before")


class RunFilters(TypedDict, total=False):
    """What runs can be filtered by; all given filters must hold."""

    workflow: Workflow[Any, Any] | str | None
    version: str | None
    tenant: str | None
    status: RunStatus | Sequence[RunStatus] | None
    user: str | None
    tags: Sequence[str]
    meta: Mapping[str, Any] | None
    parent: RunHandle | str | None
    created_after: Instant | None
    created_before: Instant | None
    updated_after: Instant | None
    updated_before: Instant | None
    paused: bool | None
    waiting: WaitKind | None
    dead_lettered: bool | None


class Page(msgspec.Struct, Generic[T_co], frozen=True):
    """Some results in order, and the cursor for the next page (None: there is none)."""

    items: list[T_co]
    cursor: str | None = None

    def __iter__(self) -> Iterator[T_co]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


async def query_of(machinery: Machinery, scope: Scope, filters: Mapping[str, Any]) -> RunQuery:
    """The store's form of the filters, within the scope; `ValidationError` names what is wrong."""
    scope = scope.demanded(filters.get("tenant"))
    query = _plain_query(filters)
    if query.parent is not None:
        parent = await place_of(machinery, filters["parent"], scope).find()
        query = msgspec.structs.replace(query, parent=parent)
    return msgspec.structs.replace(query, tenant=scope.tenant)


def _plain_query(filters: Mapping[str, Any]) -> RunQuery:
    unknown = set(filters) - set(RunFilters.__annotations__)
    if unknown:
        raise ValidationError(f"unknown filters {sorted(unknown)}; known are {sorted(RunFilters.__annotations__)}")
    given = {key: value for key, value in filters.items() if value is not None}
    for name in _INSTANTS:
        if name in given:
            given[name] = instant_millis(given[name], what=name)
    if isinstance(given.get("workflow"), Workflow):
        given["workflow"] = given["workflow"].id
    if isinstance(given.get("parent"), RunHandle):
        given["parent"] = given["parent"].id
    if "status" in given:
        given["status"] = _statuses(given["status"])
    if given.get("waiting") not in (None, *_KINDS):
        raise ValidationError(f"waiting is one of {_KINDS}, not {given['waiting']!r}")
    if isinstance(given.get("tags"), str):
        raise ValidationError(f"tags is a sequence of texts, not {given['tags']!r}")
    given["tags"] = tuple(given.get("tags", ()))
    _check_kinds(given)
    return RunQuery(**given)


def _check_kinds(given: Mapping[str, Any]) -> None:
    """A filter of the wrong kind would match nothing, which is no answer."""
    for name in ("workflow", "version", "user", "parent"):
        if name in given and not is_text(given[name], _LONGEST):
            raise ValidationError(f"{name} is a text, not {repr(given[name])[:100]}")
    for name in ("paused", "dead_lettered"):
        if name in given and not is_a(given[name], bool):
            raise ValidationError(f"{name} is True or False, not {repr(given[name])[:100]}")
    if not all(is_text(tag, _LONGEST) for tag in given["tags"]):
        raise ValidationError(f"tags is a sequence of texts, not {repr(given['tags'])[:100]}")
    if "meta" in given:
        if not is_mapping(given["meta"]):
            raise ValidationError(f"meta is a mapping, not {repr(given['meta'])[:100]}")
        payload.encode(dict(given["meta"]), what="meta")


def _statuses(given: Any) -> tuple[RunStatus, ...]:
    statuses: tuple[RunStatus, ...] = (given,) if isinstance(given, str) else tuple(given)  # type: ignore[assignment]  # checked below
    for status in statuses:
        if status not in RUN_STATUSES:
            raise ValidationError(f"status is one of {RUN_STATUSES}, not {status!r}")
    return statuses


def check_paging(sort: str, limit: int) -> None:
    """Raise `ValidationError` unless the page can be asked for."""
    if sort not in get_args(SortKey):
        raise ValidationError(f"sort is one of {get_args(SortKey)}, not {sort!r}")
    if not is_whole(limit, 1, MAX_LIMIT):
        raise ValidationError(f"limit is a whole number from 1 to {MAX_LIMIT}, not {limit!r}")


def cursor_after(run: RunDoc, sort: str) -> str:
    """The cursor of the page that follows this run."""
    value = run.origin.created_at if sort.endswith("created_at") else run.head.updated_at
    return base64.urlsafe_b64encode(msgspec.msgpack.encode([sort, value, run.origin.id])).decode()


def decode_cursor(cursor: str | None, sort: str) -> Cursor | None:
    """Where to go on; `ValidationError` for a cursor that is damaged or of another order."""
    if cursor is None:
        return None
    try:
        told, value, run_id = msgspec.msgpack.decode(
            base64.urlsafe_b64decode(cursor.encode()), type=tuple[str, int, str]
        )
    except (ValueError, AttributeError, msgspec.DecodeError) as error:
        raise ValidationError("the cursor is not one of ours") from error
    if told != sort:
        raise ValidationError(f"the cursor belongs to sort={told!r}, not {sort!r}")
    return Cursor(value, run_id)
