"""No verb in one tenant's scope reads or changes another tenant's run; a new verb must have a case here."""

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.lowlevel

from streamline_trio import (
    Engine,
    InvalidState,
    MemoryStore,
    Recurrence,
    RunHandle,
    RunNotFound,
    ScheduleNotFound,
    Schedules,
    Signal,
    StepContext,
    TenantRequired,
    TokenInvalid,
    ValidationError,
    Workflow,
    open_engine,
)
from tests.scenarios.worlds import idle, in_virtual_time

TOKEN = "a token of the caller"  # noqa: S105 - it opens nothing but the wait of a test
note = Signal("note", int)
flow: Workflow[Any, Any] = Workflow("flow")
minted: list[str] = []


@flow.step(keep_outputs=1)
async def first(_ctx: StepContext[Any, Any]) -> int:
    return 1


@flow.step
async def second(ctx: StepContext[Any, Any]) -> Any:
    if ctx.input == "chosen":
        return await ctx.wait("reason", token=TOKEN)

    async def tell(token: str) -> None:
        minted.append(token)

    return await ctx.wait("reason", on_token=tell)


async def stream(handle: RunHandle) -> None:
    async for _frame in handle.stream():
        pass


ON_HANDLE: dict[str, Callable[[RunHandle], Awaitable[object]]] = {
    "get": lambda run: run.get(),
    "wait": lambda run: run.wait(timeout=5),
    "result": lambda run: run.result(timeout=5),
    "output": lambda run: run.output(first),
    "logs": lambda run: run.logs(),
    "metrics": lambda run: run.metrics(),
    "progress": lambda run: run.progress(),
    "timeline": lambda run: run.timeline(),
    "tree": lambda run: run.tree(),
    "stream": stream,
    "resume": lambda run: run.resume(1),
    "approve": lambda run: run.approve(),
    "reject": lambda run: run.reject(),
    "withdraw": lambda run: run.withdraw(),
    "cancel": lambda run: run.cancel(),
    "pause": lambda run: run.pause(),
    "unpause": lambda run: run.unpause(),
    "rewind": lambda run: run.rewind(first),
    "retry": lambda run: run.retry(),
    "fork": lambda run: run.fork(first),
    "pin_output": lambda run: run.pin_output(1, first),
    "drive": lambda run: run.drive(),
}

BY_ID: dict[str, Callable[[Engine, Any], Awaitable[object]]] = {
    "get": lambda engine, run: engine.get(run),
    "emit": lambda engine, run: engine.emit(note, 1, run=run),
}

BY_TOKEN: dict[str, Callable[[Engine, str], Awaitable[object]]] = {
    "resume": lambda engine, token: engine.resume(token, 1),
    "withdraw": lambda engine, token: engine.withdraw(token),
    "approve": lambda engine, token: engine.approve(token),
    "reject": lambda engine, token: engine.reject(token),
}

OF_MANY: dict[str, tuple[Callable[[Engine], Awaitable[Any]], Any]] = {
    "find": (lambda engine: engine.find(), []),
    "count": (lambda engine: engine.count(), 0),
    "delete": (lambda engine: engine.delete(), 0),
    "pending": (lambda engine: engine.pending(), []),
    "cancel_all": (lambda engine: engine.cancel_all(), 0),
    "retry_all": (lambda engine: engine.retry_all(), 0),
}

DAILY = Recurrence.daily("09:00", "Europe/Berlin")

ON_SCHEDULE: dict[str, Callable[..., Awaitable[object]]] = {
    "get": lambda of, **whose: of.get("s", **whose),
    "pause": lambda of, **whose: of.pause("s", "reason", **whose),
    "unpause": lambda of, **whose: of.unpause("s", **whose),
    "run_now": lambda of, **whose: of.run_now("s", **whose),
    "update": lambda of, **whose: of.update("s", priority=7, **whose),
    "delete": lambda of, **whose: of.delete("s", **whose),
    "preview": lambda of, **whose: of.preview("s", 2, **whose),
}

