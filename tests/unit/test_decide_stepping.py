"""What the holder reports of a step, and what the same write does next."""

from typing import Any

import pytest

from streamline_trio._core.documents import ErrorDoc
from streamline_trio._core.due import NOW
from streamline_trio._core.errors import InvalidState, LeaseLost, StepNotFound
from streamline_trio._core.happenings import (
    AttemptFailed,
    CancelAsked,
    CancelUnwound,
    CheckpointSaved,
    DeadlinePassed,
    Finished,
    HandedBack,
    Memoized,
    PauseAsked,
    Skipped,
    StateSet,
    Suspended,
    UnpauseAsked,
    WaitOpened,
    WentTo,
)
from tests.unit.story import BOOM, T0, Story, human, pack, plan_of, timer, unpack


def test_finishing_begins_the_next_step_in_the_same_write():
    """No stored state lies between the end of one step and the beginning of the next."""
    story = Story("ab").later(1.5).finishes({"n": 2})
    assert (story.statuses, story.head.current_step, story.head.revision) == ("done running", "b", 2)
    done = story.step("a")
    assert (unpack(done.output), done.ended_at, done.position) == ({"n": 2}, T0 + 1500, 1)
    assert story.events == ["step.completed", "step.started"]
    assert (story.facts[0].step, story.facts[0].attempt, story.facts[0].duration) == ("a", 1, 1.5)
    assert story.head.lease.worker == "w1"


def test_finished_steps_are_numbered_in_the_order_in_which_they_finished():
    """A step that runs again, after going back, finishes anew: the order is that of time, not of the plan."""
    story = Story("ab").finishes().held(WentTo, target="a").finishes().finishes()
    assert [story.step(step).position for step in "ab"] == [2, 3]
    assert story.head.finished == 3


def test_finishing_the_last_step_settles_the_run():
    """Done: no lease, no due time, an end, and the last step's output is the run's."""
    story = Story("ab").finishes(1).later(1).finishes(2)
    head = story.head
    assert (head.status, head.lease, head.due_at, head.current_step) == ("done", None, None, None)
    assert (head.ended_at, head.output_step, head.error) == (T0 + 1000, "b", None)
    assert story.events == ["step.completed", "workflow.completed"]


def test_a_clock_set_back_makes_no_negative_duration():
    """Regression: another machine's clock may be behind the one that began the step."""
    story = Story("a").later(-5).finishes()
    assert story.facts[0].duration == 0
    assert story.head.updated_at == T0


def test_a_leaving_worker_begins_nothing():
    """`release`: the result is kept, the next step is ready for whoever comes, nothing of it has begun."""
    story = Story("ab").finishes(1, release=True)
    assert (story.status, story.statuses, story.head.current_step) == ("running", "done pending", "b")
    assert (story.head.lease, story.head.due_at, story.events) == (None, NOW, ["step.completed"])
    story.claims("w2")
    assert (story.step("b").attempts, story.step("b").worker) == (1, "w2")


def test_a_paused_run_finishes_its_step_and_begins_no_other():
    """Pause lets the handler that runs end its step; what follows waits to be unpaused."""
    story = Story("ab").does(PauseAsked()).finishes(1)
    assert (story.statuses, story.head.lease, story.head.due_at) == ("done pending", None, None)
    story.later(60).does(UnpauseAsked())
    assert story.head.due_at is not None
    assert story.head.due_at <= story.now
    assert story.claims().statuses == "done running"


@pytest.mark.parametrize("end", [lambda s: s.finishes(1), lambda s: s.held(Skipped)], ids=["finished", "skipped"])
def test_what_ends_after_a_cancellation_is_recorded_and_the_run_cancelled(end):
    """A run that is to be cancelled cannot become done, not even by its last step; the result is not lost."""
    story = end(Story("a").does(CancelAsked(reason="stop")))
    assert (story.status, story.head.cancel_reason) == ("cancelled", "stop")
    assert story.statuses in {"done", "skipped"}
    assert story.events[-1] == "workflow.cancelled"
    assert "step.failed" not in story.events


def test_a_deadline_beats_the_next_step_but_not_a_result():
    """Overdue at the end of a step: its output is kept, and the run fails instead of beginning the next."""
    story = Story(plan_of("ab", timeout=10.0)).later(11).finishes(1)
    assert (story.status, story.statuses) == ("failed", "done pending")
    assert (story.head.error.code, story.head.current_step) == ("workflow.timeout", "b")
    assert story.events == ["step.completed", "workflow.failed"]


