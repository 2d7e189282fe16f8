"""Stores around a store: each call goes through one place, where it can be counted, failed, parked or cut."""

# ruff: noqa: ARG002 - what happens around a call has the parameters of its protocol

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from streamline_trio._core.errors import StoreUnavailable
from streamline_trio.testing import FaultyStore, WrappedStore
from streamline_trio.testing._faulty_store import When
from streamline_trio.testing._wrapped_store import Act

LONGEST_PARK = 100.0
SLOW = 2.0

__all__ = [
    "Act",
    "BrokenStore",
    "CutStore",
    "FaultyStore",
    "LocklessStore",
    "ParkingStore",
    "When",
    "WrappedStore",
]


class LocklessStore(WrappedStore):
    """Has no worker locks, as stores of many machines have none."""

    async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
        if name == "worker_gone":
            await trio.lowlevel.checkpoint()
            return False
        return await act()


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
