"""Crash tests run the same way each time in CI: trio's scheduler is seeded there."""

import os
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from streamline_trio.testing._scheduler import same_order


@pytest.fixture(autouse=True)
def interleaving() -> Iterator[None]:
    """The order in which trio runs ready tasks; in CI each test begins it anew."""
    with same_order(0) if os.environ.get("HYPOTHESIS_PROFILE") == "ci" else nullcontext():
        yield
