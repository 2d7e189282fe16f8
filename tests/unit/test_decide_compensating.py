"""Undoing, write by write: what begins with the failure, what ends with the last compensation, and who holds it."""

from typing import Any

import pytest
from msgspec.structs import replace

from streamline_trio._core.documents import ErrorDoc, active_key
from streamline_trio._core.due import NOW
from streamline_trio._core.errors import InvalidState, LeaseLost
from streamline_trio._core.happenings import (
    CancelAsked,
    CancelUnwound,
    CheckpointSaved,
    DeadlinePassed,
    Finished,
    PauseAsked,
    Retried,
    Suspended,
    UndoFailed,
    Undone,
    UnpauseAsked,
)
from streamline_trio._core.plan import CompensationPlan, Plan, StepPlan, make_plan
from streamline_trio._core.retry import RetryPolicy
from tests.unit.story import BOOM, T0, Story, human, pack, plan_of, timer

SORRY = ErrorDoc(code="workflow.step.failed", message="sorry", type="ValueError", step="b")


def saga(
    steps: str = "abc",
    *,
    undoable: str = "ab",
    started: str = "",
    attempts: int = 2,
    delay: float = 1.0,
    timeout: float | None = None,
    on_cancel: bool = False,
) -> Plan:
    """Steps that fail at once; those in `undoable` have a compensation, those in `started` also half-way."""
    policy = RetryPolicy(attempts=attempts, delay=delay, jitter=0.0)

    def compensation(step: str) -> CompensationPlan | None:
        if step not in undoable + started:
            return None
        return CompensationPlan(retry=policy, when="started" if step in started else "finished")

    once = RetryPolicy(attempts=1)
    return make_plan(
        workflow="w",
        version="1",
        steps=tuple(StepPlan(id=step, retry=once, compensation=compensation(step)) for step in steps),
        timeout=timeout,
        max_step_logs=1000,
        compensate_on_cancel=on_cancel,
    )


def failed(plan: Plan | None = None, *, finished: int = 2, release: bool = False) -> Story:
    story = Story(plan or saga())
    for _ in range(finished):
        story.finishes("output")
    return story.fails(release=release)


def undoes(story: Story, **fields: Any) -> Story:
    return story.held(Undone, step=story.head.undo[0], **fields)


def fails_to_undo(story: Story, *, retriable: bool = True, **fields: Any) -> Story:
    return story.held(UndoFailed, step=story.head.undo[0], error=SORRY, retriable=retriable, **fields)


def compensation(story: Story, step: str) -> Any:
    return story.step(step).compensation


def test_the_failing_write_begins_the_first_compensation():
    """One write: the step fails, the run fails and turns back, and the newest step's compensation runs."""
    story = failed()
    assert (story.status, story.statuses, story.head.undo) == ("compensating", "done done failed", ("b", "a"))
    assert story.events == ["step.failed", "workflow.failed", "workflow.compensating"]
    assert story.facts[1].compensating
    assert story.facts[2].steps == ("b", "a")
    running = compensation(story, "b")
    assert (running.status, running.attempts, running.started_at, running.worker) == ("running", 1, T0, "w1")
    assert compensation(story, "a") is None
    assert (story.head.lease.fence, story.head.fence, story.head.due_at) == (1, 1, None)
    assert (story.head.error, story.head.ended_at, story.head.revision) == (BOOM, None, 4)


def test_the_end_of_one_compensation_begins_the_next_in_the_same_write():
    """No stored state lies between two compensations, nor between the last one and the end."""
    story = undoes(failed().later(2))
    assert (compensation(story, "b").status, compensation(story, "b").ended_at) == ("done", T0 + 2000)
    assert (compensation(story, "a").status, story.head.undo) == ("running", ("a",))
    assert story.events == ["step.compensated"]
    undoes(story.later(1))
    assert (story.status, story.head.lease, story.head.undo) == ("compensated", None, ())
    assert (story.head.ended_at, story.head.due_at, story.head.error) == (T0 + 3000, None, BOOM)
    assert story.events == ["step.compensated", "workflow.compensated"]


