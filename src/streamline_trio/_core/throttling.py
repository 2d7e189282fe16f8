"""How often runs begin: the state of one throttle, and what it answers to runs that want to.

A sliding window over the last `limit` begins: a run may begin at `t` if fewer than `limit` began after `t -
window`, so that no window, wherever it is laid, holds more. That alone is the promise. Slots only say when a
draft should ask. A fresh one is told the instant that the line before it leaves free: the `limit`th slot before
it plus the window, and behind the last slot by its share of the window. One that asks in time and finds no room
waits for the little that is missing. One that is a share late or more, as after downtime or a pause, goes
behind those that were late before it. So nobody asks in vain more than now and then, and no burst follows.

A begin is recorded before the run is told. Should the run never hear of it, the record costs the window one
begin until the run asks again and takes its place; a record is never taken away for a run that may have begun
with it. The last begin is the bucket's clock: the clocks of several machines move it forward only.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from streamline_trio._core.documents import Doc, RunDoc, ThrottleDoc, unique_key
from streamline_trio._core.plan import Plan
from streamline_trio._core.start_options import ThrottlePlan
from streamline_trio._core.status import ACTIVE

KIND = "throttle"
"""The kind of the side documents."""

KEPT = 60_000
"""Milliseconds that an idle bucket is kept beyond its window, for clocks that are behind."""

_REMEMBERED = 100


class Begin(Doc, frozen=True, kw_only=True, array_like=True):
    """A begin that the run may not have heard of: which run, the how-manieth time it is taken up, and when."""

    run: str
    turn: int
    at: int


class Bucket(Doc, frozen=True, kw_only=True):
    """What is known of one throttle; instants in milliseconds, each row ascending and as long as the largest limit.

    `begins` are the last begins, `recent` those of them whose runs are still known. `slots` were given to drafts
    that have not begun, `late` to those that had come too late for theirs. `limit` and `window` are the largest of
    the versions that share it.
    """

    begins: tuple[int, ...] = ()
    slots: tuple[int, ...] = ()
    late: tuple[int, ...] = ()
    recent: tuple[Begin, ...] = ()
    limit: int = 0
    window: int = 0

    def forgotten_at(self) -> int:
        """When nothing in it matters any more."""
        return max((*self.begins[-1:], *self.slots[-1:], *self.late[-1:]), default=0) + self.window + KEPT


class Want(msgspec.Struct, frozen=True, kw_only=True):
    """A run that wants to begin: under which limit, its slot if it has one.

    `now`: there is a worker with a place for it; without, it only wants to know its slot.
    """

    run: str
    turn: int
    limit: int
    window: int
    slot: int | None = None
    now: bool = True


class Pass(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: it begins, as of this instant; or its slot, which was `free` at once or is still to come."""

    at: int
    answer: Literal["begins", "free", "held"]


def bucket_name(tenant: str | None, workflow: str, key: str | None) -> str:
    """The bucket's key: no two tenants, workflows or keys share one. Keys are never empty."""
    return unique_key(tenant, workflow, key or "")


def want_of(run: RunDoc, plan: Plan, *, now: bool) -> Want | None:
    """What the run wants of its throttle before it may begin; None if it has not to ask."""
    throttle, rate = run.head.throttle, plan.throttle
    if rate is None or throttle is None or throttle.stage == "begun":
        return None
    return _want(run, throttle, rate, now=now)


def is_held(run: RunDoc, at: int) -> bool:
    """Whether it is for its throttle to say that the run may begin: not if a claim does something else with it."""
    head = run.head
    return (
        head.throttle is not None
        and head.throttle.stage != "begun"
        and head.status in ACTIVE
        and head.lease is None
        and (head.slot is None or head.slot.state == "held")
        and not (head.paused or head.cancel_requested or head.status == "compensating")
        and (head.deadline is None or head.deadline > at)
    )


def _want(run: RunDoc, throttle: ThrottleDoc, rate: ThrottlePlan, *, now: bool) -> Want:
    return Want(
        run=run.origin.id,
        turn=throttle.turn,
        limit=rate.limit,
        window=math.ceil(rate.window * 1000),
        slot=None if throttle.stage == "new" else throttle.slot_at,
        now=now,
    )


def ask(bucket: Bucket, wants: Sequence[Want], now: int) -> tuple[Bucket, list[Pass]]:
    """Answer each in turn; the bucket as it is then."""
    passes: list[Pass] = []
    for want in wants:
        bucket, answer = _answer(bucket, want, now)
        passes.append(answer)
    return bucket, passes


