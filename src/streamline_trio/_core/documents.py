"""The documents: what the engine stores of a run, as immutable structs.

    RunDoc
      origin        what start() was told; written once
      head          what nearly every commit changes; small
      state         the run's durable state               (user payload)
      steps         step id            -> StepDoc          only steps that have begun
      records       suspension key     -> Record           of the current step only
      pieces        path in the step   -> Piece            of the current step only: scatter keys, loops, emissions
      checkpoints   step id/name       -> payload
      memos         key                -> Memo             results of `once`
      outbox        number             -> Errand           what is still to be done elsewhere
      inbox         arrival number     -> Message          signals nobody has taken yet
      seen          signal key         -> instant          for deduplication

User values (input, state, outputs, signal payloads) are opaque msgpack bytes here: immutable, of known size,
decoded only at the edge. Instants are whole milliseconds since the epoch. Fields are only ever added, and
always with a default, so that documents of every earlier release still load.

The dicts are never changed in place: a commit makes a new dict for what it changes and shares the rest, so that
comparing two versions of a run by identity finds what changed (see `diff`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from streamline_trio._core.status import RunStatus, StepStatus
from streamline_trio._core.tenancy import public_id

WaitKind = Literal["timer", "human", "signal", "child", "join"]
Outcome = Literal["value", "fired", "timed_out", "withdrawn", "failed"]
FAILED_OUTCOMES: frozenset[str] = frozenset({"timed_out", "withdrawn", "failed"})
CompensationStatus = Literal["pending", "running", "done", "failed"]

KEPT_COMMITS = 16
KEPT_TRIES = 20
KEPT_WAITS = 20


class Doc(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Base of everything stored."""


class ErrorDoc(Doc, frozen=True, kw_only=True):
    """Why a step or run failed."""

    code: str
    message: str
    type: str = ""
    step: str | None = None
    traceback: str | None = None


class Lease(Doc, frozen=True, kw_only=True):
    """Who may drive the run: the worker, under the fence it was claimed with."""

    worker: str
    fence: int


class Try(Doc, frozen=True, kw_only=True):
    """One call of a handler that did not finish its step."""

    attempt: int
    worker: str
    started_at: int
    ended_at: int
    outcome: Literal["failed", "crashed"]
    code: str = ""
    message: str = ""


class WaitNote(Doc, frozen=True, kw_only=True):
    """A wait that is over, kept for the timeline; `dropped`: its step ended, or was reset, without it."""

    kind: WaitKind
    name: str
    opened_at: int
    resolved_at: int
    outcome: Outcome | Literal["dropped"]


class CompensationDoc(Doc, frozen=True, kw_only=True):
    """How the undoing of a step stands; `attempts` and `failures` as of a step."""

    status: CompensationStatus = "pending"
    attempts: int = 0
    failures: int = 0
    started_at: int | None = None
    ended_at: int | None = None
    worker: str | None = None
    error: ErrorDoc | None = None
    retry_at: int | None = None
    tries: tuple[Try, ...] = ()


class OutputVersion(Doc, frozen=True, kw_only=True):
    """An output that a later run of the step has replaced; `version` counts from 1."""

    version: int
    output: bytes
    at: int
    attempts: int = 0


class StepDoc(Doc, frozen=True, kw_only=True):
    """A step that has begun at least once.

    `attempts` counts calls of the handler, `failures` those that failed: only failures exhaust the limit.
    `generation` grows by each goto and rewind over the step, `position` orders finished steps. `keyed` is the id
    that its idempotency keys are made of, if a migration has renamed it since it began. `undoable`: there was a
    compensation of it when it began; `copied`: another run did it, of which this one is a fork.
    """

    status: StepStatus = "pending"
    attempts: int = 0
    failures: int = 0
    generation: int = 0
    position: int = 0
    started_at: int | None = None
    ended_at: int | None = None
    worker: str | None = None
    output: bytes | None = None
    error: ErrorDoc | None = None
    retry_at: int | None = None
    tries: tuple[Try, ...] = ()
    waits: tuple[WaitNote, ...] = ()
    history: tuple[OutputVersion, ...] = ()
    pinned: int | None = None
    pinned_at: int | None = None
    compensation: CompensationDoc | None = None
    keyed: str = ""
    undoable: bool = False
    copied: bool = False