def test_nothing_to_undo_is_a_plain_failure():
    """Neither compensations nor anything done: the run settles as failed."""
    assert failed(plan_of("abc", attempts=1)).status == "failed"
    early = failed(finished=0)
    assert (early.status, early.head.undo, early.facts[-1].compensating) == ("failed", (), False)


def test_the_key_is_held_until_the_end():
    """An active run has its idempotency key; a compensating one is active."""
    story = Story(saga(), idempotency_key="k").finishes().fails()
    assert active_key(story.run) is not None
    assert active_key(undoes(story).run) is None


def test_open_waits_go_and_the_inbox_stays():
    """A compensating run waits for nobody; what was sent to it stays with it."""
    story = Story(saga("ab", undoable="a", timeout=10.0)).finishes().hears().suspends(human(token="t"))
    story.later(11).claims("w2")
    assert (story.status, story.run.records, len(story.run.inbox)) == ("compensating", {}, 1)
    assert story.hears("s", id="m2").status == "compensating"
    assert len(story.run.inbox) == 2


# --- every way to fail ---------------------------------------------------------------------------------------


def test_a_deadline_seen_by_a_claim():
    """Who claims an overdue run takes it under a new fence and begins to undo."""
    story = Story(saga("ab", undoable="a", timeout=10.0)).finishes().suspends(timer(T0 + 60_000))
    story.at_due().claims("w2")
    assert (story.status, story.head.lease.worker, story.head.fence) == ("compensating", "w2", 2)
    assert compensation(story, "a").status == "running"


def test_a_deadline_does_not_bound_the_undoing():
    """The run's timeout was one for doing the work: it is over."""
    story = Story(saga("ab", undoable="a", timeout=10.0)).finishes().later(10).held(DeadlinePassed)
    assert (story.status, story.head.deadline) == ("compensating", None)
    assert story.head.error.code == "workflow.timeout"
    fails_to_undo(story.later(1000))
    assert (story.status, story.head.due_at) == ("compensating", story.now + 1000)
    assert undoes(story.later(100).claims()).status == "compensated"


def test_a_deadline_at_the_end_of_a_step():
    """A step that ends too late is done, and undone."""
    story = Story(saga("ab", undoable="a", timeout=10.0)).later(11).finishes()
    assert (story.status, story.statuses, story.head.undo) == ("compensating", "done pending", ("a",))


def test_a_deadline_at_a_park():
    """A wait that comes too late turns the run back too."""
    story = Story(saga("ab", undoable="a", timeout=10.0)).finishes().later(11).suspends(human())
    assert (story.status, compensation(story, "a").status) == ("compensating", "running")


def test_a_dead_letter_is_undone():
    """Too many recoveries of a step fail the run; the compensation begins with a clean streak."""
    story = Story(saga("ab", undoable="a")).finishes().takes_over("w2", max_recoveries=0)
    assert (story.status, story.head.dead_lettered, story.head.streak) == ("compensating", True, 0)
    assert (story.head.lease.worker, story.head.fence, compensation(story, "a").worker) == ("w2", 2, "w2")
    assert undoes(story).status == "compensated"


def test_a_version_mismatch_is_undone():
    """A definition that lost the current step undoes what came before it."""
    story = Story(saga("abc", undoable="a")).finishes(release=True)
    story.plan = saga("ac", undoable="a")
    story.claims("w2")
    assert (story.status, story.head.error.code) == ("compensating", "workflow.version_mismatch")
    assert compensation(story, "a").status == "running"


def test_a_step_between_two_attempts_counts_as_started():
    """A run that is cut off while a step waits for its retry undoes that step, if it is undone when started."""
    plan = saga("ab", undoable="a", started="b", timeout=10.0)
    plan = replace(plan, steps=(plan.steps[0], replace(plan.steps[1], retry=RetryPolicy(attempts=3, delay=60.0))))
    story = Story(plan).finishes().fails().later(11).claims()
    assert (story.status, story.statuses, story.head.undo) == ("compensating", "done pending", ("b", "a"))


