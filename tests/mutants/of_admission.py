"""Faults of what runs pass before they begin, and of what starts and ends them in numbers."""

from tests.mutants.fault import RARE, Fault

FAULTS = (
    Fault(
        name="slot-beyond-the-limit",
        promise="No more runs hold slots than the limit says.",
        file="_core/slots.py",
        before="    if others >= limit:\n",
        after="    if others > limit:\n",
        tests=(
            "tests/unit/test_slots.py::test_a_release_takes_only_its_own_entry",
            "tests/scenarios/test_conc.py::test_runs_over_the_limit_queue_per_key",
        ),
        seed=7,
        world="flow",
    ),
    Fault(
        name="release-of-any-wish",
        promise="A slot is given back by the wish that it was given for, and by no other.",
        file="_core/slots.py",
        before=(
            "    gone = {run_id for run_id, acquisition in entries if bucket.holders.get(run_id) == acquisition}\n"
        ),
        after="    gone = {run_id for run_id, _ in entries if run_id in bucket.holders}\n",
        tests=("tests/unit/test_slots.py::test_a_release_takes_only_its_own_entry",),
        blind=RARE,
    ),
    Fault(
        name="settled-run-keeps-its-slot",
        promise="Whatever ends a run frees its slot.",
        file="_core/decide/slotting.py",
        before=(
            '        turn.change(slot=_replace(slot, state="left", attended=False))\n        '
            "drop_admission(turn)\n\n\ndef fill"
        ),
        after="        drop_admission(turn)\n\n\ndef fill",
        tests=("tests/unit/test_slots.py::test_whatever_settles_gives_its_slot_back",),
        seed=2,
        world="flow",
    ),
    Fault(
        name="paused-run-blocks-its-queue",
        promise="A paused run is passed over by those behind it in the queue.",
        file="_core/documents.py",
        before='slot.state != "queued" or head.paused else',
        after='slot.state != "queued" else',
        tests=(
            "tests/scenarios/test_conc.py::test_paused_and_later_drafts_are_passed_over",
            "tests/scenarios/test_conc.py::test_who_is_first_in_line_and_leaves_lets_those_behind_in",
        ),
        blind=RARE,
    ),
    Fault(
        name="retry-without-a-slot",
        promise="A run that is taken up again queues for a slot like any other.",
        file="_core/decide/slotting.py",
        before=(
            '        wanted = _replace(slot, state="queued", '
            "acquisition=happening.acquisition, ticket=happening.ticket)\n"
        ),
        after=(
            '        wanted = _replace(slot, state="held", '
            "acquisition=happening.acquisition, ticket=happening.ticket)\n"
        ),
        tests=(
            "tests/unit/test_slots.py::test_what_is_taken_up_again_queues_under_a_new_wish[happening0]",
            "tests/unit/test_slots.py::test_what_is_taken_up_again_queues_under_a_new_wish[happening1]",
        ),
        seed=59,
        world="flow",
    ),
    Fault(
        name="vanished-starter-comes-in",
        promise="A draft whose starter has vanished gets no slot.",
        file="_runtime/slots.py",
        before="now.let_in(run, ask.acquisition, 0 if ask.is_late else slot.limit)",
        after="now.let_in(run, ask.acquisition, slot.limit)",
        tests=("tests/scenarios/test_strict.py::test_the_draft_of_a_starter_that_died_is_removed[False]",),
        blind=RARE,
    ),
    Fault(
        name="bucket-not-healed",
        promise="A full bucket looks at its holders again before it refuses.",
        file="_runtime/slots.py",
        before="            if not healed and not all(ask.is_late for ask in refused):\n",
        after="            if healed:\n",
        tests=("tests/scenarios/test_strict.py::test_a_bucket_heals_before_it_refuses",),
        blind=RARE,
    ),
    Fault(
        name="unfounded-entry-stays",
        promise="An entry of a run that has settled is there for nothing.",
        file="_core/slots.py",
        before="    return slot is not None and slot.acquisition == acquisition and slot.state in _USED\n",
        after="    return slot is not None and slot.acquisition == acquisition\n",
        tests=(
            "tests/unit/test_slots.py::test_an_entry_is_for_one_wish",
            "tests/scenarios/test_slot_healing.py::test_an_entry_that_came_too_late_is_taken_out_at_once",
        ),
        seed=43,
        world="flow",
    ),
    Fault(
        name="another-ends-a-start",
        promise="A commit of another process does not decide about a start that is under way.",
        file="_runtime/slots.py",
        before='            errand.kind == "admit"\n            and slot',
        after='            errand.kind == "never"\n            and slot',
        tests=(
            "tests/crash/test_shared_starts.py::test_a_commit_of_another_process_does_not_end_a_start_that_is_under_way",
        ),
        blind=RARE,
    ),
    Fault(
        name="dropped-wish-is-a-refusal",
        promise="Who is told that all slots are taken is told the truth.",
        file="_runtime/admission.py",
        before="    if answer.holding < slot.limit:\n        raise LostSlot\n",
        after="",
        tests=(
            "tests/crash/test_shared_starts.py::test_a_start_that_was_given_up_for_dead_is_tried_again",
            "tests/crash/test_shared_starts.py::test_a_fork_that_was_given_up_for_dead_is_tried_again",
        ),
        blind=RARE,
    ),
    Fault(
        name="removed-draft-shares-revisions",
        promise="What was decided on a removed draft is no commit on the next one of its id.",
        file="_core/decide/admission.py",
        before="    return slot.acquisition & _REVISIONS if slot is not None and slot.attended else 0\n",
        after="    return 0\n",
        tests=(
            "tests/crash/test_shared_starts.py::test_what_was_decided_on_a_draft_that_was_removed_is_no_commit_on_the_next_of_its_id",
        ),
        blind=RARE,
    ),
    Fault(
        name="firing-shares-its-start-id",
        promise="Of two workers that start the run of one firing only one takes it for its own.",
        file="_runtime/starting.py",
        before="        start_id=chance.commit_id(),\n",
        after="        start_id=chance.commit_id() if fired_by is None else fired_by.scheduled.at,\n",
        tests=(
            "tests/crash/test_shared_starts.py::test_a_firing_that_another_worker_has_started_is_not_driven_here",
        ),
        blind=RARE,
    ),
    Fault(
        name="window-one-too-many",
        promise="No window holds more begins than the limit says.",
        file="_core/throttling.py",
        before="    return now if len(begins) < want.limit else max(now, begins[-want.limit] + want.window)\n",
        after="    return now if len(begins) <= want.limit else max(now, begins[-want.limit - 1] + want.window)\n",
        tests=(
            "tests/properties/test_throttling.py::test_no_window_ever_holds_more",
            "tests/properties/test_throttling.py::test_slots_of_starts_are_distinct_and_in_order",
        ),
        seed=33,
        world="flow",
    ),
    Fault(
        name="bucket-clock-goes-back",
        promise="The time of a throttle never runs backwards.",
        file="_core/throttling.py",
        before="    now = max((now, *bucket.begins[-1:]))\n    bucket",
        after="    bucket",
        tests=(
            "tests/properties/test_throttling.py::test_no_window_ever_holds_more",
            "tests/properties/test_throttling.py::test_a_clock_that_is_behind_begins_nothing_in_the_past",
        ),
        blind=RARE,
    ),
    Fault(
        name="begin-not-recorded",
        promise="Every begin is recorded before its run may begin.",
        file="_core/throttling.py",
        before="bucket, begins=(*others, now), slots=slots",
        after="bucket, begins=others, slots=slots",
        tests=(
            "tests/properties/test_throttling.py::test_no_window_ever_holds_more",
            "tests/properties/test_throttling.py::test_slots_of_starts_are_distinct_and_in_order",
        ),
        seed=33,
        world="flow",
    ),
    Fault(
        name="late-drafts-burst",
        promise="Downtime makes no burst: late drafts begin one share after the other.",
        file="_core/throttling.py",
        before="    return _behind(sorted((*begins, *bucket.late)), want, now)\n",
        after="    return room_at\n",
        tests=(
            "tests/properties/test_throttling.py::test_overdue_drafts_begin_at_the_full_rate",
            "tests/scenarios/test_throttle.py::test_downtime_makes_no_burst",
        ),
        blind=RARE,
    ),
    Fault(
        name="throttle-passed-once-for-ever",
        promise="A run that is taken up again passes its throttle again.",
        file="_core/decide/pacing.py",
        before='turn.change(throttle=_replace(throttle, stage="new", slot_at=None, turn=throttle.turn + 1))',
        after="turn.change(throttle=_replace(throttle, turn=throttle.turn + 1))",
        tests=(
            "tests/unit/test_decide_pacing.py::test_a_run_that_is_taken_up_passes_once_more",
            "tests/scenarios/test_throttle.py::test_retry_rewind_and_fork_pass_again",
        ),
        blind=RARE,
    ),
    Fault(
        name="throttle-not-durable",
        promise="A throttle's answer counts once it is stored, not when another process was faster.",
        file="_runtime/throttles.py",
        before="            if isinstance(verdict, Applied):\n                for asking",
        after="            if True:\n                for asking",
        tests=(
            "tests/scenarios/test_rates_several_workers.py::test_workers_that_die_leave_no_hole_and_make_no_burst[memory]",
        ),
        blind=RARE,
    ),
    Fault(
        name="bump-brings-it-forward",
        promise="A further start never brings the end of a window forward.",
        file="_core/decide/pacing.py",
        before="    at = max(fires_at(debounce, turn.plan, turn.now), turn.head.start_at or 0)\n",
        after="    at = fires_at(debounce, turn.plan, turn.now)\n",
        tests=("tests/scenarios/test_debounce.py::test_a_clock_that_is_behind_makes_nothing_due_sooner",),
        seed=41,
        world="flow",
    ),
    Fault(
        name="max-wait-ignored",
        promise="A debounced draft waits no longer than max_wait.",
        file="_core/decide/pacing.py",
        before="    return at if debounce.until_at is None else min(at, debounce.until_at)\n",
        after="    return at\n",
        tests=(
            "tests/unit/test_decide_pacing.py::test_a_pending_draft_is_bumped_until_it_fires",
            "tests/scenarios/test_debounce.py::test_it_waits_no_longer_than_max_wait",
        ),
        blind=RARE,
    ),
    Fault(
        name="bump-loses-the-input",
        promise="The latest start of a debounced workflow gives the input.",
        file="_core/decide/pacing.py",
        before="    turn.origin = _replace(turn.origin, input=happening.input)\n",
        after="",
        tests=(
            "tests/unit/test_decide_pacing.py::test_a_pending_draft_is_bumped_until_it_fires",
            "tests/scenarios/test_debounce.py::test_each_start_puts_it_off",
        ),
        seed=8,
        world="flow",
    ),
    Fault(
        name="pending-drafts-unlimited",
        promise="There is one pending draft for each key of a debounce.",
        file="_core/documents.py",
        before='return debounce.key if run.head.status == "draft" and not debounce.fired else None',
        after="return None",
        tests=(
            "tests/scenarios/test_debounce.py::test_each_start_puts_it_off",
            "tests/scenarios/test_debounce.py::test_keys_are_independent",
        ),
        seed=6,
        world="flow",
    ),
    Fault(
        name="trigger-mints-its-run",
        promise="An emission starts one run for each trigger, however often it is carried out.",
        file="_runtime/triggers.py",
        before="await _start(machinery, doc, mine, trigger, triggered_run(doc.key, mine.id, index))",
        after="await _start(machinery, doc, mine, trigger, machinery.services.chance.run_id(doc.at))",
        tests=("tests/scenarios/test_trig.py::test_a_run_is_not_deleted_while_its_broadcast_may_be_repeated",),
        seed=6,
        world="flow",
    ),
    Fault(
        name="trigger-put-off-is-forgotten",
        promise="What a broadcast triggers is started by whoever has the code, when somebody comes.",
        file="_runtime/delivery.py",
        before="                await put_off(self._services, doc, workflow)\n",
        after="                pass\n",
        tests=(
            "tests/scenarios/test_trig.py::test_the_highest_version_that_a_worker_has_is_started",
            "tests/scenarios/test_trig.py::test_an_emitter_that_dies_before_it_has_told_a_worker",
        ),
        blind=RARE,
    ),
    Fault(
        name="cancel-on-without-match",
        promise="A broadcast cancels only what it matches.",
        file="_core/decide/matching.py",
        before=(
            "    return any(not rule.match or _agree(rule.match, signal.payload, origin.input) for rule in rules)\n"
        ),
        after="    return True\n",
        tests=(
            "tests/scenarios/test_trig.py::test_cancel_on_with_match",
            "tests/unit/test_broadcasts.py::test_match_compares_plain_data",
        ),
        seed=43,
        world="flow",
    ),
    Fault(
        name="cancel-on-later-runs",
        promise="A broadcast cancels nothing that was started after it.",
        file="_core/decide/matching.py",
        before="    if signal.at is not None and origin.created_at > signal.at:\n        return False\n",
        after="",
        tests=(
            "tests/scenarios/test_trig.py::test_a_late_delivery_cancels_nobody_who_was_started_later",
            "tests/unit/test_broadcasts.py::test_a_broadcast_cancels_only_what_was_there",
        ),
        blind=RARE,
    ),
    Fault(
        name="draft-not-found-by-cancel-on",
        promise="Every run is found by the signals that cancel it, from its first write.",
        file="_core/decide/admission.py",
        before="        cancelled_by=plan.cancel_signals,\n",
        after="        cancelled_by=(),\n",
        tests=(
            "tests/scenarios/test_trig.py::test_whom_cancel_on_cancels",
            "tests/scenarios/test_trig.py::test_cancel_on_after_a_restart",
        ),
        seed=36,
        world="flow",
    ),
    Fault(
        name="broadcast-leaves-its-tenant",
        promise="A broadcast stays in its tenant.",
        file="_runtime/delivery.py",
        before="store.awaiting(doc.signal, doc.tenant, after, PAGE)",
        after="store.awaiting(doc.signal, None, after, PAGE)",
        tests=("tests/scenarios/test_broadcasts.py::test_no_page_leaves_the_tenant",),
        blind=RARE,
    ),
    Fault(
        name="buckets-shared-by-tenants",
        promise="Each tenant has slots of its own.",
        file="_core/slots.py",
        before='    return unique_key(tenant, workflow, key or "")\n',
        after='    return unique_key(None, workflow, key or "")\n',
        tests=("tests/unit/test_slots.py::test_a_name_tells_its_parts",),
        seed=2,
        world="flow",
    ),
    Fault(
        name="firing-decided-by-all",
        promise="A firing is left to the worker that decided it, for a while.",
        file="_core/schedules.py",
        before=(
            "    firings = tuple(msgspec.structs.replace(each, until=until) for each in "
            "turn.pending if each.until <= now)\n"
        ),
        after=(
            "    firings = tuple(msgspec.structs.replace(each, until=now) for each in "
            "turn.pending if each.until <= now)\n"
        ),
        tests=(
            "tests/unit/test_schedules.py::test_a_firing_is_decided_once_and_left_to_who_decided_it",
            "tests/unit/test_schedules.py::test_what_was_decided_before_a_pause_is_carried_out",
        ),
        blind=RARE,
    ),
    Fault(
        name="run-named-by-time-alone",
        promise="The runs of a schedule that was made anew have ids of their own.",
        file="_core/schedules.py",
        before='("run", doc.tenant, doc.id, doc.incarnation, firing.at, firing.asked)',
        after='("run", doc.tenant, doc.id, firing.at, firing.asked)',
        tests=("tests/unit/test_schedules.py::test_a_run_is_named_by_its_firing_alone",),
        blind=RARE,
    ),
    Fault(
        name="failed-runs-go-with-the-done",
        promise="Each status is kept for its own time.",
        file="_core/retention.py",
        before="                found |= dict.fromkeys(statuses, age)\n",
        after="                found |= dict.fromkeys(statuses, min([age, *found.values()]))\n",
        tests=(
            "tests/unit/test_retention.py::test_ages_are_milliseconds_by_status",
            "tests/scenarios/test_retention.py::test_settled_runs_go_when_their_time_has_come_and_others_never[True]",
        ),
        blind=RARE,
    ),
    Fault(
        name="nobody-is-owed-a-turn",
        promise="A share of the claims goes by turn, so that nobody starves.",
        file="_runtime/fair_share.py",
        before="        self._owed = min(_MOST_OWED, self._owed + places / SHARE)\n",
        after="        self._owed = 0.0\n",
        tests=(
            "tests/unit/test_fair_share.py::test_a_quarter_goes_by_turn",
            "tests/unit/test_fair_share.py::test_half_of_a_page_at_most",
        ),
        blind=RARE,
    ),
)