NO_TENANTS: tuple[Any, ...] = ("", None, 5, "a\nb", "a\u241fb", "x" * 201, "\ud800")

APART = {  # each has a test of its own below
    *("start", "run", "scoped", "worker_id"),
    *("events", "on", "stats", "versions", "workers"),
    *("schedule", "schedules"),
}


def members(kind: type) -> set[str]:
    own = (vars(each) for each in kind.__mro__ if each.__module__.startswith("streamline_trio"))
    return {name for each in own for name in each if not name.startswith("_")}


def test_every_verb_has_a_case():
    """Proves that no public member of an engine or a handle is left out of these tests."""
    assert members(Engine) == {*BY_ID, *BY_TOKEN, *OF_MANY, *APART}
    verbs = {name for name in members(RunHandle) if inspect.isfunction(getattr(RunHandle, name))}
    assert verbs == {*ON_HANDLE}
    assert members(RunHandle) - verbs == {"tenant"}
    assert members(Schedules) == {*ON_SCHEDULE, "find"}


@asynccontextmanager
async def of_tenant_a(state: str = "parked", **options: Any) -> AsyncGenerator[Engine]:
    """Tenant a's run `r`, and its document, which must not change while the block lasts."""
    store = MemoryStore()
    minted.clear()
    async with open_engine(store, flow, **options) as engine:
        handle = await engine.start(flow, "chosen" if state == "chosen" else 1, run_id="r", tenant="a")
        await idle()
        if state == "settled":
            await handle.cancel()
        if state == "failed":
            await handle.withdraw()
        await idle()
        (before,) = await store.load_many(["r\u241fa"])
        assert before is not None
        yield engine
        await idle()
        assert await store.load("r\u241fa") == before


async def error_of(call: Awaitable[object]) -> tuple[Any, ...]:
    """All that a caller learns of what was refused."""
    with pytest.raises((RunNotFound, TokenInvalid)) as caught:
        await call
    error = caught.value
    return (
        type(error),
        str(error),
        error.meta,
        error.args,
        error.__cause__,
        error.__notes__ if hasattr(error, "__notes__") else None,
    )


@pytest.mark.parametrize("state", ["parked", "settled", "failed"])
@pytest.mark.parametrize("name", ON_HANDLE)
@in_virtual_time
async def test_a_handle_in_another_scope_finds_no_run(name, state):
    """S394, S400, S401: to each verb of another tenant the run is not there: as before its start, and unchanged."""
    async with of_tenant_a(state) as engine, open_engine(MemoryStore(), flow) as empty:
        for scope in ("b", "a\u00e0", "A"):
            found = await error_of(ON_HANDLE[name](engine.scoped(scope).run("r")))
            assert found == await error_of(ON_HANDLE[name](empty.scoped(scope).run("r")))
            assert found[0] is RunNotFound


@pytest.mark.parametrize("name", BY_ID)
@in_virtual_time
async def test_an_id_in_another_scope_finds_no_run(name):
    """S394, S413: verbs of the engine that name a run do not find another tenant's, by id or by its handle."""
    async with of_tenant_a() as engine:
        other = engine.scoped("b")
        wanted = RunNotFound, "there is no run r", {"run_id": "r"}
        assert (await error_of(BY_ID[name](other, "r")))[:3] == wanted
        assert (await error_of(BY_ID[name](other, "r\u241fa")))[:2] == wanted[:2], "nor by how it is stored"
        if name == "emit":
            await other.start(flow, 1, run_id="r", delay=100)
            assert (await error_of(BY_ID[name](other, engine.scoped("a").run("r"))))[:3] == wanted


