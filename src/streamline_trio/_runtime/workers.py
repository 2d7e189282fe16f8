"""Which workers live, and which versions they have."""

from __future__ import annotations

from streamline_trio._core.store import Route, SideDoc, Store
from streamline_trio._runtime.worker import WORKERS, WorkerDoc, decode_worker


async def live_workers(store: Store) -> dict[str, WorkerDoc]:
    """The documents of all workers that are not marked dead."""
    live: dict[str, WorkerDoc] = {}
    page: list[SideDoc] = []
    while True:
        page = await store.sides(WORKERS, after=page[-1].key if page else "")
        if not page:
            return live
        for side in page:
            doc = decode_worker(side.body)
            if doc.state == "live":
                live[side.key] = doc


async def live_routes(store: Store) -> frozenset[Route]:
    """The versions that a live worker has."""
    return frozenset(route for doc in (await live_workers(store)).values() for route in doc.routes)
