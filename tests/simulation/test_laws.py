"""The laws about several documents or processes bite, and bite nothing that is allowed."""

from typing import Any

import msgspec
import pytest

from streamline_trio import MemoryStore
from streamline_trio._core.documents import (
    CompensationDoc,
    Errand,
    Head,
    Lease,
    Memo,
    Message,
    Origin,
    Parent,
    Record,
    RunDoc,
    StepDoc,
)
from streamline_trio._core.store import PutSide, Route
from streamline_trio._runtime.worker import WORKERS, WorkerDoc
from streamline_trio.testing._laws_of_children import Offspring
from streamline_trio.testing._laws_of_versions import LiveVersions, check_migration
from streamline_trio.testing._witness import Witness, writing

ORIGIN = Origin(id="r", workflow="w", start_id=1, created_at=0, input=b"")
PARENT = Parent(run="p", step="s", key="k", group="c")
DETACHED = msgspec.structs.replace(PARENT, detached=True)
OPEN = Record(kind="child", ask="a", attempt=1, place=0, opened_at=0, group="c")
LOOSE = msgspec.structs.replace(OPEN, kind="join", keeps_losers=True)
ERRAND = Errand(kind="cancel", due_at=0, group="c")


def a_run(id: str = "r", status: Any = "running", *, parent: Parent | None = None, **fields: Any) -> RunDoc:
    """A run that has begun unless it is a draft; what is no part of the document is of its head."""
    parts = {name: fields.pop(name) for name in list(fields) if name in RunDoc.__struct_fields__}
    begun = None if status == "draft" else 0
    given = {"version": "1.0.0", "fingerprint": "", "updated_at": 0, "started_at": begun, **fields}
    origin = msgspec.structs.replace(ORIGIN, id=id, parent=parent)
    return RunDoc(origin=origin, head=Head(status=status, **given), state=b"", **parts)


class Family:
    """A parent, its child and what was written of both."""

    def __init__(self) -> None:
        self.newest: dict[str, RunDoc] = {}
        self.deleted: set[str] = set()
        self.revived: set[str] = set()
        self._laws = Offspring(self.newest.__getitem__, self.deleted, self.revived)

    def write(self, run: RunDoc) -> list[str]:
        """What is wrong with that."""
        before = self.newest.get(run.id)
        self.newest[run.id] = run
        return self._laws.follow(before, run)

    def waits(self, record: Record = OPEN) -> None:
        """The parent waits for the child."""
        assert not self.write(a_run("p", "waiting", records={"k": record}))

    def child(self, status: str = "running", parent: Parent = PARENT, **fields: Any) -> list[str]:
        """The child is written."""
        return self.write(a_run("c", status, parent=parent, **fields))

    def leaves(self, **fields: Any) -> list[str]:
        """The parent does not wait any more."""
        return self.write(a_run("p", **{"status": "running", **fields}))


def test_a_child_that_nobody_cancels_is_found():
    """Proves that a child must not go on once its parent has left it and has nothing left to do about it."""
    family = Family()
    family.waits()
    family.child()
    assert family.leaves() == [
        "c: goes on though p no longer waits for it, and nothing is left to be done about it"
    ]


def test_an_errand_must_come_to_something():
    """Proves that the child may go on while its cancellation is still to be done, and must not afterwards."""
    cases: tuple[tuple[str, dict[str, Any], bool], ...] = (
        ("running", {}, True),
        ("draft", {}, True),
        ("running", {"cancel_requested": True}, False),
        ("cancelled", {}, False),
        ("compensating", {}, False),
    )
    for status, fields, is_wrong in cases:
        family = Family()
        family.waits()
        family.child("draft" if status == "draft" else "running")
        assert not family.leaves(outbox={"1": ERRAND})
        assert not family.child(status, **fields)
        assert bool(family.leaves()) == is_wrong, status


def test_what_may_go_on():
    """Proves that a child that has been deleted or taken up again, and losers that are kept, are no findings."""
    for spared in ("deleted", "revived", "kept"):
        family = Family()
        family.waits(LOOSE if spared == "kept" else OPEN)
        family.child()
        if spared != "kept":
            getattr(family, spared).add("c")
        over = msgspec.structs.replace(LOOSE, outcome="value")
        assert not family.leaves(records={"k": over} if spared == "kept" else {}), spared
        assert not family.leaves(), spared


def test_losers_that_are_not_kept_are_dropped():
    """Proves that a join which is over leaves no branch going on, and a kept one that is left open neither."""
    for record, left in ((msgspec.structs.replace(LOOSE, keeps_losers=False), "value"), (LOOSE, None)):
        family = Family()
        family.waits(record)
        family.child()
        over = {} if left is None else {"k": msgspec.structs.replace(record, outcome=left)}
        assert family.leaves(records=over)


@pytest.mark.parametrize(("parent", "is_wrong"), [(PARENT, True), (DETACHED, False)])
def test_a_child_that_is_stored_too_late_does_not_begin(parent, is_wrong):
    """Proves that a child stored after its parent has left must not begin; of a kept loser nobody can know."""
    family = Family()
    family.waits()
    assert not family.leaves()
    assert not family.child("draft", parent)
    assert bool(family.child("running", parent)) == is_wrong
    assert not family.child("running", parent), "it began once"


def test_a_late_child_may_be_cancelled():
    """Proves that the end of an orphan is none of its beginning."""
    family = Family()
    family.waits()
    family.leaves()
    family.child("draft")
    assert not family.child("cancelled", started_at=None)


