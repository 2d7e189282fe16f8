"""Tenants: ids, keys, signals and tokens of one meet those of another, and their runs never do. On all stores."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import trio

from streamline_trio import (
    Branch,
    ChildFailed,
    Concurrency,
    DataCorruption,
    Debounce,
    Engine,
    InvalidState,
    MemoryStore,
    RunCancelled,
    RunNotFound,
    Signal,
    StepContext,
    StreamlineError,
    TokenInvalid,
    ValidationError,
    Workflow,
    open_engine,
)
from streamline_trio.stores.mongo import _stream
from streamline_trio.testing import FaultyStore, crash
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, one_step

TOKEN = "a token of the caller"  # noqa: S105 - it opens nothing but the wait of a test
LONG = 60.0
Context = StepContext[Any, Any]
news = Signal("news", int)
TENANTS = ("a", "b", None)


@pytest.fixture(params=["memory", "sqlite", "mongodb"])
def store(request, tmp_path, monkeypatch) -> Callable[[], Any]:
    """What an engine opens."""
    if request.param == "memory":
        return MemoryStore
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path}/runs.db"
    monkeypatch.setattr(_stream, "PATIENCE", 0.05)
    url = request.getfixturevalue("databases").url()
    return lambda: url


async def until(engine: Engine, count: int, **filters: Any) -> None:
    """Until so many runs are as asked for."""
    with trio.fail_after(LONG):
        while await engine.count(**filters) != count:  # noqa: ASYNC110 - on stores where nothing tells of it
            await trio.sleep(0.01)


def scope(engine: Engine, tenant: str | None) -> Engine:
    return engine if tenant is None else engine.scoped(tenant)


def listening() -> Workflow[Any, Any]:
    async def step(ctx: Context) -> Any:
        return await ctx.wait_for(news)

    return one_step(step)


def asking(token: str | None = None) -> Workflow[Any, Any]:
    async def step(ctx: Context) -> Any:
        return await ctx.wait("reason", token=token)

    return one_step(step)


async def test_two_tenants_use_one_id_and_one_key(store):
    """S393, S394, S411: runs of one id and key, one for each tenant and one without: each has its own data."""

    async def step(ctx: Context) -> Any:
        await ctx.checkpoint([ctx.tenant, ctx.input])
        ctx.log("of", tenant=ctx.tenant)
        return f"{ctx.run_id} of {ctx.tenant}: {ctx.input}"

    flow = one_step(step)
    async with open_engine(store(), flow) as engine:
        for tenant in TENANTS:
            handle = await engine.start(flow, f"for {tenant}", run_id="r", idempotency_key="k", tenant=tenant)
            assert await handle.result() == f"r of {tenant}: for {tenant}"
            assert (handle.id, handle.tenant) == ("r", tenant)
        for tenant in ("a", "b"):
            run = await engine.scoped(tenant).get("r")
            assert run == await engine.get("r", tenant=tenant) == await engine.run("r", tenant=tenant).get()
            assert (run.id, run.tenant, run.idempotency_key) == ("r", tenant, "k")
            assert run.steps["step"].checkpoints == {"default": [tenant, f"for {tenant}"]}
            assert [line.data for line in await engine.scoped(tenant).run("r").logs()] == [{"tenant": tenant}]
            assert list(await engine.scoped(tenant).find()) == [run] == list(await engine.find(tenant=tenant))
        assert (await engine.get("r")).tenant is None, "outside a scope the id is that of the run without a tenant"
        assert await engine.count() == 3


async def test_an_operator_names_a_run_by_its_id_alone(store):
    """S395: outside a scope an id is enough, chosen or minted, unless several tenants use it; then one is named."""
    flow = asking()
    async with open_engine(store(), flow) as engine:
        minted = await engine.start(flow, 1, tenant="a")
        await engine.start(flow, 1, run_id="r", tenant="a")
        await until(engine, 2, status="waiting")
        for run_id in (minted.id, "r", "r\u241fa"):
            handle = engine.run(run_id)
            assert (await handle.get()).tenant == "a"
            assert (await handle.timeline())[0].kind
            assert (await handle.tree()).run.tenant == "a"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run("r").wait, LONG)
            await engine.run("r").resume("answer")
        assert await engine.run("r").result(LONG) == "answer"
        assert (await engine.get("r")).id == "r"
        await engine.start(flow, 1, run_id="r", tenant="b")
        for call in (engine.run("r").get, engine.run("r").cancel, lambda: engine.find(parent="r")):
            with pytest.raises(ValidationError, match="several tenants have a run r: name one"):
                await call()
        assert (await engine.get("r", tenant="b")).tenant == "b"
        with pytest.raises(RunNotFound, match="there is no run rr"):
            await engine.get("rr")


async def test_filters_and_pages_in_a_scope(store):
    """S403, S407: all filters hold together with the tenant, and pages of 10 give its 15 runs, then no more."""
    flow = asking()
    async with open_engine(store(), flow, worker=False) as engine:
        for number in range(15):
            for tenant in ("a", "b"):
                await engine.start(
                    flow, number, tenant=tenant, user=f"u{number % 3}", tags=["t"], run_id=f"{number}"
                )
        own = engine.scoped("a")
        first = await own.find(limit=10)
        second = await own.find(limit=10, cursor=first.cursor)
        assert (len(first), len(second), second.cursor) == (10, 5, None)
        assert {run.tenant for run in (*first, *second)} == {"a"}
        assert {run.id for run in (*first, *second)} == {f"{number}" for number in range(15)}
        foreign = await engine.scoped("b").find(limit=10)
        assert {run.tenant for run in await own.find(cursor=foreign.cursor)} == {"a"}, "a page of another's cursor"
        assert await own.count(user="u1", tags=["t"], status="draft") == 5
        assert await own.count(status="failed") == 0
        assert await engine.count() == 30


@in_virtual_time
async def test_the_scope_is_in_what_the_store_is_asked():
    """S406, S397: a scope stands for its tenant: what is asked and stored through it already names the tenant."""
    asked: list[Any] = []

    class Observed(FaultyStore):
        async def around(self, name: str, args: Any, act: Any) -> Any:
            asked.extend(args if name in {"find", "count"} else ())
            return await super().around(name, args, act)

    flow = asking()
    async with open_engine(Observed(MemoryStore()), flow) as engine:
        own = engine.scoped("a")
        assert (await (await own.start(flow, 1)).get()).tenant == "a"
        await own.find(status="waiting")
        await own.count()
        await own.pending()
    assert [query.tenant for query in asked] == ["a", "a", "a"]
    assert asked[0].status == ("waiting",)


@in_virtual_time
async def test_the_tenant_is_a_field_of_its_own():
    """S398: which field holds the tenant is not configurable here: meta and input never are taken for one."""
    flow = asking()
    async with open_engine(MemoryStore(), flow) as engine:
        run = await (await engine.start(flow, {"tenant": "b"}, tenant="a", meta={"tenant": "b"})).get()
        assert (run.tenant, run.meta, run.input) == ("a", {"tenant": "b"}, {"tenant": "b"})
        assert await engine.scoped("b").count() == 0


async def test_signals_stay_with_the_tenant(store):
    """Proves that a broadcast reaches those of its tenant, or those without one, and its id is theirs alone."""
    flow = listening()
    async with open_engine(store(), flow) as engine:
        handles = {tenant: await engine.start(flow, 1, tenant=tenant, run_id="r") for tenant in TENANTS}
        await until(engine, 3, status="waiting")
        await engine.scoped("a").emit(news, 1, id="once")
        assert await handles["a"].result(LONG) == 1
        assert await engine.count(status="waiting") == 2
        await engine.emit(news, 2, id="once")
        assert await handles[None].result(LONG) == 2
        assert await engine.count(status="waiting") == 1
        await engine.emit(news, 3, tenant="b", id="once", match={"id": "r"})
        assert await handles["b"].result(LONG) == 3
        again = await engine.start(flow, 1, tenant="b")
        await until(engine, 1, status="waiting")
        await engine.scoped("b").emit(news, 4, id="once")
        await engine.scoped("b").emit(news, 4, match={"id": "r"})
        assert (await again.get()).status == "waiting"
        await engine.scoped("b").emit(news, 5, run=again)
        assert await again.result(LONG) == 5


async def test_what_a_run_emits_stays_with_its_tenant(store):
    """Proves that `ctx.emit` reaches runs of the same tenant only: to it another tenant's run is not there."""
    found: dict[str | None, str] = {}
    minted: list[str] = []

    async def tell(ctx: Context) -> None:
        for target in ("own", "others", "others\u241fb", minted[0]):
            try:
                await ctx.emit(news, 1, run=target)
            except RunNotFound as error:
                found[target] = str(error)
        await ctx.emit(news, 2)

    flow, teller = listening(), Workflow[Any, Any]("teller")
    teller.add_step("tell", tell, attempts=1)
    async with open_engine(store(), flow, teller) as engine:
        foreign = await engine.start(flow, 1, tenant="b")
        minted.append(foreign.id)
        await engine.start(flow, 1, tenant="b", run_id="others")
        for tenant in ("a", None):
            own = await engine.start(flow, 1, run_id="own", tenant=tenant)
            more = await engine.start(flow, 1, tenant=tenant)
            await until(engine, 4, status="waiting")
            found.clear()
            await (await engine.start(teller, 1, tenant=tenant)).result(LONG)
            assert set(found) == {"others", "others\u241fb", foreign.id}
            assert found["others"] == "there is no run others"
            assert [await own.result(LONG), await more.result(LONG)] == [1, 2]
        assert await engine.scoped("b").count(status="waiting") == 2


