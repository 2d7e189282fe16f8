"""The commits of one run that this worker holds: one in flight, those that arrive meanwhile merge into the next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import trio

from streamline_trio._core.decide import Decision, decide
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import LeaseLost, StoreUnavailable, StreamlineError, ValidationError
from streamline_trio._core.happenings import Happening
from streamline_trio._core.plan import Plan
from streamline_trio._core.store import AppendRows, Applied, Failed, KeyTaken, Touched, Update
from streamline_trio._runtime.committer import Outcome

if TYPE_CHECKING:
    from streamline_trio._runtime.services import Services


class HolderGone(Exception):
    """The writer no longer holds the run: whoever is not the holder goes through the store instead."""


class _Entry:
    """A happening on its way, and who waits for it."""

    __slots__ = ("_is_done", "_task", "error", "happening")

    def __init__(self, happening: Happening) -> None:
        self.happening = happening
        self.error: BaseException | None = None
        self._is_done = False
        self._task: trio.lowlevel.Task | None = None

    def finish(self) -> None:
        """Wake who waits for it."""
        self._is_done = True
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._task = None

    def fail(self, error: BaseException) -> None:
        """Wake who waits for it, to be told the error."""
        self.error = error
        self.finish()

    @trio.lowlevel.enable_ki_protection  # else Ctrl-C could end the task that is to be woken
    async def wait(self) -> None:
        """Until it is finished. A `trio.Event` of its own would cost every commit twice as much."""
        if self._is_done:
            await trio.lowlevel.checkpoint()
        else:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._forget)

    def _forget(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


class RunWriter:
    """Decides and commits, for as long as the run is leased to this worker under this fence."""

    __slots__ = (
        "_decisions",
        "_in_flight",
        "_lease",
        "_noticed",
        "_pending",
        "_refreshing",
        "_rows",
        "_services",
        "_touched",
        "fence",
        "lost",
        "plan",
        "run",
        "worker",
    )

    def __init__(
        self, services: Services, run: RunDoc, plan: Plan, *, noticed: Callable[[RunDoc, Touched | None], None]
    ) -> None:
        lease = run.head.lease
        assert lease is not None, "a writer is for a run that is held"
        self.run: RunDoc = run
        self.plan: Plan = plan
        self._lease = lease
        self.worker: str = lease.worker
        self.fence: int = lease.fence
        self.lost: bool = False
        self._services = services
        self._noticed = noticed
        self._pending: list[_Entry] = []
        self._in_flight: Sequence[_Entry] = ()
        self._decisions: Sequence[Decision] = ()
        self._touched: Touched | None = None
        self._rows: tuple[AppendRows, ...] = ()
        self._refreshing = False

    @property
    def is_held(self) -> bool:
        """Whether the run, as far as known, is still ours."""
        lease = self.run.head.lease
        if lease is self._lease:
            return not self.lost
        return not self.lost and lease == self._lease

    def add_rows(self, rows: AppendRows) -> None:
        """Rows to go out with the next commit."""
        self._rows += (rows,)

    def flush_rows(self) -> None:
        """Send the waiting rows now, without a commit."""
        rows, self._rows = self._rows, ()
        for row in rows:
            self._services.committer.post(row, _ignore)

    async def commit(self, happening: Happening) -> RunDoc:
        """Decide and commit; the run as it then is.

        A cancel point; a commit that was begun is carried out all the same. Raises what `decide` raises,
        `LeaseLost` when the run is no longer ours, `StoreUnavailable` when that cannot be found out in time.
        """
        entry = _Entry(happening)
        self._pending.append(entry)
        if not self._in_flight and not self._refreshing:
            self._flush()
        await entry.wait()
        if entry.error is not None:
            raise entry.error
        return self.run

    def refresh(self, stored: RunDoc | None = None) -> None:
        """Somebody else committed: look at the run again, unless a commit of ours will find out anyway."""
        if self._in_flight or self._refreshing:
            return
        if stored is not None:
            if stored.head.revision > self.run.head.revision:
                self._adopt(stored)
            return
        self._refreshing = True
        self._services.spawn(self._reload)

    def close(self) -> None:
        """Nothing more is decided here."""
        if self._rows:
            self.flush_rows()
        if not self._in_flight:
            self._fail_pending(HolderGone())
        self._noticed = _ignore  # else it and its driver would hold each other

    def _flush(self) -> None:
        entries, self._pending = self._pending, []
        if not entries:
            return
        if not self.is_held:
            self._fail(entries, HolderGone() if not self.lost else self._lease_lost())
            return
        decisions = self._decide(entries)
        run = decisions[-1].run if decisions else self.run
        if run is self.run:
            _finish(entries)
            return
        self._in_flight = entries
        rows, self._rows = self._rows, ()
        self._decisions = decisions
        self._touched = _touched(decisions)
        self._services.committer.post(Update(self.run, run, self._touched), self._settle, rows)

    def _decide(self, entries: list[_Entry]) -> list[Decision]:
        """Decide one happening on the result of the other; one that is refused fails alone.

        Up to the one that gives the run back: what comes after that is not the holder's to decide.
        """
        decisions: list[Decision] = []
        run = self.run
        commit, now = self._services.chance.commit_id(), self._services.clock.now()
        for place, entry in enumerate(entries):
            if run.head.lease is None:
                self._pending = entries[place:]
                del entries[place:]
                break
            try:
                decision = decide(run, entry.happening, self.plan, now, commit)
            except StreamlineError as error:
                entry.error = error
                continue
            run = decision.run
            decisions.append(decision)
        return decisions

    def _settle(self, outcome: Outcome) -> None:
        """The committer tells what became of the write in flight."""
        entries, self._in_flight = self._in_flight, ()
        decisions, self._decisions = self._decisions, ()
        touched, self._touched = self._touched, None
        if isinstance(outcome, Applied):
            self.run = run = decisions[-1].run
            self._services.committed(run, decisions)
            _finish(entries)
            self._noticed(run, touched)
            if self._pending:
                self._flush()
        elif isinstance(outcome, Failed):
            self._fail(entries, outcome.error)
            self._flush()
        elif isinstance(outcome, KeyTaken):
            self._fail(entries, ValidationError("the token of this wait is in use for another wait"))
            self._flush()
        elif isinstance(outcome, StoreUnavailable):
            self._lose(entries, outcome)
        else:
            for entry in entries:
                entry.error = None
            self._pending[:0] = entries
            self._refreshing = True
            self._services.spawn(self._reload)

    async def _reload(self) -> None:
        """Our guard did not hold, or attention was asked for: see what is stored now."""
        try:
            stored = await self._services.read(lambda: self._services.store.load(self.run.origin.id))
        except StreamlineError as error:
            self._refreshing = False
            self._lose([], error)
            return
        self._refreshing = False
        if stored is None:
            self._lose([], self._lease_lost())
            return
        self._adopt(stored)
        self._flush()

    def _adopt(self, stored: RunDoc) -> None:
        self.run = stored
        if not self.is_held:
            self._lose([], self._lease_lost())
        else:
            self._noticed(stored, None)

    def _lose(self, entries: Sequence[_Entry], error: StreamlineError) -> None:
        """The run is not ours any more, or we cannot tell: write nothing further."""
        self.lost = True
        self._fail(entries, error)
        self._fail_pending(error)
        self._noticed(self.run, None)

    def _fail_pending(self, error: BaseException) -> None:
        pending, self._pending = self._pending, []
        self._fail(pending, error)

    def _fail(self, entries: Sequence[_Entry], error: BaseException) -> None:
        for entry in entries:
            entry.fail(error)

    def _lease_lost(self) -> LeaseLost:
        return LeaseLost(f"the lease on run {self.run.public_id} is no longer ours", run_id=self.run.public_id)


def _touched(decisions: Sequence[Decision]) -> Touched:
    """What any of the decisions has touched."""
    if len(decisions) == 1:
        return decisions[0].touched
    touched = defaultdict[str, set[str]](set)
    for decision in decisions:
        for name, keys in decision.touched.items():
            touched[name] |= keys
    return touched


def _finish(entries: Sequence[_Entry]) -> None:
    for entry in entries:
        entry.finish()


def _ignore(*_told: object) -> None:
    """Nobody is there any more to be told; or it is about rows, which are a courtesy."""
