"""The fake context refuses what a run refuses, in the same words."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from streamline_trio import (
    MemoryStore,
    PayloadTooLarge,
    StepContext,
    StepNotFound,
    StreamlineError,
    SuspensionError,
    ValidationError,
    Workflow,
    open_engine,
)
from streamline_trio.testing import FakeContext, NotGiven

other: Workflow[Any, Any] = Workflow("other")


@other.step
async def price(_ctx: StepContext[Any, Any]) -> None:
    pass


strict: Workflow[Any, Any] = Workflow("strict")


@strict.step(attempts=1, max_payload_bytes=10)
async def small(ctx: StepContext[Any, Any]) -> None:
    misuse: Any = MISUSES[ctx.input]
    await misuse(ctx)


@strict.step
async def after(_ctx: StepContext[Any, Any]) -> None:
    pass


async def keep_too_much(ctx: Any) -> None:
    await ctx.checkpoint("x" * 10)


async def remember_too_much(ctx: Any) -> None:
    await ctx.once("key", lambda: "x" * 10)


async def sleep_shielded(ctx: Any) -> None:
    with trio.CancelScope(shield=True):
        await ctx.sleep(1)


async def in_a_child(function: Any, *args: Any) -> None:
    errors: list[StreamlineError] = []

    async def child() -> None:
        try:
            await function(*args)
        except StreamlineError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(child)
    raise errors[0]


async def wait_in_a_child(ctx: Any) -> None:
    await in_a_child(ctx.wait, "agree?")


async def go_from_a_child(ctx: Any) -> None:
    await in_a_child(ctx.goto, "after")


async def go_nowhere(ctx: Any) -> None:
    await ctx.goto("nowhere")


async def ask_for_ever(ctx: Any) -> None:
    while True:
        await ctx.wait_for("go")


MISUSES = {
    function.__name__: function
    for function in (
        keep_too_much,
        remember_too_much,
        sleep_shielded,
        wait_in_a_child,
        go_from_a_child,
        go_nowhere,
    )
}


@pytest.mark.parametrize("misuse", MISUSES)
async def test_what_fails_in_a_run_fails_with_it(misuse):
    """Proves that a handler that does what no run allows is told so by the fake in the words of the run."""
    async with open_engine(MemoryStore(), strict) as engine:
        settled = await (await engine.start(strict, misuse)).wait()
    assert settled.error is not None
    ctx: Any = FakeContext(small, workflow=strict, input=misuse, run_id=settled.id, answers={"agree?": 1})
    with pytest.raises(StreamlineError) as raised:
        await small(ctx)
    assert str(raised.value) == settled.error.message
    assert raised.value.code == settled.error.code


async def test_a_handler_may_be_called_in_any_task_and_scope():
    """Proves that it is the handler's own task and scopes that count, not those of the test."""

    async def call() -> None:
        with pytest.raises(NotGiven):
            await small(FakeContext(small, workflow=strict, input="ask_for_ever", answers=[("go", 1)] * 3))

    ctx: Any = FakeContext(after, workflow=strict)
    MISUSES["ask_for_ever"] = ask_for_ever
    with trio.CancelScope(shield=True):
        await call()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            nursery.start_soon(ctx.sleep, 1)
    assert [asked.kind for asked in ctx.asked] == ["timer"]
    with pytest.raises(SuspensionError, match="own task"):
        await ctx.sleep(1)
    plain: Any = FakeContext(answers=[("go", 1)] * 1001)
    with pytest.raises(SuspensionError, match="more than 1000 suspensions"):
        await ask_for_ever(plain)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"attempt": 0}, ValidationError, "attempt= is a whole number of at least 1, not 0"),
        ({"attempt": True}, ValidationError, "attempt= is a whole number"),
        ({"answers": {1: 2}}, ValidationError, "the reason or the signal of a wait, not by 1"),
        ({"answers": 5}, ValidationError, "answers= is a mapping, or a list of pairs, not 5"),
        ({"answers": "go"}, ValidationError, "answers= is a mapping, or a list of pairs, not 'go'"),
        ({"answers": ["go"]}, ValidationError, "and 'go' is none"),
        ({"outputs": {"aftr": 1}}, StepNotFound, "workflow strict has no step 'aftr'"),
        ({"outputs": {price: None}}, StepNotFound, "workflow strict has no step 'price'"),
        ({"step": "smal"}, StepNotFound, "workflow strict has no step 'smal'"),
        ({"outputs": {small: "x" * 10}}, PayloadTooLarge, "of step small in run run has 11 bytes"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(given, error, text):
    """Proves that a mistake in the test is named where it was made."""
    with pytest.raises(error) as refused:
        FakeContext(**{"step": after, "workflow": strict, **given})
    assert text in str(refused.value)
