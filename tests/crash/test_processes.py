"""Real processes on one SQLite file or one MongoDB server: killed, frozen, side by side."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from streamline_trio import Engine, SqliteStore, open_engine
from streamline_trio._core.status import SETTLED
from streamline_trio.testing import crash
from tests.crash.scenes import Gate
from tests.crash.witness import until
from tests.crash.worker_process import Ledger, Site, WorkerProcess, nudge, worker_process, workflows

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

LONG = 30.0
MANY = 200
MISSED_SOON = {"lease": 1.0, "poll_interval": 0.1}
"""Who is frozen, or dies where no lock dies with it, is replaced soon."""


@pytest.fixture(params=["sqlite", "mongodb"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    if request.param == "sqlite":
        return Site(f"sqlite:///{tmp_path}/runs.db", tmp_path)
    return Site(request.getfixturevalue("databases").url(), tmp_path)


on_sqlite = pytest.mark.parametrize("site", ["sqlite"], indirect=True)
"""For what rests on locks that the operating system releases, and for what is the same on every store."""


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path)


def client(site: Site, ledger: Ledger, **options: Any) -> Any:
    """An engine here, which runs nothing unless it is told to."""
    return open_engine(site.url, *workflows(ledger), **{"worker": False, "poll_interval": 0.1, **options})


async def settle(engine: Engine, run_ids: list[str]) -> None:
    with trio.fail_after(LONG):
        for run_id in run_ids:
            await engine.run(run_id).wait()


@pytest.mark.parametrize("seed", [1, 2])
async def test_runs_survive_workers_that_are_killed_at_any_instant(site, ledger, seed):
    """Proves that after SIGKILLs at random instants every run settles, and each effect is as the documents say."""
    chance = random.Random(seed)
    run_ids = [f"r{number:02}" for number in range(60)]
    async with client(site, ledger) as engine:
        for run_id in run_ids:
            await engine.start("chain", run_id=run_id)
        for _ in range(4):
            async with worker_process(site, max_concurrent_runs=4, **MISSED_SOON) as worker:
                await trio.sleep(chance.uniform(0.0, 0.25))
                worker.kill()
        async with worker_process(site, **MISSED_SOON):
            await settle(engine, run_ids)
        await check_ledger(engine, ledger, run_ids)


@pytest.mark.parametrize("seed", [1])
async def test_joins_survive_workers_that_are_killed_at_any_instant(site, ledger, seed):
    """S137, S237: after SIGKILLs at random instants each parent is done, with one child for each branch."""
    chance = random.Random(seed)
    run_ids = ["r0", "r1"]
    async with client(site, ledger) as engine:
        for run_id in run_ids:
            await engine.start("fan", 5, run_id=run_id)
        for _ in range(3):
            async with worker_process(site, max_concurrent_runs=8, **MISSED_SOON) as worker:
                await trio.sleep(chance.uniform(0.1, 0.5))
                worker.kill()
        async with worker_process(site, **MISSED_SOON):
            await settle(engine, run_ids)
        for run_id in run_ids:
            assert (await engine.get(run_id)).output == 5
            children = [child async for child in children_of(engine, run_id)]
            assert sorted(children) == [(f"b{number}", "done") for number in range(5)]


async def children_of(engine: Engine, run_id: str) -> AsyncIterator[tuple[str, str]]:
    """The branch and status of each child."""
    for child in await engine.find(parent=run_id):
        assert child.parent is not None
        yield child.parent.branch, child.status


async def check_ledger(engine: Engine, ledger: Ledger, run_ids: list[str]) -> None:
    """Each attempt had at most one effect, a finished step none after its end, extra ones only by crashes."""
    attempts: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    order: defaultdict[str, list[str]] = defaultdict(list)
    for _kind, run_id, step, attempt, _pid in ledger.lines():
        attempts[run_id, step].append(attempt)
        order[run_id].append(step)
    for run_id in run_ids:
        document = await engine.get(run_id)
        assert document.status == "done"
        for step in document.steps.values():
            made = attempts[run_id, step.id]
            assert len(set(made)) == len(made), "an attempt was called once"
            assert made[-1] == step.attempts, "the last one is the one that counted"
            assert len(made) <= step.attempts
        assert [step for place, step in enumerate(order[run_id]) if step not in order[run_id][:place]] == [
            "one",
            "two",
            "three",
        ]
        assert order[run_id] == sorted(order[run_id], key=["one", "two", "three"].index), "finished is finished"
        crashes = sum(step.attempts - 1 for step in document.steps.values())
        assert crashes <= document.recoveries


@on_sqlite
async def test_the_next_process_takes_over_at_once(site, ledger):
    """Proves that a killed worker's run is claimed by the next process as it opens, with the default lease."""
    async with client(site, ledger) as engine:
        async with worker_process(site) as first:
            await engine.start("hold", run_id="r")
            await until(ledger.lines)
            first.kill()
        async with worker_process(site) as second:
            recovered = await second.tells(event="workflow.recovered", run="r")
            assert recovered["at"] - (await second.tells(ready=None))["at"] < 1.0
            ledger.flag("r.2").touch()
            assert await engine.run("r").result(LONG) == "attempt 2"
    assert [(line[0], line[2]) for line in ledger.lines()] == [("entered", 1), ("entered", 2), ("returned", 2)]