async def test_chosen_tokens_are_each_tenants_own(store):
    """S413: runs of several tenants choose the same token; in each scope it opens the wait of that tenant's run."""
    flow = asking(TOKEN)
    async with open_engine(store(), flow) as engine:
        handles = {tenant: await engine.start(flow, 1, tenant=tenant) for tenant in TENANTS}
        await until(engine, 3, status="waiting")
        assert [wait.tenant for wait in await engine.scoped("a").pending()] == ["a"]
        await engine.scoped("b").resume(TOKEN, "for b")
        assert await handles["b"].result(LONG) == "for b"
        with pytest.raises(TokenInvalid):
            await engine.scoped("b").resume(TOKEN, "again")
        await engine.resume(TOKEN, "for none")
        assert await handles[None].result(LONG) == "for none"
        with pytest.raises(TokenInvalid):
            await engine.resume(TOKEN, "outside a scope it is the token of the run without a tenant")
        assert (await handles["a"].get()).status == "waiting"
        await engine.scoped("a").resume(TOKEN, "for a")
        assert await handles["a"].result(LONG) == "for a"


async def test_minted_tokens_need_no_scope(store):
    """S550: a minted token opens its wait from outside a scope and in the tenant's; no two are alike."""
    minted: list[str] = []

    async def step(ctx: Context) -> Any:
        async def tell(token: str) -> None:
            minted.append(token)

        return await ctx.wait("reason", on_token=tell)

    flow = one_step(step)
    async with open_engine(store(), flow) as engine:
        for tenant in ("a", "a", None):
            await engine.start(flow, 1, tenant=tenant)
            await until(engine, 1, status="waiting")
            await scope(engine, tenant if len(minted) == 1 else None).resume(minted[-1], "answer")
            await until(engine, len(minted), status="done")
    assert len(set(minted)) == 3
    assert all(len(token) > 20 for token in minted)


