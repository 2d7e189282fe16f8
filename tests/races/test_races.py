"""Starts that race from four processes, some of them killed: each promise about starts holds exactly."""

from __future__ import annotations

import sys

import pytest

from tests.races.race import race

pytestmark = [pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"), pytest.mark.deadline(120)]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", ["sqlite", "mongodb"])
async def test_racing_starts_are_counted_exactly(kind, seed, tmp_path, request):
    """Proves that 200 starts from 4 processes with SIGKILLs break no limit, rate, debounce or key."""
    url = f"sqlite:///{tmp_path}/runs.db" if kind == "sqlite" else request.getfixturevalue("databases").url()
    result = await race(url, tmp_path, seed, kills=5)
    assert result.faults == []
    assert result.acknowledged > 0
    assert result.runs > 0
