"""Waits for people: a run parks, somebody answers, the handler goes on."""

import random
from typing import Any

import msgspec
import pytest
import trio

from streamline_trio import InvalidState, RunNotFound, Workflow, open_engine
from streamline_trio.testing import crash
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, passing, statuses


class Decision(msgspec.Struct):
    approved: bool
    by: str = ""


def gated(returns: Any = Any, calls: list[str] | None = None) -> Workflow[Any, Any]:
    """before, gate (a person decides), after (gets the answer)."""
    workflow: Workflow[Any, Any] = Workflow("gated")
    calls = [] if calls is None else calls
    passing(workflow, "before", calls=calls)

    @workflow.step(returns=returns)
    async def gate(ctx):
        calls.append("gate")
        answer = await ctx.wait("please look", returns=returns, meta={"page": 7})
        calls.append("answered")
        return answer

    @workflow.step
    async def after(ctx):
        calls.append("after")
        return {"got": ctx.output("gate")}

    return workflow


@in_virtual_time
async def test_a_wait_parks_the_run():
    """S073: a wait stops the step where it stands, tells what it waits for, and gives the lease back."""
    calls: list[str] = []
    flow = gated(calls=calls)
    async with open_engine("memory:", flow) as engine:
        run = await at_rest(await engine.start(flow))
    assert (run.status, run.current_step, run.lease) == ("waiting", "gate", None)
    assert statuses(run) == {"before": "done", "gate": "waiting", "after": "pending"}
    wait = run.steps["gate"].wait
    assert wait is not None
    assert (wait.kind, wait.reason, wait.meta) == ("human", "please look", {"page": 7})
    assert calls == ["before", "gate"]


@pytest.mark.parametrize("answer", [{"approved": True, "by": "ann"}, "just text", None, 0, False, [1, 2]])
def test_the_answer_is_what_the_wait_returns(answer):
    """S074: the payload reaches the waiting step. Ours: the handler is entered again, and the awaited call
    returns the payload; the step's output is what the handler makes of it."""
    calls: list[str] = []

    @in_virtual_time
    async def scenario() -> None:
        flow = gated(calls=calls)
        async with open_engine("memory:", flow) as engine:
            handle = await engine.start(flow)
            await idle()
            await handle.resume(answer)
            assert await handle.result() == {"got": answer}
            assert await handle.output("gate") == answer

    scenario()
    assert calls == ["before", "gate", "gate", "answered", "after"]


@in_virtual_time
async def test_nothing_of_the_wait_is_left():
    """S075: once answered and finished, the step shows neither a wait nor an error."""
    flow = gated()
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        await handle.resume("yes")
        run = await handle.wait()
        assert (run.status, run.error, run.steps["gate"].status) == ("done", None, "done")
        assert all(step.wait is None and step.error is None for step in run.steps.values())
        assert len(await engine.pending()) == 0


@in_virtual_time
async def test_a_refusal_is_data_like_any_other():
    """S076: a negative decision resolves the wait as a positive one does; the next step branches on it."""
    flow = gated(returns=Decision)

    @flow.step
    async def process(ctx):
        return "accepted" if ctx.output("gate").approved else "rejected"

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        await handle.resume({"approved": False, "by": "bob"})
        assert await handle.result() == "rejected"
        assert await handle.output("gate") == Decision(approved=False, by="bob")


@in_virtual_time
async def test_two_approvals_one_after_the_other():
    """S077: the second wait opens only after the first answer, and each takes its own."""
    flow: Workflow[Any, Any] = Workflow("two", state=lambda _: {"approved_by": []})

    @flow.step
    async def submit(ctx):
        return "document"

    async def review(ctx):
        answer = await ctx.wait(f"{ctx.step_id} decides", returns=Decision)
        await ctx.set(approved_by=[*ctx.state["approved_by"], answer.by])
        return answer.approved

    flow.add_step("manager", review)
    flow.add_step("director", review)
    passing(flow, "finalize")

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        await handle.resume(Decision(approved=True, by="manager"))
        run = await at_rest(handle)
        assert (run.status, run.current_step) == ("waiting", "director")
        await handle.resume(Decision(approved=True, by="director"))
        run = await handle.wait()
    assert (run.status, run.state) == ("done", {"approved_by": ["manager", "director"]})


