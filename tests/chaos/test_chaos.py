"""Short chaoses with processes; `make chaos` and `make chaos STORE=mongodb` run long ones."""

from __future__ import annotations

import os
import sys

import msgspec
import pytest

from tests.chaos.check import check
from tests.chaos.records import Harm
from tests.chaos.world import Settings, World

ON_SQLITE = Settings(seed=1, runs=180, harm=Harm(kills=20, freezes=5), pause=1.5)
ON_MONGODB = Settings(seed=1, runs=60, harm=Harm(kills=6, freezes=2, restarts=1), pause=1.5, store="mongodb")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.deadline(160)
@pytest.mark.parametrize("settings", [ON_SQLITE, ON_MONGODB], ids=lambda settings: settings.store)
async def test_every_law_holds_in_chaos(tmp_path, settings):
    """Proves that killed and frozen processes, and a killed server, break no promise."""
    seed = int(os.environ.get("CHAOS_SEED") or settings.seed)
    result = await World(tmp_path, msgspec.structs.replace(settings, seed=seed)).run()
    (tmp_path / "story.json").write_bytes(msgspec.json.encode(result.story))
    assert [*result.problems, *check(result.story)] == []
    assert len(result.story.finals) >= settings.runs
    assert result.harm.kills >= settings.harm.kills
    assert result.harm.freezes >= settings.harm.freezes
    assert result.harm.restarts >= settings.harm.restarts
    assert sum(final.recoveries for final in result.story.finals) > 0
