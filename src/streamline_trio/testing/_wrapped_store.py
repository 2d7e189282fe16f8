"""A store around a store: each call goes through one place, where it can be counted, failed, parked or cut."""

# ruff: noqa: ARG002 - what happens around a call has the parameters of its protocol

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from streamline_trio.store import Hint

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
