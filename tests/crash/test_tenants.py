"""Whatever fails or dies: two tenants with the same ids stay two."""

from typing import Any

from streamline_trio import Branch, Engine, Signal, StepContext, Workflow
from streamline_trio._core.status import SETTLED
from streamline_trio.testing import sweep

Context = StepContext[Any, Any]
news = Signal("news", str)
TENANTS = ("a", "b")

leaf: Workflow[Any, Any] = Workflow("leaf")
tree: Workflow[Any, Any] = Workflow("tree")


@leaf.step
async def small(ctx: Context) -> Any:
    return await ctx.wait_for(news) if ctx.input == "waits" else f"{ctx.tenant} {ctx.input}"


@tree.step
async def grow(ctx: Context) -> Any:
    won = await ctx.join({"x": Branch(leaf, "x"), "y": Branch(leaf, "waits")}, policy="any")
    return [ctx.tenant, won.branches["x"].output, await ctx.wait_for(news)]


async def in_two_tenants(engine: Engine) -> object:
    """Each starts a run of one id under one key, twice, sends it a signal, and has a branch cancelled."""
    found: list[Any] = []
    for tenant in TENANTS:
        for _ in range(2):
            await engine.start(tree, tenant, run_id="r", idempotency_key="k", tenant=tenant)
    for tenant in TENANTS:
        await engine.emit(news, f"to {tenant}", run="r", tenant=tenant)
    for tenant in TENANTS:
        own = engine.scoped(tenant)
        found.append((tenant, await own.run("r").result()))
        for child in await own.find(parent="r"):
            settled = await own.run(child.id).wait()
            assert settled.status in SETTLED
            found.append((child.id.partition("-")[2], settled.tenant, settled.status, settled.output))
    return sorted(found, key=repr), await engine.count()


def test_two_tenants_stay_two_whatever_happens():
    """S409, S411: every store call failed, every write a death: each tenant has its one run and its own outcome."""
    swept = sweep(in_two_tenants, tree, leaf)
    assert len(swept) > 60
