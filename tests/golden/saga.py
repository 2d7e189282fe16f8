"""The workflow that the golden sagas are runs of. It stays as it is: stored runs outlive releases."""

from typing import Any

import trio

from streamline_trio import NonRetriable, StepContext, Workflow
from tests.golden.workflow import Order

golden_saga = Workflow("golden-saga", version="1.0.0", input=Order)
Ctx = StepContext[Order]


@golden_saga.step
async def reserve(_ctx: Ctx) -> str:
    """Leaves an output, which its compensation needs."""
    return "shelf 4"


@reserve.compensate
async def put_back(ctx: Ctx) -> None:
    """Leaves the state as it is to be found at the end."""
    await ctx.checkpoint(f"back on {ctx.output(reserve)}", name="undone")


@golden_saga.step
async def charge(ctx: Ctx) -> int:
    """Leaves an output of another type."""
    return ctx.input.number * 100


@charge.compensate(attempts=2, retry_delay=60.0, jitter=0.0, timeout=86_400.0, when="started")
async def refund(ctx: Ctx) -> None:
    """Fails as it is told to."""
    play = ctx.input.play
    if play == "backoff" and ctx.attempt == 1:
        raise ConnectionError("the bank does not answer")
    if play == "hangs" and ctx.attempt == 1:
        await trio.sleep_forever()
    if play == "broken" and ctx.checkpoint_value(str, "seen") is None:
        await ctx.checkpoint("once", name="seen")
        raise NonRetriable("the account is closed")


@golden_saga.step(attempts=1)
async def ship(_ctx: Ctx) -> Any:
    """Is what fails."""
    raise LookupError("no carrier takes it")