def _answer(bucket: Bucket, want: Want, now: int) -> tuple[Bucket, Pass]:
    now = max((now, *bucket.begins[-1:]))
    bucket = msgspec.structs.replace(
        bucket, limit=max(bucket.limit, want.limit), window=max(bucket.window, want.window)
    )
    own = _own(bucket, want)
    others = bucket.begins if own is None else _less(bucket.begins, own.at)
    room_at = at = _room_at(others, want, now)
    if want.slot is None and (own is None or room_at > now):
        at = _fresh(bucket, others, want, now)
    elif want.slot is not None and room_at > now:
        at = _again(bucket, others, want, room_at, now)
    if at > now or not want.now:
        slots = _slotted(bucket, want, at, now)
        return slots, Pass(at=at, answer="held" if at > now else "free")
    return _begun(bucket, others, want, now), Pass(at=now, answer="begins")


def _own(bucket: Bucket, want: Want) -> Begin | None:
    """The begin that the run was given before, and did not hear of."""
    return next((begin for begin in bucket.recent if (begin.run, begin.turn) == (want.run, want.turn)), None)


def _room_at(begins: Sequence[int], want: Want, now: int) -> int:
    """From when on fewer than `limit` begins are in the window."""
    return now if len(begins) < want.limit else max(now, begins[-want.limit] + want.window)


def _fresh(bucket: Bucket, begins: Sequence[int], want: Want, now: int) -> int:
    """Behind everybody who has a slot."""
    line = sorted((*begins, *bucket.slots, *bucket.late))
    return _behind(line, want, now)


def _behind(line: Sequence[int], want: Want, now: int) -> int:
    at = _room_at(line, want, now)
    return max(at, line[-1] + _share(want)) if line and (at > now or line[-1] > now) else at


def _again(bucket: Bucket, begins: Sequence[int], want: Want, room_at: int, now: int) -> int:
    """A slot that came too early by less than its share is moved by that; others go behind those who were late."""
    assert want.slot is not None, "it has had a slot"
    if room_at < want.slot + _share(want):
        return room_at
    return _behind(sorted((*begins, *bucket.late)), want, now)


def _share(want: Want) -> int:
    """How far slots lie apart; not at all where the limit is more than one each millisecond."""
    return want.window // want.limit


def _slotted(bucket: Bucket, want: Want, at: int, now: int) -> Bucket:
    slots, late = bucket.slots, bucket.late
    comes_late = want.slot is not None and at - want.slot >= max(_share(want), 1)
    if want.slot is not None:
        slots, late = (_less(slots, want.slot), late) if want.slot in slots else (slots, _less(late, want.slot))
    if comes_late:
        late = _more(late, at)
    else:
        slots = _more(slots, at)
    return _trimmed(msgspec.structs.replace(bucket, slots=slots, late=late), now)


def _begun(bucket: Bucket, others: tuple[int, ...], want: Want, now: int) -> Bucket:
    own = _own(bucket, want)
    slots, late = bucket.slots, bucket.late
    if want.slot is not None:
        slots, late = (_less(slots, want.slot), late) if want.slot in slots else (slots, _less(late, want.slot))
    recent = (*(begin for begin in bucket.recent if begin is not own), Begin(run=want.run, turn=want.turn, at=now))
    return _trimmed(
        msgspec.structs.replace(
            bucket, begins=(*others, now), slots=slots, late=late, recent=recent[-_REMEMBERED:]
        ),
        now,
    )


def _trimmed(bucket: Bucket, now: int) -> Bucket:
    """Without what no window reaches any more."""
    over = now - bucket.window

    def rest(instants: tuple[int, ...]) -> tuple[int, ...]:
        return instants[bisect_right(instants, over) :][-bucket.limit :]

    return msgspec.structs.replace(
        bucket,
        # The last begin is the bucket's clock.
        begins=rest(bucket.begins) or bucket.begins[-1:],
        slots=rest(bucket.slots),
        late=rest(bucket.late),
        recent=tuple(begin for begin in bucket.recent if begin.at > over),
    )


def _less(instants: tuple[int, ...], one: int) -> tuple[int, ...]:
    found = list(instants)
    if one in instants:
        found.remove(one)
    return tuple(found)


def _more(instants: Iterable[int], one: int) -> tuple[int, ...]:
    found = list(instants)
    insort(found, one)
    return tuple(found)
