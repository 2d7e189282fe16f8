"""Workflows drawn at random from what the engine can do, and what each must have produced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import Record, RunDoc
from streamline_trio._core.errors import NonRetriable, StreamlineError, WaitTimedOut, WaitWithdrawn
from streamline_trio._runtime.context import StepContext
from streamline_trio.testing._world_choices import Chooser
from streamline_trio.testing._world_misuse import MISUSES, STALE_VERBS, Misuses
from streamline_trio.testing._world_scenario import VERBS, Scenario, Start

if TYPE_CHECKING:
    from streamline_trio.testing._world import World

Context = StepContext[Any, Any, Any]


class Flaky(Exception):
    """A failure that another attempt may not meet."""

    code = "flaky"


class Op(msgspec.Struct, frozen=True):
    """One thing that a handler does; what `size` means depends on the kind."""

    kind: str
    size: float = 0


class StepProgram(msgspec.Struct, frozen=True):
    """What one step does, and its options."""

    ops: tuple[Op, ...]
    attempts: int
    timeout: float | None = None
    skip: bool | None = None


class Program(msgspec.Struct, frozen=True):
    """One workflow."""

    id: str
    steps: tuple[StepProgram, ...]
    timeout: float | None = None


_KINDS: tuple[tuple[str, int], ...] = (
    ("effect", 5),
    ("work", 4),
    ("sleep", 3),
    ("wait", 4),
    ("signal", 4),
    ("once", 3),
    ("set", 2),
    ("checkpoint", 2),
    ("flaky", 2),
    ("back", 2),
    ("jump", 1),
    ("token", 2),
    ("stubborn", 2),
    ("tidy", 1),
    ("log", 1),
    ("ask", 1),
    ("die", 1),
    ("linger", 2),
    ("leak", 1),
    ("stale", 1),
    ("stray", 1),
)
_SIZES: dict[str, Sequence[float]] = {
    "work": (0.2, 1.0, 3.0, 12.0),
    "linger": (5.0, 40.0),
    "stubborn": (1.0, 12.0),
    "tidy": (1.0, 0.3),
    "sleep": (0.5, 0.0, 5.0, 20.0),
    "wait": (0, 3.0, 20.0),
    "token": (0, 20.0),
    "ask": (3.0, 20.0),
    "signal": (0, 3.0, 20.0),
    "flaky": (1, 2, 3),
    "once": (0, 1),
    "leak": (1, 2, 3),
    "stale": tuple(range(STALE_VERBS)),
    "stray": (1, 2, 3),
}


def draw_programs(chooser: Chooser) -> Scenario:
    """A scenario of one or two workflows."""
    programs = [_draw_program(chooser, f"p{number}") for number in range(1 + chooser.below(2))]
    return Programs(programs, chooser)


def _draw_program(chooser: Chooser, id: str) -> Program:
    steps = tuple(_draw_step(chooser) for _ in range(1 + chooser.below(3)))
    return Program(id, steps, timeout=chooser.one_of((None, None, None, None, 15.0)))


def _draw_step(chooser: Chooser) -> StepProgram:
    ops = tuple(_draw_op(chooser) for _ in range(chooser.below(5)))
    if not chooser.one_in(5):
        return StepProgram(ops, attempts=chooser.one_of((3, 2, 1)))
    return StepProgram(
        ops,
        attempts=chooser.one_of((3, 2, 1)),
        timeout=chooser.one_of((None, 2.0)),
        skip=chooser.one_of((None, False, True)),
    )


def _draw_op(chooser: Chooser) -> Op:
    kind = chooser.weighted(_KINDS)
    return Op(kind, chooser.one_of(_SIZES[kind]) if kind in _SIZES else 0)


class Programs(Misuses, Scenario):
    """Drawn programs, what their handlers saw, and what must come of them."""

    def __init__(self, programs: Sequence[Program], chooser: Chooser) -> None:
        Misuses.__init__(self)
        self.programs = {program.id: program for program in programs}
        self.effects: Counter[tuple[str, str, int]] = Counter()
        self.kinds: Counter[str] = Counter()
        workflows = [self._workflow(program) for program in programs]
        starts = [
            Start(
                chooser.one_of(workflows),
                {"count": 0},
                idempotency_key=chooser.one_of((None, None, "k")),
                delay=chooser.one_of((None, None, None, 4.0)),
                priority=chooser.one_of((0, 0, 5)),
            )
            for _ in range(1 + chooser.below(3))
        ]
        Scenario.__init__(
            self,
            *workflows,
            starts=starts,
            verbs=VERBS,
            max_recoveries=chooser.one_of((5, 1, 2)),
        )
        self.signals = {"s": (), "t": ()}
        self._world: World | None = None
        self._values = 0
        self._tokens: list[tuple[str, str]] = []

    def begin(self, world: World) -> None:
        """Handlers look at the world's stored documents."""
        self._world = world

    def _next_value(self) -> int:
        self._values += 1
        return self._values

    def answer(self, record: Record, chooser: Chooser) -> Any:
        """Every answer is another number."""
        del record, chooser
        return self._next_value()

    def signal(self, name: str, chooser: Chooser) -> Any:
        """Every signal has another number."""
        del name, chooser
        return self._next_value()

    def tokens(self) -> Sequence[tuple[str, str]]:
        """What `on_token` was told."""
        return self._tokens

    # --- handlers ------------------------------------------------------------------------------------------

    def _workflow(self, program: Program) -> Workflow[Any, Any]:
        workflow: Workflow[Any, Any] = Workflow(program.id, timeout=program.timeout)
        for number, step in enumerate(program.steps):
            self._add(workflow, program, number, step)
        return workflow

    def _add(self, workflow: Workflow[Any, Any], program: Program, number: int, step: StepProgram) -> None:
        async def handler(ctx: Context) -> list[Any]:
            return await self._perform(ctx, program, number)

        workflow.add_step(
            f"s{number}",
            handler,
            attempts=step.attempts,
            retry_delay=2.0,
            timeout=step.timeout,
            skip_if=None if step.skip is None else _always(answer=step.skip),
        )

    async def _perform(self, ctx: Context, program: Program, number: int) -> list[Any]:
        got: list[Any] = []
        self._contexts.append(ctx)
        for place, op in enumerate(program.steps[number].ops):
            self.kinds[op.kind] += 1
            await getattr(self, f"_do_{op.kind}")(ctx, program, number, place, op.size, got)
        return got

    async def _do_effect(
        self, ctx: Context, _p: Program, _n: int, place: int, _size: float, _got: list[Any]
    ) -> None:
        self._effect(ctx, place)

    async def _do_work(
        self, _ctx: Context, _p: Program, _n: int, _place: int, size: float, _got: list[Any]
    ) -> None:
        await trio.sleep(size)

    async def _do_linger(
        self, ctx: Context, _p: Program, _n: int, _place: int, size: float, _got: list[Any]
    ) -> None:
        """Work until the run is paused or its worker leaves, but not for ever: the step ends in between."""
        driver = ctx._driver  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - shipped with it
        for _ in range(int(size * 2)):
            if driver.leaving or driver.run.head.paused:
                return
            await trio.sleep(0.5)

    async def _do_stubborn(
        self, _ctx: Context, _p: Program, _n: int, _place: int, size: float, _got: list[Any]
    ) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(size)

    async def _do_tidy(self, ctx: Context, _p: Program, _n: int, place: int, size: float, _got: list[Any]) -> None:
        try:
            await trio.sleep(size)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(size)
            self._effect(ctx, place)

    async def _do_sleep(
        self, ctx: Context, _p: Program, _n: int, _place: int, size: float, _got: list[Any]
    ) -> None:
        await ctx.sleep(size)

    async def _do_wait(self, ctx: Context, _p: Program, _n: int, place: int, size: float, got: list[Any]) -> None:
        name = f"wait {place}"
        try:
            got.append(await ctx.wait("answer", name=name, returns=int, timeout=size or None))
        except (WaitTimedOut, WaitWithdrawn) as error:
            got.append(type(error).__name__)
        self._compare(ctx, f"={name}", got[-1])

    async def _do_token(self, ctx: Context, _p: Program, _n: int, place: int, size: float, got: list[Any]) -> None:
        async def pass_on(token: str) -> None:
            self._tokens.append((ctx.run_id, token))
            await trio.sleep(0.1)

        name = f"wait {place}"
        try:
            got.append(await ctx.wait("answer", name=name, returns=int, timeout=size or None, on_token=pass_on))
        except (WaitTimedOut, WaitWithdrawn) as error:
            got.append(type(error).__name__)
        self._compare(ctx, f"={name}", got[-1])

    async def _do_ask(self, ctx: Context, _p: Program, _n: int, place: int, size: float, got: list[Any]) -> None:
        """A wait whose end without an answer fails the step."""
        got.append(await ctx.wait("answer", name=f"wait {place}", returns=int, timeout=size))

    async def _do_signal(self, ctx: Context, _p: Program, _n: int, place: int, size: float, got: list[Any]) -> None:
        name = f"signal {place}"
        try:
            got.append(await ctx.wait_for("st"[place % 2], name=name, timeout=size or None))
        except WaitTimedOut as error:
            got.append(type(error).__name__)
        self._compare(ctx, f"={name}", got[-1])

    async def _do_once(self, ctx: Context, _p: Program, _n: int, place: int, size: float, got: list[Any]) -> None:
        key = "shared" if size else f"{ctx.step_id}/{place}"

        async def act() -> int:
            known = self._stored(ctx)
            if known is not None and key in known.memos:
                self._wrong(f"{ctx.run_id}: once({key}) is called again though its result is stored")
            await trio.sleep(0.1)
            return self._next_value()

        value: int = await ctx.once(key, act, returns=int)
        got.append(value)
        stored = self._stored(ctx)
        if stored is not None and (memo := stored.memos.get(key)) is not None and _plain(memo.value) != value:
            self._wrong(f"{ctx.run_id}: once({key}) gave {value}, and {_plain(memo.value)} is stored")

    async def _do_set(self, ctx: Context, _p: Program, _n: int, _place: int, _size: float, _got: list[Any]) -> None:
        await ctx.set(count=(count := ctx.state["count"] + 1))
        if ctx.state["count"] != count:
            self._wrong(f"{ctx.run_id}: the state was set to {count} and is {ctx.state['count']}")

    async def _do_checkpoint(
        self, ctx: Context, _p: Program, _n: int, place: int, _size: float, _got: list[Any]
    ) -> None:
        value = ctx.checkpoint_value(int, f"c{place}", 0) + 1
        await ctx.checkpoint(value, f"c{place}")
        if ctx.checkpoint_value(int, f"c{place}") != value:
            self._wrong(f"{ctx.run_id}: checkpoint c{place} is not what was saved")

    async def _do_flaky(
        self, ctx: Context, _p: Program, _n: int, _place: int, size: float, _got: list[Any]
    ) -> None:
        if ctx.attempt <= size:
            raise Flaky(f"attempt {ctx.attempt} of {ctx.step_id} fails")

    async def _do_die(
        self, _ctx: Context, _p: Program, _n: int, _place: int, _size: float, _got: list[Any]
    ) -> None:
        raise NonRetriable("so drawn")

    async def _do_log(self, ctx: Context, _p: Program, _n: int, place: int, _size: float, _got: list[Any]) -> None:
        ctx.log("line", place=place)
        ctx.progress(50)
        ctx.stream(place)

    async def _do_back(
        self, ctx: Context, _p: Program, number: int, _place: int, _size: float, _got: list[Any]
    ) -> None:
        """Go back once: the steps that are reset know it by their generation."""
        if "~" not in ctx.idempotency_key():
            await ctx.goto(f"s{max(number - 1, 0)}")

    async def _do_jump(
        self, ctx: Context, program: Program, number: int, _place: int, _size: float, _got: list[Any]
    ) -> None:
        if number + 2 < len(program.steps):
            await ctx.goto(f"s{number + 2}")

    # --- what handlers see ---------------------------------------------------------------------------------

    def _effect(self, ctx: Context, place: int) -> None:
        if not _is_gone(ctx):
            self.effects[ctx.run_id, ctx.step_id, place] += 1

    def _stored(self, ctx: Context) -> RunDoc | None:
        """The run as it is stored; None when this handler's lease is not the stored one any more."""
        assert self._world is not None
        driver = ctx._driver  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - shipped with it
        run = self._world.witness.run(ctx.run_id)
        return None if _is_gone(ctx) or run.head.lease is None or run.head.fence != driver.writer.fence else run

    def _compare(self, ctx: Context, key: str, seen: Any) -> None:
        """What a wait gave is the one outcome that is stored."""
        run = self._stored(ctx)
        if run is None:
            return
        record = run.records.get(key)
        told = {"timed_out": "WaitTimedOut", "withdrawn": "WaitWithdrawn"}
        stored = None if record is None else told.get(record.outcome or "", _plain(record.value))
        if record is None or record.outcome is None or stored != seen:
            self._wrong(f"{ctx.run_id}: wait {key} gave {seen!r}, and {stored!r} is stored")

    def _wrong(self, text: str) -> None:
        assert self._world is not None
        self._world.wrong.append(text)

    # --- what must come of them ----------------------------------------------------------------------------

    def may_fail(self, run: RunDoc) -> bool:
        """Only as its program says, or by too many recoveries."""
        error = run.head.error
        assert error is not None
        if error.code == "dead_lettered":
            return run.head.recoveries > self.max_recoveries
        program = self.programs[run.origin.workflow]
        return error.code in set(_codes(program))

    def check(self, world: World) -> None:
        """Outputs and effects of the runs that are done."""
        for kind, times in self.kinds.items():
            world.summary.count("operations", kind, times)
        for run_id in world.witness.versions:
            run = world.witness.run(run_id)
            if run.head.status == "done":
                self._check_done(world, run)

    def _check_done(self, world: World, run: RunDoc) -> None:
        program = self.programs[run.origin.workflow]
        jumps = any(op.kind == "jump" for step in program.steps for op in step.ops)
        issued = {value for key, value in world.clients.book.issued if key == run.id}
        issued |= set(world.clients.book.issued_to_all)
        for number, step in enumerate(program.steps):
            doc = run.step(f"s{number}")
            if doc.status != "done":
                assert jumps or (doc.status == "skipped" and step.skip), f"{run.id}: s{number} is {doc.status}"
                continue
            assert not step.skip, f"{run.id}: s{number} was not skipped"
            spoilt = max((op.size for op in step.ops if op.kind in MISUSES), default=0)
            assert doc.attempts > spoilt, f"{run.id}: s{number} is done by a call that misused trio"
            self._check_output(run, number, step, issued)
            for place, op in enumerate(step.ops):
                if op.kind == "effect":
                    assert self.effects[run.id, f"s{number}", place], f"{run.id}: s{number} lacks effect {place}"

    def _check_output(self, run: RunDoc, number: int, step: StepProgram, issued: set[bytes]) -> None:
        output = _plain(run.step(f"s{number}").output)
        ops = [op for op in step.ops if op.kind in {"wait", "token", "ask", "signal", "once"}]
        assert len(output) == len(ops), f"{run.id}: s{number} gave {output} for {len(ops)} operations"
        for op, value in zip(ops, output, strict=True):
            if op.kind == "once":
                continue
            known = msgspec.msgpack.encode(value) in issued
            expired = value == "WaitTimedOut" and op.size
            withdrawn = value == "WaitWithdrawn" and op.kind != "signal"
            assert known or expired or withdrawn, f"{run.id}: s{number} got {value!r} from {op.kind}"


def _is_gone(ctx: Context) -> bool:
    return bool(ctx._driver.services.store.is_gone)  # type: ignore[attr-defined]  # noqa: SLF001


def _plain(value: bytes | None) -> Any:
    return None if value is None else msgspec.msgpack.decode(value)


def _always(*, answer: bool) -> Any:
    def condition(_state: object) -> bool:
        return answer

    return condition


def _codes(program: Program) -> list[str]:
    codes = [] if program.timeout is None else ["workflow.timeout"]
    for step in program.steps:
        if step.timeout is not None:
            codes.append("workflow.step.timeout")
        for op in step.ops:
            if op.kind == "die":
                codes.append("workflow.non_retriable")
            elif op.kind == "flaky" and op.size >= step.attempts:
                codes.append("flaky")
            elif op.kind in MISUSES and op.size >= step.attempts:
                codes += ["workflow.step.failed", StreamlineError.code]
            elif op.kind == "ask":
                codes += ["workflow.wait.timed_out", "workflow.wait.withdrawn"]
    return codes
