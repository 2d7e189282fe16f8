"""What operators and clients ask of a run."""

import pytest

from streamline_trio._core.due import NOW
from streamline_trio._core.errors import InvalidState, StepNotFound
from streamline_trio._core.happenings import (
    CancelAsked,
    CheckpointSaved,
    Memoized,
    PauseAsked,
    Retried,
    Rewound,
    Skipped,
    UnpauseAsked,
)
from tests.unit.story import T0, Story, human, pack, plan_of, timer, waits_for

STORIES = {
    "draft": lambda: Story("ab", draft=True),
    "running": lambda: Story("ab"),
    "ready": lambda: Story("ab").hands_back(),
    "parked": lambda: Story("ab").suspends(human()),
    "backing off": lambda: Story("ab").fails(),
    "done": lambda: Story("a").finishes(),
    "failed": lambda: Story("ab").fails(retriable=False),
    "cancelled": lambda: Story("ab").does(CancelAsked(lease_dead=True)),
}
RESTING = ("done", "failed", "cancelled")


@pytest.mark.parametrize("name", [name for name in STORIES if name not in {*RESTING, "running"}])
def test_an_unleased_run_is_cancelled_at_once(name):
    """Nobody need be there: the verb itself settles it."""
    story = STORIES[name]().does(CancelAsked(reason="stop"))
    assert (story.status, story.head.cancel_reason, story.head.due_at) == ("cancelled", "stop", None)
    assert story.events[-1] == "workflow.cancelled"
    assert story.facts[-1].reason == "stop"


def test_a_leased_run_is_cancelled_by_its_holder():
    """Recorded first: the handler unwinds, then the run settles."""
    story = Story("a").does(CancelAsked(reason="stop"))
    assert (story.status, story.head.cancel_requested, story.head.attention) == ("running", True, True)
    assert (story.events, story.head.lease.fence) == ([], 1)


def test_a_run_whose_worker_is_dead_is_cancelled_at_once():
    """As if nobody held it."""
    assert Story("a").does(CancelAsked(lease_dead=True)).status == "cancelled"
    asked = Story("a").does(CancelAsked(reason="first"))
    assert asked.does(CancelAsked(reason="second", lease_dead=True)).head.cancel_reason == "first"


def test_cancelling_twice_is_once():
    """A verb that took effect already is a no-op without events: the first reason stays."""
    for story in (Story("a").does(CancelAsked(reason="first")), STORIES["cancelled"](), STORIES["done"]()):
        before = story.run
        assert story.does(CancelAsked(reason="second")).run is before
        assert story.events == []


def test_a_run_cancelled_asleep_leaves_nothing_to_fire():
    """The open wait goes with the run."""
    story = Story("a").suspends(timer(T0 + 1000)).does(CancelAsked())
    assert (story.run.records, story.statuses) == ({}, "failed")


def test_what_others_ask_stays_asked_until_the_holder_has_seen_it():
    """A verb of somebody else does not take back the attention that the one before asked for."""
    story = Story("a").does(CancelAsked()).hears()
    assert story.head.attention
    assert not story.held(CheckpointSaved, name="x", value=pack(1)).head.attention


@pytest.mark.parametrize("name", STORIES)
def test_pausing(name):
    """Active runs are paused once; settled ones are not."""
    story = STORIES[name]()
    before, settled = story.run, name in RESTING
    story.does(PauseAsked(reason="why"))
    if settled:
        assert story.run is before
        return
    assert (story.head.paused, story.head.pause_reason, story.head.due_at) == (True, "why", None)
    assert story.head.attention == (story.head.lease is not None)
    assert (story.events, story.status) == (["workflow.paused"], before.head.status)
    before = story.run
    assert story.does(PauseAsked(reason="again")).run is before