def test_digests_of_earlier_releases_are_those_of_runs_without_a_tenant():
    """Proves that waits that were stored before there were tenants are opened by their tokens still."""
    from streamline_trio._runtime.tokens import digest_of

    assert digest_of(TOKEN) == hashlib.sha256(TOKEN.encode()).hexdigest()
    assert len({digest_of(TOKEN), digest_of(TOKEN, "a"), digest_of("a" + TOKEN), digest_of(TOKEN[1:], "a")}) == 4


async def test_children_belong_to_the_parents_tenant(store):
    """Proves that children, branches and forks have the tenant, and are found by the ids they are told by."""
    seen: dict[str, Any] = {}

    async def small(ctx: Context) -> str:
        if ctx.input == "bad":
            raise ValueError("planned")
        return f"{ctx.tenant} {ctx.input}"

    leaf, tree = Workflow[Any, Any]("leaf"), Workflow[Any, Any]("tree")
    leaf.add_step("small", small, attempts=1)

    @tree.step
    async def grow(ctx: Context) -> list[Any]:
        one = await ctx.child(leaf, "one")
        both = await ctx.join({"x": Branch(leaf, "x"), "y": Branch(leaf, "y")})
        try:
            await ctx.child(leaf, "bad")
        except ChildFailed as error:
            seen["failed"] = error
        seen["branches"] = both.branches
        return [one, *(branch.output for branch in both.branches.values())]

    async with open_engine(store(), leaf, tree) as engine:
        own = engine.scoped("a")
        handle = await own.start(tree, 1, run_id="r")
        assert await handle.result(LONG) == ["a one", "a x", "a y"]
        assert await own.count() == await engine.count() == 5
        grown = await handle.tree()
        assert [child.run.parent and child.run.parent.run for child in grown.children] == ["r"] * 4
        assert {run.id for run in await own.find(parent="r")} == {run.id for run in await own.find(parent=handle)}
        assert len(await own.find(parent="r")) == len(await engine.find(parent="r")) == 4
        assert len(await engine.scoped("b").find(parent="r")) == 0
        for branch in seen["branches"].values():
            assert (await own.get(branch.run_id)).output == branch.output
        assert (await own.get(seen["failed"].run.id)).status == "failed"
        assert seen["failed"].meta["run_id"] == seen["failed"].run.id in str(seen["failed"])
        forked = await handle.fork("grow")
        run = await forked.wait(LONG)
        assert run.forked_from is not None
        assert (run.tenant, run.status, run.forked_from.run) == ("a", "done", "r")
        assert await own.get(forked.id) == run
        assert "\u241f" not in repr([run, grown, await own.find(), await handle.metrics()])


