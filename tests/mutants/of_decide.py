"""Faults of the rules: what a decision makes of a run."""

from tests.mutants.fault import RARE, Fault

FAULTS = (
    Fault(
        name="fence-not-raised",
        promise="Every claim has a fence of its own.",
        file="_core/decide/claiming.py",
        before="""\
    turn.lease = Lease(worker=worker, fence=turn.head.fence + 1)
    turn.change(fence=turn.head.fence + 1, attention=False, ready_at=None)""",
        after="""\
    turn.lease = Lease(worker=worker, fence=max(turn.head.fence, 1))
    turn.change(fence=max(turn.head.fence, 1), attention=False, ready_at=None)""",
        tests=("tests/unit/test_decide_claiming.py::test_what_was_decided_under_the_old_lease_is_refused",),
        seed=4,
    ),
    Fault(
        name="due-time-kept",
        promise="A leased run is due for nobody.",
        file="_core/decide/turn.py",
        before="            due_at=None,\n",
        after="",
        tests=("tests/unit/test_decide_claiming.py::test_a_claim_takes_a_due_run_under_a_new_fence",),
        seed=2,
    ),
    Fault(
        name="re-entry-counted",
        promise="Waking from a wait is no new attempt.",
        file="_core/decide/claiming.py",
        before="""\
    turn.move_step(step_id, "running", worker=worker)
    turn.emit(WorkflowResumed, step=step_id)""",
        after="    turn.begin(step_id, worker)\n    turn.emit(WorkflowResumed, step=step_id)",
        tests=(
            "tests/unit/test_decide_claiming.py::test_a_claim_wakes_a_sleeper_in_the_same_write",
            "tests/integration/test_suspension.py::test_each_entry_starts_at_the_first_line_with_recorded_outcomes",
        ),
        blind=RARE,
    ),
    Fault(
        name="dead-letter-one-early",
        promise="A run survives as many recoveries in a row as it is allowed.",
        file="_core/decide/claiming.py",
        before="if streak > happening.max_recoveries and",
        after="if streak >= happening.max_recoveries and",
        tests=("tests/unit/test_decide_claiming.py::test_dead_letter_at_exactly_one_more_than_the_limit[1]",),
        seed=7,
    ),
    Fault(
        name="crash-counted-as-failure",
        promise="The crash of a worker is no failure of the step.",
        file="_core/decide/turn.py",
        before='self.move_step(step_id, "pending", tries=',
        after='self.move_step(step_id, "pending", failures=step.failures + 1, tries=',
        tests=(
            "tests/unit/test_decide_claiming.py::test_a_takeover_counts_the_crash_as_a_call_and_not_as_a_failure",
            "tests/unit/test_decide_stepping.py::test_crashes_do_not_exhaust_the_attempts",
        ),
        seed=76,
    ),
    Fault(
        name="cancel-forgotten-by-takeover",
        promise="Who takes a run over from a dead worker settles its cancellation.",
        file="_core/decide/claiming.py",
        before="""\
    if turn.cancel_requested:
        turn.settle_cancelled(turn.head.cancel_reason)
    elif turn.status == "compensating":""",
        after='    if turn.status == "compensating":',
        tests=("tests/unit/test_decide_claiming.py::test_a_cancellation_beats_the_dead_letter",),
        seed=336,
    ),
    Fault(
        name="paused-run-taken-over",
        promise="Nothing of a paused run begins, also when its worker dies.",
        file="_core/decide/claiming.py",
        before="    elif turn.paused or slotting.join_queue(turn, happening.slot)",
        after="    elif slotting.join_queue(turn, happening.slot)",
        tests=("tests/unit/test_decide_claiming.py::test_a_takeover_of_a_paused_run_gives_it_no_holder",),
        seed=13,
    ),
    Fault(
        name="failures-off-by-one",
        promise="A step fails at most as often as its policy allows.",
        file="_core/decide/stepping.py",
        before="step.failures >= policy.attempts",
        after="step.failures > policy.attempts",
        tests=(
            "tests/unit/test_decide_stepping.py::test_the_limit_of_attempts_is_the_limit_of_failures[1]",
            "tests/unit/test_decide_stepping.py::test_the_limit_of_attempts_is_the_limit_of_failures[2]",
            "tests/unit/test_decide_stepping.py::test_the_limit_of_attempts_is_the_limit_of_failures[4]",
        ),
        seed=22,
    ),
    Fault(
        name="finished-step-begins-again",
        promise="A run that is handed over goes on after the step that finished.",
        file="_core/decide/stepping.py",
        before="    elif turn.paused or release:\n        turn.current_step = target\n        turn.release()",
        after="    elif turn.paused or release:\n        turn.release()",
        tests=(
            "tests/unit/test_decide_stepping.py::test_a_leaving_worker_begins_nothing",
            "tests/unit/test_decide_stepping.py::test_a_paused_run_finishes_its_step_and_begins_no_other",
        ),
        seed=24,
    ),
    Fault(
        name="cancel-lost-at-the-step-end",
        promise="After a cancellation is acknowledged the run does not go on.",
        file="_core/decide/stepping.py",
        before="""\
    if turn.cancel_requested:
        turn.settle_cancelled(turn.head.cancel_reason)
    elif target is None:""",
        after="    if target is None:",
        tests=(
            "tests/unit/test_decide_stepping.py::test_what_ends_after_a_cancellation_is_recorded_and_the_run_cancelled[finished]",
        ),
        seed=320,
    ),
    Fault(
        name="progress-forgotten",
        promise="A finished step ends the row of recoveries without progress.",
        file="_core/decide/stepping.py",
        before="output_step=happening.step, streak=0)",
        after="output_step=happening.step)",
        tests=("tests/unit/test_decide_claiming.py::test_progress_ends_the_streak[a finished step]",),
        blind=RARE,
    ),
    Fault(
        name="generation-kept",
        promise="A step that is reset has other idempotency keys than before.",
        file="_core/decide/stepping.py",
        before="generation=step.generation + 1,",
        after="generation=step.generation,",
        tests=("tests/unit/test_decide_stepping.py::test_going_to_itself_runs_it_afresh",),
        seed=6,
    ),
    Fault(
        name="failed-outcomes-replayed",
        promise="The attempt after a failure asks a wait that timed out afresh.",
        file="_core/decide/stepping.py",
        before="""\
    forget_failed_outcomes(turn)
    if delay == 0:""",
        after="    if delay == 0:",
        tests=("tests/unit/test_decide_suspending.py::test_a_failed_outcome_is_forgotten_by_the_next_attempt",),
        blind=RARE,
    ),
    Fault(
        name="lease-kept-on-drain",
        promise="A retry without delay does not keep a run on a worker that leaves.",
        file="_core/decide/stepping.py",
        before="""\
        turn.move_step(happening.step, "pending")
        go_on(turn, happening.step, happening.worker, release=happening.release)""",
        after="""\
        turn.move_step(happening.step, "pending")
        go_on(turn, happening.step, happening.worker, release=False)""",
        tests=(
            "tests/unit/test_decide_stepping.py::test_a_retry_without_delay_waits_for_a_leaving_worker_or_a_pause",
        ),
        blind=RARE,
    ),
    Fault(
        name="answer-overridden-by-timeout",
        promise="A wait that was answered does not time out.",
        file="_core/decide/suspending.py",
        before="if record.outcome is None and record.due_at is not None and record.due_at <= turn.now",
        after="if record.due_at is not None and record.due_at <= turn.now",
        tests=("tests/unit/test_decide_suspending.py::test_a_wait_that_was_answered_does_not_time_out",),
        seed=310,
    ),
    Fault(
        name="abandoned-wait-stays-open",
        promise="A wait that the present attempt did not ask for takes no answers.",
        file="_core/decide/suspending.py",
        before="    _close_others(turn, awaited)\n",
        after="",
        tests=(
            "tests/unit/test_decide_suspending.py::test_a_wait_of_an_earlier_attempt_that_is_not_asked_again_is_closed",
        ),
        blind=RARE,
    ),
    Fault(
        name="deadline-moved-by-re-entry",
        promise="A wait keeps its deadline when its handler is entered again.",
        file="_core/decide/suspending.py",
        before="            known,\n            tokens=tokens,\n",
        after="            known,\n            due_at=ask.due_at,\n            tokens=tokens,\n",
        tests=("tests/unit/test_decide_suspending.py::test_a_wait_opened_again_keeps_its_deadline_and_its_tokens",),
        blind=RARE,
    ),
    Fault(
        name="token-lives-on",
        promise="A token answers once.",
        file="_core/decide/turn.py",
        before="resolved_at=self.now, tokens=())",
        after="resolved_at=self.now)",
        tests=("tests/unit/test_decide_suspending.py::test_a_wait_that_is_over_has_no_token",),
        seed=13,
    ),
    Fault(
        name="signal-ids-forgotten",
        promise="A signal that is emitted twice under one id is taken once.",
        file="_core/decide/answering.py",
        before="    if seen in turn.seen:\n        return False\n",
        after="",
        tests=(
            "tests/unit/test_decide_answering.py::test_a_signal_comes_once",
            "tests/integration/test_suspension_signals.py::test_an_id_is_taken_once[before]",
        ),
        seed=36,
    ),
    Fault(
        name="broadcast-ids-not-kept",
        promise="A broadcast that is delivered again reaches no run twice.",
        file="_core/decide/answering.py",
        before="    if happening.remembered:\n",
        after="    if happening.remembered and happening.addressed:\n",
        tests=("tests/unit/test_decide_answering.py::test_a_broadcast_reaches_a_run_once",),
        blind=RARE,
    ),
    Fault(
        name="message-taken-twice",
        promise="A message in the inbox answers one wait.",
        file="_core/decide/matching.py",
        before='            turn.drop("inbox", [number])\n',
        after="",
        tests=(
            "tests/unit/test_decide_suspending.py::test_a_message_that_came_before_is_taken_at_once",
            "tests/integration/test_suspension_signals.py::test_the_inbox_is_taken_in_order_of_arrival",
        ),
        seed=14,
    ),
    Fault(
        name="newest-message-first",
        promise="Messages are taken in the order of their arrival.",
        file="_core/decide/matching.py",
        before="for number in sorted(inbox):",
        after="for number in sorted(inbox, reverse=True):",
        tests=("tests/unit/test_decide_suspending.py::test_a_message_that_came_before_is_taken_at_once",),
        blind=RARE,
    ),
    Fault(
        name="cancelled-before-unwound",
        promise="A leased run is settled by its holder, once the handler has unwound.",
        file="_core/decide/steering.py",
        before="""\
    if turn.lease is not None and not happening.lease_dead:
        turn.cancel_requested = True
""",
        after="""\
    if False:
        turn.cancel_requested = True
""",
        tests=("tests/unit/test_decide_steering.py::test_a_leased_run_is_cancelled_by_its_holder",),
        blind=RARE,
    ),
    Fault(
        name="attention-not-asked",
        promise="The holder of a run is told that it was cancelled elsewhere.",
        file="_core/decide/steering.py",
        before="turn.change(cancel_requested=True, cancel_reason=reason, attention=True)",
        after="turn.change(cancel_requested=True, cancel_reason=reason)",
        tests=("tests/unit/test_decide_steering.py::test_a_leased_run_is_cancelled_by_its_holder",),
        blind=RARE,
    ),
    Fault(
        name="attention-cleared-by-others",
        promise="Only the holder's own commits say that it has seen what others asked.",
        file="_core/decide/__init__.py",
        before="if run.head.attention and turn.lease is not None and isinstance(happening, h.Held):",
        after="if run.head.attention and turn.lease is not None:",
        tests=(
            "tests/unit/test_decide_steering.py::test_what_others_ask_stays_asked_until_the_holder_has_seen_it",
        ),
        blind=RARE,
    ),
    Fault(
        name="settled-run-paused",
        promise="What has settled stays as it is.",
        file="_core/decide/steering.py",
        before="if turn.status in SETTLED or turn.paused:",
        after="if turn.paused:",
        tests=(
            "tests/unit/test_decide_steering.py::test_pausing[done]",
            "tests/unit/test_decide_steering.py::test_pausing[failed]",
            "tests/unit/test_decide_steering.py::test_pausing[cancelled]",
        ),
        seed=48,
    ),
    Fault(
        name="rewind-undoes-a-cancellation",
        promise="A rewind does not undo a cancellation that was acknowledged.",
        file="_core/decide/steering.py",
        before="if turn.lease is not None and turn.cancel_requested:",
        after="if turn.lease is None and turn.cancel_requested:",
        tests=(
            "tests/unit/test_decide_steering.py::test_rewinding_does_not_undo_a_cancellation_whose_holder_died",
        ),
        blind=RARE,
    ),
    Fault(
        name="paused-run-has-no-deadline",
        promise="A run's own timeout ends it also while it is paused.",
        file="_core/due.py",
        before="        return head.deadline\n",
        after="        return None\n",
        tests=("tests/unit/test_decide_steering.py::test_a_deadline_holds_in_a_paused_run",),
        seed=106,
    ),
)
