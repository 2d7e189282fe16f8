import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trio
import trio.testing

from streamline_trio import StepContext, Workflow, open_engine
from streamline_trio._core.errors import StoreUnavailable
from streamline_trio._core.store import (
    Hint,
    Insert,
    RunQuery,
)
from streamline_trio.stores.sqlite import SqliteStore
from streamline_trio.testing._conformance_base import sample
from tests.stores.opening import opened

WRITER = """
import sys, trio
from streamline_trio._core.store import *
from streamline_trio.stores.sqlite import SqliteStore

async def main():
    store = SqliteStore(sys.argv[1])
    await store.open()
    done = 0
    while done < 50:
        doc = await store.side("count", "x")
        number, revision = (0, None) if doc is None else (int(doc.body), doc.revision)
        (verdict,) = await store.write([PutSide("count", "x", revision, b"%d" % (number + 1))])
        done += isinstance(verdict, Applied)
    await store.aclose()

trio.run(main)
"""

HOLDER = """
import sys, trio
from streamline_trio.stores.sqlite import SqliteStore

async def main():
    store = SqliteStore(sys.argv[1])
    await store.open()
    await store.hold_worker("w")
    print("held", flush=True)
    await trio.sleep_forever()

trio.run(main)
"""


def test_processes_share_one_file(path):
    """Four processes that create the file at once and count on one document lose no count."""
    processes = [subprocess.Popen([sys.executable, "-c", WRITER, str(path)]) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    doc = trio.run(read_side, path, "count", "x")
    assert (doc.body, doc.revision) == (b"200", 200)


async def read_side(path, kind, key):
    async with opened(path) as store:
        return await store.side(kind, key)


async def test_stores_of_one_process_create_one_file(path):
    """Many store objects that open a new file at once all get it ready, and see each other's writes."""
    stores = [SqliteStore(path) for _ in range(8)]
    async with trio.open_nursery() as nursery:
        for store in stores:
            nursery.start_soon(store.open)
    await stores[0].write([Insert(sample("r1"))])
    for store in stores:
        assert await store.load("r1") == sample("r1")
        await store.aclose()


def test_a_killed_worker_is_gone(path):
    """A worker is not gone while its process runs or is frozen, and is gone once that was killed."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert not trio.run(is_gone, path, "w")
        process.send_signal(signal.SIGSTOP)
        assert not trio.run(is_gone, path, "w")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert trio.run(is_gone, path, "w")
        assert trio.run(is_gone, path, "w")
    assert list(path.parent.glob("runs.db-workers/*")) == []


async def is_gone(path, worker):
    async with opened(path) as store:
        return await store.worker_gone(worker)


async def test_engines_of_one_process_see_each_others_locks(path):
    """The lock works between stores of one process, cannot be taken twice, and ends with its store."""
    async with opened(path) as one:
        async with opened(path) as other:
            await other.hold_worker("w")
            assert not await one.worker_gone("w")
            with pytest.raises(StoreUnavailable, match="is held"):
                await one.hold_worker("w")
        assert await one.worker_gone("w")
        await one.hold_worker("w")
        assert not await one.worker_gone("w")
        await one.drop_worker("w")
        assert await one.worker_gone("w")
        assert await one.worker_gone("never")


def test_a_lock_ends_with_its_trio_run(path):
    """A worker whose trio run was cut is gone, though its process and store object live."""
    store = SqliteStore(path)

    async def cut():
        await store.open()
        await store.hold_worker("w")
        assert not await store.worker_gone("w")

    trio.run(cut)
    assert trio.run(store.worker_gone, "w")
    trio.run(store.aclose)


def test_trio_runs_in_threads_share_one_store(path):
    """Runs that use one store object at once, each in its own thread, get what they ask for, and lose nothing."""
    store = SqliteStore(path)
    together = threading.Barrier(3, timeout=30)

    async def use(name: str) -> None:
        await store.open()
        for number in range(25):
            together.wait()
            async with trio.open_nursery() as nursery:
                for reader in range(6):
                    nursery.start_soon(store.load, f"{name}{reader}")
                    nursery.start_soon(store.worker_gone, f"{name}{reader}")
                await store.write([Insert(sample(f"{name}{number}"))])
                await store.hold_worker(f"{name}{number}")
        await store.aclose()

    with ThreadPoolExecutor(3) as threads:
        for ended in [threads.submit(trio.run, use, name) for name in "abc"]:
            ended.result()
    trio.run(store.open)
    assert trio.run(store.count, RunQuery()) == 75
    trio.run(store.aclose)
    assert list(path.parent.glob("runs.db-workers/*")) == []


def test_engines_of_two_trio_runs_share_one_store(path):
    """An engine in one thread drives what an engine in another starts, through one store object."""
    store = SqliteStore(path)
    workflow: Workflow[Any, Any] = Workflow("work")
    finished = threading.Event()

    @workflow.step
    async def answer(_ctx: StepContext[Any, Any]) -> int:
        return 42

    async def work() -> None:
        async with open_engine(store, workflow, poll_interval=0.1):
            await trio.to_thread.run_sync(finished.wait)

    async def ask() -> list[int]:
        async with open_engine(store, workflow, worker=False, poll_interval=0.1) as engine:
            try:
                return [await (await engine.start(workflow)).result(timeout=30) for _ in range(10)]
            finally:
                finished.set()

    with ThreadPoolExecutor(2) as threads:
        worker = threads.submit(trio.run, work)
        assert threads.submit(trio.run, ask).result() == [42] * 10
        worker.result()


async def test_a_lock_left_behind_can_be_taken(path):
    """The file of a holder that died does not keep the next one from the same id."""
    folder = path.parent / "runs.db-workers"
    folder.mkdir()
    (folder / "w.lock").touch()
    async with opened(path) as store:
        await store.hold_worker("w")
        assert not await store.worker_gone("w")


async def test_dropping_a_lock_is_told(path):
    """Engines that share the store object hear of a dropped lock at once."""
    heard: list[Hint] = []
    async with opened(path) as store:
        store.watch(heard.append)
        await store.hold_worker("w")
        await store.drop_worker("w")
        await store.drop_worker("w")
    assert heard == [Hint(run_id="", worker="w")]


async def test_waiting_for_the_writer_does_not_block_lock_checks(path):
    """Whether a worker is gone can be asked while a write waits for another process."""
    async with opened(path) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, [Insert(sample("r1"))])
            await trio.testing.wait_all_tasks_blocked()
            assert await store.worker_gone("w")
            other.execute("COMMIT")
        other.close()
        assert await store.load("r1") == sample("r1")
