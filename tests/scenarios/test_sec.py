"""What comes from outside is checked where it enters and is data ever after: scenarios S540 to S551."""

import logging
from typing import Any

import msgspec
import pytest
import trio
import trio.lowlevel

from streamline_trio import (
    DefinitionError,
    MemoryStore,
    SqliteStore,
    StepContext,
    StepOptions,
    StepSpec,
    SuspensionError,
    TokenInvalid,
    Workflow,
    open_engine,
)
from streamline_trio.stores.mongo import _stream
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, one_step, settled

Context = StepContext[Any, Any]
ODD_KEYS = (
    "a.b",
    "$where",
    "$set",
    "__proto__",
    "__class__",
    "__dict__",
    "constructor",
    "",
    " ",
    "a\x00b",
    "\u241f",
)


async def handler(_ctx: Context) -> None:
    """Does nothing."""


@pytest.fixture(params=["memory", "sqlite", "mongodb"])
def store(request, tmp_path, monkeypatch):
    """A store of each kind, or its URL."""
    if request.param == "memory":
        return MemoryStore()
    if request.param == "sqlite":
        return SqliteStore(tmp_path / "runs.db")
    monkeypatch.setattr(_stream, "PATIENCE", 0.05)
    return request.getfixturevalue("databases").url()


@pytest.mark.parametrize(
    "bad",
    [
        *("$gt", {"$ne": ""}, "../etc/passwd", "..%2f..%2f", "<script>alert(1)</script>", "   ", "a\x00b"),
        *("with.dot", "with/slash", "with space", "", None, 5, "x" * 101, "x" * 200),
    ],
)
def test_a_bad_id_is_refused(bad: Any) -> None:
    """S540, S541, S543: no operator, path, markup, white space or length gets into an id, of a workflow or step."""
    with pytest.raises(DefinitionError, match="1 to 100 letters, digits, '-' or '_'"):
        Workflow(bad)
    with pytest.raises(DefinitionError, match=r"1 to 100 letters, digits, '-' or '_'|option 'id'") as caught:
        Workflow("flow").add_step(bad, handler)
    assert caught.value.meta["workflow"] == "flow"


@pytest.mark.parametrize("good", ["my-valid_id-123", "CamelCase123", "x" * 100])
def test_a_good_id_is_taken(good: str) -> None:
    """S541, S542: letters, digits, dashes and underscores, 100 of them, make an id."""
    workflow: Workflow[Any, Any] = Workflow(good)
    assert (workflow.id, workflow.add_step(good, handler).id) == (good, good)


async def test_a_workflow_has_steps_with_handlers_each_once() -> None:
    """S544, S546: without steps, with a step twice, or with one that has no handler, a workflow is refused."""
    with pytest.raises(DefinitionError, match="it has no steps"):
        async with open_engine("memory:", Workflow[Any, Any]("empty")):
            await trio.lowlevel.checkpoint()
    twice: Workflow[Any, Any] = Workflow("twice")
    twice.add_step("one", handler)
    with pytest.raises(DefinitionError, match="one"):
        twice.add_step("one", handler)
    missing: Any = None
    with pytest.raises(DefinitionError, match="lacking"):
        Workflow[Any, Any]("handlers").add_step("lacking", missing)
    with pytest.raises(DefinitionError, match="lacking"):
        Workflow[Any, Any]("handlers", steps={"lacking": missing})


@pytest.mark.parametrize(
    ("option", "bad"),
    [
        *(("attempts", bad) for bad in (-1, 2.5, 0)),
        *(("timeout", bad) for bad in (0, -100)),
        *(("backoff", bad) for bad in (0, "random")),
        ("retry_delay", -10),
    ],
)
def test_bad_retry_settings_are_refused(option: str, bad: Any) -> None:
    """S545: as an option of a step, of a spec and as a default for all; no attempt at all is no setting here."""
    said: Any = {option: bad}
    for define in (
        lambda: Workflow[Any, Any]("flow").add_step("step", handler, **said),
        lambda: Workflow[Any, Any]("flow", steps={"step": StepSpec(handler, **said)}),
        lambda: Workflow[Any, Any]("flow", defaults=StepOptions(**said)).add_step("step", handler),
    ):
        with pytest.raises(DefinitionError, match=option):
            define()


def test_good_retry_settings_are_taken() -> None:
    """S545: one attempt, a short timeout, names and factors of backoff are fine."""
    for backoff in ("exponential", "linear", "fixed", 3):
        step = Workflow[Any, Any]("flow").add_step("step", handler, attempts=1, timeout=0.1, backoff=backoff)
        assert (step.options.attempts, step.options.timeout) == (1, 0.1)


