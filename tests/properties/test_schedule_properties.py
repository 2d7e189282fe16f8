"""What a schedule fires, against an oracle that walks over every occurrence."""

import itertools
from typing import Any

import hypothesis.strategies as st
import msgspec
import whenever
from hypothesis import given

from streamline_trio import Recurrence
from streamline_trio._core.durations import instant_of
from streamline_trio._core.schedules import ScheduleDoc, advance, completed, due_at, timed, with_due

START = whenever.Instant.from_utc(2026, 3, 27).timestamp(unit="millisecond")
MINUTE = 60_000


@st.composite
def rules(draw: st.DrawFn) -> Recurrence:
    options: dict[str, Any] = {
        "catch_up": draw(st.integers(0, 4)),
        "misfire_grace": draw(st.sampled_from([0, 1, 60, 600, 7200])),
        "count": draw(st.none() | st.integers(1, 30)),
        "until": draw(st.none() | st.integers(0, 5000).map(lambda n: instant_of(START + n * MINUTE))),
        "overlap": draw(st.sampled_from(["allow", "skip", "queue"])),
    }
    if draw(st.booleans()):
        return Recurrence.every(draw(st.sampled_from([30, 60, 61.5, 900, 86_400])), **options)
    expression = draw(st.sampled_from(["* * * * *", "*/7 1-3 * * *", "30 2 * * *", "0 0 29 * *", "15 */5 * * 0,1"]))
    return Recurrence.cron(expression, draw(st.sampled_from(["Europe/Berlin", "UTC", "Asia/Kolkata"])), **options)


def schedule(every: Recurrence, jitter: int) -> ScheduleDoc:
    doc = ScheduleDoc(
        id="s",
        incarnation=1,
        workflow="flow",
        input=b"\xc0",
        every=every,
        jitter=jitter,
        created_at=START,
        updated_at=START,
        anchor=START,
        after=START,
    )
    return with_due(doc)


looks = st.lists(st.sampled_from([1, 30_000, MINUTE, 20 * MINUTE, 3 * 60 * MINUTE, 3 * 86_400_000]), max_size=12)


class Oracle:
    """Decides occurrence by occurrence, without looking back or ahead."""

    def __init__(self, doc: ScheduleDoc) -> None:
        self.every = doc.every
        endless = msgspec.structs.replace(doc.every, count=None)
        end = START + 50 * 86_400_000
        walk = timed(msgspec.structs.replace(doc, every=endless), START)
        self.left: list[tuple[int, int]] = []
        for firing, fires_at in walk:
            if firing.at > end or len(self.left) > 80_000:
                break
            self.left.append((firing.at, fires_at))
        self.fired: list[int] = []
        self.queued: list[int] = []
        self.missed = self.skipped = self.spent = 0

    def look(self, now: int, *, busy: bool) -> list[int]:
        """What begins now; `busy`: a run that began before has not settled."""
        begun: list[int] = []
        if self.queued and not busy:
            begun.append(self.queued.pop(0))
        due = []
        while self.left and self.left[0][1] <= now:
            due.append(self.left.pop(0))
        grace = max(1000, round(self.every.misfire_grace * 1000))
        late = [at for at, fires_at in due if fires_at < now - grace]
        if not self._is_used_up:
            self.missed += max(0, len(late) - self.every.catch_up)
        made_up = late[max(0, len(late) - self.every.catch_up) :]
        for at in made_up + [at for at, fires_at in due if fires_at >= now - grace]:
            if self._is_used_up:
                break
            if self.every.overlap == "allow" or not (busy or begun or self.queued):
                begun.append(at)
            elif self.every.overlap == "queue" and len(self.queued) < max(1, self.every.catch_up):
                self.queued.append(at)
            else:
                self.skipped += 1
                continue
            self.spent += 1
        self.fired += begun
        return begun

    @property
    def _is_used_up(self) -> bool:
        return self.every.count is not None and self.spent >= self.every.count


@given(rules(), st.sampled_from([0, 10_000, 5_000_000]), looks, st.randoms(use_true_random=False))
def test_a_schedule_does_what_the_oracle_does(every, jitter, pauses, chance):
    """Proves what fires, is missed, made up, skipped and queued, whenever workers look and runs settle."""
    doc = schedule(every, jitter)
    oracle = Oracle(doc)
    now = START
    for pause in pauses:
        now += pause
        settled = frozenset(run for run in doc.active if chance.random() < 0.5)
        busy = len(settled) < len(doc.active)
        begun = list[int]()
        while True:
            before = doc
            doc, firings = advance(doc, now, until=now + 1, settled=settled)
            begun += [firing.at for firing in firings]
            if doc is before or doc.due is None or doc.due > now:
                break
        assert begun == oracle.look(now, busy=busy)
        doc = completed(doc, dict.fromkeys((firing.name for firing in doc.pending), None))
        assert (doc.missed, doc.skipped, doc.spent) == (oracle.missed, oracle.skipped, oracle.spent)
        assert [firing.at for firing in doc.queued] == oracle.queued
        assert doc.due is None or doc.due > now
        assert due_at(doc) == (0 if doc.queued else doc.due)
    assert doc.fired == len(oracle.fired)
    assert len(set(oracle.fired)) == len(oracle.fired)


@given(rules(), st.integers(0, 10_000_000), st.integers(0, 40))
def test_jitter_keeps_the_order(every, jitter, start):
    """Proves that each firing is at most the jitter late, and before the next occurrence."""
    doc = schedule(every, jitter)
    found = [each for _, each in zip(range(40), timed(doc, START + start * MINUTE), strict=False)]
    for firing, fires_at in found:
        assert firing.at <= fires_at <= firing.at + jitter
    for (_, fires_at), (following, _) in itertools.pairwise(found):
        assert fires_at < following.at
