"""The drivers of one worker, and how many more it may take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import RunDoc
from streamline_trio._runtime.driver import Driver
from streamline_trio._runtime.services import Services
from streamline_trio._runtime.threads import HandlerThreads

FRAGILE_FROM = 2
_THREADS = 100


class Crew:
    """Starts a driver for every run that is leased to this worker, and keeps count.

    A place is reserved before the write that takes a run, so that capacity is never overdrawn. `expected`
    names the runs whose taking is under way: leased, perhaps, but not driven yet.
    """

    def __init__(
        self,
        services: Services,
        *,
        capacity: int,
        worker: Callable[[], str | None],
        ended: Callable[[RunDoc], None],
    ) -> None:
        self._services = services
        self._worker = worker
        self._ended = ended
        self._capacity = capacity
        self._reserved = 0
        self.threads: HandlerThreads = HandlerThreads(min(capacity, _THREADS), services.logger)
        self.drivers: dict[str, Driver] = {}
        self.expected: set[str] = set()
        self.closed: bool = False
        self._changed: trio.Event | None = None

    @property
    def free(self) -> int:
        """How many runs more it may take."""
        return 0 if self.closed else self._capacity - len(self.drivers) - self._reserved

    @property
    def fragile(self) -> int:
        """How many of its runs were recovered twice or more in a row: they may be what kills workers."""
        return sum(driver.run.head.streak >= FRAGILE_FROM for driver in self.drivers.values())

    def try_reserve(self, run_id: str) -> bool:
        """A place for this run, if there is one and it is not driven here already."""
        if self.free <= 0 or run_id in self.drivers or run_id in self.expected:
            return False
        self._reserved += 1
        self.expected.add(run_id)
        return True

    def cancel_reservation(self, run_id: str) -> None:
        """The run was not taken after all."""
        self._reserved -= 1
        self.expected.discard(run_id)
        self._tell()

    def drive(self, run: RunDoc, workflow: Workflow[Any, Any]) -> Driver:
        """Use the reservation: start the driver of a run that is now leased to this worker."""
        self.cancel_reservation(run.origin.id)
        driver = Driver(self._services, run, workflow, self.threads, over=self._over)
        self.drivers[run.origin.id] = driver
        if driver.writer.worker != self._worker():
            driver.abort("lost")  # it was taken under an id that has been retired since
        elif self.closed:
            driver.leave()
            driver.abort("leave")  # nothing of it has begun
        self._services.nursery.start_soon(driver.drive)
        return driver

    def _over(self, driver: Driver) -> None:
        del self.drivers[driver.run.origin.id]
        self._tell()
        self._ended(driver.run)

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def wait_changed(self) -> None:
        """Until a place has become free."""
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is driven and nothing is being taken."""
        return not self.drivers and not self._reserved

    async def wait_empty(self) -> None:
        """Until nothing is driven and nothing is being taken."""
        while not self.is_empty:
            await self.wait_changed()

    def close(self) -> None:
        """Take nothing more, and let every run go at the end of its present step."""
        self.closed = True
        self.each(lambda driver: driver.leave())

    def each(self, act: Callable[[Driver], None]) -> None:
        """Do something to every driver."""
        for driver in list(self.drivers.values()):
            act(driver)
