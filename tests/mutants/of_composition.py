"""Faults of what a step is made of: children, joins, scatters, loops, emissions, and what they leave to be done."""

from tests.mutants.fault import RARE, Fault

FAULTS = (
    Fault(
        name="parent-not-nudged",
        promise="The write that settles a child also says that its parent is to be told.",
        file="_core/decide/outbox.py",
        before="        _nudge_parent(turn)\n",
        after="        pass\n",
        tests=(
            "tests/unit/test_decide_joining.py::test_a_child_that_settles_nudges_its_parent_in_the_same_write[done]",
            "tests/scenarios/test_child.py::test_the_output_of_the_child_is_what_child_gives",
        ),
        seed=13,
    ),
    Fault(
        name="dropped-children-go-on",
        promise="Children that nobody waits for any more are cancelled.",
        file="_core/decide/outbox.py",
        before="                _cancel_unwanted(turn, before, turn.records.get(key))\n",
        after="                pass\n",
        tests=(
            (
                "tests/unit/test_decide_joining.py"
                "::test_children_that_are_no_longer_wanted_are_cancelled_in_the_same_write[rewind]"
            ),
            "tests/scenarios/test_child.py::test_cancelling_the_parent_cancels_the_child",
        ),
        seed=27,
    ),
    Fault(
        name="branch-end-counted-twice",
        promise="The end of a branch that is told twice is one end.",
        file="_core/decide/joining.py",
        before="    fresh = [end for end in ends if not known >> end.index & 1]\n",
        after="    fresh = list(ends)\n",
        tests=("tests/unit/test_decide_joining.py::test_a_nudge_that_comes_twice_or_late_changes_nothing",),
        blind=RARE,
    ),
    Fault(
        name="join-over-one-early",
        promise="A join that waits for every branch waits for the last one too.",
        file="_core/joins.py",
        before="ended.bit_count() >= record.branches",
        after="ended.bit_count() >= record.branches - 1",
        tests=("tests/scenarios/test_join.py::test_settled_collects_failures",),
        seed=27,
    ),
    Fault(
        name="all-fails-slowly",
        promise="A join of all fails with the first branch that does.",
        file="_core/joins.py",
        before="            if ended != good:\n",
        after="            if is_complete and ended != good:\n",
        tests=("tests/scenarios/test_join.py::test_all_fails_fast_with_the_message_of_the_branch",),
        blind=RARE,
    ),
    Fault(
        name="first-round-stays",
        promise="A later round of a loop replaces an earlier one.",
        file="_core/decide/composing.py",
        before="known is not None and (known.done or known.round >= happening.round)",
        after="known is not None",
        tests=(
            "tests/unit/test_decide_composing.py::test_a_loop_goes_forward_only",
            "tests/scenarios/test_loop.py::test_a_failed_iteration_is_where_the_retry_goes_on",
        ),
        blind=RARE,
    ),
    Fault(
        name="pieces-outlive-the-step",
        promise="A step that is left leaves no part of it behind.",
        file="_core/decide/turn.py",
        before="""\
        if self.pieces and not keep_outcomes:
            self.drop("pieces", list(self.pieces))
""",
        after="",
        tests=(
            "tests/unit/test_decide_composing.py::test_pieces_go_with_their_step[finish]",
            "tests/unit/test_decide_composing.py::test_pieces_go_with_their_step[goto]",
            "tests/unit/test_decide_composing.py::test_pieces_go_with_their_step[rewind]",
            "tests/unit/test_decide_composing.py::test_pieces_go_with_their_step[cancel]",
        ),
        seed=7,
    ),
    Fault(
        name="time-comes-in-a-paused-run",
        promise="While a run is paused no wait of a key of it comes to its time.",
        file="_core/decide/composing.py",
        before="    if turn.paused:\n        return False\n    came",
        after="    came",
        tests=("tests/unit/test_decide_composing.py::test_no_time_comes_in_a_paused_run",),
        blind=RARE,
    ),
    Fault(
        name="errand-removed-before-it-is-done",
        promise="What is to be done elsewhere stays written until it is done.",
        file="_runtime/errands.py",
        before="""\
        errand = run.outbox[number]
        try:
""",
        after="""\
        errand = run.outbox[number]
        try:
            await self._persist(lambda: self._remove(run, [number]))
""",
        tests=("tests/scenarios/test_outbox.py::test_a_nudge_that_was_lost_is_taken_over[False]",),
        blind=RARE,
    ),
    Fault(
        name="orphan-begins",
        promise="A child that is stored when nobody waits for it any more does not begin.",
        file="_runtime/claimer.py",
        before="        orphans = await orphans_among(self._services, runs)\n",
        after="        orphans: dict[str, str] = {}\n",
        tests=(
            "tests/scenarios/test_outbox.py::test_a_child_that_comes_late_does_not_begin_for_nothing[False-gone]",
            "tests/scenarios/test_outbox.py::test_a_child_that_comes_late_does_not_begin_for_nothing[False-over]",
        ),
        blind=RARE,
    ),
    Fault(
        name="child-before-its-record",
        promise="A child is stored after what waits for it, so that a crash in between starts no second one.",
        file="_runtime/joining.py",
        before="                starter.check()\n",
        after="""\
                starter.check()
                from streamline_trio._core.documents import Record as Early
                early = Early(
                    kind=ask.kind, ask=ask.ask, attempt=1, place=0, opened_at=0, group=ask.group,
                    branches=ask.branches, concurrency=ask.concurrency, keeps_losers=ask.keeps_losers,
                )
                await starter._publish(starter._next(early, 0))
                await starter._insert(ask.key, early, starter._next(early, 0))
""",
        tests=("tests/crash/test_children.py::test_a_child_is_started_once_and_wakes_its_parent_whatever_happens",),
        seed=27,
    ),
    Fault(
        name="finished-key-called-again",
        promise="A key of a scatter that has finished is not called again.",
        file="_runtime/scatter.py",
        before="            if key.path in run.pieces:\n                continue\n",
        after="",
        tests=(
            "tests/scenarios/test_scatter.py::test_a_retry_runs_only_what_has_not_finished",
            "tests/scenarios/test_scatter.py::test_after_a_crash_only_unfinished_keys_run",
        ),
        seed=24,
    ),
    Fault(
        name="emission-forgotten",
        promise="What a step has emitted is not emitted again.",
        file="_runtime/composition.py",
        before="        await self._pieces().save(path, _NOTHING)\n",
        after="",
        tests=("tests/scenarios/test_emit.py::test_a_call_is_remembered_whatever_becomes_of_its_target",),
        blind=RARE,
    ),
    Fault(
        name="memory-lists-no-errands",
        promise="What others have left to be done elsewhere is found.",
        file="stores/memory.py",
        before="[self._given(run_id) for run_id in self._content.errands.take(now, limit)]",
        after="[]",
        tests=(
            "tests/stores/test_conformance.py::test_memory[errands_come_earliest_first_of_whichever_run]",
            "tests/scenarios/test_outbox.py::test_a_nudge_that_was_lost_is_taken_over[False]",
        ),
        seed=68,
    ),
    Fault(
        name="sqlite-lists-no-errands",
        promise="What others have left to be done elsewhere is found, on SQLite.",
        file="stores/sqlite/_reader.py",
        before="load_all(connection, _column(connection, ERRANDS, (now, limit)))",
        after="[]",
        tests=("tests/stores/test_conformance.py::test_sqlite[errands_come_earliest_first_of_whichever_run]",),
        blind="the world has no SQLite",
    ),
    Fault(
        name="mongo-lists-no-errands",
        promise="What others have left to be done elsewhere is found, on MongoDB.",
        file="stores/mongo/_reader.py",
        before="isinstance(run, Corrupt) or _has_errand(run, now)",
        after="isinstance(run, Corrupt)",
        tests=(
            (
                "tests/stores/test_conformance.py"
                "::test_mongo[errands_come_earliest_first_of_whichever_run-one command]"
            ),
        ),
        blind="the world has no MongoDB",
    ),
)
