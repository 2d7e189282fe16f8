"""Children of a run, by any history: their ends come to the same in any order, and none is forgotten."""

from __future__ import annotations

from typing import Any, get_args

import hypothesis.strategies as st
from hypothesis import given
from msgspec.structs import replace

from streamline_trio._core import happenings as h
from streamline_trio._core.decide import StartRequest, admit, decide
from streamline_trio._core.documents import ErrorDoc, Origin, Parent, Record, RunDoc
from streamline_trio._core.errors import LeaseLost, StreamlineError
from streamline_trio._core.joins import POLICIES, bits_of
from streamline_trio._core.plan import StepPlan, make_plan
from streamline_trio._core.retry import RetryPolicy
from streamline_trio._core.status import SETTLED, RunStatus

STATUSES = sorted(SETTLED)
BRANCHES = 4
PLAN = make_plan(
    workflow="w",
    version="1",
    steps=tuple(StepPlan(id=id, retry=RetryPolicy(attempts=2, delay=1, jitter=0)) for id in ("one", "two")),
    timeout=None,
    max_step_logs=0,
)
ERROR = ErrorDoc(code="c", message="m")

ends = st.builds(
    h.ChildEnd,
    key=st.sampled_from(["a", "b"]),
    group=st.sampled_from(["G0", "G1", "G2", "G3"]),
    index=st.integers(0, BRANCHES - 1),
    status=st.sampled_from(STATUSES),
)

outcomes = st.lists(st.sampled_from(STATUSES), min_size=BRANCHES, max_size=BRANCHES)


def parked(policy: str, concurrency: int | None, started: int) -> RunDoc:
    """A run that waits for a join."""
    origin = Origin(id="r", workflow="w", start_id=1, created_at=1, input=b"\xc0")
    run = admit(StartRequest(origin=origin, state=b"\xc0"), PLAN, 1, "me").run
    asked = h.Ask(
        key="a",
        kind="join",
        ask="x",
        place=0,
        group="G",
        policy=policy,
        branches=BRANCHES,
        started=started,
        concurrency=concurrency,
    )
    return decide(run, h.Suspended(worker="me", fence=1, step="one", asks=(asked,)), PLAN, 2).run


def told(run: RunDoc, *given: tuple[int, str]) -> RunDoc:
    ends = tuple(h.ChildEnd(key="a", group="G", index=index, status=status) for index, status in given)
    return decide(run, h.ChildrenEnded(ends=ends), PLAN, 3).run


@given(
    st.data(), st.sampled_from(POLICIES), st.lists(st.sampled_from(STATUSES), min_size=BRANCHES, max_size=BRANCHES)
)
def test_order_and_repetition_of_nudges_do_not_matter(data, policy, statuses):
    """Proves that told in one batch, or one by one in any order and more than once, ends resolve the join alike."""
    every = list(enumerate(statuses))
    batch = told(parked(policy, None, BRANCHES), *data.draw(st.permutations(every)))
    run = parked(policy, None, BRANCHES)
    for end in data.draw(st.permutations(every * 2)):
        run = told(run, end)
    one, other = run.records["a"], batch.records["a"]
    assert not one.is_open
    assert not other.is_open
    if policy in {"all", "settled"}:
        assert one.outcome == other.outcome
    assert bits_of(one.good) & ~bits_of(one.ended) == 0
    assert bits_of(one.ended) & ~bits_of(other.ended) == 0
    assert run.head.status == batch.head.status == "running"


@given(st.data(), st.sampled_from(POLICIES), st.integers(1, BRANCHES))
def test_a_join_with_limited_branches_always_goes_on(data, policy, concurrency):
    """Proves that whatever ends first, a join comes to its end, with at most so many branches under way."""
    run = parked(policy, concurrency, concurrency)
    live = set(range(concurrency))
    statuses = data.draw(outcomes)
    while (record := run.records["a"]).is_open:
        assert len(live) <= concurrency
        if run.head.status == "running":
            started = min(
                BRANCHES, (len(live) and record.started + concurrency - len(live)) or record.started + concurrency
            )
            live |= set(range(record.started, started))
            run = decide(run, h.Claimed(worker="me"), PLAN, 9).run
            asked = h.Ask(key="a", kind="join", ask="x", place=0, group="other", started=started)
            fence = run.head.fence
            run = decide(run, h.Suspended(worker="me", fence=fence, step="one", asks=(asked,)), PLAN, 9).run
            assert run.head.status == "waiting"
        else:
            assert live, "it waits, and nothing is under way that could wake it"
            index = data.draw(st.sampled_from(sorted(live)))
            live.discard(index)
            run = told(run, (index, statuses[index]))


