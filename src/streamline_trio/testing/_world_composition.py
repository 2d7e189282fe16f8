"""Operations of drawn programs that are made of others: fan-out, loops, children, joins, emissions, approvals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from streamline_trio import (
    Approved,
    Branch,
    ChildFailed,
    Done,
    JoinFailed,
    JoinResult,
    Next,
    Rejected,
    TimedOut,
    Withdrawn,
    Workflow,
)
from streamline_trio._core import payload as payloads
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.tenancy import stored_id
from streamline_trio._runtime.context import StepContext
from streamline_trio.testing._world_drawing import CHILD, GRANDCHILD, Op
from streamline_trio.testing._world_operations import stored_as

Context = StepContext[Any, Any, Any]

_BRANCHES = 3
POLICIES: tuple[Literal["all", "any", "race", "settled"], ...] = ("settled", "all", "any", "race")


class Compositions(ABC):
    """Each operation notes what it was given, and compares it with what is stored."""

    def __init__(self) -> None:
        self.emitted: set[tuple[str, bytes]] = set()

    @abstractmethod
    def _wrong(self, text: str) -> None:
        """Note that a promise was not kept."""

    @abstractmethod
    def _stored(self, ctx: Context) -> RunDoc | None:
        """The run as it is stored, if it is this handler's."""

    @abstractmethod
    def _child(self, ctx: Context, id: str) -> Workflow[Any, Any]:
        """The workflow of children, as this version of the parent knows it."""

    @abstractmethod
    def _settled_as(self, run_id: str) -> set[str]:
        """The statuses in which this run has ever settled."""

    @abstractmethod
    async def _perform_ops(self, ctx: Context, ops: Sequence[Op], where: str, got: list[Any]) -> None:
        """Do one after the other."""

    @abstractmethod
    def _issued(self, run_id: str, payload: bytes) -> None:
        """A handler sends this to a run, once."""

    # --- inside the step -----------------------------------------------------------------------------------

    async def _do_scatter(self, ctx: Context, op: Op, where: str, got: list[Any]) -> None:
        keys = [f"k{number}" for number in range(len(op.parts))]
        fns = {key: partial(self._key, ctx, part, where, key) for key, part in zip(keys, op.parts, strict=True)}
        results: dict[str, Any] = await ctx.scatter(fns, concurrency=int(op.size) or None, name=f"scatter {where}")
        if list(results) != keys:
            self._wrong(f"{ctx.run_id}: scatter {where} of {keys} gave {list(results)}")
        got.append([results[key] for key in keys])

    async def _key(self, ctx: Context, part: Op, where: str, key: str) -> list[Any]:
        self._expect_unfinished(ctx, f"scatter=scatter {where}:{key}")
        got: list[Any] = []
        await self._perform_ops(ctx, [part], f"{where}.{key}", got)
        return got

    async def _do_loop(self, ctx: Context, op: Op, where: str, got: list[Any]) -> None:
        most = int(op.size)

        async def body(state: list[Any], number: int) -> Any:
            if len(state) != number:
                self._wrong(f"{ctx.run_id}: loop {where} enters iteration {number} with the state of {len(state)}")
            self._expect_unfinished(ctx, f"loop=loop {where}", number)
            mine: list[Any] = []
            await self._perform_ops(ctx, op.parts, f"{where}.{number}", mine)
            state = [*state, mine]
            return Done(state) if number + 1 == most else Next(state)

        value: list[Any] = await ctx.loop([], body, name=f"loop {where}")
        if len(value) != most:
            self._wrong(f"{ctx.run_id}: loop {where} of {most} iterations gave {value}")
        got.append(value)

    def _expect_unfinished(self, ctx: Context, segment: str, number: int = 0) -> None:
        """A key or iteration whose end is stored does not run again, until its step is reset."""
        run = self._stored(ctx)
        for path, piece in ({} if run is None else run.pieces).items():
            if path.rpartition("/")[2] == segment and (piece.round > number or piece.done or not piece.round):
                self._wrong(f"{ctx.run_id}: {path} of {ctx.step_id} runs again ({number}) though its end is stored")

    # --- children ------------------------------------------------------------------------------------------

    async def _do_child(self, ctx: Context, op: Op, where: str, got: list[Any]) -> None:
        target = self._child(ctx, GRANDCHILD if ctx.workflow == CHILD else CHILD)
        name = f"child {where}"
        if op.size:
            got.append(await ctx.child(target, {"count": 0}, name=name))
            return
        result: Any = await ctx.child(target, {"count": 0}, name=name, on_failure="return")
        if isinstance(result, ChildFailed):
            self._compare_status(ctx, result.meta["run_id"], result.meta["status"])
            result = type(result).__name__
        got.append(result)

    async def _do_join(self, ctx: Context, op: Op, where: str, got: list[Any]) -> None:
        policy = POLICIES[int(op.size) % len(POLICIES)]
        is_plain = op.size < len(POLICIES)
        target = self._child(ctx, CHILD)
        branches = {f"b{number}": Branch(target, {"count": 0}) for number in range(_BRANCHES)}
        joined = ctx.join(
            branches,
            policy=policy,
            name=f"join {where}",
            cancel_losers=is_plain,
            concurrency=None if is_plain else 2,
        )
        try:
            result = await joined
        except JoinFailed:
            got.append("JoinFailed")
            if policy != "all":
                self._wrong(f"{ctx.run_id}: a join with policy {policy} failed")
            raise
        self._judge_join(ctx, policy, result)
        got.append({key: branch.status for key, branch in result.branches.items()})

    def _judge_join(self, ctx: Context, policy: str, result: JoinResult) -> None:
        for branch in result.branches.values():
            self._compare_status(ctx, branch.run_id, branch.status)
        is_complete = len(result.branches) == _BRANCHES
        good = [branch.status == "done" for branch in result.branches.values()]
        wanted = {
            "all": is_complete and all(good),
            "any": any(good) if result.satisfied else is_complete and not any(good),
            "race": bool(good) and any(good) == result.satisfied,
            "settled": is_complete and result.satisfied,
        }
        if not wanted[policy] or result.policy != policy:
            self._wrong(f"{ctx.run_id}: a join with policy {policy} gave {result}")

    def _compare_status(self, ctx: Context, child: str, status: str) -> None:
        settled = self._settled_as(stored_id(ctx.tenant, child))
        # Of one that did not end well and was taken up again since, a join only knows that it did not.
        if status not in settled and not (status == "failed" and settled - {"done"}):
            self._wrong(f"{ctx.run_id}: was told that its child {child} is {status}, which it never was")

    # --- signals and people --------------------------------------------------------------------------------

    async def _do_emit(self, ctx: Context, _op: Op, where: str, _got: list[Any]) -> None:
        """A signal to itself: it comes once, however often this is called."""
        value = f"{ctx.idempotency_key()} {where}"
        self._issued(stored_as(ctx), payloads.encode(value, what="signal"))
        await ctx.emit("e", value, run=ctx.run_id)

    async def _do_approve(self, ctx: Context, op: Op, where: str, got: list[Any]) -> None:
        decision = await ctx.request_approval("agree", name=f"wait {where}", timeout=op.size or None)
        match decision:
            case Approved():
                got.append(decision.data)
            case Rejected():
                got.append("Rejected")
            case Withdrawn():
                got.append("WaitWithdrawn")
            case TimedOut():
                got.append("WaitTimedOut")
