"""Crash tests run the same way each time in CI: trio's scheduler is seeded there."""

import os
from collections.abc import Iterator

import pytest
import trio


@pytest.fixture(autouse=True)
def interleaving() -> Iterator[None]:
    """The order in which trio runs ready tasks; each test begins it anew."""
    scheduler = trio._core._run._r
    before = scheduler.getstate()
    if os.environ.get("HYPOTHESIS_PROFILE") == "ci":
        scheduler.seed(0)
    yield
    scheduler.setstate(before)
