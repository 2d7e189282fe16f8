"""Write the golden documents of this release: `python -m tests.golden.write`.

Each is taken from the store of a real engine, in the middle of a run's life. What was written for a release is
not written again. For the release in the making only: `--again`, and `--missing` for those that are not there yet.
"""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio
from msgspec.structs import replace

import streamline_trio
from streamline_trio import Engine, RunHandle, Workflow, open_engine
from streamline_trio._core.codec import split
from streamline_trio._core.documents import CompensationDoc, ErrorDoc, RunDoc
from streamline_trio.stores.memory import MemoryStore
from streamline_trio.testing import crash, run
from tests.golden import documents
from tests.golden.saga import golden_saga
from tests.golden.workflow import Order, go, golden

ROOT = str(Path(__file__).parents[2])
Act = Callable[[MemoryStore, Engine, RunHandle], Awaitable[object]]


async def _rests(_store: MemoryStore, _engine: Engine, handle: RunHandle) -> None:
    await handle.wait()


async def _is_left_alone(_store: MemoryStore, _engine: Engine, _handle: RunHandle) -> None:
    await trio.sleep(1)


async def _is_cancelled(_store: MemoryStore, _engine: Engine, handle: RunHandle) -> None:
    await trio.sleep(1)
    await handle.cancel("not wanted any more")


async def _is_paused(_store: MemoryStore, _engine: Engine, handle: RunHandle) -> None:
    await trio.sleep(1)
    await handle.pause("a moment")


async def _hears_something_else(_store: MemoryStore, engine: Engine, handle: RunHandle) -> None:
    await trio.sleep(1)
    await engine.emit("golden.other", {"n": 1}, run=handle.id, id="other-1")
    await engine.emit("golden.other", {"n": 2}, run=handle.id, id="other-2")


async def _is_asked_again(_store: MemoryStore, _engine: Engine, handle: RunHandle) -> None:
    await trio.sleep(1)
    await handle.resume(payload=True)
    await trio.sleep(1)


async def _loses_its_worker(_store: MemoryStore, engine: Engine, _handle: RunHandle) -> None:
    await trio.sleep(1)
    await crash(engine)


async def _is_answered_with_nobody_there(store: MemoryStore, engine: Engine, handle: RunHandle) -> None:
    await trio.sleep(1)
    await crash(engine)
    async with open_engine(store, golden, worker=False) as client:
        await client.emit(go, 7, run=handle.id, id="go-1")


async def _kills_its_worker(store: MemoryStore, engine: Engine, handle: RunHandle) -> None:
    await trio.sleep(1)
    await crash(engine)
    async with open_engine(store, golden, max_recoveries=0) as other:
        await other.run(handle.id).wait()


LIVES: dict[str, tuple[str, Act]] = {
    "draft": ("done", _is_left_alone),
    "leased": ("leased", _loses_its_worker),
    "parked-on-timer": ("timer", _is_left_alone),
    "parked-on-human": ("human", _is_left_alone),
    "asked-again": ("human", _is_asked_again),
    "paused": ("human", _is_paused),
    "parked-on-signal": ("signal", _hears_something_else),
    "ready": ("signal", _is_answered_with_nobody_there),
    "backoff": ("backoff", _is_left_alone),
    "done": ("done", _rests),
    "failed": ("failed", _rests),
    "cancelled": ("human", _is_cancelled),
    "dead-lettered": ("dead letter", _kills_its_worker),
    "saga-compensating": ("hangs", _loses_its_worker),
    "saga-backoff": ("backoff", _is_left_alone),
    "saga-compensated": ("works", _rests),
    "saga-compensation-failed": ("broken", _rests),
    "saga-cancelled": ("hangs", _is_cancelled),
}


def workflow_of(name: str) -> Workflow[Any, Any]:
    """What the document of this name is a run of."""
    return golden_saga if name.startswith("saga-") else golden


async def _live(name: str) -> RunDoc:
    """One run, up to the moment at which it is to be kept."""
    play, act = LIVES[name]
    store, workflow = MemoryStore(), workflow_of(name)
    options: dict[str, Any] = {"delay": 3600} if name == "draft" else {}
    async with open_engine(store, workflow) as engine:
        handle = await engine.start(
            workflow,
            Order(play, 21),
            run_id=f"golden-{name}",
            idempotency_key=f"key of {name}",
            user="somebody",
            tags=("kept",),
            meta={"release": streamline_trio.__version__},
            priority=7,
            **options,
        )
        await act(store, engine, handle)
        stored = await store.load(handle.id)
    assert stored is not None
    return _nowhere(stored)


def _nowhere(stored: RunDoc) -> RunDoc:
    """The run as if the engine were installed at /app: tracebacks tell paths."""
    steps = {
        step_id: replace(step, error=_moved(step.error), compensation=_elsewhere(step.compensation))
        for step_id, step in stored.steps.items()
    }
    return replace(stored, steps=steps, head=replace(stored.head, error=_moved(stored.head.error)))


def _elsewhere(compensation: CompensationDoc | None) -> CompensationDoc | None:
    return None if compensation is None else replace(compensation, error=_moved(compensation.error))


def _moved(error: ErrorDoc | None) -> ErrorDoc | None:
    if error is None or error.traceback is None:
        return error
    return replace(error, traceback=error.traceback.replace(ROOT, "/app"))


def main(*, again: bool, missing: bool) -> None:
    folder = documents.HERE / streamline_trio.__version__
    folder.mkdir(exist_ok=again or missing)
    for name in LIVES:
        path = folder / f"{name}.json"
        if again or not path.exists():
            stored = run(_live, name)
            documents.write(path, split(stored), stored)


if __name__ == "__main__":
    main(again="--again" in sys.argv, missing="--missing" in sys.argv)