@pytest.mark.parametrize(("amount", "score"), [(5000, 25), (15000, 75)])
def test_a_wait_only_when_it_is_needed(amount, score):
    """S078: a step that decides for itself goes through at once; one that asks stores who answered."""

    async def scenario() -> None:
        flow: Workflow[Any, Any] = Workflow("risk", state=lambda _: {"score": None, "reviewer": None})

        @flow.step
        async def assess(ctx):
            await ctx.set(score=25 if ctx.input < 10_000 else 75)

        @flow.step
        async def decide(ctx):
            if ctx.state["score"] < 50:
                return "automatic"
            answer = await ctx.wait("high risk", returns=Decision)
            await ctx.set(reviewer=answer.by)
            return "manual"

        async with open_engine("memory:", flow) as engine:
            handle = await engine.start(flow, amount)
            run = await at_rest(handle)
            assert run.state["score"] == score
            if score < 50:
                assert (run.status, run.output, run.state["reviewer"]) == ("done", "automatic", None)
                return
            assert run.status == "waiting"
            await handle.resume(Decision(approved=True, by="rita"))
            run = await handle.wait()
            assert (run.status, run.output, run.state["reviewer"]) == ("done", "manual", "rita")

    in_virtual_time(scenario)()


@in_virtual_time
async def test_a_payment_that_needs_strong_authentication():
    """S079: what a step put into the state before it waits is durable while it waits."""
    flow: Workflow[Any, Any] = Workflow("payment", state=lambda _: {"status": "new", "url": None})

    @flow.step
    async def authenticate(ctx):
        if ctx.input > 1000:
            await ctx.set(status="authenticating", url="https://bank.example/challenge")
            await ctx.wait("strong authentication")

    @flow.step
    async def complete(ctx):
        await ctx.set(status="completed")

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow, 5000)
        run = await at_rest(handle)
        assert (run.status, run.state["status"]) == ("waiting", "authenticating")
        assert run.state["url"] == "https://bank.example/challenge"
        await handle.resume({"authenticated": True})
        run = await handle.wait()
        assert (run.status, run.state["status"]) == ("done", "completed")
        small = await (await engine.start(flow, 10)).wait()
        assert (small.status, small.state["url"]) == ("done", None)


@in_virtual_time
async def test_a_webhook_answers_with_its_payload():
    """S080: values of a machine's answer are copied to the state by the step that follows."""
    flow: Workflow[Any, Any] = Workflow("gateway", state=lambda _: {})
    tokens: list[str] = []

    @flow.step
    async def webhook(ctx):
        async def register(token: str) -> None:
            tokens.append(token)

        return await ctx.wait("the gateway calls back", on_token=register)

    @flow.step
    async def process(ctx):
        answer = ctx.output(webhook)
        await ctx.set(success=answer["success"], date=answer["date"])

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        await engine.resume(tokens[0], {"received": True, "success": True, "date": "2026-01-01"})
        run = await handle.wait()
    assert (run.status, run.state) == ("done", {"success": True, "date": "2026-01-01"})


@in_virtual_time
async def test_resuming_an_unknown_run():
    """S081: there is no such run, and the error says so with its code and HTTP status."""
    async with open_engine("memory:", gated()) as engine:
        with pytest.raises(RunNotFound) as caught:
            await engine.run("nobody").resume({"approved": True})
    assert (caught.value.code, caught.value.status) == ("workflow.not_found", 404)


@in_virtual_time
async def test_resuming_a_finished_run():
    """S082: a run that is done takes no answer and stays as it is."""
    flow = gated()
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        await handle.resume(1)
        done = await handle.wait()
        with pytest.raises(InvalidState) as caught:
            await handle.resume(2)
        assert await handle.get() == done
    assert caught.value.meta["status"] == "done"
    assert caught.value.action == "resume"
    assert caught.value.code == "workflow.invalid_state"


@in_virtual_time
async def test_resumes_at_the_same_time():
    """S085: of two answers at once exactly one counts, the other caller is told, and the run ends done."""
    for _ in range(20):
        calls: list[str] = []
        flow = gated(calls=calls)
        async with open_engine("memory:", flow) as engine:
            handle = await engine.start(flow)
            await idle()
            taken: list[int] = []
            refused: list[int] = []

            async def answer(number: int, handle=handle, taken=taken, refused=refused) -> None:
                try:
                    await handle.resume(number)
                    taken.append(number)
                except InvalidState:
                    refused.append(number)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer, 1)
                nursery.start_soon(answer, 2)
            assert await handle.result() == {"got": taken[0]}
        assert (len(taken), len(refused)) == (1, 1)
        assert calls.count("after") == 1


