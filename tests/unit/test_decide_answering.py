"""The outside answers: people, signals, and who is first."""

import pytest

from streamline_trio._core.decide.answering import MAX_INBOX, SEEN_FOR
from streamline_trio._core.due import NOW
from streamline_trio._core.errors import InvalidState, TokenInvalid, ValidationError
from streamline_trio._core.happenings import (
    Answered,
    CancelAsked,
    PauseAsked,
    SignalArrived,
    UnpauseAsked,
    Withdrawn,
)
from streamline_trio._core.shapes import describe
from tests.unit.story import T0, Story, human, pack, timer, unpack, waits_for


def test_an_answer_makes_a_parked_run_ready_in_the_same_write():
    """The run is due now; the value is what the awaited call will return."""
    story = Story("a").suspends(human()).later(3).answers({"ok": True})
    record = story.record("human#0")
    assert (record.outcome, unpack(record.value), record.resolved_at) == ("value", {"ok": True}, T0 + 3000)
    assert (story.status, story.statuses, story.head.due_at) == ("running", "running", NOW)
    assert story.events == ["workflow.resumed"]


def test_an_answer_on_a_leased_run_asks_for_attention():
    """The holder goes on holding; nothing is resumed that was not parked."""
    story = Story("a").opens(human()).answers()
    assert (story.head.attention, story.head.lease.fence, story.events) == (True, 1, [])


@pytest.mark.parametrize(
    ("first", "then", "outcome"),
    [
        (lambda s: s.answers("late"), lambda s: s.claims(), "value"),
        (lambda s: s.claims(), lambda s: s.answers("late"), "timed_out"),
    ],
    ids=["the answer", "the timeout"],
)
def test_answer_and_expiry_at_the_same_instant(first, then, outcome):
    """Whichever is committed first wins, and the other does not change it: even a late answer counts until then."""
    story = Story("a").suspends(human(due_at=T0 + 1000)).later(60)
    first(story)
    if outcome == "timed_out":
        with pytest.raises(InvalidState):
            then(story)
    else:
        then(story)
    assert story.record("human#0").outcome == outcome


def test_an_answer_by_token():
    """The token says which wait is meant, also when several are open."""
    story = Story("a").suspends(human("one", token="t1"), human("two", key="=2", token="t2", place=1))
    story.answers("x", token="t2")
    assert [story.record(key).outcome for key in ("human#0", "=2")] == [None, "value"]


@pytest.mark.parametrize("token", ["unknown", "used"])
def test_a_token_that_answers_nothing(token):
    """Unknown and used are the same error, so that nobody learns which tokens existed."""
    story = Story("a").suspends(human(token="used")).answers(token="used")
    with pytest.raises(TokenInvalid):
        story.answers(token=token)


def test_the_token_of_a_settled_run_is_invalid():
    """Cancelling closes the wait."""
    story = Story("a").suspends(human(token="t")).does(CancelAsked())
    with pytest.raises(TokenInvalid):
        story.answers(token="t")


@pytest.mark.parametrize(
    "other", [human("two", key="=2", place=1), timer(2_000_000, place=1)], ids=["a person", "a timer"]
)
def test_without_token_the_one_open_wait_is_meant(other):
    """Of several waits, of whatever kind, none is meant: `InvalidState` tells to use a token."""
    story = Story("a").suspends(human("one"), other)
    with pytest.raises(InvalidState, match="2 waits are open"):
        story.answers()


@pytest.mark.parametrize(
    "story",
    [
        lambda: Story("a"),
        lambda: Story("a", draft=True),
        lambda: Story("a").finishes(),
        lambda: Story("a").fails(),
        lambda: Story("a").suspends(human()).answers(),
    ],
    ids=["running", "draft", "done", "backing off", "answered"],
)
@pytest.mark.parametrize("verb", [Answered(payload=pack(1)), Withdrawn()], ids=["resume", "withdraw"])
def test_nothing_to_answer(story, verb):
    """`InvalidState` when nothing waits; an answer is never kept for later."""
    told = story()
    with pytest.raises(InvalidState):
        told.does(verb)


def test_the_step_can_be_named():
    """An answer for a step that is not the one that waits is refused."""
    story = Story("ab").finishes().suspends(human())
    with pytest.raises(InvalidState, match="step a waits for nothing"):
        story.answers(step="a")
    assert story.answers(step="b").record("human#0").outcome == "value"


def test_a_human_wait_needs_a_payload():
    """None given is refused, None as the payload is an answer."""
    story = Story("a").suspends(human())
    with pytest.raises(ValidationError, match="needs a payload"):
        story.does(Answered())
    assert story.answers(None).record("human#0").value == pack(None)


def test_a_payload_of_another_type_is_refused_and_the_wait_stays_open():
    """The answerer is told, not the handler."""
    story = Story("a").suspends(human(shape=describe(int), token="t"))
    before = story.run
    with pytest.raises(ValidationError, match="approve"):
        story.answers("seven", token="t")
    assert story.run is before
    assert unpack(story.answers(7, token="t").record("human#0").value) == 7


def test_a_sleep_can_be_ended_early_and_needs_no_payload():
    """Resuming a timer fires it."""
    story = Story("a").suspends(timer(T0 + 1000)).does(Answered())
    assert (story.record("timer#0").outcome, story.status) == ("fired", "running")


