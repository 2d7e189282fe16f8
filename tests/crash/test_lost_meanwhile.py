"""A verb through an engine that loses the run while the verb is on its way."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing

from streamline_trio import LeaseLost, MemoryStore, StepContext, open_engine
from streamline_trio._core.decide import decide
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.happenings import Claimed, Rewound
from streamline_trio._core.store import Applied, Touched, Update
from tests.crash.faulty_store import ParkingStore
from tests.crash.scenes import OPTIONS, Gate, simple, virtual


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


@virtual
async def test_a_memo_that_a_rewind_takes_away_as_it_is_stored_is_a_lost_lease():
    """Proves that `once` says `LeaseLost` when the run is rewound elsewhere before it has looked at its result."""
    seen: list[object] = []

    async def body(ctx: StepContext[Any, Any]) -> object:
        writer = ctx._driver.writer
        noticed = writer._noticed

        def rewind_elsewhere(run: RunDoc, _touched: Touched | None) -> None:
            if run.memos:
                writer._noticed = noticed
                writer.refresh(decide(run, Rewound(to="step", lease_dead=True), workflow.plan, 10**13, 1).run)

        writer._noticed = rewind_elsewhere
        try:
            await ctx.once("key", lambda: "value")
        except Exception as error:
            seen.append(error)
            raise
        return "not reached"

    workflow = simple(body)
    store = MemoryStore(exclusive=False)
    async with open_engine(store, workflow, drain_timeout=0, **OPTIONS) as engine:
        await engine.start(workflow)
        await trio.testing.wait_all_tasks_blocked()
    (error,) = seen
    assert isinstance(error, LeaseLost)
    assert error.meta["step"] == "step"
