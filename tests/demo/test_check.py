"""The demo's orders, and the check that compares the ledger with the stored runs."""

from collections import Counter

import msgspec
import pytest
import trio

from streamline_trio import open_engine
from streamline_trio.demo.check import Snapshot, check, finished_steps, repeated, undone_steps
from streamline_trio.demo.orders import expected, read_orders
from streamline_trio.demo.people import Approver
from streamline_trio.demo.shop import Line, Shop, Tail
from streamline_trio.demo.workflow import order_workflow
from streamline_trio.testing import run

NEVER = Snapshot(float("inf"), frozenset())


async def fill(folder, orders):
    """The orders by run id, the settled runs, and the ledger, of one worker that lives."""
    shop = Shop(folder, "worker 1")
    workflow = order_workflow(shop)
    async with open_engine("memory:", workflow) as engine, trio.open_nursery() as nursery:
        nursery.start_soon(Approver(engine, shop.mails).work)
        started = {(await engine.start(workflow, order)).id: order for order in orders}
        runs = [await engine.run(run_id).wait() for run_id in started]
        nursery.cancel_scope.cancel()
    ledger = [msgspec.json.decode(line, type=Line) for line in Tail(shop.ledger).lines()]
    return started, runs, ledger


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    return run(fill, folder, read_orders()[:30])


def test_there_are_three_hundred_orders_of_every_kind():
    """Proves that the file holds what the demo and its documentation say."""
    orders = read_orders()
    assert len({order.order_id for order in orders}) == 300
    outcomes = Counter((expected(order).status, expected(order).step) for order in orders)
    assert outcomes == {
        ("done", None): 261,
        ("failed", "validate"): 5,
        ("failed", "approve"): 3,
        ("failed", "charge"): 4,
        ("compensated", "ship"): 27,
    }


def test_every_order_ends_as_expected_when_nothing_happens(tmp_path):
    """Proves that what the demo expects of each order is what its workflow does with it."""
    started, runs, ledger = run(fill, tmp_path, read_orders())
    snapshot = Snapshot(float("inf"), finished_steps(runs) | undone_steps(runs))
    assert check(started, runs, ledger, snapshot).problems == []
    assert repeated(ledger) == 0
    assert any(not line.ok for line in ledger)


def the_line(ledger, step="reserve"):
    """Where the first line of the step is, and the line."""
    return next((place, line) for place, line in enumerate(ledger) if line.step == step)


def test_a_line_twice_is_found(filled):
    """Proves that a finished step that ran again under the same attempt is counted, once."""
    started, runs, ledger = filled
    place, line = the_line(ledger)
    findings = check(started, runs, [*ledger[: place + 1], line, *ledger[place + 1 :]], NEVER)
    assert len({problem.partition(",")[0] for problem in findings.rerun}) == 1
    assert "was made before" in findings.rerun[0]
    assert (findings.lost, findings.unexpected) == ([], [])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"attempt": 2, "worker": "worker 2"}, "is not one of the 1 stored attempts"),
        ({"attempt": 2}, "repeats what the same worker had done"),
    ],
)
def test_an_attempt_too_many_is_found(filled, change, why):
    """Proves that the checker tells an unstored attempt from a repeated one, and finds both."""
    started, runs, ledger = filled
    place, line = the_line(ledger)
    again = msgspec.structs.replace(line, **change)
    findings = check(started, runs, [*ledger[: place + 1], again, *ledger[place + 1 :]], NEVER)
    assert any(why in problem for problem in findings.rerun)


def test_a_step_cut_by_a_crash_may_run_again(filled):
    """Proves that the repetition of a step whose end was not stored is no finding: another worker, next attempt."""
    started, runs, ledger = filled
    place, line = the_line(ledger)
    again = msgspec.structs.replace(line, attempt=2, worker="worker 2")
    recovered = [with_attempts(run, line) for run in runs]
    lines = [*ledger[: place + 1], again, *ledger[place + 1 :]]
    assert check(started, recovered, lines, NEVER).problems == []
    assert repeated(lines) == 1


