"""goto from inside, rewind from outside."""

from typing import Any

import pytest

from streamline_trio import InvalidState, MemoryStore, StepNotFound, Workflow, open_engine
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, passing, statuses


def three(calls: list[str]) -> Workflow[Any, Any]:
    """one, two, three; each notes its call and counts it in the state."""
    workflow: Workflow[Any, Any] = Workflow("three", state=lambda _: {"calls": 0})

    async def handler(ctx):
        calls.append(ctx.step_id)
        await ctx.set(calls=ctx.state["calls"] + 1)
        return f"{ctx.step_id} at call {ctx.state['calls']}"

    for step_id in ("one", "two", "three"):
        workflow.add_step(step_id, handler)
    return workflow


@in_virtual_time
async def test_goto_jumps_forward():
    """S162: the steps between origin and target are not called; the origin is skipped, they stay pending."""
    calls: list[str] = []
    flow: Workflow[Any, Any] = Workflow("jump")

    @flow.step
    async def start(ctx):
        calls.append("start")
        await ctx.goto("finish")

    passing(flow, "middle", "finish", calls=calls)
    async with open_engine("memory:", flow) as engine:
        heard: list[Any] = []
        engine.on("step.skipped", heard.append)
        run = await (await engine.start(flow)).wait()
        await idle()
    assert calls == ["start", "finish"]
    assert (run.status, run.output) == ("done", "finish")
    assert statuses(run) == {"start": "skipped", "middle": "pending", "finish": "done"}
    assert [(event.step, event.goto) for event in heard] == [("start", "finish")]


@pytest.mark.parametrize(
    ("amount", "called"),
    [(-1, ["validate", "handle_failure"]), (5, ["validate", "process", "handle_failure"])],
)
def test_the_line_continues_after_the_target(amount, called):
    """S163: from the target on the steps follow in order, as they do without a goto."""
    calls: list[str] = []

    async def scenario() -> None:
        flow: Workflow[Any, Any] = Workflow("pay")

        @flow.step
        async def validate(ctx):
            calls.append("validate")
            if ctx.input < 0:
                await ctx.goto("handle_failure")

        passing(flow, "process", "handle_failure", calls=calls)
        async with open_engine("memory:", flow) as engine:
            assert (await (await engine.start(flow, amount)).wait()).status == "done"

    in_virtual_time(scenario)()
    assert calls == called


@in_virtual_time
async def test_goto_to_an_unknown_step():
    """S164: the attempt fails with an error that names the target, before anything is unwound."""
    flow: Workflow[Any, Any] = Workflow("lost")

    @flow.step(attempts=1)
    async def start(ctx):
        await ctx.goto("nowhere")

    async with open_engine("memory:", flow) as engine:
        run = await (await engine.start(flow)).wait()
    assert run.status == "failed"
    assert run.error is not None
    assert run.error.code == "workflow.step.not_found"
    assert "nowhere" in run.error.message
    assert run.steps["start"].error == run.error


@pytest.mark.parametrize("target", ["staging", "production"])
def test_staging_skips_the_approval(target):
    """S165: the same workflow goes through without a person in staging and asks one in production."""

    async def scenario() -> None:
        calls: list[str] = []
        flow: Workflow[Any, Any] = Workflow("deploy")
        passing(flow, "build", "test", calls=calls)

        @flow.step
        async def gate(ctx):
            calls.append("gate")
            if ctx.input == "staging":
                await ctx.goto("deploy")

        @flow.step
        async def approval(ctx):
            return await ctx.wait("deploy to production?", returns=bool)

        passing(flow, "deploy", calls=calls)
        async with open_engine("memory:", flow) as engine:
            handle = await engine.start(flow, target)
            run = await at_rest(handle)
            if target == "production":
                assert (run.status, run.current_step) == ("waiting", "approval")
                await handle.resume(payload=True)
                run = await handle.wait()
        assert run.status == "done"
        assert calls == ["build", "test", "gate", "deploy"]

    in_virtual_time(scenario)()


@in_virtual_time
async def test_ask_answer_go_back():
    """S166: a loop of steps asks a person again and again, each turn parks afresh with the same token, until
    the stop word; answers of earlier turns are forgotten."""
    token = "the-same-token-each-turn"  # noqa: S105 - a token of a test
    codes: list[str] = []
    flow: Workflow[Any, Any] = Workflow("otp")

    @flow.step
    async def ask(ctx) -> str:
        code: str = await ctx.wait("one-time password", returns=str, token=token)
        return code

    @flow.step
    async def use(ctx) -> str:
        code = ctx.output(ask)
        if code != "stop":
            codes.append(code)
            await ctx.goto(ask)
        return "stopped"

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        for code in ("111", "222", "333"):
            run = await at_rest(handle)
            assert (run.status, run.current_step) == ("waiting", "ask")
            await engine.resume(token, code)
        await idle()
        await engine.resume(token, "stop")
        assert await handle.result() == "stopped"
    assert codes == ["111", "222", "333"]


@in_virtual_time
async def test_rewind_resets_the_target_and_what_follows():
    """S168: rewind makes the target and later steps pending and the run goes on by itself from there. Ours:
    it continues without being told to."""
    calls: list[str] = []
    flow = three(calls)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        assert await handle.result() == "three at call 3"
        await handle.rewind(to="two")
        run = await handle.wait()
        assert calls == ["one", "two", "three", "two", "three"]
        assert (run.status, run.output) == ("done", "three at call 5")
        assert statuses(run) == dict.fromkeys(("one", "two", "three"), "done")
        assert run.steps["one"].output == "one at call 1"
        assert run.steps["two"].attempts == 1


