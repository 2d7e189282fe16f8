"""Each store call of each scenario fails once, before or after it was carried out: the outcome stays the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, ClassVar

import pytest
import trio
import trio.testing

from streamline_trio import (
    Engine,
    MemoryStore,
    RunHandle,
    Signal,
    SqliteStore,
    StoreUnavailable,
    Workflow,
    open_engine,
)
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.store import Applied, Update
from streamline_trio.stores.mongo import MongoStore
from streamline_trio.testing import FailCall, Mishap, sweep
from streamline_trio.testing._witness import Witness
from tests.crash.faulty_store import BrokenStore, FaultyStore, When
from tests.crash.scenes import OPTIONS, returns_done, simple, virtual

go = Signal("go", int)
to_all = Signal("to.all", int)


class Scenario:
    """A workflow, what the outside does with it, and what must come of it."""

    def __init__(self) -> None:
        self.workflow: Workflow[Any, Any] = Workflow("scenario")
        self.begin()
        self.define()

    def begin(self) -> None:
        """With a clean world."""
        self.effects: Counter[str] = Counter()
        self.fresh = True

    def define(self) -> None:
        raise NotImplementedError

    async def play(self, engine: Engine) -> None:
        raise NotImplementedError

    async def started(self, engine: Engine) -> RunHandle:
        return await engine.start(self.workflow, {"n": 1}, idempotency_key="key")

    effects_wanted: ClassVar[dict[str, int]] = {}


class Plain(Scenario):
    effects_wanted: ClassVar = {"a": 1, "b": 1}

    def define(self) -> None:
        @self.workflow.step
        async def a(ctx: Any) -> int:
            self.effects["a"] += 1
            return 1

        @self.workflow.step
        async def b(ctx: Any) -> int:
            self.effects["b"] += 1
            return int(ctx.output("a")) + 1

    async def play(self, engine: Engine) -> None:
        handle = await self.started(engine)
        assert await handle.result() == 2
        assert await engine.count() == 1
        assert (await engine.get(handle.id)).steps["b"].attempts == 1


class Retry(Scenario):
    effects_wanted: ClassVar = {"a": 3}

    def define(self) -> None:
        @self.workflow.step(attempts=3, retry_delay=0.02, jitter=0)
        async def a(ctx: Any) -> int:
            self.effects["a"] += 1
            if self.effects["a"] < 3:
                raise ValueError("not yet")
            return int(ctx.attempt)

    async def play(self, engine: Engine) -> None:
        assert await (await self.started(engine)).result() == 3


class Exhausted(Scenario):
    effects_wanted: ClassVar = {"a": 2}

    def define(self) -> None:
        @self.workflow.step(attempts=2, retry_delay=0)
        async def a(ctx: Any) -> None:
            self.effects["a"] += 1
            raise ValueError("never")

    async def play(self, engine: Engine) -> None:
        document = await (await self.started(engine)).wait()
        assert (document.status, document.steps["a"].attempts) == ("failed", 2)


class Sleeps(Scenario):
    effects_wanted: ClassVar = {"woke": 1}

    def define(self) -> None:
        @self.workflow.step
        async def a(ctx: Any) -> None:
            await ctx.sleep(0.02)
            await ctx.sleep(0.01)
            self.effects["woke"] += 1

    async def play(self, engine: Engine) -> None:
        assert (await (await self.started(engine)).wait()).status == "done"


class Waits(Scenario):
    effects_wanted: ClassVar = {"answered": 1}

    def define(self) -> None:
        @self.workflow.step
        async def a(ctx: Any) -> int:
            answer: int = await ctx.wait("answer", returns=int)
            self.effects["answered"] += 1
            return answer

    async def play(self, engine: Engine) -> None:
        handle = await self.started(engine)
        await parked(handle)
        await handle.resume(7)
        assert await handle.result() == 7


class Tokens(Scenario):
    effects_wanted: ClassVar = {"answered": 1}

    def begin(self) -> None:
        super().begin()
        self.tokens: list[str] = []

    def define(self) -> None:
        @self.workflow.step
        async def a(ctx: Any) -> int:
            async def told(token: str) -> None:
                self.tokens.append(token)

            answer: int = await ctx.wait("answer", returns=int, on_token=told)
            self.effects["answered"] += 1
            return answer

    async def play(self, engine: Engine) -> None:
        handle = await self.started(engine)
        await parked(handle)
        await engine.resume(self.tokens[-1], 8)
        assert await handle.result() == 8


class Signals(Scenario):
    effects_wanted: ClassVar = {"taken": 1}

    def define(self) -> None:
        @self.workflow.step
        async def a(ctx: Any) -> list[int]:
            taken = [await ctx.wait_for(go) for _ in range(3)]
            self.effects["taken"] += 1
            return taken

    async def play(self, engine: Engine) -> None:
        handle = await self.started(engine)
        for number in range(3):
            await engine.emit(go, number, run=handle)
        assert await handle.result() == [0, 1, 2]


class Broadcast(Scenario):
    effects_wanted: ClassVar = {"taken": 1}

    def define(self) -> None:
        @self.workflow.step
        async def a(ctx: Any) -> int:
            taken = await ctx.wait_for(to_all)
            self.effects["taken"] += 1
            return int(taken)

    async def play(self, engine: Engine) -> None:
        handle = await self.started(engine)
        await parked(handle)
        await engine.emit(to_all, 9)
        assert await handle.result() == 9


class Cancels(Scenario):
    effects_wanted: ClassVar = {"entered": 1, "unwound": 1}

    def begin(self) -> None:
        super().begin()
        self.entered = trio.Event()

    def define(self) -> None:
        @self.workflow.step
        async def a(ctx: Any) -> None:
            self.effects["entered"] += 1
            self.entered.set()
            try:
                await trio.sleep_forever()
            finally:
                self.effects["unwound"] += 1

    async def play(self, engine: Engine) -> None:
        handle = await self.started(engine)
        await self.entered.wait()
        await handle.cancel("enough")
        document = await handle.wait()
        assert (document.status, document.cancel_reason) == ("cancelled", "enough")


class Goes(Scenario):
    effects_wanted: ClassVar = {"a": 2, "b": 2}

    def define(self) -> None:
        @self.workflow.step
        async def a(ctx: Any) -> int:
            self.effects["a"] += 1
            return self.effects["a"]

        @self.workflow.step
        async def b(ctx: Any) -> int:
            self.effects["b"] += 1
            if ctx.output("a") == 1:
                await ctx.goto("a")
            return int(ctx.output("a"))

    async def play(self, engine: Engine) -> None:
        assert await (await self.started(engine)).result() == 2


class Keeps(Scenario):
    effects_wanted: ClassVar = {"once": 1, "a": 1}

    def define(self) -> None:
        @self.workflow.step
        async def a(ctx: Any) -> list[Any]:
            self.effects["a"] += 1
            await ctx.set(n=5)
            got = [await ctx.once("key", self._effect), await ctx.once("key", self._effect)]
            await ctx.checkpoint("x", "name")
            ctx.log("kept")
            return [*got, ctx.checkpoint_value(str, "name"), ctx.state["n"]]

    async def _effect(self) -> int:
        self.effects["once"] += 1
        return 3

    async def play(self, engine: Engine) -> None:
        handle = await self.started(engine)
        assert await handle.result() == [3, 3, "x", 5]
        assert (await handle.get()).state == {"n": 5}


class Drafts(Scenario):
    effects_wanted: ClassVar = {"a": 3}

    def define(self) -> None:
        @self.workflow.step
        async def a(ctx: Any) -> None:
            self.effects["a"] += 1

    async def play(self, engine: Engine) -> None:
        one = await engine.start(self.workflow, delay=0.02, run_id="one")
        two = await engine.start(self.workflow, run_id="two")
        await one.pause()
        await one.unpause()
        assert [(await handle.wait()).status for handle in (one, two)] == ["done", "done"]
        await two.rewind("a")
        self.fresh = False
        assert (await two.wait()).status == "done"


SCENARIOS = [Plain, Retry, Exhausted, Sleeps, Waits, Tokens, Signals, Broadcast, Cancels, Goes, Keeps, Drafts]


async def parked(handle: RunHandle) -> None:
    """Until the run waits."""
    with trio.fail_after(60):
        while (await handle.get()).status != "waiting":  # noqa: ASYNC110 - nothing but the store tells of it
            await trio.sleep(0.01)


async def play(make: type[Scenario], witness: Witness, fail: set[int], when: When) -> int:
    """One engine's life with the scenario; how many calls it made."""
    scenario = make()
    store = FaultyStore(witness, fail, when)
    async with (
        open_engine(store, scenario.workflow, drain_timeout=1, lease=30.0, poll_interval=0.05) as engine,
        witness.listening(engine),
    ):
        store.armed = True
        with trio.fail_after(120):
            await scenario.play(engine)
    check(scenario, witness)
    return store.calls


