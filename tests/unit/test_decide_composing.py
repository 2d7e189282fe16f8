"""Parts of a step: pieces, the waits of single keys, and what becomes of them."""

import pytest

from streamline_trio._core.errors import InvalidState, LeaseLost
from streamline_trio._core.happenings import (
    CancelAsked,
    PauseAsked,
    PieceSaved,
    Rewound,
    Suspended,
    TimeCame,
    WaitsOpened,
    WentTo,
)
from tests.unit.story import T0, Story, human, pack, plan_of, timer, unpack, waits_for


def saved(story: Story, path: str = "p", value: object = 1, **fields: object) -> Story:
    return story.held(PieceSaved, path=path, value=pack(value), **{"done": True, **fields})


def test_a_piece_takes_the_place_of_what_led_to_it():
    """Proves that a result and the end of its records and inner pieces are one write, and count as progress."""
    story = Story("a").takes_over("w2").takes_over("w3")
    story.held(WaitsOpened, asks=(timer(T0 + 9, "p/timer#0"), timer(T0 + 9, "q/timer#0")))
    saved(saved(story, "p/x"), "p", 7, records=("p/timer#0", "p/gone"), pieces=("p/x", "p/y"))
    assert [*story.run.records] == ["q/timer#0"]
    assert {path: unpack(piece.value) for path, piece in story.run.pieces.items()} == {"p": 7}
    assert (story.head.streak, story.head.recoveries, story.events) == (0, 2, [])


def test_a_loop_goes_forward_only():
    """Proves that a round replaces earlier ones, and that nothing replaces the end."""
    story = saved(Story("a"), round=1, done=False)
    assert story.run.pieces["p"].round == 1
    before = saved(story, value=9, round=1, done=False).run
    assert unpack(before.pieces["p"].value) == 1
    saved(story, value=2, round=2)
    saved(story, value=3, round=3)
    assert (unpack(story.run.pieces["p"].value), story.run.pieces["p"].round) == (2, 2)


def test_a_piece_is_of_the_running_step_and_its_holder():
    """Proves that neither a former holder nor a step that is over can keep anything."""
    story = Story("ab")
    late = story.by_holder(PieceSaved, path="p", value=b"", done=True)
    with pytest.raises(InvalidState):
        story.finishes().does(story.by_holder(PieceSaved, step="a", path="p", value=b"", done=True))
    with pytest.raises(LeaseLost):
        story.takes_over().does(late)


def test_waits_of_keys_are_answered_while_the_run_is_held():
    """Proves that an answer and a signal reach open waits of a leased run, and ask for the holder's attention."""
    story = Story("a").held(WaitsOpened, asks=(human(token="t"), waits_for(), timer(T0 + 9)))
    assert (story.status, story.head.lease is None, story.head.due_at) == ("running", False, None)
    assert story.events == ["step.waiting"] * 3
    story.hears(value=4).answers(5, token="t")
    assert story.head.attention
    assert [unpack(story.record(key).value) for key in ("signal#0", "human#0")] == [4, 5]
    assert story.record("timer#0").is_open


def test_opening_waits_is_no_progress():
    """Proves that a run that only opens waits and dies again is given up all the same."""
    story = Story("a").takes_over("w2").held(WaitsOpened, asks=(timer(T0 + 9),))
    assert story.head.streak == 1


def test_a_time_that_comes():
    """Proves that only waits that are due, open and named end, a sleep as fired and others as timed out."""
    asks = (timer(T0 + 5), human(due_at=T0 + 5), timer(T0 + 99, "timer#1"), timer(T0 + 5, "timer#2"))
    story = Story("a").held(WaitsOpened, asks=asks).later(0.01)
    story.held(TimeCame, keys=("timer#0", "human#0", "timer#1", "gone"))
    outcomes = {key: record.outcome for key, record in story.run.records.items()}
    assert outcomes == {"timer#0": "fired", "human#0": "timed_out", "timer#1": None, "timer#2": None}
    run = story.run
    assert story.held(TimeCame, keys=("timer#0",)).run is run, "nothing came, so nothing is written"


def test_no_time_comes_in_a_paused_run():
    """Proves that the pause holds for keys too."""
    story = Story("a").held(WaitsOpened, asks=(timer(T0 + 5),)).does(PauseAsked()).later(1)
    run = story.run
    assert story.held(TimeCame, keys=("timer#0",)).run is run


def test_keys_that_wait_on_keep_their_records():
    """Proves that a park keeps what it is told to, due at the earliest of all, and closes the rest."""
    story = Story("a").held(WaitsOpened, asks=(timer(T0 + 50), timer(T0 + 70, "timer#1"), human(key="human#7")))
    story.held(Suspended, asks=(timer(T0 + 90, "timer#2"),), kept=("timer#0", "timer#1"))
    assert (story.status, story.head.due_at, story.head.lease) == ("waiting", T0 + 50, None)
    assert sorted(story.run.records) == ["timer#0", "timer#1", "timer#2"]


@pytest.mark.parametrize("end", ["answered", "gone"])
def test_a_key_whose_wait_is_over_keeps_the_run_from_parking(end):
    """Proves that what ended while the last key unwound is gone on with at once."""
    story = Story("a").held(WaitsOpened, asks=(human(token="t"),))
    if end == "answered":
        story.answers(1, token="t")
    story.held(Suspended, asks=(timer(T0 + 90),), kept=("human#0" if end == "answered" else "gone",))
    assert (story.status, story.head.lease is None) == ("running", False)


def test_pieces_outlive_failures_and_crashes():
    """Proves that a retry, a recovery and `retry` of a failed run find what was kept."""
    story = saved(Story(plan_of("a", attempts=1)).takes_over()).fails()
    assert (story.status, [*story.run.pieces]) == ("failed", ["p"])


@pytest.mark.parametrize("how", ["finish", "goto", "rewind", "cancel"])
def test_pieces_go_with_their_step(how):
    """Proves that the write that leaves the step, in whatever way, drops them."""
    story = saved(Story("ab"))
    match how:
        case "finish":
            story.finishes()
        case "goto":
            story.held(WentTo, target="a")
        case "rewind":
            story.hands_back().does(Rewound(to="a"))
        case _:
            story.hands_back().does(CancelAsked())
    assert story.run.pieces == {}
