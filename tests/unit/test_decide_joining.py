"""`decide` on children: what their ends come to, and what a run has to do elsewhere."""

from typing import Any

import pytest
from msgspec.structs import replace

from streamline_trio._core import happenings as h
from streamline_trio._core.decide import Decision, StartRequest, admit, decide
from streamline_trio._core.decide.outbox import LONGEST_PATIENCE, PATIENCE
from streamline_trio._core.documents import ErrorDoc, Origin, Parent, Record, RunDoc
from streamline_trio._core.errors import InvalidState
from streamline_trio._core.joins import may_start_more, room_of
from streamline_trio._core.plan import Plan, StepPlan, make_plan
from streamline_trio._core.retry import RetryPolicy

NOW = 1_000
PLAN: Plan = make_plan(
    workflow="w",
    version="1",
    steps=(
        StepPlan(id="one", retry=RetryPolicy(attempts=3, delay=1, jitter=0)),
        StepPlan(id="two", retry=RetryPolicy()),
    ),
    timeout=None,
    max_step_logs=0,
)
PARENT = Parent(run="p", step="s", key="k", group="g", index=0)


class Story:
    """A run and what happened to it."""

    def __init__(self, parent: Parent | None = None) -> None:
        origin = Origin(id="r", workflow="w", start_id=1, created_at=NOW, input=b"\xc0", parent=parent)
        self.now = NOW
        self.run: RunDoc = admit(StartRequest(origin=origin, state=b"\xc0"), PLAN, NOW, "me").run
        self.decision: Decision | None = None

    def tell(self, kind: type[Any], **fields: Any) -> RunDoc:
        """Let it happen."""
        if issubclass(kind, h.Held):
            fields |= {"worker": "me", "fence": self.run.head.fence}
        self.decision = decide(self.run, kind(**fields), PLAN, self.now)
        self.run = self.decision.run
        return self.run

    def park(self, **fields: Any) -> RunDoc:
        """Wait for children."""
        return self.tell(h.Suspended, step="one", asks=(ask(**fields),))

    def end(self, *ends: Any) -> RunDoc:
        """Children end: (index, status)."""
        given = tuple(h.ChildEnd(key="a", group="G", index=index, status=status) for index, status in ends)
        return self.tell(h.ChildrenEnded, ends=given)


def ask(**fields: Any) -> h.Ask:
    given = {"kind": "join", "policy": "all", "branches": 3, "started": 3, **fields}
    return h.Ask(key="a", ask="x", place=0, group="G", **given)


def errands(run: RunDoc) -> list[tuple[Any, ...]]:
    return [(e.kind, e.run or e.group, e.ended, e.due_at) for e in run.outbox.values()]


@pytest.mark.parametrize(
    ("policy", "ends", "outcome"),
    [
        ("all", [(0, "done"), (1, "done")], None),
        ("all", [(0, "done"), (1, "done"), (2, "done")], "value"),
        ("all", [(1, "failed")], "failed"),
        ("all", [(1, "cancelled")], "failed"),
        ("all", [(1, "compensated")], "failed"),
        ("any", [(0, "failed"), (1, "compensation_failed")], None),
        ("any", [(2, "done")], "value"),
        ("any", [(0, "failed"), (1, "failed"), (2, "failed")], "value"),
        ("race", [(2, "failed")], "value"),
        ("settled", [(0, "failed"), (1, "done")], None),
        ("settled", [(0, "failed"), (1, "done"), (2, "cancelled")], "value"),
    ],
)
def test_what_ends_come_to(policy, ends, outcome):
    """Proves that each policy resolves with the end that it waits for, in a write that makes the run ready."""
    for batches in ([ends], [[end] for end in ends]):
        story = Story()
        story.park(policy=policy)
        for batch in batches:
            story.end(*batch)
        assert story.run.records["a"].outcome == outcome
        assert story.run.head.status == ("waiting" if outcome is None else "running")
        assert story.run.head.due_at == (None if outcome is None else 0)


@pytest.mark.parametrize("change", [{"key": "b"}, {"group": "H"}])
def test_ends_of_others_change_nothing(change):
    """Proves that an end for another suspension, or one asked since, is not taken for ours."""
    story = Story()
    before = story.park()
    end = replace(h.ChildEnd(key="a", group="G", status="done"), **change)
    assert story.tell(h.ChildrenEnded, ends=(end,)) is before


def test_a_nudge_that_comes_twice_or_late_changes_nothing():
    """Proves that a repeated end, and one for a join that is over, leave the run as it is: no commit, no event."""
    story = Story()
    story.park(policy="any")
    once = story.end((0, "failed"))
    assert story.end((0, "failed")) is once
    assert story.end((0, "done")) is once
    over = story.end((1, "done"))
    assert story.end((2, "done")) is over