def test_an_early_child_may_begin_by_a_claim_that_read_before():
    """Proves that a draft which was stored in time may begin after its parent has left, to be cancelled then."""
    family = Family()
    family.waits()
    family.child("draft")
    assert not family.leaves(outbox={"1": ERRAND})
    assert not family.child("running")
    assert family.leaves()


# --- versions ----------------------------------------------------------------------------------------------------


def worker(expected: int | None = None, *, versions: tuple[str, ...] = ("1.0.0",), state: Any = "live") -> PutSide:
    routes = tuple(Route("w", version) for version in versions)
    doc = WorkerDoc(state=state, lease=9, started_at=0, beat_at=0, routes=routes)
    return PutSide(WORKERS, "w1", expected, msgspec.msgpack.encode(doc))


@pytest.mark.parametrize(
    ("writes", "is_wrong"),
    [
        ("live run", True),
        ("live run beat", True),
        ("run live", False),
        ("live run dead", False),
        ("live run gone", False),
        ("other run", False),
        ("live dead run", False),
    ],
)
def test_no_run_is_taken_over_from_a_version_that_lives(writes, is_wrong):
    """Proves that a worker which has the version, and had it when the run last changed, keeps its runs."""
    laws = LiveVersions()
    before, after = a_run(), a_run(version="2.0.0")
    acts = {
        "live": lambda: laws.worker(worker()),
        "beat": lambda: laws.worker(worker(1)),
        "dead": lambda: laws.worker(worker(1, state="dead")),
        "gone": lambda: laws.worker(PutSide(WORKERS, "w1", 1, None)),
        "other": lambda: laws.worker(worker(versions=("2.0.0",))),
        "run": lambda: laws.run(None, before),
    }
    for write in writes.split():
        acts[write]()
    told = laws.run(before, after)
    assert told == (["r: was taken over from 1.0.0, which worker w1 has"] if is_wrong else [])


DONE = StepDoc(status="done", position=1, output=b"1", ended_at=5)
UNDONE = msgspec.structs.replace(DONE, compensation=CompensationDoc(status="running", attempts=1))


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({}, {}, ""),
        ({"steps": {"a": DONE}}, {"steps": {"b": msgspec.structs.replace(DONE, keyed="a")}}, ""),
        ({"steps": {"a": DONE}}, {}, ""),
        ({"steps": {"a": DONE}}, {"status": "compensating", "steps": {"a": UNDONE}}, ""),
        ({"lease": Lease(worker="w", fence=1)}, {}, "from a worker that holds it"),
        ({"paused": True}, {}, "a paused run"),
        ({"status": "compensating"}, {}, "while compensating"),
        ({}, {"steps": {"a": DONE}}, "step a has finished by a migration"),
        ({"steps": {"a": DONE}}, {"steps": {"a": DONE, "b": DONE}}, "step b has finished"),
        ({"memos": {"m": Memo(step="a", value=b"1")}}, {"memos": {"m": Memo(step="b", value=b"1")}}, ""),
        ({"memos": {"m": Memo(step="a", value=b"1")}}, {}, "what `once` remembers"),
        ({"inbox": {"1": Message(signal="s", payload=b"", id="1", at=0)}}, {}, "the inbox"),
    ],
)
def test_what_a_migration_may_do(before, after, told):
    """Proves that a takeover of what somebody holds, or that makes up or loses something, is found."""
    old, new = a_run(**before), a_run(version="2.0.0", **after)
    if not told:
        check_migration(old, new)
        return
    with pytest.raises(AssertionError, match=told):
        check_migration(old, new)


class Process:
    """The store object of a process."""

    routes = frozenset({Route("w", "1.0.0")})


@pytest.mark.parametrize(("version", "is_wrong"), [("1.0.0", False), ("2.0.0", True)])
def test_who_takes_a_run_has_its_version(version, is_wrong):
    """Proves that a claim by a process without the code is found."""
    witness = Witness(MemoryStore())
    before = a_run(version=version, revision=1)
    after = a_run(version=version, revision=2, lease=Lease(worker="x", fence=1), fence=1)
    token = writing.set(Process())
    try:
        witness._check_code(before, after)
        witness._check_code(before, a_run(version=version, revision=2, status="cancelled"))
    finally:
        writing.reset(token)
    assert bool(witness.wrong) == is_wrong


@pytest.mark.parametrize(
    ("taken_by", "fields", "is_wrong"),
    [
        ("other", {"recoveries": 1}, False),
        ("other", {}, True),
        ("own", {}, False),
        ("other", {"status": "cancelled"}, False),
        ("other", {"lease": Lease(worker="x", fence=1)}, False),
    ],
)
def test_a_run_that_is_taken_from_a_worker_is_counted(taken_by, fields, is_wrong):
    """Proves that a lease which another process gives up or takes without counting that is found."""
    witness, own, other = Witness(MemoryStore()), Process(), Process()
    token = writing.set(own)
    try:
        witness._applied(PutSide(WORKERS, "x", None, worker().body))
        writing.set(own if taken_by == "own" else other)
        witness._check_code(a_run(lease=Lease(worker="x", fence=1), fence=1), a_run(**{"fence": 1, **fields}))
    finally:
        writing.reset(token)
    assert bool(witness.wrong) == is_wrong


def test_pinning_an_output_is_no_change_of_what_is_finished():
    """Proves that a finished step may be given an older output, and no other one."""
    pinned = msgspec.structs.replace(DONE, output=b"0", pinned=1, pinned_at=9)
    for step, is_wrong in ((pinned, False), (msgspec.structs.replace(pinned, pinned=None), True)):
        witness = Witness(MemoryStore())
        witness._compare_steps(a_run(steps={"a": DONE}), a_run(steps={"a": step}))
        assert bool(witness.wrong) == is_wrong