@pytest.mark.parametrize("state", ["parked", "chosen"])
@pytest.mark.parametrize("name", BY_TOKEN)
@in_virtual_time
async def test_a_token_is_useless_in_another_scope(name, state):
    """S413, S550: whoever has a tenant's token learns as much by it in another scope as by an invented one."""
    async with of_tenant_a(state) as engine:
        token = minted[-1] if state == "parked" else TOKEN
        found = await error_of(BY_TOKEN[name](engine.scoped("b"), token))
        assert found == await error_of(BY_TOKEN[name](engine.scoped("b"), "an invented token, of nobody"))
        assert found[0] is TokenInvalid


@pytest.mark.parametrize("name", ON_SCHEDULE)
@in_virtual_time
async def test_a_schedule_in_another_scope_is_none(name):
    """S394, S405: to each verb of another tenant, and outside every scope, the schedule is not there."""
    store = MemoryStore()
    async with open_engine(store, flow) as engine, open_engine(MemoryStore(), flow) as empty:
        await engine.scoped("a").schedule(flow, 1, every=DAILY, id="s")
        before = await store.sides("schedule")
        for scope in (engine.scoped("b"), engine.scoped("A"), engine):
            with pytest.raises(ScheduleNotFound) as caught:
                await ON_SCHEDULE[name](scope.schedules)
            with pytest.raises(ScheduleNotFound) as alone:
                await ON_SCHEDULE[name](empty.scoped("b").schedules)
            assert (str(caught.value), caught.value.meta) == (str(alone.value), alone.value.meta)
        with pytest.raises(ValidationError, match="confined to tenant 'b', not 'a'"):
            await ON_SCHEDULE[name](engine.scoped("b").schedules, tenant="a")
        assert await store.sides("schedule") == before
        assert await engine.count() == 0
        await ON_SCHEDULE[name](engine.schedules, tenant="a")


@in_virtual_time
async def test_schedules_of_one_name_are_each_tenants_own():
    """S405, S411: two tenants and nobody have a schedule of one id; each lists, moves and deletes its own."""
    async with open_engine("memory:", flow) as engine:
        own = {tenant: engine if tenant is None else engine.scoped(tenant) for tenant in ("a", "b", "b\\n", None)}
        for number, scope in enumerate(own.values()):
            await scope.schedule(flow, number, every=DAILY, id="s")
        await own["a"].schedule(flow, 9, every=DAILY, id="t")
        await own["a"].schedules.delete("s")
        await own["b"].schedules.pause("s")
        assert [each.id for each in await own["a"].schedules.find()] == ["t"]
        for tenant in ("b", "b\\n"):
            (found,) = await own[tenant].schedules.find()
            assert (found.id, found.tenant, found.paused) == ("s", tenant, tenant == "b")
        page = await own["a"].schedules.find(limit=1)
        everybodys = await engine.schedules.find(limit=1)
        assert page.cursor is None
        assert everybodys.cursor is not None
        (found,) = await own["b"].schedules.find(cursor=everybodys.cursor)
        assert found.tenant == "b", "the cursor of somebody else leads nowhere else"
        run = await own["b"].schedules.run_now("s")
        assert (run.tenant, (await run.get()).id) == ("b", run.id)
        assert (await own["b"].schedules.get("s")).last_run == run.id
        assert await own["a"].count() == 0
        with pytest.raises(ValidationError, match="confined to tenant 'b', not 'a'"):
            await own["b"].schedule(flow, 1, every=DAILY, tenant="a")
        with pytest.raises(ValidationError, match="confined to tenant 'b', not 'a'"):
            await own["b"].schedules.find(tenant="a")


@in_virtual_time
async def test_bulk_verbs_stay_in_their_scope():
    """S393, S405: what is cancelled, retried and deleted in a scope are its runs, also those of the same ids."""
    store = MemoryStore()
    async with open_engine(store, flow) as engine:
        for tenant in ("a", "b", None):
            for run_id in ("r", "s"):
                await engine.start(flow, 1, run_id=run_id, tenant=tenant)
        await idle()
        own = engine.scoped("a")
        for tenant in ("a", "b"):
            await engine.scoped(tenant).run("s").withdraw()
        await idle()
        assert await own.cancel_all() == 1
        assert [run.status for run in await own.find(sort="created_at")] == ["cancelled", "failed"]
        assert await own.retry_all() == 1
        assert [run.status for run in await engine.scoped("b").find(sort="created_at")] == ["waiting", "failed"]
        assert await own.delete() == 1
        assert await engine.count(tenant="b") == 2
        assert await engine.count() == 5