async def test_a_worker_is_killed_in_the_midst_of_a_compensation(site, ledger):
    """S220: Proves that what was undone is not undone again, what was under way is, and the rest follows once."""
    async with client(site, ledger) as engine:
        async with worker_process(site, **MISSED_SOON) as first:
            await engine.start("saga", run_id="r")
            await until(lambda: len(ledger.lines()) == 3)
            first.kill()
        ledger.flag("r.2").touch()
        async with worker_process(site, **MISSED_SOON):
            with trio.fail_after(LONG):
                document = await engine.run("r").wait()
    assert (document.status, document.recoveries) == ("compensated", 1)
    made = [(what, step, attempt) for what, step, attempt, _key, _pid in ledger.lines()]
    assert made == [
        ("undo", "three", 1),
        ("undone", "three", 1),
        ("undo", "two", 1),
        ("undo", "two", 2),
        ("undone", "two", 2),
        ("undo", "one", 1),
        ("undone", "one", 1),
    ]
    assert {key for *_, key, _pid in ledger.lines()} == {f"r:{step}:compensate" for step in ("one", "two", "three")}


@on_sqlite
async def test_a_living_worker_takes_over_at_its_next_poll(site, ledger):
    """Proves that the released lock of a killed process is noticed long before its lease is up."""
    async with client(site, ledger) as engine, worker_process(site, workflows=["hold"], lease=600) as first:
        await engine.start("hold", run_id="r")
        await until(ledger.lines)
        async with worker_process(site, lease=600, poll_interval=0.1) as second:
            first.kill()
            await second.tells(event="workflow.recovered", run="r")
            ledger.flag("r.2").touch()
            assert await engine.run("r").result(LONG) == "attempt 2"


@on_sqlite
async def test_a_start_whose_process_dies_at_once_is_driven_by_the_next(site, ledger):
    """Proves that a run that was started (also: begun) by a process killed right then is picked up (S040)."""
    async with worker_process(site) as first:
        await first.do("start", workflow="chain", run="r")
        first.kill()
    async with client(site, ledger) as engine, worker_process(site):
        document = await engine.run("r").wait(LONG)
        assert document.status == "done"
        await check_ledger(engine, ledger, ["r"])


@on_sqlite
async def test_attempts_and_backoff_survive_a_killed_process(site, ledger):
    """Proves that failed attempts count across processes, and a retry that was due is made once (S063, S064)."""
    async with client(site, ledger) as engine:
        await engine.start("retry", run_id="r")
        async with worker_process(site) as first:
            await first.tells(event="step.retry_scheduled")
            first.kill()
        stored = await engine.get("r")
        assert (stored.status, stored.lease, stored.steps["fails"].attempts) == ("waiting", None, 1)
        assert stored.due_at is not None
        async with worker_process(site):
            document = await engine.run("r").wait(LONG)
    assert (document.status, document.recoveries) == ("failed", 0)
    assert [line[2] for line in ledger.lines()] == [1, 2, 3]


async def test_waits_outlive_the_process(site, ledger):
    """Proves that waits and earlier outputs survive SIGKILL, and a later process goes on with them (S086, S087)."""
    async with client(site, ledger) as engine:
        async with worker_process(site) as first:
            await engine.start("gate", run_id="r")
            await first.tells(event="workflow.waiting")
            first.kill()
        await engine.run("r").resume("yes")
        await engine.emit(nudge, "now", run="r")
        async with worker_process(site):
            assert await engine.run("r").result(LONG) == {"len": 9, "ask": "yes", "listen": "now"}
    assert [line[0] for line in ledger.lines()] == ["fetch"]


async def test_a_frozen_worker_is_replaced_and_writes_nothing_when_it_thaws(site, ledger):
    """Proves that a worker frozen beyond its lease loses its run for good, and goes on under a new id."""
    async with client(site, ledger) as engine, worker_process(site, **MISSED_SOON) as first:
        await engine.start("hold", run_id="r")
        await until(ledger.lines)
        first.freeze()
        async with worker_process(site, **MISSED_SOON) as second:
            await second.tells(event="workflow.recovered", run="r")
            await until(lambda: len(ledger.lines()) == 2)
            ledger.flag("r.1").touch()  # the frozen handler finds it as soon as it thaws
            first.thaw()
            renamed = await first.tells(worker=None)
            assert renamed["worker"] != (await first.tells(ready=None))["ready"]
            stored = await engine.get("r")
            assert (stored.status, stored.fence, stored.recoveries) == ("running", 2, 1)
            ledger.flag("r.2").touch()
            assert await engine.run("r").result(LONG) == "attempt 2"
            second.kill()
        assert not [line for line in first.told if line.get("event") == "workflow.completed"]
        await engine.start("chain", run_id="next")
        assert (await engine.run("next").wait(LONG)).status == "done"
        assert {line[-1] for line in ledger.lines() if line[1] == "next"} == {first.pid}