class Record(Doc, frozen=True, kw_only=True):
    """One suspension of the current step: what was asked, and its outcome once there is one.

    `ask` is what must be the same when the handler is entered again; `attempt` and `place` say which call of
    the handler asked it, and as its how-manieth suspension. `tokens` are SHA-256 digests in hex; `told` says that
    the handler has passed its token on, `unwound` that it is a scatter key that has unwound to wait for this.

    Of a child `group` is its run's id. Of a join `group` is what the ids of its branches begin with, `branches`
    how many there are, `started` how many have been started, in order; `ended` and `good` are sets of branch
    numbers (bit n of the number in hex), `error` is that of the branch that decided.
    """

    kind: WaitKind
    ask: str
    attempt: int
    place: int
    opened_at: int
    due_at: int | None = None
    name: str = ""
    reason: str = ""
    signal: str = ""
    match: bytes | None = None
    shape: bytes | None = None
    meta: bytes | None = None
    approval: bool = False
    tokens: tuple[str, ...] = ()
    told: bool = False
    unwound: bool = False
    outcome: Outcome | None = None
    value: bytes | None = None
    note: str | None = None
    resolved_at: int | None = None
    group: str = ""
    policy: str = ""
    branches: int = 0
    started: int = 0
    concurrency: int | None = None
    keeps_losers: bool = False
    ended: str = ""
    good: str = ""
    status: str = ""
    error: ErrorDoc | None = None

    @property
    def is_open(self) -> bool:
        """Whether it still waits for its outcome."""
        return self.outcome is None


class Piece(Doc, frozen=True, kw_only=True):
    """A part of the current step that has come to its end.

    The result of a scatter key, the state of a loop after `round` iterations (`done`: its value), or that something
    was emitted.
    """

    value: bytes
    round: int = 0
    done: bool = False


class Memo(Doc, frozen=True, kw_only=True):
    """The remembered result of `once`, and the step that made it (rewind forgets by step)."""

    step: str
    value: bytes


class Message(Doc, frozen=True, kw_only=True):
    """A signal addressed to this run that nobody has taken yet."""

    signal: str
    payload: bytes
    id: str
    at: int


class Parent(Doc, frozen=True, kw_only=True):
    """The run and step that started this run.

    `key` and `group` name the suspension there that waits for it, `branch` and `index` which branch of a join it
    is; `generation` is the step's. `detached`: it may outlive the join, as a loser that is not cancelled.
    """

    run: str
    step: str
    key: str = ""
    group: str = ""
    branch: str = ""
    index: int = 0
    generation: int = 0
    detached: bool = False


class ForkedFrom(Doc, frozen=True, kw_only=True):
    """The run that this one is a fork of, and the step it began at."""

    run: str
    step: str


SlotState = Literal["later", "asked", "queued", "held", "left"]
WANTS_SLOT: frozenset[str] = frozenset({"asked", "queued"})


class SlotDoc(Doc, frozen=True, kw_only=True):
    """How a run of a workflow with a `Concurrency` stands to its bucket of slots.

    `later`: it asks at its start time; `queued`: it waits in line; `asked`: a worker is to say yes or no; `held`;
    `left`: the run has settled. `acquisition` names one wish for a slot, each another; `ticket` orders the queue.
    `attended`: who asked waits for the answer, so that a draft that is refused is removed instead of failed.
    """

    bucket: str
    limit: int
    acquisition: int
    ticket: int
    state: SlotState
    rejects: bool = False
    attended: bool = False