def test_a_step_that_never_began_has_nothing_to_undo():
    """`started` asks for a call of the handler."""
    story = Story(saga("ab", undoable="a", started="b", timeout=10.0)).later(11).finishes()
    assert story.head.undo == ("a",)


# --- without a worker ----------------------------------------------------------------------------------------


def test_a_leaving_worker_begins_no_compensation():
    """`release`: the run is compensating, due at once, and nothing has begun."""
    story = failed(release=True)
    assert (story.status, story.head.lease, story.head.due_at, compensation(story, "b")) == (
        "compensating",
        None,
        NOW,
        None,
    )
    story.claims("w2")
    assert (compensation(story, "b").worker, story.head.fence) == ("w2", 2)


def test_a_leaving_worker_begins_no_second_one():
    """`release` after a success and after a failure without delay."""
    assert undoes(failed(), release=True).head.due_at == NOW
    story = fails_to_undo(failed(saga(delay=0.0)), release=True)
    assert (story.head.lease, story.head.due_at, compensation(story, "b").status) == (None, NOW, "pending")


def test_a_pause_holds_the_next_compensation():
    """Paused: nothing begins and nobody looks; unpaused, it is due at once."""
    story = undoes(failed().does(PauseAsked(reason="why")))
    assert (story.status, story.head.lease, story.head.due_at, story.head.paused) == (
        "compensating",
        None,
        None,
        True,
    )
    assert story.does(UnpauseAsked()).head.due_at == NOW
    assert compensation(story.claims(), "a").status == "running"


def test_a_run_that_fails_under_a_pause_stays_paused():
    """The pause outlives the failure: people may want to look before money moves."""
    story = Story(saga()).finishes().does(PauseAsked(reason="why")).fails()
    assert (story.status, story.head.paused, story.head.pause_reason) == ("compensating", True, "why")
    assert (story.head.lease, story.head.due_at) == (None, None)


def test_what_is_handed_back_is_entered_again_uncounted():
    """A drain counts nothing: the next worker enters the same attempt."""
    story = failed().hands_back()
    assert (compensation(story, "b").status, story.head.lease, story.head.due_at) == ("running", None, NOW)
    story.claims("w2")
    assert (compensation(story, "b").attempts, story.head.lease.worker) == (1, "w2")


def test_a_takeover_of_a_paused_run_begins_nothing():
    """The worker dies while the run is paused: the compensation is pending, and nobody holds the run."""
    story = failed().does(PauseAsked()).takes_over()
    assert (compensation(story, "b").status, story.head.lease, story.head.due_at) == ("pending", None, None)


# --- failures ------------------------------------------------------------------------------------------------


def test_a_failed_compensation_waits_for_its_retry():
    """The delay is a due time; the second failure is the last with two attempts, and the walk goes on."""
    story = fails_to_undo(failed())
    waits = compensation(story, "b")
    assert (waits.status, waits.failures, waits.retry_at, waits.error) == ("pending", 1, T0 + 1000, SORRY)
    assert [(one.outcome, one.attempt, one.message) for one in waits.tries] == [("failed", 1, "sorry")]
    assert (story.head.lease, story.head.due_at, story.events) == (None, T0 + 1000, [])
    with pytest.raises(InvalidState):
        story.claims()
    story.at_due().claims("w2")
    assert (compensation(story, "b").attempts, compensation(story, "b").retry_at) == (2, None)
    fails_to_undo(story)
    gone = compensation(story, "b")
    assert (gone.status, gone.ended_at, gone.error, story.head.undo) == ("failed", story.now, SORRY, ("a",))
    assert (story.events, story.facts[0].context) == (["engine.error"], "compensation-b")
    assert compensation(story, "a").status == "running"
    undoes(story)
    assert (story.status, story.events) == (
        "compensation_failed",
        ["step.compensated", "workflow.compensation_failed"],
    )
    assert story.facts[1].steps == ("b",)


def test_a_retry_without_delay_begins_in_the_same_write():
    """Delay 0: the same holder enters it again."""
    story = fails_to_undo(failed(saga(delay=0.0)))
    assert (compensation(story, "b").attempts, compensation(story, "b").status) == (2, "running")


