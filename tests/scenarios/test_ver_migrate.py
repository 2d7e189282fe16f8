"""Migration: what a version makes of runs of another one, and what becomes of them (the original's migrateRun)."""

from typing import Any

import pytest
import trio

from streamline_trio import DefinitionError, MemoryStore, Run, Signal, StepContext, Workflow, open_engine
from streamline_trio.store import Insert
from streamline_trio.testing import crash
from tests.scenarios.versioned import Context, State, asking, parked_on, replace, unchanged, version
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, passing, statuses

news = Signal("news", int)


@in_virtual_time
async def test_same_steps_need_no_more_than_a_yes():
    """S384: Proves that a parked run of 1.0.0 is resumed and finished by 2.0.0, which takes runs as they are."""
    store = MemoryStore()
    run_id = await parked_on(store, asking())
    async with open_engine(store, asking("2.0.0", migrate=unchanged)) as engine:
        handle = engine.run(run_id)
        assert (await at_rest(handle)).version == "1.0.0", "nothing is due, so nothing is migrated"
        async with engine.events("workflow.migrated") as told:
            await handle.resume("yes")
            run = await handle.wait()
            event: Any = await anext(told)
    assert (run.status, run.version, run.steps["ask"].output, run.recoveries) == ("done", "2.0.0", "yes", 0)
    assert statuses(run) == {"first": "done", "ask": "done", "last": "done"}
    assert (event.run_id, event.from_version, event.version) == (run_id, "1.0.0", "2.0.0")


@in_virtual_time
async def test_steps_are_renamed_dropped_and_added():
    """Proves that outputs follow their steps' new ids, dropped steps are gone, and the new graph is followed."""
    store, calls = MemoryStore(), list[str]()
    old = version("1.0.0")
    passing(old, "fetch", "legacy")

    @old.step
    async def ask(ctx: Context) -> Any:
        return await ctx.wait("go?")

    run_id = await parked_on(store, old)

    def migrate(run: Run) -> Run:
        steps = {"download": run.steps["fetch"], "approve": run.steps["ask"]}
        return replace(run, version="2.0.0", steps=steps, current_step="approve")

    new = version("2.0.0", migrate=migrate)
    passing(new, "download", calls=calls)

    @new.step
    async def approve(ctx: Context) -> Any:
        return await ctx.wait("go?")

    @new.step
    async def audit(ctx: Context) -> list[Any]:
        return [ctx.output("download"), ctx.output("approve"), ctx.output("legacy", default="gone")]

    async with open_engine(store, new) as engine:
        await engine.run(run_id).resume("yes")
        run = await engine.run(run_id).wait()
    assert (run.status, run.output) == ("done", ["fetch", "yes", "gone"])
    assert statuses(run) == {"download": "done", "approve": "done", "audit": "done"}
    assert calls == [], "a finished step ran again"


@in_virtual_time
async def test_state_and_outputs_may_change():
    """Proves that a new state and a changed output are stored in the types of the new version."""
    store = MemoryStore()
    run_id = await parked_on(store, asking(state=lambda _: {"count": 3}))

    async def migrate(run: Run) -> Run:
        await trio.sleep(1)
        steps = {**run.steps, "first": replace(run.steps["first"], output=41)}
        return replace(run, state=State(n=run.state["count"]), steps=steps)

    new: Workflow[Any, State] = Workflow("flow", version="2.0.0", state=lambda _: State(0), migrate=migrate)

    @new.step
    async def first(_ctx: StepContext[Any, State]) -> int:
        raise AssertionError("it has run")

    @new.step
    async def ask(ctx: StepContext[Any, State]) -> list[Any]:
        await ctx.wait("go?")
        return [ctx.state.n, ctx.state.note, ctx.output(first) + 1]

    async with open_engine(store, new) as engine:
        await engine.run(run_id).resume("yes")
        assert await engine.run(run_id).result() == [3, "", 42]
        assert (await engine.get(run_id)).state == State(3)


@in_virtual_time
async def test_drafts_are_taken_over():
    """Proves that a start which nobody has begun yet is begun by the new version, once it is due."""
    store, calls = MemoryStore(), list[str]()
    old, new = version("1.0.0"), version("2.0.0", migrate=unchanged)
    passing(old, "a")
    passing(new, "b", calls=calls)
    async with open_engine(store, old, worker=False) as client:
        at_once, later = await client.start(old), await client.start(old, delay=60)
    async with open_engine(store, new) as engine:
        assert (await engine.run(at_once.id).wait()).version == "2.0.0"
        assert (await engine.get(later.id)).version == "1.0.0"
        began = trio.current_time()
        assert (await engine.run(later.id).wait()).version == "2.0.0"
        assert trio.current_time() - began >= 59
    assert calls == ["b", "b"]