async def test_a_wait_outlives_the_process(tmp_path):
    """S086: the process that parked the run is gone; another one answers by run id, earlier outputs are there."""
    url = f"sqlite:///{tmp_path}/runs.db"
    first = gated()
    async with open_engine(url, first) as engine:
        async with engine.events("workflow.waiting") as parked:
            run_id = (await engine.start(first)).id
            await anext(parked)
        await crash(engine)
    calls: list[str] = []
    second = gated(calls=calls)
    async with open_engine(url, second) as engine:
        handle = engine.run(run_id)
        assert (await handle.get()).status == "waiting"
        await handle.resume("go on")
        assert await handle.result() == {"got": "go on"}
        assert await handle.output("before") == "before"
    assert calls == ["gate", "answered", "after"]


async def test_outputs_are_there_for_a_fresh_engine(tmp_path):
    """S087: an engine that did not run the earlier step gives its output to the later one, by token."""
    url = f"sqlite:///{tmp_path}/runs.db"
    tokens: list[str] = []

    def build() -> Workflow[Any, Any]:
        flow: Workflow[Any, Any] = Workflow("rehydrate")

        @flow.step
        async def fetch(ctx) -> str:
            return "nine char"

        @flow.step
        async def gate(ctx):
            async def register(token: str) -> None:
                tokens.append(token)

            await ctx.wait("hook", on_token=register)

        @flow.step
        async def use(ctx):
            return {"len": len(ctx.output(fetch))}

        return flow

    flow = build()
    async with open_engine(url, flow) as engine, engine.events("workflow.waiting") as parked:
        run_id = (await engine.start(flow)).id
        await anext(parked)
    async with open_engine(url, build()) as engine:
        await engine.resume(tokens[0])
        assert await engine.run(run_id).result() == {"len": 9}


@pytest.mark.parametrize("topic", ["trio", "durable workflows", "sqlite"])
def test_newsletter(topic):
    """S088: draft, review by a person, send to a hundred subscribers with some failures, track."""

    async def scenario() -> None:
        flow: Workflow[Any, Any] = Workflow("newsletter", input=str, state=lambda _: {})

        @flow.step
        async def draft(ctx):
            await ctx.set(subject=f"News about {ctx.input}", subscribers=[f"s{n}" for n in range(100)])

        @flow.step
        async def review(ctx):
            return await ctx.wait("approve the newsletter", returns=bool)

        @flow.step
        async def send(ctx):
            chance = random.Random(ctx.input)
            return {"total": 100, "sent": sum(chance.random() < 0.95 for _ in ctx.state["subscribers"])}

        @flow.step
        async def track(ctx):
            return ctx.output(send)["sent"]

        async with open_engine("memory:", flow) as engine:
            handle = await engine.start(flow, topic)
            run = await at_rest(handle)
            assert (run.status, run.current_step) == ("waiting", "review")
            assert len(run.state["subscribers"]) == 100
            assert topic in run.state["subject"]
            await handle.resume(payload=True)
            run = await handle.wait()
        assert (run.status, run.steps["track"].status) == ("done", "done")
        sent = run.steps["send"].output
        assert sent["total"] == 100
        assert sent["sent"] > 80

    in_virtual_time(scenario)()


@in_virtual_time
async def test_moderation_queue():
    """S089: who waits for a person is listed newest first; answered and cancelled runs are not."""
    flow: Workflow[Any, Any] = Workflow("moderate", input=str, state=lambda text: {"text": text})

    @flow.step(id="human-review")
    async def review(ctx):
        return await ctx.wait("is it decent?", meta={"text": ctx.input})

    other = gated()
    async with open_engine("memory:", flow, other) as engine:
        posts = []
        for text in ("one", "two", "three", "four"):
            posts.append(await engine.start(flow, text))
            await trio.sleep(1)
        await engine.start(other)
        await posts[1].resume("fine")
        await posts[2].cancel()
        await idle()

        waiting = await engine.pending(workflow=flow)
        assert [(wait.run_id, wait.step) for wait in waiting] == [
            (posts[3].id, "human-review"),
            (posts[0].id, "human-review"),
        ]
        assert [wait.meta for wait in waiting] == [{"text": "four"}, {"text": "one"}]
        found = await engine.find(workflow=flow, status="waiting", waiting="human")
        assert [(run.id, run.current_step, run.state) for run in found] == [
            (posts[3].id, "human-review", {"text": "four"}),
            (posts[0].id, "human-review", {"text": "one"}),
        ]
        assert len(await engine.pending()) == 3
