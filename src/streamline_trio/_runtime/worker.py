"""The worker's identity: one document with a beat, renewed by one small write, and a lock where there are locks.

A worker that cannot renew its beat in time stops its own handlers before anybody else may take its runs (the
lease less a grace, counted from when it *sent* its last successful beat, on its own monotonic clock). Then it
retires its id and takes a new one: an id never comes back.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import msgspec
import trio

from streamline_trio._core.errors import StoreUnavailable
from streamline_trio._core.store import Applied, Failed, PutSide, Route
from streamline_trio._runtime.services import Services

WORKERS = "worker"
_BEATS_PER_LEASE = 3
_GRACE = 0.2


class WorkerDoc(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a worker tells of itself. The side document's revision is its beat."""

    state: Literal["live", "dead"] = "live"
    lease: float
    started_at: int
    beat_at: int
    name: str | None = None
    routes: tuple[Route, ...] = ()
    capacity: int = 0
    running: int = 0
    loop_lag: float = 0.0
    host: str = ""
    pid: int = 0
    keeps_retention: bool = False


_decode = msgspec.msgpack.Decoder(WorkerDoc).decode
_encode = msgspec.msgpack.encode


def decode_worker(body: bytes) -> WorkerDoc:
    """A worker's document from its stored form."""
    return _decode(body)