def test_withdrawing_a_human_wait():
    """The handler is told so, with the reason; only people can be withdrawn."""
    story = Story("a").suspends(human()).does(Withdrawn(reason="never mind"))
    assert (story.record("human#0").outcome, story.record("human#0").note) == ("withdrawn", "never mind")
    assert (story.status, story.events) == ("running", ["workflow.resumed"])
    with pytest.raises(InvalidState, match="not a person"):
        Story("a").suspends(timer(T0 + 1000)).does(Withdrawn())


def test_a_paused_run_takes_answers_and_goes_on_when_unpaused():
    """Answers are acknowledged, so they count; but nothing begins."""
    story = Story("a").suspends(human()).does(PauseAsked()).answers("yes")
    assert (story.status, story.head.due_at) == ("running", None)
    assert story.does(UnpauseAsked()).claims().record("human#0").outcome == "value"


def test_an_answer_during_backoff_is_kept_for_the_next_attempt():
    """The run stays in its backoff: the retry is not hurried."""
    story = Story("a").opens(human(token="t")).fails().answers("yes", token="t")
    assert (story.status, story.statuses, story.events) == ("waiting", "pending", [])
    assert story.at_due().claims().suspends(human()).status == "running"


# --- signals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("addressed", [True, False])
def test_a_signal_answers_the_wait_for_it(addressed):
    """Addressed or broadcast; the run is ready in the same write."""
    story = Story("a").suspends(waits_for("s")).hears("s", 5, addressed=addressed)
    assert (unpack(story.record("signal#0").value), story.status) == (5, "running")
    assert story.run.inbox == {}


def test_a_signal_answers_the_oldest_wait_that_it_fits():
    """`match` is part of fitting; one signal answers one wait."""
    story = Story("a").suspends(
        waits_for("s", match=pack({"k": 1})),
        waits_for("s", key="=2", place=1, match=pack({"k": 2})),
        waits_for("s", key="=3", place=2),
    )
    story.hears("s", {"k": 2})
    assert [story.record(key).outcome for key in ("signal#0", "=2", "=3")] == [None, "value", None]


def test_an_addressed_signal_waits_in_the_inbox():
    """Whatever the run does now: drafts, held, parked and paused runs keep it, in order of arrival."""
    story = Story("a", draft=True).hears(value=1, id="1").claims().hears(value=2, id="2")
    story.suspends(human()).does(PauseAsked()).hears(value=3, id="3")
    assert [unpack(message.payload) for message in story.run.inbox.values()] == [1, 2, 3]
    assert [*story.run.inbox] == sorted(story.run.inbox)
    assert story.status == "waiting"


def test_a_broadcast_is_not_kept():
    """It reaches those who wait now."""
    story = Story("a")
    before = story.run
    assert story.hears(addressed=False).run is before
    assert story.suspends(waits_for("s")).status == "waiting"


def test_a_signal_comes_once():
    """A repeated id is a no-op without events, also when the first one has long been taken."""
    story = Story("a").hears(value=1, id="m").suspends(waits_for("s"))
    before = story.run
    assert story.hears(value=2, id="m").run is before
    assert story.facts == ()


def test_ids_are_told_apart_by_signal_and_target():
    """One id for two signals, or once addressed and once broadcast, are different emissions."""
    story = Story("a").suspends(waits_for("s")).hears("s", 1, id="m").claims()
    story.hears("t", 2, id="m")
    assert len(story.run.inbox) == 1
    story.suspends(waits_for("s", key="=2")).hears("s", 3, id="m", addressed=False)
    assert unpack(story.record("=2").value) == 3


def test_a_broadcast_reaches_a_run_once():
    """A second wait for the same signal is not answered by a broadcast that was taken before."""
    story = Story("a").suspends(waits_for("s")).hears(addressed=False).claims().suspends(waits_for("s", key="=2"))
    before = story.run
    assert story.hears(addressed=False).run is before


def test_an_id_that_cannot_come_again_is_not_kept():
    """An id that the engine has minted itself is repeated by nobody: it leaves no trace but its message."""
    signal = SignalArrived(signal="s", payload=pack(1), id="minted", remembered=False)
    story = Story("a").does(signal)
    assert (len(story.run.inbox), story.run.seen) == (1, {})


def test_a_signal_to_a_settled_run():
    """Addressed: refused, so that the emitter knows. Broadcast: nobody waits."""
    story = Story("a").finishes()
    before = story.run
    with pytest.raises(InvalidState):
        story.hears()
    assert story.hears(addressed=False).run is before


def test_a_signal_of_another_type_is_refused_and_the_wait_stays_open():
    """The emitter is told; the signal's id is not used up."""
    story = Story("a").suspends(waits_for("s", shape=describe(int)))
    with pytest.raises(ValidationError, match="signal 's'"):
        story.hears("s", "seven", id="m")
    assert story.hears("s", 7, id="m").status == "running"


def test_a_full_inbox_refuses_the_emitter():
    """Bounded: what is refused is not acknowledged, so nothing is lost silently."""
    story = Story("a")
    for number in range(MAX_INBOX):
        story.hears(id=str(number))
    before = story.run
    with pytest.raises(InvalidState, match="inbox"):
        story.hears(id="one more")
    assert story.run is before


def test_ids_are_known_for_a_day():
    """A repetition within 24 hours is recognised however many came since; older ids are forgotten in time."""
    story = Story("a")
    for number in range(100):
        story.hears(id=str(number))
    before = story.run
    assert story.later(SEEN_FOR / 1000 - 1).hears(id="0").run is before
    story.later(2).hears(id="new")
    assert [*story.run.seen] == ["run\ns\nnew"]
