"""Stores that do harm: they lose acknowledgements, and kill their process at a write."""

# ruff: noqa: ARG002 - what happens around a call has the parameters of its protocol

from __future__ import annotations

import os
import signal
from random import Random
from typing import Any

import trio

from streamline_trio import StoreUnavailable
from streamline_trio.testing import WrappedStore
from tests.chaos.journal import Journal, now
from tests.chaos.records import Died, Stuck

_FAILS = 0.01
_LONG = 0.25


class DoubtfulStore(WrappedStore):
    """Some writes fail, and about as many are stored and seem to have failed."""

    def __init__(self, inner: Any, chance: Random) -> None:
        super().__init__(inner)
        self._chance = chance

    async def around(self, name: str, args: tuple[Any, ...], act: Any) -> Any:
        if name != "write":
            return await self.pass_on(name, act)
        roll = self._chance.random()
        if roll < _FAILS:
            await trio.lowlevel.checkpoint()
            raise StoreUnavailable("planned: it did not get there")
        answer = await self.pass_on(name, act)
        if roll > 1 - _FAILS:
            raise StoreUnavailable("planned: the acknowledgement is lost")
        return answer

    async def pass_on(self, name: str, act: Any) -> Any:
        return await act()


class FatalStore(DoubtfulStore):
    """The process dies at a chosen write besides: before anything of it is stored, or once all of it is."""

    def __init__(self, inner: Any, chance: Random, journal: Journal, left: int | None, when: str) -> None:
        super().__init__(inner, chance)
        self.left = left
        self._journal = journal
        self._when = when

    async def pass_on(self, name: str, act: Any) -> Any:
        since = now()
        try:
            return await (self._write_or_die(act) if name == "write" else act())
        finally:
            if now() - since > _LONG:
                self._journal.add(Stuck(pid=self._journal.pid, call=name, since=since, until=now()))

    async def _write_or_die(self, act: Any) -> Any:
        if self.left is None:
            return await act()
        self.left -= 1
        if self.left >= 0:
            return await act()
        if self._when == "after":
            await act()
        self._journal.add(Died(pid=os.getpid(), at=now()))
        os.kill(os.getpid(), signal.SIGKILL)
        await trio.sleep_forever()
        raise AssertionError("unreachable")
