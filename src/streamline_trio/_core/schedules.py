"""Schedules as documents, and the pure functions that change them.

    due ──► advance: what fires, is missed, made up, left out ──► firings stand in `pending`   (one guarded write)
                                                                         │
            completed: they leave `pending`  ◄── their runs are stored ◄─┘                    (one guarded write)

A firing is decided once, by the write that moves `after` past it; its run's id follows from the schedule and the
occurrence, so that whoever finds it in `pending` after a crash starts the same run, and no other. `after` only ever
grows, also when the rule changes. Instants are milliseconds since the epoch.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from itertools import chain, islice, takewhile
from typing import NamedTuple

import msgspec

from streamline_trio._core.documents import Doc, Scheduled
from streamline_trio._core.due import NOW
from streamline_trio._core.occurrences import Firing
from streamline_trio._core.recurrence import Recurrence, firings_after, is_known, number_between
from streamline_trio._core.tenancy import stored_id
from streamline_trio._core.zones import wall_text

SCHEDULES = "schedule"
"""The kind of the side documents."""
KEPT = 3_600_000
"""So long the document of a deleted schedule stays, and so do the runs that a schedule has started."""
MOST_MADE_UP = 10_000
AT_ONCE = 100
"""So many firings are decided in one write."""

_LEAST_GRACE = 1000
_COUNTED = 10_000
_MINUTE = 60_000
_ACTIVE_AT_MOST = 100

Name = tuple[int, int]
"""What a firing is known by in its schedule: the occurrence, and the number of one that was asked for."""


class FiringDoc(Doc, frozen=True, kw_only=True):
    """A firing that was decided. `at` is the occurrence; `asked` numbers those of `run_now`.

    Until `until` it is left to the worker that took it, the `tries`th.
    """

    at: int
    wall: int | None = None
    gap: bool = False
    fold: bool = False
    asked: int = 0
    until: int = NOW
    tries: int = 0

    @property
    def name(self) -> Name:
        """What it is known by in its schedule."""
        return self.at, self.asked


class ScheduleDoc(Doc, frozen=True, kw_only=True):
    """A schedule.

    `incarnation` tells it from an earlier one of the same id. Everything up to `after` is decided; `due` is when
    the next occurrence fires, jitter included. `spent` counts what `count` limits. `active` are runs that, when
    they were last looked at, had not settled; only kept where overlap matters.
    """

    id: str
    tenant: str | None = None
    incarnation: int
    workflow: str
    version: str | None = None
    input: bytes
    every: Recurrence
    jitter: int = 0
    priority: int = 0
    user: str | None = None
    tags: tuple[str, ...] = ()
    meta: bytes | None = None
    created_at: int
    updated_at: int
    anchor: int
    after: int
    due: int | None = None
    spent: int = 0
    paused: bool = False
    pause_reason: str | None = None
    pending: tuple[FiringDoc, ...] = ()
    queued: tuple[FiringDoc, ...] = ()
    active: tuple[str, ...] = ()
    asked: int = 0
    fired: int = 0
    missed: int = 0
    skipped: int = 0
    failed: int = 0
    last_at: int | None = None
    last_run: str | None = None
    last_error: str | None = None
    deleted_at: int | None = None


class Advance(NamedTuple):
    """The schedule afterwards, and the firings that whoever writes it is to carry out."""

    doc: ScheduleDoc
    firings: tuple[FiringDoc, ...]


def scope_of(tenant: str | None) -> str:
    """What the keys of a tenant's schedules begin with: no other tenant's do, since a newline in one is quoted."""
    return "\n" if tenant is None else "t" + tenant.replace("\\", "\\\\").replace("\n", "\\n") + "\n"


def key_of(schedule_id: str, tenant: str | None) -> str:
    """The key of the side document."""
    return scope_of(tenant) + schedule_id


def due_at(doc: ScheduleDoc) -> int | None:
    """When a worker should look at the schedule; None if only the outside can move it."""
    if doc.deleted_at is not None:
        return doc.deleted_at + KEPT
    times = [firing.until for firing in doc.pending]
    if not doc.paused:
        if doc.due is not None:
            times.append(doc.due)
        if doc.queued and not doc.pending:
            times.append(NOW)
    return min(times, default=None)


def is_foreign(doc: ScheduleDoc) -> bool:
    """Whether a newer release made it, with a rule that this one does not know: it is left alone."""
    return not is_known(doc.every)


# --- the runs ----------------------------------------------------------------------------------------------


def run_id_of(doc: ScheduleDoc, firing: FiringDoc) -> str:
    """The stored id of its run: always the same for one firing of one incarnation, and for no other."""
    what = msgspec.msgpack.encode(("run", doc.tenant, doc.id, doc.incarnation, firing.at, firing.asked))
    digest = hashlib.blake2b(what, digest_size=24).digest()[:16]  # of this size once, and ids must stay
    run_id = base64.b32hexencode(digest).decode().rstrip("=").lower()
    return stored_id(doc.tenant, run_id)


def scheduled_of(doc: ScheduleDoc, firing: FiringDoc) -> Scheduled:
    """What the run is told of its time."""
    if firing.wall is None:
        return Scheduled(at=firing.at, schedule=doc.id)
    return Scheduled(
        at=firing.at,
        local=wall_text(firing.wall),
        zone=doc.every.zone,
        gap=firing.gap,
        fold=firing.fold,
        schedule=doc.id,
    )


# --- firing ------------------------------------------------------------------------------------------------


def advance(doc: ScheduleDoc, now: int, *, until: int, settled: AbstractSet[str] = frozenset()) -> Advance:
    """Decide what is due by now, at most `AT_ONCE` firings: the rest falls due at once.

    `settled` are those of `doc.active` that have. The firings it gives are new, or were left by others; until
    `until` they are left to the caller. The very same document if there is nothing to decide.
    """
    if doc.deleted_at is not None or is_foreign(doc):
        return Advance(doc, ())
    turn = _Turn(doc, settled)
    if not doc.paused:
        turn.take_queued()
        if doc.due is not None and doc.due <= now:
            turn.decide(now)
    firings = tuple(
        msgspec.structs.replace(each, until=until, tries=each.tries + 1)
        for each in turn.pending
        if each.until <= now
    )
    left = tuple(each for each in turn.pending if each.until > now)
    if not firings and not turn.has_moved:
        return Advance(doc, ())
    return Advance(turn.result((*left, *firings)), firings)


def completed(
    doc: ScheduleDoc, ends: Mapping[Name, str | None], runs_of: Mapping[Name, str] | None = None
) -> ScheduleDoc:
    """These firings have their runs, or (with what went wrong) never will; others may have told so before.

    `runs_of` says whose run it is where it is not its own: a debounced firing may go into one that is pending.
    """
    done = [each for each in doc.pending if each.name in ends]
    if not done:
        return doc
    fine = [each for each in done if ends[each.name] is None]
    by_rule = [each for each in fine if not each.asked]
    found = runs_of or {}
    runs = tuple(found.get(each.name) or run_id_of(doc, each) for each in fine)
    errors = [error for each in done if (error := ends[each.name]) is not None]
    return msgspec.structs.replace(
        doc,
        pending=tuple(each for each in doc.pending if each.name not in ends),
        active=() if doc.every.overlap == "allow" else _last((*doc.active, *runs)),
        fired=doc.fired + len(by_rule),
        failed=doc.failed + len(errors),
        last_at=max((each.at for each in by_rule), default=doc.last_at),
        last_run=runs[-1] if runs else doc.last_run,
        last_error=errors[-1] if errors else doc.last_error,
    )


def _last(runs: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(runs))[-_ACTIVE_AT_MOST:]


class _Turn:
    """One round of decisions about one schedule."""

    def __init__(self, doc: ScheduleDoc, settled: AbstractSet[str]) -> None:
        self._doc = doc
        self._active = tuple(run for run in doc.active if run not in settled)
        self._after = doc.after
        self._spent = doc.spent
        self._missed = doc.missed
        self._skipped = doc.skipped
        self.pending: list[FiringDoc] = list(doc.pending)
        self._queued: list[FiringDoc] = list(doc.queued)

    @property
    def has_moved(self) -> bool:
        """Whether anything is other than before."""
        doc = self._doc
        return (
            self._after != doc.after or len(self._active) != len(doc.active) or len(self._queued) != len(doc.queued)
        )

    def result(self, pending: tuple[FiringDoc, ...]) -> ScheduleDoc:
        """The schedule afterwards."""
        return with_due(
            msgspec.structs.replace(
                self._doc,
                after=self._after,
                spent=self._spent,
                missed=self._missed,
                skipped=self._skipped,
                active=self._active,
                pending=pending,
                queued=tuple(self._queued),
            )
        )

    def take_queued(self) -> None:
        """What has waited begins, if nothing stands in its way any more."""
        if self._queued and not self._is_busy:
            self.pending.append(self._queued.pop(0))

    def decide(self, now: int) -> None:
        """Miss, make up, leave out or fire what the rule names up to now."""
        doc = self._doc
        edge = now - grace_of(doc.every)
        start = _look_back(doc, edge - doc.jitter)
        self._missed += number_between(doc.every, doc.after, start, doc.anchor, _COUNTED)
        self._after = start
        late: list[Firing] = []
        fresh = timed(doc, start)
        for firing, fires_at in fresh:
            if fires_at >= edge:
                fresh = chain([(firing, fires_at)], fresh)
                break
            late.append(firing)
        lost = max(0, len(late) - doc.every.catch_up)
        if lost:
            self._missed += lost
            self._after = late[lost - 1].at
        on_time = (firing for firing, _ in takewhile(lambda each: each[1] <= now, fresh))
        for firing in islice(chain(late[lost:], on_time), AT_ONCE):
            if _is_used_up(doc.every, self._spent):
                break
            self._admit(firing)
            self._after = firing.at

    @property
    def _is_busy(self) -> bool:
        """Whether a run of this schedule has not settled, as far as is known."""
        return bool(self._active or self.pending)

    def _admit(self, firing: Firing) -> None:
        overlap = self._doc.every.overlap
        interval = self._doc.every.kind == "every"
        found = FiringDoc(
            at=firing.at, wall=None if interval else firing.wall, gap=firing.gap, fold=firing.fold, until=NOW
        )
        if overlap == "allow" or not (self._is_busy or self._queued):
            self.pending.append(found)
        elif overlap == "queue" and len(self._queued) < max(1, self._doc.every.catch_up):
            self._queued.append(found)
        else:
            self._skipped += 1
            return
        self._spent += 1


def grace_of(every: Recurrence) -> int:
    """How late a firing may be and is not missed; no worker is on time to the millisecond."""
    return max(_LEAST_GRACE, round(every.misfire_grace * 1000))


def with_due(doc: ScheduleDoc) -> ScheduleDoc:
    """The schedule with the time of its next firing, as all else has it."""
    found = None
    if not _is_used_up(doc.every, doc.spent):
        found = next(timed(doc, doc.after), None)
    return msgspec.structs.replace(doc, due=None if found is None else found[1])


def timed(doc: ScheduleDoc, after: int) -> Iterator[tuple[Firing, int]]:
    """The firings later than `after`, each with the moment it fires at, jitter included: in order, both of them."""
    found = firings_after(doc.every, after, doc.anchor)
    if not doc.jitter:
        return ((firing, firing.at) for firing in found)
    return _jittered(doc, found)


def _jittered(doc: ScheduleDoc, found: Iterator[Firing]) -> Iterator[tuple[Firing, int]]:
    """Later by chance, but before the next occurrence, so that jitter never changes the order."""
    firing = next(found, None)
    while firing is not None:
        following = next(found, None)
        most = doc.jitter if following is None else min(doc.jitter, following.at - firing.at - 1)
        yield firing, firing.at + int(_roll(doc, firing.at) * (most + 1))
        firing = following


def _roll(doc: ScheduleDoc, at: int) -> float:
    """A number in [0, 1), the same for every worker: it follows from the schedule's id and the occurrence."""
    what = msgspec.msgpack.encode(("jitter", doc.tenant, doc.id, at))
    return (int.from_bytes(hashlib.blake2b(what, digest_size=8).digest(), "big") >> 11) / (1 << 53)


def _is_used_up(every: Recurrence, spent: int) -> bool:
    return every.count is not None and spent >= every.count


def _look_back(doc: ScheduleDoc, sure: int) -> int:
    """From where on to look at what was missed: not further back than `catch_up` needs, however long it lasted.

    What is before `sure` is missed. Looks back twice as far each time, and never counts more than is wanted.
    """
    wanted = doc.every.catch_up
    if not wanted:
        return max(doc.after, sure - 1)
    width = (wanted + 1) * (doc.every.interval or _MINUTE)
    while (start := sure - 1 - width) > doc.after:
        found = takewhile(lambda each: each.at < sure, firings_after(doc.every, start, doc.anchor))
        if sum(1 for _ in islice(found, wanted)) == wanted:
            return start
        width *= 2
    return doc.after
