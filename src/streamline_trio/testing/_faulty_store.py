"""A store that fails chosen calls."""

# ruff: noqa: ARG002 - what happens around a call has the parameters of its protocol

from __future__ import annotations

from typing import Any, Literal, get_args

import trio

from streamline_trio import StoreUnavailable, ValidationError
from streamline_trio.testing._wrapped_store import Act, WrappedStore

When = Literal["before", "after"]


class FaultyStore(WrappedStore):
    """Fails the calls with the given numbers, before or after having carried them out. Counts while `armed`."""

    def __init__(self, inner: Any, fail: set[int] | frozenset[int] = frozenset(), when: When = "before") -> None:
        super().__init__(inner)
        if when not in get_args(When):
            raise ValidationError(f"a call fails 'before' or 'after' it was carried out, not {when!r}")
        self.fail: set[int] | frozenset[int] = fail
        self.when: When = when
        self.armed: bool = False
        self.calls: int = 0
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
