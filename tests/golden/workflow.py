"""The workflow that the golden documents are runs of. It stays as it is: stored runs outlive releases."""

from typing import Any

import msgspec
import trio

from streamline_trio import NonRetriable, Signal, StepContext, Workflow

TOKEN = "a-token-of-our-own"  # noqa: S105 - it opens nothing but the golden document that waits for a person
go = Signal("golden.go", int)


class Order(msgspec.Struct):
    """What a run is started with; `play` says how it is to end up."""

    play: str
    number: int = 1


class Progress(msgspec.Struct):
    """The state of a run."""

    seen: list[str] = []


golden = Workflow(
    "golden",
    version="1.0.0",
    input=Order,
    state=lambda order: Progress([f"started {order.play}"]),
    tags=("golden",),
)
Ctx = StepContext[Order, Progress]


@golden.step
async def prepare(ctx: Ctx) -> dict[str, int]:
    """Leaves something of every kind behind."""
    await ctx.set(seen=[*ctx.state.seen, "prepared"])
    await ctx.checkpoint([1, 2, 3], name="rows")
    await ctx.once("charge", lambda: f"charged {ctx.input.number}")
    return {"doubled": 2 * ctx.input.number}


@golden.step(attempts=2, retry_delay=60.0, jitter=0.0)
async def wait(ctx: Ctx) -> Any:
    """Waits as it is told to."""
    play = ctx.input.play
    if play == "timer":
        await ctx.sleep(86_400)
        return "slept"
    if play == "human":
        approved = await ctx.wait("approve", returns=bool, token=TOKEN, timeout=86_400, meta={"by": "boss"})
        return await ctx.wait("and how?", returns=str, name="how") if approved else "refused"
    if play == "signal":
        return await ctx.wait_for(go)
    if play == "backoff" and ctx.attempt == 1:
        raise ValueError("the first attempt fails")
    if play == "failed" and "fixed" not in ctx.state.seen:
        await ctx.set(seen=[*ctx.state.seen, "fixed"])
        raise NonRetriable("this cannot work yet")
    if play in {"leased", "dead letter"} and "crashed" not in ctx.state.seen:
        await ctx.set(seen=[*ctx.state.seen, "crashed"])
        await trio.sleep_forever()
    return play


@golden.step
async def finish(ctx: Ctx) -> list[Any]:
    """Tells what became of it."""
    charged = await ctx.once("charge", lambda: "charged again")
    return [ctx.outputs.prepare["doubled"], ctx.output(wait), charged]
