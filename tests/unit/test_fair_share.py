"""Who gets the places when more is due than fits, and where in the queue a worker reads."""

from collections.abc import Sequence

import pytest

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.store import Corrupt
from streamline_trio._runtime.crowding import WIDEST, Crowding
from streamline_trio._runtime.fair_share import LONGEST_REST, FairShare
from streamline_trio.stores._turns import dealt, in_turn, skipped
from streamline_trio.testing._conformance_base import sample


def runs(*names: str, tenant: str | None = None) -> list[RunDoc]:
    return [sample(name, tenant=tenant) for name in names]


def ids(chosen: Sequence[RunDoc | Corrupt]) -> list[str]:
    return [run.run_id if isinstance(run, Corrupt) else run.id for run in chosen]


def turns(share: FairShare, places: int, pages: int, *, news: bool) -> list[int]:
    """How many places of each page go by turn, when the turn gives something new, or nothing."""
    given: list[int] = []
    by_priority = runs(*(f"p{number}" for number in range(places)))
    for _ in range(pages):
        count = share.due_in_turn(places, 0.0)
        share.more_is_due(places)
        given.append(count)
        if count:
            share.choose(places, by_priority, runs("other") if news else by_priority[:count])
    return given


def test_the_first_page_is_by_priority_alone() -> None:
    """Proves that a page that is full only once asks for nothing: what is left over is in the next one."""
    share = FairShare()
    assert share.due_in_turn(100, 0.0) == 0
    share.more_is_due(100)
    share.all_fits()
    assert share.due_in_turn(100, 0.0) == 0


def test_a_quarter_goes_by_turn() -> None:
    """Proves that of large pages a quarter goes by turn, and with one place every fourth claim."""
    share = FairShare()
    share.more_is_due(100)
    assert share.due_in_turn(100, 0.0) == 25
    assert turns(FairShare(), 1, 13, news=True) == [0, 0, 0, 0, 1] + [0, 0, 0, 1] * 2


def test_half_of_a_page_at_most() -> None:
    """Proves that what has gathered does not take the whole page from those of high priority."""
    share = FairShare()
    for _ in range(50):
        share.more_is_due(100)
    assert share.due_in_turn(10, 0.0) == 5
    assert share.due_in_turn(1, 0.0) == 1


def test_it_rests_while_nobody_is_passed_over() -> None:
    """Proves that where the turn gives what priority gives anyhow, most pages cost no second read."""
    assert turns(FairShare(), 8, 14, news=False).count(0) >= 9
    share = FairShare()
    turns(share, 8, 14, news=False)
    turns(share, 8, LONGEST_REST + 1, news=True)
    assert 0 not in turns(share, 8, 5, news=True)


def test_looking_takes_a_small_part_of_the_time() -> None:
    """Proves that after a look that took a second, nobody looks for ten."""
    share = FairShare()
    share.more_is_due(100)
    share.looked(5.0, 6.0)
    assert share.due_in_turn(100, 15.9) == 0
    assert share.due_in_turn(100, 16.0) == 25


def test_who_is_chosen() -> None:
    """Proves that those in turn come first, none twice, and that priority fills what is left."""
    share = FairShare()
    chosen = share.choose(4, runs("a", "b", "c", "d", "e"), [*runs("x", tenant="t"), *runs("b")])
    assert ids(chosen) == ["x", "b", "a", "c"]


def test_the_turn_goes_on_from_the_last_tenant() -> None:
    """Proves that the next look begins after the tenant that was reached, not after the one dealt last."""
    share = FairShare()
    hands = [runs("a1", "a2", tenant="a"), runs("b1", tenant="b")]
    share.choose(9, [], dealt(hands, 9))
    assert share.after == "b"
    share.choose(9, [], [Corrupt("bad", "?")])
    assert share.after == "b"
    share.choose(9, [], runs("n"))
    assert share.after is None


@pytest.mark.parametrize(
    ("after", "expected"),
    [(None, ["a", "b", None]), ("a", ["b", None, "a"]), ("aa", ["b", None, "a"]), ("z", [None, "a", "b"])],
)
def test_tenants_stand_in_a_circle(after: str | None, expected: list[str | None]) -> None:
    """Proves that those without a tenant stand between the last name and the first, and nobody is left out."""
    assert in_turn(["b", None, "a", "b"], after) == expected


def test_dealing() -> None:
    """Proves that each gives one in turn until there are enough, and who has no more is passed over."""
    assert dealt(["abc", "d", "ef"], 9) == list("adebfc")
    assert dealt(["abc", "d", "ef"], 4) == list("adeb")
    assert dealt([], 4) == []


def test_passing_over_leaves_enough() -> None:
    """Proves that the end of what was found is given, or all of it."""
    assert skipped("abcdef", 2) == "ef"
    assert skipped("ab", 5) == "ab"


def test_workers_spread_when_they_are_refused() -> None:
    """Proves that refusals widen the stretch up to its bound, and undisputed pages bring it back to the head."""
    crowding = Crowding()
    assert crowding.skip(100, lambda: 0.999) == 0
    for _ in range(20):
        crowding.told(claimed=0, refused=100)
    assert crowding.skip(100, lambda: 0.999) == (WIDEST - 1) * 100
    assert crowding.skip(100, lambda: 0.0) == 0
    crowding.told(claimed=90, refused=10)  # few are no reason either way
    assert crowding.skip(100, lambda: 0.999) == (WIDEST - 1) * 100
    for _ in range(WIDEST):
        crowding.told(claimed=100, refused=0)
    assert crowding.skip(100, lambda: 0.999) == 0
    crowding.told(claimed=0, refused=0)
    assert crowding.skip(100, lambda: 0.999) == 0