def check(scenario: Scenario, witness: Witness) -> None:
    """What came of the scenario is what was wanted."""
    assert dict(scenario.effects) == scenario.effects_wanted
    if scenario.fresh:
        witness.check()
    check_settled(witness)


def check_settled(witness: Witness) -> None:
    """Every run has settled, none was given up or recovered, and no commit came twice."""
    for versions in witness.versions.values():
        last: RunDoc = versions[-1]
        assert last.head.ended_at is not None
        assert last.head.recoveries == 0
        assert len(set(last.head.commits)) == len(last.head.commits)


def fail_every_call(make: type[Scenario], store: Callable[[], Any]) -> list[Mishap]:
    """Sweep the scenario over such stores, each with a witness; the calls that failed."""
    scenario = make()
    witnesses: list[Witness] = []

    def witnessed() -> Witness:
        witnesses.append(Witness(store(), limit=3))
        return witnesses[-1]

    async def scene(engine: Engine) -> None:
        scenario.begin()
        async with witnesses[-1].listening(engine):
            await scenario.play(engine)
        assert dict(scenario.effects) == scenario.effects_wanted

    failed = sweep(scene, scenario.workflow, mishaps=[FailCall], store=witnessed, drain_timeout=1, lease=30.0)
    # Only now: who waits for a run may read that it has settled before the engine hears of its own commit.
    for witness in witnesses:
        check_settled(witness)
        if scenario.fresh:
            witness.check()
    return failed