class Errand(Doc, frozen=True, kw_only=True):
    """Something to be done elsewhere because of what was committed here; doing it twice does no harm.

    `nudge`: tell the run `run` that its child `index` of `group` has settled. `cancel`: cancel the child `group`,
    or of a join the branches (`branches` of them) that have not `ended`. `admit`: see whether the bucket `key` has
    a slot for its queue; `release`: give `acquisition` back to it. Whoever committed it does it at once; from
    `due_at` any worker may.
    """

    kind: Literal["nudge", "cancel", "admit", "release"]
    due_at: int
    attempts: int = 0
    run: str = ""
    key: str = ""
    group: str = ""
    index: int = 0
    branches: int = 0
    ended: str = ""
    status: str = ""
    output: bytes | None = None
    output_step: str = ""
    error: ErrorDoc | None = None
    reason: str = ""
    acquisition: int = 0


class Scheduled(Doc, frozen=True, kw_only=True):
    """What the caller asked of the start's time, and what the zone's rules made of it.

    `schedule` is the id of the schedule that started the run, if one did.
    """

    at: int
    local: str = ""
    zone: str = ""
    gap: bool = False
    fold: bool = False
    schedule: str = ""


class ThrottleDoc(Doc, frozen=True, kw_only=True):
    """How the run stands with the throttle of its workflow, in this bucket.

    It is `new` until it has a slot, which was `free` at once or for which it is `held`; then it has `begun`. From
    `slot_at` on it wants to begin; of a new one, somebody should see to its slot (None: at once). `turn` counts how
    often it was taken up again after it had settled, and had to pass anew.
    """

    bucket: str
    stage: Literal["new", "free", "held", "begun"] = "new"
    slot_at: int | None = None
    turn: int = 0


class DebounceDoc(Doc, frozen=True, kw_only=True):
    """The run was started by starts that followed each other: so many, the first at `first_at`.

    While it is pending it holds `key`, and each further start puts it off, but not beyond `until_at`. `fired`: its
    window is over and it has not begun, since it waits for something else. `causes`: the last of the broadcasts and
    firings that went into it, for those who repeat them.
    """

    key: str
    first_at: int
    until_at: int | None = None
    starts: int = 1
    fired: bool = False
    causes: tuple[int, ...] = ()


class Origin(Doc, frozen=True, kw_only=True):
    """What a run was started with; never changes, but for the input while a draft is debounced.

    `id` is the stored one, which contains the tenant. `emission` is the key of the broadcast that triggered it.
    """

    id: str
    workflow: str
    start_id: int
    created_at: int
    input: bytes
    tenant: str | None = None
    priority: int = 0
    user: str | None = None
    tags: tuple[str, ...] = ()
    meta: bytes | None = None
    idempotency_key: str | None = None
    parent: Parent | None = None
    scheduled: Scheduled | None = None
    forked_from: ForkedFrom | None = None
    emission: str = ""


class Head(Doc, frozen=True, kw_only=True):
    """The part of a run that nearly every commit changes.

    `revision` grows by each commit, `fence` by each claim. `streak` counts recoveries without progress,
    `finished` numbers finished steps, `arrivals` numbers inbox messages. `attention` marks that somebody else
    committed something that the holder has not seen; `ready_at` is since when a run that needs a worker has one
    to wait for; `retried` that it was taken up again and has not settled since. `commits` are the ids of the last
    commits, newest last. `errand_at` is when the first of the outbox falls to any worker, `errands` numbers them.
    `undo` are the steps that are still to be compensated, the one that is being compensated first; what a
    cancellation left undone stays there. `slot` is there if the workflow limits how many runs go on at a time.
    `cancelled_by` are the signals that cancel it, by which it is found.
    """

    version: str
    fingerprint: str
    status: RunStatus
    updated_at: int
    revision: int = 1
    fence: int = 0
    lease: Lease | None = None
    due_at: int | None = None
    current_step: str | None = None
    started_at: int | None = None
    ended_at: int | None = None
    start_at: int | None = None
    ready_at: int | None = None
    deadline: int | None = None
    paused: bool = False
    pause_reason: str | None = None
    cancel_requested: bool = False
    cancel_reason: str | None = None
    attention: bool = False
    recoveries: int = 0
    streak: int = 0
    dead_lettered: bool = False
    retried: bool = False
    error: ErrorDoc | None = None
    output_step: str | None = None
    finished: int = 0
    arrivals: int = 0
    errands: int = 0
    errand_at: int | None = None
    undo: tuple[str, ...] = ()
    cancelled_by: tuple[str, ...] = ()
    commits: tuple[int, ...] = ()
    slot: SlotDoc | None = None
    throttle: ThrottleDoc | None = None
    debounce: DebounceDoc | None = None


