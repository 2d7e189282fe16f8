"""Tokens and approvals: people who are waited for, and how they answer (scenarios S454 to S482)."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio

from streamline_trio import (
    Approved,
    Engine,
    InvalidState,
    MemoryStore,
    Rejected,
    RunHandle,
    StepContext,
    TimedOut,
    TokenInvalid,
    ValidationError,
    WaitTimedOut,
    WaitWithdrawn,
    Withdrawn,
    Workflow,
    open_engine,
)
from streamline_trio._core.codec import split
from streamline_trio.testing import crash, parked
from tests.scenarios.worlds import at_rest, between, idle, in_virtual_time, one_step, passing

TOKEN = "a token of the caller's own"  # noqa: S105 - it opens nothing but the wait of a test
Context = StepContext[Any, Any]


class Payment(msgspec.Struct, frozen=True):
    cents: int
    by: str


def telling(tokens: list[str]) -> Callable[[str], Awaitable[None]]:
    async def tell(token: str) -> None:
        tokens.append(token)

    return tell


def hooked(tokens: list[str], **options: Any) -> Workflow[Any, Any]:
    """ask (tells its token), then use: gives back what ask got."""
    workflow: Workflow[Any, Any] = Workflow("hooked")

    @workflow.step
    async def ask(ctx: Context) -> Any:
        return await ctx.wait("may it go on?", on_token=telling(tokens), **options)

    @workflow.step
    async def use(ctx: Context) -> Any:
        return ctx.output(ask)

    return workflow


def approving(**options: Any) -> Workflow[Any, Any]:
    """One step that asks for an approval and tells what came of it, and how often it came to that."""

    async def step(ctx: Context) -> Any:
        decision = await ctx.request_approval("pay?", token=TOKEN, returns=Payment, **options)
        await ctx.set(count=ctx.state["count"] + 1, decision=decision)
        return decision

    workflow: Workflow[Any, Any] = Workflow("flow", state=lambda _: {"count": 0, "decision": None})
    workflow.add_step("step", step, returns=Approved[Payment] | Rejected | Withdrawn | TimedOut)
    return workflow


async def parked_on(engine: Engine, workflow: Workflow[Any, Any], **options: Any) -> RunHandle:
    handle = await engine.start(workflow, **options)
    assert (await at_rest(handle)).status == "waiting"
    return handle


@in_virtual_time
async def test_a_token_resumes_the_run():
    """S454: whoever has the token answers, and the next step reads what was answered."""
    tokens: list[str] = []
    flow = hooked(tokens)
    async with open_engine("memory:", flow) as engine:
        handle = await parked_on(engine, flow)
        await engine.resume(tokens[0], {"approved": True})
        run = await handle.wait()
    assert (run.status, run.output) == ("done", {"approved": True})


@in_virtual_time
async def test_tokens_are_unique_and_say_nothing():
    """S455: every wait has a token of its own, long enough not to be guessed, with nothing of the run in it."""
    tokens: list[str] = []

    async def step(ctx: Context) -> None:
        await ctx.wait("first", on_token=telling(tokens))
        await ctx.wait("second", on_token=telling(tokens))

    flow = one_step(step)
    async with open_engine("memory:", flow) as engine:
        handles = [await parked_on(engine, flow) for _ in range(20)]
        for token in tokens.copy():
            await engine.resume(token, None)
        await idle()
    assert len(set(tokens)) == 40
    assert all(len(token) >= 43 and handle.id not in token for token in tokens for handle in handles)


@in_virtual_time
async def test_only_digests_are_stored():
    """S455, S469: neither minted tokens nor the caller's own are anywhere in the stored run."""
    tokens: list[str] = []

    async def step(ctx: Context) -> None:
        await ctx.request_approval("first", on_token=telling(tokens), token=TOKEN, meta={"order": 7})

    store, flow = MemoryStore(), one_step(step)
    async with open_engine(store, flow) as engine:
        handle = await parked_on(engine, flow)
        stored = await store.load(handle.id)
        assert stored is not None
        assert tokens == [TOKEN]
        parts = split(stored)
        assert not any(TOKEN.encode() in part for part in parts.values())
        (wait,) = await engine.pending()
        assert (wait.reason, wait.meta, wait.approval) == ("first", {"order": 7}, True)


