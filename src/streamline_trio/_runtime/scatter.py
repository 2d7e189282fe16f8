"""Many functions at a time inside a step, each kept by itself: the durable fan-out.

Every unfinished key runs as a strand of its own. One that finishes is committed at once, so that no later crash or
retry calls it again. One that suspends unwinds alone; if others still run its wait is opened at once, and when
that is over the key is called again here. When every key has finished or suspended, the strand that called scatter
unwinds with all that is waited for, in one write.
"""

from __future__ import annotations

import heapq
import inspect
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import trio

from streamline_trio._core import payload
from streamline_trio._core.checking import is_mapping, is_text, is_whole
from streamline_trio._core.documents import Record
from streamline_trio._core.errors import (
    LeaseLost,
    StoreUnavailable,
    StreamlineError,
    SuspensionError,
    ValidationError,
)
from streamline_trio._core.happenings import Ask, TimeCame, WaitsOpened
from streamline_trio._core.joins import goes_on
from streamline_trio._runtime.frames import Frame, escape, is_in_line
from streamline_trio._runtime.pieces import Pieces
from streamline_trio._runtime.suspension import Parking, Strand

LONGEST_KEY = 500
_NOTES = 10
_TURNS = 4


class Key:
    """One key of a scatter: its function, where its result is kept, and what it waits for."""

    __slots__ = ("fn", "name", "parking", "path")

    def __init__(self, name: str, fn: Callable[[], Any], path: str) -> None:
        self.name: str = name
        self.fn: Callable[[], Any] = fn
        self.path: str = path
        self.parking: Parking | None = None

    @property
    def prefix(self) -> str:
        """The prefix of its frame."""
        return self.path + "/"


