"""Crash points of migrations and releases: every store call fails, every write is the last of its worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from streamline_trio import Engine, MemoryStore, Run, Store, Workflow, open_engine
from streamline_trio.testing import CrashAt, FailCall, LoseLeaseAt, crash, parked, play, sweep
from tests.scenarios.versioned import Context, asking, replace, version
from tests.scenarios.worlds import statuses

Scenario = Callable[[Engine], Awaitable[Any]]


class Site:
    """The store of each play, with what the versions did to the world in it."""

    def __init__(self, *, exclusive: bool) -> None:
        self.exclusive = exclusive
        self.store = MemoryStore()
        self.asked: list[str] = []
        self.sent: list[str] = []

    def fresh(self) -> Store:
        self.store = MemoryStore(exclusive=self.exclusive)
        self.asked.clear()
        self.sent.clear()
        return self.store

    async def migrate(self, run: Run) -> Run:
        """Step `ask` becomes `approve`, `first` is dropped, the state counts."""
        self.asked.append(run.version)
        await trio.sleep(0.01)
        steps = {"approve": run.steps["ask"]}
        return replace(run, steps=steps, current_step="approve", state={"n": 1})

    def next_version(self) -> Workflow[Any, Any]:
        flow = version("2.0.0", migrate=self.migrate)

        @flow.step
        async def approve(ctx: Context) -> Any:
            return await ctx.wait("go?")

        @flow.step
        async def send(ctx: Context) -> list[Any]:
            key = ctx.idempotency_key()
            if key not in self.sent:
                self.sent.append(key)
            return [ctx.output("approve"), ctx.state]

        return flow


@pytest.fixture(params=[True, False], ids=["exclusive", "shared"])
def site(request: pytest.FixtureRequest) -> Site:
    return Site(exclusive=request.param)


def answered_meanwhile(site: Site) -> Scenario:
    """A run of 1.0.0 is left parked, is answered, and 2.0.0 takes it over and finishes it."""

    async def scenario(engine: Engine) -> Any:
        async with open_engine(site.store, old := asking()) as first:
            handle = await first.start(old, run_id="r")
            await parked(handle)
        await engine.run("r").resume("yes")
        run = await engine.run("r").wait()
        assert set(site.asked) == {"1.0.0"}, "a run that has been migrated was asked about again"
        assert site.sent == ["r:send"]
        return [run.status, run.version, run.output, run.state, statuses(run)]

    return scenario


def test_a_migrating_claim_bears_every_mishap(site):
    """S385: Proves that a crash before the migration asks again, one after it never, and nothing is done twice."""
    flow = site.next_version()
    played = sweep(answered_meanwhile(site), flow, store=site.fresh, mishaps=(FailCall, CrashAt, LoseLeaseAt))
    assert {type(mishap) for mishap in played} == {FailCall, CrashAt, LoseLeaseAt}
    assert len(played) > 20


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_at_the_migrating_write(when):
    """S385: Proves that the write which migrates is the one which decides whether `migrate` is asked again."""
    site = Site(exclusive=True)
    flow = site.next_version()
    quiet = play(answered_meanwhile(site), flow, store=site.fresh)
    assert site.asked == ["1.0.0"]
    # The first worker's writes: it has enlisted before; its first write of a run is the migrating claim.
    struck = play(answered_meanwhile(site), flow, store=site.fresh, mishap=CrashAt(write=0, when=when))
    assert struck == quiet
    assert site.asked == (["1.0.0", "1.0.0"] if when == "before" else ["1.0.0"])


def test_a_release_bears_every_mishap(site):
    """Proves that the run of a dead worker is released, counted and migrated, whatever goes wrong meanwhile."""

    def holding(number: str, migrate: Any = None) -> Workflow[Any, Any]:
        flow = version(number, migrate=migrate)

        @flow.step(attempts=1)
        async def hold(ctx: Context) -> str:
            if ctx.version == "1.0.0":
                await trio.sleep_forever()
            return ctx.version

        return flow

    async def scenario(engine: Engine) -> Any:
        async with open_engine(site.store, old := holding("1.0.0"), lease=2.0) as doomed:
            await doomed.start(old, run_id="r")
            await crash(doomed)
        run = await engine.run("r").wait()
        assert run.recoveries >= 1
        return [run.status, run.version, run.output]

    played = sweep(scenario, holding("2.0.0", lambda run: run), store=site.fresh)
    assert len(played) > 15
