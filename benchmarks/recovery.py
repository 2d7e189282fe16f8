"""SIGKILL to a worker process that drives runs, and another one started at once.

All times are from the kill. Beside them stands how long the steps that were left take by themselves: of the run
that had most of them to do after the kill, their number times what one takes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from benchmarks.figures import Benchmark, Figures, Row, median, rounded
from benchmarks.load import start_drafts, until, until_done
from benchmarks.places import Place
from benchmarks.processes import workers
from benchmarks.worker import Job
from benchmarks.workflows import Effect, Effects, nothing, workflow_of
from streamline_trio import open_engine

_LOOKS_EVERY = 0.01


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Runs in flight, their steps, what a step takes in seconds, and the lease of the workers.

    The lease has to run out first on stores that have no locks which die with their process.
    """

    runs: int
    steps: int
    seconds: float
    lease: float = 15.0


class _Times(msgspec.Struct, frozen=True, kw_only=True):
    """One round."""

    ready: float
    taken_over: float
    progress: float
    done: float
    work: float
    repeated: int


async def measure(place: Place, size: Size, rounds: int) -> Figures:
    """Kill one worker per round, when half of the steps are done."""
    times = [await _once(place, size) for _ in range(rounds)]
    return {
        "process_ready_s": rounded(median(found.ready for found in times)),
        "first_taken_over_s": rounded(median(found.taken_over for found in times)),
        "first_progress_s": rounded(median(found.progress for found in times)),
        "all_done_s": rounded(median(found.done for found in times)),
        "remaining_work_s": rounded(median(found.work for found in times)),
        "unfinished_steps_repeated": median(found.repeated for found in times),
    }


async def _once(place: Place, size: Size) -> _Times:
    store, effects = place.fresh(), Effects(place.file("effects"))
    workflow = workflow_of(size.steps, nothing)
    tag = effects.path.name + effects.path.parent.name
    job = Job(
        store=store,
        name="first",
        effects=str(effects.path),
        steps=size.steps,
        seconds=size.seconds,
        lease=size.lease,
    )
    async with open_engine(store, workflow, worker=False) as client:
        async with workers([job]) as (first,):
            await start_drafts(client, workflow, size.runs, tag)
            await first.say("go")
            # Each step is entered and left, which are two effects.
            await until(lambda: effects.has(size.runs * size.steps), every=_LOOKS_EVERY)
            killed_at = time.monotonic()
            await first.kill()
        async with workers([msgspec.structs.replace(job, name="second")]) as (second,):
            await second.say("go")
            ready = await second.hear("ready")
            await until_done(client, size.runs, tag, every=_LOOKS_EVERY)
            done_at = time.monotonic()
            await second.stop()
    return _times(effects.read(), size, killed_at, ready.at, done_at)


def _times(effects: Sequence[Effect], size: Size, killed_at: float, ready_at: float, done_at: float) -> _Times:
    after = [effect for effect in effects if effect.worker == "second"]
    entered = [(effect.run, effect.step) for effect in effects if effect.what == "entered"]
    left_to_do = Counter(effect.run for effect in after if effect.what == "entered")
    return _Times(
        ready=ready_at - killed_at,
        taken_over=min(effect.at for effect in after) - killed_at,
        progress=min(effect.at for effect in after if effect.what == "left") - killed_at,
        done=done_at - killed_at,
        work=max(left_to_do.values()) * size.seconds,
        repeated=len(entered) - len(set(entered)),
    )


def table(figures: Figures) -> Iterator[Row]:
    """What happened when."""
    yield "after SIGKILL", "seconds"
    yield "the new process is ready", figures["process_ready_s"]
    yield "the first handler is entered again", figures["first_taken_over_s"]
    yield "the first step is finished", figures["first_progress_s"]
    yield "all runs are done", figures["all_done_s"]
    yield "of which the remaining steps take by themselves", figures["remaining_work_s"]


BENCHMARK = Benchmark(
    name="recovery",
    title="A worker process is killed, and another started at once",
    measure=measure,
    table=table,
    normal=Size(runs=100, steps=20, seconds=0.1),
    quick=Size(runs=10, steps=4, seconds=0.05),
    mongodb=Size(runs=20, steps=10, seconds=0.2, lease=5.0),
    mongodb_quick=Size(runs=4, steps=4, seconds=0.05, lease=2.0),
    rounds=3,
    needs_processes=True,
)
