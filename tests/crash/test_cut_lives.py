"""Lives cut short at random moments over one surviving store: the next goes on, nothing is lost or done twice."""

from __future__ import annotations

import functools
import math
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any, Literal

import hypothesis
import msgspec
import trio
import trio.abc
import trio.testing
from hypothesis import strategies as st

from streamline_trio import Engine, InvalidState, MemoryStore, StepContext, StoreUnavailable, Workflow, open_engine
from streamline_trio._core.status import SETTLED
from streamline_trio._runtime.clock import Chance
from streamline_trio.testing import crash, run
from streamline_trio.testing._time import START
from streamline_trio.testing._witness import Witness
from tests.crash.faulty_store import CutStore, When

LIMIT = 3
ANSWER = 1000  # answers are told from signals by their size
OPS = ("work", "effect", "sleep", "wait", "signal", "set", "once", "checkpoint", "fail", "goto")
Op = Literal["work", "effect", "sleep", "wait", "signal", "set", "once", "checkpoint", "fail", "goto"]


class Life(msgspec.Struct, frozen=True):
    """How a life ends: by a crash at a write or a scheduler step, or by the cancellation of the whole program."""

    ends: Literal["write", "step", "cancel"]
    after: int
    when: When = "before"
    drain: float = 0.0
    engines: int = 1


class Shape(msgspec.Struct, frozen=True):
    """What a run does, step by step."""

    steps: tuple[tuple[Op, ...], ...]

    def count(self, op: Op) -> int:
        return sum(ops.count(op) for ops in self.steps)


lives = st.lists(
    st.one_of(
        st.builds(Life, st.just("write"), st.integers(0, 25), st.sampled_from(["before", "after"])),
        st.builds(Life, st.just("step"), st.integers(10, 1500), engines=st.integers(1, 2)),
        st.builds(Life, st.just("cancel"), st.integers(10, 1500), drain=st.sampled_from([0.0, 0.5, 10.0])),
    ),
    min_size=1,
    max_size=4,
)
shapes = st.builds(
    Shape, st.lists(st.lists(st.sampled_from(OPS), max_size=4).map(tuple), min_size=1, max_size=4).map(tuple)
)


