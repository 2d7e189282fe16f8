"""A worker that is declared dead before it knows its own id."""

from __future__ import annotations

from typing import Any

import msgspec

from streamline_trio import MemoryStore, StepContext, StoreUnavailable, open_engine
from streamline_trio._core.store import Applied, PutSide
from streamline_trio._runtime.worker import WORKERS, decode_worker
from streamline_trio.testing import WrappedStore
from tests.crash.scenes import simple, virtual


@virtual
async def test_a_worker_declared_dead_before_it_knows_its_own_id_takes_another():
    """Proves that an engine opens although its first write was applied, unanswered, and outlived by a lease."""
    ids: list[str] = []

    class Store(WrappedStore):
        async def around(self, name: str, args: tuple[Any, ...], act: Any) -> Any:
            verdicts = await act()
            if name == "write" and isinstance(args[0][0], PutSide) and args[0][0].kind == WORKERS:
                ids.append(args[0][0].key)
                if len(ids) == 1:
                    await self._declare_dead(ids[0])
                    raise StoreUnavailable("the answer is lost")
            return verdicts

        async def _declare_dead(self, worker: str) -> None:
            side = await self.inner.side(WORKERS, worker)
            body = msgspec.msgpack.encode(msgspec.structs.replace(decode_worker(side.body), state="dead"))
            assert await self.inner.write([PutSide(WORKERS, worker, side.revision, body)]) == [Applied()]

    async with open_engine(Store(MemoryStore()), simple(_nothing)) as engine:
        assert engine.worker_id == ids[1] != ids[0]


async def _nothing(_ctx: StepContext[Any, Any]) -> None:
    """A handler that ends at once."""
