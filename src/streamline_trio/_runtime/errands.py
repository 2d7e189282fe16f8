"""Carries out what runs have in their outboxes.

Whoever commits an errand does it at once. Should that process die, any worker finds it when it falls due. Doing it
twice does no harm: a nudge that was heard before changes nothing, and neither does cancelling what has settled. A
done errand leaves the outbox by a commit of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import trio

from streamline_trio._core.decide import decide
from streamline_trio._core.decide.outbox import PATIENCE
from streamline_trio._core.documents import Errand, RunDoc
from streamline_trio._core.errors import RunNotFound, StoreUnavailable, StreamlineError
from streamline_trio._core.happenings import CancelAsked, ChildEnd, ChildrenEnded, ErrandsDone, ErrandsTaken
from streamline_trio._core.joins import bits_of, branch_id
from streamline_trio._core.plan import Plan
from streamline_trio._core.status import SETTLED
from streamline_trio._core.store import Applied, Corrupt, Failed, Quarantine, Update
from streamline_trio._core.tenancy import stored_id, told_id
from streamline_trio._runtime.machinery import Machinery

T = TypeVar("T")

_AT_ONCE = 100
_NUDGES_AT_ONCE = 1000
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 5.0
_EVER = 1 << 62
_NO_PLAN = Plan(workflow="", version="", fingerprint="", steps=())
"""The outbox is a matter of the engine alone: what the workflow's definition says does not come into it."""


class _Mail:
    """Nudges on their way to one parent: those that come while others are under way gather."""

    __slots__ = ("ends", "waiting")

    def __init__(self) -> None:
        self.ends: list[ChildEnd] = []
        self.waiting: list[_Told] = []


class _Told:
    """Whether a nudge has arrived."""

    __slots__ = ("error", "event")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.error: StreamlineError | None = None