class Scatter:
    """One call of scatter in one entry."""

    def __init__(
        self,
        pieces: Pieces,
        path: str,
        fns: Mapping[str, Callable[[], Any]],
        concurrency: int | None,
        decoder: payload.Decoder,
        *,
        guarded: Callable[..., Awaitable[Any]],
    ) -> None:
        self._pieces = pieces
        self._guarded = guarded
        self._driver = pieces.driver
        self._suspender = pieces.suspender
        self._decoder = decoder
        self._limit = math.inf if concurrency is None else concurrency
        self._keys = [Key(name, fn, f"{path}:{escape(name)}") for name, fn in fns.items()]
        self._queue: deque[Key] = deque()
        self._running = 0
        self._parked: dict[str, Key] = {}
        self._unopened: list[Key] = []
        self._asleep: dict[str, Key] = {}
        self._due: list[tuple[int, str]] = []
        self._failures: list[tuple[Key, BaseException]] = []
        self._changed = trio.Event()
        self._is_conducted = False

    async def run(self) -> dict[str, Any]:
        """The results, in order; raises the first failure, or unwinds the calling strand."""
        self._sort()
        if self._queue:
            await self._run_keys()
        if self._failures:
            raise self._first_failure()
        if self._parked:
            asks = [ask for key in self._parked.values() for ask in _parking(key).asks]
            kept = [name for key in self._parked.values() for name in _parking(key).kept]
            await self._suspender.unwind(Parking(asks, kept))
        await trio.lowlevel.checkpoint()
        return {key.name: self._result(key) for key in self._keys}

    # --- how each key stands -------------------------------------------------------------------------------

    def _sort(self) -> None:
        """A key that has its result, or still waits for what it has asked in this attempt, is not called."""
        run = self._driver.run
        for key in self._keys:
            if key.path in run.pieces:
                continue
            waited = self._still_waits_for(key) if run.records else None
            if waited is None:
                self._queue.append(key)
            else:
                key.parking = Parking((), (waited,))
                self._parked[key.path] = key

    def _still_waits_for(self, key: Key) -> str | None:
        """The one open record that a line without a scatter of its own stands at, if nothing else moves it."""
        run = self._driver.run
        attempt = self._pieces.attempt
        found: str | None = None
        for name in self._suspender.known(run).records.of(key.prefix):
            record = run.records.get(name)
            if record is None or not record.is_open:
                continue
            if found is not None or not record.unwound or record.attempt != attempt or goes_on(record):
                return None
            found = name
        return found if found is not None and is_in_line(found, key.prefix) else None

    def _result(self, key: Key) -> Any:
        piece = self._driver.run.pieces.get(key.path)
        if piece is None:  # somebody took the run for dead since, and rewound it
            run_id = self._driver.run.public_id
            raise LeaseLost(f"run {run_id} went on elsewhere", run_id=run_id)
        return self._decoder.decode(piece.value, what=self._what(key))

    def _what(self, key: Key) -> str:
        return f"the result of scatter key {key.name!r}"

    # --- conducting ----------------------------------------------------------------------------------------

    async def _run_keys(self) -> None:
        self._suspender.watch(self, self._driver.run)
        try:
            async with trio.open_nursery() as nursery:
                for key in list(self._parked.values()):
                    self._let_sleep(key)
                await self._conduct(nursery)
        finally:
            self._suspender.forget(self, self._asleep)

    async def _conduct(self, nursery: trio.Nursery) -> None:
        """Until no key runs any more."""
        while True:
            self._changed = trio.Event()
            await self._fill(nursery)
            if not self._running:
                self._is_conducted = True
                return
            if self._unopened:
                await _let_others_run()
                if not self._running:
                    continue
                keys, self._unopened = self._unopened, []
                await self._open_waits(keys)
                continue
            due_at = self._next_due()
            if due_at is None:
                await self._changed.wait()
                continue
            wait = due_at - self._driver.now()
            if wait > 0:
                with trio.move_on_after(wait / 1000):
                    await self._changed.wait()
            else:
                await self._tell_time()

    async def _fill(self, nursery: trio.Nursery) -> None:
        """Start as many as may run, one after the other: trio would shuffle those of one turn."""
        while self._queue and self._running < self._limit:
            self._running += 1
            nursery.start_soon(self._one, self._queue.popleft())
            await trio.lowlevel.checkpoint()

    def stir(self) -> None:
        """Something changed: look again."""
        self._changed.set()

    async def _one(self, key: Key) -> None:
        try:
            await self._enter(key)
        finally:
            self._running -= 1
            self.stir()

    async def _enter(self, key: Key) -> None:
        """Call the key's function as a strand of its own, and keep what it comes to."""
        strand = Strand(trio.CancelScope(), Frame(key.prefix))
        self._suspender.add(strand)
        stored: bytes | None = None
        try:
            with strand.scope:
                stored = await self._value_of(key, strand)
            if stored is not None:
                await self._pieces.save(key.path, stored, within=key.prefix)
            else:
                self._park(key, strand)
        except (KeyboardInterrupt, SystemExit, GeneratorExit, trio.Cancelled):
            raise
        except BaseException as error:
            if isinstance(error, BaseExceptionGroup) and not isinstance(error, ExceptionGroup):
                raise
            self._failures.append((key, error))  # pyright: ignore[reportUnknownArgumentType] - a group of any errors
        finally:
            self._suspender.remove(strand)

    async def _value_of(self, key: Key, strand: Strand) -> bytes:
        value = await self._call(key)
        if strand.wanted is not None:
            raise SuspensionError(
                f"scatter key {key.name!r} swallowed the cancellation that unwinds it for a suspension:"
                " let trio.Cancelled pass",
                key=key.name,
            )
        return self._pieces.encoded(value, self._what(key), self._decoder)

    async def _call(self, key: Key) -> Any:
        """The one place where the function of a key is called; guards are asked once in each attempt."""
        if self._driver.workflow.hooks is None:
            return await _value_of(key.fn)
        run, attempt = self._driver.run, self._pieces.attempt
        known = self._suspender.known(run).records.of(key.prefix) if run.records else ()
        again = any(name in run.records and run.records[name].attempt == attempt for name in known)
        return await self._guarded(key.name, lambda: _value_of(key.fn), again=again)

    def _park(self, key: Key, strand: Strand) -> None:
        assert isinstance(strand.wanted, Parking), "a key unwinds by itself only to wait"
        key.parking = strand.wanted
        self._parked[key.path] = key
        self._unopened.append(key)

    def _first_failure(self) -> BaseException:
        """The first in time, as it is; the others are told with it."""
        key, first = self._failures[0]
        first.add_note(f"raised by scatter key {key.name!r}")
        for other, error in self._failures[1:_NOTES]:
            if error is not first:
                first.add_note(f"scatter key {other.name!r} failed too: {type(error).__name__}: {error}")
        if len(self._failures) > _NOTES:
            first.add_note(f"and {len(self._failures) - _NOTES} scatter keys more")
        return first

    # --- waiting while others run --------------------------------------------------------------------------

    async def _open_waits(self, keys: Sequence[Key]) -> None:
        """Make what keys have unwound for answerable, in one write."""
        try:
            await self._open(keys)
        except (LeaseLost, StoreUnavailable):
            raise
        except StreamlineError as error:
            if len(keys) > 1:
                for key in keys:  # one of them is at fault
                    await self._open_waits([key])
                return
            del self._parked[keys[0].path]
            self._failures.append((keys[0], error))

    async def _open(self, keys: Sequence[Key]) -> None:
        asks = tuple(ask for key in keys for ask in _parking(key).asks)
        if asks:
            await self._pieces.commit(WaitsOpened, asks=asks)
            self._suspender.opened(asks)
        for key in keys:
            asked, kept = _parking(key)
            key.parking = Parking((), (*kept, *map(_key_of, asked)))
            self._let_sleep(key)

    def _let_sleep(self, key: Key) -> None:
        """Watch what it waits for; what is over by now calls it again."""
        records = self._driver.run.records
        for name in _parking(key).kept:
            self._asleep[name] = key
            self._suspender.sleeping[name] = self
            record = records.get(name)
            if _is_over(record):
                self.resolved(name)
                return
            if record is not None and record.due_at is not None:
                heapq.heappush(self._due, (record.due_at, name))

    def resolved(self, key: str) -> None:
        """One of the records has its outcome: the key that waited is called again, unless another has failed.

        Once no key runs any more it stays parked: the write that parks the step sees that it can go on.
        """
        sleeper = self._asleep.get(key)
        if sleeper is None or self._failures or self._is_conducted:
            return
        for name in _parking(sleeper).kept:
            self._asleep.pop(name, None)
            self._suspender.sleeping.pop(name, None)
        del self._parked[sleeper.path]
        sleeper.parking = None
        self._queue.append(sleeper)
        self.stir()

    def _next_due(self) -> int | None:
        """When the next of the open waits ends by itself; never while the run is paused."""
        if self._driver.run.head.paused:
            return None
        while self._due and self._due[0][1] not in self._asleep:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    async def _tell_time(self) -> None:
        now, names = self._driver.now(), list[str]()
        while self._due and self._due[0][0] <= now:
            names.append(heapq.heappop(self._due)[1])
        run = await self._pieces.commit(TimeCame, keys=tuple(names))
        for name in names:
            record = run.records.get(name)
            if record is not None and record.is_open and record.due_at is not None:
                heapq.heappush(self._due, (record.due_at, name))


