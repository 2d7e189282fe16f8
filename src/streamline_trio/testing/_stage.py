"""A stage: an engine for the scenario, and behind it workers that meet a mishap and are replaced."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import Any

import trio

from streamline_trio import Engine, Step, Store, Workflow, open_engine
from streamline_trio._core.errors import leaves_of
from streamline_trio._runtime.clock import Chance
from streamline_trio._runtime.store_urls import store_from
from streamline_trio.store import Write
from streamline_trio.testing import _writes
from streamline_trio.testing._crash import crash
from streamline_trio.testing._faulty_store import FaultyStore
from streamline_trio.testing._mishaps import (
    CrashAt,
    DeliverTwice,
    FailCall,
    LoseLeaseAt,
    Mishap,
    MishapMissed,
    check_mishap,
)
from streamline_trio.testing._twice import TwiceEngine
from streamline_trio.testing._wrapped_store import Act, WrappedStore

LONGEST_HOLD = 5.0
"""How long (seconds) an heir waits for the late write of the one it took over from."""

_LOOKS_FOR_WORK: dict[str, Callable[[], Any]] = {
    "due": list,
    "due_in_turn": list,
    "errands": list,
    "leased": list,
    "leased_by_priority": list,
    "next_due": lambda: None,
}

_current: ContextVar[_Life] = ContextVar("streamline_trio_testing_life")
_around: ContextVar[Stage] = ContextVar("streamline_trio_testing_stage")


class _Life:
    """One worker, from opening to death."""

    def __init__(self, stage: Stage, mishap: CrashAt | LoseLeaseAt | None, before: _Life | None) -> None:
        self.stage = stage
        self.mishap = mishap
        self.before = before
        self.store = _LifeStore(stage.store, self)
        self.engine: Engine | None = None
        self.over = trio.Event()
        self.is_cut = False
        self.lost_as: str | None = None
        self.taken = trio.Event()
        self.answered = trio.Event()
        self._writes = 0

    # --- what happens at a write ---------------------------------------------------------------------------

    async def write(self, batch: Sequence[Write], act: Act) -> Any:
        """A write of this worker's engine, on its way to the store."""
        if self.is_cut:
            await trio.sleep_forever()
        if self.lost_as is not None:
            return await self._write_late(act)
        number = self._strikes(batch)
        if number is None:
            verdicts = await act()
            await self._let_the_late_write_come(batch)
            return verdicts
        if isinstance(self.mishap, CrashAt):
            when = self.mishap.when
            if when == "after":
                await act()
            self.stage.struck = f"the worker died {when} its write {number} was carried out ({_writes.told(batch)})"
            self.die()
            await trio.sleep_forever()
        self.stage.struck = f"the worker lost its lease before its write {number} ({_writes.told(batch)})"
        await self.lose_lease()
        return await self._write_late(act)

    def _strikes(self, batch: Sequence[Write]) -> int | None:
        """The number of this write, if the mishap is at it."""
        if self.engine is None or self.mishap is None or self.stage.struck is not None or self.stage.is_over:
            return None
        worker = self.engine.worker_id
        if isinstance(self.mishap, LoseLeaseAt):
            batch = [write for write in batch if _writes.is_held_by(write, worker)]
            if not batch:
                return None
        number, self._writes = self._writes, self._writes + 1
        if self.mishap.step is None:
            return number if number == self.mishap.write else None
        step = self.mishap.step
        step_id = step.id if isinstance(step, Step) else step
        meant = _writes.ends if self.mishap.on == "end" else _writes.begins
        return number if any(meant(write, step_id) for write in batch) else None

    async def _write_late(self, act: Act) -> Any:
        try:
            return await act()
        finally:
            self.answered.set()

    async def _let_the_late_write_come(self, batch: Sequence[Write]) -> None:
        """An heir goes on when the one it took over from has shown what it still does."""
        late = self.before
        if late is None or late.lost_as is None or late.taken.is_set():
            return
        if any(_writes.takes_from(write, late.lost_as) for write in batch):
            late.taken.set()
            with trio.move_on_after(LONGEST_HOLD):
                await late.answered.wait()

    # --- what becomes of it --------------------------------------------------------------------------------

    def die(self) -> None:
        """Nothing more is written; the engine ends as by a crash, and another worker is opened."""
        self.is_cut = True
        self.stage.nursery.start_soon(self._die)

    async def _die(self) -> None:
        assert self.engine is not None
        await crash(self.engine)
        self.over.set()
        await self.stage.open_worker(self)

    async def lose_lease(self) -> None:
        """The others take this worker for dead and take over; returns once they have."""
        assert self.engine is not None
        self.lost_as = self.engine.worker_id
        assert self.lost_as is not None
        await self.stage.store.drop_worker(self.lost_as)
        await self.stage.open_worker(self)
        with trio.move_on_after(LONGEST_HOLD):
            await self.taken.wait()

    async def live(self, task_status: trio.TaskStatus[None]) -> None:
        """The worker's task."""
        _current.set(self)
        async with self.stage.open_engine(self.store) as engine:
            self.engine = engine
            task_status.started()
            await self.over.wait()
            if self.lost_as is not None:
                await crash(engine)


class _LifeStore(WrappedStore):
    """The store as one worker sees it."""

    def __init__(self, inner: Any, life: _Life) -> None:
        super().__init__(inner)
        self.life = life

    async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
        if name == "write":
            return await self.life.write(args[0], act)
        if self.life.lost_as is not None and name in _LOOKS_FOR_WORK:
            await trio.lowlevel.checkpoint()
            return _LOOKS_FOR_WORK[name]()
        return await act()