def test_what_is_not_retriable_fails_at_once():
    """Whatever the limit says."""
    assert compensation(fails_to_undo(failed(), retriable=False), "b").status == "failed"


def test_a_crash_is_no_failure_of_the_compensation():
    """A takeover counts a call and a recovery, and leaves all failures that it may have."""
    story = failed().takes_over("w2")
    running = compensation(story, "b")
    assert (running.attempts, running.failures, running.worker) == (2, 0, "w2")
    assert [(one.outcome, one.worker) for one in running.tries] == [("crashed", "w1")]
    assert (story.head.recoveries, story.head.streak, story.head.fence) == (1, 1, 2)
    assert story.events == ["workflow.recovered"]
    assert undoes(story).head.streak == 0


def test_a_compensation_that_kills_its_workers_fails_alone():
    """More recoveries in a row than allowed: this one is given up, the next gets its turn and its own count."""
    story = failed().takes_over("w2", max_recoveries=1).takes_over("w3", max_recoveries=1)
    assert (compensation(story, "b").status, compensation(story, "b").error.code) == ("failed", "dead_lettered")
    assert (compensation(story, "a").status, compensation(story, "a").worker) == ("running", "w3")
    assert (story.status, story.head.streak, story.head.recoveries) == ("compensating", 0, 2)
    assert story.events == ["workflow.recovered", "engine.error"]
    assert undoes(story).status == "compensation_failed"


def test_the_last_compensation_may_be_the_one_that_kills():
    """The claim that gives it up settles the run, and takes no lease."""
    story = Story(saga("ab", undoable="a")).finishes().fails().takes_over("w2", max_recoveries=0)
    assert (story.status, story.head.lease, story.head.fence) == ("compensation_failed", None, 1)


def test_code_that_lost_the_compensation():
    """Who claims with a definition that does not know how to undo a step marks that and goes on."""
    story = failed(release=True)
    story.plan = saga(undoable="a")
    story.claims("w2")
    lost = compensation(story, "b")
    assert (lost.status, lost.error.code, compensation(story, "a").status) == (
        "failed",
        "workflow.version_mismatch",
        "running",
    )
    story = failed(release=True)
    story.plan = plan_of("abc")
    assert story.claims().status == "compensation_failed"


# --- what is refused -----------------------------------------------------------------------------------------


def test_only_the_running_compensation_is_reported_on():
    """Another step, a handler of a step, an old holder: none of them changes a compensating run."""
    story = failed()
    before = story.run
    for happening in [
        story.by_holder(Undone, step="a"),
        story.by_holder(Finished, step="c", output=pack(1)),
        story.by_holder(Suspended, step="c", asks=(human(),)),
        story.by_holder(CheckpointSaved, step="a", name="n", value=pack(1)),
    ]:
        with pytest.raises(InvalidState):
            story.does(happening)
    with pytest.raises(LeaseLost):
        story.does(Undone(worker="w1", fence=7, step="b"))
    assert story.run is before
    assert story.held(CheckpointSaved, step="b", name="n", value=pack(1)).run.checkpoints == {"b/n": pack(1)}


def test_a_success_is_counted_once():
    """The compensation that was committed as done is never the one that runs again."""
    story = undoes(failed())
    with pytest.raises(InvalidState):
        story.held(Undone, step="b")


# --- cancelling ----------------------------------------------------------------------------------------------


def test_a_cancellation_stops_the_undoing_after_the_handler():
    """S221: leased: asked of the holder, who settles it; what runs is pending, what is done stays done."""
    story = undoes(failed()).does(CancelAsked(reason="stop", stops_undoing=True))
    assert (story.status, story.head.cancel_requested) == ("compensating", True)
    story.held(CancelUnwound)
    assert (story.status, story.head.undo, compensation(story, "a").status) == ("cancelled", ("a",), "pending")
    assert (compensation(story, "b").status, story.events) == ("done", ["workflow.cancelled"])


