"""The circuit: an outage of the store is told once, claiming backs off, and all goes on by itself after it."""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any

import pytest
import trio

from streamline_trio import MemoryStore, SchedulerCircuitOpen, StoreUnavailable, open_engine
from streamline_trio._core.store import Applied, Insert
from streamline_trio._runtime.circuit import FAILURES, LONGEST_PAUSE, MOMENT, Circuit
from streamline_trio._runtime.clock import Chance, VirtualClock
from streamline_trio.testing import WrappedStore
from streamline_trio.testing._conformance_base import sample
from tests.crash.test_committer import committing
from tests.scenarios.worlds import one_step


class Down(WrappedStore):
    """Fails every call, or those named, while `is_down`, after `seconds`; notes when each was made."""

    def __init__(self, inner: Any, *, only: frozenset[str] = frozenset(), seconds: float = 0) -> None:
        super().__init__(inner)
        self.only = only
        self.seconds = seconds
        self.is_down = False
        self.asked: list[tuple[str, float]] = []

    @property
    def exclusive(self) -> bool:
        return False

    async def around(self, name: str, args: tuple[Any, ...], act: Any) -> Any:
        del args
        self.asked.append((name, trio.current_time()))
        if self.is_down and (not self.only or name in self.only):
            await trio.sleep(self.seconds)
            raise StoreUnavailable("the store is down")
        return await act()

    def times(self, name: str) -> list[float]:
        found = [at for asked, at in self.asked if asked == name]
        self.asked.clear()
        return found


async def answer(_ctx: Any) -> str:
    return "done"


@pytest.mark.virtual_time
async def test_an_outage_is_told_once_and_ends_by_itself(caplog):
    """S345: each outage is one event with its error, its end is logged, and runs are claimed again at once."""
    store, flow = Down(MemoryStore()), one_step(answer)
    opening = open_engine(store, flow, clock=VirtualClock(0))
    async with opening as engine, engine.events("scheduler.*") as outages:
        for _ in range(2):
            handle = await engine.start(flow, delay=30)
            store.is_down = True
            opened = await anext(outages)
            assert isinstance(opened, SchedulerCircuitOpen)
            assert opened.failures == FAILURES
            assert "the store is down" in opened.error
            await trio.sleep(40)
            store.is_down = False
            with trio.fail_after(1):
                assert await handle.result() == "done"
            assert "the store answers again, after" in caplog.text
            caplog.clear()
        store.is_down = True
        with trio.fail_after(10):
            await anext(outages)
        store.is_down = False
        with trio.move_on_after(20):
            pytest.fail(f"an outage without failures: {await anext(outages)}")


@pytest.mark.virtual_time
async def test_claiming_backs_off_with_jitter_and_bounds():
    """While the store is down, claims are tried ever less often, not in step and no further apart than said."""
    store, flow = Down(MemoryStore()), one_step(answer)
    async with open_engine(store, flow, poll_interval=0.1, lease=600) as engine:
        store.is_down = True
        await trio.sleep(0.5)
        store.times("due")
        await trio.sleep(60)
        times = store.times("due")
        store.is_down = False
        assert await (await engine.start(flow)).result() == "done"
    gaps = [later - before for before, later in pairwise(times)]
    assert 10 < len(times) < 60  # undisturbed it is hundreds
    assert max(gaps) < LONGEST_PAUSE + 0.5
    assert len({round(gap, 3) for gap in gaps}) > len(gaps) / 2


@pytest.mark.virtual_time
async def test_writes_alone_can_open_the_circuit():
    """A store that answers but refuses writes is an outage too, though every read in between succeeds."""
    store, flow = Down(MemoryStore(), only=frozenset({"write"})), one_step(answer)
    async with open_engine(store, flow) as engine, engine.events("scheduler.*") as outages:
        store.is_down = True
        with pytest.raises(StoreUnavailable):
            await engine.start(flow)
        assert (await anext(outages)).name == "scheduler.circuit_open"
        store.is_down = False
        assert await (await engine.start(flow)).result() == "done"


def circuit_telling(told: list[int]) -> Circuit:
    opened = lambda failures, _error: told.append(failures)  # noqa: E731
    return Circuit(Chance(seed=1), logging.getLogger("test"), longest=5, opened=opened)


@pytest.mark.virtual_time
async def test_what_fails_together_counts_once():
    """A hundred calls that one broken connection fails are one failure; three moments of it are an outage."""
    told: list[int] = []
    circuit = circuit_telling(told)
    for _ in range(FAILURES):
        assert not circuit.is_open
        for _ in range(100):
            circuit.failed("read", StoreUnavailable("gone"))
        await trio.sleep(MOMENT)
    assert circuit.is_open
    assert told == [FAILURES]


@pytest.mark.virtual_time
async def test_only_failures_in_a_row_count():
    """A success in between begins the count anew, for reads and writes apart; so does a long time."""
    told: list[int] = []
    circuit = circuit_telling(told)
    for way in ("read", "write", "read", "write", "read"):
        circuit.failed(way, StoreUnavailable("gone"))
        await trio.sleep(1)
        circuit.worked("read")
    await trio.sleep(1000)
    circuit.failed("write", StoreUnavailable("gone"))
    assert not circuit.is_open
    assert not told


@pytest.mark.virtual_time
async def test_an_outage_of_long_ago_does_not_hide_the_next():
    """One who only reads never learns that writes work again: the next outage is told all the same."""
    told: list[int] = []
    circuit = circuit_telling(told)
    for _ in range(2):
        for _ in range(FAILURES):
            circuit.failed("write", StoreUnavailable("gone"))
            await trio.sleep(1)
        circuit.worked("read")
        await trio.sleep(3600)
    assert told == [FAILURES, FAILURES]


@pytest.mark.virtual_time
async def test_a_pause_ends_with_the_outage():
    """Nobody sleeps on once the store has answered."""
    circuit = circuit_telling([])
    for _ in range(FAILURES):
        circuit.failed("write", StoreUnavailable("gone"))
        await trio.sleep(20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(circuit.pause)
        await trio.testing.wait_all_tasks_blocked()
        before = trio.current_time()
        circuit.worked("write")
    assert trio.current_time() == before


@pytest.mark.virtual_time
async def test_many_writes_are_given_up_together():
    """On a store where every call takes long to fail, the last of a batch is told hardly later than the first."""
    store = Down(MemoryStore(), seconds=10)
    store.is_down = True
    outcomes: list[Any] = []
    async with committing(store) as committer:
        for number in range(100):
            committer.post(Insert(sample(f"r{number}")), outcomes.append)
        before = trio.current_time()
        await committer.flushed()
        assert trio.current_time() - before <= 60
        assert len(outcomes) == 100
        assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
        store.is_down = False
        committer.post(Insert(sample("later")), outcomes.append)
        await committer.flushed()
        assert outcomes[-1] == Applied()
