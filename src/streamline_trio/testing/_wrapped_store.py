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
        self.inner: Any = inner

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

    write: Any = _through("write")
    load: Any = _through("load")
    load_many: Any = _through("load_many")
    by_active_key: Any = _through("by_active_key")
    by_token: Any = _through("by_token")
    namesakes: Any = _through("namesakes")
    awaiting: Any = _through("awaiting")
    due: Any = _through("due")
    due_in_turn: Any = _through("due_in_turn")
    next_due: Any = _through("next_due")
    errands: Any = _through("errands")
    queued: Any = _through("queued")
    count_queued: Any = _through("count_queued")
    leased: Any = _through("leased")
    leased_by_priority: Any = _through("leased_by_priority")
    lease_holders: Any = _through("lease_holders")
    find: Any = _through("find")
    count: Any = _through("count")
    tally: Any = _through("tally")
    rows: Any = _through("rows")
    side: Any = _through("side")
    sides: Any = _through("sides")
    hold_worker: Any = _through("hold_worker")
    drop_worker: Any = _through("drop_worker")
    worker_gone: Any = _through("worker_gone")

    def __getattr__(self, name: str) -> Any:
        """What the protocol has gained since."""
        if name.startswith("_") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)