@pytest.mark.parametrize("token", ["nonexistent:step:random", "", "x" * 43, "x" * 5000, "\ud800"])
@in_virtual_time
async def test_an_unknown_token(token):
    """S456, S467: a token that nothing waits for is `TokenInvalid` to every verb, whatever it looks like."""
    flow = hooked([])
    async with open_engine("memory:", flow) as engine:
        handle = await parked_on(engine, flow)
        for verb in (engine.resume, engine.approve, engine.reject, engine.withdraw):
            with pytest.raises(TokenInvalid) as caught:
                await verb(token)
            assert str(caught.value) == "this token is unknown, used or expired"
        assert (await handle.get()).status == "waiting"


@in_virtual_time
async def test_an_altered_token():
    """S458: one character more, less or other, and the token is worth nothing; the wait stays open."""
    tokens: list[str] = []
    flow = hooked(tokens)
    async with open_engine("memory:", flow) as engine:
        handle = await parked_on(engine, flow)
        (token,) = tokens
        other = "A" if token[0] != "A" else "B"
        for altered in (token[:-1], token + "A", other + token[1:], token.swapcase(), f" {token}"):
            with pytest.raises(TokenInvalid):
                await engine.resume(altered, 1)
        assert (await handle.get()).status == "waiting"
        await engine.resume(token, 1)
        assert await handle.result() == 1


@pytest.mark.parametrize("end", ["answered", "cancelled", "rewound"])
@in_virtual_time
async def test_the_token_of_a_wait_that_is_over(end):
    """S459, S478: once the wait is answered, cancelled or left by a rewind its token is as good as unknown."""
    tokens: list[str] = []
    flow = hooked(tokens)
    async with open_engine("memory:", flow) as engine:
        handle = await parked_on(engine, flow)
        if end == "answered":
            await engine.resume(tokens[0], 1)
            await handle.wait()
        elif end == "cancelled":
            await handle.cancel()
        else:
            await handle.rewind("ask")
            await idle()
            assert len(set(tokens)) == 2
        before = await handle.get()
        for verb in (engine.resume, engine.approve, engine.reject, engine.withdraw):
            with pytest.raises(TokenInvalid, match="unknown, used or expired"):
                await verb(tokens[0])
        assert await handle.get() == before


@in_virtual_time
async def test_the_engine_that_parked_the_run_is_gone():
    """S460, S461: a client without a worker answers; the run is ready at once, the next worker finishes it."""
    tokens: list[str] = []
    store, flow = MemoryStore(), hooked(tokens)
    async with open_engine(store, flow) as engine:
        handle = await parked_on(engine, flow)
    async with open_engine(store, worker=False) as client:
        await client.resume(tokens[0], "yes")
        run = await client.get(handle.id)
        assert (run.status, run.lease) == ("running", None)
    async with open_engine(store, flow) as engine:
        began = trio.current_time()
        assert await engine.run(handle.id).result() == "yes"
        assert trio.current_time() == began


@in_virtual_time
async def test_a_crashed_engine_leaves_its_waits_open():
    """S460: the process that parked the run has crashed; the token works through another one."""
    tokens: list[str] = []
    store, flow = MemoryStore(exclusive=False), hooked(tokens)
    async with open_engine(store, flow) as doomed:
        handle = await doomed.start(flow)
        await parked(handle)
        await crash(doomed)
        async with open_engine(store, flow) as heir:
            await heir.resume(tokens[0], "yes")
            assert await heir.run(handle.id).result() == "yes"


