"""The desk where slots are given out: one for each bucket that somebody asks something of.

Whoever wants a slot, or gives one back, puts that on the desk and waits. All that has come by then is served in one
round: read the bucket, let in who is next in line, one compare-and-set, then tell those who came in. So a key that
many want costs few writes, and processes race by that compare-and-set alone.

A round leaves nothing to chance if it ends half-way: what asked for it is an errand of some run, which stays in its
outbox until the round is through. Entries whose runs may not know of them are marked, and looked at again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import trio

from streamline_trio._core import slots
from streamline_trio._core.decide.outbox import PATIENCE
from streamline_trio._core.documents import Errand, RunDoc
from streamline_trio._core.errors import RunNotFound, StoreUnavailable, StreamlineError
from streamline_trio._core.happenings import SlotRefused
from streamline_trio._core.slots import EMPTY, SLOTS, SlotBucket
from streamline_trio._core.status import SETTLED
from streamline_trio._core.store import Applied, Corrupt, Delete, Failed, PutSide, Quarantine, SideDoc
from streamline_trio._core.tenancy import told_id
from streamline_trio._runtime.granting import grant, reload, still_used
from streamline_trio._runtime.machinery import Machinery

PAGE = 100
_EVER = 1 << 62
_RACE_PAUSE = 0.01
_HEALTHY = 60.0
_MOST_FULL = 10_000
_FIRST_NUMBERS = 0x3FFF_FFFF_FFFF_FFFF


class Answer:
    """What whoever asks for a slot waits for."""

    __slots__ = ("_event", "error", "holding", "is_granted")

    def __init__(self) -> None:
        self._event = trio.Event()
        self.is_granted: bool = False
        self.holding: int = 0
        self.error: StreamlineError | None = None

    def give(self, *, granted: bool, holding: int = 0, error: StreamlineError | None = None) -> None:
        """The answer."""
        self.is_granted, self.holding, self.error = granted, holding, error
        self._event.set()

    async def wait(self, seconds: float) -> bool:
        """Whether it came in that time; raises what went wrong."""
        with trio.move_on_after(seconds):
            await self._event.wait()
        if self.error is not None:
            raise self.error
        return self._event.is_set()


class _Request:
    """Something on the desk: a slot given back, one asked for, or only that somebody looks at the queue.

    `is_late`: who asked has vanished, so that it gets its slot only if it has come in already.
    """

    __slots__ = (
        "acquisition",
        "asks",
        "checks",
        "error",
        "event",
        "gives_back",
        "holding",
        "is_granted",
        "is_late",
        "run",
    )

    def __init__(
        self,
        *,
        run: RunDoc | None = None,
        asks: bool = False,
        gives_back: tuple[str, int] | None = None,
        checks: bool = False,
        is_late: bool = False,
    ) -> None:
        self.run = run
        self.acquisition = 0 if run is None or run.head.slot is None else run.head.slot.acquisition
        self.asks = asks
        self.gives_back = gives_back
        self.checks = checks
        self.is_late = is_late
        self.is_granted = False
        self.holding = 0
        self.error: StreamlineError | None = None
        self.event = trio.Event()


class _Desk:
    """What has come to one bucket, and what this process knows of those who came in."""

    __slots__ = ("requests", "told")

    def __init__(self) -> None:
        self.requests: list[_Request] = []
        self.told: set[str] = set()


class _Round:
    """One look at a bucket: as it was, as it is to be, and who comes in."""

    __slots__ = ("after", "before", "checked", "granted", "is_full", "is_more", "side")

    def __init__(self, side: SideDoc | None) -> None:
        self.side = side
        self.before: SlotBucket = EMPTY if side is None else slots.decode_bucket(side.body)
        self.after: SlotBucket = self.before
        self.granted: dict[str, tuple[RunDoc, int]] = {}
        self.is_more = False
        self.is_full = False
        self.checked = False

    def let_in(self, run: RunDoc, acquisition: int, limit: int) -> bool:
        """One more, if there is a slot."""
        after = slots.entered(self.after, run.id, acquisition, limit)
        if after is None:
            return False
        self.after = after
        self.granted[run.id] = run, acquisition
        return True


class Slots:
    """All desks of one engine."""

    def __init__(self, machinery: Machinery) -> None:
        self._machinery = machinery
        self._services = machinery.services
        self._desks: dict[str, _Desk] = {}
        self._doubtful: set[str] = set()
        self._full: dict[str, float] = {}
        self._expected: dict[int, Answer] = {}

    # --- who asks and waits --------------------------------------------------------------------------------

    def expect(self, acquisition: int) -> Answer:
        """Somebody here waits for what comes of this wish; to be forgotten by who does."""
        answer = self._expected[acquisition] = Answer()
        return answer

    def forget(self, acquisition: int) -> None:
        """Nobody waits any more."""
        self._expected.pop(acquisition, None)

    def is_for_another(self, run: RunDoc, errand: Errand) -> bool:
        """Whether a process beside this one may wait for the answer: until it falls due, only that one gives it.

        Else a commit here that has nothing to do with slots would take a start for vanished that is under way.
        """
        slot = run.head.slot
        return (
            errand.kind == "admit"
            and slot is not None
            and slot.attended
            and slot.acquisition == errand.acquisition
            and errand.acquisition not in self._expected
            and not self._services.store.exclusive
        )

    # --- errands -------------------------------------------------------------------------------------------

    async def admit(self, run: RunDoc, errand: Errand) -> bool:
        """See whether the run gets its slot, or its queue moves; False if the errand left the outbox by that."""
        answer = self._expected.get(errand.acquisition)
        try:
            request = await self._admit(run, errand, is_awaited=answer is not None)
        except StoreUnavailable:
            raise
        except StreamlineError as error:
            if answer is not None:
                answer.give(granted=False, error=error)
            raise
        if answer is not None:
            answer.give(granted=request.is_granted, holding=request.holding)
        return not request.is_granted and not request.asks

    async def _admit(self, run: RunDoc, errand: Errand, *, is_awaited: bool) -> _Request:
        slot, checks = run.head.slot, errand.attempts > 0
        if slot is None or slot.acquisition != errand.acquisition or slot.state != "asked":
            wants = slot is not None and slot.acquisition == errand.acquisition
            return await self._put(errand.key, _Request(run=run if wants else None, checks=checks))
        has_vanished = slot.attended and not is_awaited
        if has_vanished and run.head.status in SETTLED:
            request = _Request(run=run, asks=True)
        else:
            # Who vanished may have come in; nobody else comes in for it.
            request = _Request(run=run, asks=True, checks=checks, is_late=has_vanished)
            await self._put(errand.key, request)
        if not request.is_granted:
            request.is_granted = await self._refuse(run, slot.acquisition, request.holding)
        return request

    async def _refuse(self, run: RunDoc, acquisition: int, holding: int) -> bool:
        """Carry out that it gets no slot; True if that came too late, since it settled or got one."""
        known: RunDoc | None = run
        while known is not None:
            slot = known.head.slot
            if slot is None or slot.acquisition != acquisition or slot.state != "asked":
                return True
            if not slot.attended or known.head.status in SETTLED:
                try:
                    await self._machinery.act(run.id, SlotRefused(acquisition=acquisition, holding=holding), known)
                except RunNotFound:
                    return False
                return False
            verdict = await self._services.committer.submit(Delete(known.id, known.head.revision))
            if isinstance(verdict, Applied):
                return False
            if isinstance(verdict, Failed):
                raise verdict.error
            known = await reload(self._machinery, run.id)
        return False

    async def release(self, run: RunDoc, errand: Errand) -> None:
        """Give a slot back, and let in who is next."""
        entry = run.id, errand.acquisition
        await self._put(errand.key, _Request(gives_back=entry, checks=errand.attempts > 0))

    async def look(self, *, everywhere: bool = False) -> None:
        """Look at the buckets where somebody came in who, for a while, may not have been told.

        And at those that have long been full, as far as this process has seen.
        """
        services = self._services
        until = _EVER if everywhere else services.clock.now()
        for side in await services.read(lambda: services.store.sides(SLOTS, due_before=until)):
            await self._put(side.key, _Request(checks=True))
        long_ago = trio.current_time() - _HEALTHY
        for bucket in [bucket for bucket, at in islice(self._full.items(), PAGE) if at <= long_ago]:
            await self._put(bucket, _Request())

    # --- the desk ------------------------------------------------------------------------------------------

    async def _put(self, bucket: str, request: _Request) -> _Request:
        """Put it on the desk and wait until it is served."""
        desk = self._desks.get(bucket)
        if desk is None:
            desk = self._desks[bucket] = _Desk()
            self._services.spawn(lambda: self._serve(bucket, desk))
        desk.requests.append(request)
        await request.event.wait()
        if request.error is not None:
            raise request.error
        return request

    async def _serve(self, bucket: str, desk: _Desk) -> None:
        while desk.requests:
            requests, desk.requests = desk.requests, []
            failure: StreamlineError | None = None
            try:
                await self._rounds(bucket, desk, requests)
                self._doubtful.discard(bucket)
            except StreamlineError as error:
                failure = error
                self._doubtful.add(bucket)
            for request in requests:
                request.error = failure
                request.event.set()
        del self._desks[bucket]

    async def _rounds(self, bucket: str, desk: _Desk, requests: Sequence[_Request]) -> None:
        """As many as it takes until nobody more can come in."""
        gone = [request.gives_back for request in requests if request.gives_back is not None]
        asks = [request for request in requests if request.asks]
        checks = bucket in self._doubtful or any(request.checks for request in requests)
        while True:
            done = await self._round(bucket, desk, gone, asks, checks=checks)
            gone = await self._tell(done, desk)
            for request in requests:
                if request.run is not None and request.run.id in done.granted:
                    request.is_granted = True
            asks = []
            if not gone and not done.is_more:
                return

    async def _round(
        self, bucket: str, desk: _Desk, gone: list[tuple[str, int]], asks: Sequence[_Request], *, checks: bool
    ) -> _Round:
        """One change of the bucket, decided again if another process was faster."""
        gone, races, healed = list(gone), 0, False
        while True:
            now = _Round(await self._read(bucket))
            now.after = slots.told(slots.without(now.after, gone), desk.told)
            await self._check_untold(now, forced=checks)
            await self._let_in_queue(bucket, now)
            refused = await self._let_in_askers(asks, now)
            if not healed and self._may_be_wrong(bucket, now, refused):
                healed = True
                if stale := await self._unfounded(now.after, now.after.holders):
                    gone += stale
                    continue
            if await self._write(bucket, now, desk):
                for ask in refused:
                    ask.holding = len(now.after.holders)
                return now
            races += 1
            await trio.sleep(_RACE_PAUSE * min(races, 10) * self._services.chance.roll())

    def _may_be_wrong(self, bucket: str, now: _Round, refused: Sequence[_Request]) -> bool:
        """Whether its holders are to be checked: before anybody is refused, and now and then where some queue."""
        if not all(ask.is_late for ask in refused):
            return True
        if not now.is_full:
            self._full.pop(bucket, None)
            return False
        at = trio.current_time()
        if len(self._full) > _MOST_FULL:
            del self._full[next(iter(self._full))]
        if at < self._full.setdefault(bucket, at) + _HEALTHY:
            return False
        del self._full[bucket]
        self._full[bucket] = at  # the last one again
        return True

    async def _read(self, bucket: str) -> SideDoc | None:
        services = self._services
        return await services.read(lambda: services.store.side(SLOTS, bucket))

    async def _check_untold(self, now: _Round, *, forced: bool) -> None:
        """Those who came in a while ago, and may not have been told: tell them, or take them out."""
        if not now.after.untold:
            return
        is_due = (
            now.side is not None and now.side.due_at is not None and now.side.due_at <= self._services.clock.now()
        )
        if not forced and not is_due:
            return
        now.checked = True
        ids = now.after.untold
        runs = await self._load(ids)
        stale = await self._unfounded(now.after, ids, runs)
        now.after = slots.without(now.after, stale)
        known: set[str] = set()
        for run_id, run in runs.items():
            acquisition = now.after.holders.get(run_id)
            if run is None or acquisition is None or run.head.slot is None:
                continue
            if run.head.slot.state == "held":
                known.add(run_id)
            else:
                now.granted[run_id] = run, acquisition
        now.after = slots.told(now.after, known)

    async def _let_in_queue(self, bucket: str, now: _Round) -> None:
        """Who is next, as long as there are slots; who is first in line blocks those behind."""
        services = self._services
        wanted = min(max(now.after.limit - len(now.after.holders), 1) + 1, PAGE)
        page = await services.read(lambda: services.store.queued(bucket, wanted))
        for run in page:
            if isinstance(run, Corrupt):
                error = StreamlineError(
                    f"run {told_id(run.run_id)} cannot be decoded and is set aside: {run.error}"
                )
                services.report("quarantine", error)
                await services.committer.submit(Quarantine(run.run_id))
                now.is_more = True
                return
            slot = run.head.slot
            if slot is None or not now.let_in(run, slot.acquisition, slot.limit):
                now.is_full = True
                return
        now.is_more = len(page) == wanted

    async def _let_in_askers(self, asks: Sequence[_Request], now: _Round) -> list[_Request]:
        """Those who do not queue, as far as there are slots; who gets none.

        They are read after the bucket: who has dropped its wish by then must not come in under it, least of all in
        the place of another wish of the same run.
        """
        refused: list[_Request] = []
        runs = await self._load([ask.run.id for ask in asks if ask.run is not None])
        for ask in asks:
            run = None if ask.run is None else runs.get(ask.run.id)
            if run is None or not self._let_in_asker(ask, run, now):
                refused.append(ask)
        return refused

    def _let_in_asker(self, ask: _Request, run: RunDoc, now: _Round) -> bool:
        slot = run.head.slot
        if slot is None or not slots.has_use_for(run, ask.acquisition):
            return False
        return now.let_in(run, ask.acquisition, 0 if ask.is_late else slot.limit)

    async def _write(self, bucket: str, now: _Round, desk: _Desk) -> bool:
        """The compare-and-set; True also if there is nothing to write."""
        before, after, side = now.before, now.after, now.side
        if after.holders == before.holders and not now.checked:
            return True
        if after == before and not after.untold:
            return True
        kept = set(after.untold) & set(before.untold)
        services = self._services
        due_at: int | None = None
        if after.untold:
            is_old = kept and not now.checked and side is not None and side.due_at is not None
            due_at = side.due_at if is_old and side is not None else services.clock.now() + PATIENCE
        body = slots.encode_bucket(after)
        if side is None and body is None:
            return True
        write = PutSide(
            SLOTS,
            bucket,
            None if side is None else side.revision,
            body,
            None if body is None else due_at,
            first=services.chance.commit_id() & _FIRST_NUMBERS,
        )
        verdict = await services.committer.submit(write)
        if isinstance(verdict, Failed):
            raise verdict.error
        if isinstance(verdict, Applied):
            desk.told.clear()
        return isinstance(verdict, Applied)

    # --- telling -------------------------------------------------------------------------------------------

    async def _tell(self, done: _Round, desk: _Desk) -> list[tuple[str, int]]:
        """Tell those who came in; the entries of those who have no use for them any more."""
        gone: list[tuple[str, int]] = []
        failures: list[StreamlineError] = []

        async def tell(run: RunDoc, acquisition: int) -> None:
            try:
                if not await grant(self._machinery, run, acquisition):
                    gone.append((run.id, acquisition))
                else:
                    desk.told.add(run.id)
            except StreamlineError as error:
                failures.append(error)

        if len(done.granted) == 1:
            for run, acquisition in done.granted.values():
                await tell(run, acquisition)
        elif done.granted:
            async with trio.open_nursery() as nursery:
                for run, acquisition in done.granted.values():
                    nursery.start_soon(tell, run, acquisition)
        if failures:
            raise failures[0]
        for run_id, _ in gone:
            del done.granted[run_id]
        return gone

    # --- what the runs say ---------------------------------------------------------------------------------

    async def _load(self, ids: Sequence[str]) -> dict[str, RunDoc | None]:
        services = self._services
        found: dict[str, RunDoc | None] = {}
        for start in range(0, len(ids), PAGE):
            chunk = ids[start : start + PAGE]
            runs = await services.read(lambda chunk=chunk: services.store.load_many(chunk))  # type: ignore[misc]  # a lambda with a default
            found |= zip(chunk, runs, strict=True)
        return found

    async def _unfounded(
        self, bucket: SlotBucket, ids: Sequence[str] | dict[str, int], runs: dict[str, RunDoc | None] | None = None
    ) -> list[tuple[str, int]]:
        """Of the entries of these runs, those that are there for nothing; none of a run that cannot be read."""
        known = await self._load(list(ids)) if runs is None else runs
        return [
            (run_id, acquisition)
            for run_id, acquisition in slots.unfounded(bucket, known)
            if not await still_used(self._machinery, run_id, acquisition, known[run_id])
        ]