def check_every_call(failed: list[Mishap]) -> None:
    """No call was left out, before or after."""
    for when in ("before", "after"):
        calls = [mishap.call for mishap in failed if isinstance(mishap, FailCall) and mishap.when == when]
        assert calls == list(range(len(calls)))
        assert len(calls) > 3


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_any_call_may_fail_in_memory(scenario, exclusive):
    """Proves that whichever store call fails, before or after, the outcome and every effect are the same."""
    check_every_call(fail_every_call(scenario, lambda: MemoryStore(exclusive=exclusive)))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_any_call_may_fail_on_sqlite(scenario, tmp_path):
    """Proves the same on SQLite, where other processes might write."""
    numbers = count()
    check_every_call(fail_every_call(scenario, lambda: SqliteStore(tmp_path / f"{next(numbers)}.db")))


@pytest.mark.deadline(120)
@pytest.mark.parametrize("scenario", [Plain, Tokens, Signals])
def test_any_call_may_fail_on_mongodb(scenario, databases):
    """Proves the same on MongoDB, in a database that is emptied before each play."""
    database = databases.of(databases.url())

    def emptied() -> MongoStore:
        for name in database.list_collection_names():
            database[name].delete_many({})
        return MongoStore(database, change_streams=False)

    check_every_call(fail_every_call(scenario, emptied))