class Watching(MemoryStore):
    """A store of the user's own: it notes who asks for tokens, and what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    async def by_token(self, digest: str) -> Any:
        self.seen.append("read")
        return await super().by_token(digest)

    async def write(self, batch: Any) -> Any:
        self.seen += ["write" for _ in batch]
        return await super().write(batch)


@in_virtual_time
async def test_a_store_of_the_users_own():
    """S464: the answer is found and written through the store that the engine was opened with, at once."""
    tokens: list[str] = []
    store, flow = Watching(), hooked(tokens)
    async with open_engine(store, flow) as engine:
        handle = await parked_on(engine, flow)
        store.seen.clear()
        async with open_engine(store, worker=False) as client:
            await client.resume(tokens[0], "yes")
            assert store.seen[:2] == ["read", "write"]
        assert await handle.result() == "yes"


@in_virtual_time
async def test_a_run_that_starts_later_waits_too():
    """S465: a run whose start was put off parks and is answered like any other."""
    tokens: list[str] = []
    flow = hooked(tokens)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow, delay=3600)
        assert (await at_rest(handle)).status == "draft"
        await trio.sleep(3601)
        assert (await at_rest(handle)).status == "waiting"
        await engine.resume(tokens[0], 5)
        assert await handle.result() == 5


@in_virtual_time
async def test_what_is_pending_can_be_looked_at():
    """S466, S468: who is waited for, with reason, meta and since when, by workflow, newest runs first; tokens are
    not listed, and what is answered is not."""
    tokens: list[str] = []
    one = hooked(tokens, meta={"order": "o-1"}, timeout=60, name="boss")
    other: Workflow[Any, Any] = Workflow("other")

    @other.step
    async def decide(ctx: Context) -> Any:
        return await ctx.request_approval("pay?", meta={"cents": 5})

    async with open_engine("memory:", one, other) as engine:
        first = await parked_on(engine, one, user="ada")
        await trio.sleep(1)
        second = await parked_on(engine, other)
        (wait,) = await engine.pending(one)
        assert (wait.run_id, wait.workflow, wait.step) == (first.id, "hooked", "ask")
        assert (wait.reason, wait.name, wait.meta, wait.user) == ("may it go on?", "boss", {"order": "o-1"}, "ada")
        assert between(wait.opened_at, wait.due_at) == 60
        assert wait.approval is False
        listed = await engine.pending()
        assert [(wait.run_id, wait.approval) for wait in listed] == [(second.id, True), (first.id, False)]
        assert tokens[0] not in repr(listed)
        state = (await second.get()).steps["decide"].wait
        assert state is not None
        assert (state.kind, state.approval, state.reason) == ("human", True, "pay?")
        await engine.resume(tokens[0], 1)
        assert len(await engine.pending(one)) == 0
        assert len(await engine.pending()) == 1


@in_virtual_time
async def test_nobody_answers_in_time():
    """S470: when the deadline passes the run goes on: the approval has timed out, which is a value."""
    flow = approving(timeout=0.15)
    async with open_engine("memory:", flow) as engine:
        began = trio.current_time()
        handle = await engine.start(flow)
        assert await handle.result() == TimedOut()
        assert trio.current_time() - began == pytest.approx(0.15)
        assert (await handle.get()).state["decision"] == {"type": "timed_out"}


@pytest.mark.parametrize("reason", ["the order was cancelled", None])
@in_virtual_time
async def test_a_withdrawn_question(reason):
    """S471, S472: a withdrawal ends the wait, not the run; its reason is told where there is one."""
    flow = approving()
    async with open_engine("memory:", flow) as engine:
        resumed: list[Any] = []
        engine.on("workflow.resumed", resumed.append)
        handle = await parked_on(engine, flow)
        await engine.withdraw(TOKEN, reason)
        run = await handle.wait()
        await idle()
    assert (run.status, run.output) == ("done", Withdrawn(reason))
    assert [event.step for event in resumed] == ["step"]


@pytest.mark.parametrize("answer", [None, "timed_out", {"type": "withdrawn"}, {"type": "approved", "data": 1}])
@in_virtual_time
async def test_an_answer_is_never_taken_for_an_outcome(answer):
    """S472: what a plain wait is answered with is data, even if it looks like what an approval comes to."""
    tokens: list[str] = []
    flow = hooked(tokens)
    async with open_engine("memory:", flow) as engine:
        handle = await parked_on(engine, flow)
        await engine.resume(tokens[0], answer)
        assert await handle.result() == answer


@in_virtual_time
async def test_the_deadline_of_an_answered_wait():
    """S474: a deadline that passes after the answer changes nothing."""
    flow = approving(timeout=10)
    async with open_engine("memory:", flow) as engine:
        handle = await parked_on(engine, flow)
        await engine.approve(TOKEN, Payment(5, "ada"))
        run = await handle.wait()
        await trio.sleep(60)
        assert await handle.get() == run
    assert (run.output, run.state["count"]) == (Approved(Payment(5, "ada")), 1)


@in_virtual_time
async def test_an_answer_after_the_deadline():
    """S475: once the timeout is committed every answer is refused, and the outcome stays."""
    flow = approving(timeout=10)
    async with open_engine("memory:", flow) as engine:
        handle = await parked_on(engine, flow)
        await trio.sleep(11)
        with pytest.raises(TokenInvalid):
            await engine.approve(TOKEN, Payment(5, "ada"))
        with pytest.raises(InvalidState):
            await handle.approve(Payment(5, "ada"))
        run = await handle.wait()
    assert (run.output, run.state["count"]) == (TimedOut(), 1)


@pytest.mark.parametrize("first", ["approve", "reject", "withdraw"])
@pytest.mark.parametrize("second", ["approve", "reject", "withdraw"])
@in_virtual_time
async def test_a_second_decision(first, second):
    """S476: one decision counts; whoever comes second is told so, by token and by handle."""
    flow = approving()
    async with open_engine("memory:", flow) as engine:
        handle = await parked_on(engine, flow)

        async def decide(target: Any, verb: str, *token: str) -> None:
            await getattr(target, verb)(*token, *([Payment(1, "ada")] if verb == "approve" else []))

        await decide(engine, first, TOKEN)
        with pytest.raises(TokenInvalid):
            await decide(engine, second, TOKEN)
        with pytest.raises(InvalidState):
            await decide(handle, second)
        run = await handle.wait()
    outcomes = {"approve": Approved(Payment(1, "ada")), "reject": Rejected(), "withdraw": Withdrawn()}
    assert (run.output, run.state["count"]) == (outcomes[first], 1)


@pytest.mark.parametrize("by_token", [True, False])
@pytest.mark.parametrize(
    ("verb", "argument", "outcome"),
    [
        ("approve", Payment(420, "ada"), Approved(Payment(420, "ada"))),
        ("approve", {"cents": 420, "by": "ada"}, Approved(Payment(420, "ada"))),
        ("reject", "too much", Rejected("too much")),
        ("reject", None, Rejected()),
        ("withdraw", "paid already", Withdrawn("paid already")),
    ],
)
@in_virtual_time
async def test_what_an_approval_comes_to(by_token, verb, argument, outcome):
    """S479: approved with data in its type, rejected and withdrawn with their reasons; nothing is raised."""
    flow = approving()
    async with open_engine("memory:", flow) as engine:
        handle = await parked_on(engine, flow)
        arguments = (TOKEN, argument) if by_token else (argument,)
        await getattr(engine if by_token else handle, verb)(*arguments)
        run = await handle.wait()
    assert (run.status, run.output, run.steps["step"].attempts) == ("done", outcome, 1)


FOREIGN = [
    None,
    True,
    "approved",
    {"cents": 420, "by": "ada"},
    {"type": "approved"},
    {"type": "approved", "data": {"cents": "many", "by": "ada"}},
    {"type": "withdrawn", "reason": None},
    {"type": "timed_out"},
    {"type": "rejected", "reason": 5},
    {"data": {"cents": 420, "by": "ada"}},
]


@pytest.mark.parametrize("payload", FOREIGN)
@in_virtual_time
async def test_a_foreign_answer_to_an_approval(payload):
    """S479: only a decision decides: any other payload is refused to whoever answers, and the wait stays open."""
    flow = approving()
    async with open_engine("memory:", flow) as engine:
        handle = await parked_on(engine, flow)
        before = await handle.get()
        with pytest.raises(ValidationError):
            await engine.resume(TOKEN, payload)
        with pytest.raises(ValidationError):
            await handle.resume(payload)
        assert await handle.get() == before
        await engine.resume(TOKEN, Rejected("by way of resume"))
        assert await handle.result() == Rejected("by way of resume")


@pytest.mark.parametrize("data", [None, 5, {"cents": 1}, "yes"])
@in_virtual_time
async def test_an_approval_with_other_data(data):
    """S479: data that is not what the approval returns is refused, none at all too; the wait stays open."""
    flow = approving()
    async with open_engine("memory:", flow) as engine:
        handle = await parked_on(engine, flow)
        with pytest.raises(ValidationError):
            await engine.approve(TOKEN, data)
        with pytest.raises(ValidationError):
            await handle.approve(data, step="step")
        assert (await handle.get()).status == "waiting"


@pytest.mark.parametrize("reason", [5, "x" * 10_001, "\ud800"])
@in_virtual_time
async def test_a_reason_that_is_no_text(reason):
    """Proves that a reason that cannot be stored is refused before anything is written."""
    flow = approving()
    async with open_engine("memory:", flow) as engine:
        handle = await parked_on(engine, flow)
        for verb in (handle.reject, handle.withdraw):
            with pytest.raises(ValidationError, match="reason"):
                await verb(reason)
        assert (await handle.get()).status == "waiting"


@pytest.mark.parametrize(("returns", "fits"), [(int, False), (str, False), (Any, True), (dict[str, Any], True)])
@in_virtual_time
async def test_approving_a_plain_wait(returns, fits):
    """S480: a wait that is no approval refuses a decision, unless what it returns has that form."""

    async def step(ctx: Context) -> Any:
        return await ctx.wait("number?", returns=returns, token=TOKEN)

    flow = one_step(step)
    async with open_engine("memory:", flow) as engine:
        handle = await parked_on(engine, flow)
        if fits:
            await engine.approve(TOKEN, 5)
            assert await handle.result() == {"type": "approved", "data": 5}
        else:
            for verb in (engine.approve, engine.reject):
                with pytest.raises(ValidationError):
                    await verb(TOKEN)
            assert (await handle.get()).status == "waiting"


@pytest.mark.parametrize("asks", ["sleep", "signal"])
@in_virtual_time
async def test_only_people_decide(asks):
    """Proves that neither a sleep nor a signal can be approved or rejected, and that this is said."""

    async def step(ctx: Context) -> None:
        if asks == "sleep":
            await ctx.sleep(60)
        else:
            await ctx.wait_for("news")

    flow = one_step(step)
    async with open_engine("memory:", flow) as engine:
        handle = await parked_on(engine, flow)
        for verb in ("approve", "reject"):
            with pytest.raises(InvalidState, match="not a person") as caught:
                await getattr(handle, verb)()
            assert caught.value.action == verb


@pytest.mark.parametrize("value", [0, "", [], {"a": [1, None]}, False])
@in_virtual_time
async def test_questions_and_answers(value):
    """S480: a plain wait asks for any value, 0 and empty ones too; withdrawn and timed out are exceptions there."""

    async def step(ctx: Context) -> Any:
        answers = [await ctx.wait("what?", token=TOKEN)]
        for asked in ("again?", "and again?"):
            try:
                answers.append(await ctx.wait(asked, timeout=10))
            except WaitWithdrawn as error:
                answers.append(error.meta["reason"])
            except WaitTimedOut:
                answers.append("late")
        return answers

    flow = one_step(step)
    async with open_engine("memory:", flow) as engine:
        handle = await parked_on(engine, flow)
        await engine.resume(TOKEN, value)
        await idle()
        await handle.withdraw("never mind")
        assert await handle.result() == [value, "never mind", "late"]


@in_virtual_time
async def test_the_token_is_told_before_the_run_parks():
    """S481: `on_token` gets the token once the wait is durable with its deadline, and while the handler runs."""
    seen: list[tuple[str, Any, Any]] = []

    async def step(ctx: Context) -> Any:
        async def tell(token: str) -> None:
            run = await engine.get(ctx.run_id)
            (wait,) = await engine.pending()
            seen.append((token, run.status, wait.due_at))

        return await ctx.request_approval("pay?", on_token=tell, timeout=3600)

    flow = one_step(step, returns=Any)
    async with open_engine("memory:", flow) as engine:
        handle = await parked_on(engine, flow)
        ((token, status, due_at),) = seen
        assert status == "running"
        assert between((await handle.get()).created_at, due_at) == 3600
        assert (await handle.get()).due_at == due_at
        await engine.approve(token, 1)
        assert await handle.result() == {"type": "approved", "data": 1}


@in_virtual_time
async def test_a_token_of_ones_own_is_used_as_it_is():
    """S481: a given token is told and works; a short one, or one in use elsewhere, is refused."""
    told: list[str] = []

    async def step(ctx: Context) -> Any:
        token = ctx.input or TOKEN
        return type(await ctx.request_approval("pay?", token=token, on_token=telling(told))).__name__

    flow = one_step(step, attempts=1)
    async with open_engine("memory:", flow) as engine:
        first = await parked_on(engine, flow)
        assert told == [TOKEN]
        clash = await (await engine.start(flow)).wait()
        short = await (await engine.start(flow, "short")).wait()
        assert (clash.status, short.status) == ("failed", "failed")
        assert "in use" in str(clash.error)
        assert "16" in str(short.error)
        await engine.reject(TOKEN)
        assert await first.result() == "Rejected"


@in_virtual_time
async def test_a_token_answers_one_wait_once():
    """Proves that the token of one approval opens no other: not of the same step, of another run, nor later."""
    tokens: dict[str, str] = {}

    async def step(ctx: Context) -> list[str]:
        decided = []
        for who in ("ada", "bob"):

            async def tell(token: str, key: str = f"{ctx.run_id} {who}") -> None:
                tokens[key] = token

            decision = await ctx.request_approval(f"{who}?", name=who, on_token=tell)
            decided.append(type(decision).__name__)
        return decided

    flow = one_step(step)
    async with open_engine("memory:", flow) as engine:
        one, two = await parked_on(engine, flow), await parked_on(engine, flow)
        await engine.approve(tokens[f"{one.id} ada"])
        await idle()
        with pytest.raises(TokenInvalid):
            await engine.approve(tokens[f"{one.id} ada"])
        assert (await two.get()).steps["step"].wait.name == "ada"  # type: ignore[union-attr]  # it waits
        await engine.reject(tokens[f"{one.id} bob"])
        assert await one.result() == ["Approved", "Rejected"]


@in_virtual_time
async def test_a_deadline_that_passes_while_nobody_works():
    """S482: the worker is gone when the deadline passes; the next one, with nothing else to do, sees it at once."""
    store, flow = MemoryStore(exclusive=False), approving(timeout=60)
    async with open_engine(store, flow) as doomed:
        handle = await doomed.start(flow)
        await parked(handle)
        await crash(doomed)
        await trio.sleep(3600)
        async with open_engine(store, flow) as idle_one:
            began = trio.current_time()
            assert await idle_one.run(handle.id).result() == TimedOut()
            assert trio.current_time() - began < 2


@in_virtual_time
async def test_outcomes_are_kept_over_attempts():
    """Proves that an attempt after a failure gets the outcomes of approvals again, timed out ones too: they are
    values; `retry` and rewind ask afresh."""
    failing = True
    asked: list[str] = []

    async def step(ctx: Context) -> list[str]:
        first = await ctx.request_approval("the first?", timeout=60, on_token=telling(asked))
        second = await ctx.request_approval("the second?", on_token=telling(asked))
        if failing:
            raise OSError("the bank is down")
        return [type(first).__name__, type(second).__name__]

    flow = one_step(step, attempts=2, retry_delay=5)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await trio.sleep(61)
        await idle()
        await handle.approve()
        run = await handle.wait()
        assert (run.status, run.steps["step"].attempts, len(asked)) == ("failed", 2, 2)
        failing = False
        await handle.retry()
        assert (await at_rest(handle)).status == "waiting"
        assert len(asked) == 3, "who let the time pass is asked again; who approved is not"
        await handle.reject()
        assert await handle.result() == ["Rejected", "Approved"]
        await handle.rewind("step")
        assert (await at_rest(handle)).status == "waiting"
        assert len(asked) == 4


@in_virtual_time
async def test_a_paused_run_takes_decisions_but_lets_no_time_pass():
    """Proves that a pause keeps an approval from timing out, and that a decision meanwhile counts."""
    flow = approving(timeout=60)
    async with open_engine("memory:", flow) as engine:
        handle = await parked_on(engine, flow)
        await handle.pause()
        await trio.sleep(3600)
        assert (await at_rest(handle)).steps["step"].status == "waiting"
        await engine.approve(TOKEN, Payment(1, "ada"))
        await handle.unpause()
        assert await handle.result() == Approved(Payment(1, "ada"))


@in_virtual_time
async def test_other_ways_to_say_no_to_a_run():
    """Proves that a cancelled approval is none: the run is cancelled, its handler is not entered again."""
    entered: list[int] = []

    async def step(ctx: Context) -> None:
        entered.append(ctx.attempt)
        await ctx.request_approval("pay?", token=TOKEN)
        entered.append(99)

    flow = one_step(step)
    passing(flow, "pay")
    async with open_engine("memory:", flow) as engine:
        handle = await parked_on(engine, flow)
        await handle.cancel("no")
        run = await handle.wait()
        assert (run.status, run.cancel_reason, entered) == ("cancelled", "no", [1])
        with pytest.raises(InvalidState):
            await handle.approve()
