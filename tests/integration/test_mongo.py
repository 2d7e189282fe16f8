"""The engine on MongoDB: sleeps, waits, signals, large payloads, two engines, lost answers, full documents."""

from functools import partial
from urllib.parse import urlsplit

import msgspec
import pytest
import trio

from streamline_trio import Signal, StepContext, Workflow, open_engine
from streamline_trio.stores.mongo import _stream
from tests.mongo_proxy import Proxy
from tests.scenarios.worlds import one_step


class Order(msgspec.Struct):
    item: str


class State(msgspec.Struct):
    order: Order
    seen: list[str] = []


approved = Signal("approved", str)
order = Workflow("order", input=Order, state=State)


@order.step
async def reserve(ctx: StepContext[Order, State]) -> str:
    await ctx.set(seen=["reserve"])
    await ctx.sleep(0.05)
    return f"reserved {ctx.input.item}"


@order.step
async def decide(ctx: StepContext[Order, State]) -> str:
    return await ctx.wait_for(approved)


@order.step
async def sign(ctx: StepContext[Order, State]) -> str:
    await ctx.wait("signature")
    return "x" * 400_000


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    """Closing a change stream waits no longer than this."""
    monkeypatch.setattr(_stream, "PATIENCE", 0.05)


async def test_a_workflow_runs_on_mongo(databases):
    """A run sleeps, takes a signal, waits for a person and ends with a large result; its document tells of it."""
    url = databases.url()
    async with open_engine(url, order) as engine, engine.events("workflow.waiting") as waits:
        handle = await engine.start(order, Order("book"), idempotency_key="o-1", tags=["express"])
        await engine.emit(approved, "by Ada", run=handle)
        with trio.fail_after(20):
            while getattr(await anext(waits), "step", None) != "sign":
                pass
        await handle.resume("signature")
        assert await handle.result() == "x" * 400_000
        assert [run.id for run in (await engine.find(tags=["express"])).items] == [handle.id]
        stored = databases.of(url).runs.find_one({"input.item": "book"})
        assert stored["steps"]["decide"]["output"] == "by Ada"
        assert stored["state"] == {"order": {"item": "book"}, "seen": ["reserve"]}
        assert await engine.delete() == 1
    assert databases.of(url).payloads.count_documents({}) == 0
    assert databases.of(url).runs.count_documents({}) == 0


async def application(url):
    """What users write: nothing in it knows of the store but the URL. Returns what it sees of its runs."""
    async with open_engine(url, order) as engine, engine.events("workflow.waiting") as waits:
        handle = await engine.start(
            order, Order("book"), idempotency_key="o-1", tags=["express"], meta={"level": 1}
        )
        assert await engine.start(order, Order("again"), idempotency_key="o-1") == handle
        other = await engine.start(order, Order("pen"), delay=3600)
        await engine.emit(approved, "by Ada", run=handle)
        with trio.fail_after(20):
            while getattr(await anext(waits), "step", None) != "sign":
                pass
        waiting = await handle.get()
        await handle.resume("signature")
        result = await handle.result()
        await other.cancel("not wanted")
        found = [await handle.get(), await other.wait()]
        by_tag = (await engine.find(tags=["express"], meta={"level": 1})).items
        assert [run.id for run in by_tag] == [handle.id]
        counts = [await engine.count(status=status) for status in ("done", "cancelled", "waiting")]
        return waiting.status, waiting.current_step, result, [(run.status, run.state) for run in found], counts


async def test_the_same_application_runs_on_every_store(databases, tmp_path):
    """Unchanged code sees the same on memory, on SQLite and on MongoDB: only the URL differs."""
    outcomes = [await application(url) for url in ("memory:", f"sqlite:///{tmp_path}/runs.db", databases.url())]
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert outcomes[0][0] == "waiting"


async def test_what_one_engine_writes_reaches_another_at_once(databases):
    """A start, an answer and the end are heard through the change stream, long before anybody would poll."""

    async def handler(ctx):
        return await ctx.wait("go")

    url = databases.url()
    flow = one_step(handler)
    opening = partial(open_engine, url, flow, poll_interval=3600, lease=3600)
    async with opening() as worker, opening(worker=False) as client:
        with trio.fail_after(20):
            async with worker.events("workflow.waiting") as waits:
                handle = await client.start(flow)
                await anext(waits)
            await handle.resume("gone")
            assert await handle.result() == "gone"


@pytest.mark.parametrize("skip", range(6))
async def test_no_answer_that_is_lost_changes_the_outcome(databases, mongo_server, skip, caplog):
    """Whichever write of a run loses its answer, each step runs once and the run is done."""
    calls = []
    flow = Workflow("flow")

    def add(number):
        async def handler(ctx):
            calls.append(number)
            if number == 1:
                await ctx.sleep(0.01)
            return number

        flow.add_step(f"s{number}", handler)

    for number in range(3):
        add(number)
    port = urlsplit(mongo_server).port
    assert port is not None
    proxy = Proxy(port)
    try:
        url = databases.url().replace(f":{port}", f":{proxy.port}")
        async with open_engine(url, flow) as engine:
            proxy.lose("bulkWrite", skip)
            handle = await engine.start(flow)
            assert await handle.result() == 2
            assert (await handle.get()).status == "done"
    finally:
        proxy.close()
    assert calls in ([0, 1, 1, 2], [0, 1, 2])
    assert proxy.lost == 1


async def test_a_document_that_is_full_fails_the_step_and_not_the_run(databases):
    """A step that gathers 16 MB fails with PayloadTooLarge; the run is settled, can be read and retried."""

    async def handler(ctx):
        for number in range(70):
            await ctx.checkpoint("x" * 250_000, name=f"c{number}")

    flow = one_step(handler)
    async with open_engine(databases.url(), flow) as engine:
        handle = await engine.start(flow)
        run = await handle.wait()
        assert run.status == "failed"
        assert run.error is not None
        assert run.error.code == "workflow.payload_too_large"
        assert "16 MiB" in run.error.message
        assert await engine.count(status="failed") == 1