def check_fns(fns: object, concurrency: object) -> None:
    """Raise `ValidationError` for what is no mapping from text to functions."""
    if not is_mapping(fns):
        raise ValidationError(f"scatter: give a mapping from keys to functions, not {repr(fns)[:100]}")
    functions: Mapping[Any, Any] = fns  # type: ignore[assignment]  # checked above
    for key, fn in functions.items():
        if not is_text(key, LONGEST_KEY, 0):
            raise ValidationError(f"scatter: a key is a text of at most {LONGEST_KEY} characters, not {key!r}")
        if not callable(fn):
            raise ValidationError(f"scatter: key {key!r} is a function without arguments, not {fn!r}")
    if concurrency is not None and not is_whole(concurrency, 1):
        raise ValidationError(f"scatter: concurrency is a whole number from 1, not {concurrency!r}")


async def _let_others_run() -> None:
    """What is about to suspend does so now, and costs no write of its own."""
    for _ in range(_TURNS):
        await trio.lowlevel.checkpoint()


async def _value_of(fn: Callable[[], Any]) -> Any:
    value = fn()
    return await value if inspect.isawaitable(value) else value


def _parking(key: Key) -> Parking:
    assert key.parking is not None, "it is parked"
    return key.parking


def _key_of(ask: Ask) -> str:
    return ask.key


def _is_over(record: Record | None) -> bool:
    return record is None or goes_on(record)
