"""A run goes over to another version, or loses the worker that had its code: what that one write does."""

from typing import Any

import pytest
from msgspec.structs import replace

from streamline_trio._core.decide import decide
from streamline_trio._core.documents import Lease, Piece
from streamline_trio._core.errors import InvalidState, ValidationError
from streamline_trio._core.events import WorkflowMigrated
from streamline_trio._core.happenings import (
    CancelAsked,
    CheckpointSaved,
    LeaseLapsed,
    Memoized,
    Migrated,
    PauseAsked,
    UnpauseAsked,
)
from tests.unit.story import Story, human, pack, plan_of, timer, unpack


def migrates(story: Story, steps: str = "abc", current: str | None = "a", ids: Any = None, **fields: Any) -> Story:
    """Move the story to version 2 with these steps; `ids` are new ids with the old ones."""
    story.plan = plan_of(steps, version="2")
    ids = {step: step for step in story.run.steps} if ids is None else ids
    return story.does(Migrated(worker="w9", steps=ids, current_step=current, **fields))


def test_a_migration_is_a_claim():
    """One write: version, fingerprint, fence, lease, and what the run was due for."""
    story = Story("abc").finishes(1).suspends(timer(1_005_000)).at_due()
    before = story.run
    migrates(story, "abx", "b")
    head = story.head
    assert (head.version, head.fingerprint) == ("2", story.plan.fingerprint)
    assert (head.revision, head.fence, head.lease) == (before.head.revision + 1, 2, Lease(worker="w9", fence=2))
    assert (story.status, story.statuses, story.record("timer#0").outcome) == (
        "running",
        "done running pending",
        "fired",
    )
    assert story.events == ["workflow.migrated", "workflow.resumed"]
    migrated = story.facts[0]
    assert isinstance(migrated, WorkflowMigrated)
    assert (migrated.from_version, migrated.version, migrated.revision) == ("1", "2", head.revision)


@pytest.mark.parametrize(
    "story",
    [
        pytest.param(lambda: Story("a"), id="held"),
        pytest.param(lambda: Story("a").suspends(human()), id="not due"),
        pytest.param(lambda: Story("a").hands_back().does(PauseAsked()), id="paused"),
        pytest.param(
            lambda: Story(plan_of("a", timeout=5.0)).hands_back().does(PauseAsked()).later(6),
            id="paused and overdue",
        ),
        pytest.param(lambda: Story("a").finishes(), id="done"),
    ],
)
def test_what_cannot_be_migrated_is_refused(story):
    """Only an unleased run that is due and not paused, and nothing of it changes."""
    told = story()
    before = told.run
    with pytest.raises(InvalidState):
        migrates(told, "a", "a")
    assert told.run is before


def test_everything_of_a_step_follows_its_new_id():
    """Output, position, checkpoints and memos; and its idempotency keys stay those of the old id."""
    story = Story("ab").held(CheckpointSaved, name="n", value=pack(5))
    story.held(Memoized, key="m", value=pack(6)).finishes(7).hands_back()
    migrates(story, "xb", "b", {"x": "a", "b": "b"})
    step = story.step("x")
    assert (unpack(step.output), step.position, step.keyed, story.step("b").keyed) == (7, 1, "a", "")
    assert story.run.checkpoints == {"x/n": pack(5)}
    assert (story.run.memos["m"].step, unpack(story.run.memos["m"].value)) == ("x", 6)
    assert story.head.output_step == "x"
    story.hands_back()
    migrates(story, "yb", "b", {"y": "x", "b": "b"})
    assert story.step("y").keyed == "a", "through any number of migrations"


def test_what_is_left_out_is_gone_but_for_its_memos():
    """A dropped step leaves nothing, and the output of the run is that of the step before it."""
    story = Story("abc").finishes(1).held(CheckpointSaved, name="n", value=pack(5))
    story.held(Memoized, key="m", value=pack(6)).finishes(2).hands_back()
    migrates(story, "ac", "c", {"a": "a", "c": "c"})
    assert set(story.run.steps) == {"a", "c"}
    assert story.run.checkpoints == {}
    assert unpack(story.run.memos["m"].value) == 6, "its function has run, and must not run again"
    assert story.head.output_step == "a"


def test_a_step_that_shall_run_again_is_as_after_a_rewind():
    """Another generation, so that its idempotency keys are new."""
    story = Story("ab").finishes(1).hands_back()
    migrates(story, "ab", "a", {})
    assert (story.step("a").generation, story.step("a").attempts, story.step("a").output) == (1, 1, None)
    assert story.head.output_step is None
    assert story.statuses == "running pending"


def test_waits_stay_with_their_step_and_go_with_it():
    """Records and pieces are those of the current step: under a new id too, and of no other step."""
    story = Story("ab").suspends(human()).answers(1)
    story.run = replace(story.run, pieces={"k": Piece(value=pack(1))})
    before = story.run
    migrates(story, "xb", "x", {"x": "a"})
    assert story.run.records == before.records
    assert story.run.pieces == before.pieces
    assert story.statuses == "running pending"
    story.run = before
    migrates(story, "xb", "x", {"b": "a"})
    assert story.run.records == {}
    assert story.run.pieces == {}
    assert story.statuses == "running pending"
    assert story.events == ["workflow.migrated", "step.started"]


