"""The benchmarks run and print what they promise; what they measure is nobody's business here."""

import json
import math
import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from benchmarks import raw
from streamline_trio.stores.sqlite import _store

ROOT = Path(__file__).parents[2]
RATES = {"engine_per_s", "bare_per_s", "ratio", "raw_per_s", "ratio_to_raw", "engine_cpu_us_per_step"}
COSTS = {"claim_ms", "due_query_ms", "worker_mib", "worker_tasks"}
WAITS = {"quiet_runs", "median_wait_s", "longest_wait_s", "longest_wait_claims", "runs_per_s"}

_RATIOS = {kind: {"starts_per_s", "ratio_to_plain"} for kind in ("plain", "limit", "throttle", "debounce")}
_PROMOTIONS = {queued: {"promotions_per_s", "ratio_to_shortest"} for queued in ("10", "100")}
STARTS = {"one_key": _RATIOS, "many_keys": _RATIOS, "promotions": _PROMOTIONS}
PARTS = ("scatter", "together", "asleep", "loop")

# A shape maps each key to the shape of its value; a set names keys of numbers.
SHAPES = {
    "steps": {"concurrency": dict.fromkeys(("1", "16", "256"), RATES)},
    "latency": {
        "p50_ms",
        "p99_ms",
        "bare_commit_p50_ms",
        "bare_commit_p99_ms",
        "raw_commit_p50_ms",
        "raw_commit_p99_ms",
    },
    "claims": {"processes": {count: {"claims_per_s"} for count in ("1", "2", "4")}},
    "fairness": dict.fromkeys(("in_turn", "by_priority_alone"), WAITS),
    "growth": {"us_per_step": {"10", "100", "1000"}, "bare_us_per_step": {"10", "100", "1000"}},
    "join": {"us_per_branch": {"20", "40"}},
    "starts": STARTS,
    "broadcast": {"us_per_run": {"10", "20"}, "emit_ms": {"10", "20"}},
    "composition": {
        "us_per_part": {kind: {"10", "100"} for kind in PARTS},
        "cpu_us_per_part": {kind: {"10", "100"} for kind in PARTS},
    },
    "sleepers": {"sleepers": dict.fromkeys(("0", "1000"), COSTS)},
    "recovery": {"process_ready_s", "first_taken_over_s", "first_progress_s", "all_done_s", "remaining_work_s"},
}
# The longest runs would take the disk of a busy machine many seconds.
STORES = {"growth": ["--store", "memory:"]}


MONGODB = {
    "steps": {
        "concurrency": dict.fromkeys(
            ("1", "16"),
            RATES | {"one_write_per_call_per_s", "times_one_write_per_call", "round_trips_per_step"},
        )
    },
    "latency": SHAPES["latency"],
    "claims": {"processes": {count: {"claims_per_s"} for count in ("1", "2")}},
    "fairness": SHAPES["fairness"],
    "growth": {"us_per_step": {"10", "30"}, "bare_us_per_step": {"10", "30"}},
    "join": {"us_per_branch": {"5", "10"}},
    "starts": STARTS,
    "broadcast": {"us_per_run": {"3", "5"}, "emit_ms": {"3", "5"}},
    "composition": {
        "us_per_part": {kind: {"10", "30"} for kind in PARTS},
        "cpu_us_per_part": {kind: {"10", "30"} for kind in PARTS},
    },
    "sleepers": {"sleepers": dict.fromkeys(("0", "50"), COSTS)},
    "recovery": SHAPES["recovery"],
}


def bench(*arguments, folder, patience=50):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=patience,
    )


def is_measured(found, shape):
    if isinstance(shape, set):
        return all(math.isfinite(found[key]) and found[key] > 0 for key in shape)
    return all(is_measured(found[key], inner) for key, inner in shape.items())


@pytest.mark.parametrize("name", SHAPES)
def test_a_benchmark_ends_with_its_figures(name, tmp_path):
    """Proves that the last line is one JSON object of positive figures, and that no file is left behind."""
    done = bench(name, "--quick", *STORES.get(name, ()), folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    table, last = done.stdout.rstrip("\n").rsplit("\n", 1)
    assert "----" in table
    figures = json.loads(last)
    assert (figures["benchmark"], figures["settings"]["rounds"]) == (name, 1)
    assert figures["machine"]["fsync_us"] > 0
    assert is_measured(figures, SHAPES[name])
    assert figures.get("duplicates", 0) == 0
    assert figures.get("ratio_1000_to_10", 1) > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.deadline(180)
@pytest.mark.parametrize("name", MONGODB)
def test_a_benchmark_on_mongodb_leaves_no_database_behind(name, tmp_path, databases):
    """Proves that each runs on MongoDB, and that the databases that were made for it are gone afterwards."""
    url = databases.url()
    done = bench(name, "--quick", "--json", "--store", url, folder=tmp_path, patience=170)
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    assert (figures["benchmark"], figures["settings"]["rounds"]) == (name, 1)
    assert figures["machine"]["mongodb"]
    assert is_measured(figures, MONGODB[name])
    assert figures.get("duplicates", 0) == 0
    prefix = databases.of(url).name
    assert [found for found in databases.client.list_database_names() if found.startswith(prefix)] == []
    assert list(tmp_path.iterdir()) == []


def test_all_of_them_run_on_a_store_that_was_named(tmp_path):
    """Proves that without a name each benchmark that the store allows runs, and that `--json` prints only that."""
    done = bench("--quick", "--json", "--store", "memory:", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["benchmark"], told["store"]) == ("all", "memory:")
    results = ["broadcast", "composition", "fairness", "growth", "join", "latency", "starts", "steps"]
    assert sorted(told["results"]) == results


@pytest.mark.parametrize(
    ("store", "why"),
    [
        ("memory:", "which cannot reach memory:"),
        ("redis://localhost", "there is no bare loop for 'redis://localhost'"),
        ("mongodb://localhost", "the URL names no database"),
        ("mongodb://127.0.0.1:1/none?serverSelectionTimeoutMS=100", "no MongoDB server answers"),
        ("sqlite:////no/such/place.db", "its directory does not exist"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(store, why, tmp_path):
    """Proves that a store that does not fit is told on stderr, without a traceback."""
    done = bench("claims", "--quick", "--store", store, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("benchmarks: ")
    assert done.stderr.count("\n") == 1
    assert why in done.stderr


def worker_of(folder):
    """The id of a worker process whose job names the folder, once there is one."""
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            text = line.read_bytes()
            if b"benchmarks.worker" in text and bytes(folder) in text:
                return int(line.parent.name)
    return None


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for a stranger's child through a pidfd")
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
async def test_its_workers_end_with_it(sent, status, tmp_path):
    """Proves that no process is left behind, however a benchmark ends."""
    command = [sys.executable, "-m", "benchmarks", "recovery", "--json"]
    start = partial(
        trio.run_process,
        command,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    async with trio.open_nursery() as nursery:
        process = await nursery.start(start)
        while (worker := worker_of(tmp_path)) is None:  # noqa: ASYNC110 - nothing tells of a stranger's child
            await trio.sleep(0.01)
        descriptor = os.pidfd_open(worker)
        process.send_signal(sent)
        await trio.lowlevel.wait_readable(descriptor)
        os.close(descriptor)
        assert await process.wait() == status
    if sent != signal.SIGKILL:
        assert list(tmp_path.iterdir()) == []


def test_raw_statements_have_the_settings_of_the_store():
    """Proves that the raw statements wait for the disk exactly as the store does."""
    assert raw.SETTINGS == _store._SETTINGS
