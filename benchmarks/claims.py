"""How many runs a second worker processes claim when they race on one store.

A claim is one durable write; the run of one step that it begins is a second one, by the same process. The time is
from a common signal until every run has settled (see `race`).
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from benchmarks.figures import Benchmark, Figures, Row, median, rounded
from benchmarks.places import Place
from benchmarks.race import Race, race


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Runs to be claimed, and how many processes race for them."""

    drafts: int
    processes: tuple[int, ...] = (1, 2, 4)


async def measure(place: Place, size: Size, rounds: int) -> Figures:
    """The numbers of processes take turns. Duplicates are added up over all rounds."""
    races: dict[int, list[Race]] = {processes: [] for processes in size.processes}
    for _ in range(rounds):
        for processes, run in races.items():
            run.append(await race(place, place.fresh(), drafts=size.drafts, processes=processes))
    return {
        "processes": {
            str(processes): {
                "claims_per_s": rounded(median(size.drafts / done.seconds for done in run)),
                "duplicates": sum(done.duplicates for done in run),
            }
            for processes, run in races.items()
        },
        "duplicates": sum(done.duplicates for run in races.values() for done in run),
    }


def table(figures: Figures) -> Iterator[Row]:
    """One line per number of processes."""
    yield "worker processes", "claims/s", "claimed twice"
    for processes, found in figures["processes"].items():
        yield processes, found["claims_per_s"], found["duplicates"]


BENCHMARK = Benchmark(
    name="claims",
    title="Worker processes racing for runs of one step",
    measure=measure,
    table=table,
    normal=Size(drafts=2000),
    quick=Size(drafts=40),
    rounds=3,
    needs_processes=True,
)
