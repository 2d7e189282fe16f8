"""Faults of the engine: who writes, who drives, who is alive, who is told."""

from tests.mutants.fault import RARE, Fault

FAULTS = (
    Fault(
        name="refused-commit-published",
        promise="What was not committed is not published.",
        file="_runtime/writer.py",
        before="""\
        if isinstance(outcome, Applied):
            self.run = run = decisions[-1].run
            self._services.committed(run, decisions)
""",
        after="""\
        self._services.committed(decisions[-1].run, decisions)
        if isinstance(outcome, Applied):
            self.run = run = decisions[-1].run
""",
        tests=("tests/crash/test_leases.py::test_what_a_dead_worker_writes_after_the_takeover_is_refused",),
        seed=184,
    ),
    Fault(
        name="published-before-commit",
        promise="An event comes after the commit that made it true.",
        file="_runtime/writer.py",
        before="        self._in_flight = entries\n        rows,",
        after="        self._in_flight = entries\n        self._services.committed(run, decisions)\n        rows,",
        tests=("tests/crash/test_faults.py::test_any_call_may_fail_in_memory[Plain-False]",),
        seed=2,
    ),
    Fault(
        name="refused-claim-published",
        promise="A claim that somebody else won is not published.",
        file="_runtime/claimer.py",
        before="""\
        if applied:
            self._services.counts.claimed(before, run)
            self._services.committed(run, (decision,))
""",
        after="        self._services.committed(run, (decision,))\n",
        tests=("tests/crash/test_windows.py::test_a_claim_that_somebody_else_won_is_not_published",),
        seed=27,
    ),
    Fault(
        name="refused-read-as-applied",
        promise="A refused commit is decided again on what is stored.",
        file="_runtime/writer.py",
        before="        if isinstance(outcome, Applied):\n            self.run = run = decisions[-1].run\n",
        after="""\
        if not isinstance(outcome, Failed | KeyTaken | StoreUnavailable):
            self.run = run = decisions[-1].run
""",
        tests=(
            "tests/crash/test_leases.py::test_what_a_dead_worker_writes_after_the_takeover_is_refused",
            "tests/crash/test_leases.py::test_a_verb_reaches_a_run_that_this_worker_has_just_lost",
        ),
        seed=121,
    ),
    Fault(
        name="decided-past-the-release",
        promise="What comes after the commit that gives a run back is not the holder's to decide.",
        file="_runtime/writer.py",
        before="            if run.head.lease is None:\n",
        after="            if False:\n",
        tests=("tests/crash/test_after_the_end.py::test_what_comes_after_the_end_is_a_commit_of_its_own",),
        blind=RARE,
    ),
    Fault(
        name="verdicts-misordered",
        promise="Each write of a batch has its own verdict.",
        file="_runtime/committer.py",
        before="            position += 1 + len(submission.rows)\n",
        after="            position += 1\n",
        tests=("tests/crash/test_committer.py::test_rows_that_go_along_take_nobodys_verdict",),
        blind=RARE,
    ),
    Fault(
        name="two-commits-of-a-run-in-a-batch",
        promise="A batch has at most one commit of a run.",
        file="_runtime/committer.py",
        before="            if run_id is not None:\n                runs.add(run_id)\n",
        after="",
        tests=(
            "tests/crash/test_committer.py::test_a_batch_has_one_commit_of_a_run_and_the_order_of_arrival_holds",
        ),
        blind=RARE,
    ),
    Fault(
        name="held-back-writes-reversed",
        promise="Writes of a run go out in the order of their arrival.",
        file="_runtime/committer.py",
        before="self._queue.extendleft(reversed(held))",
        after="self._queue.extendleft(held)",
        tests=(
            "tests/crash/test_committer.py::test_a_batch_has_one_commit_of_a_run_and_the_order_of_arrival_holds",
        ),
        blind=RARE,
    ),
    Fault(
        name="doubt-read-as-applied",
        promise="A doubtful commit counts only if the run has its id.",
        file="_runtime/committer.py",
        before="    if after.head.commits[-1] in stored.head.commits:\n",
        after="    if stored.head.revision >= after.head.revision:\n",
        tests=(
            "tests/crash/test_committer.py::test_a_doubtful_write_that_others_forestalled_is_refused[an update]",
        ),
        seed=105,
    ),
    Fault(
        name="doubt-read-as-refused",
        promise="A commit whose acknowledgement was lost is known by its id.",
        file="_runtime/committer.py",
        before="    if after.head.commits[-1] in stored.head.commits:\n        return Applied()\n",
        after="",
        tests=("tests/crash/test_faults.py::test_any_call_may_fail_in_memory[Plain-True]",),
        seed=93,
    ),
    Fault(
        name="doubtful-insert-always-ours",
        promise="A run under our id that somebody else started is not taken for ours.",
        file="_runtime/committer.py",
        before="return Applied() if stored.origin.start_id == run.origin.start_id else Refused()",
        after="return Applied()",
        tests=(
            "tests/crash/test_committer.py::test_a_doubtful_write_that_others_forestalled_is_refused[an insert]",
        ),
        blind=RARE,
    ),
    Fault(
        name="doubtful-insert-never-ours",
        promise="A start whose acknowledgement was lost is driven at once.",
        file="_runtime/committer.py",
        before="return Applied() if stored.origin.start_id == run.origin.start_id else Refused()",
        after="return Refused()",
        tests=("tests/crash/test_faults.py::test_any_call_may_fail_in_memory[Plain-True]",),
        blind=RARE,
    ),
    Fault(
        name="doubtful-beat-always-ours",
        promise="A worker that was declared dead while its beat was in doubt learns it.",
        file="_runtime/committer.py",
        before="return Applied() if side.body == body and side.revision == revision else Refused()",
        after="return Applied() if side.revision == revision else Refused()",
        tests=("tests/crash/test_committer.py::test_a_doubtful_write_that_others_forestalled_is_refused[a beat]",),
        blind=RARE,
    ),
    Fault(
        name="retired-worker-goes-on",
        promise="A worker that cannot beat stops its handlers.",
        file="_runtime/worker.py",
        before="            self._lost()\n",
        after="",
        tests=(
            "tests/crash/test_leases.py::test_a_worker_that_cannot_beat_stops_itself_before_others_may_take_over[False]",
        ),
        seed=79,
    ),
    Fault(
        name="beat-counted-from-its-reply",
        promise="A lease is counted from when its beat was sent.",
        file="_runtime/worker.py",
        before="            self._beat += 1\n            self._renewed(sent)\n",
        after="            self._beat += 1\n            self._renewed(trio.current_time())\n",
        tests=("tests/crash/test_leases.py::test_a_beat_counts_from_when_it_was_sent",),
        blind=RARE,
    ),
    Fault(
        name="grace-forgotten",
        promise="A worker stops its handlers before others may take its runs.",
        file="_runtime/worker.py",
        before="sent + lease * (1 - _GRACE)",
        after="sent + lease * (1 + _GRACE)",
        tests=(
            "tests/crash/test_leases.py::test_a_worker_that_cannot_beat_stops_itself_before_others_may_take_over[False]",
        ),
        blind=RARE,
    ),
    Fault(
        name="claims-under-an-old-beat",
        promise="Nothing is leased under an id whose last beat is too old.",
        file="_runtime/worker.py",
        before="return None if trio.current_time() >= self._good_until else self._id",
        after="return self._id",
        tests=("tests/crash/test_windows.py::test_nothing_is_begun_under_an_id_whose_beat_is_too_old",),
        blind=RARE,
    ),
    Fault(
        name="lock-after-document",
        promise="A worker holds its lock before anybody can see its document.",
        file="_runtime/worker.py",
        before="""\
        await services.store.hold_worker(worker_id)
        try:
            verdict = await services.committer.submit(PutSide(WORKERS, worker_id, None, self._body()))
""",
        after="""\
        try:
            verdict = await services.committer.submit(PutSide(WORKERS, worker_id, None, self._body()))
            await services.store.hold_worker(worker_id)
""",
        tests=("tests/crash/test_windows.py::test_a_worker_is_locked_before_its_document_can_be_seen",),
        blind=RARE,
    ),
    Fault(
        name="retired-id-driven",
        promise="A run that was claimed under an id which has been retired since is not driven.",
        file="_runtime/crew.py",
        before="if driver.writer.worker != self._worker():",
        after="if False:",
        tests=("tests/crash/test_leases.py::test_what_is_taken_under_a_retired_id_is_not_driven[Insert]",),
        seed=78,
    ),
    Fault(
        name="observer-too-eager",
        promise="A worker is gone after a whole lease without a beat, not sooner.",
        file="_runtime/observer.py",
        before="now - since >= doc.lease\n",
        after="now - since >= doc.lease / 2\n",
        tests=("tests/crash/test_leases.py::test_a_silent_worker_is_dead_after_a_whole_lease_of_its_own[9.0]",),
        blind=RARE,
    ),
    Fault(
        name="observer-marks-without-guard",
        promise="A worker that beats while it is declared dead lives on.",
        file="_runtime/observer.py",
        before='        return now is not None and decode_worker(now.body).state == "dead"\n',
        after="        return True\n",
        tests=("tests/crash/test_leases.py::test_a_beat_that_comes_in_time_saves_a_worker",),
        blind=RARE,
    ),
    Fault(
        name="leases-read-last",
        promise="A worker that enlists while others look round is not taken for dead.",
        file="_runtime/observer.py",
        before="""\
        named = await self._services.store.lease_holders() if holders else []
        live: dict[str, WorkerDoc] = {}
        for side in await self._sides():
""",
        after="""\
        live: dict[str, WorkerDoc] = {}
        sides = await self._sides()
        named = await self._services.store.lease_holders() if holders else []
        for side in sides:
""",
        tests=("tests/crash/test_windows.py::test_a_worker_that_enlists_during_a_look_round_is_not_dead",),
        seed=987,
    ),
    Fault(
        name="expected-runs-handed-back",
        promise="A run whose claim is just being confirmed is no orphan.",
        file="_runtime/care.py",
        before="return run.origin.id not in crew.drivers and run.origin.id not in crew.expected",
        after="return run.origin.id not in crew.drivers",
        tests=("tests/crash/test_windows.py::test_a_run_whose_claim_is_being_confirmed_is_not_handed_back",),
        blind=RARE,
    ),
    Fault(
        name="orphans-kept",
        promise="A run that is leased to us and that nobody drives is handed back.",
        file="_runtime/care.py",
        before="return run.origin.id not in crew.drivers and run.origin.id not in crew.expected",
        after="return False",
        tests=("tests/crash/test_windows.py::test_a_run_that_nobody_here_drives_is_handed_back",),
        blind=RARE,
    ),
    Fault(
        name="failure-while-leaving-counted",
        promise="What a handler raises because its worker leaves is no failure of the step.",
        file="_runtime/attempt.py",
        before='        if reason == "leave" and isinstance(happening, AttemptFailed | UndoFailed):',
        after='        if reason == "never" and isinstance(happening, AttemptFailed | UndoFailed):',
        tests=("tests/crash/test_leaving.py::test_an_attempt_that_fails_because_it_is_handed_back_does_not_count",),
        blind=RARE,
    ),
    Fault(
        name="not-released-on-drain",
        promise="A worker that leaves gives a run back at the end of its step.",
        file="_runtime/attempt.py",
        before="            output=output,\n            release=self._driver.leaving,",
        after="            output=output,\n            release=False,",
        tests=("tests/crash/test_leaving.py::test_leaving_waits_for_a_step_that_ends_in_time[True]",),
        blind=RARE,
    ),
    Fault(
        name="late-result-counts",
        promise="What a handler returns after its time is up is too late.",
        file="_runtime/attempt.py",
        before="if happening is None or (isinstance(happening, self._ending) and self._limit.cancel_called):",
        after="if happening is None:",
        tests=(
            "tests/scenarios/test_timeout.py::test_what_a_handler_returns_after_its_limit_counts_for_nothing[True]",
        ),
        blind=RARE,
    ),
    Fault(
        name="cancel-not-passed-on",
        promise="Cancelling a run stops its handler.",
        file="_runtime/driver.py",
        before='        elif run.head.cancel_requested:\n            self.abort("cancel")\n',
        after="",
        tests=(
            "tests/integration/test_suspension_steering.py::test_errors_from_cleanup_do_not_lose_the_run[cancel-nursery]",
        ),
        blind=RARE,
    ),
    Fault(
        name="parked-before-unwound",
        promise="A run parks once its handler has unwound.",
        file="_runtime/waits.py",
        before="""\
        is_key = self._suspender.strand is not self._suspender.root
        return await self._suspender.unwind(msgspec.structs.replace(ask, """
        "told=on_token is not None, unwound=is_key))",
        after="""\
        from streamline_trio._core.happenings import Suspended
        asks = (msgspec.structs.replace(ask, told=on_token is not None),)
        replayed = tuple(self._suspender.replayed.items())
        await self._driver.commit(Suspended(step=self._step.id, asks=asks, replayed=replayed, **self._held))
        return await self._suspender.unwind(asks[0])""",
        tests=("tests/crash/test_windows.py::test_a_handler_unwinds_while_its_run_is_leased",),
        blind=RARE,
    ),
    Fault(
        name="once-forgets",
        promise="What `once` has remembered is not done again.",
        file="_runtime/context.py",
        before="            memo = self._driver.run.memos.get(key)\n",
        after="            memo = None\n",
        tests=("tests/integration/test_suspension_steering.py::test_goto_keeps_memos_and_forgets_checkpoints",),
        seed=17,
    ),
    Fault(
        name="once-not-single-flight",
        promise="Two calls of `once` with one key at a time call the function once.",
        file="_runtime/driver.py",
        before="return self._once_locks.setdefault(key, trio.Lock())",
        after="return trio.Lock()",
        tests=("tests/crash/test_windows.py::test_two_calls_of_once_at_a_time_are_one",),
        blind=RARE,
    ),
    Fault(
        name="taken-key-ignored",
        promise="Who starts under a taken key gets the run that holds it.",
        file="_runtime/admission.py",
        before="            found: str | None = outcome.holder\n",
        after="            found: str | None = request.origin.id\n",
        tests=("tests/integration/test_writes.py::test_the_same_key_costs_no_second_run[memory]",),
        seed=2,
    ),
    Fault(
        name="refused-start-keeps-its-place",
        promise="A start that was refused takes no place from other runs.",
        file="_runtime/admission.py",
        before="    elif reserved:\n        machinery.crew.cancel_reservation(run.origin.id)\n",
        after="",
        tests=("tests/crash/test_windows.py::test_a_start_that_is_refused_takes_no_place",),
        seed=58,
    ),
    Fault(
        name="unreached-runs-forgotten",
        promise="A broadcast goes on until it has reached all who waited.",
        file="_runtime/delivery.py",
        before="        except StoreUnavailable:\n            self._unreached = True\n",
        after="        except StoreUnavailable:\n            return\n",
        tests=("tests/crash/test_windows.py::test_a_broadcast_reaches_a_run_that_could_not_be_written_at_first",),
        blind=RARE,
    ),
    Fault(
        name="claimer-misses-a-call",
        promise="A run that falls due while the claimer looks is claimed.",
        file="_runtime/claimer.py",
        before="""\
            self._wake = trio.Event()
            try:
                pause = await self._round()
            except StoreUnavailable as error:
                circuit.failed("read", error)
                self._services.logger.warning("claiming pauses: %s", error)
                pause = self._services.options.poll_interval
""",
        after="""\
            try:
                pause = await self._round()
            except StoreUnavailable as error:
                circuit.failed("read", error)
                self._services.logger.warning("claiming pauses: %s", error)
                pause = self._services.options.poll_interval
            self._wake = trio.Event()
""",
        tests=("tests/crash/test_windows.py::test_a_run_that_parks_while_the_claimer_looks_is_woken",),
        blind=RARE,
    ),
    Fault(
        name="watcher-misses-the-end",
        promise="A run that settles while its watcher asks is told.",
        file="_runtime/watcher.py",
        before="""\
        watch = self._watch(run_id)
        try:
            if not driven:
                await self._ask([run_id], patient=True)
""",
        after="""\
        if not driven:
            await self._ask([run_id], patient=True)
        watch = self._watch(run_id)
        try:
""",
        tests=("tests/crash/test_leaving.py::test_waiting_for_a_run_that_settles_this_instant_returns",),
        blind=RARE,
    ),
    Fault(
        name="outage-never-told",
        promise="An outage of the store is told, and claiming pauses meanwhile.",
        file="_runtime/circuit.py",
        before="if self.is_open or row.failures < FAILURES:",
        after="if self.is_open or row.failures >= 0:",
        tests=(
            "tests/crash/test_circuit.py::test_claiming_backs_off_with_jitter_and_bounds",
            "tests/crash/test_circuit.py::test_what_fails_together_counts_once",
        ),
        blind="the world does not listen to it",
    ),
    Fault(
        name="one-broken-connection-is-an-outage",
        promise="What fails together counts once.",
        file="_runtime/circuit.py",
        before="        if now - self.last >= MOMENT:\n",
        after="        if now >= self.last:\n",
        tests=("tests/crash/test_circuit.py::test_what_fails_together_counts_once",),
        blind="the world does not listen to it",
    ),
    Fault(
        name="pauses-outlast-the-outage",
        promise="Whoever pauses goes on as soon as anybody reaches the store.",
        file="_runtime/circuit.py",
        before="        self._closed.set()\n",
        after="",
        tests=("tests/crash/test_circuit.py::test_a_pause_ends_with_the_outage",),
        blind="it is only later",
    ),
    Fault(
        name="each-write-waits-for-itself",
        promise="Writes whose time is up are given up together.",
        file="_runtime/committer.py",
        before="            if given_up is not None and trio.current_time() > submission.given_up_at:",
        after="            if given_up is not None and submission.is_told:",
        tests=("tests/crash/test_circuit.py::test_many_writes_are_given_up_together",),
        blind="it is only later",
    ),
)
