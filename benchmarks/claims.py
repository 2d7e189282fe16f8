"""How many runs a second worker processes claim when they race on one store.

A claim is one durable write that takes the lease and begins the step, and then a handler that is entered; it goes
on for ever, so that claiming is all there is to do. The time is from the first handler's entry to the last one's
(see `race.grab`). Beside it stands the bare loop (see `bare`): the same claims, written by one process that knows
them all beforehand, in batches of as many as a worker claims at once; and the same as raw statements (see `raw`).
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from benchmarks.bare import seconds_of_batches
from benchmarks.documents import claim
from benchmarks.figures import Benchmark, Figures, Row, median, rounded
from benchmarks.places import Place
from benchmarks.race import Grab, grab
from benchmarks.raw import seconds_of_commits
from streamline_trio._runtime.claimer import BATCH


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Runs to be claimed, and how many processes race for them."""

    drafts: int
    processes: tuple[int, ...] = (1, 2, 4)


async def measure(place: Place, size: Size, rounds: int) -> Figures:
    """The numbers of processes take turns. Duplicates are added up over all rounds."""
    grabs: dict[int, list[Grab]] = {processes: [] for processes in size.processes}
    bare: list[float] = []
    raw: list[float] = []
    writes = await claim()
    for _ in range(rounds):
        for processes, run in grabs.items():
            run.append(await grab(place, place.fresh(), drafts=size.drafts, processes=processes))
        bare.append(sum(await seconds_of_batches(place.fresh(), writes, size.drafts, BATCH, warm=1)))
        raw.append(sum(seconds_of_commits(place, writes, size.drafts, BATCH, warm=1)))
    return {
        "bare_claims_per_s": rounded(median(size.drafts / seconds for seconds in bare)),
        "raw_claims_per_s": rounded(median(size.drafts / seconds for seconds in raw)),
        "processes": {
            str(processes): {
                "claims_per_s": rounded(median(size.drafts / done.seconds for done in run)),
                "duplicates": sum(done.duplicates for done in run),
            }
            for processes, run in grabs.items()
        },
        "duplicates": sum(done.duplicates for run in grabs.values() for done in run),
    }


def table(figures: Figures) -> Iterator[Row]:
    """One line per number of processes."""
    yield "worker processes", "claims/s", "claimed twice"
    for processes, found in figures["processes"].items():
        yield processes, found["claims_per_s"], found["duplicates"]
    yield "bare loop", figures["bare_claims_per_s"], 0
    yield "raw statements", figures["raw_claims_per_s"], 0


BENCHMARK = Benchmark(
    name="claims",
    title="Worker processes racing for runs",
    measure=measure,
    table=table,
    normal=Size(drafts=5000),
    quick=Size(drafts=40),
    mongodb=Size(drafts=300, processes=(1, 2, 4, 8)),
    mongodb_quick=Size(drafts=20, processes=(1, 2)),
    rounds=3,
    needs_processes=True,
)
