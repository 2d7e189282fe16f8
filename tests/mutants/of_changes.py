"""Faults of what changes a run's course: undoing, forks, pinned outputs, other versions, guards and middleware."""

from tests.mutants.fault import RARE, Fault

FAULTS = (
    Fault(
        name="undone-oldest-first",
        promise="Steps are undone newest first.",
        file="_core/rollback.py",
        before='return step.status == "done", -step.position',
        after='return step.status == "done", step.position',
        tests=(
            "tests/unit/test_decide_compensating.py::test_the_failing_write_begins_the_first_compensation",
            "tests/scenarios/test_saga.py::test_newest_first",
        ),
        seed=235,
    ),
    Fault(
        name="unfinished-step-undone",
        promise="A step that has not finished is undone only if its compensation says so.",
        file="_core/rollback.py",
        before='return how.when == "started" and step.attempts > 0',
        after="return step.attempts > 0",
        tests=("tests/scenarios/test_saga.py::test_only_done_steps_with_a_handler",),
        blind=RARE,
    ),
    Fault(
        name="undone-twice-after-retry",
        promise="What is undone is not undone again by a retry.",
        file="_core/decide/compensating.py",
        before="""\
step.compensation.status == "failed")
    turn.undo =""",
        after="""\
step.compensation.status != "pending")
    turn.undo =""",
        tests=(
            "tests/unit/test_decide_compensating.py::test_retry_undoes_again_what_failed",
            "tests/scenarios/test_saga.py::test_retry_of_what_could_not_be_undone",
        ),
        blind=RARE,
    ),
    Fault(
        name="undoing-never-gives-up",
        promise="A compensation that fails as often as it may has failed, and the next one gets its turn.",
        file="_core/decide/compensating.py",
        before="not happening.retriable or compensation.failures >= how.retry.attempts:",
        after="not happening.retriable:",
        tests=("tests/unit/test_decide_compensating.py::test_a_failed_compensation_waits_for_its_retry",),
        blind=RARE,
    ),
    Fault(
        name="second-cancel-stops-the-undoing",
        promise="Who cancels a second time leaves nothing half undone.",
        file="_core/decide/steering.py",
        before='if turn.status == "compensating" and (not happening.stops_undoing or turn.head.error is None):',
        after='if turn.status == "compensating" and not happening.stops_undoing:',
        tests=("tests/scenarios/test_saga.py::test_a_second_cancellation_changes_nothing",),
        blind=RARE,
    ),
    Fault(
        name="fork-takes-later-steps",
        promise="A fork has nothing of the steps from where it begins.",
        file="_core/decide/forking.py",
        before="    steps = {step_id: step for step_id, step in run.steps.items() if step_id in before}\n",
        after="    steps = dict(run.steps)\n    assert before is not None\n",
        tests=("tests/scenarios/test_fork.py::test_a_fork_begins_in_the_middle",),
        seed=6,
    ),
    Fault(
        name="unknown-version-pinned",
        promise="Only an output that the history has can be pinned.",
        file="_core/decide/archiving.py",
        before="if version.version == happening.version), None)",
        after="if version.version <= happening.version), None)",
        tests=("tests/scenarios/test_history.py::test_what_cannot_be_pinned",),
        blind="the world pins nothing",
    ),
    Fault(
        name="broken-guard-allows",
        promise="A guard that raises refuses.",
        file="_runtime/guards.py",
        before="""\
            raise self._refused(guard, f"it raised {storable_repr(error, _LONGEST_REASON)}") from error
""",
        after="""\
            del error
            return
""",
        tests=(
            (
                "tests/scenarios/test_guards.py"
                "::test_a_guard_that_does_not_allow[<function _raises>-the budget service is down]"
            ),
        ),
        blind="the guards of the world raise nothing",
    ),
    Fault(
        name="middleware-breaks-the-step",
        promise="What a middleware raises does not reach the step.",
        file="_runtime/middleware.py",
        before="""\
            driver.services.report(context, error, driver.run)
    if scope""",
        after="""\
            raise error
    if scope""",
        tests=("tests/scenarios/test_middleware.py::test_a_broken_middleware[<function _raise>]",),
        blind="the middleware of the world raises nothing",
    ),
    Fault(
        name="left-before-it-has-retired",
        promise="A worker that leaves while it gives up an id first marks that dead.",
        file="_runtime/worker.py",
        before="""\
        with trio.move_on_at(until):
            async with (
                self._lock
            ):  # an id that is being retired is first marked dead: its runs go to others at once
                pass
""",
        after="",
        tests=("tests/crash/test_leaving.py::test_leaving_while_an_id_is_given_up_marks_it_dead",),
        blind=RARE,
    ),
)
