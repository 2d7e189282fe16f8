"""Processes killed at random instants while runs start children, join them and undo what they did."""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import trio

from streamline_trio import Engine, open_engine
from tests.crash.composed import BRANCHES, SHOTS, composed
from tests.crash.worker_process import Ledger, Site, worker_process

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

LONG = 40.0
RUNS = 6
KILLS = 5
MISSED_SOON = {"lease": 1.0, "poll_interval": 0.1, "max_recoveries": 50, "workflows": ["member", "family", "order"]}


@pytest.fixture(params=["sqlite", "mongodb"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    if request.param == "sqlite":
        return Site(f"sqlite:///{tmp_path}/runs.db", tmp_path)
    return Site(request.getfixturevalue("databases").url(), tmp_path)


async def settled_after_kills(site: Site, engine: Engine, workflow: str, chance: random.Random) -> list[str]:
    """Start runs, kill one worker after the other, let the last one live until all has settled."""
    run_ids = [f"r{number}" for number in range(RUNS)]
    for run_id in run_ids:
        await engine.start(workflow, run_id=run_id)
    for _ in range(KILLS):
        async with worker_process(site, max_concurrent_runs=8, **MISSED_SOON) as worker:
            await trio.sleep(chance.uniform(0.0, 0.3))
            worker.kill()
    async with worker_process(site, **MISSED_SOON):
        with trio.fail_after(LONG):
            for run_id in run_ids:
                await engine.run(run_id).wait()
    return run_ids


@pytest.mark.parametrize("seed", [1, 2])
async def test_children_are_started_once_whoever_is_killed(site, tmp_path, seed):
    """Proves that after SIGKILLs at random instants each child was started once, and its end reached its parent."""
    ledger = Ledger(tmp_path)
    async with open_engine(site.url, *composed(ledger), worker=False, poll_interval=0.1) as engine:
        for run_id in await settled_after_kills(site, engine, "family", random.Random(seed)):
            run = await engine.get(run_id)
            assert run.status == "done", run.error
            assert run.steps["only"].output == 200
            assert run.steps["many"].output == sum(range(BRANCHES)) * 2
            assert run.steps["spread"].output == sum(range(SHOTS)) * 2
            children = (await engine.find(parent=run_id)).items
            assert len(children) == 1 + BRANCHES
            assert {child.status for child in children} == {"done"}
        assert await engine.count(status=["draft", "running", "waiting"]) == 0
    entered = Counter(tuple(line[:-1]) for line in ledger.lines() if line[0] in {"half", "only", "many"})
    again = {entry: times for entry, times in entered.items() if times > 1 and entry[0] == "half"}
    assert not again, "an attempt of a child was called twice"


@pytest.mark.parametrize("seed", [1, 2])
async def test_compensation_survives_whoever_is_killed(site, tmp_path, seed):
    """Proves that after SIGKILLs in the midst of it every finished step is undone, newest first, under one key."""
    ledger = Ledger(tmp_path)
    async with open_engine(site.url, *composed(ledger), worker=False, poll_interval=0.1) as engine:
        run_ids = await settled_after_kills(site, engine, "order", random.Random(seed))
        for run_id in run_ids:
            assert (await engine.get(run_id)).status == "compensated"
    undone: defaultdict[str, list[str]] = defaultdict(list)
    keys: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for kind, run_id, step, *rest in lines_of(ledger):
        if kind == "undone":
            undone[run_id].append(step)
            assert rest == [step], "it saw the output that it undoes"
        elif kind == "undo":
            keys[run_id, step].add(rest[0])
    for run_id in run_ids:
        order = list(dict.fromkeys(undone[run_id]))
        assert order == ["label", "pay", "reserve"]
        assert undone[run_id] == sorted(undone[run_id], key=order.index), "what is undone is not undone again later"
        assert all(len(keys[run_id, step]) == 1 for step in order)


def lines_of(ledger: Ledger) -> list[list[Any]]:
    """The lines without the process that wrote them."""
    return [line[:-1] for line in ledger.lines()]
