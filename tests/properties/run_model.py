"""A small model of a run: what its owner may count on, kept beside the run and compared with it.

It knows nothing of leases, writes or due times. It counts the calls and failures of each step, remembers which
steps have finished, and follows every signal from the moment it was acknowledged.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.events import Event, StepStarted
from streamline_trio._core.happenings import (
    AttemptFailed,
    Claimed,
    Finished,
    Happening,
    Retried,
    Rewound,
    SignalArrived,
    Skipped,
    WentTo,
)
from streamline_trio._core.plan import Plan
from streamline_trio._core.status import SETTLED

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

    def follow(self, before: RunDoc, after: RunDoc, events: Sequence[Event], happening: Happening) -> None:
        """Let the happening happen here too, and compare."""
        expected = self._begins(before, after, happening)
        began = [event.step for event in events if isinstance(event, StepStarted)]
        assert began == ([] if expected is None else [expected]), f"began {began}, expected {expected}"
        self._count(before, happening)
        if expected is not None:
            assert expected not in self.finished, "a finished step begins again"
            self.calls[expected] = self.calls.get(expected, 0) + 1
        self._compare(after)
        self._follow_messages(before, after, happening)

    # --- steps ---------------------------------------------------------------------------------------------

    def _begins(self, before: RunDoc, after: RunDoc, happening: Happening) -> str | None:
        """The step whose handler is called anew by this."""
        if after.head.lease is None:
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
        elif isinstance(happening, Skipped):
            self._skip(happening.step)
        elif isinstance(happening, Rewound):
            self._reset(before, [step.id for step in self.plan.steps[self.plan.index(happening.to) :]])
        elif isinstance(happening, Retried):
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
            if step_id in before.steps:
                self.generations[step_id] = self.generations.get(step_id, 0) + 1

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
