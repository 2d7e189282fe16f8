"""A verb through an engine that loses the run while the verb is on its way."""

from __future__ import annotations

import trio
import trio.testing

from streamline_trio import MemoryStore, open_engine
from streamline_trio._core.decide import decide
from streamline_trio._core.happenings import Claimed
from streamline_trio._core.store import Applied, Update
from tests.crash.faulty_store import ParkingStore
from tests.crash.scenes import OPTIONS, Gate, virtual


@virtual
async def test_a_verb_whose_engine_loses_the_run_meanwhile_goes_through_the_store():
    """Proves that a client is not told of leases: its verb is carried out on what the new holder has."""
    store = ParkingStore(MemoryStore(exclusive=False))
    gate = Gate()
    workflow = gate.workflow()
    async with open_engine(store, workflow, **OPTIONS) as engine, trio.open_nursery() as nursery:
        handle = await engine.start(workflow)
        await gate.entered.wait()
        store.close()
        nursery.start_soon(handle.pause)
        await store.parked.wait()
        run = await store.inner.load(handle.id)
        taken = decide(run, Claimed(worker="other", lease_dead=True, max_recoveries=5), workflow.plan, 10**13, 1)
        assert await store.inner.write([Update(run, taken.run)]) == [Applied()]
        store.release()
        await trio.testing.wait_all_tasks_blocked()
        assert (await store.inner.load(handle.id)).head.paused