@pytest.mark.parametrize("end", [undoes, fails_to_undo])
def test_what_ends_after_the_cancellation_is_recorded(end):
    """The result of the last compensation is kept, and the run is cancelled all the same."""
    story = end(undoes(failed()).does(CancelAsked(stops_undoing=True)))
    assert (story.status, story.head.lease) == ("cancelled", None)
    assert compensation(story, "a").status == ("done" if end is undoes else "pending")
    assert compensation(story, "a").retry_at is None


def test_only_who_means_it_stops_the_undoing():
    """What the engine cancels by itself leaves a compensating run alone, held or not."""
    for story in (failed(), failed(release=True)):
        before = story.run
        assert story.does(CancelAsked(reason="the parent is cancelled")).run is before


def test_a_cancelled_run_is_undone_if_the_plan_says_so():
    """Unleased: at once, in the same write, ready for any worker; the reason is kept."""
    story = Story(saga(on_cancel=True)).finishes().finishes().suspends(human()).does(CancelAsked(reason="no"))
    assert (story.status, story.statuses, story.head.undo) == ("compensating", "done done failed", ("b", "a"))
    assert story.events == ["step.failed", "workflow.cancelled", "workflow.compensating"]
    assert (story.head.cancel_requested, story.head.cancel_reason, story.head.due_at) == (False, "no", NOW)
    undoes(undoes(story.claims()))
    assert (story.status, story.head.error, story.head.cancel_reason) == ("compensated", None, "no")


def test_a_cancelled_run_is_undone_by_its_holder():
    """Leased: when the handler has unwound, the same holder begins; the engine cancelling twice changes nothing."""
    story = Story(saga(on_cancel=True)).finishes().does(CancelAsked(reason="no")).held(CancelUnwound)
    assert (story.status, compensation(story, "a").status, story.head.cancel_requested) == (
        "compensating",
        "running",
        False,
    )
    before = story.run
    assert story.does(CancelAsked(reason="no")).run is before


def test_a_result_after_the_cancellation_is_undone_too():
    """The step is done, its output is kept, and it is the first to be undone."""
    story = Story(saga(on_cancel=True)).finishes().does(CancelAsked()).finishes("late")
    assert (story.status, story.statuses, story.head.undo) == ("compensating", "done done pending", ("b", "a"))
    assert compensation(story, "b").status == "running"


def test_a_cancellation_that_a_dead_worker_left():
    """Who takes the run over carries out the cancellation and begins to undo."""
    story = Story(saga(on_cancel=True)).finishes().does(CancelAsked()).takes_over("w2", max_recoveries=0)
    assert (story.status, story.head.lease.worker, story.head.dead_lettered) == ("compensating", "w2", False)


# --- retry ---------------------------------------------------------------------------------------------------


def test_retry_undoes_again_what_failed():
    """Fresh attempts for what failed, newest first; what is done stays done; repeated it changes nothing."""
    story = failed(saga("abcd", undoable="abc", attempts=1), finished=3)
    undoes(fails_to_undo(story))
    fails_to_undo(story)
    assert (story.status, story.facts[-1].steps) == ("compensation_failed", ("c", "a"))
    story.later(1).does(Retried())
    assert (story.status, story.head.undo, story.head.due_at) == ("compensating", ("c", "a"), NOW)
    assert story.events == ["workflow.retry", "workflow.compensating"]
    fresh = compensation(story, "c")
    assert (fresh.status, fresh.attempts, fresh.failures, fresh.error, len(fresh.tries)) == (
        "pending",
        0,
        0,
        None,
        1,
    )
    assert (story.head.error, story.head.ended_at) == (BOOM, None)
    before = story.run
    assert story.does(Retried()).run is before
    undoes(undoes(story.claims()))
    assert (story.status, compensation(story, "b").attempts) == ("compensated", 1)


def test_retry_of_a_run_that_turned_back_after_a_retry():
    """A run that was retried and fails again is compensating by itself: there is nothing to repeat."""
    story = Story(saga("ab", undoable="a")).fails().does(Retried()).claims().finishes().fails()
    assert story.status == "compensating"
    with pytest.raises(InvalidState):
        story.does(Retried())
