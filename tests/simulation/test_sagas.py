"""Sagas in simulated worlds: whatever happens, money that moved is back once it should be, in order."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from streamline_trio import NonRetriable, StepContext, Workflow
from streamline_trio._core.decide import compensating
from streamline_trio._core.documents import RunDoc
from streamline_trio.testing import Chooser, Scenario, SimulationFailed, Start, World, simulate

Context = StepContext[Any, Any]
SCHEDULES = 100


def sagas(chooser: Chooser) -> Scenario:
    """Two steps to undo before one that fails or waits; the refunds fail now and then, or for good."""
    undone: defaultdict[str, list[str]] = defaultdict(list)
    on_cancel = chooser.one_in(2)
    broken = chooser.one_in(4)
    workflow: Workflow[Any, Any] = Workflow("saga", compensate_on_cancel=on_cancel)

    async def do(ctx: Context) -> str:
        return ctx.idempotency_key()

    async def undo(ctx: Context) -> None:
        assert ctx.output(ctx.step_id) == ctx.idempotency_key()
        if broken and ctx.step_id == "b":
            raise NonRetriable("never")
        if ctx.attempt == 1 and ctx.step_id == "a":
            raise ConnectionError("not yet")
        undone[ctx.run_id].append(ctx.step_id)

    for name in "ab":
        workflow.add_step(name, do).compensate(attempts=3, retry_delay=chooser.one_of((0, 1.0)))(undo)

    @workflow.step(attempts=1)
    async def last(ctx: Context) -> None:
        if ctx.input == "wait":
            await ctx.wait("approval", returns=bool, timeout=60)
        raise ValueError("it cannot be done")

    def check(world: World) -> None:
        for run_id in world.witness.versions:
            _check(world.witness.run(run_id), undone[run_id])

    starts = [Start(workflow, chooser.one_of(("wait", "fail"))) for _ in range(1 + chooser.below(2))]
    return Scenario(workflow, starts=starts, answers={"approval": [True]}, check=check)


def _check(run: RunDoc, made: list[str]) -> None:
    assert run.head.status != "done"
    done = {step for step in "ab" if run.step(step).status == "done"}
    assert set(made) <= done
    assert run.head.status != "compensated" or set(made) == done, f"{run.id}: only {made} of {done} is undone"
    assert made == sorted(made, reverse=True), f"{run.id}: undone in the order {made}"


def test_no_schedule_breaks_a_saga() -> None:
    """Proves that crashes, lost answers, cancellations, pauses and retries leave no saga half undone."""
    summary = simulate(sagas, schedules=SCHEDULES)
    runs = summary.of("runs")
    assert runs["compensated"] > 0
    assert runs["compensation_failed"] > 0
    assert {
        "running -> compensating",
        "waiting -> compensating",
        "compensating -> compensated",
        "compensating -> compensation_failed",
        "compensating -> cancelled",
        "compensation_failed -> compensating",
    } <= set(summary.of("transitions"))


def test_an_undoing_that_is_forgotten_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that these worlds can fail: here the second step is never undone."""
    leave = compensating._leave

    def forgets(turn: Any) -> None:
        leave(turn)
        turn.undo = turn.undo[1:]

    monkeypatch.setattr(compensating, "_leave", forgets)
    with pytest.raises(SimulationFailed, match="is undone"):
        simulate(sagas, schedules=SCHEDULES)