@in_virtual_time
async def test_a_sleeper_is_taken_over_when_it_wakes():
    """Proves that a parked run is migrated by the write that fires its timer, and replays what it knows."""
    store, entries = MemoryStore(), list[str]()

    def sleeping(number: str, **options: Any) -> Workflow[Any, Any]:
        flow = version(number, **options)

        @flow.step
        async def nap(ctx: Context) -> str:
            entries.append(ctx.version)
            first = await ctx.wait("who?", name="who")
            await ctx.sleep(3600)
            return f"{first} {ctx.version} {ctx.attempt}"

        return flow

    async with open_engine(store, old := sleeping("1.0.0")) as engine:
        handle = await engine.start(old)
        await idle()
        await handle.resume("ana")
        await idle()
    async with open_engine(store, sleeping("2.0.0", migrate=unchanged)) as engine:
        assert await engine.run(handle.id).result() == "ana 2.0.0 1"
    assert entries == ["1.0.0", "1.0.0", "2.0.0"]


@in_virtual_time
async def test_a_retry_is_taken_over_with_its_attempts():
    """Proves that failures count across a migration, and what the failed step saved is there under its new id."""
    store = MemoryStore()
    old = version("1.0.0")

    @old.step(retry_delay=60, jitter=0)
    async def pay(ctx: Context) -> None:
        await ctx.checkpoint("half-way")
        await ctx.once("key", lambda: "made once")
        raise ValueError(ctx.idempotency_key())

    run_id = await parked_on(store, old)

    def migrate(run: Run) -> Run:
        return replace(run, steps={"charge": run.steps["pay"]}, current_step="charge")

    new = version("2.0.0", migrate=migrate)

    @new.step
    async def charge(ctx: Context) -> list[Any]:
        memo = await ctx.once("key", lambda: "made twice")
        return [ctx.attempt, ctx.checkpoint_value(), memo, ctx.idempotency_key()]

    async with open_engine(store, new) as engine:
        error = (await engine.get(run_id)).steps["pay"].error
        assert error is not None
        assert await engine.run(run_id).result() == [2, "half-way", "made once", error.message]
        await engine.run(run_id).rewind("charge")
        attempt, _, _, key = await engine.run(run_id).result()
    assert attempt == 1
    assert key == f"{run_id}:charge~1", "after a rewind the key is a new one, of the new id"


@in_virtual_time
async def test_runs_of_a_dead_worker_are_taken_over():
    """Proves that the run of a crashed worker of 1.0.0 is migrated; the crash counts, but not as a failure."""
    store, entered = MemoryStore(), list[str]()

    def holding(number: str, **options: Any) -> Workflow[Any, Any]:
        flow = version(number, **options)

        @flow.step(attempts=1)
        async def hold(ctx: Context) -> int:
            entered.append(ctx.version)
            if ctx.version == "1.0.0":
                await trio.sleep_forever()
            return ctx.attempt

        return flow

    async with open_engine(store, old := holding("1.0.0")) as doomed:
        handle = await doomed.start(old)
        await idle()
        async with open_engine(store, holding("2.0.0", migrate=unchanged)) as heir:
            await trio.sleep(3600)
            assert (await heir.get(handle.id)).version == "1.0.0", "a live worker has it"
            await crash(doomed)
            run = await heir.run(handle.id).wait()
    assert (run.status, run.output, run.version, run.recoveries) == ("done", 2, "2.0.0", 1)
    assert entered == ["1.0.0", "2.0.0"]


@in_virtual_time
async def test_a_live_worker_keeps_its_runs():
    """Proves that nothing is migrated while a live worker has the version, and at once when it has left."""
    store, asked = MemoryStore(), list[str]()

    def migrate(run: Run) -> Run:
        asked.append(run.id)
        return run

    new = asking("2.0.0", migrate=migrate)
    async with open_engine(store, new) as engine:
        async with open_engine(store, old := asking()) as first:
            handles = [await first.start(old), await first.start(old)]
            await idle()
            await engine.run(handles[0].id).resume("yes")
            assert (await engine.run(handles[0].id).wait()).version == "1.0.0"
            assert asked == []
        await engine.run(handles[1].id).resume("yes")
        assert (await engine.run(handles[1].id).wait()).version == "2.0.0"
    assert asked == [handles[1].id]


