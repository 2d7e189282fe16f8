"""The one thread that writes.

A hop to a thread of its own costs half of what `trio.to_thread` does, which has to find a thread, carry context
variables over and account for it; at one run at a time that is a good part of a commit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_IDLE = 0.04
_CALLS = 8


class _Job(Generic[T]):
    """A call, the task that waits for it, and what came of it."""

    __slots__ = ("_begun", "_function", "_task", "_token", "error", "is_given_up", "result")

    def __init__(self, function: Callable[[], T]) -> None:
        self.result: T
        self.error: BaseException | None = None
        self.is_given_up = False
        self._function = function
        self._task = trio.lowlevel.current_task()
        self._token = trio.lowlevel.current_trio_token()
        self._begun = threading.Lock()

    def carry_out(self) -> None:
        """In the thread: call, and wake the task."""
        if not self._begun.acquire(blocking=False):
            return
        try:
            self.result = self._function()
        except BaseException as error:  # noqa: BLE001 - it is the waiting task's
            self.error = error
        # If that task's run is over, there is nobody to tell.
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(trio.lowlevel.reschedule, self._task)

    def try_withdraw(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        """In the trio thread: what has begun is waited for, cancelled or not; it may ask, and end sooner."""
        self.is_given_up = True
        withdrawn = self._begun.acquire(blocking=False)
        return trio.lowlevel.Abort.SUCCEEDED if withdrawn else trio.lowlevel.Abort.FAILED


class WriterThread:
    """Carries out calls one after the other. It runs from the first call until `stop`.

    `between` is called after every few calls, and every few milliseconds while there are none.
    """

    def __init__(self, name: str, between: Callable[[], None]) -> None:
        self._name = name
        self._between = between
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._job: _Job[Any] | None = None

    @property
    def is_given_up(self) -> bool:
        """For the call under way, in the thread: whether its task was cancelled and waits only for it to end."""
        return self._job is not None and self._job.is_given_up

    @trio.lowlevel.enable_ki_protection  # else Ctrl-C could end the task that the thread is to wake
    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call it in the thread. A cancel point until the call has begun."""
        job = _Job(lambda: function(*args))
        with self._lock:
            if self._thread is None:
                # A daemon, so that a store which nobody closed does not keep the process alive.
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
            self._jobs.put(job)
        await trio.lowlevel.wait_task_rescheduled(job.try_withdraw)
        if job.error is None:
            return job.result
        try:
            raise job.error
        finally:
            del job  # else the error and this frame would hold each other

    def stop(self) -> None:
        """End the thread after the calls that it was given; a later call starts another."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._jobs.put(None)
                thread.join()

    def _work(self) -> None:
        calls = 0
        while True:
            try:
                job = self._jobs.get(timeout=_IDLE)
            except Empty:
                calls = 0
                self._between()
                continue
            if job is None:
                return
            self._job = job
            job.carry_out()
            self._job = job = None  # else the last call would be kept until the next one
            calls += 1
            if calls % _CALLS == 0:
                self._between()
