"""Fill the orders of `orders.csv` in one process. Stop it with Ctrl-C whenever you like and start it again.

    python examples/orders/fill_orders.py

The runs are in `orders.db` in the current directory. Each has the id of its order: no order is filled twice.
"""

import csv
from pathlib import Path

import msgspec
import trio

from streamline_trio import Engine, InvalidState, NonRetriable, RunHandle, StepContext, Workflow, open_engine


class Order(msgspec.Struct, frozen=True):
    order_id: str
    customer: str
    city: str
    item: str
    quantity: int
    unit_cents: int


fill = Workflow("fill", input=Order)


@fill.step
async def charge(ctx: StepContext[Order]) -> int:
    cents = ctx.input.quantity * ctx.input.unit_cents
    if not cents:
        raise NonRetriable("nothing is ordered")
    # A real provider is called here, with ctx.idempotency_key(), so that it charges once even if we crash.
    return cents


@fill.step
async def pack(ctx: StepContext[Order]) -> None:
    await ctx.sleep(2)


@fill.step
async def ship(ctx: StepContext[Order]) -> str:
    if not ctx.input.city:
        raise NonRetriable("there is no address")
    return f"{ctx.input.item} for {ctx.output(charge) / 100:.2f} to {ctx.input.customer} in {ctx.input.city}"


async def place(engine: Engine, order: Order) -> RunHandle:
    try:
        return await engine.start(fill, order, run_id=order.order_id)
    except InvalidState:  # it was placed before
        return engine.run(order.order_id)


async def follow(engine: Engine, order: Order) -> None:
    run = await (await place(engine, order)).wait()
    print(order.order_id, run.status, run.error.message if run.error else run.output)


async def main() -> None:
    with Path(__file__).with_name("orders.csv").open(encoding="utf-8", newline="") as lines:
        orders = [msgspec.convert(row, Order, strict=False) for row in csv.DictReader(lines)]
    async with open_engine("sqlite:///orders.db", fill) as engine, trio.open_nursery() as nursery:
        for order in orders:
            nursery.start_soon(follow, engine, order)


if __name__ == "__main__":
    try:
        trio.run(main)
    except* KeyboardInterrupt:
        print("stopped; start it again to go on")