class Stage:
    """What one play shares: the store, the workers' options, and whether the mishap has happened."""

    def __init__(
        self,
        store: Store,
        workflows: tuple[Workflow[Any, Any], ...],
        options: dict[str, Any],
        mishap: Mishap | None,
    ) -> None:
        self.store = store
        self.workflows = workflows
        self.options = options
        self.mishap = mishap
        self.struck: str | None = None
        self.is_over: bool = False
        self.verbs_used: set[str] = set()
        self.nursery: trio.Nursery
        self._lives: list[_Life] = []
        self._opened = 0

    async def open_worker(self, before: _Life | None = None) -> None:
        """Open the first worker, or the one that goes on after `before`, unless the scenario has ended."""
        if self.is_over:
            return
        mishap = self.mishap if before is None and isinstance(self.mishap, CrashAt | LoseLeaseAt) else None
        life = _Life(self, mishap, before)
        self._lives.append(life)
        await self.nursery.start(life.live)

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[Engine]:
        """The scenario's engine, for as long as the block lasts."""
        _around.set(self)
        try:
            async with self._opened_for_the_scenario() as engine:
                yield engine
        finally:
            self.is_over = True

    @asynccontextmanager
    async def _opened_for_the_scenario(self) -> AsyncGenerator[Engine]:
        if isinstance(self.mishap, FailCall):
            async with self._on_a_faulty_store(self.mishap) as engine:
                yield engine
            return
        async with self.open_engine(self.store, worker=False) as client, self._workers():
            if isinstance(self.mishap, DeliverTwice):
                yield TwiceEngine(client, self.mishap, self._delivered_twice)
            else:
                yield client

    def open_engine(self, store: Store, **options: Any) -> AbstractAsyncContextManager[Engine]:
        """One of the play's engines, whose ids and randomness are the same in each play."""
        self._opened += 1
        merged: dict[str, Any] = {"chance": Chance(self._opened), **self.options, **options}
        return open_engine(store, *self.workflows, **merged)

    @asynccontextmanager
    async def _on_a_faulty_store(self, mishap: FailCall) -> AsyncGenerator[Engine]:
        store = FaultyStore(self.store, {mishap.call}, mishap.when)
        try:
            async with self.open_engine(store) as engine:
                store.armed = True
                yield engine
        finally:
            if store.calls > mishap.call:
                name = store.names[mishap.call]
                self.struck = f"the store failed call {mishap.call} ({name}) {mishap.when} it was carried out"

    @asynccontextmanager
    async def _workers(self) -> AsyncGenerator[None]:
        failure: BaseException | None = None
        try:
            async with trio.open_nursery() as self.nursery:
                await self.open_worker()
                try:
                    yield
                except BaseException as error:  # noqa: BLE001 - it goes on unchanged once every worker has ended
                    failure = error
                self.is_over = True
                for life in self._lives:
                    life.over.set()
        except BaseExceptionGroup as group:
            leaves = list(leaves_of(group))
            raise (leaves[0] if len(leaves) == 1 else group) from None
        if failure is not None:
            raise failure

    def _delivered_twice(self, what: str) -> None:
        self.struck = what


class _Died(BaseException):
    """Unwinds a handler whose process is gone; a cancellation would not get through a shield."""


async def crash_here() -> None:
    """Let the process of the worker that calls this die on the spot; another worker goes on.

    For handlers, or rather the stand-ins of a test that they call, in a `play` or on a `open_stage`. It happens
    once a play: the next call returns at once, so that the run gets further. What the handler's `finally` blocks
    do afterwards is not written. `LookupError` elsewhere.
    """
    life = _life_of("crash_here")
    if life is not None:
        life.die()
        raise _Died


async def lose_lease_here() -> None:
    """Let the worker that calls this be taken for dead, wrongly: another worker takes its run over.

    It returns when that has happened: the handler goes on, and what it writes comes too late (`LeaseLost`); the
    other calls the handler again. It happens once a play: the next call returns at once. `LookupError` where
    there is no stage.
    """
    life = _life_of("lose_lease_here")
    if life is not None:
        await life.lose_lease()


def _life_of(verb: str) -> _Life | None:
    """The calling handler's worker; None if the verb was used up in this play."""
    try:
        life = _current.get()
    except LookupError:
        raise LookupError(_why_not(verb)) from None
    if verb in life.stage.verbs_used:
        return None
    life.stage.verbs_used.add(verb)
    return life


def _why_not(verb: str) -> str:
    stage = _around.get(None)
    if stage is None or stage.is_over:
        return f"{verb}() is for handlers that run in `play`, `sweep` or on `open_stage`"
    if isinstance(stage.mishap, FailCall):
        return f"{verb}(): with {stage.mishap!r} there is one engine only, and no other that could go on"
    return f"{verb}() was called by the scenario, which is no worker: it is for handlers, and for what they call"


@asynccontextmanager
async def open_stage(
    store: Store | str, *workflows: Workflow[Any, Any], mishap: Mishap | None = None, **options: Any
) -> AsyncGenerator[Engine]:
    """Open an engine as `open_engine` does, but for tests: its workers are others, which may die.

    The engine that it gives starts, answers and reads; a worker on the same store drives the runs, meets the
    `mishap` if there is one, and is replaced by the next. So it outlives whatever happens to the workers; what
    only the driving process can tell (events, frames) is not heard through it. With `FailCall` there is only
    one engine, which does both. `options` are those of `open_engine`, for all engines. Leaving the block raises
    `MishapMissed` if the mishap did not happen.
    """
    check_mishap(mishap, [step for workflow in workflows for step in workflow.steps])
    stage = Stage(store_from(store), workflows, options, mishap)
    async with stage.opened() as engine:
        yield engine
    if mishap is not None and stage.struck is None:
        raise MishapMissed(f"{mishap!r} did not happen: nothing done on the stage came to that point")
