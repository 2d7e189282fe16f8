"""A run as a document: the fields of origin and head by their names, its parts under `state`, `steps` and so on.

    _id, workflow, tenant, tags, input, ...      the origin, written once
    status, revision, updated_at, lease, ...     the head
    state                                        the run's state, as its value
    steps.<id>, records.<key>, ...               one field per entry of each map

Beside them stands what is derived because something looks for it:

    route         workflow and version, of the queue of due runs
    settled       true once it is
    calling       the worker that should look, as long as the holder has `attention`
    queue         the bucket of slots that the run waits in line for
    active_key    the uniqueness key, while it binds
    tokens        digests of the tokens of open waits
    waiting       kinds of open waits
    labels        tags, values of meta and awaited signals, in the form that queries compare
    payloads      the large payloads it refers to: digest -> id in their collection
    due_since     since when a run without a lease is due, or from when it will be
    quarantined   the due times and the lease that were taken from a run that does not decode

What is derived is never read back into a run. `due_at` at the top stands only in runs without a lease: the due
time of a leased one is a field of `lease`. Instants are dates as far as the calendar of usual tools goes, up to
the year 9999, and plain milliseconds beyond. What has its default is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast, get_args, get_origin, get_type_hints

import msgspec
from bson.datetime_ms import DatetimeMS
from msgspec.structs import fields as fields_of

from streamline_trio._core.codec import maps_of
from streamline_trio._core.documents import (
    Doc,
    Errand,
    Head,
    Lease,
    Memo,
    Message,
    Origin,
    Piece,
    Record,
    RunDoc,
    StepDoc,
    active_key,
    open_tokens,
    queued_in,
    waiting_kinds,
)
from streamline_trio._core.errors import DataCorruption
from streamline_trio._core.status import is_settled
from streamline_trio._core.tenancy import public_id
from streamline_trio.stores._derived import labels
from streamline_trio.stores._turns import waits_since
from streamline_trio.stores.mongo._payload import digest, escape, from_bson, is_large, to_bson, unescape

Document = dict[str, Any]
Large = Mapping[str, bytes]

FIRST_DATE = -62_135_596_800_000
LAST_DATE = 253_402_300_799_999

_BUILTIN = (bytes,)


def date(instant: int) -> DatetimeMS | int:
    """An instant as it stands in a document."""
    return DatetimeMS(instant) if FIRST_DATE <= instant <= LAST_DATE else instant


class _Part(NamedTuple):
    """A field whose value is written in another form than the plain one."""

    name: str
    write: Callable[[Any], Any]
    read: Callable[[Any, Large], Any]


class _Form(NamedTuple):
    """How structs of one kind are written: what is not plain, and where payloads are."""

    kind: type[Any]
    parts: tuple[_Part, ...]
    payloads: tuple[str, ...]

    def write(self, struct: Any) -> Document:
        """The struct as a document."""
        return self.fix(msgspec.to_builtins(struct, builtin_types=_BUILTIN))

    def fix(self, plain: Document) -> Document:
        """Put what is not plain into its form, in place."""
        for part in self.parts:
            if part.name in plain:
                plain[part.name] = part.write(plain[part.name])
        return plain

    def payloads_of(self, struct: Any) -> tuple[bytes | None, ...]:
        """The payloads in the struct."""
        return tuple(getattr(struct, name) for name in self.payloads)

    def read(self, stored: Document, large: Large) -> Any:
        """The struct."""
        return msgspec.convert(self.plain(stored, large), self.kind)

    def plain(self, stored: Document, large: Large) -> Document:
        """What `msgspec` makes the struct of; `stored` is left as it is."""
        plain = dict(stored)
        for part in self.parts:
            if part.name in plain:  # a payload may well be None
                plain[part.name] = part.read(plain[part.name], large)
        return plain


def _form(kind: type[Any]) -> _Form:
    parts: list[_Part] = []
    payloads: list[str] = []
    hints = get_type_hints(kind)
    for field in fields_of(kind):
        name = field.name
        kinds = {hints[name], *get_args(hints[name])}
        inner = [each for each in kinds if isinstance(each, type) and issubclass(each, Doc)]
        if bytes in kinds:
            payloads.append(name)
            parts.append(_Part(name, to_bson, from_bson))
        elif int in kinds and is_instant(name):
            parts.append(_Part(name, date, _whole))
        elif inner and get_origin(hints[name]) is tuple:
            parts.append(_many(name, _form(inner[0])))
        elif inner:
            form = _form(inner[0])
            parts.append(_Part(name, form.fix, form.plain))
    return _Form(kind, tuple(parts), tuple(payloads))


def is_instant(name: str) -> bool:
    """Whether a field of this name, if it is a number, is an instant."""
    return name in {"at", "deadline"} or name.endswith("_at")


def _many(name: str, form: _Form) -> _Part:
    def write(items: list[Document]) -> list[Document]:
        return [form.fix(item) for item in items]

    def read(items: list[Document], large: Large) -> list[Document]:
        return [form.plain(item, large) for item in items]

    return _Part(name, write, read)


def _whole(value: Any, _large: Large) -> int:
    return int(value)


ORIGIN = _form(Origin)
HEAD = _form(Head)
_LEASE = _form(Lease)
_ORIGIN_FIELDS = tuple(name for name in Origin.__struct_fields__ if name != "id")
_HEAD_FIELDS = Head.__struct_fields__
QUEUE_FIELDS = ("due_at", "lease")
QUARANTINED = (*QUEUE_FIELDS, "errand_at", "queue")


class Entries(NamedTuple):
    """One map of a run: the attribute, and the form of its values."""

    attribute: str
    write: Callable[[Any], Any]
    read: Callable[[Any, Large], Any]
    payloads: Callable[[Any], tuple[bytes | None, ...]]


def _structs(attribute: str, kind: type[Any]) -> Entries:
    form = _form(kind)
    return Entries(attribute, form.write, form.read, form.payloads_of)


def _itself(value: Any) -> tuple[bytes | None, ...]:
    return (value,)


def _nothing(_value: Any) -> tuple[bytes | None, ...]:
    return ()


MAPS: tuple[Entries, ...] = (
    _structs("steps", StepDoc),
    _structs("records", Record),
    _structs("pieces", Piece),
    Entries("checkpoints", to_bson, from_bson, _itself),
    _structs("memos", Memo),
    _structs("inbox", Message),
    Entries("seen", date, _whole, _nothing),
    _structs("outbox", Errand),
)


def to_document(run: RunDoc) -> Document:
    """The whole run, with what is derived; the large payloads are told by `large_in`."""
    document: Document = {"_id": run.id, "priority": run.origin.priority}
    document |= ORIGIN.write(run.origin)
    del document["id"]
    document |= lay_out(plain_head(run.head))
    document["state"] = to_bson(run.state)
    for entries, values in zip(MAPS, maps_of(run), strict=True):
        if values:
            document[entries.attribute] = {escape(key): entries.write(value) for key, value in values.items()}
    return document | derived_of_head(run) | derived_of_waits(run) | derived_of_queue(run)


def plain_head(head: Head) -> Document:
    """The fields of a head, not yet in their form; what guards ask for is there also where it has its default."""
    plain: Document = {"revision": head.revision, "fence": head.fence}
    plain |= msgspec.to_builtins(head, builtin_types=_BUILTIN)
    return plain


def lay_out(plain: Document) -> Document:
    """Fields of a head in the form of the document, in place; the due time of a leased run is one of the lease."""
    lease = plain.get("lease")
    HEAD.fix(plain)
    if lease is not None and "due_at" in plain:
        lease["due_at"] = plain.pop("due_at")
    return plain


def derived_of_head(run: RunDoc) -> Document:
    """What is looked for and follows from the head."""
    head = run.head
    found: Document = {"route": route(run.origin.workflow, head.version)}
    if is_settled(head.status):
        found["settled"] = True
    if head.attention and head.lease is not None:
        found["calling"] = head.lease.worker
    if (bucket := queued_in(head)) is not None:
        found["queue"] = bucket
    if (key := active_key(run)) is not None:
        found["active_key"] = key
    return found


def derived_of_queue(run: RunDoc) -> Document:
    """By what runs of one tenant are put in order."""
    since = waits_since(run)
    return {} if since is None else {"due_since": date(since)}


def derived_of_waits(run: RunDoc, *, with_labels: bool = True) -> Document:
    """What is looked for and follows from origin and open waits."""
    found: Document = {"tokens": list(open_tokens(run)), "waiting": list(waiting_kinds(run))}
    if with_labels:
        found["labels"] = sorted(labels(run))
    return {name: value for name, value in found.items() if value}


def route(workflow: str, version: str) -> str:
    """One name for both: no id holds a newline."""
    return f"{workflow}\n{version}"


def large_in(run: RunDoc) -> dict[str, bytes]:
    """The large payloads of the run, by digest."""
    found = [run.state, *ORIGIN.payloads_of(run.origin)]
    for entries, values in zip(MAPS, maps_of(run), strict=True):
        for value in values.values():
            found += entries.payloads(value)
    return {digest(payload): payload for payload in found if payload is not None and is_large(payload)}


def to_run(document: Document, large: Large) -> RunDoc:
    """The run; `DataCorruption` if the document is none."""
    run_id = public_id(str(document.get("_id")))
    try:
        return _to_run(document, large)
    except (msgspec.MsgspecError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        told = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise DataCorruption(f"run {run_id!r} cannot be read: {told}", run=run_id) from error


def _to_run(document: Document, large: Large) -> RunDoc:
    parts: dict[str, dict[str, Any]] = {}
    for entries in MAPS:
        stored = cast("Document", document.get(entries.attribute, {}))
        parts[entries.attribute] = {unescape(name): entries.read(item, large) for name, item in stored.items()}
    origin = {name: document[name] for name in _ORIGIN_FIELDS if name in document}
    return RunDoc(
        origin=ORIGIN.read(origin | {"id": document["_id"]}, large),
        head=HEAD.read(_stored_head(document), large),
        state=from_bson(document["state"], large),
        **parts,
    )


def _stored_head(document: Document) -> Document:
    stored = {name: document[name] for name in _HEAD_FIELDS if name in document}
    stored |= document.get("quarantined", {})
    lease = stored.get("lease")
    if lease is not None and "due_at" in lease:
        stored["lease"] = {name: value for name, value in lease.items() if name != "due_at"}
        stored["due_at"] = lease["due_at"]
    return stored
