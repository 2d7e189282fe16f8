"""Runs that two processes may want to start, or that one process commits to while another starts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio

from streamline_trio import (
    Concurrency,
    ConcurrencyLimitReached,
    MemoryStore,
    Recurrence,
    StepContext,
    StoreUnavailable,
    Workflow,
    open_engine,
)
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.durations import instant_millis
from streamline_trio._core.store import Delete, Insert, PutSide, Refused, Update
from streamline_trio.testing import WrappedStore
from streamline_trio.testing._time import START
from streamline_trio.testing._wrapped_store import Act
from tests.crash.scenes import virtual

Context = StepContext[Any, Any]


class Ahead:
    """A clock that is ahead by more than a lease."""

    def now(self) -> int:
        return instant_millis(START, what="start") + int(trio.current_time() * 1000) + 100_000


class Late(WrappedStore):
    """Parks the first write that `picks` picks; then carries it out, or fails before that if `fails`."""

    def __init__(self, inner: Any, picks: Callable[[Any], bool], *, fails: bool = False) -> None:
        super().__init__(inner)
        self.parked = trio.Event()
        self.go_on = trio.Event()
        self._picks = picks
        self._fails = fails

    async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
        if name == "write" and not self.parked.is_set() and any(map(self._picks, args[0])):
            self.parked.set()
            await self.go_on.wait()
            if self._fails:
                raise StoreUnavailable("it fails before it was carried out")
        return await act()


@virtual
async def test_a_firing_that_another_worker_has_started_is_not_driven_here():
    """Proves that a worker whose insert of a firing fails finds the run of another there, whose clock is ahead so
    that it has taken the firing over, and leaves it to that one: else the handler would run twice at once.
    """
    inner, entered, leave = MemoryStore(exclusive=False), list[str](), trio.Event()
    workflow: Workflow[Any, Any] = Workflow("job")

    @workflow.step
    async def work(ctx: Context) -> None:
        entered.append(ctx.run_id)
        await leave.wait()

    slow = Late(inner, lambda write: isinstance(write, Insert), fails=True)
    options: dict[str, Any] = {"lease": 60.0, "poll_interval": 1.0}
    async with open_engine(slow, workflow, **options) as first:
        await first.schedule(workflow, every=Recurrence.every(10, count=1), id="s")
        with trio.fail_after(100):
            await slow.parked.wait()
        async with open_engine(inner, workflow, clock=Ahead(), **options) as second:
            with trio.fail_after(20):
                while not entered:  # noqa: ASYNC110 - time is skipped
                    await trio.sleep(1)
            slow.go_on.set()
            await trio.sleep(5)
            assert len(entered) == 1
            leave.set()
            with trio.fail_after(100):
                (run,) = (await second.find()).items
                assert (await second.run(run.id).wait()).recoveries == 0
                while not (await second.schedules.get("s")).fired:  # noqa: ASYNC110 - time is skipped
                    await trio.sleep(1)
            assert await second.count() == len(entered) == 1


def refusing(limit: int = 1) -> Workflow[Any, Any]:
    flow: Workflow[Any, Any] = Workflow("flow", concurrency=Concurrency(limit, when_full="reject"))

    @flow.step
    async def work(_ctx: Context) -> None:
        pass

    return flow


def is_of_bucket(write: Any) -> bool:
    return isinstance(write, PutSide) and write.kind == "slots"


@virtual
async def test_a_commit_of_another_process_does_not_end_a_start_that_is_under_way():
    """Proves that who signals a draft that is just being admitted does not take its starter for vanished."""
    inner, flow, inserted = MemoryStore(exclusive=False), refusing(), list[Any]()

    def is_held(write: Any) -> bool:
        inserted.extend([write] if isinstance(write, Insert) else [])
        return is_of_bucket(write)

    slow = Late(inner, is_held)
    async with open_engine(slow, flow, lease=60.0) as first, open_engine(inner, flow, worker=False) as other:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: first.start(flow, run_id="r"))
            await slow.parked.wait()
            await other.emit("s", 1, run="r")
            await trio.sleep(1)
            assert (await other.get("r")).status == "draft"
            slow.go_on.set()
        assert (await first.run("r").wait(timeout=20)).status == "done"
        assert len(inserted) == 1


@virtual
async def test_a_start_that_was_given_up_for_dead_is_tried_again():
    """Proves that a start whose wish others have dropped is not told that all slots are taken: they are free."""
    inner, flow = MemoryStore(exclusive=False), refusing()
    slow = Late(inner, is_of_bucket)
    options: dict[str, Any] = {"lease": 60.0, "poll_interval": 1.0}
    async with open_engine(slow, flow, **options) as first, open_engine(inner, flow, **options) as other:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: first.start(flow, run_id="r"))
            await slow.parked.wait()
            while await other.count():  # noqa: ASYNC110 - time is skipped
                await trio.sleep(1)
            slow.go_on.set()
        assert (await first.run("r").wait(timeout=20)).status == "done"
        assert await other.count() == 1


@virtual
async def test_what_was_decided_on_a_draft_that_was_removed_is_no_commit_on_the_next_of_its_id():
    """Proves that a process which still has a refused draft in hand can neither change nor remove the run that is
    started later under its id.
    """
    inner, drafts = MemoryStore(exclusive=False), list[RunDoc]()
    flow: Workflow[Any, Any] = Workflow("flow", concurrency=Concurrency(1, when_full="reject"))

    @flow.step
    async def work(ctx: Context) -> None:
        await ctx.sleep(10)

    def keeps(write: Any) -> bool:
        drafts.extend([write.run] if isinstance(write, Insert) else [])
        return False

    async with open_engine(Late(inner, keeps), flow) as engine:
        first = await engine.start(flow)
        with pytest.raises(ConcurrencyLimitReached):
            await engine.start(flow, run_id="again")
        await first.wait()
        again = await engine.start(flow, run_id="again")
        _, removed, stored = drafts
        assert (removed.id, stored.id) == ("again", "again")
        before = msgspec.structs.replace(stored, head=removed.head)
        after = msgspec.structs.replace(before, head=msgspec.structs.replace(before.head, revision=7))
        assert removed.head.revision != stored.head.revision
        verdicts = await inner.write([Update(before, after), Delete("again", removed.head.revision)])
        assert verdicts == [Refused(), Refused()]
        assert (await again.wait()).status == "done"


@virtual
async def test_a_fork_that_was_given_up_for_dead_is_tried_again():
    """Proves the same of a fork, and that none is left of the draft that was dropped."""
    inner, flow = MemoryStore(exclusive=False), refusing()
    options: dict[str, Any] = {"lease": 60.0, "poll_interval": 1.0}
    async with open_engine(inner, flow, **options) as other:
        run = await other.start(flow)
        await run.wait()
        slow = Late(inner, is_of_bucket)
        async with open_engine(slow, flow, **options) as first:
            forked: list[Any] = []

            async def fork() -> None:
                forked.append(await first.run(run.id).fork("work"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(fork)
                await slow.parked.wait()
                while await other.count() == 2:  # noqa: ASYNC110 - time is skipped
                    await trio.sleep(1)
                slow.go_on.set()
            assert (await forked[0].wait(timeout=20)).status == "done"
            assert await other.count() == 2
