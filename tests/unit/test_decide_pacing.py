"""What throttle and debounce decide about one run."""

from __future__ import annotations

from typing import Any

import pytest

from streamline_trio import Debounce, InvalidState, Throttle, Workflow
from streamline_trio._core.decide import Decision, StartRequest, admit, decide
from streamline_trio._core.documents import Origin, RunDoc, active_key
from streamline_trio._core.happenings import (
    Bumped,
    CancelAsked,
    Claimed,
    Finished,
    Happening,
    PauseAsked,
    Rewound,
    Slotted,
    UnpauseAsked,
)
from streamline_trio._core.plan import Plan
from streamline_trio._runtime.pacing import debounced, paced


def first(now: int, *, attended: bool = False, start_at: int | None = None, **options: Any) -> tuple[RunDoc, Plan]:
    """A new run of a workflow with these options."""
    flow: Workflow[Any, Any] = Workflow("flow", **options)
    flow.add_step("step", lambda _ctx: None)
    flow.seal()
    origin = Origin(id="r", workflow="flow", start_id=1, created_at=now, input=b"\x01")
    request = StartRequest(origin=origin, state=b"\x01", start_at=start_at)
    request = debounced(paced(request, flow, attended=attended), flow)
    return admit(request, flow.plan, now).run, flow.plan


def then(run: RunDoc, plan: Plan, now: int, *happenings: Happening) -> RunDoc:
    for happening in happenings:
        decision: Decision = decide(run, happening, plan, now)
        run = decision.run
    return run


def test_nothing_begins_without_its_throttle():
    """Proves that a claim that brings no begin is refused, and that one that does begins as of that."""
    run, plan = first(1_000, throttle=Throttle(1, 60), timeout=30)
    assert run.head.due_at == 0
    with pytest.raises(InvalidState, match="throttle"):
        then(run, plan, 2_000, Claimed(worker="w"))
    begun = then(run, plan, 3_000, Claimed(worker="w", begins_at=2_500))
    assert (begun.head.started_at, begun.steps["step"].started_at, begun.head.deadline) == (2_500, 2_500, 32_500)
    assert begun.head.throttle is not None
    assert begun.head.throttle.stage == "begun"
    with pytest.raises(InvalidState):
        then(begun, plan, 3_000, Slotted(at=5_000, held=True))


def test_an_attended_run_is_due_in_case_its_starter_dies():
    """Proves that others leave it alone for a while, and its starter does not have to wait."""
    run, plan = first(1_000, attended=True, throttle=Throttle(1, 60))
    assert run.head.due_at == 6_000
    assert then(run, plan, 1_001, Claimed(worker="w", begins_at=1_001)).head.status == "running"
    delayed, _ = first(1_000, attended=True, start_at=9_000, throttle=Throttle(1, 60))
    assert delayed.head.due_at == 9_000


def test_a_slot_is_when_it_is_due():
    """Proves that a slotted run is due at its slot with its whole timeout before it, and not while paused."""
    run, plan = first(1_000, throttle=Throttle(1, 60), timeout=30)
    held = then(run, plan, 1_000, Slotted(at=61_000, held=True))
    assert (held.head.due_at, held.head.deadline) == (61_000, 91_000)
    assert then(held, plan, 1_000, Slotted(at=61_000, held=True)) is held
    with pytest.raises(InvalidState, match="not due"):
        then(held, plan, 2_000, Claimed(worker="w", begins_at=2_000))
    paused = then(held, plan, 2_000, PauseAsked())
    assert paused.head.due_at == 91_000
    assert then(paused, plan, 3_000, UnpauseAsked()).head.due_at == 61_000


def test_a_run_that_is_taken_up_passes_once_more():
    """Proves that a rewind of a settled run makes it due for its throttle, and one of a live run does not."""
    run, plan = first(1_000, throttle=Throttle(1, 60))
    begun = then(run, plan, 1_000, Claimed(worker="w", begins_at=1_000))
    done = then(begun, plan, 1_000, Finished(worker="w", fence=1, step="step", output=b"\xc0"))
    again = then(done, plan, 2_000, Rewound(to="step"))
    assert again.head.throttle is not None
    assert (again.head.status, again.head.due_at, again.head.throttle.turn) == ("running", 0, 1)
    with pytest.raises(InvalidState, match="throttle"):
        then(again, plan, 2_000, Claimed(worker="w"))
    held = then(again, plan, 2_000, Slotted(at=61_000, held=True))
    assert held.head.due_at == 61_000
    once_more = then(held, plan, 3_000, Rewound(to="step"))
    assert once_more.head.throttle == held.head.throttle
    assert then(held, plan, 61_000, Claimed(worker="w", begins_at=61_000)).head.lease is not None


def test_a_pending_draft_is_bumped_until_it_fires():
    """Proves that a bump moves the due time up to `max_wait`, and that none reaches a run that is past it."""
    run, plan = first(1_000, debounce=Debounce(10, max_wait=15))
    assert run.head.due_at == 11_000
    assert active_key(run) == "\nflow/debounce\n"
    bump = Bumped(input=b"\x02", state=b"\x02")
    bumped = then(run, plan, 9_000, bump)
    assert (bumped.head.due_at, bumped.origin.input, bumped.state) == (16_000, b"\x02", b"\x02")
    assert bumped.head.debounce is not None
    assert bumped.head.debounce.starts == 2
    for over in (Claimed(worker="w"), CancelAsked()):
        ended = then(bumped, plan, 16_000, over)
        assert active_key(ended) is None
        with pytest.raises(InvalidState, match="its window is over"):
            then(ended, plan, 16_000, bump)
