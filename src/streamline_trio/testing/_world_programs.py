"""Workflows drawn at random from what the engine can do, and what each must have produced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from streamline_trio import Approved, Guard, Middleware
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import Record, RunDoc
from streamline_trio._core.errors import StreamlineError
from streamline_trio._core.status import SETTLED
from streamline_trio.testing._world_choices import Chooser
from streamline_trio.testing._world_composition import Compositions
from streamline_trio.testing._world_drawing import (
    OLDER,
    Op,
    Program,
    StepProgram,
    Undo,
    draw_children,
    draw_program,
    flattened,
)
from streamline_trio.testing._world_misuse import MISUSES, Misuses
from streamline_trio.testing._world_operations import Context, Flaky, Operations, is_gone, plain_of, stored_as
from streamline_trio.testing._world_scenario import VERBS, Scenario, Start
from streamline_trio.testing._world_twins import Twins

if TYPE_CHECKING:
    from streamline_trio.testing._world import World


def draw_programs(chooser: Chooser) -> Scenario:
    """A scenario of one or two workflows, and of those that they start."""
    programs = [draw_program(chooser, f"p{number}") for number in range(1 + chooser.below(2))]
    return Programs(programs, draw_children(chooser), chooser)


class Programs(Operations, Misuses, Compositions, Twins, Scenario):
    """Drawn programs, what their handlers saw, and what must come of them."""

    def __init__(self, programs: Sequence[Program], children: Sequence[Program], chooser: Chooser) -> None:
        Operations.__init__(self)
        Misuses.__init__(self)
        Compositions.__init__(self)
        Twins.__init__(self)
        self.kinds: Counter[str] = Counter()
        workflows = [self._make(program) for program in programs]
        started = [self._make(program) for program in children]
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
            *started,
            starts=starts,
            verbs=VERBS,
            max_recoveries=chooser.one_of((5, 1, 2)),
        )
        self.signals = {"s": (), "t": ()}
        self._world: World | None = None

    def versions(self, noise: int) -> Sequence[Workflow[Any, Any]]:
        """Some worlds have another version of some programs."""
        return (*self.workflows, *self._make_twins(noise))

    def begin(self, world: World) -> None:
        """Handlers look at the world's stored documents."""
        self._world = world

    def answer(self, record: Record, chooser: Chooser) -> Any:
        """Every answer has another number."""
        del chooser
        return Approved(data=self.next_value()) if record.reason == "agree" else self.next_value()

    def signal(self, name: str, chooser: Chooser) -> Any:
        """Every signal has another number."""
        del name, chooser
        return self.next_value()

    def tokens(self) -> Sequence[tuple[str, str]]:
        """What `on_token` was told."""
        return self._tokens

    # --- handlers ------------------------------------------------------------------------------------------

    def _workflow(self, program: Program) -> Workflow[Any, Any]:
        watched: dict[str, Any] = {}
        if program.is_watched:
            watched = {"guards": (Guard(before=_allow),), "middleware": (_Grumbler(),)}
        workflow: Workflow[Any, Any] = Workflow(
            program.id,
            version=program.version,
            timeout=program.timeout,
            compensate_on_cancel=program.undoes_cancelled,
            **watched,
            **self._limits(program),
        )
        for number, step in enumerate(program.steps):
            self._add(workflow, program, number, step)
        return workflow

    def _limits(self, program: Program) -> dict[str, Any]:
        """What the workflow says about its starts: here nothing."""
        del program
        return {}

    def _add(self, workflow: Workflow[Any, Any], program: Program, number: int, step: StepProgram) -> None:
        async def handler(ctx: Context) -> list[Any]:
            got: list[Any] = []
            self._contexts.append(ctx)
            await self._perform_ops(ctx, program.steps[number].ops, "", got)
            return got

        added = workflow.add_step(
            program.ids[number],
            handler,
            attempts=step.attempts,
            retry_delay=2.0,
            timeout=step.timeout,
            skip_if=None if step.skip is None else _always(answer=step.skip),
            keep_outputs=step.keep,
        )
        if step.undo is not None:
            self._add_undo(added, step.undo)

    def _add_undo(self, step: Any, undo: Undo) -> None:
        async def handler(ctx: Context) -> None:
            await trio.sleep(undo.seconds)
            if ctx.attempt <= undo.flaky:
                raise Flaky(f"undoing {ctx.step_id} fails, attempt {ctx.attempt}")

        step.compensate(attempts=undo.attempts, retry_delay=2.0, when=undo.when)(handler)

    async def _perform_ops(self, ctx: Context, ops: Sequence[Op], where: str, got: list[Any]) -> None:
        for place, op in enumerate(ops):
            self.kinds[op.kind] += 1
            await getattr(self, f"_do_{op.kind}")(ctx, op, f"{where}.{place}", got)

    # --- what handlers see ---------------------------------------------------------------------------------

    def _program(self, ctx: Context) -> Program:
        return self.programs[ctx.workflow, ctx.version]

    def _child(self, ctx: Context, id: str) -> Workflow[Any, Any]:
        return self._made.get((id, ctx.version)) or self._made[id, OLDER]

    def _stored(self, ctx: Context) -> RunDoc | None:
        assert self._world is not None
        driver = ctx._driver  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - shipped with it
        run = self._world.witness.run(stored_as(ctx))
        return None if is_gone(ctx) or run.head.lease is None or run.head.fence != driver.writer.fence else run

    def _settled_as(self, run_id: str) -> set[str]:
        assert self._world is not None
        versions = self._world.witness.versions.get(run_id, ())
        return {version.head.status for version in versions if version.head.status in SETTLED}

    def _issued(self, run_id: str, payload: bytes) -> None:
        assert self._world is not None
        self._world.clients.book.issued[run_id, payload] = 1

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
        return error.code in set(_codes(self.program_of(run)))

    def check(self, world: World) -> None:
        """Outputs and effects of the runs that are done."""
        for kind, times in self.kinds.items():
            world.summary.count("operations", kind, times)
        for kind, times in self.twins.items():
            world.summary.count("other versions", kind, times)
        for run_id in world.witness.versions:
            run = world.witness.run(run_id)
            if run.head.status == "done":
                self._check_done(world, run)
            self._check_versions(world.witness.versions[run_id])
            assert run_id in world.witness.deleted or not run.outbox, f"{run_id}: something is left to be done"

    def _check_done(self, world: World, run: RunDoc) -> None:
        program, line = self.program_of(run), self._line(world, run)
        jumps = any(op.kind == "jump" for op in program.ops())
        known = self._names_in_all(world, line)
        issued = {value for key, value in world.clients.book.issued if key in line}
        issued |= set(world.clients.book.issued_to_all)
        for number, step in enumerate(program.steps):
            name, doc = program.names[number], run.step(program.ids[number])
            if doc.status != "done":
                may_be_left = jumps or name not in known or (doc.status == "skipped" and step.skip)
                assert may_be_left, f"{run.id}: {name} is {doc.status}"
                continue
            assert not step.skip, f"{run.id}: {name} was not skipped"
            spoilt = max((op.size for op in step.ops if op.kind in MISUSES), default=0)
            assert doc.attempts > spoilt, f"{run.id}: {name} is done by a call that misused trio"
            if doc.pinned is None:
                _check_got(f"{run.id}: {name}", step.ops, plain_of(doc.output), issued)
            for where in _effects(step.ops, ""):
                done = any(self.effects[one, name, where] for one in line)
                assert done, f"{run.id}: {name} lacks effect {where}"

    def _names_in_all(self, world: World, line: Sequence[str]) -> set[str]:
        """The steps that each version has that the run was ever on: the others need not have run."""
        on = {run.head.version: run for one in line for run in world.witness.versions[one]}
        known = [self.program_of(run).names for run in on.values()]
        return {name for name in known[0] if all(name in names for names in known)}

    def _line(self, world: World, run: RunDoc) -> list[str]:
        """The run, and those of which it is a fork: from them it has its first steps."""
        line = [run.id]
        while run.origin.forked_from is not None:
            run = world.witness.run(run.origin.forked_from.run)
            line.append(run.id)
        return line


