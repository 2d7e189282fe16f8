"""Approvals under every mishap: failing store calls, crashes and lost leases, between any two lines."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from streamline_trio import (
    Engine,
    MemoryStore,
    RunHandle,
    StepContext,
    TokenInvalid,
    Workflow,
)
from streamline_trio.testing import CrashAt, FailCall, LoseLeaseAt, parked, sweep

Context = StepContext[Any, Any]


class Payment:
    """Two people must approve; their tokens go to a mailbox. The second has a deadline. Then it is paid, once."""

    def __init__(self) -> None:
        self.mails: dict[str, list[str]] = {}
        self.paid: list[str] = []
        self.flow: Workflow[Any, Any] = Workflow("payment")

        @self.flow.step
        async def approve(ctx: Context) -> list[str]:
            decisions = []
            for who, timeout in (("ada", None), ("bob", 3600)):

                async def mail(token: str, who: str = who) -> None:
                    self.mails.setdefault(who, []).append(token)

                decision = await ctx.request_approval(
                    f"{who}?", returns=int, name=who, timeout=timeout, on_token=mail
                )
                decisions.append(repr(decision))
            return decisions

        @self.flow.step
        async def pay(ctx: Context) -> None:
            self.paid.append(ctx.idempotency_key())

    async def started(self, engine: Engine) -> RunHandle:
        self.mails.clear()
        self.paid.clear()
        return await engine.start(self.flow, run_id="r", idempotency_key="k")

    async def asks(self, engine: Engine, who: str) -> None:
        """Until the run has parked on this person's decision: then every token told so far must do."""
        with trio.fail_after(3000):
            while not any(wait.name == who for wait in await engine.pending()):  # noqa: ASYNC110 - nothing tells
                await trio.sleep(0.05)
        await parked(engine.run("r"))


@pytest.mark.parametrize("which", [0, -1])
def test_approvals_under_every_mishap(which):
    """Proves that wherever a worker crashes, loses its lease or fails to reach the store, the first and the last
    token told for a wait are both good, for one answer; the decisions stand, and what is paid has one key."""
    world = Payment()

    async def scenario(engine: Engine) -> object:
        handle = await world.started(engine)
        await world.asks(engine, "ada")
        token = world.mails["ada"][which]
        await engine.approve(token, 5)
        for used in world.mails["ada"]:
            with pytest.raises(TokenInvalid):
                await engine.approve(used, 6)
        await world.asks(engine, "bob")
        await engine.reject(world.mails["bob"][which], "too much")
        run = await handle.wait()
        assert len(set(world.paid)) == 1
        return [run.status, run.steps["approve"].output]

    played = sweep(scenario, world.flow)
    kinds = {type(mishap) for mishap in played}
    assert kinds == {FailCall, CrashAt, LoseLeaseAt}
    assert len(played) > 50


def test_a_deadline_under_every_mishap():
    """Proves that an approval that nobody decides times out once, whatever happens to workers meanwhile."""
    world = Payment()

    async def scenario(engine: Engine) -> object:
        handle = await world.started(engine)
        await world.asks(engine, "ada")
        await engine.run("r").approve(5)
        run = await handle.wait()
        assert len(set(world.paid)) == 1
        return [run.status, run.steps["approve"].output]

    assert sweep(scenario, world.flow)


def test_a_fork_and_a_pin_under_every_mishap():
    """Proves that a fork and a pinned output are whole wherever workers crash or calls fail."""
    flow: Workflow[Any, Any] = Workflow("flow")

    @flow.step(keep_outputs=3)
    async def generate(ctx: Context) -> int:
        return 1 + len(ctx.output_history())

    @flow.step
    async def choose(ctx: Context) -> Any:
        if ctx.output("generate") == 2:
            await ctx.pin_output(1, generate)
        return ctx.output(generate)

    async def scenario(engine: Engine) -> object:
        handle = await engine.start(flow, run_id="r")
        await handle.wait()
        await handle.rewind("generate")
        run = await handle.wait()
        fork = await handle.fork("choose")
        other = await fork.wait()
        versions = [version.output for version in run.steps["generate"].history]
        return [run.output, run.steps["generate"].pinned, versions, other.output, await engine.count()]

    assert sweep(scenario, flow, store=MemoryStore)
