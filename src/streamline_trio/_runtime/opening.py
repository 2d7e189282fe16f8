"""Opening an engine: its nurseries, its services, and how it leaves."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import trio

from streamline_trio._core.checking import is_a, is_whole
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.due import NOW
from streamline_trio._core.durations import seconds_of
from streamline_trio._core.errors import StoreUnavailable, ValidationError, leaves_of
from streamline_trio._core.events import SchedulerCircuitOpen
from streamline_trio._core.naming import is_tag
from streamline_trio._core.retention import Retention
from streamline_trio._core.status import RunStatus
from streamline_trio._core.store import Hint, Store
from streamline_trio._runtime.admission import take_up
from streamline_trio._runtime.care import Care
from streamline_trio._runtime.circuit import Circuit
from streamline_trio._runtime.claimer import Claimer
from streamline_trio._runtime.clock import Chance, Clock, WallClock, virtual_clock
from streamline_trio._runtime.committer import GroupCommitter
from streamline_trio._runtime.crew import Crew
from streamline_trio._runtime.debounces import Debounces
from streamline_trio._runtime.delivery import sweep_later, try_sweep
from streamline_trio._runtime.emission import emit_from_run
from streamline_trio._runtime.engine import Engine
from streamline_trio._runtime.errands import Errands
from streamline_trio._runtime.expiry import Expiry
from streamline_trio._runtime.machinery import Machinery
from streamline_trio._runtime.migrator import Migrator
from streamline_trio._runtime.observer import Observer
from streamline_trio._runtime.polls import LEAST_PAUSE, Polls
from streamline_trio._runtime.publisher import Publisher
from streamline_trio._runtime.registry import Registry
from streamline_trio._runtime.schedule_firing import ScheduleFiring
from streamline_trio._runtime.services import Options, Services
from streamline_trio._runtime.slots import Slots
from streamline_trio._runtime.store_urls import store_from
from streamline_trio._runtime.tenancy import TENANCIES, Scope, Tenancy
from streamline_trio._runtime.triggers import look_for_triggers_soon
from streamline_trio._runtime.watcher import Watcher
from streamline_trio._runtime.worker import Worker

_UNWIND_WARNING = 5.0
_LAST_WRITES = 5.0
_SOMETHING = Hint(run_id="")


@asynccontextmanager
async def open_engine(
    store: Store | str,
    *workflows: Workflow[Any, Any],
    worker: bool = True,
    name: str | None = None,
    max_concurrent_runs: int = 1000,
    lease: float | timedelta = 15.0,
    poll_interval: float | timedelta = 1.0,
    drain_timeout: float | timedelta = 10.0,
    max_recoveries: int = 5,
    tenancy: Tenancy = "optional",
    retention: Retention | None = None,
    clock: Clock | None = None,
    logger: logging.Logger | None = None,
    chance: Chance | None = None,
) -> AsyncGenerator[Engine]:
    """Open an engine on a store; durations in seconds.

    With `worker=True` it drives runs of the given workflows, at most `max_concurrent_runs` at a time. `lease` is
    how long another worker waits before it takes the runs of one that went silent, `poll_interval` how long
    what another process wrote may go unseen. Leaving the block drains: nothing further begins, steps that run
    have `drain_timeout` to end, then they are cancelled and their runs handed back; all tasks have ended when
    it is left. A store that does not take these last writes within seconds is not waited for: other workers then
    find the runs as those of a worker that crashed. An exception of the body leaves unchanged. With
    `tenancy="required"` verbs outside a tenant's scope raise `TenantRequired`; what the engine does by itself is
    not affected. `retention` says after how long workers remove settled runs, all that are in the store; without
    it they are kept. `clock` and
    `chance` (ids and randomness) are for tests. Raises `DefinitionError`, `ValidationError`, `StoreUnavailable`.
    """
    options = Options(
        name=_checked_name(name),
        max_concurrent_runs=_whole(max_concurrent_runs, "max_concurrent_runs", 1),
        lease=_positive(lease, "lease"),
        poll_interval=_positive(poll_interval, "poll_interval"),
        drain_timeout=seconds_of(drain_timeout, what="drain_timeout"),
        max_recoveries=_whole(max_recoveries, "max_recoveries", 0),
        tenancy=_tenancy(tenancy),
        keeps_retention=bool(_ages(retention)),
    )
    opened = store_from(store)
    life = _Life(
        opened,
        Registry(workflows),
        options,
        is_worker=worker,
        clock=clock or virtual_clock.get() or WallClock(),
        chance=chance or Chance(),
        logger=logger or logging.getLogger("streamline_trio"),
        ages=_ages(retention),
    )
    await opened.open()
    failure: BaseException | None = None
    try:
        try:
            async with trio.open_nursery() as nursery:
                engine = await nursery.start(life.run)
                try:
                    yield engine
                except BaseException as error:  # noqa: BLE001 - it goes on unchanged once everything is drained
                    failure = error
                with trio.CancelScope(shield=True):
                    await life.leave()
        except BaseExceptionGroup as group:
            raise _only(group) from None
    finally:
        with trio.CancelScope(shield=True):
            await opened.aclose()
    if failure is not None:
        raise failure


def _only(group: BaseException) -> BaseException:
    """The one error in a group (cancellation that came beside it goes with it), or the group."""
    leaves = [leaf for leaf in leaves_of(group) if not isinstance(leaf, trio.Cancelled)]
    return leaves[0] if len(leaves) == 1 else group


class _Life:
    """One engine from opening to leaving. Its services outlive the body, whatever cancels that."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        options: Options,
        *,
        is_worker: bool,
        clock: Clock,
        chance: Chance,
        logger: logging.Logger,
        ages: dict[RunStatus, int],
    ) -> None:
        self._store = store
        self._ages = ages
        self._expiry: Expiry | None = None
        self._registry = registry
        self._options = options
        self._is_worker = is_worker
        self._clock = clock
        self._chance = chance
        self._logger = logger
        self._scope = trio.CancelScope()
        self._claiming = trio.CancelScope()
        self._finished = trio.Event()
        self._machinery: Machinery | None = None
        self._errands: Errands | None = None
        self._slots: Slots | None = None
        self._is_stirring = False
        self._stirred_at = -math.inf

    async def run(self, task_status: trio.TaskStatus[Engine]) -> None:
        """The service task: started once the engine can be used, ends when `leave` says so."""
        unwatch: Callable[[], None] | None = None
        machinery: Machinery | None = None
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    machinery, errands = self._build(nursery)
                    self._errands = errands
                    unwatch = self._store.watch(self._hinted)
                    nursery.start_soon(machinery.services.committer.run)
                    await self._prepare(machinery)
                    self._serve(nursery, machinery, errands)
                    self._machinery = machinery
                    self._scope.shield = True
                    task_status.started(Engine(machinery, Scope(required=self._options.tenancy == "required")))
        finally:
            if unwatch is not None:
                unwatch()
            if machinery is not None:
                machinery.services.committer.close()
                machinery.watcher.close()
            self._finished.set()

    def _build(self, nursery: trio.Nursery) -> tuple[Machinery, Errands]:
        publisher = Publisher(self._logger, nursery.start_soon)
        circuit = Circuit(
            self._chance,
            self._logger,
            longest=self._options.lease,
            opened=lambda failures, error: publisher.publish((self._outage(failures, error),)),
        )
        committer = GroupCommitter(
            self._store, self._chance, circuit, patience=self._options.lease, logger=self._logger
        )
        services = Services(
            store=self._store,
            clock=self._clock,
            chance=self._chance,
            circuit=circuit,
            options=self._options,
            polls=Polls(self._options.poll_interval, self._chance),
            logger=self._logger,
            nursery=nursery,
            token=trio.lowlevel.current_trio_token(),
            committer=committer,
            publisher=publisher,
            settled=lambda run: watcher.settled(run),  # noqa: PLW0108 - made below
            due=lambda due_at: claimer.notify(due_at),  # noqa: PLW0108 - made below
            emit=lambda *signal, **told: emit_from_run(machinery, *signal, **told),
            errands=lambda run: errands.committed(run),  # noqa: PLW0108 - made below
            registry=self._registry,
        )
        watcher = Watcher(services, drives=lambda run_id: run_id in crew.drivers)
        crew = Crew(
            services,
            capacity=self._options.max_concurrent_runs,
            worker=lambda: worker.held_id,
            ended=lambda run: self._ended(run, observer, claimer),
        )
        worker = Worker(
            services,
            routes=lambda: self._registry.routes if self._is_worker else (),
            running=lambda: len(crew.drivers),
            lost=lambda: crew.each(lambda driver: driver.abort("lost")),
        )
        observer = Observer(services, lambda: worker.held_id)
        claimer = Claimer(services, self._registry, crew, worker, observer)
        takes_over = self._is_worker and self._registry.migrating
        machinery = Machinery(
            services=services,
            registry=self._registry,
            crew=crew,
            worker=worker,
            observer=observer,
            claimer=claimer,
            debounces=Debounces(services),
            migrator=Migrator(services, self._registry, crew, worker, claimer) if takes_over else None,
            watcher=watcher,
            is_worker=self._is_worker,
            crash=self._crash,
            take_up=lambda run_id, happening, known: take_up(machinery, run_id, happening, known),
        )
        machinery.slots = self._slots = Slots(machinery)
        machinery.firing = ScheduleFiring(machinery)
        errands = Errands(machinery)
        return machinery, errands

    def _outage(self, failures: int, error: StoreUnavailable) -> SchedulerCircuitOpen:
        return SchedulerCircuitOpen(
            run_id="", workflow="", at_millis=self._clock.now(), failures=failures, error=str(error)
        )

    def _ended(self, run: RunDoc, observer: Observer, claimer: Claimer) -> None:
        """A driver ended: its run may be due already, and runs of dead workers may have had to wait for it."""
        due_at = run.head.due_at
        if observer.dead or (due_at is not None and due_at <= self._clock.now()):
            claimer.wake()

    async def _prepare(self, machinery: Machinery) -> None:
        try:
            await self._registry.publish(self._store)
            if self._is_worker:
                await machinery.worker.enlist()
                await machinery.observer.look(holders=True)
                await machinery.firing.look()
                await self._look_for_errands()
            # An opener that is cancelled by now would never come to `leave`.
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            await machinery.worker.abandon()
            raise

    async def _look_for_errands(self) -> None:
        """Errands that were left behind: those that are due, and where nothing is periodic those that will be."""
        assert self._errands is not None
        if self._store.exclusive:
            self._errands.look_later()
        else:
            await self._errands.look()
        if self._slots is not None:
            await self._slots.look(everywhere=self._store.exclusive)

    def _serve(self, nursery: trio.Nursery, machinery: Machinery, errands: Errands) -> None:
        if not self._store.exclusive:
            nursery.start_soon(machinery.worker.keep_alive)
            nursery.start_soon(machinery.watcher.run)
            nursery.start_soon(Care(machinery, errands).run)
        if self._is_worker:
            nursery.start_soon(self._claim, machinery)
            self._expiry = Expiry(machinery, self._ages)
            nursery.start_soon(self._expiry.run)
            nursery.start_soon(self._go_on_with_broadcasts, machinery)
        nursery.start_soon(trio.sleep_forever)

    async def _go_on_with_broadcasts(self, machinery: Machinery) -> None:
        """Those that were left behind."""
        look_for_triggers_soon(machinery)
        if not await try_sweep(machinery) and self._store.exclusive:
            await sweep_later(machinery)

    async def _claim(self, machinery: Machinery) -> None:
        with self._claiming:
            async with trio.open_nursery() as nursery:
                if machinery.migrator is not None:
                    nursery.start_soon(machinery.migrator.run)
                nursery.start_soon(machinery.firing.run)
                nursery.start_soon(machinery.claimer.run)

    def _hinted(self, hint: Hint) -> None:
        """The store tells of a write, perhaps by another engine."""
        machinery = self._machinery
        if machinery is None or self._is_ending(machinery):
            return
        machinery.firing.hinted(hint)
        if hint.due_at is not None:
            self._fell_due(machinery, hint.run_id, hint.due_at)
        if hint.settled:
            self._settled(machinery, hint.run_id)
        if hint == _SOMETHING:
            self._stir()
        if hint.worker is None:
            return
        if hint.worker == machinery.worker.id:
            driver = machinery.crew.drivers.get(hint.run_id)
            if driver is not None:
                driver.writer.refresh()
        elif not hint.run_id and self._is_worker:
            machinery.services.spawn(self._look)

    def _settled(self, machinery: Machinery, run_id: str) -> None:
        if run_id not in machinery.crew.drivers:
            machinery.watcher.hinted(run_id)
        if self._store.exclusive and self._expiry is not None:
            self._expiry.settled()

    def _fell_due(self, machinery: Machinery, run_id: str, due_at: int) -> None:
        machinery.claimer.notify(due_at)
        if machinery.migrator is not None:
            machinery.migrator.notify()
        if not run_id and due_at == NOW:
            look_for_triggers_soon(machinery)

    def _stir(self) -> None:
        """Others wrote: let all who look from time to time look now, but not all the time."""
        if not self._is_stirring and self._machinery is not None:
            self._is_stirring = True
            self._machinery.services.spawn(self._stir_soon)

    async def _stir_soon(self) -> None:
        machinery = self._machinery
        assert machinery is not None
        await trio.sleep_until(self._stirred_at + LEAST_PAUSE)
        self._is_stirring, self._stirred_at = False, trio.current_time()
        machinery.services.polls.stir()
        machinery.claimer.wake()

    def _is_ending(self, machinery: Machinery) -> bool:
        """Whether no task can be started any more; the writer, perhaps another engine, must not feel that."""
        return self._scope.cancel_called or machinery.services.nursery.cancel_scope.cancel_called

    async def _look(self) -> None:
        """A worker's lock was released: it may have left runs behind."""
        machinery = self._machinery
        assert machinery is not None
        try:
            # On an exclusive store nobody looks again.
            if await machinery.services.read(lambda: machinery.observer.look(holders=True)):
                machinery.claimer.wake()
            if self._store.exclusive:
                await self._look_for_errands()
                await self._go_on_with_broadcasts(machinery)
            if machinery.migrator is not None:
                machinery.migrator.wake()
        except StoreUnavailable as error:
            self._logger.warning("cannot look after other workers: %s", error)

    async def _crash(self) -> None:
        """For tests: end every task without a word, as if the process had died; its lock goes with it."""
        machinery = self._machinery
        assert machinery is not None
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._finished.wait()
            await machinery.worker.abandon()

    # --- leaving -------------------------------------------------------------------------------------------

    async def leave(self) -> None:
        """Drain, hand back what is left, sign off, end every task."""
        machinery = self._machinery
        try:
            if machinery is not None and not self._finished.is_set():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._cancel_when_finished, nursery.cancel_scope)
                    await self._drain(machinery)
                    until = trio.current_time() + _LAST_WRITES
                    with trio.CancelScope(deadline=until):  # no run is held any more, only a beat may be on its way
                        await machinery.deliveries.leave()
                        await machinery.firing.idle()
                        await self._finish_errands()
                        await machinery.services.committer.flushed()
                    await machinery.worker.discharge(until)
                    nursery.cancel_scope.cancel()
                machinery.services.publisher.close()
        finally:
            self._scope.cancel()
        await self._finished.wait()

    async def _finish_errands(self) -> None:
        """Those that are under way: what is left over, others find when it falls due."""
        if self._errands is not None:
            await self._errands.idle()

    async def _cancel_when_finished(self, scope: trio.CancelScope) -> None:
        """If the services die while we drain, there is nothing left to wait for."""
        await self._finished.wait()
        scope.cancel()

    async def _drain(self, machinery: Machinery) -> None:
        crew = machinery.crew
        self._claiming.cancel()
        crew.close()
        with trio.move_on_after(self._options.drain_timeout):
            await crew.wait_empty()
        machinery.services.committer.hurry(_LAST_WRITES)
        crew.each(lambda driver: driver.abort("leave"))
        while not crew.is_empty:
            with trio.move_on_after(_UNWIND_WARNING):
                await crew.wait_empty()
            for run_id, driver in crew.drivers.items():
                self._logger.warning(
                    "step %s of run %s does not unwind: its handler ignores cancellation",
                    driver.run.head.current_step,
                    run_id,
                )


def _checked_name(name: str | None) -> str | None:
    if name is not None and not is_tag(name):
        raise ValidationError(f"name is a short printable text, not {name!r}")
    return name


def _tenancy(value: Tenancy) -> Tenancy:
    if value not in TENANCIES:
        raise ValidationError(f"tenancy is one of {TENANCIES}, not {value!r}")
    return value


def _ages(retention: Retention | None) -> dict[RunStatus, int]:
    if retention is not None and not is_a(retention, Retention):
        raise ValidationError(f"retention is a Retention or None, not {retention!r}")
    return {} if retention is None else retention.ages()


def _positive(value: float | timedelta, what: str) -> float:
    seconds = seconds_of(value, what=what)
    if seconds <= 0:
        raise ValidationError(f"{what} must be positive, not {value!r}")
    return seconds


def _whole(value: int, what: str, least: int) -> int:
    if not is_whole(value, least):
        raise ValidationError(f"{what} is a whole number of at least {least}, not {value!r}")
    return value
