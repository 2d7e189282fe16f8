"""Children and joins of a fake context: the test says how they end."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio

from streamline_trio import (
    Branch,
    BranchResult,
    ChildFailed,
    JoinFailed,
    JoinResult,
    StepContext,
    SuspensionError,
    ValidationError,
    Workflow,
)
from streamline_trio.testing import FakeContext, NotGiven

Context = StepContext[Any, Any]


class Receipt(msgspec.Struct):
    paid: int


payment: Workflow[int, int] = Workflow("payment", input=int)


@payment.step
async def pay(ctx: StepContext[int, int]) -> Receipt:
    return Receipt(ctx.input)


def answered(answers: Any, act: Any) -> Any:
    """What the handler gets from a context with these answers."""
    ctx: FakeContext[Any] = FakeContext("step", answers=answers)
    return trio.run(act, ctx)


async def single(ctx: Context) -> Any:
    return await ctx.child(payment, 5)


async def several(ctx: Context) -> JoinResult:
    return await ctx.join({"a": Branch(payment, 1), "b": Branch("payment", 2)})


@pytest.mark.parametrize("key", ["payment", "named"])
def test_a_child_is_answered_by_name_or_workflow(key):
    """Proves that the answer comes in the type of the child's last step, and that what was asked is noted."""

    async def handler(ctx: Context) -> Any:
        return await ctx.child(payment, 5, name="named")

    ctx: FakeContext[Any] = FakeContext("step", answers={key: {"paid": 7}})
    assert trio.run(handler, ctx) == Receipt(7)
    (asked,) = ctx.asked
    assert (asked.kind, asked.workflow, asked.input, asked.name) == ("child", "payment", 5, "named")


def test_a_failed_child_is_raised_or_returned():
    """Proves that a given `ChildFailed` is raised, and with on_failure="return" the result."""

    async def returned(ctx: Context) -> Any:
        return await ctx.child(payment, 5, on_failure="return")

    failure = ChildFailed("no")
    with pytest.raises(ChildFailed, match="no"):
        answered({"payment": failure}, single)
    assert answered({"payment": failure}, returned) is failure


def test_what_is_not_given_or_does_not_fit_is_told():
    """Proves that a missing answer is `NotGiven`, and that an input of the wrong type is refused as in a run."""

    async def wrong(ctx: Context) -> Any:
        workflow: Any = payment
        return await ctx.child(workflow, "five")

    with pytest.raises(NotGiven, match="payment"):
        answered({}, single)
    with pytest.raises(NotGiven, match="join"):
        answered({}, several)
    with pytest.raises(ValidationError):
        answered({"payment": Receipt(1)}, wrong)
    with pytest.raises(ValidationError, match="JoinResult"):
        answered({"join": 5}, several)


def test_a_join_ends_as_its_branches_do():
    """Proves that the ends that are given come to what they would in a run, by each policy."""

    async def by(ctx: Context, policy: Any) -> JoinResult:
        return await ctx.join({"a": Branch(payment, 1), "b": Branch(payment, 2)}, policy, name="fan")

    ends = {"b": ValueError("broken"), "a": Receipt(3)}
    for policy, satisfied, settled in (("any", True, "ab"), ("race", False, "b"), ("settled", True, "ab")):
        ctx: FakeContext[Any] = FakeContext("step", answers={"fan": ends})
        result = trio.run(by, ctx, policy)
        assert (result.policy, result.satisfied, "".join(result.branches)) == (policy, satisfied, settled)
        error = result.branches["b"].error
        assert error is not None
        assert error.message == "broken"
        assert (ctx.asked[0].policy, ctx.asked[0].branches) == (policy, {"a": 1, "b": 2})
    with pytest.raises(JoinFailed, match="broken") as raised:
        answered({"join": ends}, several)
    assert list(raised.value.result.branches) == ["b"]
    assert answered({"join": {"b": 1, "a": Receipt(2)}}, several).branches["a"].output == Receipt(2)


def test_a_join_that_is_not_over_is_told():
    """Proves that too few ends for the policy are a mistake of the test, not a wait for ever."""
    with pytest.raises(NotGiven, match="how more of them end"):
        answered({"join": {"a": Receipt(1)}}, several)


def test_a_whole_result_is_given_as_it_is():
    """Proves that a `JoinResult` may be given instead, and that an exception is raised."""
    result = JoinResult(policy="all", satisfied=True, branches={"a": BranchResult(run_id="r", status="done")})
    assert answered({"join": result}, several) is result
    with pytest.raises(JoinFailed, match="given"):
        answered({"join": JoinFailed("given")}, several)


def test_a_child_cannot_be_awaited_where_a_run_could_not_park():
    """Proves that in a shielded scope `child` and `join` are refused as they are in a run."""

    async def shielded(ctx: Context) -> None:
        with trio.CancelScope(shield=True):
            await single(ctx)

    with pytest.raises(SuspensionError, match="child"):
        answered({"payment": Receipt(1)}, shielded)
