"""The books against the stored runs: was anything lost, did anything that was finished run again?

The ledger is written by the handlers, the runs by the engine; neither knows of the other. Each handler does its
side effect last, so that a line in the ledger means: this call got to its end. The payment provider goes by keys:
money has moved once for each key that it accepted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from streamline_trio import Run, StepState
from streamline_trio.demo.orders import Order, expected
from streamline_trio.demo.shop import Line, undoing

SETTLED = ("done", "failed", "cancelled", "compensated", "compensation_failed")


class Snapshot(msgspec.Struct, frozen=True):
    """Which (run, step) were stored as finished or undone at this instant of the monotonic clock."""

    at: float
    finished: frozenset[tuple[str, str]]


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong, in words. All empty: every promise was kept."""

    lost: list[str]
    rerun: list[str]
    unexpected: list[str]

    @property
    def problems(self) -> list[str]:
        """Everything that is wrong."""
        return [*self.lost, *self.rerun, *self.unexpected]


def finished_steps(runs: Iterable[Run]) -> frozenset[tuple[str, str]]:
    """The steps whose end is stored."""
    return frozenset((run.id, step.id) for run in runs for step in run.steps.values() if step.status == "done")


def undone_steps(runs: Iterable[Run]) -> frozenset[tuple[str, str]]:
    """The steps whose undoing is stored as done."""
    return frozenset(
        (run.id, undoing(step.id))
        for run in runs
        for step in run.steps.values()
        if step.compensation and step.compensation.status == "done"
    )


def check(
    started: Mapping[str, Order], runs: Iterable[Run], ledger: Sequence[Line], snapshot: Snapshot
) -> Findings:
    """Compare the orders whose start was acknowledged (by run id), the stored runs, and the ledger."""
    stored = {run.id: run for run in runs}
    lines: defaultdict[str, list[Line]] = defaultdict(list)
    for line in ledger:
        lines[line.run].append(line)
    lost: list[str] = []
    rerun: list[str] = []
    unexpected: list[str] = []
    for run_id, order in started.items():
        run = stored.get(run_id)
        if run is None or run.status not in SETTLED:
            lost.append(f"{order.order_id}: run {run_id} is {'gone' if run is None else run.status}")
            continue
        unexpected += _wrong_outcome(run, order)
        unexpected += _without_effect(run, lines[run_id])
        unexpected += _wrong_money(run, lines[run_id])
        rerun += _ran_again(run, lines[run_id], snapshot)
    return Findings(lost=lost, rerun=rerun, unexpected=unexpected)


def _wrong_outcome(run: Run, order: Order) -> Iterator[str]:
    wanted = expected(order)
    step = run.error.step if run.error else None
    if (run.status, step) != (wanted.status, wanted.step):
        yield f"{order.order_id}: {run.status} at {step}, expected {wanted.status} at {wanted.step}"


def _without_effect(run: Run, lines: Sequence[Line]) -> Iterator[str]:
    """Steps that are stored as done, but whose side effect nobody did."""
    done = {line.what for line in lines if line.ok}
    stored = finished_steps([run]) | undone_steps([run])
    for _, what in sorted(stored, key=lambda found: found[1]):
        if what not in done:
            yield f"{run.id}: {what} is stored as done, but not in the ledger"


def _wrong_money(run: Run, lines: Sequence[Line]) -> Iterator[str]:
    """A charge moves money once, a refund moves it back once, and only what was compensated is refunded."""
    paid = {line.key for line in lines if line.ok and line.step == "charge" and not line.undo}
    refunded = {line.key for line in lines if line.ok and line.step == "charge" and line.undo}
    wanted = (1, 1) if run.status == "compensated" else (len(paid), 0)
    if (len(paid), len(refunded)) != wanted:
        yield f"{run.id}: {run.status}, but charged {len(paid)} and refunded {len(refunded)} times"


def _ran_again(run: Run, lines: Sequence[Line], snapshot: Snapshot) -> Iterator[str]:
    names = [*run.steps, *(undoing(step) for step in reversed(run.steps))]
    order = {name: place for place, name in enumerate(names)}
    latest = -1
    for place, line in enumerate(lines):
        what = f"{line.order}: {line.what}, attempt {line.attempt} by {line.worker},"
        before = [earlier for earlier in lines[:place] if earlier.what == line.what]
        attempts = _attempts(run.steps[line.step], undo=line.undo)
        yield from (f"{what} {why}" for why in _why_wrong(line, before, attempts))
        if (run.id, line.what) in snapshot.finished and line.at > snapshot.at:
            yield f"{what} ran after its end was stored"
        if order[line.what] < latest:
            yield f"{what} ran after a later step"
        latest = max(latest, order[line.what])


def _attempts(step: StepState, *, undo: bool) -> int:
    if not undo:
        return step.attempts
    return 0 if step.compensation is None else step.compensation.attempts


def _why_wrong(line: Line, before: Sequence[Line], attempts: int) -> Iterator[str]:
    """A call that got to its end is called again only if its worker died before that was stored."""
    if line.attempt > attempts:
        yield f"is not one of the {attempts} stored attempts"
    if any(earlier.attempt >= line.attempt for earlier in before):
        yield "was made before"
    if any(earlier.ok and earlier.worker == line.worker for earlier in before):
        yield "repeats what the same worker had done"


def repeated(ledger: Iterable[Line]) -> int:
    """Side effects done once more under the same key: the worker died before the end of the step was stored."""
    keys = [line.key for line in ledger if line.ok]
    return len(keys) - len(set(keys))