@pytest.mark.parametrize(
    ("target", "expected"), [("two", ["done", "pending", "pending"]), ("one", ["pending", "pending", "pending"])]
)
def test_a_rewound_run_before_it_goes_on(target, expected):
    """S168, S169: seen before a worker takes it: running, at the target, the target and later steps pending and
    without output, the state kept."""

    async def scenario() -> None:
        store, flow = MemoryStore(), three([])
        async with open_engine(store, flow) as engine:
            handle = await engine.start(flow)
            await handle.wait()
        async with open_engine(store, worker=False) as client:
            await client.run(handle.id).rewind(to=target)
            run = await client.get(handle.id)
        assert list(statuses(run).values()) == expected
        assert (run.status, run.current_step, run.output, run.ended_at) == ("running", target, None, None)
        assert all(step.output is None for step in run.steps.values() if step.status == "pending")
        assert run.state == {"calls": 3}

    in_virtual_time(scenario)()


@in_virtual_time
async def test_rewind_to_the_first_step():
    """S169: everything runs again, on the state as it was left."""
    calls: list[str] = []
    flow = three(calls)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await handle.wait()
        await handle.rewind(flow.steps["one"])
        assert await handle.result() == "three at call 6"
    assert calls == ["one", "two", "three"] * 2


@in_virtual_time
async def test_rewinding_a_failed_run():
    """S171: after the repair the run finishes from the failed step: earlier ones are not called again, and the
    error is gone."""
    calls: list[str] = []
    broken = True
    flow: Workflow[Any, Any] = Workflow("repair")
    passing(flow, "one", calls=calls)

    @flow.step(attempts=1)
    async def two(ctx):
        calls.append("two")
        if broken:
            raise ConnectionError("the dependency is down")

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        run = await handle.wait()
        assert run.error is not None
        assert (run.status, run.error.step) == ("failed", "two")
        broken = False
        await handle.rewind(two)
        run = await handle.wait()
    assert (run.status, run.error, run.steps["two"].error) == ("done", None, None)
    assert calls == ["one", "two", "two"]


@in_virtual_time
async def test_rewinding_to_an_unknown_step():
    """S172: a not-found error that names the step, and nothing changes."""
    flow = three([])
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        before = await handle.wait()
        with pytest.raises(StepNotFound, match="nonexistent") as caught:
            await handle.rewind("nonexistent")
        assert caught.value.status == 404
        assert await handle.get() == before


@in_virtual_time
async def test_rewinding_a_cancelled_run():
    """S173: a cancelled run stays cancelled: rewind is InvalidState, and the stored run is unchanged."""
    flow = three([])
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow, delay=60)
        await handle.cancel()
        before = await handle.get()
        with pytest.raises(InvalidState) as caught:
            await handle.rewind("one")
        assert (caught.value.action, caught.value.meta["status"]) == ("rewind", "cancelled")
        assert await handle.get() == before
        await idle()
        assert (await handle.get()).status == "cancelled"


@in_virtual_time
async def test_rewinding_a_parked_run():
    """S174: the run leaves its wait, runs again from the target, and parks afresh: the old wait is closed."""
    calls: list[str] = []
    tokens: list[str] = []
    flow: Workflow[Any, Any] = Workflow("parked")
    passing(flow, "one", calls=calls)

    @flow.step
    async def last(ctx):
        async def tell(token: str) -> None:
            tokens.append(token)

        return await ctx.wait("look", on_token=tell)

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        first = (await handle.get()).steps["last"].wait
        await handle.rewind("one")
        run = await at_rest(handle)
        assert (run.status, run.current_step) == ("waiting", "last")
        assert run.steps["last"].wait is not None
        assert first is not None
        assert calls == ["one", "one"]
        assert len(await engine.pending()) == 1
        await handle.resume("seen")
        assert await handle.result() == "seen"
    assert len(set(tokens)) == 2


@in_virtual_time
async def test_where_a_run_stands():
    """S175: at the third of five steps: which are done, that nothing waits, how far back a rewind may go."""
    flow: Workflow[Any, Any] = Workflow("five")
    passing(flow, "s1", "s2")

    @flow.step
    async def s3(ctx):
        await ctx.wait("third")

    passing(flow, "s4", "s5")
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        run = await at_rest(handle)
        assert [step_id for step_id, step in run.steps.items() if step.status == "done"] == ["s1", "s2"]
        assert [entry.step for entry in await handle.timeline() if entry.kind == "done"] == ["s1", "s2"]
        for ahead in ("s4", "s5"):
            with pytest.raises(InvalidState):
                await handle.rewind(ahead)
        for behind in ("s3", "s1"):
            await handle.rewind(behind)
            await idle()
        await handle.resume("go")
        run = await handle.wait()
        assert all(step.wait is None for step in run.steps.values())


@in_virtual_time
async def test_driving_a_finished_run():
    """S180: driving a run that is done calls no handler and changes nothing."""
    calls: list[str] = []
    flow = three(calls)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        done = await handle.wait()
        assert await handle.drive() == done
        assert await handle.get() == done
    assert calls == ["one", "two", "three"]
