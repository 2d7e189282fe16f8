"""The two transition tables: closed, and the only moves there are."""

import pytest

from streamline_trio._core.errors import InvalidTransition
from streamline_trio._core.status import (
    ACTIVE,
    FINISHED_STEP,
    RUN_STATUSES,
    RUN_TRANSITIONS,
    SETTLED,
    STEP_STATUSES,
    STEP_TRANSITIONS,
    check_run_transition,
    check_step_transition,
    is_settled,
    run_sources,
)
from tests.unit.story import Story

RUN_MOVES = {
    "draft": "running failed cancelled",
    "running": "waiting done failed cancelled compensating",
    "waiting": "running failed cancelled compensating",
    "done": "running",
    "failed": "running compensating",
    "cancelled": "",
    "compensating": "compensated compensation_failed cancelled",
    "compensated": "",
    "compensation_failed": "compensating",
}
STEP_MOVES = {
    "pending": "running failed",
    "running": "pending waiting done failed skipped",
    "waiting": "pending running failed",
    "done": "pending",
    "failed": "pending",
    "skipped": "pending",
}


def is_allowed(check, *move):
    try:
        check(*move)
    except InvalidTransition:
        return False
    return True


@pytest.mark.parametrize("source", RUN_STATUSES)
@pytest.mark.parametrize("target", RUN_STATUSES)
def test_run_moves(source, target):
    """S030: exactly the moves of the table are allowed.

    Stricter or wider than the original where our design says so: a draft and a parked run may fail (by the run's
    own deadline), compensating has no move to itself, and a compensation that failed can be retried.
    """
    assert is_allowed(check_run_transition, "r", source, target) == (target in RUN_MOVES[source].split())


@pytest.mark.parametrize("source", STEP_STATUSES)
@pytest.mark.parametrize("target", STEP_STATUSES)
def test_step_moves(source, target):
    """S031: exactly the moves of the table are allowed.

    Here predicates run in the begun step, so a step is skipped from running, never from pending; a parked step
    is entered again before it is done; and rewind resets a skipped step like a finished one.
    """
    assert is_allowed(check_step_transition, "r", "s", source, target) == (target in STEP_MOVES[source].split())


def test_an_illegal_run_move_is_a_typed_error():
    """S032: the error names entity, id, source and target; it has a code and an HTTP status.

    The code and status are those of the public contract (409 here, 422 in the original).
    """
    with pytest.raises(InvalidTransition, match="run r cannot go from cancelled to running") as caught:
        check_run_transition("r", "cancelled", "running")
    error = caught.value
    assert (error.code, error.status) == ("workflow.invalid_transition", 409)
    assert error.meta == {
        "entity": "run",
        "entity_id": "r",
        "from_status": "cancelled",
        "to_status": "running",
    }


def test_an_illegal_step_move_is_a_typed_error():
    """S032: the same for steps, naming the step and its run."""
    with pytest.raises(InvalidTransition, match="step s of run r cannot go from done to failed") as caught:
        check_step_transition("r", "s", "done", "failed")
    assert (caught.value.meta["entity"], caught.value.meta["entity_id"]) == ("step", "s")


def test_where_cancelled_comes_from():
    """S032: a run is cancelled out of any active status, and of no other."""
    assert run_sources("cancelled") == ACTIVE


def test_settled_is_not_stuck():
    """S033: settled runs rest; cancelled and compensated for ever, done and failed until rewind or retry."""
    settled = {"done", "failed", "cancelled", "compensated", "compensation_failed"}
    assert {status for status in RUN_STATUSES if is_settled(status)} == settled
    assert {status for status in RUN_STATUSES if not RUN_TRANSITIONS[status]} == {"cancelled", "compensated"}


def test_settled_and_active_share_nothing_and_leave_nothing_out():
    """S033: every status is either active or settled."""
    assert set(RUN_STATUSES) == ACTIVE | SETTLED
    assert not ACTIVE & SETTLED


@pytest.mark.parametrize(
    ("table", "statuses"), [(RUN_TRANSITIONS, RUN_STATUSES), (STEP_TRANSITIONS, STEP_STATUSES)]
)
def test_the_tables_are_closed(table, statuses):
    """Every status has a row, every target is a known status, and none is its own target."""
    assert set(table) == set(statuses)
    for source, targets in table.items():
        assert targets <= set(statuses)
        assert source not in targets


@pytest.mark.parametrize(
    ("table", "start", "unreached"),
    [(RUN_TRANSITIONS, "draft", set()), (STEP_TRANSITIONS, "pending", set())],
)
def test_every_status_can_be_reached(table, start, unreached):
    """No status is without a way to it from where runs and steps begin."""
    reached = {start}
    for _ in table:
        reached |= {target for source in reached for target in table[source]}
    assert set(table) - reached == unreached


def test_only_an_ended_step_is_finished():
    """What counts as finished is what goto and rewind alone may run again."""
    assert {"done", "skipped"} == FINISHED_STEP


def test_the_run_follows_its_steps():
    """S034: all finished is done; one failed is failed; one waiting is waiting; else running; cancelled stays.

    Here the run's status is not derived afterwards: the write that moves the step moves the run.
    """
    assert Story("ab").status == "running"
    assert Story("ab").finishes().status == "running"
    assert Story("ab").finishes().finishes().status == "done"
    assert Story("ab").fails(retriable=False).status == "failed"
    assert Story("ab").fails().status == "waiting"