class Errands:
    """The errands of one engine: its own, and those that others have left behind."""

    def __init__(self, machinery: Machinery) -> None:
        self._machinery = machinery
        self._services = machinery.services
        self._under_way: set[tuple[str, str]] = set()
        self._mail: dict[str, _Mail] = {}
        self._idle = trio.Event()
        self._idle.set()
        self._is_waiting = False

    def committed(self, run: RunDoc) -> None:
        """A commit of ours left something in the outbox: do what we have not begun yet."""
        slots = self._machinery.slots
        fresh = [number for number, errand in run.outbox.items() if not errand.attempts]
        self._begin(run, [number for number in fresh if not slots.is_for_another(run, run.outbox[number])])

    async def idle(self) -> None:
        """Until nothing is under way."""
        await self._idle.wait()

    # --- what others have left behind ----------------------------------------------------------------------

    async def look(self) -> None:
        """Take up the errands that are due, of whomever. Pages of those that are under way here end the look."""
        services = self._services
        while True:
            now = services.clock.now()
            found = await services.store.errands(now, _AT_ONCE)
            moved = False
            for run in found:
                if isinstance(run, Corrupt):
                    self._quarantine(run)
                else:
                    moved = await self._take_up(run, now) or moved
            if not moved or len(found) < _AT_ONCE:
                return

    async def _take_up(self, run: RunDoc, now: int) -> bool:
        """By a commit that puts them off, so that of several workers one does them. False: all are under way."""
        numbers = [
            number
            for number, errand in run.outbox.items()
            if errand.due_at <= now and (run.id, number) not in self._under_way
        ]
        services = self._services
        decision = decide(run, ErrandsTaken(numbers=tuple(numbers)), _NO_PLAN, now, services.chance.commit_id())
        if decision.run is run:
            await trio.lowlevel.checkpoint()
            return False
        verdict = await services.committer.submit(Update(run, decision.run, decision.touched))
        if isinstance(verdict, Applied):
            self._begin(decision.run, numbers)
        return True

    def _quarantine(self, run: Corrupt) -> None:
        error = StreamlineError(f"run {told_id(run.run_id)} cannot be decoded and is set aside: {run.error}")
        self._services.report("quarantine", error)
        self._services.committer.post(Quarantine(run.run_id), lambda _outcome: None)

    def look_later(self) -> None:
        """On a store that nobody else can write: look when the next errand falls due, as long as there are any."""
        if not self._is_waiting:
            self._is_waiting = True
            self._services.spawn(self._look_in_time)

    async def _look_in_time(self) -> None:
        services = self._services
        try:
            while True:
                try:
                    found = await services.store.errands(_EVER, 1)
                    if not found:
                        return
                    first = found[0]
                    if isinstance(first, RunDoc) and first.head.errand_at is not None:
                        pause = (first.head.errand_at - services.clock.now()) / 1000
                        await trio.sleep(max(pause, _FIRST_PAUSE))
                    await self.look()
                except StoreUnavailable as error:
                    services.logger.warning("errands pause: %s", error)
                    await trio.sleep(PATIENCE / 1000)
        finally:
            self._is_waiting = False

    # --- carrying out --------------------------------------------------------------------------------------

    def _begin(self, run: RunDoc, numbers: Iterable[str]) -> None:
        fresh = [number for number in numbers if (run.id, number) not in self._under_way]
        if fresh:
            self._under_way.update((run.id, number) for number in fresh)
            if self._idle.is_set():
                self._idle = trio.Event()
            self._services.spawn(lambda: self._carry_out(run, fresh))

    async def _carry_out(self, run: RunDoc, numbers: Sequence[str]) -> None:
        """Do them, each by itself, and take those that are done out of the outbox."""
        done: list[str] = []
        try:
            if len(numbers) == 1:
                await self._do_one(run, numbers[0], done)
            else:
                async with trio.open_nursery() as nursery:
                    for number in numbers:
                        nursery.start_soon(self._do_one, run, number, done)
            if done:
                await self._persist(lambda: self._remove(run, done))
        except StreamlineError as error:
            self._services.report("an errand is left for later", error, run)
            self._leave()
        finally:
            self._under_way.difference_update((run.id, number) for number in numbers)
            if not self._under_way:
                self._idle.set()

    def _leave(self) -> None:
        """It stays in the outbox until it falls due again."""
        if self._services.store.exclusive:
            self.look_later()

    async def _do_one(self, run: RunDoc, number: str, done: list[str]) -> None:
        errand = run.outbox[number]
        try:
            stays = await self._persist(lambda: self._do(run, errand))
        except StreamlineError as error:
            self._services.report(
                f"the errand {errand.kind} {errand.group or errand.key} is left for later", error, run
            )
            self._leave()
        else:
            if stays:
                done.append(number)
            elif run.head.status in SETTLED:
                self._leave()  # who takes the run up may give up before it goes on

    async def _do(self, run: RunDoc, errand: Errand) -> bool:
        """Do it; whether it is still in the outbox."""
        slots = self._machinery.slots
        match errand.kind:
            case "nudge":
                await self._nudge(errand)
            case "cancel":
                await self._cancel(run.origin.tenant, errand)
            case "release":
                await slots.release(run, errand)
            case "admit":
                return await slots.admit(run, errand)
        return True

    async def _persist(self, act: Callable[[], Awaitable[T]]) -> T:
        """Again as long as the store is unavailable."""
        pause = _FIRST_PAUSE
        while True:
            try:
                return await act()
            except StoreUnavailable:
                await trio.sleep(pause * (0.5 + self._services.chance.roll()))
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def _remove(self, run: RunDoc, done: Sequence[str]) -> None:
        happening = ErrandsDone(numbers=tuple(done))
        machinery, services = self._machinery, self._services
        if run.id in machinery.crew.drivers:
            await machinery.act(run.id, happening)
            return
        known: RunDoc | None = run
        while known is not None:
            decision = decide(known, happening, _NO_PLAN, services.clock.now(), services.chance.commit_id())
            if decision.run is known:
                return
            verdict = await services.committer.submit(Update(known, decision.run, decision.touched))
            if isinstance(verdict, Applied):
                services.committed(decision.run, (decision,))
                return
            if isinstance(verdict, Failed):
                raise verdict.error
            known = await services.read(lambda: services.store.load(run.id))

    # --- nudges --------------------------------------------------------------------------------------------

    async def _nudge(self, errand: Errand) -> None:
        """Tell the parent, together with whatever else it is to be told by then."""
        told = _Told()
        mail = self._mail.get(errand.run)
        if mail is None:
            mail = self._mail[errand.run] = _Mail()
            self._services.spawn(lambda: self._deliver(errand.run))
        mail.ends.append(_end_of(errand))
        mail.waiting.append(told)
        await told.event.wait()
        if told.error is not None:
            raise told.error

    async def _deliver(self, parent: str) -> None:
        mail = self._mail[parent]
        while mail.ends:
            ends, mail.ends = mail.ends[:_NUDGES_AT_ONCE], mail.ends[_NUDGES_AT_ONCE:]
            waiting, mail.waiting = mail.waiting[:_NUDGES_AT_ONCE], mail.waiting[_NUDGES_AT_ONCE:]
            failure: StreamlineError | None = None
            try:
                await self._machinery.act(parent, ChildrenEnded(ends=tuple(ends)))
            except RunNotFound:
                pass
            except StreamlineError as error:
                failure = error
            for told in waiting:
                told.error = failure
                told.event.set()
        del self._mail[parent]

    # --- cancellation --------------------------------------------------------------------------------------

    async def _cancel(self, tenant: str | None, errand: Errand) -> None:
        """Cancel the child, or the branches that have not ended, as far as they were started."""
        if not errand.branches:
            await self._cancel_some([stored_id(tenant, errand.group)], errand.reason)
            return
        ended = bits_of(errand.ended)
        indexes = (index for index in range(errand.branches) if not ended >> index & 1)
        left = [stored_id(tenant, branch_id(errand.group, index)) for index in indexes]
        for start in range(0, len(left), _AT_ONCE):
            await self._cancel_some(left[start : start + _AT_ONCE], errand.reason)

    async def _cancel_some(self, ids: Sequence[str], reason: str) -> None:
        services = self._services
        found = await services.read(lambda: services.store.load_many(ids))
        failures: list[StreamlineError] = []
        async with trio.open_nursery() as nursery:
            for run in found:
                if run is not None and run.head.status not in SETTLED:
                    nursery.start_soon(self._cancel_one, run, reason, failures)
        if failures:
            raise failures[0]

    async def _cancel_one(self, run: RunDoc, reason: str, failures: list[StreamlineError]) -> None:
        try:
            await self._machinery.act(run.id, CancelAsked(reason=reason), run)
        except RunNotFound:
            return
        except StreamlineError as error:
            failures.append(error)


def _end_of(errand: Errand) -> ChildEnd:
    return ChildEnd(
        key=errand.key,
        group=errand.group,
        index=errand.index,
        status=errand.status,
        output=errand.output,
        output_step=errand.output_step,
        error=errand.error,
    )
