"""Processes of two versions on one store: a deploy as docs/how-to/rolling-deploys.md describes it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from streamline_trio import Engine, open_engine
from tests.crash.worker_process import Ledger, Site, deployed, nudge, worker_process

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

LONG = 30.0
SOON = {"lease": 1.0, "poll_interval": 0.1}


@pytest.fixture(params=["sqlite", "mongodb"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    if request.param == "sqlite":
        return Site(f"sqlite:///{tmp_path}/runs.db", tmp_path)
    return Site(request.getfixturevalue("databases").url(), tmp_path)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path)


def client(site: Site, ledger: Ledger, *numbers: str) -> Any:
    flows = [deployed(ledger, number) for number in numbers]
    return open_engine(site.url, *flows, worker=False, poll_interval=0.1)


async def until_prepared(ledger: Ledger, *run_ids: str) -> None:
    """Until the handlers of their first steps have been entered."""
    with trio.fail_after(LONG):
        while not {line[1] for line in ledger.lines() if line[0] == "prepared"}.issuperset(run_ids):  # noqa: ASYNC110 - other processes do it
            await trio.sleep(0.02)


async def until_unclaimable(engine: Engine, expected: list[tuple[str, int]]) -> None:
    with trio.fail_after(LONG):
        while [(one.version, one.runs) for one in (await engine.stats()).unclaimable] != expected:  # noqa: ASYNC110 - other processes do it
            await trio.sleep(0.05)


async def test_each_version_runs_on_its_own_workers(site, ledger):
    """Proves that workers of two versions, side by side, each drive the runs of their own."""
    async with (
        client(site, ledger, "1.0.0") as old,
        client(site, ledger, "1.0.0", "2.0.0") as new,
        worker_process(site, deployed=["1.0.0"], **SOON) as first,
        worker_process(site, deployed=["2.0.0"], **SOON) as second,
    ):
        await old.start("deployed", run_id="old")
        await new.start("deployed", run_id="new")
        for run_id in ("old", "new"):
            await new.emit(nudge, "go", run=run_id)
        assert await new.run("old").result(LONG) == ["1.0.0", "go", "1.0.0"]
        assert await new.run("new").result(LONG) == ["2.0.0", "go", "2.0.0"]
        pids = {line[1]: line[-1] for line in ledger.lines() if line[0] == "finished"}
        assert pids == {"old": first.pid, "new": second.pid}
        found = await new.versions("deployed")
        assert [(info.version, len(info.workers), info.active) for info in found] == [
            ("2.0.0", 1, 0),
            ("1.0.0", 1, 0),
        ]


async def test_the_old_version_is_killed_and_the_new_one_takes_over(site, ledger):
    """Proves that runs of a killed worker's version wait and are told of, until a worker with `migrate` comes."""
    async with client(site, ledger, "1.0.0") as engine:
        async with worker_process(site, deployed=["1.0.0"], **SOON) as first:
            await engine.start("deployed", run_id="parked")
            await engine.start("deployed", "hold", run_id="held")
            await first.tells(event="workflow.waiting", run="parked")
            await until_prepared(ledger, "held")
            first.kill()
        await engine.emit(nudge, "go", run="parked")
        # Another worker, without the code, finds the dead one and releases what it held.
        async with worker_process(site, workflows=["nap"], **SOON):
            await until_unclaimable(engine, [("1.0.0", 2)])
            held = await engine.get("held")
            assert (held.version, held.lease, held.recoveries) == ("1.0.0", None, 1)
        async with worker_process(site, deployed=["2.0.0"], **SOON) as second:
            assert await engine.run("parked").result(LONG) == ["1.0.0", "go", "2.0.0"]
            await engine.emit(nudge, "go", run="held")
            assert await engine.run("held").result(LONG) == ["2.0.0", "go", "2.0.0"]
            for run_id in ("parked", "held"):
                await second.tells(event="workflow.migrated", run=run_id)
                assert (await engine.get(run_id)).version == "2.0.0"
        assert (await engine.stats()).unclaimable == ()
    prepared = [(line[1], line[2]) for line in ledger.lines() if line[0] == "prepared"]
    assert sorted(prepared) == [("held", "1.0.0"), ("held", "2.0.0"), ("parked", "1.0.0")]


async def test_a_worker_killed_at_any_instant_of_a_migration_loses_nothing(site, ledger):
    """Proves that workers of the new version that are killed while they take runs over migrate each run once."""
    run_ids = [f"r{number:02}" for number in range(40)]
    async with client(site, ledger, "1.0.0") as engine:
        async with worker_process(site, deployed=["1.0.0"], **SOON) as first:
            for run_id in run_ids:
                await engine.start("deployed", run_id=run_id)
            for run_id in run_ids:
                await first.tells(event="workflow.waiting", run=run_id)
            first.kill()
        for run_id in run_ids:
            await engine.emit(nudge, "go", run=run_id)
        migrated = list[str]()
        for pause in (0.0, 0.02, 0.05, 0.1, None):
            async with worker_process(site, deployed=["2.0.0"], max_concurrent_runs=5, **SOON) as worker:
                if pause is None:
                    with trio.fail_after(LONG):
                        for run_id in run_ids:
                            run = await engine.run(run_id).wait()
                            assert (run.status, run.version, run.output) == (
                                "done",
                                "2.0.0",
                                ["1.0.0", "go", "2.0.0"],
                            )
                else:
                    await trio.sleep(pause)
                worker.kill()
                await trio.testing.wait_all_tasks_blocked(0.05)
                migrated += [line["run"] for line in worker.told if line.get("event") == "workflow.migrated"]
    assert len(set(migrated)) == len(migrated), "a run was migrated twice"
    finished = [line[1] for line in ledger.lines() if line[0] == "finished"]
    assert set(finished) == set(run_ids)
