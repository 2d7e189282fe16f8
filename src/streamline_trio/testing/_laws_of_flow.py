"""What must be true of runs whose workflow limits how many go on, how often they begin, or what starts are one.

Said of the writes alone, each law by its own count: who goes on is who was taken by a worker and has not settled,
a begin is the first time that a worker takes a run since it was started or had settled.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping

from streamline_trio._core.documents import WANTS_SLOT, DebounceDoc, RunDoc, SlotDoc
from streamline_trio._core.plan import Plan
from streamline_trio._core.slots import EMPTY, SLOTS, SlotBucket, decode_bucket
from streamline_trio._core.status import SETTLED
from streamline_trio._core.store import PutSide, Route
from streamline_trio.testing._laws_of_versions import route_of

PATIENCE = 60_000
"""Milliseconds for which a slot may be free, once nothing goes wrong any more, while somebody waits for it."""


class Flow:
    """Follows every write of runs and of buckets. `counts` says what was met."""

    def __init__(self, newest: Callable[[str], RunDoc], plans: Callable[[], Mapping[Route, Plan]]) -> None:
        self._newest = newest
        self._plans = plans
        self.buckets: dict[str, SlotBucket] = {}
        """As they are stored now; one that nobody holds a slot of is not there."""
        self.counts: Counter[str] = Counter()
        self._fullest: defaultdict[str, list[int]] = defaultdict(list)
        self._going: defaultdict[str, set[str]] = defaultdict(set)
        self._holding: defaultdict[str, set[str]] = defaultdict(set)
        self._wanting: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self._taken: set[str] = set()
        self._begins: defaultdict[str, list[int]] = defaultdict(list)
        self._pending: dict[str, str] = {}

    # --- buckets -------------------------------------------------------------------------------------------

    def side(self, write: PutSide) -> list[str]:
        """The laws that a write of a side document breaks."""
        if write.kind != SLOTS:
            return []
        before = self.buckets.pop(write.key, EMPTY)
        after = EMPTY if write.body is None else decode_bucket(write.body)
        if after.holders:
            self.buckets[write.key] = after
        self._fullest[write.key].append(len(after.holders))
        wrong = [
            f"{run_id}: its slot of {_told(write.key)} was given away"
            for run_id, acquisition in before.holders.items()
            if after.holders.get(run_id) != acquisition and self._holds(run_id, acquisition)
        ]
        limit = max((slot.limit for slot in self._slots_of(after)), default=0)
        if len(after.holders) > limit and set(after.holders) - set(before.holders):
            wrong.append(f"{len(after.holders)} hold the slots of {_told(write.key)}, which are {limit}")
        return wrong

    def _holds(self, run_id: str, acquisition: int) -> bool:
        slot = self._newest(run_id).head.slot
        return slot is not None and slot.state == "held" and slot.acquisition == acquisition

    def _slots_of(self, bucket: SlotBucket) -> Iterator[SlotDoc]:
        for run_id in bucket.holders:
            slot = self._newest(run_id).head.slot
            if slot is not None:
                yield slot

    def marks(self) -> dict[str, int]:
        """A moment, for `was_full`."""
        return {bucket: len(counts) for bucket, counts in self._fullest.items()}

    def was_full(self, bucket: str, limit: int, since: Mapping[str, int]) -> bool:
        """Whether at some instant since then no slot was free."""
        return any(count >= limit for count in self._fullest[bucket][max(since.get(bucket, 0) - 1, 0) :])

    # --- runs ----------------------------------------------------------------------------------------------

    def run(self, before: RunDoc | None, after: RunDoc) -> list[str]:
        """The laws that a write of a run breaks; `after` is the newest version by now."""
        head = after.head
        self._count(before, after)
        if head.slot is None and head.throttle is None and head.debounce is None:
            return []
        begins = head.lease is not None and after.id not in self._taken and head.status == "running"
        wrong = [*self._of_slot(before, after), *self._of_debounce(before, after)]
        if begins:
            self._taken.add(after.id)
            wrong += self._of_throttle(after)
        elif head.status in SETTLED:
            self._taken.discard(after.id)
        return wrong

    def _count(self, before: RunDoc | None, after: RunDoc) -> None:
        reason, throttle = after.head.cancel_reason or "", after.head.throttle
        if reason.startswith("signal ") and (before is None or before.head.cancel_reason != reason):
            self.counts["cancelled by a signal"] += 1
        old = None if before is None else before.head.throttle
        if throttle is not None and throttle.stage == "held" and (old is None or old.stage != "held"):
            self.counts["throttle: held back"] += 1

    def _of_slot(self, before: RunDoc | None, after: RunDoc) -> list[str]:
        slot, old = after.head.slot, None if before is None else before.head.slot
        if slot is None:
            return []
        bucket, wrong = slot.bucket, list[str]()
        if old is None or old.state != slot.state:
            self.counts[f"slot: {'new' if old is None else old.state} -> {slot.state}"] += 1
        if slot.state in WANTS_SLOT:
            self._wanting[bucket][after.id] = None
        else:
            self._wanting[bucket].pop(after.id, None)
        if slot.state == "held" and (old is None or old.state != "held"):
            entry = self.buckets.get(bucket, EMPTY).holders.get(after.id)
            if entry != slot.acquisition:
                wrong.append(f"{after.id}: has a slot of {_told(bucket)}, which knows nothing of it")
        wrong += self._count_in(self._holding[bucket], after, slot, is_in=slot.state == "held", what="hold slots")
        is_going = after.id in self._going[bucket] or after.head.lease is not None
        is_going = is_going and after.head.status not in SETTLED
        return wrong + self._count_in(self._going[bucket], after, slot, is_in=is_going, what="go on")

    def _count_in(self, them: set[str], run: RunDoc, slot: SlotDoc, *, is_in: bool, what: str) -> list[str]:
        if not is_in:
            them.discard(run.id)
            return []
        if run.id in them:
            return []
        them.add(run.id)
        limit = self._limit_of(run, slot)
        if len(them) <= limit:
            return []
        return [f"{', '.join(sorted(them))} {what} in {_told(slot.bucket)}, and the limit is {limit}"]

    def _limit_of(self, run: RunDoc, slot: SlotDoc) -> int:
        plan = self._plans().get(route_of(run))
        return slot.limit if plan is None or plan.concurrency is None else plan.concurrency.limit

    def _of_throttle(self, run: RunDoc) -> list[str]:
        throttle, plan = run.head.throttle, self._plans().get(route_of(run))
        if plan is None or plan.throttle is None:
            return []
        if throttle is None or throttle.stage != "begun":
            return [f"{run.id}: begins, and its throttle has not let it"]
        at = run.step(run.head.current_step or "").started_at
        assert at is not None, "it has just begun"
        self.counts["throttle: begins again" if throttle.turn else "throttle: begins"] += 1
        begins, limit, window = self._begins[throttle.bucket], plan.throttle.limit, plan.throttle.window * 1000
        insort(begins, at)
        place = bisect_left(begins, at)
        for first in range(max(place - limit, 0), min(place + 1, len(begins) - limit)):
            if begins[first + limit] - begins[first] < window:
                span = begins[first : first + limit + 1]
                return [f"{run.id}: begins in {_told(throttle.bucket)} at {at}, of {span} in {window:.0f} ms"]
        return []

    def _of_debounce(self, before: RunDoc | None, after: RunDoc) -> list[str]:
        debounce, old = after.head.debounce, None if before is None else before.head.debounce
        if debounce is None:
            return []
        wrong: list[str] = []
        if old is None or debounce.starts != old.starts:
            self.counts["debounce: bumped" if old is not None else "debounce: opened"] += 1
            wrong += self._ends_too_soon(before, after, debounce)
        if is_pending(after):
            other = self._pending.setdefault(debounce.key, after.id)
            if other != after.id:
                wrong.append(f"{after.id} and {other} are pending under one key of a debounce")
        elif self._pending.get(debounce.key) == after.id:
            del self._pending[debounce.key]
        if before is not None and is_pending(before) and (after.head.status == "running" or debounce.fired):
            self.counts["debounce: fired"] += 1
            if after.head.updated_at < (before.head.start_at or 0):
                wrong.append(f"{after.id}: its window was over before {before.head.start_at}")
        if before is not None and before.origin.input != after.origin.input and not is_pending(before):
            wrong.append(f"{after.id}: its window was over, and its input was changed")
        return wrong

    def _ends_too_soon(self, before: RunDoc | None, after: RunDoc, debounce: DebounceDoc) -> list[str]:
        """A start opens a whole window, by the clock of whoever writes it, and never brings its end forward."""
        plan, ends_at = self._plans().get(route_of(after)), after.head.start_at or 0
        if before is not None and ends_at < (before.head.start_at or 0):
            return [f"{after.id}: a further start has brought the end of its window forward"]
        # Of a clock that is behind those of earlier writes nothing is known but that.
        is_told = before is None or after.head.updated_at > before.head.updated_at
        if plan is None or plan.debounce is None or not is_told:
            return []
        wanted = after.head.updated_at + plan.debounce.window * 1000
        if plan.debounce.max_wait is not None:
            wanted = min(wanted, debounce.first_at + plan.debounce.max_wait * 1000)
        return (
            [] if ends_at >= int(wanted) else [f"{after.id}: its window ends at {ends_at} instead of {wanted:.0f}"]
        )

    # --- at rest -------------------------------------------------------------------------------------------

    def unserved(self) -> dict[str, str]:
        """By bucket, who waits for a slot though one is free."""
        found: dict[str, str] = {}
        for bucket, ids in self._wanting.items():
            waiting = [self._newest(run_id) for run_id in ids]
            line = [(_place(run), run) for run in waiting if not run.head.paused]
            _, first = min(line, default=(None, None), key=lambda one: one[0])
            if first is not None and first.head.slot is not None and self._has_room(bucket, first, first.head.slot):
                found[bucket] = first.id
        return found

    def _has_room(self, bucket: str, run: RunDoc, slot: SlotDoc) -> bool:
        return len(self._holding[bucket]) < self._limit_of(run, slot)

    def left_over(self) -> dict[str, list[str]]:
        """By bucket, whom it has though they hold no slot of it."""
        gone = {bucket: set(entries.holders) - self._holding[bucket] for bucket, entries in self.buckets.items()}
        return {bucket: sorted(ids) for bucket, ids in gone.items() if ids}

    def errands_due(self, bucket: str, runs: Mapping[str, list[RunDoc]]) -> int:
        """When the last of what is to be told this bucket falls to any worker."""
        heads = [versions[-1] for versions in runs.values() if versions]
        return max(
            (errand.due_at for run in heads for errand in run.outbox.values() if errand.key == bucket), default=0
        )

    def forget(self, run: RunDoc) -> None:
        """The run was deleted."""
        slot, debounce = run.head.slot, run.head.debounce
        if slot is not None:
            self._wanting[slot.bucket].pop(run.id, None)
        if debounce is not None and self._pending.get(debounce.key) == run.id:
            del self._pending[debounce.key]


def is_pending(run: RunDoc) -> bool:
    """Whether further starts would change this debounced draft."""
    debounce = run.head.debounce
    return debounce is not None and not debounce.fired and run.head.status == "draft"


def is_refused_draft(run: RunDoc) -> bool:
    """Whether it may be removed though it has not settled: a start that gets no slot has never been."""
    slot = run.head.slot
    return run.head.status == "draft" and slot is not None and slot.state == "asked" and slot.attended


def _place(run: RunDoc) -> tuple[int, int]:
    assert run.head.slot is not None, "it waits for one"
    return -run.origin.priority, run.head.slot.ticket


def _told(bucket: str) -> str:
    return repr(bucket)