class World:
    """What outlives every life: the store, what the outside did, what was acknowledged to it."""

    def __init__(self, shapes: list[Shape], seed: int, *, exclusive: bool) -> None:
        self.witness = Witness(MemoryStore(exclusive=exclusive), limit=LIMIT)
        self.workflows = [self._workflow(number, shape) for number, shape in enumerate(shapes)]
        self.shapes = shapes
        self.seed = seed
        self.elapsed = 0.0
        self.lives = 0
        self.acknowledged: Counter[str] = Counter()
        self.emitted: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self._failed: Counter[tuple[str, str, int]] = Counter()
        self._gone: set[tuple[str, str, int]] = set()

    # --- handlers ------------------------------------------------------------------------------------------

    def _workflow(self, number: int, shape: Shape) -> Workflow[Any, Any]:
        workflow = Workflow(f"w{number}")
        for place, ops in enumerate(shape.steps):

            def handler(ctx: StepContext[Any, Any], ops: tuple[Op, ...] = ops) -> Any:
                return self._handle(ctx, ops)

            async def call(ctx: StepContext[Any, Any], handler: Any = handler) -> list[Any]:
                with self.witness.inside(ctx):
                    got: list[Any] = await handler(ctx)
                    return got

            workflow.add_step(f"s{place}", call, attempts=LIMIT, retry_delay=2.0)
        return workflow

    async def _handle(self, ctx: StepContext[Any, Any], ops: tuple[Op, ...]) -> list[Any]:  # noqa: C901 - one case per op
        got: list[Any] = []
        for place, op in enumerate(ops):
            match op:
                case "work":
                    await trio.lowlevel.checkpoint()
                case "effect":
                    self.witness.effect(ctx, "effect", place)
                case "sleep":
                    await ctx.sleep(7)
                case "wait":
                    got.append(await ctx.wait(f"reason {place}", returns=int))
                case "signal":
                    got.append(await ctx.wait_for("signal"))
                case "set":
                    await ctx.set(**{f"{ctx.step_id}.{place}": ctx.attempt})
                case "once":
                    await ctx.once(f"{ctx.step_id}.{place}", functools.partial(self._once, ctx, place))
                case "checkpoint":
                    await ctx.checkpoint(place, f"c{place}")
                    assert ctx.checkpoint_value(int, f"c{place}") == place
                case "fail":
                    self._maybe_fail(ctx, place)
                case "goto":
                    await self._maybe_goto(ctx, place)
        return got

    def _once(self, ctx: StepContext[Any, Any], place: int) -> int:
        assert f"{ctx.step_id}.{place}" not in self.witness.run(ctx.run_id).memos, "once is remembered"
        self.witness.effect(ctx, "once", place)
        return place

    def _maybe_fail(self, ctx: StepContext[Any, Any], place: int) -> None:
        key = ctx.run_id, ctx.step_id, place
        self._failed[key] += 1
        if sum(n for (run_id, step, _), n in self._failed.items() if (run_id, step) == key[:2]) < LIMIT:
            raise RuntimeError("as planned")

    async def _maybe_goto(self, ctx: StepContext[Any, Any], place: int) -> None:
        """Go back to the first step, but once only."""
        generation = self.witness.run(ctx.run_id).step("s0").generation
        if not generation and (ctx.run_id, ctx.step_id, place) not in self._gone:
            self._gone.add((ctx.run_id, ctx.step_id, place))
            await ctx.goto("s0")

    # --- the outside ---------------------------------------------------------------------------------------

    async def visit(self, engine: Engine, number: int) -> None:
        """Start the run, unless that was acknowledged; feed it until it settles."""
        run_id = f"r{number}"
        if not self.acknowledged[run_id]:
            try:
                await engine.start(self.workflows[number], {}, run_id=run_id)
            except InvalidState as error:
                if "in use" not in str(error):
                    raise StoreUnavailable("the engine has closed") from error
            self.acknowledged[run_id] += 1
        handle = engine.run(run_id)
        while True:
            seen = await handle.get()
            if seen.status in SETTLED:
                return
            waits = [step.wait for step in seen.steps.values() if step.wait is not None]
            try:
                if any(wait.kind == "human" for wait in waits):
                    await handle.resume(ANSWER + self.answers[run_id])
                    self.answers[run_id] += 1
                elif any(wait.kind == "signal" for wait in waits) or not self.emitted[run_id]:
                    sent = self.emitted[run_id]
                    await engine.emit("signal", sent, run=handle, id=f"signal {sent}")
                    self.emitted[run_id] += 1
            except InvalidState:
                pass
            await trio.sleep(3)

    # --- lives ---------------------------------------------------------------------------------------------

    def live(self, life: Life | None) -> None:
        """One trio.run, which ends as `life` says, or once every run has settled."""
        self.lives += 1
        start = START.add(seconds=math.ceil(self.elapsed))
        self.elapsed = math.ceil(self.elapsed)
        instruments = trio.lowlevel.add_instrument
        run(self._live, life, instruments, start=start)

    async def _live(self, life: Life | None, instruments: Any) -> None:
        began = trio.current_time()
        cut = trio.Event()
        chosen = life or Life("write", 0)
        store = CutStore(self.witness, chosen.after if life and life.ends == "write" else None, chosen.when)
        store.cut = cut
        if life and life.ends != "write":
            instruments(StepCounter(chosen.after, cut))
        try:
            async with trio.open_nursery() as killer:
                engines: list[Engine] = []
                with trio.CancelScope() as program:
                    killer.start_soon(self._end, cut, program, engines, chosen)
                    await self._program(store, chosen, engines)
                    assert life or all(
                        self.witness.run(run_id).head.status in SETTLED for run_id in self.acknowledged
                    )
                killer.cancel_scope.cancel()
        finally:
            self.elapsed += trio.current_time() - began

    async def _program(self, store: CutStore, life: Life, engines: list[Engine]) -> None:
        async with AsyncExitStack() as stack:
            for place in range(life.engines):
                engine = await stack.enter_async_context(self._open(store, place, life.drain))
                engines.append(engine)
                await stack.enter_async_context(self.witness.listening(engine))
            await self._visits(engines)

    def _open(self, store: CutStore, place: int, drain: float) -> Any:
        chance = Chance(self.seed * 10_000 + self.lives * 10 + place)
        return open_engine(
            store,
            *self.workflows,
            drain_timeout=drain,
            max_recoveries=1000,
            poll_interval=1.0,
            lease=9.0,
            chance=chance,
        )

    async def _end(self, cut: trio.Event, program: trio.CancelScope, engines: list[Engine], life: Life) -> None:
        await cut.wait()
        if life.ends != "cancel":
            for engine in engines[: None if life.ends == "write" else 1]:
                await crash(engine)
            if len(engines) > 1:
                await trio.sleep(60)
        program.cancel()

    async def _visits(self, engines: list[Engine]) -> None:
        with trio.fail_after(2_000):
            async with trio.open_nursery() as nursery:
                for number in range(len(self.shapes)):
                    nursery.start_soon(self._visit_while_it_lives, engines[-1], number)

    async def _visit_while_it_lives(self, engine: Engine, number: int) -> None:
        try:
            await self.visit(engine, number)
        except StoreUnavailable:  # the engine has crashed, and its program is about to end
            await trio.sleep_forever()

    def check(self) -> None:
        """After the last life."""
        self.witness.check()
        for number, shape in enumerate(self.shapes):
            document = self.witness.run(f"r{number}")
            assert document.head.status == "done", document.head.error
            answers = [msgspec.msgpack.decode(step.output or b"") for step in document.steps.values()]
            self._check_taken(document.id, shape, [value for got in answers for value in got])
        for (_run, _step, kind, *_), times in Counter(self.witness.effects).items():
            assert kind != "once" or times <= 1 + self.lives

    def _check_taken(self, run_id: str, shape: Shape, taken: list[int]) -> None:
        """Each wait took one answer; all that was acknowledged reached the run, in order, signals exactly once."""
        if shape.count("goto"):  # what the steps took before they were reset is forgotten
            return
        inbox = [msgspec.msgpack.decode(message.payload) for message in self.witness.run(run_id).inbox.values()]
        signals = [value for value in taken if value < ANSWER]
        assert len(signals) == shape.count("signal")
        assert [*signals, *inbox] == list(range(len(signals) + len(inbox)))
        assert len(signals) + len(inbox) >= self.emitted[run_id]
        answers = [value - ANSWER for value in taken if value >= ANSWER]
        assert len(answers) == shape.count("wait")
        assert answers == sorted(answers)
        assert len(set(answers)) >= self.answers[run_id]


class StepCounter(trio.abc.Instrument):
    """Sets an event after so many steps of trio's scheduler."""

    def __init__(self, left: int, reached: trio.Event) -> None:
        self._left = left
        self._reached = reached

    def after_task_step(self, _task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._reached.set()


@hypothesis.given(
    shapes=st.lists(shapes, min_size=1, max_size=3),
    lives=lives,
    exclusive=st.booleans(),
    seed=st.integers(0, 9999),
    randomness=st.random_module(),
)
@hypothesis.settings(
    max_examples=hypothesis.settings().max_examples if hypothesis.settings().max_examples > 100 else 60
)
def test_whatever_is_cut_short_is_finished_by_the_next(shapes, lives, exclusive, seed, randomness):
    """Proves that lives cut at any write or scheduler step lose nothing acknowledged and redo nothing finished."""
    world = World(shapes, seed, exclusive=exclusive)
    for life in lives:
        world.live(life)
    world.live(None)
    world.check()
