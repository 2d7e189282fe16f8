"""What comes while the end of a run is on its way."""

from __future__ import annotations

import trio
import trio.testing

from streamline_trio import MemoryStore, open_engine
from streamline_trio.testing._witness import Witness
from tests.crash.faulty_store import ParkingStore
from tests.crash.scenes import OPTIONS, Gate, virtual


@virtual
async def test_what_comes_after_the_end_is_a_commit_of_its_own():
    """Proves that no event tells of a status that was never stored: a rewind is not folded into the end."""
    witness = Witness(MemoryStore(exclusive=False))
    store = ParkingStore(witness)
    gate = Gate()
    workflow = gate.workflow()
    async with open_engine(store, workflow, **OPTIONS) as engine, witness.listening(engine):
        async with trio.open_nursery() as nursery:
            handle = await engine.start(workflow)
            await gate.entered.wait()
            witness.revived.add(handle.id)
            store.close()
            nursery.start_soon(handle.pause)
            await store.parked.wait()
            gate.open.set()
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(handle.unpause)
            nursery.start_soon(handle.rewind, "step")
            await trio.testing.wait_all_tasks_blocked()
            store.release()
        await handle.wait()
    witness.check()
