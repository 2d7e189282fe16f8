"""Fires schedules: every worker does, whoever is first; what is decided is written before any run is started.

A firing stands in the schedule's document from the write that decides it to the write that says that its run is
stored. Should the process die in between, another worker takes it up a lease later and starts the run under the
same id: if it is stored already, it is adopted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from streamline_trio._core.checking import storable_text
from streamline_trio._core.definition import Workflow
from streamline_trio._core.errors import DataCorruption, StoreUnavailable, StreamlineError
from streamline_trio._core.events import SchedulerError
from streamline_trio._core.schedules import (
    SCHEDULES,
    FiringDoc,
    Name,
    ScheduleDoc,
    advance,
    completed,
    due_at,
    is_foreign,
    key_of,
    run_id_of,
    scheduled_of,
)
from streamline_trio._core.status import SETTLED
from streamline_trio._core.store import Applied, Failed, Hint, PutSide, SideDoc
from streamline_trio._runtime.committer import Outcome
from streamline_trio._runtime.starting import FiredBy, StartOptions, start

if TYPE_CHECKING:
    from streamline_trio._runtime.machinery import Machinery

_PAGE = 100
_EVER = 1 << 62
_LONGEST_ERROR = 2000
_HORIZON = 2.0
_LEAST_PAUSE = 0.5

Ends = dict[Name, Exception | str]
"""Firings of which it is known what became of them: the stored ids of their runs, or why they never will be."""

_decode = msgspec.msgpack.Decoder(ScheduleDoc).decode
_encode = msgspec.msgpack.Encoder().encode


def decode_schedule(side: SideDoc) -> ScheduleDoc:
    """The document; `DataCorruption` if it is none."""
    try:
        return _decode(side.body)
    except (msgspec.DecodeError, ValueError) as error:
        raise DataCorruption(f"schedule {side.key!r} cannot be decoded: {error}") from error


def write_of(doc: ScheduleDoc, expected: int | None) -> PutSide:
    """The guarded write of the document."""
    return PutSide(SCHEDULES, key_of(doc.id, doc.tenant), expected, _encode(doc), due_at(doc))


class ScheduleFiring:
    """Looks after the schedules of the workflows that this engine has."""

    def __init__(self, machinery: Machinery) -> None:
        self._machinery = machinery
        self._services = machinery.services
        self._wake = trio.Event()
        self._until = math.inf
        self._under_way: set[str] = set()
        self._set_aside: dict[str, tuple[int, float]] = {}
        self._awaited: dict[str, str] = {}
        self._idle = trio.Event()
        self._idle.set()

    @property
    def patience(self) -> int:
        """For how many milliseconds a firing is left to the worker that took it."""
        return math.ceil(self._services.options.lease * 1000)

    def notify(self, at: float) -> None:
        """A schedule falls due then; cheap, may be called for nothing."""
        if at < self._until:
            self._until = at
            self._wake.set()

    def hinted(self, hint: Hint) -> None:
        """A side document fell due, or a run has settled that a firing waited for."""
        if not hint.run_id and hint.due_at is not None:
            self.notify(hint.due_at)
        key = self._awaited.pop(hint.run_id, None) if hint.settled else None
        if key is not None:
            self._set_aside.pop(key, None)
            self.notify(-math.inf)

    async def idle(self) -> None:
        """Until no firing is under way here."""
        while self._under_way:
            await self._idle.wait()

    async def look(self) -> None:
        """Before the work begins: is there any?"""
        if await self._services.store.sides(SCHEDULES, due_before=self._soon(), limit=1):
            self.notify(-math.inf)

    async def run(self) -> None:
        """Work until cancelled."""
        services = self._services
        while True:
            await self._sleep(math.inf if services.store.exclusive else self._pause)
            if services.circuit.is_open:
                await services.circuit.pause()
            self._until = math.inf
            try:
                await self._round()
            except StoreUnavailable as error:
                services.circuit.failed("read", error)
                services.logger.warning("schedules pause: %s", error)
                self.notify(services.clock.now() + services.options.poll_interval * 1000)

    def _soon(self) -> int:
        """What falls due up to then is seen at this look, so that it is not late for a poll."""
        if self._services.store.exclusive:
            return _EVER
        return self._services.clock.now() + math.ceil(self._pause * _HORIZON * 1000)

    @property
    def _pause(self) -> float:
        """How long, in seconds, schedules that others make may go unseen."""
        return max(_LEAST_PAUSE, self._services.options.poll_interval)

    async def _sleep(self, longest: float) -> None:
        """Until a schedule is due, as far as is known; others may be told of meanwhile."""
        end = trio.current_time() + longest
        while True:
            pause = (self._until - self._services.clock.now()) / 1000
            until = min(end, trio.current_time() + pause)
            if until <= trio.current_time():
                return
            self._wake = trio.Event()
            with trio.move_on_at(until):
                await self._wake.wait()

    async def _round(self) -> None:
        """Fire what is due, and see what falls due soon."""
        services, after = self._services, ""
        now = services.clock.now()
        soon = self._soon()
        seen: set[str] = set()
        while True:
            page = await services.store.sides(SCHEDULES, after=after, due_before=soon, limit=_PAGE)
            services.circuit.worked("read")
            async with trio.open_nursery() as nursery:
                for side in page:
                    seen.add(side.key)
                    at = self._looked_at_from(side)
                    if at > now:
                        self._until = min(self._until, at)
                    elif side.key not in self._under_way:
                        nursery.start_soon(self._fire, side)
            if len(page) < _PAGE:
                break
            after = page[-1].key
        self._set_aside = {key: aside for key, aside in self._set_aside.items() if key in seen}

    def _looked_at_from(self, side: SideDoc) -> float:
        """When to look at it, which may be later than it is due."""
        due = math.inf if side.due_at is None else side.due_at
        revision, until = self._set_aside.get(side.key, (side.revision, -math.inf))
        return max(due, until) if revision == side.revision else due

    # --- one schedule --------------------------------------------------------------------------------------

    async def _fire(self, side: SideDoc) -> None:
        """Decide what is due of this schedule, and see to it."""
        self._enter(side.key)
        posted = False
        try:
            decided = await self._decide(side)
            if decided is None:
                return
            write, doc, workflow, firings = decided
            told = trio.Event()

            def tell(outcome: Outcome) -> None:
                told.set()
                self._decided(side, doc, workflow, firings, outcome)

            posted = True
            self._services.committer.post(write, tell)
            await told.wait()
        except StoreUnavailable as error:
            self._services.circuit.failed("read", error)
            self._put_off(side)
        finally:
            if not posted:
                self._leave(side.key)

    async def _decide(
        self, side: SideDoc
    ) -> tuple[PutSide, ScheduleDoc, Workflow[Any, Any] | None, Sequence[FiringDoc]] | None:
        """What to write, None for nothing: it is not ours, or has to wait for a run."""
        await trio.lowlevel.checkpoint()
        try:
            doc = decode_schedule(side)
        except DataCorruption as error:
            self._set_aside[side.key] = side.revision, math.inf
            self._services.report("a schedule is left alone", error)
            return None
        if doc.deleted_at is not None:
            return PutSide(SCHEDULES, side.key, side.revision, None), doc, None, ()
        workflow = self._machinery.registry.meant(doc.workflow, doc.version)
        if workflow is None or is_foreign(doc):
            self._set_aside[side.key] = side.revision, math.inf
            return None
        settled = await self._settled_of(doc)
        now = self._services.clock.now()
        after, firings = advance(doc, now, until=now + self.patience, settled=settled)
        if after is doc:
            self._wait_for_runs(side, doc)
            return None
        return write_of(after, side.revision), after, workflow, firings

    async def _settled_of(self, doc: ScheduleDoc) -> frozenset[str]:
        """Those of the runs that may stand in the way that do so no more: settled, or gone."""
        if not doc.active:
            return frozenset()
        found = await self._services.read(lambda: self._services.store.load_many(doc.active))
        return frozenset(
            run_id
            for run_id, run in zip(doc.active, found, strict=True)
            if run is None or run.head.status in SETTLED
        )

    def _wait_for_runs(self, side: SideDoc, doc: ScheduleDoc) -> None:
        """A firing waits for a run of before: look again when that has settled, or from time to time."""
        services = self._services
        if services.store.exclusive:
            until = math.inf if doc.due is None else doc.due
            self._awaited.update(dict.fromkeys(doc.active, side.key))
        else:
            until = services.clock.now() + services.options.poll_interval * 500
        self._set_aside[side.key] = side.revision, until
        self.notify(until)

    def _put_off(self, side: SideDoc) -> None:
        until = self._services.clock.now() + max(1.0, self._services.options.poll_interval * 1000)
        self._set_aside[side.key] = side.revision, until
        self.notify(until)

    def _decided(
        self,
        side: SideDoc,
        doc: ScheduleDoc,
        workflow: Workflow[Any, Any] | None,
        firings: Sequence[FiringDoc],
        outcome: Outcome,
    ) -> None:
        """The committer tells what became of the decision; refused: somebody else was faster."""
        if isinstance(outcome, Applied) and workflow is not None and firings:
            written = SideDoc(SCHEDULES, side.key, side.revision + 1, b"")
            self._services.spawn(lambda: self._carry_out(written, doc, workflow, firings, {}))
            return
        self._leave(side.key)
        if isinstance(outcome, Applied):
            self._notify_of(doc)
        elif isinstance(outcome, Failed):
            self._services.report(f"schedule {doc.id!r} cannot be written", outcome.error)
            self._put_off(side)
        elif isinstance(outcome, StoreUnavailable):
            self._put_off(side)

    def _notify_of(self, doc: ScheduleDoc) -> None:
        due = due_at(doc)
        if due is not None:
            self.notify(due)

    def _enter(self, key: str) -> None:
        self._under_way.add(key)
        if self._idle.is_set():
            self._idle = trio.Event()

    def _leave(self, key: str) -> None:
        self._under_way.discard(key)
        if not self._under_way:
            self._idle.set()

    # --- carrying out --------------------------------------------------------------------------------------

    def begin_now(
        self, revision: int, doc: ScheduleDoc, workflow: Workflow[Any, Any], firing: FiringDoc, ends: Ends
    ) -> trio.Event:
        """Start the run of a firing that was asked for; the event tells that `ends` does, as far as it is known.

        Whatever becomes of the caller, it is carried out.
        """
        side = SideDoc(SCHEDULES, key_of(doc.id, doc.tenant), revision, b"")
        done = trio.Event()

        async def carry_out() -> None:
            try:
                await self._carry_out(side, doc, workflow, (firing,), ends)
            finally:
                done.set()

        self._enter(side.key)
        self._services.spawn(carry_out)
        return done

    async def _carry_out(
        self,
        side: SideDoc,
        doc: ScheduleDoc,
        workflow: Workflow[Any, Any],
        firings: Sequence[FiringDoc],
        ends: Ends,
    ) -> None:
        """Start the runs, each by itself, and take the firings out of the document."""
        try:
            if len(firings) == 1:
                await self._start_one(doc, workflow, firings[0], ends)
            else:
                async with trio.open_nursery() as nursery:
                    for firing in firings:
                        nursery.start_soon(self._start_one, doc, workflow, firing, ends)
            after = await self._note(side, doc, ends) if ends else doc
            if after is not None:
                self._notify_of(after)
        except StreamlineError as error:
            self._services.report(f"firings of schedule {doc.id!r} are left for later", error)
            self.notify(self._services.clock.now() + self.patience)
        finally:
            self._leave(side.key)

    async def _start_one(
        self, doc: ScheduleDoc, workflow: Workflow[Any, Any], firing: FiringDoc, ends: Ends
    ) -> None:
        options = StartOptions(
            priority=doc.priority,
            user=doc.user,
            tags=doc.tags,
            meta=None if doc.meta is None else msgspec.msgpack.decode(doc.meta),
            tenant=doc.tenant,
            fired_by=FiredBy(run_id=run_id_of(doc, firing), scheduled=scheduled_of(doc, firing)),
            again_since=firing.at if firing.tries > 1 else None,
        )
        try:
            ends[firing.name] = await start(self._machinery, workflow, msgspec.Raw(doc.input), options)
        except StoreUnavailable as error:
            self._services.logger.warning("a firing of schedule %s is left for later: %s", doc.id, error)
        except Exception as error:  # noqa: BLE001 - a definition is the user's and may fail in any way
            ends[firing.name] = error
            self._tell_of(doc, firing, error)

    def _tell_of(self, doc: ScheduleDoc, firing: FiringDoc, error: Exception) -> None:
        """A firing came to nothing: say so, and go on."""
        text = _text_of(error)
        self._services.logger.error("schedule %s could not start a run: %s", doc.id, text, exc_info=error)
        event = SchedulerError(
            run_id="",
            workflow=doc.workflow,
            tenant=doc.tenant,
            at_millis=self._services.clock.now(),
            schedule=doc.id,
            occurrence_millis=firing.at,
            error=text,
        )
        self._services.publisher.publish((event,))

    async def _note(self, side: SideDoc, doc: ScheduleDoc, ends: Ends) -> ScheduleDoc | None:
        """Write how firings have ended; the document then, None if it is gone."""
        services, revision = self._services, side.revision
        told = {name: None if isinstance(end, str) else _text_of(end) for name, end in ends.items()}
        runs = {name: end for name, end in ends.items() if isinstance(end, str)}
        while True:
            after = completed(doc, told, runs)
            if after is doc:
                return doc
            verdict = await services.committer.submit(write_of(after, revision))
            if isinstance(verdict, Applied):
                return after
            if isinstance(verdict, Failed):
                raise verdict.error
            found = await services.read(lambda: services.store.side(SCHEDULES, side.key))
            if found is None:
                return None
            doc, revision = decode_schedule(found), found.revision


def _text_of(error: Exception) -> str:
    return storable_text(f"{type(error).__name__}: {error}", _LONGEST_ERROR)