@virtual
async def test_two_faults_in_a_row_are_as_good_as_one():
    """Proves that the re-read that resolves a lost acknowledgement may fail too."""
    for scenario in (Plain, Waits, Signals):
        for when in ("before", "after"):
            for number in range(12):
                witness = Witness(MemoryStore())
                await play(scenario, witness, {number, number + 1, number + 2}, when)


@virtual
async def test_a_start_that_stays_in_doubt_says_so_and_is_not_doubled():
    """Proves that `start` on a store that stays away raises, and that starting again with the key is one run."""
    inner = MemoryStore()
    store = BrokenStore(inner)
    workflow = simple(returns_done)
    async with open_engine(store, workflow, **OPTIONS) as engine:
        store.broken = True
        with pytest.raises(StoreUnavailable, match="may or may not"):
            await engine.start(workflow, idempotency_key="key")
        store.broken = False
        assert await (await engine.start(workflow, idempotency_key="key")).result() == "done"
        assert await engine.count() == 1


@virtual
async def test_a_run_that_is_given_up_in_doubt_is_handed_back_and_goes_on():
    """Proves that a run whose commit stays in doubt is not driven on, and is back in the queue within a lease."""
    inner = MemoryStore(exclusive=False)
    store = BrokenStore(inner, lambda name, args: name == "write" and any(isinstance(w, Update) for w in args[0]))
    entries: list[int] = []

    async def body(ctx: Any) -> None:
        entries.append(ctx.attempt)
        await trio.sleep(1)

    workflow = simple(body)
    async with open_engine(store, workflow, **OPTIONS) as engine:
        handle = await engine.start(workflow)
        await trio.sleep(0.5)
        store.broken = True
        await trio.sleep(30)
        store.broken = False
        assert (await handle.wait(timeout=40)).status == "done"
    assert len(entries) == 2


@virtual
async def test_a_broadcast_reaches_everybody_although_reads_fail_while_it_goes_out():
    """Proves that a broadcast that was acknowledged or is stored is not lost for one failed read."""
    workflow = Broadcast().workflow
    for number in range(1, 9):
        store = FaultyStore(MemoryStore(), {number})
        async with open_engine(store, workflow) as engine:
            handles = [await engine.start(workflow) for _ in range(3)]
            for handle in handles:
                await parked(handle)
            store.armed = True
            await engine.emit(to_all, 1)
            with trio.fail_after(100):
                assert [await handle.result() for handle in handles] == [1, 1, 1]


@virtual
async def test_nothing_is_published_before_it_is_stored():
    """Proves that events of a commit are heard only once the store has applied it."""
    inner = MemoryStore()
    seen: list[Any] = []
    store = Recorder(inner, seen)
    workflow = Plain().workflow
    async with open_engine(store, workflow) as engine:
        engine.on("*", seen.append)
        await (await engine.start(workflow)).result()
        await trio.testing.wait_all_tasks_blocked()
    revisions = 0
    for item in seen:
        revisions = item if isinstance(item, int) else revisions
        assert isinstance(item, int) or item.revision <= revisions
    assert len(seen) > 6


class Recorder(Witness):
    """Notes each revision once it is stored; between that and before, everybody may run."""

    def __init__(self, inner: Any, seen: list[Any]) -> None:
        super().__init__(inner)
        self._seen = seen

    async def around(self, name: str, args: tuple[Any, ...], act: Callable[[], Awaitable[Any]]) -> Any:
        if name == "write":
            await trio.testing.wait_all_tasks_blocked(0.01)
        verdicts = await super().around(name, args, act)
        if name == "write" and any(isinstance(verdict, Applied) for verdict in verdicts):
            self._seen.extend(versions[-1].head.revision for versions in self.versions.values())
        return verdicts
