"""The group committer: writes that arrive while one is under way go out together as the next batch.

It owns every write it was given: the caller may be cancelled, the write goes on. A lost acknowledgement is
resolved by reading back, never by writing blindly again (the commit ids of a run, the start id of a new one and
the revision of a side document tell whether a write was applied).
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence

import trio

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import DataCorruption, InvalidState, StoreUnavailable
from streamline_trio._core.store import (
    AppendRows,
    Applied,
    Delete,
    Failed,
    Insert,
    PutSide,
    Quarantine,
    Refused,
    SideDoc,
    Store,
    Update,
    Verdict,
    Write,
)
from streamline_trio._runtime.circuit import Circuit
from streamline_trio._runtime.clock import Chance

Outcome = Verdict | StoreUnavailable
MAX_BATCH = 500
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 1.0


class Submission:
    """One write, the rows that go with it, and who is told."""

    __slots__ = ("given_up_at", "is_told", "rows", "run_id", "tell", "write")

    def __init__(
        self, write: Write, rows: Sequence[AppendRows], tell: Callable[[Outcome], None], given_up_at: float
    ) -> None:
        self.write = write
        self.run_id: str | None = _run_of(write)
        self.rows = rows
        self.tell = tell
        self.given_up_at = given_up_at
        self.is_told = False


def _run_of(write: Write) -> str | None:
    """The run it writes, of which a batch holds at most one write."""
    if isinstance(write, Update):
        return write.before.origin.id
    if isinstance(write, Insert):
        return write.run.origin.id
    return write.run_id if isinstance(write, Delete | Quarantine) else None


class GroupCommitter:
    """Carries out writes in batches, in the order of their arrival."""

    def __init__(
        self, store: Store, chance: Chance, circuit: Circuit, *, patience: float, logger: logging.Logger
    ) -> None:
        self._store = store
        self._chance = chance
        self._circuit = circuit
        self._patience = patience
        self._logger = logger
        self._queue: deque[Submission] = deque()
        self._carried: list[Submission] = []
        self._closed = False
        self._is_leaving = False
        self._scope = trio.CancelScope()
        self._arrived = trio.Event()
        self._idle = trio.Event()
        self._idle.set()
        self.commits: int = 0
        self.batches: int = 0

    def post(self, write: Write, tell: Callable[[Outcome], None], rows: Sequence[AppendRows] = ()) -> None:
        """Queue a write; `tell` is called with its outcome, in the committer's task. Never blocks."""
        if self._closed:
            tell(Failed(has_closed()))
            return
        self._queue.append(Submission(write, rows, tell, trio.current_time() + self._patience))
        self._arrived.set()

    async def submit(self, write: Write) -> Verdict:
        """Queue a write and wait for its verdict.

        A cancel point: if the wait is cancelled the write is carried out all the same. Raises
        `StoreUnavailable` when it stays unknown whether it was applied.
        """
        outcomes: list[Outcome] = []
        told = trio.Event()

        def tell(outcome: Outcome) -> None:
            outcomes.append(outcome)
            told.set()

        self.post(write, tell)
        await told.wait()
        if isinstance(outcomes[0], StoreUnavailable):
            raise StoreUnavailable(str(outcomes[0])) from outcomes[0]
        return outcomes[0]

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            with trio.CancelScope() as self._scope:
                await self._work()
            for submission in self._carried:
                self._tell(submission, StoreUnavailable("the store did not answer in time: the engine is leaving"))

    def hurry(self, patience: float) -> None:
        """The engine leaves: what takes longer than this is given up, be it on its way already or yet to come."""
        self._is_leaving = True
        self._patience = min(self._patience, patience)
        until = trio.current_time() + self._patience
        for submission in (*self._carried, *self._queue):
            submission.given_up_at = min(submission.given_up_at, until)
        if self._carried:
            self._scope.deadline = until

    async def _work(self) -> None:
        while True:
            if not self._queue:
                self._idle.set()
                self._arrived = trio.Event()
                await self._arrived.wait()
            if self._idle.is_set():
                self._idle = trio.Event()
            self._carried = self._next_batch()
            if self._is_leaving:
                self._scope.deadline = max(submission.given_up_at for submission in self._carried)
            await self._carry_out(self._carried)
            self._carried = []
            self._scope.deadline = math.inf

    @property
    def is_closed(self) -> bool:
        """Whether nothing is carried out any more."""
        return self._closed

    def close(self) -> None:
        """Nothing is carried out any more: whoever waits, or comes now, is told so."""
        self._closed = True
        self._idle.set()
        doubtful, self._carried = self._carried, []
        for submission in doubtful:
            self._tell(submission, StoreUnavailable("the engine closed before the store answered"))
        while self._queue:
            self._queue.popleft().tell(Failed(has_closed()))

    def require_open(self) -> None:
        """Raise `InvalidState` if nothing is carried out any more."""
        if self._closed:
            raise has_closed()

    async def flushed(self) -> None:
        """Wait until nothing is queued or under way."""
        while self._queue or not self._idle.is_set():
            await self._idle.wait()

    def _next_batch(self) -> list[Submission]:
        """The oldest submissions, at most one per run; what has to wait keeps its place."""
        batch: list[Submission] = []
        held: list[Submission] = []
        runs: set[str] = set()
        while self._queue and len(batch) < MAX_BATCH:
            submission = self._queue.popleft()
            run_id = submission.run_id
            if run_id is not None and run_id in runs:
                held.append(submission)
                continue
            if run_id is not None:
                runs.add(run_id)
            batch.append(submission)
        self._queue.extendleft(reversed(held))
        return batch

    async def _carry_out(self, batch: list[Submission]) -> None:
        writes: list[Write] = []
        for submission in batch:
            writes.append(submission.write)
            writes.extend(submission.rows)
        try:
            verdicts = await self._store.write(writes)
        except StoreUnavailable as error:
            self._circuit.failed("write", error)
            await self._resolve_all(batch, error)
            return
        self._circuit.worked("write")
        self.batches += 1
        position = 0
        for submission in batch:
            self._tell(submission, verdicts[position])
            position += 1 + len(submission.rows)
        for write, verdict in zip(writes, verdicts, strict=True):
            if isinstance(write, AppendRows) and isinstance(verdict, Failed):
                self._logger.warning("%s rows of run %s are lost: %s", write.kind, write.run_id, verdict.error)

    def _tell(self, submission: Submission, outcome: Outcome) -> None:
        """Once: a batch that is cut short is told again from its beginning."""
        if submission.is_told:
            return
        submission.is_told = True
        if isinstance(outcome, Applied):
            self.commits += 1
        submission.tell(outcome)

    async def _resolve_all(self, batch: list[Submission], error: StoreUnavailable) -> None:
        """One after the other; those whose time is up are not tried on a store that has just been given up.

        Else each of them would wait for as long as the store takes to fail, and so would all who come later.
        """
        given_up: StoreUnavailable | None = None
        for submission in batch:
            if given_up is not None and trio.current_time() > submission.given_up_at:
                self._tell(submission, given_up)
            else:
                given_up = await self._resolve(submission, error)

    async def _resolve(self, submission: Submission, error: StoreUnavailable) -> StoreUnavailable | None:
        """Find out whether a doubtful write was applied, and carry it out if it certainly was not.

        Returns the error with which it was given up, if it was.
        """
        pause = _FIRST_PAUSE
        while True:
            try:
                outcome = await self._settle_doubt(submission.write)
            except StoreUnavailable as again:
                error = again
                outcome = None
            if outcome is not None:
                self._tell(submission, outcome)
                return None
            sleep = pause * (0.5 + self._chance.roll())
            if trio.current_time() + sleep > submission.given_up_at:
                self._logger.warning("the store stays unavailable: %s", error)
                self._tell(submission, error)
                return error
            await trio.sleep(sleep)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _settle_doubt(self, write: Write) -> Verdict | None:
        """The verdict, once known; the write is tried again only if it was not applied."""
        if isinstance(write, AppendRows):
            return Refused()
        known = await self._ask(write)
        if known is not None:
            return known
        try:
            verdict = (await self._store.write([write]))[0]
        except StoreUnavailable as error:
            self._circuit.failed("write", error)
            raise
        self._circuit.worked("write")
        if isinstance(verdict, Refused):
            return await self._ask(write) or verdict
        return verdict

    async def _ask(self, write: Write) -> Verdict | None:
        """What `_was_applied` finds, noting whether the store could be read."""
        try:
            known = await self._was_applied(write)
        except StoreUnavailable as error:
            self._circuit.failed("read", error)
            raise
        self._circuit.worked("read")
        return known

    async def _was_applied(self, write: Write) -> Verdict | None:
        """`Applied`, `Refused`, or None if it was not applied and still can be."""
        match write:
            case Update(before, after):
                return _verdict_of_update(await self._load(after.origin.id), before, after)
            case Insert(run):
                return _verdict_of_insert(await self._load(run.origin.id), run)
            case Delete(run_id, revision):
                return _verdict_of_delete(await self._load(run_id), revision)
            case PutSide(kind, key):
                return _verdict_of_side(await self._store.side(kind, key), write)
            case Quarantine() | AppendRows():
                return None

    async def _load(self, run_id: str) -> RunDoc | None:
        try:
            return await self._store.load(run_id)
        except DataCorruption:
            return None


def has_closed() -> InvalidState:
    """The error of whoever comes too late."""
    return InvalidState("the engine has closed: nothing can be written through it", action="write")


def _verdict_of_side(side: SideDoc | None, write: PutSide) -> Verdict | None:
    expected, body = write.expected, write.body
    if (None if side is None else side.revision) == expected:
        return None
    if side is None:
        return Applied() if body is None else Refused()
    revision = write.first if expected is None else expected + 1
    return Applied() if side.body == body and side.revision == revision else Refused()


def _verdict_of_insert(stored: RunDoc | None, run: RunDoc) -> Verdict | None:
    if stored is None:
        return None
    return Applied() if stored.origin.start_id == run.origin.start_id else Refused()


def _verdict_of_delete(stored: RunDoc | None, revision: int) -> Verdict | None:
    if stored is None:
        return Applied()
    return None if stored.head.revision == revision else Refused()


def _verdict_of_update(stored: RunDoc | None, before: RunDoc, after: RunDoc) -> Verdict | None:
    if stored is None:
        return Refused()
    if after.head.commits[-1] in stored.head.commits:
        return Applied()
    return None if stored.head.revision == before.head.revision else Refused()
