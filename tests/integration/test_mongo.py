"""The engine on MongoDB: sleeps, waits, signals, large payloads, two processes' worth of engines, lost answers."""

import msgspec
import pytest
import trio

from streamline_trio import PayloadTooLarge, Signal, StepContext, Workflow, open_engine
from streamline_trio.stores.mongo import MongoStore, _stream
from tests.mongo_proxy import Proxy


class Order(msgspec.Struct):
    item: str


class State(msgspec.Struct):
    seen: list[str] = []


approved = Signal("approved", str)
order = Workflow("order", input=Order, state=State)


@order.step
async def reserve(ctx: StepContext[Order, State]) -> str:
    ctx.state.seen.append("reserve")
    await ctx.sleep(0.05, name="soon")
    return f"reserved {ctx.input.item}"


@order.step
async def decide(ctx: StepContext[Order, State]) -> str:
    return await ctx.wait_for(approved)


@order.step
async def report(ctx: StepContext[Order, State]) -> str:
    return "x" * 400_000


@pytest.fixture
def short_patience(monkeypatch):
    monkeypatch.setattr(_stream, "PATIENCE", 0.05)