class RunDoc(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A whole run. Stores load and save it part by part; see the module's docstring."""

    origin: Origin
    head: Head
    state: bytes
    steps: dict[str, StepDoc] = {}
    records: dict[str, Record] = {}
    pieces: dict[str, Piece] = {}
    checkpoints: dict[str, bytes] = {}
    memos: dict[str, Memo] = {}
    inbox: dict[str, Message] = {}
    seen: dict[str, int] = {}
    outbox: dict[str, Errand] = {}

    @property
    def id(self) -> str:
        """The id that the run is stored under."""
        return self.origin.id

    @property
    def public_id(self) -> str:
        """The id that its tenant knows it by; the same for a run without a tenant."""
        return self.origin.id if self.origin.tenant is None else public_id(self.origin.id)

    def step(self, step_id: str) -> StepDoc:
        """The step's document; one that has not begun is pending."""
        return self.steps.get(step_id) or PENDING


PENDING = StepDoc()


def queued_in(head: Head) -> str | None:
    """The bucket whose next free slot the run waits for, if it does; one that is paused is passed over."""
    slot = head.slot
    return None if slot is None or slot.state != "queued" or head.paused else slot.bucket


def active_key(run: RunDoc) -> str | None:
    """The uniqueness key that an active run holds, or None.

    At most one active run exists per (tenant, workflow, idempotency key); the settling write gives it up. At
    most one debounced draft is pending per key; the write that ends its window gives that up. No run has both.
    """
    origin, debounce = run.origin, run.head.debounce
    if debounce is not None:
        return debounce.key if run.head.status == "draft" and not debounce.fired else None
    if origin.idempotency_key is None or run.head.status in _KEYLESS:
        return None
    return unique_key(origin.tenant, origin.workflow, origin.idempotency_key)


_KEYLESS = frozenset({"done", "failed", "cancelled", "compensated", "compensation_failed"})


def unique_key(tenant: str | None, workflow: str, key: str) -> str:
    """The stored form of an idempotency key: unambiguous, since ids hold no newline and tenants are quoted."""
    scope = "" if tenant is None else "t" + tenant.replace("\\", "\\\\").replace("\n", "\\n")
    return f"{scope}\n{workflow}\n{key}"


def debounce_key(tenant: str | None, workflow: str, key: str | None) -> str:
    """The stored form of a debounce's key (None: that of the workflow); no idempotency key's: ids hold no slash."""
    return unique_key(tenant, f"{workflow}/debounce", key or "")


def open_tokens(run: RunDoc) -> tuple[str, ...]:
    """Digests of the tokens that answer an open wait of this run."""
    return tuple(t for r in run.records.values() if r.outcome is None for t in r.tokens)


def awaited_signals(run: RunDoc) -> tuple[str, ...]:
    """Names of the signals that open waits of this run wait for, each once."""
    return tuple({r.signal: None for r in run.records.values() if r.outcome is None and r.kind == "signal"})


def heard_signals(run: RunDoc) -> tuple[str, ...]:
    """Names of the signals whose broadcasts concern this run: it waits for them, or they cancel it."""
    cancelling = run.head.cancelled_by if run.head.status not in _KEYLESS else ()
    return tuple(dict.fromkeys((*awaited_signals(run), *cancelling)))


def waiting_kinds(run: RunDoc) -> tuple[WaitKind, ...]:
    """Kinds of the run's open waits, each once, in a fixed order."""
    kinds = {r.kind for r in run.records.values() if r.outcome is None}
    return tuple(kind for kind in _KIND_ORDER if kind in kinds)


_KIND_ORDER: tuple[WaitKind, ...] = ("human", "signal", "timer", "child", "join")