class Worker:
    """This engine's worker. It has an id once it has enlisted; while it changes it, it has none."""

    def __init__(
        self,
        services: Services,
        routes: Callable[[], Sequence[Route]],
        running: Callable[[], int],
        *,
        lost: Callable[[], None],
    ) -> None:
        self._id: str | None = None
        self.loop_lag: float = 0.0
        self._services = services
        self._routes = routes
        self._running = running
        self._lost = lost
        self._beat = 0
        self._sent = 0.0
        self._good_until = float("inf")
        self._started_at = 0
        self._lock = trio.Lock()
        self.retirements: int = 0

    @property
    def id(self) -> str | None:
        """The id to lease runs under; None if there is none, or its last beat is too old to begin anything."""
        return None if trio.current_time() >= self._good_until else self._id

    @property
    def held_id(self) -> str | None:
        """The id whose lock and document are ours, however old its last beat."""
        return self._id

    async def enlist(self) -> str:
        """Take an id, its lock and its document, in that order and before the first leased write."""
        async with self._lock:
            if self._id is None:
                await self._enlist()
            assert self._id is not None
            return self._id

    async def _enlist(self) -> None:
        """Under a fresh id; under another one if so long went by that it was declared dead meanwhile."""
        while not await self._try_enlist():
            self._services.logger.warning("a worker id was declared dead before it was in use: another is taken")

    async def _try_enlist(self) -> bool:
        services = self._services
        worker_id = services.chance.worker_id()
        self._started_at = services.clock.now()
        sent = trio.current_time()
        await services.store.hold_worker(worker_id)
        try:
            verdict = await services.committer.submit(PutSide(WORKERS, worker_id, None, self._body()))
        except BaseException:
            await self._release(worker_id)
            raise
        if not isinstance(verdict, Applied):
            await self._release(worker_id)
            if isinstance(verdict, Failed):
                raise verdict.error
            return False
        self._beat = 1
        self._renewed(sent)
        self._id = worker_id
        return True

    def _renewed(self, sent: float) -> None:
        lease = self._services.options.lease
        self._sent = sent
        self._good_until = float("inf") if self._services.store.exclusive else sent + lease * (1 - _GRACE)

    def _body(self, state: Literal["live", "dead"] = "live") -> bytes:
        options = self._services.options
        return _encode(
            WorkerDoc(
                state=state,
                lease=options.lease,
                started_at=self._started_at,
                beat_at=self._services.clock.now(),
                name=options.name,
                routes=tuple(self._routes()),
                capacity=options.max_concurrent_runs,
                running=self._running(),
                loop_lag=round(self.loop_lag, 4),
                host=socket.gethostname(),
                pid=os.getpid(),
                keeps_retention=options.keeps_retention,
            )
        )

    async def keep_alive(self) -> None:
        """Beat every third of a lease; retire when a beat is refused or does not get through in time."""
        interval = self._services.options.lease / _BEATS_PER_LEASE
        while True:
            # Counted from when the last beat was sent: one that was slow to get through leaves less time.
            now = trio.current_time()
            planned = now + interval if self._id is None else max(self._sent + interval, now)
            await trio.sleep_until(planned)
            self.loop_lag = max(trio.current_time() - planned, 0.0)
            worker_id = self._id
            if worker_id is None:
                continue
            with trio.CancelScope(deadline=self._good_until):
                if await self._try_beat(worker_id):
                    continue
            await self._retire()

    async def _try_beat(self, worker_id: str) -> bool:
        """One beat, tried until it is applied or refused; True if applied."""
        while True:
            sent = trio.current_time()
            try:
                verdict = await self._services.committer.submit(
                    PutSide(WORKERS, worker_id, self._beat, self._body())
                )
            except StoreUnavailable:
                await trio.lowlevel.checkpoint()
                continue
            if not isinstance(verdict, Applied):
                return False
            self._beat += 1
            self._renewed(sent)
            return True

    async def _retire(self) -> None:
        """Stop every handler, mark the old id dead, and go on under a new one."""
        async with self._lock:
            old, self._id = self._id, None
            if old is None:
                return  # signed off while its last beat was on its way
            self.retirements += 1
            self._services.logger.warning("worker %s lost its lease: its runs go to others", old)
            self._lost()
            try:
                await self._until_available(lambda: self._bury(old))
            finally:
                await self._release(old)
            await self._until_available(self._enlist)

    async def _bury(self, worker_id: str) -> None:
        """Mark the document dead, whatever beat of it is still on its way."""
        store, committer = self._services.store, self._services.committer
        while side := await store.side(WORKERS, worker_id):
            if decode_worker(side.body).state == "dead":
                return
            await committer.submit(PutSide(WORKERS, worker_id, side.revision, self._body("dead")))

    async def _release(self, worker_id: str) -> None:
        """Release the lock, if it is ours; the operating system does if we cannot."""
        with trio.CancelScope(shield=True):
            try:
                await self._services.store.drop_worker(worker_id)
            except StoreUnavailable as error:
                self._services.logger.warning("the lock of worker %s was not released: %s", worker_id, error)

    async def _until_available(self, act: Callable[[], Awaitable[object]]) -> None:
        circuit = self._services.circuit
        while True:
            try:
                await act()
            except StoreUnavailable:
                if circuit.is_open:
                    await circuit.pause()
                else:
                    await trio.sleep(self._services.options.poll_interval)
            else:
                return

    async def discharge(self, until: float) -> None:
        """Remove the document and release the lock: nothing is leased to this id any more.

        The lock tells whoever looks that the worker is gone, so that the document is not worth waiting for
        longer than `until`, on trio's clock.
        """
        with trio.move_on_at(until):
            async with (
                self._lock
            ):  # an id that is being retired is first marked dead: its runs go to others at once
                pass
        worker_id, self._id = self._id, None
        if worker_id is None:
            return
        try:
            with trio.fail_at(until):
                await self._services.read(lambda: self._sign_off(worker_id))
        except (StoreUnavailable, trio.TooSlowError) as error:
            self._services.logger.warning("worker %s could not sign off: %r", worker_id, error)
        finally:
            await self._release(worker_id)

    async def abandon(self) -> None:
        """Release the lock without a word: whoever looks sees that the worker is gone."""
        worker_id, self._id = self._id, None
        if worker_id is not None:
            await self._release(worker_id)

    async def _sign_off(self, worker_id: str) -> None:
        """Written past the committer, which has nothing left to write but perhaps a last beat."""
        store = self._services.store
        while side := await store.side(WORKERS, worker_id):
            await store.write([PutSide(WORKERS, worker_id, side.revision, None)])