_VALUED = {"wait", "token", "ask", "approve", "signal", "once", "scatter", "loop", "child", "join"}


def _check_got(name: str, ops: Sequence[Op], got: Any, issued: set[bytes]) -> None:
    """What operations gave is what they may give."""
    valued = [op for op in ops if op.kind in _VALUED]
    assert len(got) == len(valued), f"{name} gave {got} for {len(valued)} operations"
    for op, value in zip(valued, got, strict=True):
        if op.kind == "scatter":
            assert len(value) == len(op.parts), f"{name}: a scatter of {len(op.parts)} gave {value}"
            for part, mine in zip(op.parts, value, strict=True):
                _check_got(name, [part], mine, issued)
        elif op.kind == "loop":
            assert len(value) == op.size, f"{name}: a loop of {op.size} gave {value}"
            for mine in value:
                _check_got(name, op.parts, mine, issued)
        elif op.kind not in {"once", "child", "join"}:
            known = _was_issued(op, value, issued)
            expired = value == "WaitTimedOut" and op.size
            withdrawn = value == "WaitWithdrawn" and op.kind != "signal"
            assert known or expired or withdrawn, f"{name} got {value!r} from {op.kind}"


def _was_issued(op: Op, value: Any, issued: set[bytes]) -> bool:
    given = Approved(data=value) if op.kind == "approve" else value
    return value == "Rejected" or msgspec.msgpack.encode(given) in issued


def _effects(ops: Sequence[Op], where: str) -> list[str]:
    """Where effects must have been."""
    found: list[str] = []
    for place, op in enumerate(ops):
        mine = f"{where}.{place}"
        if op.kind == "effect":
            found.append(mine)
        elif op.kind == "scatter":
            for number, part in enumerate(op.parts):
                found += _effects([part], f"{mine}.k{number}")
        elif op.kind == "loop":
            for number in range(int(op.size)):
                found += _effects(op.parts, f"{mine}.{number}")
    return found


class _Grumbler(Middleware):
    """A middleware that raises whatever it is called for: no step feels it."""

    def before_step(self, ctx: Any) -> None:
        raise LookupError(ctx.step_id)

    async def after_step(self, ctx: Any, output: Any, duration: float) -> None:
        del output, duration
        raise LookupError(ctx.step_id)


def _allow(call: Any) -> bool:
    return bool(call.run_id)


def _always(*, answer: bool) -> Any:
    def condition(_state: object) -> bool:
        return answer

    return condition


def _codes(program: Program) -> list[str]:
    codes = [] if program.timeout is None else ["workflow.timeout"]
    for step in program.steps:
        if step.timeout is not None:
            codes.append("workflow.step.timeout")
        for op in flattened(step.ops):
            if op.kind == "die":
                codes.append("workflow.non_retriable")
            elif op.kind == "flaky" and op.size >= step.attempts:
                codes.append("flaky")
            elif op.kind in MISUSES and op.size >= step.attempts:
                codes += ["workflow.step.failed", StreamlineError.code]
            elif op.kind == "ask":
                codes += ["workflow.wait.timed_out", "workflow.wait.withdrawn"]
            elif op.kind == "child" and op.size:
                codes.append("workflow.child_failed")
            elif op.kind == "join":
                codes.append("workflow.join_failed")
    return codes
