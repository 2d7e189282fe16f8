"""Proves that no due run waits for ever, whatever else arrives: the chooser over the queues of the memory store."""

from dataclasses import dataclass, field

import trio
from hypothesis import given
from hypothesis import strategies as st

from streamline_trio import MemoryStore
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.store import Insert, Route, Update
from streamline_trio._runtime.fair_share import LONGEST_REST, FairShare
from streamline_trio.testing._conformance_base import after, sample

ROUTE = Route("w", "1")
TENANTS = ["a", "b", "c", None]
PER_LOOK = 4 * (LONGEST_REST + 2)


@dataclass
class Worker:
    """Claims pages as the claimer does, from a store that always holds more than fits."""

    store: MemoryStore
    share: FairShare = field(default_factory=FairShare)
    claims: int = 0

    async def claim(self, places: int, now: int) -> list[str]:
        found = await self.store.due([ROUTE], now, places + 1)
        if len(found) <= places:
            self.share.all_fits()
        else:
            count = self.share.due_in_turn(places, 0.0)
            self.share.more_is_due(places)
            waited = await self.store.due_in_turn([ROUTE], now, self.share.after, count) if count else []
            found = self.share.choose(places, found, waited) if count else found[:places]
        runs = [run for run in found if isinstance(run, RunDoc)]
        self.claims += len(runs)
        await self.store.write([Update(run, after(run, worker="me", due_at=None)) for run in runs])
        return [run.id for run in runs]


older = st.lists(st.sampled_from([-100, 0, 100]), max_size=6)
arrivals = st.lists(st.tuples(st.sampled_from(TENANTS), st.sampled_from([-100, 0, 100])), min_size=1, max_size=4)


@given(st.sampled_from(TENANTS), older, st.lists(arrivals, min_size=1, max_size=5), st.integers(1, 12))
def test_every_due_run_is_claimed_after_so_many_claims(tenant, before, noise, places):
    """Proves that a run is claimed after a number of claims that depends only on the tenants that have work and on
    the older runs of its own tenant, though at every page as many others arrive as are claimed, and more."""

    async def story() -> None:
        store, now = MemoryStore(), 1000
        line = [*before, -100]
        await store.write(
            [
                Insert(sample(f"victim{n}", tenant=tenant, priority=priority, due_at=n + 1))
                for n, priority in enumerate(line)
            ]
        )
        worker, number = Worker(store), 0
        last = f"victim{len(line) - 1}"
        bound = (places + PER_LOOK) * len(TENANTS) * (len(line) + 1)
        while True:
            now += 1
            fresh = (noise[now % len(noise)] * (places + 1))[: 4 * places + 4]
            batch = []
            for name, priority in fresh:
                number += 1
                batch.append(
                    Insert(sample(f"n{number:06}", tenant=name, priority=priority, created_at=now, due_at=0))
                )
            await store.write(batch)
            if last in await worker.claim(places, now):
                return
            assert worker.claims <= bound

    trio.run(story)
