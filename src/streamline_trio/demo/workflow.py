"""The workflow that fills an order.

    validate ─► approve ─► charge ─► reserve ─► pack ─► ship
                             ▲          ▲                 │
                           refund ◄─ put back ◄───────────┘ no carrier

An order that can never be filled fails at once. A person has to agree to large ones. The payment provider does
not always answer, so charging is retried. Parcels wait a moment for their lorry. Some of them no carrier takes:
then the goods are put back and the money is paid back, newest first. Each handler does its side effect last, and
names it in the shop's ledger before it returns.
"""

from __future__ import annotations

import msgspec

from streamline_trio import NonRetriable, StepContext, Workflow
from streamline_trio.demo.orders import APPROVAL_FROM, Order, share
from streamline_trio.demo.shop import Shop


class Filling(msgspec.Struct):
    """What changes while an order is filled."""

    cents: int
    approved_by: str = ""


class Answer(msgspec.Struct, frozen=True):
    """What the person says."""

    approved: bool
    by: str


Context = StepContext[Order, Filling]


def order_workflow(shop: Shop) -> Workflow[Order, Filling]:
    """The workflow, doing its work in this shop."""
    order = Workflow("demo-order", input=Order, state=lambda given: Filling(given.cents))

    @order.step(attempts=1)
    async def validate(ctx: Context) -> None:
        if ctx.input.quantity < 1:
            raise NonRetriable("nothing is ordered: the quantity is 0")
        if not ctx.input.city:
            raise NonRetriable("there is no address to ship to")
        await shop.work(ctx, 0.05)

    @order.step(skip_if=lambda filling: filling.cents < APPROVAL_FROM)
    async def approve(ctx: Context) -> Answer:
        answer = await ctx.wait(
            f"{ctx.input.customer} orders for {ctx.input.cents / 100:.2f}",
            returns=Answer,
            timeout=3600,
            on_token=lambda token: shop.mail(ctx, token),
        )
        if not answer.approved:
            raise NonRetriable(f"declined by {answer.by}")
        await ctx.set(approved_by=answer.by)
        shop.book(ctx)
        return answer

    @order.step(attempts=6, retry_delay=0.1, timeout=10)
    async def charge(ctx: Context) -> str:
        await shop.charge(ctx)
        return ctx.idempotency_key()

    charge.compensate(attempts=6, retry_delay=0.1, timeout=10)(shop.refund)

    @order.step
    async def reserve(ctx: Context) -> int:
        await shop.work(ctx, 0.1)
        return ctx.input.quantity

    reserve.compensate(shop.put_back)

    @order.step
    async def pack(ctx: Context) -> None:
        await ctx.sleep(0.4 + 0.8 * share(ctx.input.order_id, "lorry"))
        await shop.work(ctx, 0.1)

    @order.step
    async def ship(ctx: Context) -> str:
        await shop.hand_over(ctx)
        return f"{ctx.output(charge)} is on its way to {ctx.input.city}"

    return order
