"""The outside answers: a person, a signal, or somebody who ends a wait.

An answer on a parked run makes it ready in the same write; on a leased run it is recorded, and the holder's
attention is asked for. An answer wins over a deadline until a worker has committed the timeout.
"""

from __future__ import annotations

import hmac

from streamline_trio._core.decide.matching import cancels, check_shape, open_for
from streamline_trio._core.decide.steering import cancel_asked
from streamline_trio._core.decide.turn import Turn
from streamline_trio._core.documents import Message, Outcome, Record
from streamline_trio._core.errors import TokenInvalid, ValidationError
from streamline_trio._core.happenings import Answered, CancelAsked, SignalArrived, Withdrawn
from streamline_trio._core.payload import NULL
from streamline_trio._core.status import ACTIVE

MAX_INBOX = 1000
SEEN_FOR = 24 * 60 * 60 * 1000
_PRUNE_ABOVE = 64
_CHILDREN = {"child": "child", "join": "branches"}


def answered(turn: Turn, happening: Answered) -> None:
    """Give an open wait its payload; that of a child is its output, in place of the child, which is cancelled."""
    key = _find(turn, happening.verb, happening)
    record = turn.records[key]
    if happening.verb != "resume" and record.kind != "human":
        raise turn.invalid(happening.verb, "what it waits for is not a person", "waiting")
    payload = happening.payload
    if record.kind == "join" or (record.kind == "child" and payload is None):
        raise turn.invalid("resume", f"it waits for its {_CHILDREN[record.kind]}, not for an answer", "waiting")
    if payload is None:
        if record.kind == "human":
            raise ValidationError(f"the wait {_title(record)!r} of run {turn.run.public_id} needs a payload")
        payload = NULL
    check_shape(record, payload, f"the answer to {_title(record)!r} of run {turn.run.public_id}")
    _settle_wait(turn, key, "fired" if record.kind == "timer" else "value", value=payload)


def withdrawn(turn: Turn, happening: Withdrawn) -> None:
    """End a human wait without an answer."""
    key = _find(turn, "withdraw", happening)
    if turn.records[key].kind != "human":
        raise turn.invalid("withdraw", "what it waits for is not a person", "waiting")
    _settle_wait(turn, key, "withdrawn", note=happening.reason)


def signal_arrived(turn: Turn, happening: SignalArrived) -> bool:
    """Answer the wait for it, or keep it (addressed only), or cancel the run if it says so.

    False: it was here before, or is none of its business.
    """
    seen = f"{'run' if happening.addressed else 'all'}\n{happening.signal}\n{happening.id}"
    if seen in turn.seen:
        return False
    if turn.status not in ACTIVE:
        if not happening.addressed:
            return False
        raise turn.invalid("signal", "it is settled", *sorted(ACTIVE))
    if cancels(turn, happening):
        return _cancel(turn, happening, seen)
    key = open_for(turn, happening.signal, happening.payload)
    if key is not None:
        record = turn.records[key]
        check_shape(record, happening.payload, f"signal {happening.signal!r} for run {turn.run.public_id}")
        _settle_wait(turn, key, "value", value=happening.payload)
    elif happening.addressed:
        _keep(turn, happening)
    else:
        return False
    if happening.remembered:
        _remember(turn, seen)
    return True


def _cancel(turn: Turn, happening: SignalArrived, seen: str) -> bool:
    """The signal is neither kept nor an answer: what it says is that nobody wants the run any more."""
    changed = cancel_asked(turn, CancelAsked(reason=f"signal {happening.signal}"))
    if happening.remembered and (changed or happening.addressed):
        _remember(turn, seen)  # also if it is being cancelled already: repeated later, it must not find it settled
        changed = True
    return changed


def _keep(turn: Turn, happening: SignalArrived) -> None:
    if len(turn.inbox) >= MAX_INBOX:
        raise turn.invalid("signal", f"its inbox holds {MAX_INBOX} signals that it has not taken")
    number = turn.changed("arrivals") + 1
    message = Message(signal=happening.signal, payload=happening.payload, id=happening.id, at=turn.now)
    turn.change(arrivals=number)
    turn.put("inbox", f"{number:012d}", message)


def _remember(turn: Turn, seen: str) -> None:
    """Note the signal's id; now and then forget those that are older than a day."""
    if len(turn.seen) >= _PRUNE_ABOVE:
        turn.drop("seen", [key for key, at in turn.seen.items() if at <= turn.now - SEEN_FOR])
    turn.put("seen", seen, turn.now)


def _settle_wait(
    turn: Turn, key: str, outcome: Outcome, *, value: bytes | None = None, note: str | None = None
) -> None:
    turn.resolve(key, outcome, value=value, note=note)
    turn.wake()


def _find(turn: Turn, action: str, happening: Answered | Withdrawn) -> str:
    """Key of the open wait that is meant."""
    if happening.token is not None:
        return _find_by_token(turn, happening.token)
    step, wait = happening.step, happening.wait
    waits = [key for key, record in turn.records.items() if record.outcome is None and _is_meant(wait, key, record)]
    if turn.status not in ACTIVE or not waits or (step is not None and step != turn.current_step):
        named = "" if wait is None else f" under the name or key {wait!r}"
        where = "nothing waits for an answer" if step is None else f"step {step} waits for nothing"
        raise turn.invalid(action, where + named, "waiting")
    if len(waits) > 1:
        raise turn.invalid(
            action, f"{len(waits)} waits are open: say which by its token, or by wait= its name or key", "waiting"
        )
    return waits[0]


def _is_meant(wait: str | None, key: str, record: Record) -> bool:
    return wait is None or wait == key or (wait == record.name and wait != "")


def _find_by_token(turn: Turn, token: str) -> str:
    for key, record in turn.records.items():
        if record.outcome is None and any(hmac.compare_digest(token, known) for known in record.tokens):
            return key
    raise TokenInvalid("this token is unknown, used or expired")


def _title(record: Record) -> str:
    return record.name or record.reason or record.signal or record.kind