def first_holds(number: str, held: str, **options: Any) -> Workflow[Any, Any]:
    """Runs with the input `hold` never end in version 1.0.0."""
    flow = version(number, **options)

    @flow.step(attempts=1)
    async def step(ctx: Context) -> str:
        if ctx.input == held and ctx.version == "1.0.0":
            await trio.sleep_forever()
        return ctx.version

    return flow


@in_virtual_time
async def test_a_busy_worker_keeps_its_runs_too():
    """Proves that runs wait for a live worker of their version that has no place for them."""
    store = MemoryStore()
    old, new = first_holds("1.0.0", "hold"), first_holds("2.0.0", "", migrate=unchanged)
    async with open_engine(store, new) as engine, open_engine(store, old, max_concurrent_runs=1) as first:
        held, waits = await first.start(old, "hold"), await first.start(old, "wait")
        await trio.sleep(3600)
        run = await engine.get(waits.id)
        assert (run.status, run.version) == ("draft", "1.0.0")
        await held.cancel()
        assert (await engine.run(waits.id).wait()).version == "1.0.0"


@in_virtual_time
async def test_a_worker_that_has_just_come_keeps_its_runs():
    """Proves that a version which was missing a moment ago is looked for again before its runs are taken over."""
    store = MemoryStore(exclusive=False)
    old, new = first_holds("1.0.0", "hold"), first_holds("2.0.0", "", migrate=unchanged)
    async with open_engine(store, old):
        pass
    async with open_engine(store, new, lease=600) as engine:
        await trio.sleep(1)
        async with open_engine(store, old, max_concurrent_runs=1) as first:
            held, waits = await first.start(old, "hold"), await first.start(old, "wait")
            await trio.sleep(300)
            assert (await engine.get(waits.id)).version == "1.0.0"
            await held.cancel()
            assert (await engine.run(waits.id).wait()).version == "1.0.0"


@in_virtual_time
async def test_what_a_leaving_worker_hands_back_is_taken_over_at_once():
    """Proves that a run which was due already when the last worker of its version left is migrated then."""
    store = MemoryStore()
    old, new = first_holds("1.0.0", "hold"), first_holds("2.0.0", "", migrate=unchanged)
    async with open_engine(store, new) as engine:
        async with open_engine(store, old, drain_timeout=0) as first:
            handle = await first.start(old, "hold")
            await idle()
        run = await engine.run(handle.id).wait(timeout=1)
    assert (run.status, run.version, run.recoveries) == ("done", "2.0.0", 0)


@in_virtual_time
async def test_a_paused_run_is_not_taken_over():
    """Proves that a paused run stays on its version, and is asked about when it is unpaused."""
    store, asked = MemoryStore(), list[str]()

    def migrate(run: Run) -> Run:
        asked.append(run.status)
        return run

    run_id = await parked_on(store, asking(timeout=30))
    async with open_engine(store, asking("2.0.0", migrate=migrate)) as engine:
        await engine.run(run_id).pause()
        await engine.run(run_id).resume("yes")
        await trio.sleep(5)
        assert (await engine.get(run_id)).version == "1.0.0"
        await engine.run(run_id).unpause()
        assert (await engine.run(run_id).wait()).version == "2.0.0"
        assert asked == ["running"]
    run_id = await parked_on(store, asking(timeout=30))
    async with open_engine(store, asking("2.0.0", migrate=migrate)) as engine:
        await engine.run(run_id).pause()
        await trio.sleep(60)
        assert (await engine.get(run_id)).status == "waiting"
        await engine.run(run_id).unpause()
        run = await engine.run(run_id).wait()
    assert run.error is not None
    assert (run.error.code, run.version) == ("workflow.timeout", "2.0.0")


@in_virtual_time
async def test_moving_on_leaves_the_wait_behind():
    """Proves that a run which is sent to another step begins that one, and its old waits are answered by nobody."""
    store, calls = MemoryStore(), list[str]()
    old = version("1.0.0")

    @old.step
    async def listen(ctx: Context) -> int:
        return await ctx.wait_for(news, timeout=60)

    run_id = await parked_on(store, old)
    new = version("2.0.0", migrate=lambda run: replace(run, current_step="instead"))
    passing(new, "instead", calls=calls)

    @new.step
    async def after(ctx: Context) -> int:
        return await ctx.wait_for(news)

    async with open_engine(store, new) as engine:
        await trio.sleep(61)
        run = await at_rest(engine.run(run_id))
        assert statuses(run) == {"instead": "done", "after": "waiting"}, "what has not finished is dropped"
        await engine.emit(news, 7, run=run_id)
        assert await engine.run(run_id).result() == 7
    assert calls == ["instead"]


