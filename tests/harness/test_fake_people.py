"""The fake context, where people decide and earlier outputs are looked at."""

from __future__ import annotations

from typing import Any

import pytest

from streamline_trio import (
    Approved,
    InvalidState,
    Rejected,
    StepContext,
    StepNotFound,
    SuspensionError,
    TimedOut,
    ValidationError,
    WaitTimedOut,
    WaitWithdrawn,
    Withdrawn,
    Workflow,
)
from streamline_trio.testing import FakeContext, NotGiven

flow: Workflow[Any, Any] = Workflow("flow")


@flow.step(keep_outputs=5)
async def draft(_ctx: StepContext) -> str:
    return "text"


@flow.step
async def decide(ctx: StepContext) -> list[Any]:
    async def tell(token: str) -> None:
        tokens.append(token)

    tokens: list[str] = []
    decision = await ctx.request_approval("publish?", name="boss", returns=int, timeout=60, on_token=tell)
    return [decision, *tokens]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Approved(5), Approved(5)),
        ({"type": "approved", "data": 5}, Approved(5)),
        (Rejected("no"), Rejected("no")),
        (Withdrawn(), Withdrawn()),
        (TimedOut(), TimedOut()),
        (WaitTimedOut, TimedOut()),
        (WaitWithdrawn, Withdrawn()),
        (WaitWithdrawn("gone", reason="late"), Withdrawn("late")),
    ],
)
@pytest.mark.parametrize("key", ["boss", "publish?"])
async def test_an_approval_is_answered(answer, outcome, key):
    """Proves that an approval gets what is given under its name or reason, as a value, also for time-outs."""
    ctx = FakeContext(decide, workflow=flow, answers={key: answer})
    decision, token = await decide(ctx)
    assert decision == outcome
    (asked,) = ctx.asked
    assert (asked.kind, asked.approval, asked.name, asked.reason, asked.token) == (
        "human",
        True,
        "boss",
        "publish?",
        token,
    )
    assert asked.due_at == ctx.now.add(seconds=60)


@pytest.mark.parametrize("answer", [5, True, "approved", Approved("text"), None])
async def test_what_is_no_decision_is_refused(answer):
    """Proves that a test that answers an approval with anything else learns that a run would refuse it."""
    with pytest.raises(ValidationError):
        await decide(FakeContext(decide, workflow=flow, answers={"boss": answer}))


async def test_an_approval_that_nobody_answers():
    """Proves that an answer that is missing is told, and that names are used once."""
    with pytest.raises(NotGiven, match="boss"):
        await decide(FakeContext(decide, workflow=flow))
    ctx = FakeContext(answers=[("a", Approved()), ("a", Approved())])
    await ctx.request_approval("x", name="a")
    with pytest.raises(SuspensionError, match="twice"):
        await ctx.request_approval("x", name="a")


async def test_histories_are_read_and_pinned():
    """Proves that a given history is listed in order and that pinning changes the output, as in a run."""
    ctx = FakeContext(decide, workflow=flow, outputs={draft: "third"}, history={draft: ["first", "second"]})
    assert [(kept.version, kept.output) for kept in ctx.output_history(draft)] == [(1, "first"), (2, "second")]
    assert ctx.output_history() == []
    await ctx.pin_output(1, draft)
    assert ctx.output(draft) == "first"
    assert ctx.pins == [("draft", 1)]
    assert len(ctx.output_history("draft")) == 2


async def test_what_a_run_would_refuse():
    """Proves that unknown steps and versions, and steps that are not done, are refused as in a run."""
    ctx = FakeContext(decide, workflow=flow, outputs={draft: "third"}, history={draft: ["first"]})
    for version in (0, 2, True, "1"):
        with pytest.raises(ValidationError):
            await ctx.pin_output(version, draft)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(InvalidState):
        await ctx.pin_output(1)
    with pytest.raises(StepNotFound):
        await ctx.pin_output(1, "nowhere")
    with pytest.raises(StepNotFound):
        ctx.output_history("nowhere")
    with pytest.raises(ValidationError):
        FakeContext(decide, workflow=flow, history={draft: [5]})
    assert ctx.output(draft) == "third"