def test_a_leased_parent_is_asked_to_look():
    """Proves that an end while the handler still runs is recorded, and its holder's attention asked for."""
    story = Story()
    story.tell(h.WaitOpened, step="one", ask=ask(started=0))
    run = story.end((0, "done"), (1, "done"), (2, "done"))
    assert (run.head.status, run.head.attention, run.records["a"].outcome) == ("running", True, "value")
    run = story.park()
    assert run.head.lease is not None, "what is over does not park"


def test_an_end_before_the_park_lets_the_next_branch_start():
    """Proves that a branch that ended while the handler was unwinding is not waited for: the run does not park."""
    story = Story()
    story.tell(h.WaitOpened, step="one", ask=ask(started=0, concurrency=1))
    story.end((0, "done"))
    run = story.park(started=1, concurrency=1)
    assert (run.head.status, run.head.lease is None) == ("running", False)
    run = story.park(started=2, concurrency=1)
    assert run.head.status == "waiting"


def test_a_parked_join_is_woken_only_when_a_branch_may_start():
    """Proves that with `concurrency` an end wakes the parent exactly when there is a further branch to start."""
    story = Story()
    story.park(policy="settled", started=2, concurrency=2)
    assert story.end((0, "done")).head.status == "running"
    story = Story()
    story.park(policy="settled", started=3, concurrency=3)
    assert story.end((0, "done")).head.status == "waiting"


def test_how_far_the_starting_has_come_never_goes_back():
    """Proves that a stale report of a chunk changes nothing, and that the park carries the last one."""
    story = Story()
    story.tell(h.WaitOpened, step="one", ask=ask(started=0, branches=300))
    story.tell(h.BranchesStarted, step="one", key="a", group="G", started=200)
    before = story.run
    assert story.tell(h.BranchesStarted, step="one", key="a", group="G", started=100) is before
    assert story.tell(h.BranchesStarted, step="one", key="a", group="H", started=300) is before
    assert story.park(started=100, branches=300).records["a"].started == 200


# --- the outbox ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["done", "failed", "cancelled"])
def test_a_child_that_settles_nudges_its_parent_in_the_same_write(end):
    """Proves that the settling write of a child holds what its parent is to be told, due for others later."""
    story = Story(PARENT)
    if end == "done":
        story.tell(h.Finished, step="one", output=b"\x01")
        run = story.tell(h.Finished, step="two", output=b"\x02")
    elif end == "failed":
        error = ErrorDoc(code="c", message="m", traceback="secret")
        run = story.tell(h.AttemptFailed, step="one", error=error, retriable=False)
    else:
        story.tell(h.CancelAsked, reason="why")
        run = story.tell(h.CancelUnwound)
    (errand,) = run.outbox.values()
    assert (errand.kind, errand.run, errand.key, errand.group, errand.status) == ("nudge", "p", "k", "g", end)
    assert run.head.errand_at == errand.due_at == NOW + PATIENCE
    assert (errand.output, errand.output_step) == ((b"\x02", "two") if end == "done" else (None, ""))
    told = None if errand.error is None else (errand.error.message, errand.error.traceback)
    assert told == {"done": None, "failed": ("m", None), "cancelled": ("why", None)}[end]
    assert run.head.due_at is None, "an errand is no reason to claim"


def test_a_run_without_a_parent_that_waits_has_nothing_to_tell():
    """Proves that neither a plain run nor one that merely names a parent puts anything into its outbox."""
    for parent in (None, Parent(run="p", step="s")):
        story = Story(parent)
        story.tell(h.Finished, step="one", output=b"")
        assert not story.tell(h.Finished, step="two", output=b"").outbox


def test_a_branch_of_a_join_does_not_carry_its_output():
    """Proves that the nudge of a branch is small: its output is read from its run."""
    story = Story(replace(PARENT, branch="b", index=4))
    story.tell(h.Finished, step="one", output=b"")
    run = story.tell(h.Finished, step="two", output=b"x" * 1000)
    (errand,) = run.outbox.values()
    assert (errand.index, errand.output) == (4, None)