@in_virtual_time
async def test_a_finished_step_that_is_left_out_runs_again():
    """Proves that only what the migration leaves out runs again, under another idempotency key."""
    store, keys = MemoryStore(), list[str]()

    def charging(number: str, migrate: Any = None) -> Workflow[Any, Any]:
        flow = version(number, migrate=migrate)

        @flow.step
        async def charge(ctx: Context) -> None:
            keys.append(ctx.idempotency_key())

        @flow.step
        async def ask(ctx: Context) -> Any:
            return await ctx.wait("go?")

        return flow

    run_id = await parked_on(store, charging("1.0.0"))

    def migrate(run: Run) -> Run:
        return replace(run, steps={}, current_step="charge")

    async with open_engine(store, charging("2.0.0", migrate)) as engine:
        await engine.run(run_id).resume("yes")
        assert statuses(await at_rest(engine.run(run_id))) == {"charge": "done", "ask": "waiting"}
    assert keys == [f"{run_id}:charge", f"{run_id}:charge~1"]


@in_virtual_time
async def test_versions_are_taken_over_one_after_the_other():
    """Proves that a run may go through several migrations, and keeps its idempotency keys through all of them."""
    store, keys = MemoryStore(), list[str]()

    def paying(number: str, step: str, before: str = "") -> Workflow[Any, Any]:
        def migrate(run: Run) -> Run:
            return replace(run, steps={step: run.steps[before]}, current_step=step)

        flow = version(number, migrate=migrate if before else None)

        async def pay(ctx: Context) -> Any:
            keys.append(ctx.idempotency_key())
            await ctx.sleep(60)
            return await ctx.wait("go?")

        flow.add_step(step, pay)
        return flow

    run_id = await parked_on(store, paying("1.0.0", "pay"))
    for number, step, before in [("2.0.0", "charge", "pay"), ("10.0.0", "debit", "charge")]:
        async with open_engine(store, paying(number, step, before)) as engine:
            await trio.sleep(61)
            if number == "10.0.0":
                await engine.run(run_id).resume("yes")
            await idle()
    stored = await store.load(run_id)
    assert stored is not None
    assert (stored.head.version, stored.head.status) == ("10.0.0", "done")
    assert set(keys) == {f"{run_id}:pay"}


@in_virtual_time
async def test_the_highest_version_with_migrate_is_asked():
    """Proves that of several versions in one engine the highest that has a `migrate` takes runs of others over."""
    store = MemoryStore()
    run_id = await parked_on(store, asking("9.0.0"))
    given = [
        asking("10.0.0", migrate=unchanged),
        asking("1.0.0", migrate=unchanged),
        asking("11.0.0"),
        asking("2.0.0", migrate=unchanged),
    ]
    async with open_engine(store, *given) as engine:
        await engine.run(run_id).resume("yes")
        assert (await engine.run(run_id).wait()).version == "10.0.0"


def test_migrate_is_a_function_of_a_run():
    """Proves that what cannot be called with a run is refused when the workflow is defined."""
    for wrong in ("yes", lambda: None, lambda _run, _more: None):
        with pytest.raises(DefinitionError, match="option 'migrate': must be a function of a run") as caught:
            version("2.0.0", migrate=wrong)
        assert caught.value.meta["option"] == "migrate"


@in_virtual_time
async def test_a_child_that_nobody_waits_for_is_not_begun_by_another_version():
    """Proves that a child stored after its parent was cancelled is not begun by who would take it over."""
    store, calls = MemoryStore(), list[str]()
    old, new = version("1.0.0"), version("2.0.0", migrate=unchanged)
    passing(old, "work")
    passing(new, "work", calls=calls)
    parent: Workflow[Any, Any] = Workflow("parent")

    @parent.step
    async def delegate(ctx: Context) -> Any:
        return await ctx.child(old)

    async with open_engine(store, parent) as engine:
        run = await engine.start(parent)
        await idle()
        (child,) = (await engine.find(workflow="flow")).items
        stored = await store.load(child.id)
        await run.cancel()
    assert stored is not None
    late = replace(stored, origin=replace(stored.origin, id="late"))
    await store.write([Insert(late)])
    async with open_engine(store, parent, new) as engine:
        assert (await engine.run("late").wait()).status == "cancelled"
    assert calls == []
