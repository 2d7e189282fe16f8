"""An opening that fails and is cancelled at once."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from streamline_trio import MemoryStore, StepContext, StoreUnavailable, open_engine
from streamline_trio.testing import WrappedStore
from tests.crash.scenes import simple, virtual


@virtual
async def test_an_error_while_opening_stays_bare_when_a_cancellation_comes_beside_it():
    """Proves that `except StoreUnavailable` works around an opening that is cancelled while it fails."""
    scope = trio.CancelScope()

    class Store(WrappedStore):
        async def around(self, name: str, _args: tuple[Any, ...], act: Any) -> Any:
            if name == "lease_holders":
                raise StoreUnavailable("so planned")
            if name == "drop_worker":
                scope.cancel()
            return await act()

    with scope, pytest.raises(StoreUnavailable):
        async with open_engine(Store(MemoryStore()), simple(_nothing)):
            pass


async def _nothing(_ctx: StepContext[Any, Any]) -> None:
    """A handler that ends at once."""
