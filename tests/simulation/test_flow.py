"""Worlds of flow control: limits, throttles, debounces, triggers, signals that cancel, schedules and tenants."""

from __future__ import annotations

import os
from typing import Any

import pytest

from streamline_trio import Concurrency, Debounce, Signal, StepContext, Throttle, Trigger, Workflow
from streamline_trio._core import decide, slots, throttling
from streamline_trio._core.decide import answering, matching, pacing
from streamline_trio._core.happenings import Bumped
from streamline_trio.testing import Chooser, Scenario, SimulationFailed, Start, Summary, replay, simulate
from streamline_trio.testing._world_flows import draw_flows
from tests.simulation.regressions import FLOW_REGRESSIONS

CHUNKS = 2
A_CHUNK = 120
BASE = int(os.environ.get("WORLD_SEED", "0"))
COMMAND = "python -m streamline_trio.testing.world --worlds flow --schedules 1 --seed {seed}"
Context = StepContext[Any, Any]


@pytest.mark.deadline(150)
def test_no_schedule_breaks_a_law_of_flow_control_and_each_is_put_to_the_test():
    """Proves that no limit is ever exceeded, no window holds too many begins, no acknowledged start is lost, each
    emission starts one run and cancels what it matches, no tenant reaches another; and that all of this is met.
    """
    summary = Summary()
    for chunk in range(CHUNKS):
        summary.add(simulate(draw_flows, schedules=A_CHUNK, seed=BASE + chunk * A_CHUNK, command=COMMAND))
    flow = summary.of("flow")
    assert {
        "another tenant's run is not found",
        "cancelled by a signal",
        "debounce: bumped",
        "debounce: fired",
        "debounce: opened",
        "firings missed",
        "scheduled runs",
        "slot: asked -> held",
        "slot: asked -> left",
        "slot: held -> left",
        "slot: later -> asked",
        "slot: later -> queued",
        "slot: left -> asked",
        "slot: left -> queued",
        "slot: queued -> held",
        "slot: queued -> left",
        "slot: refused, and removed",
        "throttle: begins",
        "throttle: begins again",
        "throttle: held back",
        "triggered runs",
    } <= set(flow), sorted(flow)
    assert flow["slot: queued -> held"] >= 50
    assert flow["throttle: held back"] >= 15
    assert flow["cancelled by a signal"] >= 5
    assert flow["triggered runs"] >= 15
    verbs = summary.of("verbs")
    assert verbs["start refused (ConcurrencyLimitReached)"] >= 5
    assert verbs["schedule acknowledged"] >= 10
    assert verbs["broadcast acknowledged"] >= 50
    assert summary.of("in all")["take-overs"] > 0


@pytest.mark.parametrize("name", FLOW_REGRESSIONS)
def test_a_schedule_that_once_failed_does_not(name):
    """Proves that recorded findings stay fixed."""
    replay(draw_flows, FLOW_REGRESSIONS[name])


# --- worlds that others write ----------------------------------------------------------------------------------


def limited(**rules: Any) -> Any:
    """A scenario of one workflow with these rules."""

    def make(chooser: Chooser) -> Scenario:
        flow: Workflow[Any, Any] = Workflow("flow", **rules)

        @flow.step
        async def work(ctx: Context) -> None:
            await ctx.sleep(5)

        starts = [Start(flow, number, tenant=chooser.one_of((None, "t"))) for number in range(4)]
        return Scenario(flow, starts=starts, signals={"go": [1], "stop": [1]})

    return make


def test_a_scenario_may_have_limits_and_tenants():
    """Proves that whoever writes a scenario has limits, rates, debounces, signals and tenants judged like ours."""
    summary = simulate(limited(concurrency=Concurrency(1, when_full="reject")), schedules=12)
    assert summary.of("verbs")["start refused (ConcurrencyLimitReached)"] > 0
    assert simulate(limited(throttle=Throttle(1, 5)), schedules=12).of("flow")["throttle: held back"] > 0
    assert simulate(limited(debounce=Debounce(5)), schedules=12).of("flow")["debounce: bumped"] > 0
    go, stop = Signal("go", int), Signal("stop", int)
    summary = simulate(limited(trigger=Trigger(go), cancel_on=[stop]), schedules=20)
    assert summary.of("flow")["cancelled by a signal"] > 0


# --- the laws bite ---------------------------------------------------------------------------------------------


def test_a_limit_that_is_one_too_high_is_found(monkeypatch):
    """Proves that one run too many is seen."""
    entered = slots.entered
    monkeypatch.setattr(slots, "entered", lambda bucket, run, wish, limit: entered(bucket, run, wish, limit + 1))
    with pytest.raises(SimulationFailed, match=r"the limit is 1|which are 1"):
        simulate(limited(concurrency=Concurrency(1)), schedules=50, tries=0)


def test_a_window_that_is_too_short_is_found(monkeypatch):
    """Proves that two begins that lie too near to each other are seen."""
    room_at = throttling._room_at
    monkeypatch.setattr(
        throttling, "_room_at", lambda begins, want, now: max(room_at(begins, want, now) - 900, now)
    )
    with pytest.raises(SimulationFailed, match="begins in"):
        simulate(limited(throttle=Throttle(1, 5)), schedules=50, tries=0)


def test_a_start_that_does_not_arrive_is_found(monkeypatch):
    """Proves that an acknowledged start of a debounced workflow must be in a run."""

    def keeps(turn: Any, happening: Any) -> None:
        origin = turn.origin
        bumped(turn, happening)
        turn.origin = origin

    bumped = pacing.bumped
    monkeypatch.setitem(decide._RULES, Bumped, keeps)
    with pytest.raises(SimulationFailed, match="is not in it"):
        simulate(limited(debounce=Debounce(5)), schedules=50, tries=0)


def test_a_signal_that_spares_a_run_is_found(monkeypatch):
    """Proves that a broadcast must cancel what it matches."""
    cancels = matching.cancels
    monkeypatch.setattr(answering, "cancels", lambda turn, signal: signal.addressed and cancels(turn, signal))
    with pytest.raises(SimulationFailed, match="does not cancel it"):
        simulate(limited(cancel_on=["stop"]), schedules=80, tries=0)