async def test_odd_keys_are_keys(store):
    """S547, S548: names that mean something to Python, Mongo or a path are stored as they are and mean nothing."""
    odd = {key: {key: number} for number, key in enumerate(ODD_KEYS)}

    async def step(ctx: Context) -> Any:
        await ctx.set(**{"a.b": 1, "$where": 2, "__class__": 3, "__proto__": {"x": 4}})
        await ctx.checkpoint(odd, "a.b/$where")
        return [ctx.input, ctx.state, await ctx.once("$where.a/b", lambda: odd)]

    flow: Workflow[Any, Any] = Workflow("flow", state=lambda _input: {"a": {"b": 0}})
    flow.add_step("step", step)
    async with open_engine(store, flow) as engine:
        meta = {"a.b": 1, "$where": 2}
        handle = await engine.start(flow, odd, meta=meta, run_id="$ne.a/b", user="$gt", tags=["a.b", "$in"])
        state = {"a": {"b": 0}, "a.b": 1, "$where": 2, "__class__": 3, "__proto__": {"x": 4}}
        assert await handle.result(20) == [odd, state, odd]
        run = await engine.get("$ne.a/b")
        assert (run.input, run.state, run.meta, run.user, run.tags) == (odd, state, meta, "$gt", ("a.b", "$in"))
        assert run.steps["step"].checkpoints == {"a.b/$where": odd}
        assert [found.id for found in await engine.find(meta={"$where": 2}, user="$gt", tags=["$in"])] == [run.id]
        assert await engine.count(meta={"a.b": {"$gt": 0}}) == await engine.count(user="$ne") == 0
        assert await engine.count(meta={"a": {"b": 1}}) == 0
    assert type(object()).__class__ is type


async def test_odd_tenants_are_texts(store):
    """S547: a tenant's name means nothing to a store, however it looks, and is nobody else's."""
    flow = one_step(handler)
    names = ("$ne", "a.b", "../a", "%", "_", "' OR 1=1 --", "a/b", " ", "A", "a", "\u00e9", "e\u0301", "x" * 200)
    async with open_engine(store, flow) as engine:
        for tenant in names:
            await engine.start(flow, tenant, tenant=tenant, run_id="r", idempotency_key="k", delay=1000)
        for tenant in names:
            own = engine.scoped(tenant)
            assert [run.input for run in await own.find()] == [tenant]
            assert (await own.get("r")).tenant == tenant
            assert await own.count() == 1


@in_virtual_time
async def test_a_cancelled_run_takes_no_updates():
    """S549: what a handler does after its run was cancelled changes nothing of it, when it ends as little."""
    late: list[str] = []

    async def step(ctx: Context) -> str:
        try:
            await trio.sleep(5)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            late.append("ended")
        return ctx.run_id

    flow = one_step(step)
    async with open_engine(MemoryStore(), flow) as engine:
        handle = await engine.start(flow)
        await trio.sleep(0.05)
        await handle.cancel()
        run = await handle.wait()
        assert (run.status, run.output, late) == ("cancelled", None, ["ended"])
        await trio.sleep(100)
        assert await handle.get() == run


@in_virtual_time
async def test_tokens_are_random():
    """S550: two waits of one step have unlike, long tokens; an empty or invented one opens nothing."""
    tokens: list[str] = []

    async def step(ctx: Context) -> None:
        async def keep(token: str) -> None:
            tokens.append(token)

        await ctx.wait("one", on_token=keep)
        await ctx.wait("two", on_token=keep)

    flow = one_step(step)
    async with open_engine(MemoryStore(), flow) as engine:
        handle = await engine.start(flow)
        await idle()
        for wrong in ("", "invented", tokens[0][:-1], tokens[0] + "x", tokens[0].swapcase(), 5, None):
            with pytest.raises(TokenInvalid):
                await engine.resume(wrong, 1)  # type: ignore[arg-type]  # callers are not all type-checked
        await engine.resume(tokens[0], 1)
        await idle()
        with pytest.raises(TokenInvalid):
            await engine.resume(tokens[0], 1)
        await engine.resume(tokens[1], 1)
        assert (await handle.wait()).status == "done"
    assert len(set(tokens)) == 2
    assert all(len(token) > 20 for token in tokens)


@in_virtual_time
async def test_a_compensation_cannot_suspend():
    """S551: it is not looked for when the workflow is defined; a compensation that tries fails loudly instead."""
    flow: Workflow[Any, Any] = Workflow("flow")

    @flow.step
    async def book(_ctx: Context) -> None:
        pass

    @book.compensate(attempts=1)
    async def unbook(ctx: Context) -> None:
        await ctx.sleep(1)

    @flow.step(attempts=1)
    async def fail(_ctx: Context) -> None:
        raise ValueError("planned")

    run = await settled(flow)
    undone = run.steps["book"].compensation
    assert undone is not None
    assert undone.error is not None
    assert (run.status, undone.error.code) == ("compensation_failed", SuspensionError.code)


class Secret(msgspec.Struct):
    """What must not be logged."""

    number: str


@in_virtual_time
async def test_nothing_that_users_hand_over_is_logged(caplog):
    """Proves that inputs, states, outputs, payloads, tokens and meta are in no log line, whatever happens."""
    number = "4111-1111-1111-1111"
    caplog.set_level(logging.DEBUG)

    async def step(ctx: Context) -> Any:
        await ctx.set(number=number)
        if ctx.attempt == 1:
            raise ValueError("planned")
        await ctx.wait("reason", token=f"{number} as a token", meta={"number": number})
        return ctx.input

    flow: Workflow[Secret, Any] = Workflow("flow", input=Secret)
    flow.add_step("step", step, attempts=2, retry_delay=1)
    async with open_engine(MemoryStore(), flow) as engine:
        handle = await engine.start(flow, Secret(number), meta={"number": number}, tenant="acme")
        await trio.sleep(5)
        assert (await at_rest(handle)).status == "waiting"
        with pytest.raises(TokenInvalid) as caught:
            await engine.resume(f"{number} as another token", number)
        assert number not in str(caught.value) + repr(caught.value.meta)
        await engine.scoped("acme").resume(f"{number} as a token", number)
        assert (await handle.wait()).status == "done"
    assert number not in caplog.text
