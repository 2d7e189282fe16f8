"""A small model of a run: what its owner may count on, kept beside the run and compared with it.

It knows nothing of leases, writes or due times. It counts the calls and failures of each step, remembers which
steps have finished, which of them are still to be undone, and follows every signal from the moment it was
acknowledged.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.events import Event, StepStarted
from streamline_trio._core.happenings import (
    AttemptFailed,
    CheckpointSaved,
    Claimed,
    Finished,
    Happening,
    Held,
    LeaseLapsed,
    Retried,
    Rewound,
    SignalArrived,
    Skipped,
    StateSet,
    UndoFailed,
    Undone,
    WentTo,
)
from streamline_trio._core.plan import Plan
from streamline_trio._core.status import ACTIVE, SETTLED

TURNED_BACK = frozenset({"compensating", "compensated", "compensation_failed"})
SignalKey = tuple[bool, str, str]


class Model:
    """What has happened to a run, as seen from outside `decide`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.calls: dict[str, int] = {}
        self.failures: dict[str, int] = {}
        self.generations: dict[str, int] = {}
        self.finished: set[str] = set()
        self.accepted: set[SignalKey] = set()
        self.order: list[str] = []
        self.undo: list[str] = []
        self.not_undone: list[str] = []
        self.undo_failures: dict[str, int] = {}
        self.undo_calls: dict[str, int] = {}

    def follow(self, before: RunDoc, after: RunDoc, events: Sequence[Event], happening: Happening) -> None:
        """Let the happening happen here too, and compare."""
        expected = self._begins(before, after, happening)
        began = [event.step for event in events if isinstance(event, StepStarted)]
        assert began == ([] if expected is None else [expected]), f"began {began}, expected {expected}"
        self._count(before, happening)
        self._turn_back(before, after)
        self._undo(before, after, happening)
        if expected is not None:
            assert expected not in self.finished, "a finished step begins again"
            self.calls[expected] = self.calls.get(expected, 0) + 1
        self._compare(after)
        self._follow_messages(before, after, happening)

    # --- steps ---------------------------------------------------------------------------------------------

    def _begins(self, before: RunDoc, after: RunDoc, happening: Happening) -> str | None:
        """The step whose handler is called anew by this."""
        if after.head.lease is None or after.head.status == "compensating":
            return None
        if isinstance(happening, Claimed):
            current = before.head.current_step or self.plan.first
            crashed = before.head.lease is not None
            return current if crashed or before.step(current).status == "pending" else None
        if isinstance(happening, AttemptFailed):
            return happening.step
        if isinstance(happening, Finished | Skipped):
            return self.plan.after(happening.step)
        return happening.target if isinstance(happening, WentTo) else None

    def _count(self, before: RunDoc, happening: Happening) -> None:
        if isinstance(happening, AttemptFailed):
            self.failures[happening.step] = self.failures.get(happening.step, 0) + 1
        elif isinstance(happening, Finished):
            self.finished.add(happening.step)
            self.order.append(happening.step)
        elif isinstance(happening, Skipped):
            self._skip(happening.step)
        elif isinstance(happening, Rewound):
            self._reset(before, [step.id for step in self.plan.steps[self.plan.index(happening.to) :]])
        elif isinstance(happening, Retried) and before.head.status == "failed":
            step_id = before.head.current_step or self.plan.first
            self.calls.pop(step_id, None)
            self.failures.pop(step_id, None)
        elif isinstance(happening, WentTo):
            if self.plan.index(happening.step) < self.plan.index(happening.target):
                self._skip(happening.step)
                self._reset(before, [happening.target])
            else:
                self._reset(before, list(self.plan.between(happening.target, happening.step)))

    def _skip(self, step_id: str) -> None:
        self.finished.add(step_id)
        self.calls.pop(step_id, None)

    def _reset(self, before: RunDoc, step_ids: list[str]) -> None:
        for step_id in step_ids:
            self.finished.discard(step_id)
            self.calls.pop(step_id, None)
            self.failures.pop(step_id, None)
            self.order = [other for other in self.order if other != step_id]
            if step_id in before.steps:
                self.generations[step_id] = self.generations.get(step_id, 0) + 1

    # --- undoing -------------------------------------------------------------------------------------------

    def _turn_back(self, before: RunDoc, after: RunDoc) -> None:
        """A run turns back exactly if it did something that can be undone; newest first."""
        moves = before.head.status in ACTIVE and before.head.status != "compensating"
        if not moves or after.head.status not in {"failed", "cancelled", *TURNED_BACK}:
            return
        half_way = [step for step in self.calls if step not in self.finished and self._undoes(step, "started")]
        done = [step for step in reversed(self.order) if self._undoes(step, "finished", "started")]
        undo = half_way + done
        if after.head.status == "cancelled":
            assert not undo or not self.plan.compensate_on_cancel, "a cancelled run is not undone"
        else:
            assert (after.head.status in TURNED_BACK) == bool(undo), f"{undo} is to be undone"
            self.undo = undo

    def _undoes(self, step_id: str, *when: str) -> bool:
        compensation = self.plan.step(step_id).compensation
        return compensation is not None and compensation.when in when

    def _undo(self, before: RunDoc, after: RunDoc, happening: Happening) -> None:
        """What is undone is crossed out, in order; what cannot be is set aside, and taken up again by retry."""
        if isinstance(happening, Undone):
            assert self.undo.pop(0) == happening.step
        elif isinstance(happening, UndoFailed):
            failures = self.undo_failures[happening.step] = self.undo_failures.get(happening.step, 0) + 1
            limit = self.plan.compensations[happening.step].retry.attempts
            if not before.head.cancel_requested and (failures >= limit or not happening.retriable):
                self.not_undone.append(self.undo.pop(0))
        elif isinstance(happening, Claimed | LeaseLapsed) and before.head.status == "compensating" and self.undo:
            given_up = after.step(self.undo[0]).compensation
            if given_up is not None and given_up.status == "failed":
                assert given_up.error is not None
                assert given_up.error.code == "dead_lettered"
                self.not_undone.append(self.undo.pop(0))
        elif isinstance(happening, Retried) and before.head.status == "compensation_failed":
            self.undo, self.not_undone = self.not_undone, []
            self.undo_failures.clear()
            for step_id in self.undo:
                self.undo_calls.pop(step_id, None)
        assert tuple(self.undo) == after.head.undo
        self._count_undo_calls(before, after, happening)
        if after.head.status in {"compensated", "compensation_failed"}:
            assert not self.undo, "it settled before everything was undone"
            assert (after.head.status == "compensated") == (not self.not_undone)

    def _count_undo_calls(self, before: RunDoc, after: RunDoc, happening: Happening) -> None:
        """A compensation is called by the write that makes it its turn, and entered again if it was handed back."""
        held = after.head.lease is not None and after.head.status == "compensating"
        ends_something = isinstance(happening, Held | Claimed) and not isinstance(
            happening, StateSet | CheckpointSaved
        )
        if held and ends_something:
            assert not before.head.paused, "a compensation begins in a paused run"
            step_id = self.undo[0]
            was = before.step(step_id).compensation
            handed_back = before.head.lease is None and was is not None and was.status == "running"
            self.undo_calls[step_id] = self.undo_calls.get(step_id, 0) + (not handed_back)
        for step_id, step in after.steps.items():
            calls = 0 if step.compensation is None else step.compensation.attempts
            assert calls == self.undo_calls.get(step_id, 0), f"calls of the compensation of {step_id}"

    def _compare(self, run: RunDoc) -> None:
        for step in self.plan.steps:
            doc = run.step(step.id)
            assert doc.attempts == self.calls.get(step.id, 0), f"attempts of {step.id}"
            assert doc.generation == self.generations.get(step.id, 0), f"generation of {step.id}"
            assert (doc.status in {"done", "skipped"}) == (step.id in self.finished)
            if doc.status != "skipped":
                assert doc.failures == self.failures.get(step.id, 0), f"failures of {step.id}"

    # --- signals -------------------------------------------------------------------------------------------

    def expect_signal(self, run: RunDoc, signal: SignalArrived) -> str:
        """What becomes of a signal: nothing, refused, answers or kept."""
        if signal_key(signal) in self.accepted:
            return "nothing"
        if run.head.status in SETTLED:
            return "refused" if signal.addressed else "nothing"
        if wants(run, signal):
            return "answers"
        return "kept" if signal.addressed else "nothing"

    def accept_signal(self, before: RunDoc, after: RunDoc, signal: SignalArrived, fate: str) -> None:
        """It was acknowledged: it is in exactly one place."""
        if signal.remembered:
            self.accepted.add(signal_key(signal))
        assert (after.seen == before.seen) == (not signal.remembered)
        places = ["kept"] * sum(m.payload == signal.payload for m in _new(before.inbox, after.inbox))
        places += ["answers"] * sum(r == signal.payload for r in _answers(before, after))
        assert places == [fate]

    def _follow_messages(self, before: RunDoc, after: RunDoc, happening: Happening) -> None:
        """No message leaves the inbox but to answer a wait, each one wait, the oldest first."""
        taken = _answers(before, after)
        for number in before.inbox.keys() - after.inbox.keys():
            message = before.inbox[number]
            assert taken.count(message.payload) == 1, "a message was dropped, or taken twice"
            older = [m for n, m in after.inbox.items() if n < number and m.signal == message.signal]
            kinds = {_decode(m.payload)["k"] for m in older}
            assert _decode(message.payload)["k"] not in kinds, "a younger message was taken first"
        here = {message.payload for message in after.inbox.values()}
        assert not here.intersection(taken), "a message that was taken is still there"
        if not isinstance(happening, SignalArrived):
            assert set(after.inbox) <= set(before.inbox)
            assert after.seen == before.seen


def signal_key(signal: SignalArrived) -> SignalKey:
    return signal.addressed, signal.signal, signal.id


def wants(run: RunDoc, signal: SignalArrived) -> list[str]:
    """Keys of the open waits that the signal answers."""
    given = _decode(signal.payload)
    return [
        key
        for key, record in run.records.items()
        if record.outcome is None
        and record.kind == "signal"
        and record.signal == signal.signal
        and (record.match is None or _decode(record.match).items() <= given.items())
    ]


def _decode(value: bytes) -> Any:
    return msgspec.msgpack.decode(value)


def _new(old: dict[str, Any], new: dict[str, Any]) -> list[Any]:
    return [value for key, value in new.items() if key not in old]


def _answers(before: RunDoc, after: RunDoc) -> list[bytes | None]:
    """Payloads of the signal waits that this change answered."""
    return [
        record.value
        for key, record in after.records.items()
        if record.kind == "signal"
        and record.outcome == "value"
        and (key not in before.records or before.records[key].value != record.value)
    ]
