"""Revisions and commit ids: what makes a write guarded, and recognisable when its acknowledgement is lost."""

import pytest

from streamline_trio._core.decide import decide
from streamline_trio._core.diff import changed
from streamline_trio._core.happenings import CheckpointSaved, Finished, StateSet, Suspended, UnpauseAsked
from tests.unit.story import Story, human, pack, waits_for


def test_each_commit_leaves_its_id():
    """Newest last, after the id of the insert."""
    assert Story("ab").finishes().finishes().head.commits == (7, 1, 2)


def test_the_last_sixteen_are_kept():
    """A lost acknowledgement is resolved by looking for the id, so it must be there for a while."""
    story = Story("a")
    for number in range(30):
        story.held(StateSet, state=pack(number))
    assert story.head.commits == tuple(range(15, 31))
    assert story.head.revision == 31


def test_merged_happenings_are_one_commit():
    """What arrives while a write is in flight goes out together: one id, one revision, and otherwise the run
    that each by itself gives.
    """
    story, single = Story("ab"), Story("ab")
    told = [
        story.by_holder(StateSet, state=pack(1)),
        story.by_holder(CheckpointSaved, name="x", value=pack(2)),
        story.by_holder(Finished, output=pack(3)),
    ]
    merged = story.run
    for happening in told:
        merged = decide(merged, happening, story.plan, story.now, 99).run
        single.does(happening)
    assert merged.head.commits == (7, 99)
    assert (merged.head.revision, single.head.revision) == (2, 4)
    assert (merged.steps, merged.state, merged.checkpoints) == (
        single.run.steps,
        single.run.state,
        single.run.checkpoints,
    )


def test_what_took_effect_already_is_no_commit():
    """The same run object comes back, so that nothing is written."""
    story = Story("a")
    before = story.run
    assert story.does(UnpauseAsked()).run is before
    assert story.facts == ()


def test_a_decision_names_the_entries_that_it_removes():
    """A store that is told only what is touched forgets an answered wait, and a message that was taken."""
    waiting = Story("ab").opens(human()).answers()
    heard = Story("a").hears()
    for story, happening in (
        (waiting, waiting.by_holder(Finished, output=pack(None))),
        (heard, heard.by_holder(Suspended, asks=(waits_for(),))),
    ):
        decision = decide(story.run, happening, story.plan, story.now, 99)
        changes = changed(story.run, decision.run)
        assert None in changes.values(), "an entry goes"
        assert changed(story.run, decision.run, decision.touched) == changes


@pytest.mark.parametrize("seconds", [-60, 0, 60])
def test_revisions_and_time_stamps_do_not_go_back(seconds):
    """Clocks differ between machines: the order of commits does not depend on them."""
    story = Story("ab")
    stamp = story.head.updated_at
    story.later(seconds).finishes()
    assert story.head.revision == 2
    assert story.head.updated_at == max(stamp, story.now)
