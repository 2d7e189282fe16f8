"""Stores around a store: each call goes through one place, where it can be counted, failed, parked or cut."""

# ruff: noqa: ARG002 - what happens around a call has the parameters of its protocol

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import trio

from streamline_trio._core.errors import StoreUnavailable
from streamline_trio._core.store import Hint

When = Literal["before", "after"]
LONGEST_PARK = 100.0
SLOW = 5.0
Act = Callable[[], Awaitable[Any]]


def _through(name: str) -> Any:
    async def call(self: WrappedStore, *args: Any, **kwargs: Any) -> Any:
        return await self.around(name, args, lambda: getattr(self.inner, name)(*args, **kwargs))

    call.__name__ = name
    return call


class WrappedStore:
    """Delegates to any store; a subclass says what happens `around` a call."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
        return await act()

    @property
    def exclusive(self) -> bool:
        exclusive: bool = self.inner.exclusive
        return exclusive

    def watch(self, listener: Callable[[Hint], None]) -> Callable[[], None]:
        unwatch: Callable[[], None] = self.inner.watch(listener)
        return unwatch

    async def open(self) -> None:
        await self.inner.open()

    async def aclose(self) -> None:
        await self.inner.aclose()

    write = _through("write")
    load = _through("load")
    load_many = _through("load_many")
    by_active_key = _through("by_active_key")
    by_token = _through("by_token")
    awaiting = _through("awaiting")
    due = _through("due")
    next_due = _through("next_due")
    leased = _through("leased")
    lease_holders = _through("lease_holders")
    find = _through("find")
    count = _through("count")
    tally = _through("tally")
    rows = _through("rows")
    side = _through("side")
    sides = _through("sides")
    hold_worker = _through("hold_worker")
    drop_worker = _through("drop_worker")
    worker_gone = _through("worker_gone")

    def __getattr__(self, name: str) -> Any:
        """What the protocol has gained since."""
        if name.startswith("_") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


class LocklessStore(WrappedStore):
    """Has no worker locks, as stores of many machines have none."""

    async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
        if name == "worker_gone":
            await trio.lowlevel.checkpoint()
            return False
        return await act()


class FaultyStore(WrappedStore):
    """Fails the calls with the given numbers, before or after having carried them out. Counts while `armed`."""

    def __init__(self, inner: Any, fail: set[int] | frozenset[int] = frozenset(), when: When = "before") -> None:
        super().__init__(inner)
        self.fail = fail
        self.when = when
        self.armed = False
        self.calls = 0
        self.names: list[str] = []

    async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
        if not self.armed:
            return await act()
        number, self.calls = self.calls, self.calls + 1
        self.names.append(name)
        if number not in self.fail:
            return await act()
        if self.when == "after":
            await act()
        else:
            await trio.lowlevel.checkpoint()
        raise StoreUnavailable(f"call {number} ({name}) fails {self.when} it was carried out")


class BrokenStore(WrappedStore):
    """Fails every call that `breaks` picks, for as long as it is `broken`."""

    def __init__(self, inner: Any, breaks: Callable[[str, tuple[Any, ...]], bool] = lambda _n, _a: True) -> None:
        super().__init__(inner)
        self.breaks = breaks
        self.broken = False

    async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
        if self.broken and self.breaks(name, args):
            await trio.lowlevel.checkpoint()
            raise StoreUnavailable(f"{name} is broken")
        return await act()


class ParkingStore(WrappedStore):
    """Parks writes while it is `closed`: each waits, before or after it was carried out, until `release`.

    Those that `slow` picks take their time besides.
    """

    def __init__(self, inner: Any, when: When = "before") -> None:
        super().__init__(inner)
        self.when = when
        self.closed = False
        self.parked = trio.Event()
        self._gate = trio.Event()
        self.picks: Callable[[Any], bool] = lambda _batch: True
        self.slow: Callable[[Any], bool] = lambda _batch: False

    def close(self, picks: Callable[[Any], bool] = lambda _batch: True) -> None:
        """From now on, writes that `picks` picks are parked."""
        self.picks = picks
        if not self.closed:
            self.closed, self.parked, self._gate = True, trio.Event(), trio.Event()

    def release(self) -> None:
        """Let the parked writes, and all later ones, go on."""
        self.closed = False
        self._gate.set()

    async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
        if name != "write":
            return await act()
        if self.slow(args[0]):
            await trio.sleep(SLOW)
        if not self.closed or not self.picks(args[0]):
            return await act()
        if self.when == "before":
            await self._park()
            return await act()
        verdicts = await act()
        await self._park()
        return verdicts

    async def _park(self) -> None:
        """At most for a while, so that a test that fails also ends."""
        self.parked.set()
        with trio.move_on_after(LONGEST_PARK):
            await self._gate.wait()


class CutStore(WrappedStore):
    """At a chosen write, carried out or not, nothing more is ever heard of it, and `cut` is set."""

    def __init__(self, inner: Any, after: int | None, when: When = "before") -> None:
        super().__init__(inner)
        self.left = after
        self.when = when
        self.cut = trio.Event()

    async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
        if name != "write" or self.left is None:
            return await act()
        if self.left > 0:
            self.left -= 1
            return await act()
        if self.when == "after" and not self.cut.is_set():
            await act()
        self.cut.set()
        await trio.sleep_forever()
        raise AssertionError("unreachable")