def test_a_deadline_does_not_take_back_the_last_step():
    """With its last step finished the run is done, however late."""
    assert Story(plan_of("a", timeout=10.0)).later(11).finishes().status == "done"


def test_a_skipped_step_counts_no_call_and_has_no_output():
    """S013: skipped, zero duration, ended; the run goes on in the same write."""
    story = Story("ab").later(1).held(Skipped)
    step = story.step("a")
    assert (step.status, step.attempts, step.output) == ("skipped", 0, None)
    assert step.started_at == step.ended_at == T0 + 1000
    assert (story.events, story.statuses) == (["step.skipped", "step.started"], "skipped running")


def test_the_output_of_a_run_is_that_of_the_last_step_that_ran():
    """A skipped last step leaves the output of the one before."""
    assert Story("ab").finishes(1).held(Skipped).head.output_step == "a"


# --- failures ----------------------------------------------------------------------------------------------


def test_a_failed_attempt_waits_for_its_retry_without_a_lease():
    """The backoff is a row in the store, not a sleeping task."""
    story = Story(plan_of("a", attempts=3, delay=2.0)).later(1).fails()
    step = story.step()
    assert (story.status, story.statuses, story.head.lease) == ("waiting", "pending", None)
    assert step.retry_at == story.head.due_at == T0 + 3000
    assert (step.attempts, step.failures, step.error) == (1, 1, BOOM)
    assert [(one.outcome, one.attempt, one.message) for one in step.tries] == [("failed", 1, "boom")]
    assert story.events == ["step.retry_scheduled"]
    told = story.facts[0]
    assert (told.attempt, told.attempts, told.retry_at_millis, told.message) == (1, 3, T0 + 3000, "boom")


def test_backoff_grows_by_failures():
    """The wait after the second failure is the first one times the factor."""
    story = Story(plan_of("a", attempts=3, delay=2.0)).fails().at_due().claims().fails()
    assert story.step().retry_at == T0 + 2000 + 4000


def test_a_retry_without_delay_begins_in_the_same_write():
    """Delay 0: nothing waits, nobody else is asked; the same holder enters the handler again."""
    story = Story(plan_of("a", delay=0.0)).fails()
    assert (story.status, story.step().attempts, story.head.revision) == ("running", 2, 2)
    assert story.head.lease.fence == story.head.fence == 1
    assert story.events == ["step.retry_scheduled", "step.started"]
    assert story.step().retry_at is None


def test_a_retry_without_delay_waits_for_a_leaving_worker_or_a_pause():
    """Neither a worker that leaves nor a paused run begins an attempt."""
    assert Story(plan_of("a", delay=0.0)).fails(release=True).statuses == "pending"
    assert Story(plan_of("a", delay=0.0)).does(PauseAsked()).fails().statuses == "pending"


@pytest.mark.parametrize("attempts", [1, 2, 4])
def test_the_limit_of_attempts_is_the_limit_of_failures(attempts):
    """`attempts` calls in total, the first included; then the run fails with the last error."""
    story = Story(plan_of("ab", attempts=attempts, delay=0.0))
    for _ in range(attempts - 1):
        assert story.fails().status == "running"
    story.fails(ErrorDoc(code="c", message="the last", step="a"))
    assert (story.status, story.statuses) == ("failed", "failed pending")
    assert (story.step("a").attempts, story.step("a").failures) == (attempts, attempts)
    assert story.head.error.message == story.step("a").error.message == "the last"
    assert story.events == ["step.failed", "workflow.failed"]


def test_crashes_do_not_exhaust_the_attempts():
    """Recovery is bounded by itself: the step still has all the failures it may have."""
    story = Story(plan_of("a", attempts=2, delay=0.0)).takes_over().takes_over().fails()
    assert (story.status, story.step().attempts, story.step().failures) == ("running", 4, 1)
    assert story.fails().status == "failed"


def test_what_is_not_retriable_fails_at_once():
    """Whatever the limit says."""
    story = Story(plan_of("a", attempts=9)).fails(retriable=False)
    assert (story.status, story.step().failures) == ("failed", 1)


