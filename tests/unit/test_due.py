"""When a worker should look at a run: every kind of run, and that none that could go on is forgotten."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from streamline_trio._core.documents import Head, Lease, Origin, Record, StepDoc
from streamline_trio._core.due import NOW, due_at, due_since
from streamline_trio._core.status import ACTIVE, SETTLED

ORIGIN = Origin(id="r", workflow="w", start_id=1, created_at=10, input=b"")
LEASE = Lease(worker="w1", fence=1)
PARKED = StepDoc(status="waiting")
BACKOFF = StepDoc(status="pending", retry_at=40)
HUMAN = Record(kind="human", ask="", attempt=1, place=0, opened_at=10)
OVER = replace(HUMAN, due_at=11, outcome="timed_out")


def test_what_is_due_at_once_shows_since_when():
    """Ready runs are due by every clock, and people are told since when: readiness, or the start of a draft."""
    assert due_since(ORIGIN, head("running", ready_at=20, due_at=NOW)) == 20
    assert due_since(ORIGIN, head("draft", due_at=NOW)) == ORIGIN.created_at
    assert due_since(ORIGIN, head("waiting", due_at=50)) == 50


def head(status, **fields):
    return Head(version="1", fingerprint="", status=status, updated_at=10, **fields)


def timer(at):
    return replace(HUMAN, kind="timer", due_at=at)


CASES = {
    "a draft, now": (head("draft"), None, [], NOW),
    "a draft for later": (head("draft", start_at=90), None, [], 90),
    "a draft whose deadline comes first": (head("draft", start_at=90, deadline=80), None, [], 80),
    "a paused draft": (head("draft", paused=True), None, [], None),
    "leased": (head("running", lease=LEASE, ready_at=20, deadline=30), None, [], None),
    "ready": (head("running", ready_at=20), None, [], NOW),
    "ready, with a deadline": (head("running", ready_at=20, deadline=30), None, [], NOW),
    "ready and paused": (head("running", ready_at=20, paused=True), None, [], None),
    "ready, paused, with a deadline": (head("running", ready_at=20, paused=True, deadline=30), None, [], 30),
    "a retry": (head("waiting"), BACKOFF, [], 40),
    "a retry, while a wait of an earlier attempt is open": (head("waiting"), BACKOFF, [timer(5)], 40),
    "a paused retry": (head("waiting", paused=True), BACKOFF, [], None),
    "a timer": (head("waiting"), PARKED, [timer(50)], 50),
    "the earliest of two": (head("waiting"), PARKED, [timer(50), timer(45)], 45),
    "a timer beside a person": (head("waiting"), PARKED, [HUMAN, timer(50)], 50),
    "a person": (head("waiting"), PARKED, [HUMAN], None),
    "a person, with a deadline": (head("waiting", deadline=70), PARKED, [HUMAN], 70),
    "what is over does not count": (head("waiting"), PARKED, [OVER, timer(50)], 50),
    "a paused timer": (head("waiting", paused=True), PARKED, [timer(50)], None),
    "a paused timer, with a deadline": (head("waiting", paused=True, deadline=70), PARKED, [timer(50)], 70),
    "done": (head("done", deadline=70, ready_at=20), None, [], None),
    "failed in a retry": (head("failed"), BACKOFF, [], None),
}


@pytest.mark.parametrize("case", CASES)
def test_cases(case):
    """Each kind of run is due when something of it is, and not before."""
    of, step, records, expected = CASES[case]
    assert due_at(of, step, records) == expected


instants = st.integers(0, 100)
records = st.lists(
    st.builds(
        replace,
        st.just(HUMAN),
        kind=st.sampled_from(["timer", "human", "signal"]),
        due_at=st.none() | instants,
        outcome=st.sampled_from([None, None, "value"]),
    ),
    max_size=3,
)
heads = st.builds(
    head,
    st.sampled_from(sorted(ACTIVE - {"compensating"})),
    ready_at=instants,
    start_at=st.none() | instants,
    deadline=st.none() | instants,
    paused=st.booleans(),
)


@given(heads, st.sampled_from([PARKED, BACKOFF]), records)
def test_what_could_go_on_by_itself_is_due(of, step, waits):
    """Unleased, active, unpaused: None only if it is parked on waits that no time ends, and has no deadline."""
    found = due_at(of, step, waits)
    timed = any(record.is_open and record.due_at is not None for record in waits)
    on_outside = of.status == "waiting" and step is PARKED and not timed
    if not of.paused:
        assert (found is None) == (on_outside and of.deadline is None)
    if of.deadline is not None:
        assert found is not None
        assert found <= of.deadline


@given(heads, st.sampled_from([PARKED, BACKOFF]), records, st.sampled_from(sorted(SETTLED)))
def test_nobody_looks_at_what_is_held_or_settled(of, step, waits, settled):
    """Neither a leased run nor a settled one is ever due."""
    assert due_at(replace(of, lease=LEASE), step, waits) is None
    assert due_at(replace(of, status=settled), step, waits) is None