VERBS: list[st.SearchStrategy[h.Happening]] = [
    st.builds(h.ChildrenEnded, ends=st.lists(ends, min_size=1, max_size=3).map(tuple)),
    st.just(h.CancelAsked(reason="enough")),
    st.just(h.CancelAsked(lease_dead=True)),
    st.just(h.PauseAsked()),
    st.just(h.UnpauseAsked()),
    st.just(h.Retried()),
    st.builds(h.Rewound, to=st.sampled_from(["one", "two"]), lease_dead=st.booleans()),
    st.just(h.Answered(payload=b"\x01")),
    st.builds(h.Claimed, worker=st.just("me"), lease_dead=st.booleans(), max_recoveries=st.just(1)),
    st.just(h.ErrandsDone(numbers=("00000001",))),
    st.just(h.ErrandsTaken(numbers=("00000001", "00000002"))),
]
KEYS = st.sampled_from(["a", "b"])


@st.composite
def held(draw: Any, run: RunDoc, group: str) -> h.Happening:
    """Something that the holder may bring about."""
    fields: dict[str, Any] = {"worker": "me", "fence": run.head.fence}
    step = run.head.current_step or "one"
    asked = st.builds(
        h.Ask,
        key=KEYS,
        kind=st.sampled_from(["child", "join"]),
        ask=st.sampled_from(["x", "y"]),
        place=st.just(0),
        group=st.just(group),
        policy=st.sampled_from(POLICIES),
        branches=st.just(BRANCHES),
        started=st.integers(0, BRANCHES),
        concurrency=st.none() | st.integers(1, 2),
        keeps_losers=st.booleans(),
    )
    timer = h.Ask(key="t", kind="timer", ask="timer", place=1, due_at=1 << 40)
    just = {name: st.just(value) for name, value in fields.items()} | {"step": st.just(step)}
    happening: h.Happening = draw(
        st.one_of(
            st.builds(h.WaitOpened, ask=asked, **just),
            st.builds(h.Suspended, asks=asked.map(lambda one: (one,)), **just),
            st.just(h.Suspended(step=step, asks=(timer,), **fields)),
            st.builds(h.BranchesStarted, key=KEYS, group=st.just(group), started=st.integers(0, 4), **just),
            st.just(h.Finished(step=step, output=b"", **fields)),
            st.builds(h.AttemptFailed, error=st.just(ERROR), retriable=st.booleans(), **just),
            st.builds(h.WentTo, target=st.sampled_from(["one", "two"]), **just),
            st.just(h.HandedBack(**fields)),
            st.just(h.CancelUnwound(**fields)),
        )
    )
    return happening


@given(st.data())
def test_no_child_is_forgotten(data):
    """Proves that by any history each child has ended, is waited for, is kept on purpose, or is to be cancelled."""
    parent = Parent(run="p", step="s", key="k", group="P")
    origin = Origin(id="r", workflow="w", start_id=1, created_at=1, input=b"\xc0", parent=parent)
    run = admit(StartRequest(origin=origin, state=b"\xc0"), PLAN, 1, "me").run
    open_before: dict[str, Record] = {}
    cancelled, nudges = set[str](), 0
    for number in range(data.draw(st.integers(1, 25))):
        verbs = [*VERBS, held(run, f"G{number % 4}")] if run.head.lease else VERBS
        happening = data.draw(st.one_of(verbs))
        before = run
        try:
            run = decide(run, happening, PLAN, 10 * number + 2).run
        except (StreamlineError, LeaseLost):
            continue
        new = [errand for key, errand in run.outbox.items() if key not in before.outbox]
        cancelled = {errand.group for errand in new if errand.kind == "cancel"}
        now_open = {record.group: record for record in run.records.values() if record.group and record.is_open}
        by_group = {record.group: record for record in run.records.values() if record.group}
        for group, record in open_before.items():
            if group in now_open:
                continue
            after = by_group.get(group)
            assert group in cancelled or (after is not None and _is_covered(after)), (group, record, happening)
        open_before = now_open
        nudges = sum(errand.kind == "nudge" for errand in new)
        assert nudges == (run.head.status in SETTLED and before.head.status not in SETTLED)
        assert run.head.errand_at == min((errand.due_at for errand in run.outbox.values()), default=None)
        assert run.head.errands >= len(run.outbox)


def _is_covered(record: Record) -> bool:
    """Whether nothing of a suspension that is over is left that nobody looks after."""
    if record.keeps_losers and record.kind == "join":
        return True
    if record.kind == "child":
        return record.status in get_args(RunStatus)
    return bits_of(record.ended).bit_count() == record.branches


def test_the_law_sees_a_child_that_is_forgotten():
    """Proves that the law above is no empty one: a record that is over with branches left is not covered."""
    record = Record(kind="join", ask="x", attempt=1, place=0, opened_at=1, branches=2, ended="1", outcome="value")
    assert not _is_covered(record)
    assert _is_covered(replace(record, ended="3"))