def test_a_failure_after_a_cancellation_cancels():
    """No retry begins; the failure stays in the history of attempts."""
    story = Story("a").does(CancelAsked()).fails()
    assert (story.status, story.head.error) == ("cancelled", None)
    assert (story.step("a").status, story.step("a").error.code) == ("failed", "workflow.cancelled")
    assert story.step("a").tries[-1].message == "boom"


def test_a_failure_after_the_deadline_fails_the_run():
    """Retries do not outlive the run's own timeout."""
    assert Story(plan_of("a", timeout=10.0)).later(10).fails().head.error.code == "workflow.timeout"


def test_the_history_of_attempts_is_bounded():
    """A step that fails for ever does not fill its document."""
    story = Story(plan_of("a", attempts=1000, delay=0.0))
    for _ in range(30):
        story.fails()
    tries = story.step().tries
    assert [one.attempt for one in tries] == list(range(11, 31))


# --- goto --------------------------------------------------------------------------------------------------


def test_going_forward_skips_the_origin():
    """The origin counts as skipped, those between stay pending, the target begins."""
    story = Story("abcd").held(WentTo, target="c")
    assert (story.statuses, story.head.current_step) == ("skipped pending running pending", "c")
    assert story.events == ["step.skipped", "step.started"]
    assert story.facts[0].goto == "c"
    assert story.finishes().finishes().statuses == "skipped pending done done"


def test_going_back_resets_from_the_target_to_the_origin():
    """They run again from attempt 1 in a new generation; earlier steps stay as they are."""
    story = Story("abc").finishes(1).finishes(2).held(WentTo, target="b")
    assert story.statuses == "done running pending"
    assert [story.step(step).generation for step in "abc"] == [0, 1, 1]
    assert (story.step("b").attempts, story.step("b").output) == (1, None)
    assert unpack(story.step("a").output) == 1


def test_going_to_itself_runs_it_afresh():
    """Attempts from 1, a new generation, the history of attempts kept."""
    story = Story(plan_of("ab", delay=0.0)).fails().held(WentTo, target="a")
    step = story.step("a")
    assert (step.attempts, step.failures, step.generation, step.status) == (1, 0, 1, "running")
    assert [one.outcome for one in step.tries] == ["failed"]


def test_goto_drops_checkpoints_and_records_and_keeps_memos():
    """What a reset step had saved is gone; what `once` remembers is not."""
    story = Story("ab").held(CheckpointSaved, name="x", value=pack(1)).held(Memoized, key="k", value=pack(1))
    story.finishes().held(CheckpointSaved, name="x", value=pack(2)).opens(human()).held(WentTo, target="b")
    assert set(story.run.checkpoints) == {"a/x"}
    assert set(story.run.memos) == {"k"}
    assert story.run.records == {}


def test_goto_unknown():
    """An unknown target is refused, the step goes on."""
    story = Story("ab")
    before = story.run
    with pytest.raises(StepNotFound):
        story.held(WentTo, target="z")
    assert story.run is before


def test_a_step_reset_by_goto_is_not_the_source_of_the_output():
    """Regression: after going back, the run's output was sought in a step that has none any more."""
    story = Story("ab").finishes(1).held(WentTo, target="a").held(Skipped).held(Skipped)
    assert (story.status, story.head.output_step) == ("done", None)


@pytest.mark.parametrize("ask", ["paused", "release"])
def test_goto_of_a_paused_run_or_a_leaving_worker_begins_nothing(ask):
    """The run stands at the target, ready or paused."""
    story = Story("ab")
    if ask == "paused":
        story.does(PauseAsked())
    story.held(WentTo, target="b", release=ask == "release")
    assert (story.head.current_step, story.statuses, story.head.lease) == ("b", "skipped pending", None)


# --- leaving -----------------------------------------------------------------------------------------------


def test_a_call_that_is_handed_back_does_not_count():
    """The attempt neither counts nor ends: whoever comes enters the handler in the same attempt."""
    story = Story("a").hands_back()
    assert (story.status, story.statuses, story.head.due_at) == ("running", "running", NOW)
    assert (story.step().attempts, story.step().tries, story.events) == (1, (), [])
    story.claims("w2")
    assert (story.step().attempts, story.head.recoveries, story.head.fence) == (1, 0, 2)
    assert story.events == []