async def test_a_worker_sees_what_another_process_asks(site, ledger):
    """Proves that start, resume, signal and cancel from one process reach the worker in another, handlers too."""
    async with worker_process(site, poll_interval=0.1) as worker, client(site, ledger) as engine:
        handle = await engine.start("gate", run_id="g")
        await worker.tells(event="workflow.waiting", run="g")
        await handle.resume("a")
        await engine.emit(nudge, "b", run=handle)
        assert await handle.result(LONG) == {"len": 9, "ask": "a", "listen": "b"}
        held = await engine.start("hold", run_id="h")
        await until(lambda: ["entered", "h", 1, worker.pid] in ledger.lines())
        await held.cancel("asked")
        assert (await held.wait(LONG)).status == "cancelled"
        assert ["cancelled", "h", 1, worker.pid] in ledger.lines()


async def test_this_process_sees_what_another_one_asks(site, ledger):
    """Proves the same the other way round: the worker is here, and the verbs come from the other process."""
    async with (
        client(site, ledger, worker=True) as engine,
        worker_process(site, worker=False, workflows=["gate", "hold"]) as other,
        engine.events("workflow.waiting", run="g") as parked,
    ):
        await other.do("start", workflow="gate", run="g")
        with trio.fail_after(LONG):
            await anext(parked)
        await other.do("resume", run="g", payload="a")
        await other.do("emit", run="g", payload="b")
        assert await engine.run("g").result(LONG) == {"len": 9, "ask": "a", "listen": "b"}
        await other.do("start", workflow="hold", run="h")
        await until(lambda: ["entered", "h", 1, os.getpid()] in ledger.lines())
        await other.do("cancel", run="h")
        assert (await engine.run("h").wait(LONG)).status == "cancelled"
        assert ["cancelled", "h", 1, os.getpid()] in ledger.lines()


async def test_many_sleepers_wake_once_each(site, ledger):
    """Proves that runs that fall due at once are each woken by one of two processes, and once."""
    async with client(site, ledger) as engine:
        async with trio.open_nursery() as nursery:
            for number in range(MANY):
                nursery.start_soon(start_nap, engine, f"r{number}")
        async with worker_process(site) as first, worker_process(site) as second:
            await settle(engine, [f"r{number}" for number in range(MANY)])
            pids = {first.pid, second.pid}
        assert await engine.count(status="done") == MANY
    woken = Counter(line[1] for line in ledger.lines())
    assert len(woken) == MANY
    assert set(woken.values()) == {1}
    assert {line[2] for line in ledger.lines()} <= pids


async def start_nap(engine: Engine, run_id: str) -> None:
    await engine.start("nap", {"seconds": 1.0}, run_id=run_id)


async def test_two_engines_of_one_process_have_locks_of_their_own(tmp_path):
    """Proves that when one of two engines of a process crashes, the other has its runs at its next poll."""
    gate = Gate()
    workflow = gate.workflow()
    options: dict[str, Any] = {"lease": 600, "poll_interval": 0.05}
    async with (
        open_engine(SqliteStore(tmp_path / "runs.db"), workflow, **options) as first,
        open_engine(SqliteStore(tmp_path / "runs.db"), worker=False) as reader,
    ):
        handle = await first.start(workflow)
        await gate.entered.wait()
        async with open_engine(SqliteStore(tmp_path / "runs.db"), workflow, **options) as second:
            await trio.sleep(0.2)
            assert (await reader.get(handle.id)).recoveries == 0
            async with second.events("workflow.recovered") as recovered:
                await crash(first)
                with trio.fail_after(LONG):
                    await anext(recovered)
            gate.open.set()
            document = await reader.run(handle.id).wait(LONG)
            assert (document.status, document.recoveries) == ("done", 1)


async def test_a_signal_to_end_hands_runs_back(site, ledger):
    """Proves that a worker whose input ends leaves as an engine does: its run is handed back, uncounted."""
    async with client(site, ledger) as engine:
        async with worker_process(site, drain_timeout=0.1) as first:
            await engine.start("hold", run_id="r")
            await until(ledger.lines)
            await end(first)
        stored = await engine.get("r")
        assert (stored.status, stored.lease, stored.recoveries) == ("running", None, 0)
        ledger.flag("r.1").touch()
        async with worker_process(site):
            assert await engine.run("r").result(LONG) == "attempt 1"
        assert (await engine.get("r")).status in SETTLED


async def end(worker: WorkerProcess) -> None:
    """Close its input, and wait until it has ended."""
    assert worker._process.stdin is not None
    worker._process.stdin.close()
    await until(lambda: worker._process.poll() is not None)
    assert worker._process.returncode == 0


@on_sqlite
def test_no_process_is_left(site):
    """Proves that the block of a worker process ends it in whatever state it is."""
    pids: list[int] = []

    async def main() -> None:
        async with worker_process(site) as worker:
            pids.append(worker.pid)
            worker.freeze()
            raise KeyError("planned")

    with pytest.raises(ExceptionGroup) as caught:
        trio.run(main)
    assert caught.group_contains(KeyError)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], signal.SIGCONT)
