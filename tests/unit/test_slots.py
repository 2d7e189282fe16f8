"""Buckets of slots, and how a run stands to one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamline_trio._core.decide import ForkRequest, StartRequest, admit, decide, fork
from streamline_trio._core.decide.outbox import PATIENCE
from streamline_trio._core.documents import ErrorDoc, Origin, RunDoc, SlotDoc
from streamline_trio._core.errors import ConcurrencyLimitReached, InvalidState
from streamline_trio._core.happenings import (
    AttemptFailed,
    CancelAsked,
    Claimed,
    ErrandsDone,
    Finished,
    Happening,
    Migrated,
    PauseAsked,
    Retried,
    Rewound,
    SlotAsked,
    SlotGranted,
    SlotRefused,
    UnpauseAsked,
)
from streamline_trio._core.plan import Plan, StepPlan, make_plan
from streamline_trio._core.retry import RetryPolicy
from streamline_trio._core.slots import (
    EMPTY,
    SlotBucket,
    bucket_of,
    decode_bucket,
    encode_bucket,
    entered,
    has_use_for,
    parts_of,
    told,
    unfounded,
    without,
)
from streamline_trio._core.start_options import ConcurrencyPlan, WhenFull

NOW = 1_000_000
WORKER = "w-1"


def plan(limit: int | None = 2, when_full: WhenFull = "queue") -> Plan:
    return make_plan(
        workflow="flow",
        version="1",
        steps=(StepPlan(id="one", retry=RetryPolicy(attempts=1)),),
        timeout=None,
        max_step_logs=1,
        concurrency=None if limit is None else ConcurrencyPlan(limit=limit, when_full=when_full),
    )


PLAN, STRICT, FREE = plan(), plan(2, "reject"), plan(None)
QUEUED = SlotDoc(bucket="\nflow\na", limit=2, acquisition=7, ticket=70, state="queued")
ASKED = msgspec.structs.replace(QUEUED, state="asked", rejects=True, attended=True)
HELD = msgspec.structs.replace(QUEUED, state="held")


def new(slot: SlotDoc | None = QUEUED, *, start_at: int | None = None, with_plan: Plan = PLAN) -> RunDoc:
    origin = Origin(id="r", workflow="flow", start_id=1, created_at=NOW, input=b"\x80")
    return admit(StartRequest(origin=origin, state=b"\x80", start_at=start_at, slot=slot), with_plan, NOW).run


def then(run: RunDoc, *happenings: Happening, with_plan: Plan = PLAN, now: int = NOW) -> RunDoc:
    for happening in happenings:
        run = decide(run, happening, with_plan, now).run
    return run


def errands(run: RunDoc) -> list[tuple[str, int]]:
    return [(errand.kind, errand.acquisition) for _, errand in sorted(run.outbox.items())]


def slot_of(run: RunDoc) -> SlotDoc:
    assert run.head.slot is not None
    return run.head.slot


GRANTED = SlotGranted(acquisition=7)
CLAIMED = Claimed(worker=WORKER)


def begun(with_plan: Plan = PLAN) -> RunDoc:
    return then(new(), GRANTED, CLAIMED, with_plan=with_plan)


def failed(with_plan: Plan = PLAN) -> RunDoc:
    error = ErrorDoc(code="c", message="m")
    run = then(begun(), AttemptFailed(worker=WORKER, fence=1, step="one", error=error, retriable=False))
    return then(run, ErrandsDone(numbers=tuple(run.outbox)), with_plan=with_plan)


# --- the run -----------------------------------------------------------------------------------------------


def test_a_draft_that_wants_a_slot_is_not_due_and_has_an_errand():
    """Proves that nobody begins it before it has a slot, and that any worker looks for one if its starter dies."""
    run = new()
    assert (run.head.due_at, run.head.lease, errands(run)) == (None, None, [("admit", 7)])
    assert run.head.errand_at == NOW + PATIENCE
    with pytest.raises(InvalidState):
        then(run, CLAIMED)


def test_a_grant_makes_it_due_and_ends_the_errand():
    """Proves that grant and claim are one write where there is a worker, and that a repeated grant is nothing."""
    run = then(new(), GRANTED)
    assert (run.head.due_at, slot_of(run).state, run.outbox, run.head.errand_at) == (0, "held", {}, None)
    assert then(run, GRANTED) is run
    commit = 5
    granted = decide(new(), GRANTED, PLAN, NOW, commit)
    claimed = decide(granted.run, CLAIMED, PLAN, NOW, commit)
    assert claimed.run.head.revision == new().head.revision + 1
    assert claimed.run.head.lease is not None


@pytest.mark.parametrize("acquisition", [6, 8])
def test_a_grant_of_another_wish_is_refused(acquisition):
    """Proves that a grant counts only for the wish it was given for."""
    with pytest.raises(InvalidState):
        then(new(), SlotGranted(acquisition=acquisition))


def test_whatever_settles_gives_its_slot_back():
    """Proves that the write that settles a run says that its slot is to be given back; also while it queues."""
    done = then(begun(), Finished(worker=WORKER, fence=1, step="one", output=b"\x80"))
    for run in (done, failed_now(), then(new(), CancelAsked()), then(then(new(), GRANTED), CancelAsked())):
        assert (slot_of(run).state, errands(run)) == ("left", [("release", 7)])
        assert run.head.errand_at == NOW + PATIENCE


def failed_now() -> RunDoc:
    error = ErrorDoc(code="c", message="m")
    return then(begun(), AttemptFailed(worker=WORKER, fence=1, step="one", error=error, retriable=False))


def test_a_late_draft_asks_when_its_time_comes():
    """Proves that a delayed start is due at its time, and that its claim puts it in line; it does not begin it."""
    later = msgspec.structs.replace(QUEUED, state="later")
    run = new(later, start_at=NOW + 500)
    assert (run.head.due_at, run.outbox) == (NOW + 500, {})
    assert errands(then(run, CancelAsked())) == []
    run = then(run, CLAIMED, now=NOW + 600)
    assert (run.head.status, run.head.lease, run.head.due_at, slot_of(run).state) == ("draft", None, None, "queued")
    assert slot_of(run).ticket == (NOW + 500) * 1000
    assert errands(run) == [("admit", 7)]
    refusing = new(msgspec.structs.replace(later, rejects=True), start_at=NOW)
    assert slot_of(then(refusing, CLAIMED)).state == "asked"


def test_pausing_a_queued_run_lets_those_behind_move_up():
    """Proves that pause and unpause both have somebody look at the queue, and that its place is kept."""
    run = then(new(), ErrandsDone(numbers=("00000001",)))
    paused = then(run, PauseAsked())
    assert errands(paused) == [("admit", 7)]
    unpaused = then(then(paused, ErrandsDone(numbers=("00000002",))), UnpauseAsked())
    assert errands(unpaused) == [("admit", 7)]
    assert slot_of(unpaused) == QUEUED
    assert errands(then(then(new(), GRANTED), PauseAsked())) == []


def test_a_refused_draft_fails():
    """Proves that a refusal nobody waits for is told by the run, and that a late one changes nothing."""
    run = then(new(ASKED, with_plan=STRICT), SlotRefused(acquisition=7, holding=2), with_plan=STRICT)
    assert run.head.error is not None
    assert (run.head.status, run.head.error.code) == ("failed", ConcurrencyLimitReached.code)
    assert errands(run) == [("release", 7)]
    held = then(new(ASKED), GRANTED)
    assert then(held, SlotRefused(acquisition=7)) is held


@pytest.mark.parametrize(
    "happening", [Retried(acquisition=9, ticket=90), Rewound(to="one", acquisition=9, ticket=90)]
)
def test_what_is_taken_up_again_queues_under_a_new_wish(happening):
    """Proves that retry and rewind ask anew, behind those who wait already, by the limit that holds now."""
    run = then(failed(), happening, with_plan=plan(5))
    slot = slot_of(run)
    assert (run.head.status, run.head.due_at, run.head.lease) == ("running", None, None)
    assert (slot.state, slot.acquisition, slot.ticket, slot.limit) == ("queued", 9, 90, 5)
    assert errands(run) == [("admit", 9)]
    assert then(run, SlotGranted(acquisition=9)).head.due_at == 0


def test_where_nobody_queues_it_asks_first():
    """Proves that a settled run stays as it is until it has its slot, and again when it is refused."""
    run = failed(STRICT)
    happening = Retried(acquisition=9, ticket=90)
    with pytest.raises(ConcurrencyLimitReached):
        then(run, happening, with_plan=STRICT)
    asked = then(run, SlotAsked(acquisition=9, ticket=90), with_plan=STRICT)
    assert (asked.head.status, asked.head.error, asked.head.due_at) == ("failed", run.head.error, None)
    assert errands(asked) == [("admit", 9)]
    assert then(asked, SlotAsked(acquisition=10), with_plan=STRICT) is asked
    with pytest.raises(ConcurrencyLimitReached):
        then(asked, Retried(acquisition=10), with_plan=STRICT)
    with pytest.raises(InvalidState):
        then(asked, SlotGranted(acquisition=9), with_plan=STRICT)
    refused = then(asked, SlotRefused(acquisition=9), with_plan=STRICT)
    assert (slot_of(refused).state, errands(refused)) == ("left", [("release", 9)])
    taken = then(asked, happening, with_plan=STRICT)
    assert (taken.head.status, taken.head.due_at, slot_of(taken).state, taken.outbox) == ("running", 0, "held", {})


def test_a_limit_that_is_gone_is_asked_of_nobody():
    """Proves that a version without a limit takes a run up, and over, without a slot."""
    assert then(failed(), Retried(acquisition=9), with_plan=FREE).head.due_at == 0
    migrated = then(
        then(new(), GRANTED), Migrated(worker=WORKER, steps={"one": "one"}, current_step=None), with_plan=FREE
    )
    assert (migrated.head.slot, errands(migrated)) == (None, [("release", 7)])
    assert migrated.head.lease is not None


def test_a_limit_that_is_new_is_asked_for_by_a_migration():
    """Proves that a run which is taken over by a version with a limit queues before it goes on; else it is kept."""
    run = then(new(None, with_plan=FREE), with_plan=FREE)
    migrated = then(run, Migrated(worker=WORKER, steps={}, current_step=None, slot=QUEUED))
    assert (migrated.head.lease, migrated.head.due_at, slot_of(migrated)) == (None, None, QUEUED)
    assert errands(migrated) == [("admit", 7)]
    kept = then(then(new(), GRANTED), Migrated(worker=WORKER, steps={}, current_step=None), with_plan=plan(9))
    assert (slot_of(kept).state, slot_of(kept).limit, kept.head.lease is not None) == ("held", 9, True)


def test_a_fork_asks_for_a_slot_of_its_own():
    """Proves that a fork is a draft that wants a slot."""
    wish = msgspec.structs.replace(QUEUED, acquisition=11)
    request = ForkRequest(from_step="one", id="f", start_id=2, slot=wish)
    forked = fork(failed(), request, PLAN, NOW).run
    assert (forked.head.due_at, slot_of(forked), errands(forked)) == (None, wish, [("admit", 11)])


# --- the bucket --------------------------------------------------------------------------------------------


@given(tenant=st.none() | st.text(max_size=5), key=st.none() | st.text(min_size=1, max_size=5))
def test_a_name_tells_its_parts(tenant, key):
    """Proves that names are unambiguous: tenant, workflow and key can be had back."""
    assert parts_of(bucket_of(tenant, "flow", key)) == (tenant, "flow", key)


def run_with(slot: SlotDoc | None) -> RunDoc:
    run = new(None, with_plan=FREE)
    return msgspec.structs.replace(run, head=msgspec.structs.replace(run.head, slot=slot))


def test_an_entry_is_for_one_wish():
    """Proves which runs have a use for an entry: those that want or hold that very acquisition."""
    assert all(has_use_for(run_with(slot), 7) for slot in (QUEUED, ASKED, HELD))
    for state in ("later", "left"):
        assert not has_use_for(run_with(msgspec.structs.replace(QUEUED, state=state)), 7)
    assert not has_use_for(run_with(QUEUED), 8)
    assert not has_use_for(run_with(None), 7)
    assert not has_use_for(None, 7)
    bucket = SlotBucket(holders={"a": 7, "b": 7, "c": 7}, limit=3)
    runs: dict[str, Any] = {"a": run_with(HELD), "b": None, "x": None}
    assert unfounded(bucket, runs) == [("b", 7)]


def test_an_empty_bucket_is_not_stored():
    """Proves that a key nobody uses leaves no document behind."""
    bucket = entered(EMPTY, "a", 7, 1)
    assert bucket is not None
    body = encode_bucket(bucket)
    assert body is not None
    assert decode_bucket(body) == bucket
    assert encode_bucket(without(bucket, [("a", 7)])) is None


def test_a_release_takes_only_its_own_entry():
    """S271: releasing twice, or another acquisition, frees nobody else's slot."""
    bucket = entered(EMPTY, "a", 7, 1)
    assert bucket is not None
    assert without(bucket, [("a", 6), ("b", 7)]) is bucket
    assert entered(bucket, "a", 7, 1) is bucket
    assert entered(bucket, "b", 8, 1) is None
    assert without(without(bucket, [("a", 7)]), [("a", 7)]).holders == {}
    assert told(bucket, {"b"}) is bucket
    assert told(bucket, {"a"}).untold == ()
