"""The order of versions."""

import random
import string
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from streamline_trio._core.naming import is_version
from streamline_trio._core.versions import version_key

ASCENDING = [
    "no version",
    "0",
    "0.9",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.2",
    "1.0.0-alpha.10",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-rc.1",
    "1.0.0",
    "1.0.1",
    "1.2.0",
    "1.10.0",
    "2",
    "2.0.0.1",
    "v2.1",
    "10.0.0-rc",
    "10.0.0",
]

versions = st.from_regex(
    r"\Av?[0-9]{1,2}(\.[0-9]{1,2}){0,3}([-+][0-9A-Za-z]{1,2}([.+-][0-9A-Za-z]{1,2}){0,2})?\Z"
).filter(is_version)


def test_versions_sort_by_number():
    """S387: Proves that numbers count by value, and pre-releases come before their release."""
    shuffled = random.Random(1).sample(ASCENDING, len(ASCENDING))
    assert sorted(shuffled, key=version_key) == ASCENDING


@pytest.mark.parametrize("same", [["1", "1.0", "1.0.0"], ["1.0.0+a", "1.0.0+b"], ["1.0", "v1.0.0"]])
def test_what_says_the_same_stands_together(same):
    """Proves that missing zeros, a `v` and build words do not count, and the order is the same each time."""
    for one, other in pairwise(same):
        assert version_key(one)[:-1] == version_key(other)[:-1]
        assert (version_key(one) < version_key(other)) == (one < other)


@given(versions, versions)
def test_the_order_is_total(one, other):
    """Proves that any two versions compare, and are alike only if they are the same text."""
    assert (version_key(one) == version_key(other)) == (one == other)
    assert (version_key(one) < version_key(other)) != (version_key(one) >= version_key(other))


@given(st.text(string.printable, max_size=10))
def test_any_text_has_a_place(text):
    """Proves that what an older release stored can be sorted, whatever it is."""
    assert version_key(text)[0] == is_version(text)
