"""A worker takes a run: what that one write does."""

import pytest

from streamline_trio._core.documents import ErrorDoc, Lease
from streamline_trio._core.errors import InvalidState, LeaseLost
from streamline_trio._core.happenings import CancelAsked, Finished, PauseAsked, Retried, UnpauseAsked
from tests.unit.story import Story, human, pack, plan_of, timer


def test_a_claim_takes_a_due_run_under_a_new_fence():
    """Revision and fence grow by one, the due time goes, the first step begins."""
    story = Story("a", draft=True).claims("w2")
    assert story.head.lease == Lease(worker="w2", fence=1)
    assert (story.head.revision, story.head.due_at, story.statuses) == (2, None, "running")


def test_what_was_decided_under_the_old_lease_is_refused():
    """A holder that lost its run cannot write: `LeaseLost`, whatever worker id it has."""
    story = Story("a")
    late = story.by_holder(Finished, output=pack(1))
    story.hands_back().claims("w1")
    before = story.run
    with pytest.raises(LeaseLost) as caught:
        story.does(late)
    assert caught.value.meta["run_id"] == "r1"
    assert story.run is before


@pytest.mark.parametrize(
    "story",
    [
        pytest.param(lambda: Story("a"), id="held"),
        pytest.param(lambda: Story("a").fails(), id="backing off"),
        pytest.param(lambda: Story("a").suspends(timer(2_000_000)), id="asleep"),
        pytest.param(lambda: Story("a").suspends(human()), id="waiting for a person"),
        pytest.param(lambda: Story("a", draft=True, start_at=2_000_000), id="delayed"),
        pytest.param(lambda: Story("a", draft=True).does(PauseAsked()), id="paused"),
        pytest.param(lambda: Story("a").finishes(), id="done"),
        pytest.param(lambda: Story("a").does(CancelAsked(lease_dead=True)), id="cancelled"),
    ],
)
def test_what_is_not_claimable_is_refused(story):
    """Only a run that is due, or whose worker is certainly gone, can be taken."""
    told = story()
    before = told.run
    with pytest.raises(InvalidState) as caught:
        told.claims()
    assert (caught.value.meta["action"], caught.value.meta["status"]) == ("claim", before.head.status)
    assert told.run is before


def test_a_claim_wakes_a_sleeper_in_the_same_write():
    """The timer fires, the handler is to be entered again: no new attempt."""
    story = Story("a").suspends(timer(1_005_000)).later(5).claims("w2")
    assert (story.record("timer#0").outcome, story.record("timer#0").resolved_at) == ("fired", 1_005_000)
    assert (story.status, story.step().attempts, story.step().worker) == ("running", 1, "w2")
    assert story.events == ["workflow.resumed"]


def test_a_claim_records_that_a_wait_timed_out():
    """The handler will be told `WaitTimedOut`; it is committed before anybody sees it."""
    story = Story("a").suspends(human(due_at=1_005_000)).later(6).claims()
    assert story.record("human#0").outcome == "timed_out"
    assert [(note.kind, note.outcome) for note in story.step().waits] == [("human", "timed_out")]


def test_only_what_is_due_fires():
    """Of two open waits the one whose time has come is over; the other stays open."""
    story = Story("a").suspends(timer(1_001_000), timer(1_009_000, key="=later", place=1)).later(1).claims()
    assert [story.record(key).outcome for key in ("timer#0", "=later")] == ["fired", None]


def test_a_claim_begins_the_attempt_that_is_due():
    """Backoff over: the next attempt begins in the claiming write."""
    story = Story("a").fails().at_due().claims("w2")
    assert (story.step().attempts, story.step().retry_at, story.step().worker) == (2, None, "w2")
    assert story.events == ["step.started"]


def test_a_claim_of_an_answered_run_only_takes_it():
    """The answer has already made it ready; the handler is entered again in the same attempt."""
    story = Story("a").suspends(human()).answers().claims()
    assert (story.events, story.step().attempts, story.head.ready_at) == ([], 1, None)


# --- workers that are gone ---------------------------------------------------------------------------------


def test_a_takeover_counts_the_crash_as_a_call_and_not_as_a_failure():
    """The attempt ends with its worker; the next one begins at once; the limit of failures is untouched."""
    story = Story("a").takes_over("w2")
    step = story.step()
    assert (step.attempts, step.failures, step.worker) == (2, 0, "w2")
    assert [(one.attempt, one.worker, one.outcome) for one in step.tries] == [(1, "w1", "crashed")]
    assert (story.head.recoveries, story.head.streak, story.head.fence) == (1, 1, 2)
    assert story.events == ["workflow.recovered", "step.started"]
    assert (story.facts[0].worker, story.facts[0].lost_worker) == ("w2", "w1")


def test_a_crash_replays_what_is_recorded():
    """Every outcome survives a crash, failed ones too, and so do checkpoints and open waits."""
    story = Story("a").suspends(human(due_at=1_001_000)).later(2).claims().opens(human("again", key="=again"))
    story.takes_over()
    assert story.record("human#0").outcome == "timed_out"
    assert story.record("=again").is_open