def test_a_step_that_runs_after_its_end_was_stored_is_found(filled):
    """Proves that the same repetition is a finding when the step was stored as finished before."""
    started, runs, ledger = filled
    place, line = the_line(ledger)
    again = msgspec.structs.replace(line, attempt=2, worker="worker 2", at=line.at + 2)
    snapshot = Snapshot(line.at + 1, frozenset({(line.run, line.step)}))
    recovered = [with_attempts(run, line) for run in runs]
    findings = check(started, recovered, [*ledger[: place + 1], again, *ledger[place + 1 :]], snapshot)
    assert len(findings.rerun) == 1
    assert "ran after its end was stored" in findings.rerun[0]


def with_attempts(run, line):
    """The run; if it is the line's, with two attempts at its step."""
    if run.id != line.run:
        return run
    step = msgspec.structs.replace(run.steps[line.step], attempts=2)
    return msgspec.structs.replace(run, steps={**run.steps, line.step: step})


def test_a_step_after_a_later_one_is_found(filled):
    """Proves that the order of steps in the ledger is checked."""
    started, runs, ledger = filled
    _, line = the_line(ledger)
    findings = check(started, runs, [*(other for other in ledger if other != line), line], NEVER)
    assert any("ran after a later step" in problem for problem in findings.rerun)


def test_a_lost_run_is_found(filled):
    """Proves that an acknowledged order without a settled run is counted, gone or not."""
    started, runs, ledger = filled
    waiting = msgspec.structs.replace(runs[0], status="waiting")
    assert len(check(started, runs[1:], ledger, NEVER).lost) == 1
    assert len(check(started, [waiting, *runs[1:]], ledger, NEVER).lost) == 1


def test_a_wrong_end_and_a_missing_effect_are_found(filled):
    """Proves that a run which ends otherwise, or a done step that nobody did, is found."""
    started, runs, ledger = filled
    done = next(run for run in runs if run.status == "done")
    cancelled = [msgspec.structs.replace(run, status="cancelled") if run is done else run for run in runs]
    assert len(check(started, cancelled, ledger, NEVER).unexpected) == 1
    _, line = the_line(ledger)
    assert len(check(started, runs, [other for other in ledger if other != line], NEVER).unexpected) == 1


def a_refund(ledger):
    """Where the first refund that was accepted is, and its line."""
    return next(
        (place, line) for place, line in enumerate(ledger) if line.undo and line.step == "charge" and line.ok
    )


def test_money_that_moved_wrongly_is_found(filled):
    """Proves that a refund that is missing, comes twice under other keys, or is of a done order is found."""
    started, runs, ledger = filled
    place, line = a_refund(ledger)
    missing = [*ledger[:place], *ledger[place + 1 :]]
    twice = [*ledger, msgspec.structs.replace(line, key="another")]
    done = next(run for run in runs if run.status == "done")
    unasked = [*ledger, msgspec.structs.replace(line, run=done.id)]
    for lines, times in ((missing, 0), (twice, 2), (unasked, 1)):
        found = check(started, runs, lines, NEVER).unexpected
        assert any(f"refunded {times} times" in problem for problem in found)


def test_what_is_undone_in_the_wrong_order_is_found(filled):
    """Proves that goods are put back before the money goes back, and both after every step."""
    started, runs, ledger = filled
    place, line = a_refund(ledger)
    swapped = [line, *ledger[:place], *ledger[place + 1 :]]
    findings = check(started, runs, swapped, NEVER)
    assert any("undoing reserve" in problem and "after a later step" in problem for problem in findings.rerun)


def test_an_undoing_that_runs_after_its_end_was_stored_is_found(filled):
    """Proves that what is undone for good is as final as a step that is done."""
    started, runs, ledger = filled
    _, line = a_refund(ledger)
    snapshot = Snapshot(line.at - 1, undone_steps(runs))
    assert any(
        "ran after its end was stored" in problem for problem in check(started, runs, ledger, snapshot).rerun
    )