async def test_cancellation_reaches_the_children_of_the_tenant(store):
    """Proves that cancelling a tenant's parent cancels its child and branches, and no run of the same name."""
    ask, parent = Workflow[Any, Any]("ask"), Workflow[Any, Any]("parent")

    @ask.step
    async def wait(ctx: Context) -> Any:
        return await ctx.wait("reason")

    @parent.step
    async def hold(ctx: Context) -> None:
        if ctx.input == "child":
            await ctx.child(ask, 1)
        else:
            await ctx.join({"x": Branch(ask, 1), "y": Branch(ask, 2)})

    async with open_engine(store(), ask, parent) as engine:
        handles = [
            await engine.start(parent, kind, run_id=kind, tenant=tenant)
            for tenant in ("a", "b")
            for kind in ("child", "join")
        ]
        await until(engine, 6, workflow="ask", status="waiting")
        (child,) = await engine.scoped("a").find(parent="child")
        waiting = (await engine.scoped("a").get("child")).steps["hold"].wait
        assert waiting is not None
        assert waiting.child == child.id
        for handle in handles[:2]:
            await handle.cancel()
            with pytest.raises(RunCancelled, match=f"run {handle.id} was cancelled"):
                await handle.result(LONG)
        await until(engine, 5, tenant="a", status="cancelled")
        assert (await engine.scoped("a").get(child.id)).cancel_reason == "its parent, run child, is cancelled"
        assert await engine.count(tenant="b", status="waiting") == 5


@in_virtual_time
async def test_calls_to_the_outside_have_keys_of_their_own():
    """Proves that one id in two tenants makes two keys for a payment, each of them stable and ASCII."""
    keys: list[tuple[str | None, str]] = []

    async def step(ctx: Context) -> None:
        keys.append((ctx.tenant, ctx.idempotency_key()))
        if ctx.attempt == 1:
            raise ValueError("planned")

    flow = one_step(step, retry_delay=1)
    async with open_engine(MemoryStore(), flow) as engine:
        for tenant in ("a", "b", "\u00e4", None):
            await (await engine.start(flow, 1, run_id="r", tenant=tenant)).wait()
    assert len(keys) == 8
    assert len(set(keys)) == len({key for _, key in keys}) == 4
    assert all(key.isascii() for _, key in keys)
    assert (None, "r:step") in keys


@in_virtual_time
async def test_errors_show_the_id_that_the_tenant_knows():
    """Proves that what is told of a run, in its scope and outside, never shows under which name it is stored."""
    flow = asking()
    told: list[Any] = []
    async with open_engine(MemoryStore(), flow) as engine:
        engine.on("*", told.append)
        handle = await engine.scoped("a").start(flow, 1, run_id="r", idempotency_key="k")
        await idle()
        (wait,) = await engine.scoped("a").pending()
        assert (wait.run_id, wait.tenant) == ("r", "a")
        for call in (handle.retry, handle.resume, lambda: handle.resume("\ud800"), lambda: handle.output("step")):
            with pytest.raises(StreamlineError, match="run r") as caught:
                await call()
            told.append([str(caught.value), caught.value.meta])
        with pytest.raises(TimeoutError, match="run r timed out"):
            await handle.wait(1)
        await handle.withdraw("no")
        failed = await at_rest(handle)
        assert failed.status == "failed"
        second = await engine.scoped("a").start(flow, 1, run_id="s", idempotency_key="k")
        with pytest.raises(
            InvalidState, match="the idempotency key of run r has been taken since by run s"
        ) as caught:
            await handle.retry()
        assert caught.value.meta["holder"] == "s"
        told.extend([failed, await second.get(), repr(handle), await handle.timeline(), await handle.progress()])
    assert "\u241f" not in repr(told)