def test_handing_back_leaves_nobody_to_attend():
    """What others had committed is seen by whoever comes next."""
    story = Story("a").opens(human()).answers()
    assert story.head.attention
    assert not story.hands_back().head.attention


def test_handing_back_what_is_to_be_cancelled_cancels_it():
    """Nobody need claim it first."""
    assert Story("a").does(CancelAsked()).hands_back().status == "cancelled"


def test_a_cancelled_handler_that_has_unwound_settles_the_run():
    """Cancellation of a leased run takes effect with the holder's word."""
    story = Story("ab").does(CancelAsked(reason="stop")).held(CancelUnwound)
    assert (story.status, story.statuses) == ("cancelled", "failed pending")
    assert story.events == ["step.failed", "workflow.cancelled"]
    assert story.step("a").error.message == "the run was cancelled: stop"


def test_the_holder_sees_the_deadline_pass():
    """Its monotonic clock decides, also when the wall clock is a little behind."""
    story = Story(plan_of("a", timeout=10.0)).later(9.9).held(DeadlinePassed)
    assert (story.status, story.head.error.code) == ("failed", "workflow.timeout")
    assert story.events == ["step.failed", "workflow.failed"]


def test_a_cancellation_beats_the_deadline():
    """Both at once: what somebody asked for wins."""
    story = Story(plan_of("a", timeout=10.0)).does(CancelAsked()).later(10).held(DeadlinePassed)
    assert story.status == "cancelled"


# --- who may report, and about what ------------------------------------------------------------------------

REPORTS: dict[Any, dict[str, Any]] = {
    Finished: {"output": b""},
    Skipped: {},
    AttemptFailed: {"error": BOOM, "retriable": True},
    WentTo: {"target": "a"},
    Suspended: {"asks": (timer(T0),)},
    WaitOpened: {"ask": human()},
    CheckpointSaved: {"name": "n", "value": b""},
    Memoized: {"key": "k", "value": b""},
    StateSet: {"state": b""},
    HandedBack: {},
    CancelUnwound: {},
    DeadlinePassed: {},
}


@pytest.mark.parametrize("kind", REPORTS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("worker", "fence"), [("w1", 2), ("w1", 0), ("w2", 1)])
def test_another_worker_or_fence_cannot_report(kind, worker, fence):
    """Every happening of a holder is refused with `LeaseLost` under any lease but the present one."""
    story = Story("ab")
    before = story.run
    happening = story.by_holder(kind, **REPORTS[kind])
    with pytest.raises(LeaseLost):
        story.does(type(happening)(**{**_fields(happening), "worker": worker, "fence": fence}))
    assert story.run is before


@pytest.mark.parametrize(
    "kind", [kind for kind in REPORTS if "step" in kind.__struct_fields__ and kind is not Memoized]
)
def test_only_the_running_step_is_reported_on(kind):
    """A report about a step that is not the one that runs is refused."""
    story = Story("ab")
    with pytest.raises(InvalidState, match="step b is not the one that runs"):
        story.held(kind, **REPORTS[kind], step="b")


def _fields(happening):
    return {name: getattr(happening, name) for name in happening.__struct_fields__}


# --- what a handler keeps ----------------------------------------------------------------------------------


def test_what_a_handler_keeps_survives_its_failure():
    """State, checkpoints and memos are durable at once; a failed attempt takes nothing back."""
    story = Story("a").held(StateSet, state=pack({"n": 9}))
    story.held(CheckpointSaved, name="x", value=pack(1)).held(Memoized, key="k", value=pack(2)).fails()
    assert unpack(story.run.state) == {"n": 9}
    assert (story.run.checkpoints, story.run.memos["k"].step) == ({"a/x": pack(1)}, "a")


def test_a_checkpoint_is_overwritten_and_a_memo_is_not():
    """Checkpoints hold the last value, `once` the first; a memo that is there already changes nothing."""
    story = Story("a").held(CheckpointSaved, name="x", value=pack(1)).held(CheckpointSaved, name="x", value=pack(2))
    assert story.run.checkpoints["a/x"] == pack(2)
    story.held(Memoized, key="k", value=pack(1))
    before = story.run
    assert story.held(Memoized, key="k", value=pack(2)).run is before
    assert before.memos["k"].value == pack(1)
