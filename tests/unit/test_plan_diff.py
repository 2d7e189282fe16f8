"""What is told of two plans that differ."""

import hypothesis.strategies as st
import pytest
from hypothesis import given
from msgspec.structs import replace

from streamline_trio._core.plan import CompensationPlan, Plan, StepPlan
from streamline_trio._core.plan_diff import plan_diff
from streamline_trio._core.retry import RetryPolicy
from tests.unit.story import plan_of


def steps_of(*steps: StepPlan) -> Plan:
    return replace(plan_of("a"), steps=steps)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("abc", "abc", []),
        ("ab", "abc", ["step 'c' was added after 'b'"]),
        ("ab", "xab", ["step 'x' was added at the beginning"]),
        ("abc", "ac", ["step 'b' was removed"]),
        ("abc", "acb", ["steps were reordered: a, b, c -> a, c, b"]),
        ("ab", "xb", ["step 'x' was added at the beginning", "step 'a' was removed"]),
    ],
)
def test_steps_are_told(old, new, told):
    """Proves that added, removed and moved steps are each told, and a removal alone moves nothing."""
    assert list(plan_diff(plan_of(old), plan_of(new))) == told


def test_options_are_told_with_both_values():
    """Proves that options are named with what they were and are, those of retries and compensation too."""
    policy = RetryPolicy()
    old = steps_of(StepPlan(id="a", retry=policy), StepPlan(id="b", retry=policy, timeout=3.0))
    new = replace(
        steps_of(
            StepPlan(id="a", retry=replace(policy, attempts=9, factor=1.0), keep_outputs=2),
            StepPlan(id="b", retry=policy, compensation=CompensationPlan(retry=policy)),
        ),
        timeout=60.0,
        compensate_on_cancel=True,
    )
    assert plan_diff(old, new) == (
        "workflow, timeout: none -> 60.0",
        "workflow, compensate_on_cancel: False -> True",
        "step 'a', retry, attempts: 3 -> 9",
        "step 'a', retry, factor: 2.0 -> 1.0",
        "step 'a', keep_outputs: 0 -> 2",
        "step 'b', timeout: 3.0 -> none",
        "step 'b', compensation: none -> given",
    )
    assert len(plan_diff(new, old)) == 7


plans = st.builds(
    plan_of,
    st.lists(st.sampled_from("abcd"), unique=True, min_size=1).map("".join),
    timeout=st.sampled_from([None, 1.0]),
    attempts=st.integers(1, 2),
)


@given(plans, plans)
def test_plans_differ_exactly_if_something_is_told(old, new):
    """Proves that there is a line for every difference: none if, and only if, the fingerprints are the same."""
    assert (not plan_diff(old, new)) == (old.fingerprint == new.fingerprint)