@pytest.mark.parametrize("how", ["cancel", "policy", "rewind", "replaced", "left out", "failed"])
def test_children_that_are_no_longer_wanted_are_cancelled_in_the_same_write(how):
    """Proves that whatever ends a suspension with open children leaves an errand that names those that are left."""
    story = Story()
    story.park(policy="any")
    story.end((1, "failed"))
    if how == "cancel":
        run = story.tell(h.CancelAsked)
    elif how == "policy":
        run = story.end((0, "done"))
    elif how == "rewind":
        run = story.tell(h.Rewound, to="one")
    else:
        story = Story()
        story.tell(h.WaitOpened, step="one", ask=ask(policy="any"))
        story.end((1, "failed"))
        if how == "failed":
            run = story.tell(h.AttemptFailed, step="one", error=ErrorDoc(code="c", message="m"), retriable=False)
        elif how == "replaced":
            other = h.Ask(key="a", ask="y", place=0, kind="join", group="H", branches=1)
            run = story.tell(h.WaitOpened, step="one", ask=other)
        else:
            other = h.Ask(key="t", ask="timer", place=0, kind="timer", due_at=NOW + 5)
            run = story.tell(h.Suspended, step="one", asks=(other,))
    ended = "3" if how == "policy" else "2"
    assert errands(run) == [("cancel", "G", ended, NOW + PATIENCE)]


@pytest.mark.parametrize("how", ["kept", "complete", "child"])
def test_nothing_is_cancelled_that_is_kept_or_over(how):
    """Proves that losers that are kept, and children that have all ended, are no errand."""
    story = Story()
    if how == "kept":
        story.park(policy="any", keeps_losers=True)
        assert not story.end((0, "done")).outbox
    elif how == "complete":
        story.park()
        assert not story.end((0, "done"), (1, "done"), (2, "done")).outbox
    else:
        story.park(kind="child", branches=1, started=1, policy="")
        assert not story.end((0, "done")).outbox


def test_kept_losers_are_cancelled_with_their_parent():
    """Proves that `cancel_losers=False` keeps them from the join's end, not from that of its parent."""
    story = Story()
    story.park(policy="any", keeps_losers=True)
    assert [errand.kind for errand in story.tell(h.CancelAsked).outbox.values()] == ["cancel"]


def test_errands_leave_the_outbox_when_they_are_done():
    """Proves that a done errand is removed, once, and that the run then has none that falls due."""
    story = Story(PARENT)
    story.tell(h.CancelAsked)
    run = story.tell(h.CancelUnwound)
    (number,) = run.outbox
    done = story.tell(h.ErrandsDone, numbers=(number,))
    assert (done.outbox, done.head.errand_at, done.head.status) == ({}, None, "cancelled")
    assert story.tell(h.ErrandsDone, numbers=(number,)) is done


def test_an_errand_that_is_taken_up_is_put_off():
    """Proves that of two who take up an errand the second finds it not due, and that waiting grows to a limit."""
    story = Story(PARENT)
    story.tell(h.CancelAsked)
    run = story.tell(h.CancelUnwound)
    (number,) = run.outbox
    assert story.tell(h.ErrandsTaken, numbers=(number,)) is run, "not due yet"
    waits = list[int]()
    for _ in range(30):
        story.now = story.run.outbox[number].due_at
        run = story.tell(h.ErrandsTaken, numbers=(number,))
        assert story.tell(h.ErrandsTaken, numbers=(number,)) is run
        assert run.head.errand_at == run.outbox[number].due_at
        waits.append(run.outbox[number].due_at - story.now)
    assert waits[:3] == [2 * PATIENCE, 4 * PATIENCE, 8 * PATIENCE]
    assert waits[-1] == LONGEST_PATIENCE


def test_an_answer_by_hand_cancels_the_child():
    """S227: a payload is taken for the child's output, in the write that also has the child cancelled."""
    story = Story()
    story.park(kind="child", branches=1, started=1, policy="")
    with pytest.raises(InvalidState, match="its child"):
        story.tell(h.Answered)
    run = story.tell(h.Answered, payload=b"\x05")
    assert (run.records["a"].outcome, run.records["a"].value) == ("value", b"\x05")
    assert errands(run) == [("cancel", "G", "", NOW + PATIENCE)]


def test_what_ended_before_it_was_known_to_be_started_makes_no_room():
    """Proves that after a crash between an insert and its note, no more branches start than may be under way."""
    known = Record(kind="join", ask="x", attempt=1, place=0, opened_at=1, branches=9, concurrency=2)
    assert room_of(replace(known, started=1)) == 1
    assert room_of(replace(known, started=1, ended="2")) == 1, "branch 1 has ended, and is not among the started"
    assert room_of(replace(known, started=2, ended="2")) == 1
    assert not may_start_more(replace(known, started=2, ended=""))
    assert not may_start_more(replace(known, started=9, ended="1ff"))
