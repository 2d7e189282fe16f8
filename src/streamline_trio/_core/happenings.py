"""What can happen to a run. `decide` turns a run and a happening into the next run.

Happenings that only the lease holder can bring about derive from `Held`: `decide` refuses them with `LeaseLost`
unless the run is leased to that worker under that fence. The others come from outside: from a worker that
claims, a client, an operator, another run.

Whatever is random or read from a clock is part of the happening (`roll`) or an argument of `decide` (`now`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from streamline_trio._core.documents import ErrorDoc, SlotDoc, WaitKind


class Happening(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of all happenings."""


class Held(Happening, frozen=True, kw_only=True, gc=False):
    """Brought about by the lease holder."""

    worker: str
    fence: int


class Ask(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a handler asks for when it suspends; becomes a `Record`. `key` matches it on re-entry."""

    key: str
    kind: WaitKind
    ask: str
    place: int
    due_at: int | None = None
    name: str = ""
    reason: str = ""
    signal: str = ""
    match: bytes | None = None
    shape: bytes | None = None
    meta: bytes | None = None
    approval: bool = False
    token: str | None = None
    told: bool = False
    unwound: bool = False
    group: str = ""
    policy: str = ""
    branches: int = 0
    started: int = 0
    concurrency: int | None = None
    keeps_losers: bool = False


# --- of the lease holder -----------------------------------------------------------------------------------


class Finished(Held, frozen=True, kw_only=True, gc=False):
    """The step's handler returned. `release`: the worker is leaving, so nothing further begins here."""

    step: str
    output: bytes
    release: bool = False


class Skipped(Held, frozen=True, kw_only=True, gc=False):
    """The step's predicates said no."""

    step: str
    release: bool = False


class AttemptFailed(Held, frozen=True, kw_only=True, gc=False):
    """The step's handler failed. `roll` in [0, 1) is the randomness of the backoff's jitter."""

    step: str
    error: ErrorDoc
    retriable: bool
    roll: float = 0.5
    release: bool = False


class Suspended(Held, frozen=True, kw_only=True, gc=False):
    """The step's handler has unwound in order to wait for these.

    `replayed` are the keys and places of records of earlier attempts whose outcomes this entry was given.
    `kept` are the open records of scatter keys that wait on without having been called.
    """

    step: str
    asks: tuple[Ask, ...]
    replayed: tuple[tuple[str, int], ...] = ()
    kept: tuple[str, ...] = ()
    release: bool = False


class WaitOpened(Held, frozen=True, kw_only=True, gc=False):
    """A wait must be answerable before the handler unwinds."""

    step: str
    ask: Ask


class WaitsOpened(Held, frozen=True, kw_only=True, gc=False):
    """Scatter keys have unwound to wait for these, while others still run."""

    step: str
    asks: tuple[Ask, ...]


class TimeCame(Held, frozen=True, kw_only=True, gc=False):
    """The time of these open records has come while other scatter keys still run."""

    step: str
    keys: tuple[str, ...]


class PieceSaved(Held, frozen=True, kw_only=True, gc=False):
    """A part of the step has come to its end: a scatter key, an iteration or a whole loop, an emission.

    `records` and `pieces` are what lies within it, which nobody will ask for again.
    """

    step: str
    path: str
    value: bytes
    round: int = 0
    done: bool = False
    records: tuple[str, ...] = ()
    pieces: tuple[str, ...] = ()


class BranchesStarted(Held, frozen=True, kw_only=True, gc=False):
    """The first `started` branches of a join, or the child, are stored."""

    step: str
    key: str
    group: str
    started: int


class WentTo(Held, frozen=True, kw_only=True, gc=False):
    """The step's handler has unwound in order to go on at another step."""

    step: str
    target: str
    release: bool = False


class StateSet(Held, frozen=True, kw_only=True, gc=False):
    """The run's state has a new value."""

    state: bytes


class CheckpointSaved(Held, frozen=True, kw_only=True, gc=False):
    """The step saved a named value."""

    step: str
    name: str
    value: bytes


class Memoized(Held, frozen=True, kw_only=True, gc=False):
    """A function that shall run once has run."""

    step: str
    key: str
    value: bytes


class HandedBack(Held, frozen=True, kw_only=True, gc=False):
    """The worker leaves; the handler has unwound and nothing of it counts."""


class CancelUnwound(Held, frozen=True, kw_only=True, gc=False):
    """The handler of a run that shall be cancelled has unwound."""

    release: bool = False


class DeadlinePassed(Held, frozen=True, kw_only=True, gc=False):
    """The run's own deadline has passed and its handler has unwound."""

    release: bool = False


class Undone(Held, frozen=True, kw_only=True, gc=False):
    """The step's compensation returned."""

    step: str
    release: bool = False


class UndoFailed(Held, frozen=True, kw_only=True, gc=False):
    """The step's compensation failed; `roll` as of a failed attempt."""

    step: str
    error: ErrorDoc
    retriable: bool
    roll: float = 0.5
    release: bool = False


# --- from outside ------------------------------------------------------------------------------------------


class Claimed(Happening, frozen=True, kw_only=True, gc=False):
    """A worker takes the run. `lease_dead`: the worker that the present lease names is certainly gone.

    `begins_at` is the instant that the run's throttle has noted for its begin, which is then the present. `slot`
    and `throttle` are what a draft has to pass that was stored before its workflow had such a limit.
    """

    worker: str
    lease_dead: bool = False
    max_recoveries: int = 5
    begins_at: int | None = None
    slot: SlotDoc | None = None
    throttle: str = ""


class Migrated(Claimed, frozen=True, kw_only=True, gc=False):
    """A worker takes a run of another version; the plan that decides is that of the new one.

    `steps` maps the ids that steps shall have to those they are stored under; stored ones that it does not name are
    dropped. `outputs` are those that change, by new id; `state` is None if it stays. `slot` is also for a
    run that has begun.
    """

    steps: dict[str, str]
    current_step: str | None
    outputs: dict[str, bytes] = {}
    state: bytes | None = None


class LeaseLapsed(Happening, frozen=True, kw_only=True, gc=False):
    """The worker `lost`, which the lease names, is certainly gone; `worker` found that and has not the code."""

    worker: str
    lost: str
    max_recoveries: int = 5


class Answered(Happening, frozen=True, kw_only=True, gc=False):
    """Somebody answers a wait: by token digest, or the one open wait (of `step`, of the name or key `wait`).

    `payload` None means that none was given, which a human wait does not accept. Only waits for people can be
    approved or rejected.
    """

    payload: bytes | None = None
    token: str | None = None
    step: str | None = None
    wait: str | None = None
    verb: Literal["resume", "approve", "reject"] = "resume"


class Withdrawn(Happening, frozen=True, kw_only=True, gc=False):
    """Somebody withdraws a human wait, told as in `Answered`."""

    token: str | None = None
    step: str | None = None
    wait: str | None = None
    reason: str | None = None


class SignalArrived(Happening, frozen=True, kw_only=True, gc=False):
    """A signal reaches the run. Addressed ones are kept until taken; broadcasts only answer open waits.

    `remembered`: the id may come again, so it is kept for a day. Of a broadcast `at` is the instant: it cancels no
    run that was started later.
    """

    signal: str
    payload: bytes
    id: str
    addressed: bool = True
    remembered: bool = True
    at: int | None = None


class CancelAsked(Happening, frozen=True, kw_only=True, gc=False):
    """Somebody wants the run cancelled.

    `stops_undoing`: also if it is compensating, which leaves the rest undone. Only a person can want that: what
    the engine does by itself, and perhaps twice, must not cut short the undoing that it has brought about.
    """

    reason: str | None = None
    lease_dead: bool = False
    stops_undoing: bool = False


class PauseAsked(Happening, frozen=True, kw_only=True, gc=False):
    """Somebody wants nothing more to begin."""

    reason: str | None = None


class UnpauseAsked(Happening, frozen=True, kw_only=True, gc=False):
    """Somebody wants a paused run to go on."""


class TakenUp(Happening, frozen=True, kw_only=True, gc=False):
    """Somebody wants a run to go on that may have settled.

    If it needs a slot for that, `acquisition` and `ticket` are those of the new wish; `bucket` is given for a run
    that has none on record, and so is `throttle`.
    """

    acquisition: int = 0
    ticket: int = 0
    bucket: str = ""
    throttle: str = ""


class Rewound(TakenUp, frozen=True, kw_only=True, gc=False):
    """Somebody wants the run to go on from an earlier step, as if that and all later ones had not run."""

    to: str
    lease_dead: bool = False


class Slotted(Happening, frozen=True, kw_only=True, gc=False):
    """The run's throttle has told when it may begin. `held`: later than it could have."""

    at: int
    held: bool


class Bumped(Happening, frozen=True, kw_only=True, gc=False):
    """A debounced workflow was started again while this draft is pending; the plan is that of the new start.

    `slot` is what the new input has to ask for, where the workflow has a limit; `causes` what started it.
    """

    input: bytes
    state: bytes
    slot: SlotDoc | None = None
    causes: tuple[int, ...] = ()


class OutputPinned(Happening, frozen=True, kw_only=True, gc=False):
    """A finished step shall have an earlier output again; by the holder under `fence`, if `worker` is given."""

    step: str
    version: int
    worker: str | None = None
    fence: int = 0


class Retried(TakenUp, frozen=True, kw_only=True, gc=False):
    """Somebody wants what failed to be tried again, with fresh attempts."""


class SlotGranted(Happening, frozen=True, kw_only=True, gc=False):
    """The bucket has an entry of the run under this acquisition."""

    acquisition: int


class SlotRefused(Happening, frozen=True, kw_only=True, gc=False):
    """There is no slot for a run that does not queue; `holding` are taken."""

    acquisition: int
    holding: int = 0


class SlotAsked(TakenUp, frozen=True, kw_only=True, gc=False):
    """Somebody who wants to take a settled run up again needs a slot for it first, and waits for the answer."""


class ChildEnd(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How a child settled: which one of which suspension, and of a single one its output."""

    key: str
    group: str
    index: int = 0
    status: str
    output: bytes | None = None
    output_step: str = ""
    error: ErrorDoc | None = None


class ChildrenEnded(Happening, frozen=True, kw_only=True, gc=False):
    """Children of the run have settled. Repeated, or in another order, it comes to the same."""

    ends: tuple[ChildEnd, ...]


class ErrandsDone(Happening, frozen=True, kw_only=True, gc=False):
    """What these entries of the outbox ask for is done."""

    numbers: tuple[str, ...]


class ErrandsTaken(Happening, frozen=True, kw_only=True, gc=False):
    """Somebody takes up these entries of the outbox, as far as they are due."""

    numbers: tuple[str, ...]
