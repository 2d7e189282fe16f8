"""One run, anything that can happen to it, in any order: the invariants hold at every moment.

Workers claim and die, holders report under good and under old fences, people answer, withdraw, cancel, pause,
rewind and retry, signals come twice, clocks jump. Beside the run stands a model (`run_model`), and after every
happening the laws (`laws`) are checked.
"""

import math
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import Phase, note, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from streamline_trio._core.codec import split
from streamline_trio._core.decide import ForkRequest, StartRequest, admit, decide, fork
from streamline_trio._core.diff import changed
from streamline_trio._core.documents import ErrorDoc, Origin, RunDoc, open_tokens
from streamline_trio._core.errors import (
    DataCorruption,
    InvalidState,
    InvalidTransition,
    LeaseLost,
    StepNotFound,
    StreamlineError,
    SuspensionError,
    TokenInvalid,
    ValidationError,
)
from streamline_trio._core.happenings import (
    Answered,
    Ask,
    AttemptFailed,
    CancelAsked,
    CancelUnwound,
    CheckpointSaved,
    Claimed,
    DeadlinePassed,
    Finished,
    HandedBack,
    Happening,
    LeaseLapsed,
    Memoized,
    OutputPinned,
    PauseAsked,
    PieceSaved,
    Retried,
    Rewound,
    SignalArrived,
    Skipped,
    StateSet,
    Suspended,
    TimeCame,
    UndoFailed,
    Undone,
    UnpauseAsked,
    WaitOpened,
    WaitsOpened,
    WentTo,
    Withdrawn,
)
from streamline_trio._core.plan import Plan
from streamline_trio._core.status import SETTLED
from streamline_trio.testing._laws import check_state, open_records, waits_on_outside
from tests.properties.laws import check_change
from tests.properties.run_model import Model
from tests.properties.run_strategies import (
    asks,
    drafts,
    plans,
    reasons,
    releases,
    rolls,
    signal_ids,
    signals,
    step_ids,
    tokens,
    workers,
)
from tests.unit.story import T0, pack

MAX_RECOVERIES = 2
EXAMPLES = 250


