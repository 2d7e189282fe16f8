"""Throttles under whatever can happen: clocks that jump, replies that are lost, workers that read late."""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import assume, given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from streamline_trio._core.throttling import Bucket, Pass, Want, ask

LIMITS = st.integers(1, 5)
WINDOWS = st.integers(1, 2_000)


@dataclass
class Draft:
    """A run as it is stored: its slot, when it began, and in which of its turns."""

    run: str
    slot: int | None = None
    turn: int = 0
    began: list[int] = field(default_factory=list)
    revision: int = 0
    waits: bool = True


def want(draft: Draft, limit: int, window: int, *, now: bool = True) -> Want:
    return Want(run=draft.run, turn=draft.turn, limit=limit, window=window, slot=draft.slot, now=now)


def most_in_a_window(instants: list[int], window: int) -> int:
    """The most of them that any half-open window of this length holds."""
    return max((sum(start <= at < start + window for at in instants) for start in instants), default=0)


class Machine(RuleBasedStateMachine):
    """Several machines with clocks of their own, one bucket, and runs that are asked for again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = 2
        self.window = 1_000
        self.now = 10_000
        self.bucket = Bucket()
        self.drafts: list[Draft] = []
        self.under_way: list[tuple[Draft, int, Pass]] = []
        """Answers on their way to the run: the revision that they were asked for, and what was answered."""

    @rule(limit=LIMITS, window=WINDOWS)
    @precondition(lambda self: not self.drafts)
    def set_up(self, limit: int, window: int) -> None:
        self.limit, self.window = limit, window

    @rule(step=st.integers(0, 3_000))
    def time_passes(self, step: int) -> None:
        self.now += step

    @rule()
    def start(self) -> None:
        self.drafts.append(Draft(f"r{len(self.drafts)}"))

    @precondition(lambda self: self.drafts)
    @rule(data=st.data(), skew=st.integers(-500, 500), place=st.booleans(), is_lost=st.booleans())
    def ask_for_some(self, data: st.DataObject, skew: int, place: bool, is_lost: bool) -> None:
        """One machine, whose clock is off by a little, asks for some that others may be claiming just now."""
        some = data.draw(st.lists(st.sampled_from(self.drafts), max_size=8, unique_by=id))
        waiting = [draft for draft in some if draft.waits]
        wants = [want(draft, self.limit, self.window, now=place) for draft in waiting]
        self.bucket, passes = ask(self.bucket, wants, self.now + skew)
        if not is_lost:
            self.under_way += [(d, d.revision, p) for d, p in zip(waiting, passes, strict=True)]

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def an_answer_arrives(self, data: st.DataObject) -> None:
        """The guarded commit of what was answered; in any order."""
        place = data.draw(st.integers(0, len(self.under_way) - 1))
        draft, revision, answer = self.under_way.pop(place)
        if draft.revision != revision:
            return
        draft.revision += 1
        if answer.answer == "begins":
            draft.began.append(answer.at)
            draft.waits = False
        else:
            draft.slot = answer.at

    @precondition(lambda self: any(not draft.waits for draft in self.drafts))
    @rule(data=st.data())
    def take_up_again(self, data: st.DataObject) -> None:
        """A run that had settled is retried."""
        draft = data.draw(st.sampled_from([draft for draft in self.drafts if not draft.waits]))
        draft.waits, draft.slot = True, None
        draft.turn += 1
        draft.revision += 1

    @rule()
    def sweep(self) -> None:
        """Care removes what is over."""
        if self.bucket.forgotten_at() <= self.now - 500:
            self.bucket = Bucket()

    @invariant()
    def no_window_holds_more(self) -> None:
        begins = [at for draft in self.drafts for at in draft.began]
        assert most_in_a_window(begins, self.window) <= self.limit

    @invariant()
    def what_is_kept_is_bounded(self) -> None:
        kept = self.bucket
        assert max(map(len, (kept.begins, kept.slots, kept.late))) <= max(kept.limit, 1)
        assert list(kept.begins) == sorted(kept.begins)


def test_no_window_ever_holds_more():
    """Proves that whatever is lost, late, repeated or out of step, at most `limit` runs begin in any window."""
    run_state_machine_as_test(Machine, settings=settings(stateful_step_count=60, deadline=None))


@given(limit=LIMITS, window=st.integers(10, 2_000), count=st.integers(1, 40), gaps=st.lists(st.integers(0, 300)))
def test_slots_of_starts_are_distinct_and_in_order(limit, window, count, gaps):
    """Proves that starts get what the formula says: who has to wait has a slot of his own, in order of arrival."""
    assume(window >= limit)
    bucket, now, slots = Bucket(), 1_000, list[int]()
    for number in range(count):
        now += gaps[number] if number < len(gaps) else 0
        expected = now if len(slots) < limit else max(now, slots[-limit] + window)
        if slots and max(expected, slots[-1]) > now:
            expected = max(expected, slots[-1] + window // limit)
        bucket, (answer,) = ask(bucket, [want(Draft(f"r{number}"), limit, window)], now)
        assert answer.at == expected
        slots.append(answer.at)
        # Those whose slot has come begin; in time, so that each finds room.
        assert answer.answer == ("begins" if answer.at == now else "held")
    held = [at for at in slots if slots.count(at) == 1 or at > now]
    assert len(set(held)) == len(held)
    assert slots == sorted(slots)
    assert most_in_a_window(slots, window) <= limit


@given(
    rate=st.tuples(LIMITS, st.integers(50, 2_000)),
    count=st.integers(1, 60),
    late=st.integers(0, 100_000),
    lag=st.integers(0, 20),
    page=st.integers(1, 10),
)
def test_overdue_drafts_begin_at_the_full_rate(rate, count, late, lag, page):
    """Proves that after downtime of any length nothing bursts, nothing starves and little is written.

    The drafts are asked for page by page, a little after they fall due, as by a worker.
    """
    limit, window = rate
    _, passes = ask(Bucket(), [want(Draft(f"r{n}"), limit, window) for n in range(count)], 0)
    drafts = [Draft(f"r{n}", slot=answer.at) for n, answer in enumerate(passes)]
    bucket = Bucket()  # swept, long ago
    now, asked = late + max(answer.at for answer in passes) + 1, 0
    while waiting := [draft for draft in drafts if draft.waits]:
        due = sorted((d for d in waiting if (d.slot or 0) <= now), key=lambda d: (d.slot or 0, d.run))
        if not due:
            now = min(draft.slot or 0 for draft in waiting) + lag
            continue
        for draft in due[:page]:
            bucket, (answer,) = ask(bucket, [want(draft, limit, window)], now)
            asked += 1
            draft.slot = answer.at
            if answer.answer == "begins":
                draft.waits = False
                draft.began.append(answer.at)
    begins = sorted(at for draft in drafts for at in draft.began)
    assert most_in_a_window(begins, window) <= limit
    # A window for each `limit` of them; a worker that comes late each time loses that much, and a share at times.
    windows = -(-count // limit)
    assert begins[-1] - begins[0] <= windows * (window + 2 * lag) + window
    assert asked <= 4 * count + 10


def test_what_was_never_heard_of_is_replaced():
    """Proves that a begin whose run did not hear of it is taken up by the run itself, and by no other."""
    lost, other = Draft("lost"), Draft("other")
    bucket, (first,) = ask(Bucket(), [want(lost, 1, 1_000)], 5_000)
    assert first == Pass(at=5_000, answer="begins")
    bucket, (refused,) = ask(bucket, [want(other, 1, 1_000)], 5_100)
    assert refused == Pass(at=6_000, answer="held")
    bucket, (again,) = ask(bucket, [want(lost, 1, 1_000)], 5_200)
    assert again == Pass(at=5_200, answer="begins")
    other.slot = refused.at
    bucket, (put_off,) = ask(bucket, [want(other, 1, 1_000)], 6_000)
    assert put_off == Pass(at=6_200, answer="held")
    lost.turn = 1
    bucket, (retried,) = ask(bucket, [want(lost, 1, 1_000)], 6_100)
    assert retried == Pass(at=7_200, answer="held"), "a later turn is a begin of its own"


def test_a_clock_that_is_behind_begins_nothing_in_the_past():
    """Proves that the last begin is the bucket's clock: what begins after it is not recorded before it."""
    bucket, _ = ask(Bucket(), [want(Draft("a"), 2, 1_000)], 5_000)
    bucket, (answer,) = ask(bucket, [want(Draft("b"), 2, 1_000)], 4_000)
    assert answer == Pass(at=5_000, answer="begins")
    assert bucket.begins == (5_000, 5_000)


def test_a_begin_that_may_have_happened_stays():
    """Proves that whoever asks late for a run that has begun takes nothing from what is known of its begin."""
    run = Draft("run")
    bucket, _ = ask(Bucket(), [want(run, 1, 1_000)], 5_000)
    for place in (True, False):
        after, _ = ask(bucket, [want(run, 1, 1_000, now=place)], 5_100)
        _, (other,) = ask(after, [want(Draft("other", slot=5_200), 1, 1_000)], 5_200)
        assert other.answer == "held"
        assert other.at >= 6_000


def test_a_bucket_is_kept_beyond_its_window():
    """Proves that it is not removed while anything in it counts, by clocks up to a minute apart."""
    bucket, _ = ask(Bucket(), [want(Draft(name), 1, 1_000) for name in "abc"], 5_000)
    assert bucket.slots == (7_000,)
    assert bucket.forgotten_at() == 7_000 + 1_000 + 60_000