@pytest.mark.parametrize("name", OF_MANY)
@in_virtual_time
async def test_what_is_asked_of_many_runs_is_asked_of_ones_own(name):
    """S393, S405: lists, counts and deletions in a scope are of its runs; there a filter for others is refused."""
    ask, nothing = OF_MANY[name]
    async with of_tenant_a("settled") as engine:
        found = await ask(engine.scoped("b"))
        assert (list(found) if isinstance(nothing, list) else found) == nothing
        with pytest.raises(ValidationError, match="confined to tenant 'b', not 'a'"):
            await getattr(engine.scoped("b"), name)(tenant="a")


@in_virtual_time
async def test_a_start_in_another_scope_is_another_run():
    """S405, S399: an id and a key that are in use in one tenant are free in another; each has its own run."""
    async with of_tenant_a() as engine:
        with pytest.raises(InvalidState, match="cannot start run r: the id is in use"):
            await engine.scoped("a").start(flow, 1, run_id="r")
        own = await engine.scoped("b").start(flow, 2, run_id="r", idempotency_key="k")
        assert (own.id, own.tenant) == ("r", "b")
        with pytest.raises(ValidationError, match="confined to tenant 'b', not 'a'"):
            await engine.scoped("b").start(flow, 2, tenant="a")
        await idle()
        (run,), (other,) = [list(await engine.scoped(tenant).find()) for tenant in "ab"]
        assert (run.id, run.tenant, run.input) == ("r", "a", 1)
        assert (other.id, other.tenant, other.input) == ("r", "b", 2)


@in_virtual_time
async def test_a_listener_in_a_scope_hears_of_its_runs_only():
    """S393: events of other tenants, and those of no run, do not reach who listens in a scope."""
    heard: list[Any] = []
    everything: list[Any] = []
    async with of_tenant_a() as engine:
        other = engine.scoped("b")
        other.on("*", heard.append)
        engine.on("*", everything.append)
        async with other.events() as own, other.events(run="r") as of_r:
            for tenant in ("c", None, "b"):
                await engine.start(flow, 1, run_id="r", tenant=tenant)
                await idle()
            for listener in (own, of_r):
                assert (await listener.__anext__()).tenant == "b"
    assert {event.tenant for event in heard} == {"b"}
    assert {event.tenant for event in everything} == {"b", "c", None}
    assert {event.run_id for event in everything} == {"r"}


@in_virtual_time
async def test_what_tells_of_all_tenants_is_not_told_in_a_scope():
    """Proves that counts over the store stay outside a scope, but those of versions, which are of its own runs."""
    async with of_tenant_a() as engine:
        with pytest.raises(InvalidState, match="stats tells of all tenants"):
            await engine.scoped("a").stats()
        with pytest.raises(InvalidState, match="workers tells of all tenants"):
            await engine.scoped("a").workers()
        assert [(await engine.scoped(tenant).versions(flow))[0].active for tenant in "ab"] == [1, 0]
        assert (await engine.versions(flow))[0].active == 1
        assert engine.scoped("b").worker_id == engine.worker_id


