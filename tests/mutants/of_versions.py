"""Faults of runs and workers of several versions: taking runs over, refusing them, giving leases up."""

from tests.mutants.fault import RARE, Fault

FAULTS = (
    Fault(
        name="lapse-not-counted",
        promise="A lease that is given up for a dead worker counts as a recovery.",
        file="_core/decide/claiming.py",
        before="    recoveries, streak = turn.head.recoveries + 1, turn.head.streak + 1\n",
        after="""\
    counted = isinstance(happening, Claimed)
    recoveries, streak = turn.head.recoveries + counted, turn.head.streak + counted
""",
        tests=(
            "tests/unit/test_decide_migrating.py::test_a_release_makes_the_run_ready",
            "tests/unit/test_decide_migrating.py::test_releases_are_bounded_as_takeovers_are[0]",
            "tests/unit/test_decide_migrating.py::test_releases_are_bounded_as_takeovers_are[2]",
        ),
        seed=7,
    ),
    Fault(
        name="migration-keeps-old-ids",
        promise="What a step has follows it to its new id.",
        file="_core/decide/migrating.py",
        before="            kept[old] = new\n",
        after="            kept[old] = old\n",
        tests=(
            "tests/unit/test_decide_migrating.py::test_everything_of_a_step_follows_its_new_id",
            "tests/scenarios/test_ver_migrate.py::test_steps_are_renamed_dropped_and_added",
        ),
        seed=307,
    ),
    Fault(
        name="refused-migration-stays-refused",
        promise="A run that a migration refused is asked about again when it has changed.",
        file="_runtime/migrator.py",
        before="self._refused.get(run.origin.id) != run.head.revision]",
        after="run.origin.id not in self._refused]",
        tests=(
            (
                "tests/scenarios/test_ver_refusals.py"
                "::test_a_refused_run_is_asked_about_again_when_it_has_changed[False]"
            ),
        ),
        blind=RARE,
    ),
    Fault(
        name="version-that-is-back-is-robbed",
        promise="Runs of a version that a live worker has are not taken over, even if it has only just come.",
        file="_runtime/migrator.py",
        before="return [run for run in found if Route(run.origin.workflow, run.head.version) not in live]",
        after="return found",
        tests=("tests/scenarios/test_ver_migrate.py::test_a_worker_that_has_just_come_keeps_its_runs",),
        seed=658,
    ),
    Fault(
        name="refusal-forgotten",
        promise="A run that was refused is not asked about again until it changes.",
        file="_runtime/migrator.py",
        before="        self._refused[run.origin.id] = run.head.revision\n",
        after="",
        tests=("tests/scenarios/test_ver_refusals.py::test_what_is_refused_is_told_once[an error]",),
        seed=120,
    ),
    Fault(
        name="missing-version-not-released",
        promise="A dead worker's lease on a run is given up when nobody alive has the code.",
        file="_runtime/lapses.py",
        before="            if route not in routes:\n",
        after="            if route in routes:\n",
        tests=("tests/scenarios/test_ver_workers.py::test_what_nobody_can_run_is_released_and_waits[memory]",),
        seed=7,
    ),
    Fault(
        name="migration-forgets-waits",
        promise="A run that is taken over keeps the waits of the step where it stands.",
        file="_core/decide/migrating.py",
        before="    if not _stays(turn, happening):\n",
        after="    if True:\n",
        tests=("tests/unit/test_decide_migrating.py::test_waits_stay_with_their_step_and_go_with_it",),
        seed=132,
    ),
    Fault(
        name="left-step-keeps-its-waits",
        promise="A run that is taken over at another step waits for nothing of the one that it has left.",
        file="_core/decide/migrating.py",
        before="    if not _stays(turn, happening):\n",
        after="    if False:\n",
        tests=("tests/unit/test_decide_migrating.py::test_waits_stay_with_their_step_and_go_with_it",),
        seed=846,
    ),
)
