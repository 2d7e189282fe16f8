"""A handler suspends: records, parking, and going on."""

import pytest

from streamline_trio._core.documents import open_tokens
from streamline_trio._core.due import NOW
from streamline_trio._core.errors import SuspensionError
from streamline_trio._core.happenings import CancelAsked, PauseAsked, Retried, UnpauseAsked
from streamline_trio._core.shapes import describe
from tests.unit.story import T0, Story, human, pack, plan_of, timer, unpack, waits_for


def test_parking_is_one_write_that_gives_the_lease_back():
    """A parked run holds nothing in any worker; it says when it is to be woken."""
    story = Story("ab").suspends(timer(T0 + 60_000))
    assert (story.status, story.statuses, story.head.lease) == ("waiting", "waiting pending", None)
    assert (story.head.due_at, story.head.revision, story.head.streak) == (T0 + 60_000, 2, 0)
    assert story.events == ["step.waiting", "workflow.waiting"]
    assert (story.facts[0].kind, story.facts[0].due_at_millis) == ("timer", T0 + 60_000)


def test_a_record_says_what_was_asked():
    """It has all that an answerer, an operator or a re-entry needs to know."""
    story = Story("a").suspends(human("ok?", token="t", due_at=T0 + 9, name="n", meta=pack({"x": 1}), place=4))
    record = story.record("human#0")
    assert (record.kind, record.reason, record.name, record.tokens) == ("human", "ok?", "n", ("t",))
    assert (record.opened_at, record.due_at, record.attempt, record.place) == (T0, T0 + 9, 1, 4)
    assert unpack(record.meta) == {"x": 1}


@pytest.mark.parametrize("due_at", [T0, T0 - 1, 0])
def test_a_time_that_has_come_does_not_park(due_at):
    """The timer fires in the same write, the lease stays, the handler is entered again."""
    story = Story("a").suspends(timer(due_at))
    assert (story.status, story.statuses, story.record("timer#0").outcome) == ("running", "running", "fired")
    assert (story.head.lease.fence, story.head.fence, story.events) == (1, 1, ["step.waiting"])


def test_one_wait_that_is_over_is_enough_to_go_on():
    """Of several asks, the handler is entered again as soon as one has its outcome; the others stay open."""
    story = Story("a").suspends(timer(T0), human(place=1))
    assert (story.status, story.head.lease.fence) == ("running", 1)
    assert story.record("human#0").is_open


def test_while_paused_no_wait_times_out():
    """Regression: a time that has come fired in a paused run; it fires when the run is unpaused."""
    story = Story("a").does(PauseAsked()).suspends(human(due_at=T0))
    assert (story.status, story.record("human#0").outcome, story.head.due_at) == ("waiting", None, None)
    story.does(UnpauseAsked()).claims()
    assert story.record("human#0").outcome == "timed_out"


def test_a_paused_run_takes_answers_that_are_there():
    """What was answered before it suspends is not lost by the pause."""
    story = Story("a").opens(human()).answers().does(PauseAsked()).suspends(human())
    assert (story.status, story.record("human#0").outcome) == ("running", "value")


def test_a_leaving_worker_lets_go_of_a_wait_that_is_over():
    """The run is ready for whoever comes; the attempt is the same."""
    story = Story("a").suspends(timer(T0), release=True)
    assert (story.status, story.head.lease, story.head.due_at, story.statuses) == ("running", None, NOW, "running")
    assert story.claims("w2").step().attempts == 1


def test_a_message_that_came_before_is_taken_at_once():
    """A signal addressed to the run is never lost: the oldest that fits answers, the others stay."""
    story = Story("a").hears(value="no", id="1", signal="other").hears(value="first", id="2").hears(value=3, id="3")
    story.suspends(waits_for("s"))
    assert (story.status, unpack(story.record("signal#0").value)) == ("running", "first")
    assert [unpack(message.payload) for message in story.run.inbox.values()] == ["no", 3]


def test_only_a_message_that_fits_is_taken():
    """`match` and the type of the wait select; what does not fit stays for a wait that can use it."""
    story = Story("a").hears(value={"k": 1}, id="1").hears(value={"k": 2, "n": "x"}, id="2")
    story.hears(value={"k": 2, "n": 7}, id="3")
    wish = waits_for("s", match=pack({"k": 2}), shape=describe(dict[str, int]))
    story.suspends(wish)
    assert unpack(story.record("signal#0").value) == {"k": 2, "n": 7}
    assert len(story.run.inbox) == 2


def test_a_suspension_of_a_run_to_be_cancelled_cancels():
    """A park settles instead."""
    story = Story("a").does(CancelAsked()).suspends(human(token="t"))
    assert (story.status, story.run.records, open_tokens(story.run)) == ("cancelled", {}, ())


def test_a_suspension_of_an_overdue_run_fails_it():
    """The run's own deadline is looked at in every write of its holder."""
    assert Story(plan_of("a", timeout=1.0)).later(1).suspends(human()).head.error.code == "workflow.timeout"


