"""What the conformance checks are made of: the check itself, the store under test, sample documents."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from msgspec.structs import replace

from streamline_trio._core.documents import (
    CompensationDoc,
    Errand,
    ErrorDoc,
    Head,
    Lease,
    Memo,
    Message,
    Origin,
    OutputVersion,
    Parent,
    Piece,
    Record,
    RunDoc,
    Scheduled,
    StepDoc,
    Try,
    WaitNote,
)
from streamline_trio._core.store import Applied, Insert, Store, Update, Verdict, Write

Hook = Literal["spoil", "twin"]


class NotConformant(AssertionError):
    """A store does not keep a condition of the protocol."""


@dataclass(frozen=True)
class Subject:
    """A store under test.

    Attributes:
        make: gives a new, unopened store without any content.
        spoil: makes the stored run of this id undecodable, behind the store's back.
        twin: gives a second store object on the same content, as another process would have.
    """

    make: Callable[[], Store]
    spoil: Callable[[Store, str], Awaitable[None]] | None = None
    twin: Callable[[Store], Store] | None = None


Body = Callable[[Subject], Awaitable[None]]


@dataclass(frozen=True)
class Check:
    """One check: the condition it is about (None: the docstring of a method), and the hook it needs."""

    name: str
    condition: int | None
    needs: Hook | None
    body: Body

    def __str__(self) -> str:
        return self.name

    async def __call__(self, subject: Subject | Callable[[], Store]) -> None:
        """Run it on a fresh store; `NotConformant` if the condition is not kept, `LookupError` without the hook."""
        if not isinstance(subject, Subject):
            subject = Subject(subject)
        if self.needs is not None and getattr(subject, self.needs) is None:
            raise LookupError(f"the check {self.name} needs the hook {self.needs!r}")
        try:
            await self.body(subject)
        except NotConformant as error:
            error.add_note(f"condition {self.condition}: {self.body.__doc__}")
            raise


REGISTERED: list[Check] = []


def check(condition: int | None, *, needs: Hook | None = None) -> Callable[[Body], Body]:
    """Register the function as a check of this condition."""

    def register(body: Body) -> Body:
        name = getattr(body, "__name__", str(body))
        REGISTERED.append(Check(name, condition, needs, body))
        return body

    return register


@asynccontextmanager
async def opened(subject: Subject) -> AsyncGenerator[Store]:
    """A fresh store, open inside the block."""
    store = subject.make()
    async with using(store):
        yield store


@asynccontextmanager
async def using(store: Store) -> AsyncGenerator[None]:
    """The store is open inside the block."""
    await store.open()
    try:
        yield
    finally:
        await store.aclose()


def expect(found: object, wanted: object, what: str) -> None:
    """Raise `NotConformant` unless both are equal."""
    if found != wanted:
        raise NotConformant(f"{what}: found {found!r}, wanted {wanted!r}")


def expect_kinds(verdicts: Sequence[Verdict], *kinds: type[Any]) -> None:
    """Compare the kinds of verdicts."""
    expect([type(verdict).__name__ for verdict in verdicts], [kind.__name__ for kind in kinds], "verdicts")


async def put(store: Store, *runs: RunDoc) -> None:
    """Insert runs that must be taken."""
    await must(store, *map(Insert, runs))


async def must(store: Store, *writes: Write) -> None:
    """Write what must be applied."""
    expect_kinds(await store.write(writes), *(Applied for _ in writes))


async def one(store: Store, write: Write) -> Verdict:
    """The verdict of a single write."""
    verdicts = await store.write([write])
    expect(len(verdicts), 1, "number of verdicts")
    return verdicts[0]


HEAD_FIELDS = frozenset(Head.__struct_fields__)


def sample(run_id: str, **fields: Any) -> RunDoc:
    """A running run without a lease; fields of origin, head and maps by name, `worker` for a lease."""
    origin: dict[str, Any] = {"workflow": "w", "start_id": 1, "created_at": 1000, "input": b"\x80"}
    origin |= {name: fields.pop(name) for name in list(fields) if name in Origin.__struct_fields__}
    run = RunDoc(
        origin=Origin(id=run_id, **origin),
        head=Head(version="1", fingerprint="f", status="running", updated_at=1000),
        state=b"\x80",
    )
    return _with(run, fields)


def after(run: RunDoc, **fields: Any) -> RunDoc:
    """The run one commit later."""
    return _with(run, {"revision": run.head.revision + 1, **fields})


def moved(run: RunDoc, **fields: Any) -> Update:
    """The update to the run one commit later."""
    return Update(run, after(run, **fields))


def _with(run: RunDoc, fields: dict[str, Any]) -> RunDoc:
    if "worker" in fields:
        worker = fields.pop("worker")
        fields["lease"] = None if worker is None else Lease(worker=worker, fence=fields.get("fence", 1))
    head = {name: fields.pop(name) for name in list(fields) if name in HEAD_FIELDS}
    return replace(run, head=replace(run.head, **head), **fields)


def record(kind: Literal["timer", "human", "signal"] = "human", **fields: Any) -> Record:
    """An open wait."""
    return Record(kind=kind, ask="a", attempt=1, place=0, opened_at=1000, **fields)


def rich_run(run_id: str = "rich") -> RunDoc:
    """A run that has something in every part, under keys of any text."""
    odd = ("", "/", "a/b", "ünï-☃-𝄞", 'it\'s "%s" $.x', "nul\0", "x" * 500)
    origin = {
        "input": bytes(range(256)),
        "tenant": "t",
        "priority": -100,
        "user": "u",
        "tags": odd,
        "meta": b"\x81\xa1a\x01",
        "idempotency_key": "k",
        "parent": Parent(run="p", step="s", key="k", group="g", branch="b", index=3, generation=1, detached=True),
        "scheduled": Scheduled(at=5, local="2026-03-29 02:30", zone="Europe/Berlin", gap=True),
        "start_id": 2**63 - 1,
    }
    error = ErrorDoc(code="c", message="m", type="t", step="s", traceback="x" * 5000)
    trial = Try(attempt=1, worker="w", started_at=1, ended_at=2, outcome="failed")
    note = WaitNote(kind="human", name="n", opened_at=1, resolved_at=2, outcome="value")
    step = StepDoc(
        status="done",
        output=b"",
        error=error,
        tries=(trial,),
        waits=(note,),
        history=(OutputVersion(version=1, output=b"", at=3),),
        compensation=CompensationDoc(status="failed", error=error, tries=(trial,), retry_at=4),
    )
    errand = Errand(kind="nudge", due_at=9, run="p", output=b"", error=error)
    return sample(
        run_id,
        **origin,
        commits=(1, 2**63 - 1),
        error=error,
        state=b"\0" * 100_000,
        steps=dict.fromkeys(odd, step),
        records={key: record(tokens=(key,), shape=b"", due_at=7) for key in odd},
        pieces=dict.fromkeys(odd, Piece(value=b"", round=2, done=True)),
        checkpoints=dict.fromkeys(odd, b"\xc1"),
        memos=dict.fromkeys(odd, Memo(step="s", value=b"")),
        inbox=dict.fromkeys(odd, Message(signal="s", payload=b"", id="i", at=1)),
        seen=dict.fromkeys(odd, 2**53),
        outbox=dict.fromkeys(odd, errand),
    )


UNENCODABLE = sample("unencodable", pause_reason="\ud800")
KEYED = sample("r1", idempotency_key="k")
