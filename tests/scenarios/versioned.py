"""What tests of versions share: workflows of several versions, and runs that one of them has left parked."""

from typing import Any

import msgspec

from streamline_trio import MemoryStore, Run, StepContext, Workflow, open_engine
from tests.scenarios.worlds import at_rest, passing

Context = StepContext[Any, Any]
replace = msgspec.structs.replace


class State(msgspec.Struct):
    n: int
    note: str = ""


def version(number: str, *, migrate: Any = None, **options: Any) -> Workflow[Any, Any]:
    return Workflow("flow", version=number, migrate=migrate, **options)


def asking(number: str = "1.0.0", **options: Any) -> Workflow[Any, Any]:
    """Three steps; the second one waits for a person."""
    flow = version(number, **options)
    passing(flow, "first")

    @flow.step
    async def ask(ctx: Context) -> Any:
        return await ctx.wait("go?")

    passing(flow, "last")
    return flow


def unchanged(run: Run) -> Run:
    return run


async def parked_on(store: MemoryStore, flow: Workflow[Any, Any], value: Any = None, **options: Any) -> str:
    """The id of a run that an engine with this version alone has driven until it parked, and then has left."""
    async with open_engine(store, flow) as engine:
        handle = await engine.start(flow, value, **options)
        assert (await at_rest(handle)).status == "waiting"
    return handle.id