def test_an_open_wait_can_be_answered_while_the_handler_runs():
    """Its record is durable at once, and the suspension that follows does not park."""
    story = Story("a").opens(human(token="t"))
    assert (story.status, story.events, open_tokens(story.run)) == ("running", ["step.waiting"], ("t",))
    story.answers("yes", token="t")
    assert story.head.attention
    story.suspends(human(token="t", told=True))
    assert (story.status, unpack(story.record("human#0").value)) == ("running", "yes")
    assert not story.head.attention, "the holder has seen what the others had committed"


def test_a_wait_opened_again_keeps_its_deadline_and_its_tokens():
    """After a crash the same ask adopts the open wait: old tokens stay valid, a further one is added."""
    story = Story("a").opens(human(token="t1", due_at=T0 + 5000)).takes_over().later(1)
    story.suspends(human(token="t2", due_at=T0 + 6000, told=True))
    record = story.record("human#0")
    assert (record.tokens, record.due_at, record.opened_at) == (("t1", "t2"), T0 + 5000, T0)
    assert (record.attempt, record.told, story.events) == (2, True, ["workflow.waiting"])


def test_an_unlike_ask_is_asked_afresh():
    """A record of an earlier attempt under the same key, but for something else, is no answer."""
    story = Story("a").suspends(human("one")).answers().claims().takes_over().suspends(human("two"))
    assert (story.status, story.record("human#0").reason) == ("waiting", "two")


def test_a_failed_outcome_is_forgotten_by_the_next_attempt():
    """Timed out or withdrawn is asked afresh after a failure; what succeeded stays."""
    story = Story(plan_of("a", delay=0.0)).suspends(human("first", key="=1")).answers("kept").claims()
    story.suspends(human("second", key="=2", due_at=T0)).fails()
    assert set(story.run.records) == {"=1"}
    assert unpack(story.record("=1").value) == "kept"


def test_an_outcome_that_succeeded_survives_the_failure_of_the_run():
    """`retry` gives fresh attempts, but nobody is asked again what they have answered."""
    story = Story("a").suspends(human()).answers("kept").claims().fails(retriable=False)
    assert set(story.run.records) == {"human#0"}
    story.does(Retried())
    assert unpack(story.record("human#0").value) == "kept"
    assert story.record("human#0").attempt == 0, "it belongs to none of the coming attempts"


def test_a_failed_outcome_is_forgotten_by_a_retry():
    """Else the fresh attempts would fail by the same timeout, without anybody being asked."""
    story = Story("a").suspends(human(due_at=T0)).fails(retriable=False).does(Retried())
    assert story.run.records == {}


def test_a_wait_that_was_answered_does_not_time_out():
    """Its deadline means nothing any more, neither when the handler suspends again nor when a worker wakes it."""
    story = Story("a").opens(human(token="t", due_at=T0 + 10_000)).answers("yes", token="t").later(20)
    story.suspends(timer(T0 + 60_000, place=1))
    assert (story.record("human#0").outcome, unpack(story.record("human#0").value)) == ("value", "yes")
    assert story.at_due().claims().record("timer#0").outcome == "fired"
    assert (story.record("human#0").outcome, unpack(story.record("human#0").value)) == ("value", "yes")


def test_a_wait_of_an_earlier_attempt_that_is_not_asked_again_is_closed():
    """Nobody listens to it: it must take no answer, no signal, and give no due time."""
    story = Story(plan_of("a", delay=0.0)).opens(human("first", key="=1", token="t", due_at=T0 + 5)).fails()
    assert story.record("=1").is_open
    story.suspends(human("second", key="=2"))
    assert (set(story.run.records), story.head.due_at) == ({"=2"}, None)
    assert unpack(story.answers("yes").record("=2").value) == "yes"


def test_a_finished_step_leaves_no_records():
    """Records are of the current step: the next one starts with none."""
    assert Story("ab").suspends(human()).answers().claims().finishes().run.records == {}


def test_waits_that_are_over_are_kept_for_the_timeline():
    """Bounded, with kind, name, times and outcome."""
    story = Story("a")
    for number in range(25):
        story.suspends(timer(T0, key=f"timer#{number}", place=number))
    notes = story.step().waits
    assert len(notes) == 20
    assert {(note.kind, note.outcome, note.resolved_at) for note in notes} == {("timer", "fired", T0)}


# --- tokens ------------------------------------------------------------------------------------------------


def test_one_token_does_not_answer_two_waits_of_one_attempt():
    """The second ask is refused, loudly; the first wait stands."""
    story = Story("a").opens(human(token="t"))
    before = story.run
    with pytest.raises(SuspensionError, match="two waits"):
        story.opens(human("other", key="=x", token="t", place=1))
    assert story.run is before


def test_a_token_of_an_earlier_attempt_goes_to_the_wait_that_asks_with_it_now():
    """Regression: two open waits shared the caller's own token, and the answer went to the forgotten one."""
    story = Story(plan_of("a", delay=0.0)).opens(human(token="t")).fails()
    story.suspends(human("other", key="=x", token="t"))
    assert open_tokens(story.run) == ("t",)
    assert unpack(story.answers("yes", token="t").record("=x").value) == "yes"


def test_a_wait_that_is_over_has_no_token():
    """A used token is unknown, whoever has it."""
    story = Story("a").suspends(human(token="t")).answers(token="t")
    assert (story.record("human#0").tokens, open_tokens(story.run)) == ((), ())
