"""What several crash tests need: skipped time, workers that never were, runs leased to them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec

import msgspec
import trio

from streamline_trio import Engine, StepContext, Workflow
from streamline_trio._core.decide import StartRequest, admit
from streamline_trio._core.documents import Origin, RunDoc
from streamline_trio._core.store import Applied, Insert, PutSide
from streamline_trio._runtime.worker import WORKERS, WorkerDoc, decode_worker
from streamline_trio.testing import run

P = ParamSpec("P")

LEASE = 9.0
POLL = 1.0
OPTIONS: dict[str, Any] = {"lease": LEASE, "poll_interval": POLL}


def virtual(function: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """The async test as one on skipped time, with engines that live in it."""

    @functools.wraps(function)
    def test(*args: P.args, **kwargs: P.kwargs) -> None:
        run(functools.partial(function, *args, **kwargs))

    return test


def simple(
    handler: Callable[[StepContext[Any, Any]], Any], *, id: str = "work", **options: Any
) -> Workflow[Any, Any]:
    """A workflow of one step."""
    assert inspect.iscoroutinefunction(handler)
    workflow: Workflow[Any, Any] = Workflow(id)
    workflow.add_step("step", handler, **options)
    return workflow


async def returns_done(_ctx: StepContext[Any, Any]) -> str:
    """A handler that ends at once."""
    return "done"


async def enlist_phantom(store: Any, worker: str, *, lease: float = LEASE) -> None:
    """A worker that exists in the store alone: it holds its lock and never beats."""
    await store.hold_worker(worker)
    body = msgspec.msgpack.encode(WorkerDoc(lease=lease, started_at=0, beat_at=0))
    assert await store.write([PutSide(WORKERS, worker, None, body)]) == [Applied()]


async def rewrite_worker(store: Any, worker: str, **changes: Any) -> None:
    """Write a worker's document as somebody else would: a beat, or its death."""
    side = await store.side(WORKERS, worker)
    body = msgspec.msgpack.encode(msgspec.structs.replace(decode_worker(side.body), **changes))
    assert await store.write([PutSide(WORKERS, worker, side.revision, body)]) == [Applied()]


async def insert_leased(store: Any, workflow: Workflow[Any, Any], run_id: str, worker: str) -> RunDoc:
    """A run whose first step was begun by a worker."""
    plan = workflow.seal()
    origin = Origin(id=run_id, workflow=workflow.id, start_id=len(run_id), created_at=1, input=b"\xc0")
    decision = admit(StartRequest(origin=origin, state=b"\xc0"), plan, 1, worker)
    assert await store.write([Insert(decision.run)]) == [Applied()]
    return decision.run


async def worker_states(store: Any) -> dict[str, str]:
    """Every worker's document: live or dead."""
    return {side.key: decode_worker(side.body).state for side in await store.sides(WORKERS)}


async def heard(engine: Engine, name: str, holds: Callable[[Any], bool] = lambda _event: True) -> Any:
    """The next event of that name."""
    async with engine.events(name) as events:
        async for event in events:
            if holds(event):
                return event
    raise AssertionError(f"the engine ended before {name}")


class Gate:
    """A handler's body that waits to be let go, and tells when it is entered and how it was left."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self.open = trio.Event()
        self.entries: list[int] = []
        self.left: list[tuple[str, float]] = []

    async def __call__(self, ctx: StepContext[Any, Any]) -> str:
        self.entries.append(ctx.attempt)
        self.entered.set()
        try:
            await self.open.wait()
        except trio.Cancelled:
            self.left.append(("cancelled", trio.current_time()))
            raise
        self.left.append(("returned", trio.current_time()))
        return "done"

    def workflow(self, **options: Any) -> Workflow[Any, Any]:
        """One step with this body."""

        async def handler(ctx: StepContext[Any, Any]) -> str:
            return await self(ctx)

        return simple(handler, **options)
