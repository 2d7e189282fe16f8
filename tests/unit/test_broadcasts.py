"""Broadcasts as documents, and which runs a signal cancels."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from streamline_trio._core.broadcasts import (
    KEPT,
    UNFIRED_FOR,
    BroadcastDoc,
    broadcast_key,
    decode_broadcast,
    delivered,
    due_of,
    encode_broadcast,
    fired,
    is_forgotten,
    triggered_run,
)
from streamline_trio._core.decide import decide
from streamline_trio._core.documents import RunDoc, heard_signals
from streamline_trio._core.errors import InvalidState
from streamline_trio._core.happenings import SignalArrived
from streamline_trio._core.plan import Plan, make_plan
from streamline_trio._core.start_options import CancelPlan
from tests.unit.story import T0, Story, pack, plan_of, waits_for

texts = st.text(st.characters(codec="utf-8"), max_size=5)


def broadcast(**fields: Any) -> BroadcastDoc:
    return BroadcastDoc(signal="s", payload=pack(1), id="i", at=T0, **fields)


def cancellable(*rules: CancelPlan, base: str = "abc") -> Plan:
    plan = plan_of(base)
    return make_plan(workflow="w", version="1", steps=plan.steps, timeout=None, max_step_logs=1000, cancel_on=rules)


@given(texts | st.none(), texts, texts | st.none(), texts)
def test_no_two_broadcasts_share_a_key(tenant, id, other_tenant, other_id):
    """Proves that keys differ whenever tenant or id do, whatever characters they have."""
    same = (tenant, id) == (other_tenant, other_id)
    assert (broadcast_key(tenant, "s", id) == broadcast_key(other_tenant, "s", other_id)) == same


@given(st.permutations(["delivered", "a", "b", "c"]), st.booleans())
def test_a_broadcast_is_done_when_all_is(order, minted):
    """Proves that in whatever order it reaches all and its workflows are seen to, it is done after the last and not
    before, and stays so."""
    doc = broadcast(triggered=("a", "b", "c"), minted=minted)
    for place, name in enumerate(order):
        assert not doc.done
        doc = delivered(doc) if name == "delivered" else fired(doc, name)
        assert doc.done == (place == 3)
        assert doc == (delivered(doc) if name == "delivered" else fired(doc, name))
        assert decode_broadcast(encode_broadcast(doc)) == doc


def test_how_long_a_broadcast_is_kept():
    """Proves that one that is done is kept for a day, one that waits for a worker for a week, and that only what
    nobody can repeat and what started nothing is forgotten at once."""
    doc = broadcast(triggered=("a",))
    assert due_of(doc, 7) == 7
    assert due_of(delivered(doc), 7) == T0 + UNFIRED_FOR
    assert due_of(fired(delivered(doc), "a"), 7) == T0 + KEPT
    for minted in (True, False):
        plain = broadcast(minted=minted)
        assert is_forgotten(plain, delivered(plain)) == minted
        doc = delivered(broadcast(minted=minted, triggered=("a",)))
        assert not is_forgotten(doc, fired(doc, "a"))


def test_a_triggered_run_has_an_id_of_its_own():
    """Proves that the id follows from broadcast, workflow and trigger, each of which makes another."""
    ids = {triggered_run(key, flow, index) for key in ("k", "l") for flow in ("w", "v") for index in (0, 1)}
    assert len(ids) == 8
    assert triggered_run("k", "w", 0) in ids


RULE = CancelPlan(signal="s", match={"x": "n"})
plain_values = st.sampled_from([0, 1, 1.0, True, False, "1", None, [1], {"n": 1}])


@given(plain_values, plain_values)
def test_match_compares_plain_data(given_value, own):
    """Proves that a broadcast cancels the run if the fields are equal as JSON has it: 1 is 1.0, and not true."""
    story = Story(cancellable(RULE), input=pack({"n": own}))
    story.does(SignalArrived(signal="s", payload=pack({"x": given_value}), id="i", addressed=False, at=T0))
    wanted = given_value == own and isinstance(given_value, bool) == isinstance(own, bool)
    assert story.head.cancel_requested == wanted


@pytest.mark.parametrize("payload", [{}, {"y": 1}, [1], None, "x"])
@pytest.mark.parametrize("value", [{}, {"m": 1}, [1], None])
def test_what_is_missing_matches_nothing(payload, value):
    """Proves that payloads and inputs without the field, and those that are no maps, match nothing."""
    story = Story(cancellable(RULE), input=pack(value))
    before = story.run
    story.does(SignalArrived(signal="s", payload=pack(payload), id="i", addressed=False, at=T0))
    assert story.run is before


def test_a_broadcast_cancels_only_what_was_there():
    """Proves that a run that was started after the broadcast is let be, and one that it has started itself too."""
    signal = SignalArrived(signal="s", payload=pack(1), id="i", addressed=False, at=T0)
    plan = cancellable(CancelPlan(signal="s"))
    own = broadcast_key(None, "s", "i")
    expected: list[tuple[dict[str, Any], bool]] = [
        ({}, True),
        ({"created_at": T0 + 1}, False),
        ({"emission": own}, False),
        ({"emission": broadcast_key(None, "s", "j")}, True),
    ]
    for fields, cancelled in expected:
        assert Story(plan, **fields).does(signal).head.cancel_requested == cancelled


def test_a_parked_run_is_cancelled_rather_than_answered():
    """Proves that a signal that cancels answers no wait and is not kept, and that its reason names it."""
    story = Story(cancellable(CancelPlan(signal="s"))).suspends(waits_for("s")).hears()
    assert (story.status, story.head.cancel_reason, story.run.inbox) == ("cancelled", "signal s", {})


def test_an_id_that_cancelled_may_come_again():
    """Proves that who repeats what has cancelled the run is not told that it is settled."""
    signal = SignalArrived(signal="s", payload=pack(1), id="i")
    plan = cancellable(CancelPlan(signal="s"))
    parked = Story(plan).suspends(waits_for("s")).does(signal)
    again = parked.run
    assert parked.does(signal).run is again
    running = Story(plan).does(replace(signal, id="other")).does(signal)
    assert {"run\ns\ni", "run\ns\nother"} == set(running.run.seen)
    with pytest.raises(InvalidState):
        parked.does(replace(signal, id="third"))


def test_by_what_a_run_is_found():
    """Proves that a run is found by what cancels it as long as it has not settled, and by what it waits for."""
    story = Story(
        cancellable(CancelPlan(signal="s"), CancelPlan(signal="s", match={"a": "b"}), CancelPlan(signal="t"))
    )
    assert heard_signals(story.run) == ("s", "t")
    assert set(heard_signals(story.suspends(waits_for("u")).run)) == {"s", "t", "u"}
    story.hears()
    assert (story.status, heard_signals(story.run)) == ("cancelled", ())


def test_a_run_whose_definition_changes_is_found_by_the_new_one():
    """Proves that the claim that pins a run to a changed definition also makes it heard of what that says."""
    story = Story(cancellable(CancelPlan(signal="s")), draft=True)
    story.plan = cancellable(CancelPlan(signal="t"))
    run: RunDoc = story.claims().run
    assert heard_signals(run) == ("t",)
    assert (
        decide(run, SignalArrived(signal="s", payload=pack(1), id="i", addressed=False, at=T0), story.plan, T0).run
        is run
    )