@in_virtual_time
async def test_a_scope_cannot_be_widened():
    """S396: a scope of a scope is the same tenant's or refused; nothing that is no tenant makes a scope."""
    async with open_engine(MemoryStore(), flow) as engine:
        one = engine.scoped("a")
        assert (await one.scoped("a").start(flow, 1)).tenant == "a"
        calls: tuple[Callable[[], object], ...] = (
            lambda: one.scoped("b"),
            lambda: one.run("r", tenant="b"),
            *(partial(engine.scoped, wrong) for wrong in NO_TENANTS),
            lambda: engine.run("r", tenant=""),
        )
        for call in calls:
            with pytest.raises(ValidationError):
                call()
        for wrong in ("", *NO_TENANTS[2:]):
            with pytest.raises(ValidationError, match="a tenant is a text of 1 to 200 printable characters"):
                await engine.start(flow, 1, tenant=wrong)
            with pytest.raises(ValidationError, match="a tenant is a text"):
                await engine.find(tenant=wrong)
            with pytest.raises(ValidationError, match="a tenant is a text"):
                await engine.emit(note, 1, tenant=wrong)
        with pytest.raises(ValidationError, match="run_id cannot contain"):
            await engine.start(flow, 1, run_id="r\u241fa")
        with pytest.raises(ValidationError, match="confined to tenant 'a', not 'b'"):
            await one.emit(note, 1, tenant="b")
        with pytest.raises(ValidationError, match="confined to tenant 'a', not 'b'"):
            await one.get("r", tenant="b")


@in_virtual_time
async def test_an_engine_that_demands_a_tenant():
    """S392, S399, S410: with tenancy="required" each verb outside a scope is refused, before it reads anything."""
    async with of_tenant_a(tenancy="required") as engine:
        for call in ON_HANDLE.values():
            with pytest.raises(TenantRequired, match="demands a tenant"):
                await call(engine.run("r"))
        for by_id in BY_ID.values():
            with pytest.raises(TenantRequired):
                await by_id(engine, "r")
        for by_token in BY_TOKEN.values():
            with pytest.raises(TenantRequired):
                await by_token(engine, minted[-1])
        for ask, _ in OF_MANY.values():
            with pytest.raises(TenantRequired):
                await ask(engine)
        for on_schedule in ON_SCHEDULE.values():
            with pytest.raises(TenantRequired):
                await on_schedule(engine.schedules)
        made: tuple[Awaitable[object], ...] = (engine.schedule(flow, 1, every=DAILY), engine.schedules.find())
        for refused in (*made, engine.start(flow, 1), engine.emit(note, 1), engine.find(parent="r")):
            with pytest.raises(TenantRequired):
                await refused
        with pytest.raises(TenantRequired):
            engine.events(run="r")


@in_virtual_time
async def test_an_engine_that_demands_a_tenant_goes_on_by_itself():
    """S409: with a tenant named all verbs work, and what the engine does by itself needs none: claims, timers."""
    sleepy: Workflow[Any, Any] = Workflow("sleepy")

    @sleepy.step
    async def nap(ctx: StepContext[Any, Any]) -> str | None:
        await ctx.sleep(100)
        return ctx.tenant

    async with open_engine(MemoryStore(), sleepy, tenancy="required") as engine:
        handle = await engine.start(sleepy, 1, tenant="a", delay=50)
        assert await handle.result() == "a"
        assert (await engine.get(handle.id, tenant="a")).tenant == "a"
        assert await engine.run(handle.id, tenant="a").result() == "a"
        assert await engine.count(tenant="a") == await engine.scoped("a").count() == 1
        assert await engine.count(tenant="b") == 0
        assert (await engine.stats()).by_status["done"] == 1
        assert len(await engine.workers()) == 1
        async with engine.events() as events:
            await engine.start(sleepy, 1, tenant="b")
            assert (await events.__anext__()).tenant == "b"
        assert await engine.delete(tenant="b") == 0
        assert await engine.delete(tenant="a") == 1


@pytest.mark.parametrize("wrong", ["strict", None, True])
async def test_tenancy_is_one_of_two(wrong):
    """Proves that another word for it is refused, not taken for `optional`."""
    with pytest.raises(ValidationError, match="tenancy is one of"):
        async with open_engine("memory:", flow, tenancy=wrong):
            await trio.lowlevel.checkpoint()