@pytest.mark.parametrize(
    ("steps", "current", "ids", "why"),
    [
        ("abc", "x", {}, "current_step: w 2 has no step 'x'"),
        ("abc", None, {}, "current_step: a run that has begun stands at a step"),
        ("abc", "a", {"a": "a"}, r"steps\['a'\]: it is done and would run again"),
        ("bca", "b", {"a": "a", "b": "b"}, r"steps\['a'\]: it is done and would run again"),
        ("abc", "b", {"a": "a", "x": "a"}, "steps: 'a' cannot become both 'a' and 'x'"),
    ],
)
def test_what_fits_no_plan_is_refused(steps, current, ids, why):
    """A migration that would run what has finished, or stand nowhere, changes nothing."""
    story = Story("abc").finishes(1).hands_back()
    before = story.run
    with pytest.raises(ValidationError, match=why):
        migrates(story, steps, current, ids)
    assert story.run is before


def test_a_draft_stands_nowhere():
    """It begins with the first step of the new plan."""
    with pytest.raises(ValidationError, match="a run that has not begun stands nowhere"):
        migrates(Story("ab", draft=True), "xy", "y")
    story = migrates(Story("ab", draft=True), "xy", None)
    assert story.statuses == "running pending"
    assert story.events == ["workflow.migrated", "workflow.started", "step.started"]


def test_state_and_outputs_are_replaced():
    """And only those that are told."""
    story = Story("abc").finishes(1).finishes(2).hands_back()
    migrates(story, "abc", "c", outputs={"a": pack("new")}, state=pack({"n": 9}))
    assert [unpack(story.step(step).output) for step in "ab"] == ["new", 2]
    assert unpack(story.run.state) == {"n": 9}
    story.hands_back()
    migrates(story, "abc", "c")
    assert unpack(story.run.state) == {"n": 9}


def test_a_migration_settles_what_is_overdue():
    """The deadline that the run began with holds: nothing of it begins in the new version."""
    story = Story(plan_of("ab", timeout=5.0)).hands_back().later(6)
    migrates(story, "ab", "a")
    assert (story.status, story.head.error.code, story.head.version) == ("failed", "workflow.timeout", "2")


# --- releases ----------------------------------------------------------------------------------------------------


def lapse(lost: str = "w1", recoveries: int = 5) -> LeaseLapsed:
    return LeaseLapsed(worker="w9", lost=lost, max_recoveries=recoveries)


def test_a_release_makes_the_run_ready():
    """The lease goes, the recovery and the crash are counted, and the run is due at once."""
    story = Story("ab").finishes().does(lapse())
    head = story.head
    assert (head.lease, head.due_at, head.ready_at, head.attention) == (None, 0, story.now, False)
    assert (head.recoveries, head.streak, head.fence) == (1, 1, 1)
    assert (story.status, story.statuses, story.step().tries[-1].outcome) == ("running", "done pending", "crashed")
    assert story.events == ["workflow.recovered"]
    story.claims("w3")
    assert (story.head.recoveries, story.step().attempts, story.head.fence) == (1, 2, 2)


@pytest.mark.parametrize("limit", [0, 2])
def test_releases_are_bounded_as_takeovers_are(limit):
    """One more than the limit in a row, in whatever mixture, is the end of the run."""
    story = Story("ab")
    for number in range(limit):
        story.does(lapse(recoveries=limit)).claims("w1") if number % 2 else story.takes_over("w1", limit)
    story.does(lapse(recoveries=limit))
    assert (story.status, story.head.dead_lettered, story.head.recoveries) == ("failed", True, limit + 1)


def test_a_release_does_what_needs_no_code():
    """A cancellation that was asked for, or a deadline that has passed, settles the run; a pause stays."""
    asked = Story("a").does(CancelAsked(reason="no")).does(lapse())
    assert (asked.status, asked.head.cancel_reason) == ("cancelled", "no")
    late = Story(plan_of("a", timeout=5.0)).later(6).does(lapse())
    assert (late.status, late.head.error.code) == ("failed", "workflow.timeout")
    both = Story(plan_of("a", timeout=5.0)).does(CancelAsked()).later(6).does(lapse())
    assert both.status == "cancelled"
    paused = Story("a").does(PauseAsked()).does(lapse())
    assert (paused.status, paused.head.due_at, paused.head.paused) == ("running", None, True)
    assert paused.does(UnpauseAsked()).head.due_at == 0


@pytest.mark.parametrize(
    "story",
    [lambda: Story("a").hands_back(), lambda: Story("a").takes_over("w2"), lambda: Story("a").finishes()],
    ids=["handed back", "taken over", "done"],
)
def test_only_the_lease_of_the_lost_worker_is_released(story):
    """Whoever has the run now keeps it."""
    told = story()
    before = told.run
    with pytest.raises(InvalidState, match="worker w1 does not hold it"):
        told.does(lapse())
    assert told.run is before


def test_a_claim_stores_the_fingerprint_it_is_driven_by():
    """The definition may have changed under the same version."""
    story = Story("ab").hands_back()
    changed = plan_of("abx")
    assert story.head.fingerprint != changed.fingerprint
    story.plan = changed
    assert story.claims("w2").head.fingerprint == changed.fingerprint
    decision = decide(story.run, lapse("w2"), plan_of("ab"), story.now)
    assert decision.run.head.fingerprint == changed.fingerprint, "who only releases does not drive it"
