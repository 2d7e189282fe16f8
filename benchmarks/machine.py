"""The machine that figures are for."""

from __future__ import annotations

import gc
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

_SYNCS = 200
_PAGE = b"x" * 4096


def machine(folder: Path) -> dict[str, Any]:
    """Facts to print beside the figures; `fsync_us` is measured on the disk of the folder."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return {
        "cores": os.cpu_count() or 1,
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "fsync_us": round(fsync_us(folder), 1),
        "load_before": round(load, 2),
    }


def fsync_us(folder: Path) -> float:
    """What making one appended page durable takes, in microseconds, with the call that SQLite uses."""
    sync = getattr(os, "fdatasync", os.fsync)
    taken: list[float] = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(_SYNCS):
            file.write(_PAGE)
            began = time.perf_counter()
            sync(file.fileno())
            taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e6


def resident_mib() -> float:
    """The memory of this process that is in RAM, in MiB; where the system does not tell, its peak."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        import resource  # noqa: PLC0415 - Windows has none

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1024 if platform.system() == "Linux" else 1024**2)
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2


def settle_memory() -> None:
    """Keep what was made before out of the garbage collector's rounds, as a service does after its start."""
    gc.collect()
    gc.freeze()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
