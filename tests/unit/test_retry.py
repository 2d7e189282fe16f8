"""The arithmetic of waiting for the next attempt."""

# ruff: noqa: ARG005 - stand-ins have the parameters of their protocol

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamline_trio._core.definition import Workflow
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.options import StepOptions
from streamline_trio._core.retry import RetryPolicy, backoff_factor

MIDDLE = 0.5  # the roll that leaves a wait as it is

rolls = st.floats(0, 1, exclude_max=True)
policies = st.builds(
    RetryPolicy,
    attempts=st.integers(1, 1000),
    delay=st.floats(0, 366 * 86_400),
    factor=st.floats(1, 1e6),
    max_delay=st.floats(0, 366 * 86_400),
    jitter=st.floats(0, 1),
)


def test_workflow_defaults_apply_where_the_step_says_nothing():
    """S047: proves that a step without retry options takes those of its workflow."""
    workflow = Workflow("w", defaults=StepOptions(attempts=7, retry_delay=0.05, backoff="fixed"))
    step = workflow.add_step("once", lambda ctx: None)
    own = workflow.add_step("own", lambda ctx: None, attempts=2)
    assert step.options.retry == RetryPolicy(attempts=7, delay=0.05, factor=1.0)
    assert own.options.retry == RetryPolicy(attempts=2, delay=0.05, factor=1.0)


def test_built_in_defaults():
    """S048: proves 3 attempts, 1 s doubling up to 60 s, and jitter of 30 %."""
    expected = RetryPolicy(attempts=3, delay=1.0, factor=2.0, max_delay=60.0, jitter=0.3)
    assert RetryPolicy() == expected
    assert Workflow("w").add_step("s", lambda ctx: None).options.retry == expected


@pytest.mark.parametrize(
    ("policy", "waits"),
    [
        (RetryPolicy(jitter=0.0), [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]),
        (RetryPolicy(jitter=0.0, max_delay=5.0), [1.0, 2.0, 4.0, 5.0]),
        (RetryPolicy(jitter=0.0, delay=0.5, factor=1.0), [0.5, 0.5, 0.5]),
        (RetryPolicy(jitter=0.0, delay=0.0), [0.0, 0.0]),
        (RetryPolicy(jitter=0.0, delay=90.0), [60.0, 60.0]),
    ],
)
def test_backoff_without_jitter(policy, waits):
    """S049: proves the exponential series, its cap, the constant series and the empty wait."""
    assert [policy.delay_after(failures, 0.9) for failures in range(1, len(waits) + 1)] == waits


@given(rolls)
def test_jitter_stays_within_its_part(roll):
    """S050: proves that a wait of 1 s is never less than 0.7 s nor more than 1.3 s."""
    assert 0.7 - 1e-9 <= RetryPolicy().delay_after(1, roll) <= 1.3 + 1e-9


def test_jitter_follows_the_roll():
    """S050: proves that the ends of the roll give the ends of the spread, and the middle the wait."""
    policy = RetryPolicy()
    ends = [policy.delay_after(1, roll) for roll in (0.0, MIDDLE, math.nextafter(1, 0))]
    assert ends == pytest.approx([0.7, 1.0, 1.3])


def test_the_cap_comes_before_the_jitter():
    """Proves that the longest wait is the cap and its jitter."""
    policy = RetryPolicy(delay=1000.0)
    assert policy.delay_after(1, 0.0) == pytest.approx(42.0)
    assert policy.delay_after(1, math.nextafter(1, 0)) == pytest.approx(78.0)


@given(policies, st.integers(1, 10**9), rolls)
def test_every_wait_is_finite_not_negative_and_bounded(policy, failures, roll):
    """S049: proves that no numbers, however large, give an overflow, a negative or an endless wait."""
    wait = policy.delay_after(failures, roll)
    assert 0 <= wait <= policy.max_delay * (1 + policy.jitter) * (1 + 1e-9)


@given(policies, st.integers(1, 2000))
def test_waits_do_not_shrink(policy, failures):
    """Proves that, chance apart, a later failure never waits less than an earlier one."""
    assert policy.delay_after(failures + 1, MIDDLE) >= policy.delay_after(failures, MIDDLE)


@pytest.mark.parametrize(
    ("backoff", "factor"), [("exponential", 2), ("linear", 1), ("fixed", 1), (3, 3), (1.5, 1.5), (1, 1)]
)
def test_backoff_names_and_numbers(backoff, factor):
    """S051: proves what each name means and that a number is the factor itself."""
    assert backoff_factor(backoff) == factor
    step = Workflow("w").add_step("s", lambda ctx: None, backoff=backoff)
    assert step.options.retry.factor == factor


def test_no_backoff_means_doubling():
    """S051: proves that a step which names no backoff doubles its waits."""
    assert Workflow("w").add_step("s", lambda ctx: None).options.retry.factor == 2


@pytest.mark.parametrize("bad", ["quadratic", "", 0.5, 0, -1, True, False, math.nan, math.inf, None, [2]])
def test_a_bad_backoff_is_refused(bad):
    """Proves that other names, shrinking factors, booleans and endless numbers are refused."""
    with pytest.raises(ValidationError, match="backoff must be"):
        backoff_factor(bad)


def test_a_policy_is_stored_without_its_defaults():
    """Proves that a policy round-trips, and that defaults take no room."""
    policy = RetryPolicy(attempts=5)
    stored = msgspec.msgpack.encode(policy)
    assert msgspec.msgpack.decode(stored) == {"attempts": 5}
    assert msgspec.msgpack.decode(stored, type=RetryPolicy) == policy