class OneRun(RuleBasedStateMachine):
    """See the module's docstring."""

    plan: Plan
    run: RunDoc
    model: Model

    @initialize(plan=plans, draft=drafts)
    def starts(self, plan: Plan, draft: tuple[int | None, str | None]) -> None:
        self.plan = plan
        self.now = T0
        self.commits = 0
        self.emissions = 0
        self._start(*draft)

    def _start(self, start_at: int | None, worker: str | None) -> None:
        origin = Origin(id="r1", workflow="w", start_id=10**9 + self.commits, created_at=self.now, input=pack(1))
        decision = admit(StartRequest(origin=origin, state=pack(0), start_at=start_at), self.plan, self.now, worker)
        self.run = decision.run
        assert self.run.head.revision == 1
        assert self.run.head.fence == (worker is not None)
        assert [event.name for event in decision.events] == ["workflow.started", "step.started"][: 2 * bool(worker)]
        self.model = Model(self.plan)
        if worker is not None:
            self.model.calls[self.plan.first] = 1
        self.holders: list[tuple[str, int]] = []
        self._note_holder()
        self._begin_batch()

    # --- letting things happen -----------------------------------------------------------------------------

    def happens(self, happening: Happening) -> StreamlineError | None:
        """Decide it; what it raises, if it is refused. Every law is checked."""
        self.commits += 1
        before, stored = self.run, split(self.run)
        try:
            decision = decide(before, happening, self.plan, self.now, self.commits)
        except (InvalidTransition, DataCorruption):
            raise
        except StreamlineError as error:
            note(f"refused: {error}")
            assert split(before) == stored, "a refused happening has changed the run"
            self.batch.append(happening)
            return error
        assert split(before) == stored, "the run that was given has changed"
        if decision.run is before:
            assert not decision.events
            return None
        assert decision.run.head.commits[-1] == self.commits
        check_change(before, decision.run, decision.events, happening, self.now)
        assert changed(before, decision.run, decision.touched) == changed(before, decision.run), "untold changes"
        self.model.follow(before, decision.run, decision.events, happening)
        self.run = decision.run
        self.batch.append(happening)
        self._note_holder()
        return None

    def _note_holder(self) -> None:
        lease = self.run.head.lease
        if lease is not None and (lease.worker, lease.fence) not in self.holders:
            self.holders.append((lease.worker, lease.fence))

    def _accepted(self, happening: Happening) -> None:
        error = self.happens(happening)
        assert error is None, f"refused: {error}"

    def _held(self, **fields: Any) -> dict[str, Any]:
        lease = self.run.head.lease
        assert lease is not None
        return {"worker": lease.worker, "fence": lease.fence, **fields}

    @property
    def current(self) -> str:
        return self.run.head.current_step or self.plan.first

    def _is_leased(self) -> bool:
        return self.run.head.lease is not None

    def _runs_a_step(self) -> bool:
        return self._is_leased() and self.run.head.status == "running"

    def _undoes(self) -> bool:
        return self._is_leased() and self.run.head.status == "compensating"

    def _is_due(self) -> bool:
        return self.run.head.due_at is not None

    def _is_cancelled(self) -> bool:
        return self.run.head.status == "cancelled"

    def _has_open_wait(self) -> bool:
        return bool(open_records(self.run))

    def _ask(self, fields: dict[str, Any]) -> Ask:
        fields = dict(fields)
        due_in = fields.pop("due_in")
        return Ask(due_at=None if due_in is None else self.now + due_in, **fields)

    # --- time ----------------------------------------------------------------------------------------------

    @precondition(lambda self: not self._is_cancelled())
    @rule(millis=st.sampled_from([1, 400, 5_000, 100_000, -1, -2_000]))
    def time_passes(self, millis: int) -> None:
        self._check_fold()
        self.now += millis
        self._begin_batch()

    def _jump(self, instant: int) -> None:
        self._check_fold()
        self.now = max(self.now, instant)
        self._begin_batch()

    # --- workers -------------------------------------------------------------------------------------------

    @precondition(_is_due)
    @rule(worker=workers)
    def a_worker_comes_when_it_is_due(self, worker: str) -> None:
        self._jump(self.run.head.due_at or 0)
        self.a_worker_claims(worker, lease_dead=False)

    @precondition(_is_leased)
    @rule(worker=workers)
    def a_worker_takes_over(self, worker: str) -> None:
        self.a_worker_claims(worker, lease_dead=True)

    @precondition(_is_leased)
    @rule()
    def its_worker_is_gone_and_nobody_has_the_code(self) -> None:
        before = self.run
        lost = before.head.lease
        assert lost is not None
        self._accepted(LeaseLapsed(worker="w9", lost=lost.worker, max_recoveries=MAX_RECOVERIES))
        assert not self._is_leased()
        self._check_recovery(before)

    def a_worker_claims(self, worker: str, *, lease_dead: bool) -> None:
        before = self.run
        head = before.head
        due = head.due_at is not None and head.due_at <= self.now
        claimable = head.status not in SETTLED and (due if head.lease is None else lease_dead)
        error = self.happens(Claimed(worker=worker, lease_dead=lease_dead, max_recoveries=MAX_RECOVERIES))
        assert isinstance(error, InvalidState) == (not claimable)
        if error is None and head.lease is not None:
            self._check_recovery(before)

    def _check_recovery(self, before: RunDoc) -> None:
        """A worker was lost: counted; too often in a row is the end, but a cancellation comes before it."""
        head = self.run.head
        streak = before.head.streak + 1
        assert head.recoveries == before.head.recoveries + 1
        if before.head.cancel_requested:
            assert head.status in self._cancelled_in(before)
            assert head.dead_lettered == before.head.dead_lettered
        elif before.head.status == "compensating":
            assert head.streak == (0 if streak > MAX_RECOVERIES else streak)
        else:
            assert head.dead_lettered == (streak > MAX_RECOVERIES)
            assert head.streak == (0 if head.status == "compensating" else streak)

    def _cancelled_in(self, before: RunDoc) -> set[str]:
        """Where a cancellation leads: a run that undoes because it failed stops that."""
        if before.head.status == "compensating" or not self.plan.compensate_on_cancel:
            return {"cancelled"}
        return {"cancelled", "compensating"}

    @precondition(_runs_a_step)
    @rule(value=st.integers(0, 3), release=releases)
    def the_step_finishes(self, value: int, release: bool) -> None:
        step_id, before = self.current, self.run
        self._accepted(Finished(**self._held(step=step_id, output=pack(value), release=release)))
        assert self.run.steps[step_id].output == pack(value)
        self._check_release(release)
        assert self.run.head.streak == 0
        if before.head.cancel_requested:
            assert self.run.head.status in self._cancelled_in(before)
        else:
            assert self.run.head.status != "cancelled"

    def _check_release(self, release: bool) -> None:
        """A worker that leaves holds nothing afterwards."""
        assert not release or self.run.head.lease is None

    @precondition(_runs_a_step)
    @rule(how=st.sampled_from(["skip", "go", "leave"]), to=step_ids, release=releases)
    def the_step_ends_otherwise(self, how: str, to: str, release: bool) -> None:
        match how:
            case "skip":
                self._accepted(Skipped(**self._held(step=self.current, release=release)))
                self._check_release(release)
            case "go":
                self.go_to(to, release=release)
            case _:
                self.hand_back()

    @precondition(_runs_a_step)
    @rule(retriable=st.sampled_from([True, True, True, False]), roll=rolls, release=releases)
    def the_attempt_fails(self, retriable: bool, roll: float, release: bool) -> None:
        error = ErrorDoc(code="workflow.step.failed", message="boom", step=self.current)
        step_id, before = self.current, self.run
        fields = self._held(step=step_id, error=error, retriable=retriable, roll=roll, release=release)
        self._accepted(AttemptFailed(**fields))
        head, policy = self.run.head, self.plan.step(step_id).retry
        exhausted = before.steps[step_id].failures + 1 >= policy.attempts or not retriable
        if before.head.cancel_requested:
            assert head.status in self._cancelled_in(before)
        else:
            overdue = before.head.deadline is not None and before.head.deadline <= self.now
            assert (head.status in {"failed", "compensating"}) == (exhausted or overdue)
            goes_on = policy.delay == 0 or head.status == "compensating"
            at_once = goes_on and not before.head.paused and not release and head.status != "failed"
            assert (head.lease is not None) == at_once
        if head.status not in {"cancelled", "compensating"}:
            kept_approvals = head.status != "failed"
            for record in self._kept_records():
                gone = record.outcome in {"timed_out", "withdrawn"}
                assert not gone or (record.approval and kept_approvals)

    def _kept_records(self) -> list[Any]:
        """Records that the next attempt will see: after the run has failed, those it will see when retried."""
        if self.run.head.status != "failed":
            return list(self.run.records.values())
        decision = decide(self.run, Retried(), self.plan, self.now)
        return list(decision.run.records.values())

    def go_to(self, to: str, *, release: bool) -> None:
        known = any(step.id == to for step in self.plan.steps)
        error = self.happens(WentTo(**self._held(step=self.current, target=to, release=release)))
        assert isinstance(error, StepNotFound) == (not known)
        self._check_release(release and known)

    @precondition(_runs_a_step)
    @rule(wish=asks())
    def the_step_waits(self, wish: dict[str, Any]) -> None:
        self.suspend([wish], release=False)

    @precondition(_runs_a_step)
    @rule(wishes=st.lists(asks(), min_size=1, max_size=2, unique_by=lambda ask: ask["key"]), release=releases)
    def the_step_waits_for_several(self, wishes: list[dict[str, Any]], release: bool) -> None:
        self.suspend(wishes, release=release)

    def suspend(self, wishes: list[dict[str, Any]], *, release: bool) -> None:
        wanted = tuple(self._ask(fields) for fields in wishes)
        before = self.run
        fields = self._held(step=self.current, asks=wanted, release=release)
        error = self.happens(Suspended(**fields))
        assert error is None or isinstance(error, SuspensionError)
        if error is not None or self.run.head.status in {*SETTLED, "compensating"}:
            return
        outcomes = [self.run.records[ask.key].outcome for ask in wanted]
        parked = self.run.head.status == "waiting"
        assert parked == all(outcome is None for outcome in outcomes), "parked although a wait is over"
        assert parked or self._is_leased() == (not release)
        if before.head.paused:
            fired = {key for key, record in self.run.records.items() if record.outcome in {"fired", "timed_out"}}
            assert fired <= {key for key, record in before.records.items() if record.outcome is not None}

    @precondition(_runs_a_step)
    @rule(wish=asks())
    def the_step_opens_a_wait(self, wish: dict[str, Any]) -> None:
        error = self.happens(WaitOpened(**self._held(step=self.current, ask=self._ask(wish))))
        assert error is None or isinstance(error, SuspensionError)

    @precondition(_runs_a_step)
    @rule(number=st.integers(0, 3))
    def the_step_keeps(self, number: int) -> None:
        self._accepted(StateSet(**self._held(state=pack(number))))
        assert self.run.state == pack(number)
        self._accepted(CheckpointSaved(**self._held(step=self.current, name=f"c{number}", value=pack(number))))
        first = self.run.memos.get(f"m{number % 2}")
        self._accepted(Memoized(**self._held(step=self.current, key=f"m{number % 2}", value=pack(number))))
        assert first in {None, self.run.memos[f"m{number % 2}"]}, "a memo was forgotten"

    @precondition(_runs_a_step)
    @rule(wishes=st.lists(asks(), max_size=3, unique_by=lambda ask: ask["key"]))
    def keys_wait_while_others_run(self, wishes: list[dict[str, Any]]) -> None:
        wanted = tuple(self._ask(fields) for fields in wishes)
        error = self.happens(WaitsOpened(**self._held(step=self.current, asks=wanted)))
        assert error is None or isinstance(error, SuspensionError)
        if error is None:
            assert all(ask.key in self.run.records for ask in wanted)
            assert self._is_leased()

    @precondition(lambda self: self._runs_a_step() and self._has_open_wait())
    @rule(data=st.data())
    def the_time_of_some_comes(self, data: st.DataObject) -> None:
        before = self.run
        keys = data.draw(st.lists(st.sampled_from([*before.records, "gone"]), unique=True))
        self._accepted(TimeCame(**self._held(step=self.current, keys=tuple(keys))))
        for key, record in before.records.items():
            came = record.is_open and record.due_at is not None and record.due_at <= self.now
            fires = came and key in keys and not before.head.paused
            assert (self.run.records[key].outcome != record.outcome) == fires

    @precondition(lambda self: self._runs_a_step() and self._has_open_wait())
    @rule(data=st.data(), release=releases)
    def the_step_waits_on(self, data: st.DataObject, release: bool) -> None:
        """Keys that were not called again keep their records; all other open ones are closed."""
        waiting = sorted(key for key, record in self.run.records.items() if record.is_open)
        kept = data.draw(st.lists(st.sampled_from(waiting), min_size=1, unique=True))
        self._accepted(Suspended(**self._held(step=self.current, asks=(), kept=tuple(kept), release=release)))
        if self.run.head.status == "waiting":
            assert {key for key, record in self.run.records.items() if record.is_open} == set(kept)

    @precondition(_runs_a_step)
    @rule(path=st.sampled_from(["p", "q"]), round=st.integers(0, 3), done=st.booleans(), data=st.data())
    def a_part_ends(self, path: str, round: int, done: bool, data: st.DataObject) -> None:
        before = self.run
        records = tuple(data.draw(st.lists(st.sampled_from([*before.records, "gone"]), unique=True)))
        pieces = tuple(data.draw(st.lists(st.sampled_from(["p", "q"]), unique=True)))
        fields = {"path": path, "value": pack(round), "round": round, "done": done}
        self._accepted(PieceSaved(**self._held(step=self.current, records=records, pieces=pieces, **fields)))
        known = before.pieces.get(path)
        if known is not None and (known.done or known.round >= round):
            assert self.run is before, "what has come to its end is another one now"
            return
        assert (self.run.pieces[path].round, self.run.pieces[path].done) == (round, done)
        assert self.run.head.streak == 0
        assert self.run.records.keys() == before.records.keys() - set(records)
        assert self.run.pieces.keys() == (before.pieces.keys() - set(pieces)) | {path}

    @precondition(_is_leased)
    @rule()
    def hand_back(self) -> None:
        before = self.run
        self._accepted(HandedBack(**self._held()))
        self._check_release(release=True)
        if self.run.head.status == before.head.status or self.run.head.status not in {*SETTLED, "compensating"}:
            assert self.run.steps is before.steps, "a call that is handed back counts"

    @precondition(lambda self: self._is_leased() and self.run.head.cancel_requested)
    @rule()
    def the_cancelled_handler_has_unwound(self) -> None:
        before = self.run
        self._accepted(CancelUnwound(**self._held()))
        assert self.run.head.status in self._cancelled_in(before)

    @precondition(lambda self: self._is_leased() and self.now >= (self.run.head.deadline or math.inf) - 1)
    @rule()
    def the_deadline_passes(self) -> None:
        before = self.run
        self._accepted(DeadlinePassed(**self._held()))
        ends = self._cancelled_in(before) if before.head.cancel_requested else {"failed", "compensating"}
        assert self.run.head.status in ends

    @precondition(_undoes)
    @rule(release=releases)
    def the_step_is_undone(self, release: bool) -> None:
        before, step_id = self.run, self.run.head.undo[0]
        self._accepted(Undone(**self._held(step=step_id, release=release)))
        compensation = self.run.step(step_id).compensation
        assert compensation is not None
        assert compensation.status == "done"
        self._check_release(release)
        assert (self.run.head.status == "cancelled") == before.head.cancel_requested

    @precondition(_undoes)
    @rule(retriable=st.sampled_from([True, True, True, False]), roll=rolls, release=releases)
    def the_step_is_not_undone(self, retriable: bool, roll: float, release: bool) -> None:
        before, step_id = self.run, self.run.head.undo[0]
        error = ErrorDoc(code="workflow.step.failed", message="boom", step=step_id)
        fields = self._held(step=step_id, error=error, retriable=retriable, roll=roll, release=release)
        self._accepted(UndoFailed(**fields))
        self._check_release(release)
        assert (self.run.head.status == "cancelled") == before.head.cancel_requested

    @precondition(_undoes)
    @rule(number=st.integers(0, 3))
    def the_compensation_keeps(self, number: int) -> None:
        step_id = self.run.head.undo[0]
        self._accepted(StateSet(**self._held(state=pack(number))))
        self._accepted(CheckpointSaved(**self._held(step=step_id, name=f"c{number}", value=pack(number))))

    @precondition(_undoes)
    @rule()
    def the_compensation_is_handed_back(self) -> None:
        self.hand_back()

    @precondition(_undoes)
    @rule(data=st.data())
    def the_compensation_does_what_only_a_step_can(self, data: st.DataObject) -> None:
        step = self._held(step=self.run.head.undo[0])
        ask = self._ask({"key": "k", "kind": "human", "ask": "", "place": 0, "due_in": 1})
        wrong: list[Happening] = [
            Finished(output=pack(0), **step),
            Skipped(**step),
            WentTo(target=self.plan.first, **step),
            Suspended(asks=(ask,), **step),
            WaitOpened(ask=ask, **step),
        ]
        assert isinstance(self.happens(data.draw(st.sampled_from(wrong))), InvalidState)

    @rule(data=st.data())
    def somebody_out_of_place_acts(self, data: st.DataObject) -> None:
        """What mostly is refused: an old holder, a worker too many, an answer to anything."""
        match data.draw(st.sampled_from(["holder", "worker", "person"])):
            case "holder":
                self.an_old_holder_reports(data)
            case "worker":
                self.a_worker_claims(data.draw(workers), lease_dead=data.draw(st.booleans()))
            case _:
                token, step = data.draw(tokens), data.draw(st.none() | step_ids)
                if data.draw(st.booleans()):
                    self.withdraw(token, step)
                else:
                    self.answer(token, step, given=data.draw(st.booleans()))

    def an_old_holder_reports(self, data: st.DataObject) -> None:
        lease = self.run.head.lease
        now_held = None if lease is None else (lease.worker, lease.fence)
        gone = [("w9", self.run.head.fence), *(holder for holder in self.holders if holder != now_held)]
        worker, fence = data.draw(st.sampled_from(gone))
        fields: dict[str, Any] = {"worker": worker, "fence": fence}
        step = {"step": self.current, **fields}
        error = ErrorDoc(code="c", message="m")
        late: list[Happening] = [
            Finished(output=pack(0), **step),
            Skipped(**step),
            Undone(**step),
            UndoFailed(error=error, retriable=True, **step),
            AttemptFailed(error=error, retriable=True, **step),
            WentTo(target=self.plan.first, **step),
            Suspended(asks=(self._ask({"key": "k", "kind": "human", "ask": "", "place": 0, "due_in": 1}),), **step),
            StateSet(state=b"", **fields),
            CheckpointSaved(name="late", value=b"", **step),
            Memoized(key="late", value=b"", **step),
            PieceSaved(path="late", value=b"", **step),
            WaitsOpened(asks=(), **step),
            TimeCame(keys=(), **step),
            HandedBack(**fields),
            CancelUnwound(**fields),
            DeadlinePassed(**fields),
        ]
        assert isinstance(self.happens(data.draw(st.sampled_from(late))), LeaseLost)

    # --- the outside ---------------------------------------------------------------------------------------

    @precondition(_has_open_wait)
    @rule(data=st.data())
    def the_person_answers(self, data: st.DataObject) -> None:
        known = [*open_tokens(self.run)]
        token = data.draw(st.sampled_from([None, *known]))
        if data.draw(st.sampled_from([True, True, False])):
            self.answer(token, None, given=True)
        else:
            self.withdraw(token, None)

    def answer(self, token: str | None, step: str | None, *, given: bool) -> None:
        before = self.run
        error = self.happens(Answered(token=token, step=step, payload=pack("yes") if given else None))
        self._check_answer(before, token, error)
        if error is None:
            changed = [k for k, r in self.run.records.items() if r.outcome != before.records[k].outcome]
            assert len(changed) == 1, "one answer answers one wait"
            assert before.records[changed[0]].outcome is None, "an outcome was replaced"

    def withdraw(self, token: str | None, step: str | None) -> None:
        before = self.run
        self._check_answer(before, token, self.happens(Withdrawn(token=token, step=step, reason="never mind")))

    def _check_answer(self, before: RunDoc, token: str | None, error: StreamlineError | None) -> None:
        waits = open_records(before)
        known = any(token in record.tokens for record in waits)
        if token is not None and not known:
            assert isinstance(error, TokenInvalid)
        elif not waits:
            assert isinstance(error, InvalidState)
        else:
            assert error is None or isinstance(error, InvalidState | ValidationError)
        if error is None and before.head.status == "waiting" and before.step(self.current).status == "waiting":
            assert self.run.head.status == "running", "an answered run stays parked"

    @precondition(lambda self: not self._is_cancelled())
    @rule(
        signal=signals,
        id=signal_ids,
        kind=st.integers(0, 1),
        addressed=st.booleans(),
    )
    def a_signal_comes(self, signal: str, id: str | None, kind: int, addressed: bool) -> None:
        self.emissions += 1
        number = self.emissions
        happening = SignalArrived(
            signal=signal,
            payload=pack({"k": kind, "n": number}),
            id=f"e{number}" if id is None else id,
            addressed=addressed,
            remembered=id is not None or number % 2 == 0,
        )
        before, fate = self.run, self.model.expect_signal(self.run, happening)
        error = self.happens(happening)
        assert isinstance(error, InvalidState) == (fate == "refused")
        assert (self.run is before) == (fate in {"nothing", "refused"})
        if self.run is not before:
            self.model.accept_signal(before, self.run, happening, fate)

    @rule(
        verb=st.sampled_from(["pause", "rewind", "retry", "cancel", "unpause", "rewind", "pause"]),
        reason=reasons,
        to=step_ids,
        lease_dead=st.sampled_from([False, False, True]),
        stops_undoing=st.booleans(),
    )
    def somebody_steers(
        self, verb: str, reason: str | None, to: str, lease_dead: bool, stops_undoing: bool
    ) -> None:
        match verb:
            case "pause":
                self.pause(reason)
            case "unpause":
                self.unpause()
            case "rewind":
                self.rewind(to, lease_dead=lease_dead)
            case "retry":
                self.retry()
            case _:
                self.cancel(reason, lease_dead=lease_dead, stops_undoing=stops_undoing)

    @precondition(lambda self: self.run.head.paused)
    @rule()
    def somebody_unpauses(self) -> None:
        self.unpause()

    @precondition(lambda self: self.run.head.status in {"failed", "compensation_failed"})
    @rule()
    def somebody_retries(self) -> None:
        self.retry()

    @precondition(lambda self: self.run.head.status in {"done", "failed"})
    @rule(data=st.data())
    def somebody_rewinds(self, data: st.DataObject) -> None:
        self.rewind(data.draw(st.sampled_from([step.id for step in self.plan.steps])), lease_dead=False)

    def cancel(self, reason: str | None, *, lease_dead: bool, stops_undoing: bool) -> None:
        before = self.run
        self._accepted(CancelAsked(reason=reason, lease_dead=lease_dead, stops_undoing=stops_undoing))
        if before.head.status in SETTLED:
            assert self.run is before, "cancelling a settled run is no act"
        elif before.head.status == "compensating" and not (stops_undoing and before.head.error is not None):
            assert self.run is before, "what undoes its steps was stopped"
        elif before.head.lease is None or lease_dead:
            assert self.run.head.status in self._cancelled_in(before)
        else:
            assert self.run.head.cancel_requested
            assert self.run.head.lease == before.head.lease

    def pause(self, reason: str | None) -> None:
        self._accepted(PauseAsked(reason=reason))
        assert self.run.head.paused == (self.run.head.status not in SETTLED)

    def unpause(self) -> None:
        before = self.run
        self._accepted(UnpauseAsked())
        assert not self.run.head.paused
        assert self.run.records is before.records, "unpausing answers no wait"

    def rewind(self, to: str, *, lease_dead: bool) -> None:
        before = self.run
        allowed = before.head.status in {"done", "failed", "running", "waiting"} and self._has_reached(to)
        allowed = allowed and (before.head.lease is None or (lease_dead and not before.head.cancel_requested))
        error = self.happens(Rewound(to=to, lease_dead=lease_dead))
        assert (error is None) == allowed
        if allowed:
            assert (self.run.head.status, self.run.head.current_step) == ("running", to)
            assert not self.run.records
            reset = {step.id for step in self.plan.steps[self.plan.index(to) :]}
            assert {key: memo for key, memo in before.memos.items() if memo.step not in reset} == self.run.memos

    def _has_reached(self, step_id: str) -> bool:
        """A run that is done has reached every step, one that never began only the first."""
        order = [step.id for step in self.plan.steps]
        reached = order[-1] if self.run.head.status == "done" else self.current
        return step_id in order[: order.index(reached) + 1]

    def retry(self) -> None:
        before = self.run
        again = before.head.status not in SETTLED and before.head.retried
        error = self.happens(Retried())
        assert (error is None) == (before.head.status in {"failed", "compensation_failed"} or again)
        if again:
            assert self.run is before, "a repeated retry is a no-op"
        elif error is None:
            kept = {key: record.value for key, record in before.records.items() if record.outcome == "value"}
            assert {k: r.value for k, r in self.run.records.items() if r.outcome == "value"} == kept

    def _is_finished_somewhere(self) -> bool:
        return any(step.history for step in self.run.steps.values())

    @precondition(_is_finished_somewhere)
    @rule(step=step_ids, version=st.integers(1, 5))
    def somebody_pins_an_output(self, step: str, version: int) -> None:
        before = self.run
        known = any(planned.id == step for planned in self.plan.steps)
        is_open = before.head.status != "cancelled" and not before.head.cancel_requested
        has_version = any(kept.version == version for kept in before.step(step).history)
        error = self.happens(OutputPinned(step=step, version=version))
        assert isinstance(error, StepNotFound) == (not known)
        if known:
            assert (error is None) == (is_open and before.step(step).status == "done" and has_version)
        if error is None:
            after = self.run
            assert after.step(step).history == before.step(step).history
            assert (after.head.status, after.records) == (before.head.status, before.records)

    @rule(step=step_ids)
    def somebody_forks_it(self, step: str) -> None:
        request = ForkRequest(from_step=step, id="r2", start_id=5)
        known = any(planned.id == step for planned in self.plan.steps)
        before = {planned.id for planned in self.plan.steps[: self.plan.index(step)]} if known else set[str]()
        undone = any(self.run.step(each).compensation is not None for each in before)
        allowed = known and self.run.head.status != "draft" and self._has_reached(step) and not undone
        if not allowed:
            with pytest.raises(InvalidState if known else StepNotFound):
                fork(self.run, request, self.plan, self.now)
            return
        forked = fork(self.run, request, self.plan, self.now).run
        check_state(forked, self.plan)
        assert set(forked.steps) == {
            each for each, doc in self.run.steps.items() if each in before and doc.status in {"done", "skipped"}
        }
        assert not forked.records | forked.inbox | forked.seen
        begun = decide(forked, Claimed(worker="w4"), self.plan, self.now)
        if begun.run.head.status == "running":
            assert [event.name for event in begun.events] == ["workflow.started", "step.started"]
            assert (begun.run.head.current_step, begun.run.step(step).attempts) == (step, 1)
        self._settles(forked, self.now)
        cancelled = decide(forked, CancelAsked(reason=None), self.plan, self.now).run
        assert cancelled.head.status in {"cancelled", "compensating"}
        self._settles(cancelled, self.now)

    @precondition(lambda self: self.run.head.status in {"cancelled", "compensated"})
    @rule(draft=drafts)
    def another_run_starts(self, draft: tuple[int | None, str | None]) -> None:
        self._check_fold()
        start_at, worker = draft
        self._start(None if start_at is None else self.now + 1000, worker)

    # --- what must always hold -----------------------------------------------------------------------------

    @invariant()
    def the_laws_hold(self) -> None:
        check_state(self.run, self.plan)

    @invariant()
    def a_good_worker_brings_it_to_its_end(self) -> None:
        """Liveness: claimed when due and every step finished, it settles, unless it waits on the outside."""
        run, now = self.run, self.now
        if run.head.paused:
            run = decide(run, UnpauseAsked(), self.plan, now).run
        self._settles(run, now)

    def _settles(self, run: RunDoc, now: int) -> None:
        for _ in range(4 * len(self.plan.steps) + 3):
            if run.head.status in SETTLED or waits_on_outside(run):
                return
            lease = run.head.lease
            if lease is None:
                assert run.head.due_at is not None
                now = max(now, run.head.due_at)
                run = decide(run, Claimed(worker="w4"), self.plan, now).run
            else:
                held: dict[str, Any] = {"worker": lease.worker, "fence": lease.fence}
                if run.head.status == "compensating":
                    done: Happening = Undone(step=run.head.undo[0], **held)
                else:
                    done = Finished(step=run.head.current_step or "", output=b"", **held)
                run = decide(run, done, self.plan, now).run
        raise AssertionError("it goes on for ever")

    # --- merged commits ------------------------------------------------------------------------------------

    def _begin_batch(self) -> None:
        self.batch: list[Happening] = []
        self.batch_base = self.run

    def _check_fold(self) -> None:
        """What happened at one instant, decided as one commit, gives the same run, stamped once."""
        run = self.batch_base
        for happening in self.batch:
            try:
                run = decide(run, happening, self.plan, self.now, -1).run
            except StreamlineError:
                continue
        base = self.batch_base.head.commits
        assert run.head.commits == (base if run is self.batch_base else (*base, -1)[-16:])
        assert run.head.revision == self.batch_base.head.revision + (run is not self.batch_base)
        assert _unstamped(run) == _unstamped(self.run)

    def teardown(self) -> None:
        if hasattr(self, "run"):
            self._check_fold()


def _unstamped(run: RunDoc) -> RunDoc:
    return replace(run, head=replace(run.head, commits=(), revision=0))


TestOneRun = OneRun.TestCase
TestOneRun.settings = settings(
    max_examples=max(EXAMPLES, settings.default.max_examples if settings.default else 0),
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    report_multiple_bugs=False,
)
