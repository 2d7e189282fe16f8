"""Documents that earlier releases have stored: they load, say what they said, and run to their ends."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import whenever

from streamline_trio import Engine, RunCancelled, RunHandle, open_engine
from streamline_trio._core.codec import join, split
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.store import Applied, Insert
from streamline_trio.stores.memory import MemoryStore
from streamline_trio.stores.sqlite import SqliteStore
from streamline_trio.testing import run
from streamline_trio.testing._laws import check_state
from tests.golden.documents import DOCUMENTS, RELEASES, project, read_expected, read_parts, read_run
from tests.golden.saga import golden_saga
from tests.golden.workflow import TOKEN, go, golden
from tests.golden.write import LIVES, workflow_of

WEEK = 7 * 86_400.0
TWO_HOURS_LATER = whenever.Instant.from_utc(2026, 1, 1, 2)
documents = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")


def test_every_release_has_a_document_of_every_kind():
    """What is looked for below is there."""
    assert RELEASES
    for release in RELEASES:
        assert {path.stem for path in DOCUMENTS if path.parent == release} >= set(LIVES)


@documents
def test_it_says_what_it_said(path):
    """Every field that was written is read, with the same meaning."""
    assert project(read_run(path)) == read_expected(path)


@documents
def test_it_keeps_the_laws_of_today(path):
    """A stored run is a state that `decide` knows how to go on from."""
    check_state(read_run(path), workflow_of(path.stem).seal())


@documents
def test_writing_it_again_loses_nothing(path):
    """A commit of this release on it leaves every field that it had."""
    stored, rewritten = read_parts(path), split(read_run(path))
    assert rewritten.keys() == stored.keys()
    for name, body in stored.items():
        before, after = msgspec.msgpack.decode(body), msgspec.msgpack.decode(rewritten[name])
        if isinstance(before, dict):
            assert before.items() <= after.items()
        else:
            assert before == after


@documents
def test_additions_of_a_later_release_are_ignored(path):
    """Unknown fields in any part, and unknown parts, do not keep a run from being read."""
    parts = {name: _with_novelty(name, body) for name, body in read_parts(path).items()}
    assert join({**parts, "novelty": b"\xc1", "novelty/x": b"\xc1"}) == read_run(path)


def _with_novelty(name: str, body: bytes) -> bytes:
    """The part with a field more, if it is a struct."""
    if name == "state" or name.startswith(("checkpoint/", "seen/")):
        return body
    fields = msgspec.msgpack.decode(body)
    return msgspec.msgpack.encode({**fields, "novelty": {"of": ["a", "later", "release"]}})


# --- they run ----------------------------------------------------------------------------------------------

Act = Callable[[Engine, RunHandle], Awaitable[Any]]


async def _nothing(_engine: Engine, _handle: RunHandle) -> None:
    """It goes on by itself."""


async def _retry(_engine: Engine, handle: RunHandle) -> None:
    await handle.retry()


async def _answer_by_token(engine: Engine, _handle: RunHandle) -> None:
    await engine.resume(TOKEN, payload=False)


async def _answer(_engine: Engine, handle: RunHandle) -> None:
    await handle.resume(payload="gladly", step="wait")


async def _unpause_and_answer(engine: Engine, handle: RunHandle) -> None:
    await handle.unpause()
    await _answer_by_token(engine, handle)


async def _emit(engine: Engine, handle: RunHandle) -> None:
    before = await handle.get()
    await engine.emit("golden.other", {"n": 1}, run=handle, id="other-1")
    assert (await handle.get()).revision == before.revision, "a signal that it has had already changes nothing"
    await engine.emit(go, 9, run=handle)


async def _rewind(_engine: Engine, handle: RunHandle) -> None:
    await handle.rewind(to="wait")


ENDS: dict[str, tuple[Act, Any]] = {
    "draft": (_nothing, "done"),
    "leased": (_nothing, "leased"),
    "parked-on-timer": (_nothing, "slept"),
    "parked-on-human": (_answer_by_token, "refused"),
    "asked-again": (_answer, "gladly"),
    "paused": (_unpause_and_answer, "refused"),
    "parked-on-signal": (_emit, 9),
    "ready": (_nothing, 7),
    "backoff": (_nothing, "backoff"),
    "done": (_rewind, "done"),
    "failed": (_retry, "failed"),
    "dead-lettered": (_retry, "dead letter"),
}


async def _brings_to_its_end(store: Any, stored: RunDoc, act: Act, output: Any) -> None:
    await store.open()
    assert await store.write([Insert(stored)]) == [Applied()]
    async with open_engine(store, golden) as engine:
        handle = engine.run(stored.id)
        await act(engine, handle)
        assert await handle.result(timeout=WEEK) == [42, output, "charged 21"]
        ended = await handle.get()
    assert {step.status for step in ended.steps.values()} == {"done"}
    assert ended.state.seen[0] == f"started {ended.input.play}"
    assert ended.idempotency_key == f"key of {stored.id.removeprefix('golden-')}"
    await store.aclose()


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.stem in ENDS], ids=lambda path: path.stem)
def test_it_runs_to_its_end(path):
    """An engine of this release takes the run up where the old one left it, and what was done stays done."""
    act, output = ENDS[path.stem]
    run(functools.partial(_brings_to_its_end, MemoryStore(), read_run(path), act, output), start=TWO_HOURS_LATER)


async def _is_read(stored: RunDoc) -> None:
    store = MemoryStore()
    assert await store.write([Insert(stored)]) == [Applied()]
    async with open_engine(store, golden) as engine:
        handle = engine.run(stored.id)
        with pytest.raises(RunCancelled, match="not wanted any more"):
            await handle.result(timeout=WEEK)
        assert next(entry.kind for entry in await handle.timeline()) == "created"


SAGAS: dict[str, str] = {
    "saga-compensating": "compensated",
    "saga-backoff": "compensated",
    "saga-compensated": "compensated",
    "saga-compensation-failed": "compensation_failed",
    "saga-cancelled": "cancelled",
}


async def _is_undone(stored: RunDoc, status: str) -> None:
    store = MemoryStore()
    assert await store.write([Insert(stored)]) == [Applied()]
    async with open_engine(store, golden_saga) as engine:
        handle = engine.run(stored.id)
        ended = await handle.wait(timeout=WEEK)
        assert ended.status == status
        if status == "compensation_failed":
            await handle.retry()
            ended = await handle.wait(timeout=WEEK)
            assert ended.status == "compensated"
    assert ended.compensation is not None
    assert list(ended.compensation.steps) == ["charge", "reserve"]
    assert ended.error is not None
    assert ended.error.message == "no carrier takes it"
    if status != "cancelled":
        assert set(ended.compensation.steps.values()) == {"done"}
        assert ended.steps["reserve"].checkpoints == {"undone": "back on shelf 4"}


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.stem in SAGAS], ids=lambda path: path.stem)
def test_it_is_undone(path):
    """An engine of this release goes on with the undoing where the old one left it; what rests is read."""
    run(functools.partial(_is_undone, read_run(path), SAGAS[path.stem]), start=TWO_HOURS_LATER)


RESTS = [path for path in DOCUMENTS if path.stem not in ENDS and path.stem not in SAGAS]


@pytest.mark.parametrize("path", RESTS, ids=lambda path: path.stem)
def test_what_rests_for_ever_is_still_read(path):
    """Snapshot, result and timeline of a cancelled run."""
    run(_is_read, read_run(path), start=TWO_HOURS_LATER)


@documents
async def test_it_can_be_kept_by_other_stores(path, tmp_path):
    """What one release has stored, every store of this one can store."""
    store = SqliteStore(tmp_path / "runs.db")
    await store.open()
    assert await store.write([Insert(read_run(path))]) == [Applied()]
    assert await store.load(read_run(path).id) == read_run(path)
    await store.aclose()
