"""What is written down while it happens: calls, bodies of handlers, faults; and what is stored in the end.

All instants are seconds of the machine's monotonic clock, which all processes share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

NEVER = 1e15
"""Later than any instant; unlike infinity it can be written as JSON."""

Outcome = Literal["ok", "fail", "info"]
"""As in Jepsen: it happened, it certainly did not, nobody knows."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of everything written down."""


class Request(Record, frozen=True, kw_only=True):
    """What a client asks of an engine; which fields count depends on the verb."""

    id: int
    verb: str
    job: int
    run: str = ""
    workflow: str = ""
    key: str = ""
    token: str = ""
    signal: str = ""
    payload: Any = None


class Reply(Record, frozen=True, kw_only=True):
    """What came of it. `value` is the run's id for a start and a `Seen` for a read."""

    id: int
    outcome: Outcome
    value: Any = None
    error: str = ""


class Invoked(Record, frozen=True, kw_only=True, tag="invoke"):
    """A line of the history: a call begins, through somebody's engine."""

    request: Request
    door: str
    at: float


class Completed(Record, frozen=True, kw_only=True, tag="complete"):
    """A line of the history: a call ends."""

    reply: Reply
    at: float


class Call(Record, frozen=True, kw_only=True):
    """Both lines together; a call that nobody heard the end of is `info` and ends never."""

    request: Request
    door: str
    invoked: float
    reply: Reply
    ended: float

    @property
    def outcome(self) -> Outcome:
        return self.reply.outcome


class Seen(Record, frozen=True, kw_only=True):
    """A run as a client reads it. `done` has the outputs of the finished steps."""

    id: str
    job: int
    workflow: str
    key: str
    status: str
    revision: int
    fence: int
    recoveries: int
    paused: bool
    leased: bool
    waits_for: str = ""
    error: str = ""
    created_at: float
    ended_at: float | None
    state: Mapping[str, Any] = {}
    done: Mapping[str, Any] = {}
    attempts: Mapping[str, int] = {}
    skipped: Sequence[str] = ()
    commits: Sequence[int] = ()
    """Ids of the last commits, in the order in which they were stored; told only in the end."""


class Entered(Record, frozen=True, kw_only=True, tag="entered"):
    """The body of a handler begins; `entry` is its name in the whole world."""

    entry: str
    run: str
    step: str
    generation: int
    attempt: int
    fence: int
    pid: int
    at: float


class Left(Record, frozen=True, kw_only=True, tag="left"):
    """It ends, however."""

    entry: str
    how: Literal["returned", "failed", "unwound"]
    at: float


class Did(Record, frozen=True, kw_only=True, tag="did"):
    """It does something to the world, or tells what it has learned."""

    entry: str
    run: str
    what: str
    value: Any = None
    at: float


class Stalled(Record, frozen=True, kw_only=True, tag="stalled"):
    """The event loop of a process stood still."""

    pid: int
    since: float
    until: float


class Retired(Record, frozen=True, kw_only=True, tag="retired"):
    """The worker of a process has given up its id: it has found out that its lease is over."""

    pid: int
    at: float


class Stuck(Record, frozen=True, kw_only=True, tag="stuck"):
    """A call to the store took long: another process held the lock, the disk or the server was slow."""

    pid: int
    call: str = ""
    since: float
    until: float


class Died(Record, frozen=True, kw_only=True, tag="died"):
    """The process kills itself, at a write of its own choice."""

    pid: int
    at: float


Line = Entered | Left | Did | Stalled | Retired | Stuck | Died


class Fault(Record, frozen=True, kw_only=True):
    """What the nemesis did to a process: `since` it was sent, `until` it was over (or the process gone).

    `outage`: nobody could reach the server. It is of no process.
    """

    kind: Literal["killed", "frozen", "left", "outage"]
    pid: int
    since: float
    until: float


class Harm(Record, frozen=True, kw_only=True):
    """How much is done, or to be done: processes killed, processes frozen, the server killed and started again."""

    kills: int
    freezes: int
    restarts: int = 0

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.kills, self.freezes, self.restarts


class Job(Record, frozen=True, kw_only=True):
    """What one client is to do: start a run of this shape, and what else to do to it. It is the run's input."""

    number: int
    shape: str
    pace: float
    times: int = 1
    twins: int = 1
    again: bool = False
    rivals: int = 1
    answered: bool = True
    cancel_after: float | None = None
    pause_after: float | None = None
    pause_for: float = 0.0

    @property
    def key(self) -> str:
        return f"job-{self.number}"


class Story(Record, frozen=True, kw_only=True):
    """All that is known afterwards; a function of it says whether every promise was kept."""

    jobs: Sequence[Job]
    calls: Sequence[Call]
    lines: Sequence[Line]
    faults: Sequence[Fault]
    finals: Sequence[Seen]
    lease: float
    poll: float
    exits: Mapping[int, int | None] = {}
    """By pid: the status of every process that was not killed."""
