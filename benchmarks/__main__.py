"""The command line: `python -m benchmarks [NAME] [--store URL] [--rounds N] [--quick] [--full] [--json]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import trio

from benchmarks import claims, composition, fairness, growth, joins, latency, recovery, sleepers, steps
from benchmarks.figures import Benchmark, Figures, shown
from benchmarks.machine import machine
from benchmarks.places import Place, UnknownStore, open_place

BENCHMARKS: dict[str, Benchmark[Any]] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (steps, latency, claims, fairness, growth, composition, joins, sleepers, recovery)
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is asked for; the exit status."""
    given, status = _parser().parse_args(argv), 0
    try:
        with open_place(given.store) as place:
            if given.name is None:
                _all(place, given)
            else:
                _one(place, given, BENCHMARKS[given.name])
    except* UnknownStore as group:
        print(f"benchmarks: {group.exceptions[0]}", file=sys.stderr)
        status = 2
    except* KeyboardInterrupt:
        status = 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure the engine beside the same durable writes without it."
    )
    parser.add_argument(
        "name", nargs="?", choices=[*BENCHMARKS], help="what to measure; everything, once, if left out"
    )
    parser.add_argument(
        "--store",
        help="sqlite:///path.db, memory:, mongodb://host/database or mongodb (the server of the tests);"
        " runs stay in a file that is named, and nowhere else (default: temporary files)",
    )
    parser.add_argument("--rounds", type=_positive, help="how often each measurement is repeated")
    parser.add_argument("--quick", action="store_true", help="sizes that only show that it works")
    parser.add_argument("--full", action="store_true", help="also with a million sleepers")
    parser.add_argument("--json", action="store_true", help="print nothing but one JSON object")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def _one(place: Place, given: argparse.Namespace, benchmark: Benchmark[Any]) -> None:
    """The table, and as the last line the same as JSON."""
    facts = machine(place.folder) | place.facts
    figures = _measured(place, given, benchmark, facts, rounds=given.rounds or benchmark.rounds)
    if not given.json:
        print(_told(facts) + "\n")
        print(shown(benchmark.title, benchmark.table(figures)))
    print(json.dumps(figures))


def _all(place: Place, given: argparse.Namespace) -> None:
    """Every benchmark that the store allows, by default with one round."""
    facts = machine(place.folder) | place.facts
    results: Figures = {}
    if not given.json:
        print(_told(facts) + "\n", flush=True)
    for name, benchmark in BENCHMARKS.items():
        if benchmark.needs_processes and not place.is_shared:
            continue
        results[name] = _measured(place, given, benchmark, facts, rounds=given.rounds or 1)
        if not given.json:
            print(shown(benchmark.title, benchmark.table(results[name])), flush=True)
    if given.json:
        print(json.dumps({"benchmark": "all", "store": str(place), "machine": facts, "results": results}))


def _measured(
    place: Place, given: argparse.Namespace, benchmark: Benchmark[Any], facts: Figures, *, rounds: int
) -> Figures:
    if benchmark.needs_processes and not place.is_shared:
        raise UnknownStore(f"{benchmark.name} starts worker processes, which cannot reach {place}")
    size = benchmark.mongodb if place.kind == "mongodb" else benchmark.normal
    if given.quick:
        size, rounds = benchmark.quick, given.rounds or 1
        if place.kind == "mongodb":
            size = benchmark.mongodb_quick or size
    elif given.full and benchmark.full is not None:
        size = benchmark.full
    figures = trio.run(benchmark.measure, place, size, rounds)
    return {
        "benchmark": benchmark.name,
        "store": str(place),
        "machine": facts,
        "settings": {"rounds": rounds, **msgspec.to_builtins(size, str_keys=True)},
        **figures,
    }


def _told(facts: Figures) -> str:
    server = f", MongoDB {facts['mongodb']}" if "mongodb" in facts else ""
    return (
        f"{facts['cores']} cores of {facts['processor']}, {facts['system']}, Python {facts['python']},"
        f" SQLite {facts['sqlite']}{server}; fsync {facts['fsync_us']:.0f} µs; load before {facts['load_before']}"
    )


if __name__ == "__main__":
    sys.exit(main())