@in_virtual_time
async def test_what_several_runs_share_shows_the_id_that_the_tenant_knows():
    """Proves that debounced starts, bulk verbs and damage tell of a run by the id that its tenant knows."""
    told: list[Any] = []
    quiet: Workflow[Any, Any] = Workflow("quiet", debounce=Debounce(10), concurrency=Concurrency(1, None, "reject"))
    store = MemoryStore()

    @quiet.step(attempts=1)
    async def step(_ctx: Context) -> None:
        await trio.sleep(5)
        raise ValueError("planned")

    async with open_engine(store, quiet) as engine:
        own = engine.scoped("a")
        own.on("*", told.append)
        engine.on("*", told.append)
        for run_id in ("r", "s"):
            await (await own.start(quiet, 1, run_id=run_id)).wait()
        with pytest.raises(InvalidState, match="cannot start run r: the id is in use") as used:
            await own.start(quiet, 1, run_id="r")
        told.append([str(used.value), used.value.meta])
        assert await own.retry_all() == 1
        store.spoil("r\u241fa")
        with pytest.raises(DataCorruption, match="'r'") as damage:
            await own.get("r")
        told.append([str(damage.value), damage.value.meta])
        await trio.sleep(100)
    assert any(event.name == "workflow.failed" for event in told if not isinstance(event, list))
    assert "\u241f" not in repr(told)


@in_virtual_time
async def test_handles_of_two_tenants_are_two():
    """Proves that handles on runs of one id are told apart, also as keys of a dict, and name the tenant."""
    flow = asking()
    async with open_engine(MemoryStore(), flow) as engine:
        handles = [await engine.start(flow, 1, run_id="r", tenant=tenant) for tenant in TENANTS]
        assert len(set(handles)) == 3
        assert handles == [scope(engine, tenant).run("r") for tenant in TENANTS]
        assert [repr(handle) for handle in handles[1:]] == ["<RunHandle r of b>", "<RunHandle r>"]
        await idle()
        await engine.emit("hello", 1, run=handles[0])
        assert [len((await handle.get()).meta) for handle in handles] == [0, 0, 0]


@in_virtual_time
async def test_a_handle_never_comes_to_mean_another_run():
    """Proves that a handle on a run that is gone does not act on a run of the same id in another tenant."""
    flow = asking()
    async with open_engine(MemoryStore(), flow) as engine:
        gone = await engine.start(flow, 1, run_id="r")
        other = await engine.start(flow, 1, run_id="r", tenant="a")
        await idle()
        await gone.cancel()
        await idle()
        assert await engine.delete() == 1
        for call in (gone.get, gone.cancel, lambda: engine.emit(news, 1, run=gone)):
            with pytest.raises(RunNotFound, match="there is no run r"):
                await call()
        assert (await other.get()).status == "waiting"
        assert (await engine.get("r")).tenant == "a", "by its id alone it is the only run of that name"


async def test_what_a_dead_worker_leaves_is_done_in_the_tenant(store):
    """S409: a worker dies with a tenant's run: any other one takes it over, and it is that tenant's still."""
    parent = Workflow[Any, Any]("parent")
    at_work = trio.Event()
    lives = list[str]()

    @parent.step
    async def hold(ctx: Context) -> Any:
        lives.append(ctx.run_id)
        if len(lives) == 1:
            at_work.set()
            await trio.sleep(LONG)
        return ctx.tenant

    shared = MemoryStore(exclusive=False) if store is MemoryStore else store()
    async with open_engine(shared, parent, lease=1) as survivor:
        async with open_engine(shared, parent, lease=1, name="victim") as victim:
            handle = await victim.start(parent, 1, run_id="r", tenant="a")
            with trio.fail_after(LONG):
                await at_work.wait()
            await crash(victim)
        assert await survivor.scoped("a").run("r").result(LONG) == "a"
        assert (await survivor.get(handle.id)).recoveries == 1
        assert lives == ["r", "r"]