@pytest.mark.parametrize("name", STORIES)
def test_unpausing_puts_the_run_where_it_was(name):
    """It answers no wait: a sleeper still sleeps, a retry is still due when it was."""
    story = STORIES[name]()
    before = story.run
    if name not in RESTING:
        story.does(PauseAsked())
    story.does(UnpauseAsked())
    assert (story.head.paused, story.head.pause_reason) == (False, None)
    assert story.head.due_at == before.head.due_at
    assert story.run.records == before.records
    assert story.does(UnpauseAsked()).events == []


def test_a_deadline_holds_in_a_paused_run():
    """Pausing does not stop the run's own timeout."""
    story = Story(plan_of("a", timeout=10.0)).hands_back().does(PauseAsked())
    assert story.head.due_at == T0 + 10_000
    assert story.at_due().claims().status == "failed"


def test_settling_ends_the_pause():
    """Regression: the reason of a pause outlived it."""
    story = Story("a").does(PauseAsked(reason="why")).does(CancelAsked(lease_dead=True))
    assert (story.head.paused, story.head.pause_reason) == (False, None)


# --- rewind ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "story",
    [
        lambda: Story("abc").finishes(1).finishes(2).finishes(3),
        lambda: Story("abc").finishes(1).finishes(2).fails(retriable=False),
        lambda: Story("abc").finishes(1).finishes(2).suspends(human()),
        lambda: Story("abc").finishes(1).finishes(2).hands_back(),
    ],
    ids=["done", "failed", "parked", "ready"],
)
def test_rewinding_resets_the_target_and_all_later_steps(story):
    """The run is ready to go on from the target; earlier steps keep their outputs."""
    told = story().later(5).does(Rewound(to="b"))
    assert (told.status, told.statuses, told.head.current_step) == ("running", "done pending pending", "b")
    assert [told.step(step).generation for step in "abc"] == [0, 1, 1]
    assert (told.head.due_at, told.head.ended_at, told.head.error) == (NOW, None, None)
    assert told.head.output_step == "a"
    assert (told.events, told.facts[0].step) == (["workflow.rewound"], "b")
    assert told.claims().finishes(4).finishes(5).status == "done"


def test_rewinding_drops_what_the_reset_steps_have_saved_and_nothing_else():
    """Checkpoints, memos and records of reset steps go; those of earlier steps, state and inbox stay."""
    story = Story("ab")
    story.held(CheckpointSaved, name="x", value=pack(1)).held(Memoized, key="ka", value=pack(1)).finishes()
    story.held(CheckpointSaved, name="x", value=pack(2)).held(Memoized, key="kb", value=pack(2))
    story.hears("other").suspends(human()).does(Rewound(to="b"))
    assert set(story.run.checkpoints) == {"a/x"}
    assert set(story.run.memos) == {"ka"}
    assert (story.run.records, len(story.run.inbox)) == ({}, 1)


def test_rewinding_to_a_later_step_is_refused():
    """There is nothing to go back to."""
    story = Story("abc").finishes().suspends(human())
    before = story.run
    with pytest.raises(InvalidState, match="has not reached step c"):
        story.does(Rewound(to="c"))
    with pytest.raises(StepNotFound):
        story.does(Rewound(to="z"))
    assert story.run is before


def test_rewinding_does_not_undo_a_cancellation_whose_holder_died():
    """An acknowledged cancellation is not lost: the run can only be cancelled now."""
    story = Story("ab").does(CancelAsked())
    with pytest.raises(InvalidState, match="being cancelled"):
        story.does(Rewound(to="a", lease_dead=True))
    assert story.takes_over().status == "cancelled"


def test_rewinding_a_run_that_never_began():
    """Regression: failed by its deadline before its first step, it could be sent to any step."""
    story = Story(plan_of("ab", timeout=10.0), draft=True).later(10).claims()
    with pytest.raises(InvalidState, match="has not reached step b"):
        story.does(Rewound(to="b"))
    assert story.does(Rewound(to="a")).claims().statuses == "running pending"


@pytest.mark.parametrize("name", ["draft", "running", "cancelled"])
def test_what_cannot_be_rewound(name):
    """Not begun, held by a living worker, or past going back."""
    with pytest.raises(InvalidState):
        STORIES[name]().does(Rewound(to="a"))


