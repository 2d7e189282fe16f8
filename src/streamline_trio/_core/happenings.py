"""What can happen to a run. `decide` turns a run and a happening into the next run.

Happenings that only the lease holder can bring about derive from `Held`: `decide` refuses them with `LeaseLost`
unless the run is leased to that worker under that fence. The others come from outside: from a worker that
claims, a client, an operator, another run.

Whatever is random or read from a clock is part of the happening (`roll`) or an argument of `decide` (`now`).
"""

from __future__ import annotations

import msgspec

from streamline_trio._core.documents import ErrorDoc, WaitKind


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
    token: str | None = None
    told: bool = False


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
    """

    step: str
    asks: tuple[Ask, ...]
    replayed: tuple[tuple[str, int], ...] = ()
    release: bool = False


class WaitOpened(Held, frozen=True, kw_only=True, gc=False):
    """A wait must be answerable before the handler unwinds."""

    step: str
    ask: Ask


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


class DeadlinePassed(Held, frozen=True, kw_only=True, gc=False):
    """The run's own deadline has passed and its handler has unwound."""


# --- from outside ------------------------------------------------------------------------------------------


class Claimed(Happening, frozen=True, kw_only=True, gc=False):
    """A worker takes the run. `lease_dead`: the worker that the present lease names is certainly gone."""

    worker: str
    lease_dead: bool = False
    max_recoveries: int = 5


class Migrated(Claimed, frozen=True, kw_only=True, gc=False):
    """A worker takes a run of another version; the plan that decides is that of the new one.

    `steps` maps the ids that steps shall have to those they are stored under; stored ones that it does not name are
    dropped. `outputs` are those that change, by new id; `state` is None if it stays.
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
    """Somebody answers a wait: by token digest, or the one open wait (of `step`, if given).

    `payload` None means that none was given, which a human wait does not accept.
    """

    payload: bytes | None = None
    token: str | None = None
    step: str | None = None


class Withdrawn(Happening, frozen=True, kw_only=True, gc=False):
    """Somebody withdraws a human wait."""

    token: str | None = None
    step: str | None = None
    reason: str | None = None


class SignalArrived(Happening, frozen=True, kw_only=True, gc=False):
    """A signal reaches the run. Addressed ones are kept until taken; broadcasts only answer open waits.

    `remembered`: the id may come again, so it is kept for a day.
    """

    signal: str
    payload: bytes
    id: str
    addressed: bool = True
    remembered: bool = True


class CancelAsked(Happening, frozen=True, kw_only=True, gc=False):
    """Somebody wants the run cancelled."""

    reason: str | None = None
    lease_dead: bool = False


class PauseAsked(Happening, frozen=True, kw_only=True, gc=False):
    """Somebody wants nothing more to begin."""

    reason: str | None = None


class UnpauseAsked(Happening, frozen=True, kw_only=True, gc=False):
    """Somebody wants a paused run to go on."""


class Rewound(Happening, frozen=True, kw_only=True, gc=False):
    """Somebody wants the run to go on from an earlier step, as if that and all later ones had not run."""

    to: str
    lease_dead: bool = False


class Retried(Happening, frozen=True, kw_only=True, gc=False):
    """Somebody wants what failed to be tried again, with fresh attempts."""
