"""Calls that must not type-check: each marked line fails, in mypy and in pyright, with what its comment says.

`# error: text` is part of the message of both; `# error: text of mypy // text of pyright` names them apart.
"""

from typing import Literal

import msgspec

from streamline_trio import Engine, Recurrence, RunHandle, Signal, StepContext, StepOptions, StepSpec, Workflow


class Order(msgspec.Struct, frozen=True):
    order_id: str
    cents: int = 0


class State(msgspec.Struct):
    status: Literal["new", "paid"] = "new"


class Charge(msgspec.Struct):
    charge_id: str


class Outputs(msgspec.Struct):
    fetch: str | None = None


Order("o-1").missing  # error: "missing"
Order("o-1").cents = 1  # error: read-only

order = Workflow("order", input=Order, state=lambda order: State())
approved = Signal("order.approved", bool)

Workflow(5)  # error: "Workflow" matches argument type "int" // "Literal[5]" is not assignable to "str"
Workflow("a", inputs=Order)  # error: keyword argument "inputs" // No overloads for "__init__"
Workflow("a", steps=[1])  # error: matches argument types "str", "list[int]" // "list[int]" is not assignable to "Mapping[str, Handler | StepSpec]"
Workflow("a", input=Order, state=lambda order: order.missing)  # error: "missing"
StepOptions(retries=3)  # error: "retries"
StepSpec(5)  # error: "Callable[[Any], Any]" // is not assignable to type "(Any) -> Any"
Signal(5)  # error: "Signal" matches argument type "int" // "Literal[5]" is not assignable to "str"


@order.step(skip_if=lambda state: state.missing)  # error: "missing"
async def wrong_predicate(ctx: StepContext[Order, State]) -> None: ...


@order.step(backoff="sometimes")  # error: "step" of "Workflow" matches argument type "str" // is not assignable to type "Backoff"
async def wrong_backoff(ctx: StepContext[Order, State]) -> None: ...


@order.step(attempts="three")  # error: "step" of "Workflow" matches argument type "str" // is not assignable to "int"
async def wrong_attempts(ctx: StepContext[Order, State]) -> None: ...


@order.step(retries=3)  # error: "retries" // No overloads for "step"
async def unknown_option(ctx: StepContext[Order, State]) -> None: ...


@order.step
async def charge(ctx: StepContext[Order, State]) -> Charge:
    ctx.state.missing  # error: "missing"
    ctx.input.missing  # error: "missing"
    ctx.state.status == "lost"  # error: Non-overlapping equality check // have no overlap
    ctx.input = Order("o-2")  # error: "input" defined in "StepContext" is read-only // Cannot assign to attribute "input"
    text: str = await ctx.wait("how many?", returns=int)  # error: "TypeForm[int]"; expected "TypeForm[str]" // "int" is not assignable to "str"
    flag: str = await ctx.wait_for(approved)  # error: "Signal[bool]"; expected "Signal[str]" // "bool" is not assignable to "str"
    await ctx.sleep("5 s")  # error: expected "float | timedelta" // is not assignable to "timedelta"
    await ctx.checkpoint(1, name=5)  # error: "name" to "checkpoint" of "StepContext" has incompatible type "int" // "Literal[5]" is not assignable to "str"
    ctx.output(5)  # error: "output" of "StepContext" matches argument type "int" // No overloads for "output"
    return Charge(text + flag)


@order.step
async def after(ctx: StepContext[Order, State, Outputs]) -> int:
    ctx.output(charge).missing  # error: "missing"
    ctx.output(charge, None).charge_id  # error: "None" of "Charge | None" has no attribute "charge_id" // "charge_id" is not a known attribute of "None"
    ctx.outputs.missing  # error: "missing"
    number: int = ctx.outputs.fetch  # error: has type "str | None", variable has type "int" // "str | None" is not assignable to type "int"
    return number


charge.compensate(attempt=3)  # error: "compensate" of "Step" // No overloads for "compensate"
charge.compensate(when="never")  # error: "compensate" of "Step" // "Literal['never']" is not assignable


async def one_parameter(ctx: StepContext[Order]) -> None:
    ctx.state.status  # error: "status"
    ctx.outputs.anything


Recurrence.daily("09:00", "Europe/Berlin", catchup=1)  # error: "catchup"
Recurrence.daily("09:00", "Europe/Berlin", overlap="never")  # error: incompatible type "Literal['never']" // "Literal['never']" is not assignable to type
Recurrence.every("60")  # error: incompatible type "str" // "Literal['60']" cannot be assigned to parameter "seconds"


async def program(engine: Engine, run: RunHandle) -> None:
    await engine.start(order, 5)  # error: type parameter "InputT" of "start" // "Literal[5]" is not assignable to "Order"
    await engine.start(order, {"order_id": "o-1"})  # error: type parameter "InputT" of "start" // "dict[str, str]" cannot be assigned to parameter "input"
    await engine.start(order, Order("o-1"), key="k")  # error: keyword argument "key" // No overloads for "start"
    await engine.emit(approved, "yes")  # error: type parameter "T" of "emit" // "Literal['yes']" is not assignable to "bool"
    await engine.emit(approved, None, run=run)  # error: type parameter "T" of "emit" // "None" is not assignable to "bool"
    (await run.output(charge)).missing  # error: "missing"
    await run.output(5)  # error: "output" of "RunHandle" matches argument type "int" // No overloads for "output"
    await run.rewind()  # error: "to"
    await engine.find(statuses="done")  # error: "statuses"
    engine.run(run)  # error: "RunHandle"
    run.wait().status  # error: "status"


async def children(ctx: StepContext[Order, State, Outputs]) -> None:
    await ctx.child(order, 5)  # error: type parameter "InputT" of "child" // "Literal[5]" is not assignable to "Order"
    await ctx.join({"a": order})  # error: expected "str": "Branch[Any]" // "Branch[Any]"
    await ctx.join({}, policy="most")  # error: "Literal['most']"
