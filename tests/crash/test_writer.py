"""The writer of one run: what it decides anew when the store refuses what it had decided."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing

from streamline_trio import InvalidState, MemoryStore, open_engine
from streamline_trio._core.decide import decide
from streamline_trio._core.happenings import Answered, Ask, StateSet, WaitOpened
from streamline_trio._core.store import Applied, Update
from streamline_trio._runtime.writer import RunWriter
from tests.crash.faulty_store import ParkingStore
from tests.crash.scenes import insert_leased, returns_done, simple, virtual

ASK = Ask(key="human#0", kind="human", ask="human\nagree?", place=0, reason="agree?")
YES = b"\xc3"


@virtual
async def test_a_refusal_is_that_of_the_last_decision():
    """Proves that a verb that was refused on a document which is not the stored one, and is then allowed, works."""
    store = ParkingStore(MemoryStore(exclusive=False))
    workflow = simple(returns_done)
    refused: list[InvalidState] = []
    async with open_engine(store, worker=False) as engine, trio.open_nursery() as nursery:
        run = await insert_leased(store, workflow, "r", "w")
        writer = RunWriter(engine._machinery.services, run, workflow.plan, noticed=lambda _run, _touched: None)
        held: Any = {"worker": "w", "fence": run.head.fence}

        async def answer(step: str | None) -> None:
            try:
                await writer.commit(Answered(payload=YES, step=step))
            except InvalidState as error:
                refused.append(error)

        store.close()
        nursery.start_soon(writer.commit, StateSet(state=b"\x01", **held))
        await store.parked.wait()
        # These three are decided together once that is through: no wait is open, so both answers are refused.
        nursery.start_soon(writer.commit, StateSet(state=b"\x02", **held))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(answer, None)
        nursery.start_soon(answer, "other")
        await trio.testing.wait_all_tasks_blocked()
        store.release()
        store.close()
        await store.parked.wait()
        # Meanwhile somebody else writes, and so the decisions are made again.
        stored = await store.inner.load("r")
        opened = decide(stored, WaitOpened(step="step", ask=ASK, **held), workflow.plan, 2, 2).run
        assert await store.inner.write([Update(stored, opened)]) == [Applied()]
        store.release()
    assert [error.meta["action"] for error in refused] == ["resume"]
    assert writer.run.records["human#0"].value == YES
    assert writer.run.state == b"\x02"
