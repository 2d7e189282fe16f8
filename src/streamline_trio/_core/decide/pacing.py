"""When a run may begin: its throttle lets it, and its debounce has seen no further start for a while.

A run passes its throttle once each time it is taken up: when it begins, and after a retry or rewind of one that had
settled. Parked, recovered and handed over it has begun already.
"""

from __future__ import annotations

import math

import msgspec

from streamline_trio._core.decide.slotting import end_window
from streamline_trio._core.decide.turn import Turn
from streamline_trio._core.documents import DebounceDoc, ThrottleDoc
from streamline_trio._core.happenings import Bumped, Claimed, Slotted, TakenUp
from streamline_trio._core.plan import Plan
from streamline_trio._core.status import SETTLED

_CAUSES = 100

_replace = msgspec.structs.replace


def slotted(turn: Turn, happening: Slotted) -> bool:
    """The run wants to begin at its slot; its timeout counts from there."""
    throttle = turn.head.throttle
    if throttle is None or throttle.stage == "begun" or turn.lease is not None or turn.status in SETTLED:
        raise turn.invalid("slot", "it does not wait for its throttle", "draft", "running")
    stage = "held" if happening.held else "free"
    if (throttle.stage, throttle.slot_at) == (stage, happening.at):
        return False
    turn.change(throttle=_replace(throttle, stage=stage, slot_at=happening.at))
    _move_deadline(turn, happening.at)
    return True


def pass_throttle(turn: Turn, happening: Claimed) -> None:
    """The run begins, as of the instant that its throttle has noted; nothing begins without that."""
    throttle = turn.head.throttle
    if throttle is None or throttle.stage == "begun":
        return
    if happening.begins_at is None and turn.plan.throttle is not None:
        raise turn.invalid("claim", "its throttle has not let it begin", "running", "waiting")
    turn.change(throttle=_replace(throttle, stage="begun", slot_at=turn.now))
    _move_deadline(turn, turn.now)


def meet_throttle(turn: Turn, happening: Claimed) -> bool:
    """Instead of being taken: a draft that knows of no throttle has to pass one. False if it has not."""
    if turn.status != "draft" or turn.head.throttle is not None or not happening.throttle:
        return False
    turn.change(throttle=first_throttle(happening.throttle, look_at=None))
    end_window(turn)
    return True


def enter_again(turn: Turn, happening: TakenUp) -> None:
    """A settled run is taken up: it passes its throttle anew."""
    throttle = turn.head.throttle
    if turn.head.status not in SETTLED:
        return
    if throttle is None and happening.throttle and turn.plan.throttle is not None:
        turn.change(throttle=first_throttle(happening.throttle, look_at=None))
    elif throttle is not None and throttle.stage == "begun":
        turn.change(throttle=_replace(throttle, stage="new", slot_at=None, turn=throttle.turn + 1))


def first_debounce(key: str, plan: Plan, now: int, causes: tuple[int, ...] = ()) -> DebounceDoc:
    """That of a draft whose first start is now."""
    longest = None if plan.debounce is None else plan.debounce.max_wait
    until_at = None if longest is None else now + _millis(longest)
    return DebounceDoc(key=key, first_at=now, until_at=until_at, causes=causes[-_CAUSES:])


def fires_at(debounce: DebounceDoc, plan: Plan, now: int) -> int:
    """When a draft begins whose last start is now."""
    at = now + (0 if plan.debounce is None else _millis(plan.debounce.window))
    return at if debounce.until_at is None else min(at, debounce.until_at)


def bumped(turn: Turn, happening: Bumped) -> None:
    """A further start: the pending draft takes its input and version, and begins later, but never sooner."""
    debounce = turn.head.debounce
    if debounce is None or debounce.fired or turn.status != "draft" or turn.lease is not None:
        raise turn.invalid("bump", "its window is over", "draft")
    turn.origin = _replace(turn.origin, input=happening.input)
    turn.state = happening.state
    at = max(fires_at(debounce, turn.plan, turn.now), turn.head.start_at or 0)
    turn.change(
        debounce=_replace(
            debounce, starts=debounce.starts + 1, causes=(*debounce.causes, *happening.causes)[-_CAUSES:]
        ),
        slot=happening.slot,
        start_at=at,
        version=turn.plan.version,
        fingerprint=turn.plan.fingerprint,
        cancelled_by=turn.plan.cancel_signals,
        deadline=None if turn.plan.timeout is None else at + _millis(turn.plan.timeout),
    )


def first_throttle(bucket: str, *, look_at: int | None) -> ThrottleDoc:
    """That of a run that is new; from `look_at` on anybody sees to its slot (None: as soon as it is due)."""
    return ThrottleDoc(bucket=bucket, slot_at=look_at)


def _move_deadline(turn: Turn, at: int) -> None:
    limit = turn.plan.timeout
    if turn.head.deadline is not None and limit is not None:
        turn.change(deadline=at + _millis(limit))


def _millis(seconds: float) -> int:
    return math.ceil(seconds * 1000)
