"""Plans, wishes of handlers, and small pools of names that are meant to collide."""

from typing import Any

import hypothesis.strategies as st

from streamline_trio._core.plan import CompensationPlan, StepPlan, make_plan
from streamline_trio._core.retry import RetryPolicy
from tests.unit.story import T0, pack

IDS = "abcdef"

workers = st.sampled_from(["w1", "w2", "w3"])
rolls = st.sampled_from([0.0, 0.5, 0.999])
reasons = st.none() | st.just("because")
releases = st.sampled_from([False, False, True, False, False])
tokens = st.sampled_from([None, "t1", "t2"])
signals = st.sampled_from(["s", "s", "t"])
signal_ids = st.sampled_from(["m1", "m2", None, None])
step_ids = st.sampled_from(IDS)
matches = st.none() | st.integers(0, 1).map(lambda kind: pack({"k": kind}))
policies = st.builds(
    RetryPolicy,
    attempts=st.integers(1, 4),
    delay=st.sampled_from([0.0, 0.5, 30.0]),
    factor=st.sampled_from([1.0, 2.0]),
    jitter=st.sampled_from([0.0, 0.3]),
)
compensations = st.builds(CompensationPlan, retry=policies, when=st.sampled_from(["finished", "started"]))
plans = st.builds(
    lambda steps, timeout, on_cancel, keep: make_plan(
        workflow="w",
        version="1",
        steps=tuple(
            StepPlan(id=step, retry=retry, compensation=compensation, keep_outputs=keep)
            for step, (retry, compensation) in zip(IDS, steps, strict=False)
        ),
        timeout=timeout,
        max_step_logs=1000,
        compensate_on_cancel=on_cancel,
    ),
    st.lists(st.tuples(policies, st.none() | compensations), min_size=1, max_size=6),
    st.sampled_from([None, None, 5.0, 100.0]),
    st.booleans(),
    st.sampled_from([0, 1, 3]),
)
drafts = st.sampled_from([(None, "w1"), (None, "w1"), (None, None), (T0 + 2000, None)])


@st.composite
def asks(draw: st.DrawFn) -> dict[str, Any]:
    """A wish of a handler; its times are told relative to now."""
    kind = draw(st.sampled_from(["timer", "human", "signal"]))
    due_in = draw(st.sampled_from([-10, 0, 500, 20_000]))
    fields: dict[str, Any] = {"kind": kind, "place": draw(st.integers(0, 1)), "due_in": due_in}
    if kind != "timer":
        fields["due_in"] = draw(st.sampled_from([None, None, due_in]))
    if kind == "human":
        fields["token"] = draw(tokens)
        fields["approval"] = draw(st.booleans())
    if kind == "signal":
        fields.update(signal=draw(signals), match=draw(matches))
    fields["key"] = draw(st.sampled_from([f"{kind}#0", "=x"]))
    fields["ask"] = f"{kind}{fields.get('signal', '')}"
    return fields
