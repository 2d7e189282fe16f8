"""Migrations that are refused: told once, remembered, and in nobody's way."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import trio

from streamline_trio import MemoryStore, Run, StepContext, StepState, open_engine
from streamline_trio._runtime import migrator
from tests.scenarios.versioned import State, asking, parked_on, replace, version
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, passing


def fails(_run: Run) -> Run:
    raise KeyError("no such thing")


def meddles(run: Run) -> Run:
    run.meta["x"] = 1
    return run


def step_with(**fields: Any) -> Callable[[Run], Run]:
    return lambda run: replace(run, steps={**run.steps, "first": replace(run.steps["first"], **fields)})


@pytest.mark.parametrize(
    ("migrate", "why"),
    [
        pytest.param(lambda _: None, "does not take it over to flow 2.0.0", id="None"),
        pytest.param(lambda _: "yes", "migrate gives a Run or None, not 'yes'", id="a text"),
        pytest.param(fails, "no such thing", id="an error"),
        pytest.param(
            lambda run: replace(run, version="3.0.0"), "version: it is '2.0.0' here", id="another version"
        ),
        pytest.param(lambda run: replace(run, input=1), "input: it must stay", id="input"),
        pytest.param(lambda run: replace(run, priority=5), "priority: it must stay", id="priority"),
        pytest.param(lambda run: replace(run, tenant="t"), "tenant: it must stay", id="tenant"),
        pytest.param(meddles, "meta: it must stay", id="meta in place"),
        pytest.param(
            lambda run: replace(run, current_step="gone"), "current_step: flow 2.0.0 has no", id="no step"
        ),
        pytest.param(
            lambda run: replace(run, current_step=None), "current_step: a run that has begun", id="nowhere"
        ),
        pytest.param(lambda run: replace(run, current_step="first"), r"steps\['first'\]: it is done", id="back"),
        pytest.param(lambda run: replace(run, state={"n": "x"}), "state: Expected `int`", id="unfit state"),
        pytest.param(lambda run: replace(run, state={"m": 1}), "state: .*missing required field", id="no state"),
        pytest.param(lambda run: replace(run, state=object()), "state: .*cannot store", id="no data"),
        pytest.param(lambda run: replace(run, steps=None), "steps: it is a mapping", id="no steps"),
        pytest.param(lambda run: replace(run, steps={"first": 1}), r"steps\['first'\]: it is a StepState", id="1"),
        pytest.param(lambda run: replace(run, steps={"a b": run.steps["first"]}), "an id is", id="unfit id"),
        pytest.param(
            lambda run: replace(run, steps={**run.steps, "x": run.steps["first"]}), "cannot become both", id="twice"
        ),
        pytest.param(
            lambda run: replace(run, steps={**run.steps, "x": StepState(id="x", status="done")}),
            r"steps\['x'\]: the run has no step 'x'",
            id="invented",
        ),
        pytest.param(step_with(status="pending"), r"steps\['first'\]\.status: it must stay", id="status"),
        pytest.param(step_with(attempts=9), r"steps\['first'\]\.attempts: it must stay", id="attempts"),
        pytest.param(step_with(checkpoints={"x": 1}), r"steps\['first'\]\.checkpoints: it must", id="checkpoints"),
        pytest.param(
            lambda run: replace(run, steps={"counted": run.steps["first"], "ask": run.steps["ask"]}),
            r"steps\['counted'\]\.output: Expected `int`",
            id="output of another type",
        ),
        pytest.param(step_with(output=[1]), r"steps\['first'\]\.output: Expected `str`", id="unfit output"),
        pytest.param(
            lambda run: replace(run, steps={**run.steps, "ask": replace(run.steps["ask"], output=1)}),
            r"steps\['ask'\]\.output: a step that is running has none",
            id="output of what has not finished",
        ),
    ],
)
def test_what_is_refused_is_told_once(migrate, why):
    """S380: Proves that a refused run is untouched, stays due, and is told once by the field that is wrong."""

    @in_virtual_time
    async def scenario() -> None:
        store, asked = MemoryStore(), list[str]()
        run_id = await parked_on(store, asking(state=lambda _: {"n": 1}))

        def noting(run: Run) -> Any:
            asked.append(run.id)
            return migrate(run)

        new = version("2.0.0", migrate=noting, state=lambda _: State(0))

        @new.step
        async def first(_ctx: StepContext[Any, State]) -> str:
            return ""

        @new.step
        async def counted(_ctx: StepContext[Any, State]) -> int:
            return 0

        @new.step
        async def ask(_ctx: StepContext[Any, State]) -> str:
            return ""

        async with open_engine(store, new) as engine:
            errors = list[Any]()
            engine.on("engine.error", errors.append)
            await engine.run(run_id).resume("yes")
            before = await at_rest(engine.run(run_id))
            await trio.sleep(3600)
            assert await engine.get(run_id) == before
            assert (before.version, before.status, before.lease) == ("1.0.0", "running", None)
            assert [(found.version, found.runs) for found in (await engine.stats()).unclaimable] == [("1.0.0", 1)]
            (error,) = errors
            assert error.run_id == run_id
            assert "1.0.0 is not taken over by 2.0.0" in error.context
            assert re.search(why, error.error), error.error
            assert asked == [run_id]

    scenario()


@pytest.mark.parametrize("exclusive", [True, False])
@in_virtual_time
async def test_a_refused_run_is_asked_about_again_when_it_has_changed(exclusive):
    """Proves that a refusal holds for the run as it was, and that another engine asks for itself.

    Where it is found by looking, it may have changed and be due again before anybody looks.
    """
    store, asked = MemoryStore(exclusive=exclusive), list[bool]()
    run_id = await parked_on(store, asking())

    def migrate(run: Run) -> Run | None:
        asked.append(run.state == "good")
        return run if len(asked) > 2 else None

    new = asking("2.0.0", migrate=migrate)
    async with open_engine(store, new) as engine:
        handle = engine.run(run_id)
        await handle.resume("yes")
        await trio.sleep(600)
        assert len(asked) == 1
        await handle.pause()
        await handle.unpause()
        await trio.sleep(600)
        assert len(asked) == 2
        other = await engine.start(new)
        await idle()
        await other.cancel()
        assert len(asked) == 2, "what happens to others is no reason to ask again"
    async with open_engine(store, new) as engine:
        assert (await engine.run(run_id).wait()).version == "2.0.0"
    assert len(asked) == 3


@in_virtual_time
async def test_a_refused_run_stands_in_nobodys_way():
    """Proves that runs which fall due later are taken over although refused ones stand before them in the queue."""
    store, refused = MemoryStore(), set[str]()
    async with open_engine(store, old := asking()) as engine:
        for number in range(5):
            handle = await engine.start(old, priority=50 if number < 3 else 0)
            await idle()
            refused |= {handle.id} if number < 3 else set()
        runs = [run.id for run in await engine.find(sort="created_at")]

    def migrate(run: Run) -> Run | None:
        return None if run.id in refused else run

    async with open_engine(store, asking("2.0.0", migrate=migrate)) as engine:
        for run_id in runs:
            await engine.run(run_id).resume("yes")
        for run_id in set(runs) - refused:
            assert (await engine.run(run_id).wait(timeout=20)).version == "2.0.0"
        assert await engine.count(version="1.0.0", status="running") == 3


@in_virtual_time
async def test_a_migrate_that_hangs_is_a_refusal():
    """Proves that a `migrate` which does not come to its end holds up neither own runs nor the drain."""
    store, calls = MemoryStore(), list[str]()
    run_id = await parked_on(store, asking())

    async def migrate(_run: Run) -> Run:
        calls.append("asked")
        await trio.sleep_forever()
        raise AssertionError

    new = version("2.0.0", migrate=migrate)
    passing(new, "a")
    async with open_engine(store, new, max_concurrent_runs=2) as engine:
        errors = list[Any]()
        engine.on("engine.error", errors.append)
        await engine.run(run_id).resume("yes")
        await idle()
        assert (await (await engine.start(new)).wait(timeout=1)).status == "done"
        await trio.sleep(migrator.PATIENCE + 1)
        assert [("more than 30 s" in error.error) for error in errors] == [True]
        await trio.sleep(600)
    assert calls == ["asked"]
    async with open_engine(store, new, max_concurrent_runs=1) as engine:
        await idle()
        began = trio.current_time()
    assert trio.current_time() - began < 1, "leaving does not wait for it"
    assert calls == ["asked", "asked"]