def test_a_run_whose_worker_is_dead_can_be_rewound():
    """The old holder is out: it has no lease, and the next claim takes a new fence."""
    story = Story("a").does(Rewound(to="a", lease_dead=True))
    assert (story.head.lease, story.head.fence) == (None, 1)
    assert story.claims().head.fence == 2


def test_a_step_that_is_gone_does_not_keep_a_run_from_being_rewound():
    """The plan of today may lack the step where the run stands."""
    story = Story("ab").finishes().suspends(human())
    story.plan = plan_of("ac")
    assert story.does(Rewound(to="a")).head.current_step == "a"


def test_a_run_taken_up_again_has_its_whole_timeout_before_it():
    """Else a run that failed by its deadline could never be rewound or retried."""
    for verb in (Rewound(to="a"), Retried()):
        story = Story(plan_of("ab", timeout=10.0)).later(11).fails().later(5).does(verb)
        assert story.head.deadline == T0 + 26_000
        assert story.claims().status == "running"


def test_rewinding_a_paused_run_leaves_it_paused():
    """Each verb does its own thing: it goes on from the target once it is unpaused."""
    story = Story("ab").hands_back().does(PauseAsked()).does(Rewound(to="a"))
    assert (story.head.paused, story.head.due_at) == (True, None)


def test_the_output_after_rewinding_is_that_of_a_step_that_stands():
    """Regression: with all reset steps skipped the run had no output, although an earlier step has."""
    story = Story("abc").finishes(1).finishes(2).finishes(3).does(Rewound(to="b")).claims()
    assert story.held(Skipped).held(Skipped).head.output_step == "a"


# --- retry -------------------------------------------------------------------------------------------------


def test_retrying_gives_the_failed_step_fresh_attempts():
    """Only what failed; attempts from 1; the same generation, so that the outside sees the same keys."""
    story = Story(plan_of("abc", attempts=2, delay=0.0)).finishes(1).fails().fails().later(5).does(Retried())
    step = story.step("b")
    assert (story.status, story.statuses, story.head.due_at) == ("running", "done pending pending", NOW)
    assert (step.attempts, step.failures, step.generation, step.error) == (0, 0, 0, None)
    assert len(step.tries) == 2
    assert (story.head.error, story.head.ended_at, story.head.dead_lettered) == (None, None, False)
    assert (story.events, story.facts[0].step) == (["workflow.retry"], "b")
    assert story.claims().step("b").attempts == 1
    assert story.fails().status == "running", "it has all its attempts again"


def test_retrying_keeps_checkpoints_memos_and_messages():
    """A retry goes on from what was achieved."""
    story = Story("a").held(CheckpointSaved, name="x", value=pack(1)).held(Memoized, key="k", value=pack(1))
    story.hears("other").fails(retriable=False).does(Retried())
    assert (set(story.run.checkpoints), set(story.run.memos)) == ({"a/x"}, {"k"})
    assert story.claims().suspends(waits_for("other")).status == "running"


def test_retrying_a_dead_letter():
    """Fresh recoveries too."""
    story = Story("a").takes_over(max_recoveries=0).does(Retried())
    assert (story.head.dead_lettered, story.head.streak, story.statuses) == (False, 0, "pending")
    assert story.claims().takes_over(max_recoveries=1).status == "running"


def test_retrying_what_failed_between_two_steps():
    """The run's deadline passed at the end of a step: the next one is what is tried."""
    story = Story(plan_of("ab", timeout=10.0)).later(11).finishes(1).does(Retried()).claims()
    assert story.statuses == "done running"


@pytest.mark.parametrize("name", [name for name in STORIES if name != "failed"])
def test_only_what_failed_can_be_retried(name):
    """Everything else is `InvalidState`, naming what would do."""
    with pytest.raises(InvalidState) as caught:
        STORIES[name]().does(Retried())
    assert caught.value.allowed == ("failed", "compensation_failed")
