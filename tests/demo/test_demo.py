"""The demo as users run it: a program of its own, without a terminal."""

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import pytest
import trio

from streamline_trio import open_engine

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "streamline_trio.cli", "demo"]
READY = re.compile(rb"worker 1 is ready \(process (\d+)\)")


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where the demo puts its files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.mark.deadline(120)
def test_nothing_is_lost_and_nothing_finished_runs_again(scratch):
    """Proves that the demo keeps its promises, says so, and leaves nothing behind."""
    done = subprocess.run([*DEMO, "--orders", "40", "--json"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    assert (figures["orders"], figures["settled"], figures["failed"]) == (40, 40, 3)
    assert (figures["lost"], figures["rerun"], figures["problems"]) == (0, 0, [])
    assert figures["recoveries"] >= 1
    assert figures["recovered_after_kill"] > 0
    assert figures["approvals"] == 8
    assert figures["compensated"] >= 1
    assert figures["undone"] == 2 * figures["compensated"]
    assert figures["effects"] == figures["steps"] + figures["undone"] + figures["repeated"]
    assert list(scratch.iterdir()) == []


@pytest.fixture(params=["sqlite", "mongodb"])
def url(request, scratch):
    """A store that is there before and after the demo."""
    if request.param == "mongodb":
        return request.getfixturevalue("databases").url()
    return f"sqlite:///{scratch / 'kept.db'}"


@pytest.mark.deadline(120)
async def test_a_store_that_is_named_keeps_the_runs(url):
    """Proves that `--store` is used, and what the demo prints for people without a terminal."""
    done = await trio.run_process([*DEMO, "--orders", "5", "--store", url], capture_stdout=True)
    printed = done.stdout.decode()
    assert re.search(r"^  runs lost +0$", printed, re.MULTILINE)
    assert re.search(r"^  finished steps run again +0$", printed, re.MULTILINE)
    assert "worker 1 is killed (SIGKILL)" in printed
    async with open_engine(url, worker=False) as engine:
        assert await engine.count(workflow="demo-order", status=("done", "failed", "compensated")) == 5


async def started(nursery):
    """The demo once its worker is ready, and the worker's process id."""
    start = partial(
        trio.run_process,
        DEMO,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        check=False,
    )
    process = await nursery.start(start)
    text = b""
    while (ready := READY.search(text)) is None:
        text += await process.stdout.receive_some()
    return process, int(ready[1])


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for a stranger's child through a pidfd")
@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (signal.SIGINT, 130, b"streamline: interrupted\n"),
        (signal.SIGTERM, 1, b"streamline: the demo was terminated\n"),
        (signal.SIGKILL, -signal.SIGKILL, b""),
    ],
)
async def test_its_worker_ends_with_it(sent, status, said, scratch):
    """Proves that no process is left behind, however the demo ends."""
    async with trio.open_nursery() as nursery:
        process, worker = await started(nursery)
        descriptor = os.pidfd_open(worker)
        process.send_signal(sent)
        await trio.lowlevel.wait_readable(descriptor)
        os.close(descriptor)
        stderr = b"".join([chunk async for chunk in process.stderr])
        await process.wait()
        assert (process.returncode, stderr) == (status, said)
        nursery.cancel_scope.cancel()
    if sent != signal.SIGKILL:
        assert list(scratch.iterdir()) == []


@pytest.mark.deadline(120)
def test_the_orders_are_in_the_wheel(tmp_path):
    """Proves that an installed package has its orders, from the one place where they are kept."""
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    read = "from streamline_trio.demo import orders; print(orders.__file__, len(orders.read_orders()))"
    done = subprocess.run(
        [sys.executable, "-c", read],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(tmp_path / "streamline_trio" / "demo" / "orders.py"), "300"]