@pytest.mark.parametrize("max_recoveries", [0, 1, 5])
def test_dead_letter_at_exactly_one_more_than_the_limit(max_recoveries):
    """`max_recoveries` recoveries in a row are made; the next worker lost ends the run."""
    story = Story("ab")
    for _ in range(max_recoveries):
        assert story.takes_over(max_recoveries=max_recoveries).status == "running"
    story.takes_over(max_recoveries=max_recoveries)
    assert (story.status, story.head.dead_lettered, story.statuses) == ("failed", True, "failed pending")
    assert (story.head.error.code, story.head.error.step) == ("dead_lettered", "a")
    assert f"{max_recoveries} times" in story.head.error.message
    assert story.step("a").error.code == "dead_lettered"
    assert story.events == ["workflow.recovered", "workflow.dead_lettered", "step.failed", "workflow.failed"]
    assert story.head.fence == max_recoveries + 1, "nobody holds a settled run"


@pytest.mark.parametrize(
    "progress",
    [
        lambda story: story.finishes(),
        lambda story: story.suspends(timer(1_000_000)),
        lambda story: story.suspends(human()).answers().claims(),
    ],
    ids=["a finished step", "a suspension that is over", "an answered wait"],
)
def test_progress_ends_the_streak(progress):
    """Only recoveries without progress in between count towards the dead letter; the total stays."""
    story = progress(Story("ab").takes_over().takes_over())
    assert (story.head.streak, story.head.recoveries) == (0, 2)


def test_a_failed_attempt_is_no_progress():
    """A run that kills its worker every other attempt still ends."""
    story = Story(plan_of("a", delay=0.0)).takes_over().fails()
    assert story.head.streak == 1


def test_a_cancellation_beats_the_dead_letter():
    """What somebody asked for wins over what the engine would do by itself."""
    story = Story("a").does(CancelAsked(reason="stop")).takes_over(max_recoveries=0)
    assert (story.status, story.head.cancel_reason, story.head.error) == ("cancelled", "stop", None)
    assert not story.head.dead_lettered
    assert story.events == ["workflow.recovered", "workflow.cancelled"]


def test_a_takeover_of_a_paused_run_gives_it_no_holder():
    """While paused nothing begins: the crash is noted, the run waits to be unpaused."""
    story = Story("a").does(PauseAsked()).takes_over()
    assert (story.status, story.head.lease, story.head.due_at) == ("running", None, None)
    assert (story.statuses, story.head.fence) == ("pending", 1)
    story.does(UnpauseAsked()).claims("w3")
    assert (story.step().attempts, story.head.fence) == (2, 2)


# --- what a claim ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("story", "status"),
    [
        (lambda plan: Story(plan, draft=True), "pending"),
        (lambda plan: Story(plan).suspends(human()), "failed"),
        (lambda plan: Story(plan).hands_back(), "failed"),
        (lambda plan: Story(plan).does(PauseAsked()).finishes(), "done"),
    ],
    ids=["draft", "parked", "ready", "paused"],
)
def test_an_overdue_run_fails_when_it_is_claimed(story, status):
    """The run's own timeout is durable: whoever takes it too late fails it with `RunTimeout`."""
    told = story(plan_of("ab", timeout=10.0)).later(10).claims()
    assert (told.status, told.step("a").status) == ("failed", status)
    assert (told.head.error.code, told.head.error.type) == ("workflow.timeout", "RunTimeout")
    assert "10 s" in told.head.error.message
    assert (told.head.lease, told.events[-1]) == (None, "workflow.failed")


def test_a_plan_without_the_current_step_fails_the_run():
    """A definition that lacks the step where the run stands fails it with `VersionMismatch`."""
    story = Story("ab").suspends(human()).answers()
    story.plan = plan_of("xy")
    story.claims()
    assert (story.status, story.head.error.code) == ("failed", "workflow.version_mismatch")
    assert story.run.step("a").status == "failed"
    assert story.events == ["step.failed", "workflow.failed"]


def test_a_run_that_failed_before_it_began_can_be_retried():
    """Regression: such a run stands at no step, and its retry was undecidable when it was claimed."""
    story = Story(plan_of("ab", timeout=10.0), draft=True).later(10).claims()
    assert (story.status, story.head.current_step) == ("failed", None)
    story.does(Retried()).claims()
    assert (story.status, story.head.current_step, story.head.started_at) == ("running", "a", story.now)
    assert story.events == ["workflow.started", "step.started"]
    assert story.finishes().finishes().status == "done"


def test_the_failing_worker_is_named():
    """Regression: after a hand-over the failure was put down to the worker that had left."""
    error = ErrorDoc(code="c", message="m")
    story = Story("a").hands_back().claims("w2").fails(error)
    assert story.step().tries[-1].worker == "w2"
