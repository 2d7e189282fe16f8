"""Answers to waits: tokens, payload types, and the race between an answer and the deadline."""

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import trio

from streamline_trio import (
    InvalidState,
    MemoryStore,
    RunHandle,
    TokenInvalid,
    ValidationError,
    WaitTimedOut,
    WaitWithdrawn,
    Workflow,
    open_engine,
)
from streamline_trio.testing import crash
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, one_step

OWN = "an-own-token-of-31-characters!!"


class Verdict(msgspec.Struct):
    grade: Literal["good", "bad"]
    points: int = 0


# Tokens


@in_virtual_time
async def test_on_token_is_called_when_the_wait_is_durable_and_before_it_parks():
    """Proves that a token is told while the handler still runs and the wait can be answered already, once, and
    not again by the entry that follows the park."""
    told: list[tuple[str, str, bool]] = []

    async def handler(ctx):
        async def on_token(token: str) -> None:
            run = await engine.get(ctx.run_id)
            told.append((token, run.status, run.steps["step"].wait is not None))
            await trio.sleep(1)

        return await ctx.wait("look", on_token=on_token)

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await trio.sleep(2)
        run = await handle.get()
        assert (run.status, run.lease) == ("waiting", None)
        assert [(status, open_) for _, status, open_ in told] == [("running", True)]
        await engine.resume(told[0][0], "seen")
        assert await handle.result() == "seen"
    assert len(told) == 1
    assert len(told[0][0]) >= 32


@pytest.mark.parametrize("how", ["token", "handle"])
def test_an_answer_during_on_token_counts_without_parking(how):
    """Proves that an answer which comes while the token is told is returned by that same entry."""
    entries = 0

    async def scenario() -> None:
        async def handler(ctx):
            nonlocal entries
            entries += 1

            async def on_token(token: str) -> None:
                if how == "token":
                    await engine.resume(token, "quick")
                else:
                    await engine.run(ctx.run_id).resume("quick")

            return await ctx.wait("look", returns=str, on_token=on_token)

        flow = one_step(handler)
        async with open_engine("memory:", flow) as engine:
            events: list[Any] = []
            engine.on("*", events.append)
            handle = await engine.start(flow)
            assert await handle.result() == "quick"
            await idle()
            assert "workflow.waiting" not in [event.name for event in events]

    in_virtual_time(scenario)()
    assert entries == 1


@pytest.mark.parametrize("used", [0, 1])
def test_a_crash_before_the_park_tells_a_further_token(used):
    """Proves that after a crash in the middle of telling, a second token is told, both answer the wait, and when
    one has been used the other is invalid."""

    async def scenario() -> None:
        store, tokens = MemoryStore(), list[str]()

        async def handler(ctx):
            async def on_token(token: str) -> None:
                tokens.append(token)
                if len(tokens) == 1:
                    await trio.sleep_forever()

            return await ctx.wait("look", on_token=on_token)

        flow = one_step(handler)
        async with open_engine(store, flow) as first:
            handle = await first.start(flow)
            await idle()
            await crash(first)
        async with open_engine(store, flow) as second:
            assert (await at_rest(second.run(handle.id))).status == "waiting"
            assert len(set(tokens)) == 2
            await second.resume(tokens[used], "answer")
            with pytest.raises(TokenInvalid):
                await second.resume(tokens[1 - used], "another")
            assert await second.run(handle.id).result() == "answer"

    in_virtual_time(scenario)()


@in_virtual_time
async def test_a_token_told_before_a_crash_works_before_the_recovery():
    """Proves that the wait is open as soon as its token is told: an answer that comes while no worker lives is
    taken, and the handler gets it without the token being told again."""
    store, tokens = MemoryStore(), list[str]()

    async def handler(ctx):
        async def on_token(token: str) -> None:
            tokens.append(token)
            await trio.sleep_forever()

        return await ctx.wait("look", on_token=on_token)

    flow = one_step(handler)
    async with open_engine(store, flow) as first:
        handle = await first.start(flow)
        await idle()
        await crash(first)
    async with open_engine(store, worker=False) as client:
        await client.resume(tokens[0], "meanwhile")
    async with open_engine(store, flow) as second:
        assert await second.run(handle.id).result() == "meanwhile"
    assert len(tokens) == 1


@in_virtual_time
async def test_an_on_token_that_fails_is_a_failed_attempt():
    """Proves that the next attempt tells a further token for the same wait, whose deadline stays, and that the
    first one works too."""
    tokens: list[str] = []

    async def handler(ctx):
        async def on_token(token: str) -> None:
            tokens.append(token)
            if len(tokens) == 1:
                raise OSError("mail server down")

        return await ctx.wait("look", on_token=on_token, timeout=100)

    flow = one_step(handler, retry_delay=10, jitter=0)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await trio.sleep(20)
        run = await handle.get()
        wait = run.steps["step"].wait
        assert (run.status, run.steps["step"].attempts) == ("waiting", 2)
        assert wait is not None
        assert wait.due_at is not None
        assert (wait.due_at - run.created_at).total("seconds") == 100
        await engine.resume(tokens[0], "by the first")
        assert await handle.result() == "by the first"
    assert len(set(tokens)) == 2


@in_virtual_time
async def test_a_drain_while_a_token_is_told():
    """Proves that a hand-over in the middle of telling tells a further token, in the same attempt, and that the
    first one works too."""
    store, tokens = MemoryStore(), list[str]()

    async def handler(ctx):
        async def on_token(token: str) -> None:
            tokens.append(token)
            if len(tokens) == 1:
                await trio.sleep_forever()

        return [await ctx.wait("look", on_token=on_token), ctx.attempt]

    flow = one_step(handler)
    async with open_engine(store, flow, drain_timeout=0) as first:
        handle = await first.start(flow)
        await idle()
    async with open_engine(store, flow) as second:
        await idle()
        assert len(set(tokens)) == 2
        await second.resume(tokens[0], "answer")
        assert await second.run(handle.id).result() == ["answer", 1]


@in_virtual_time
async def test_own_tokens():
    """Proves that a caller's own token is told and answers, and that one shorter than 16 characters is refused."""
    told: list[str] = []

    async def handler(ctx):
        async def on_token(token: str) -> None:
            told.append(token)

        return await ctx.wait("look", token=ctx.input, on_token=on_token)

    flow = one_step(handler, attempts=1)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow, "a" * 16)
        await idle()
        await engine.resume("a" * 16, "yes")
        assert await handle.result() == "yes"
        short = await (await engine.start(flow, "b" * 15)).wait()
        assert short.error is not None
        assert (short.status, short.error.code) == ("failed", "workflow.validation_error")
    assert told == ["a" * 16]


@in_virtual_time
async def test_an_own_token_needs_no_on_token():
    """Proves that a token which the caller knows anyway works without being told."""

    async def handler(ctx):
        return await ctx.wait("look", token=OWN)

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        assert (await at_rest(handle)).status == "waiting"
        await engine.resume(OWN, 1)
        assert await handle.result() == 1


@in_virtual_time
async def test_no_two_open_waits_share_a_token():
    """Proves that a second run which asks with a token in use fails, and the first one's token stays its own."""

    async def handler(ctx):
        return await ctx.wait("look", token=OWN)

    flow = one_step(handler, attempts=1)
    async with open_engine("memory:", flow) as engine:
        first = await engine.start(flow)
        await idle()
        second = await (await engine.start(flow)).wait()
        assert second.status == "failed"
        await engine.resume(OWN, "mine")
        assert await first.result() == "mine"
        third = await engine.start(flow)
        assert (await at_rest(third)).status == "waiting"


async def test_only_digests_are_stored(tmp_path: Path):
    """Proves that neither a minted nor an own token is anywhere in the bytes on disk, while they work."""
    tokens: list[str] = []

    async def handler(ctx):
        async def on_token(token: str) -> None:
            tokens.append(token)

        first = await ctx.wait("one", on_token=on_token, meta={"marker": "findable"})
        return [first, await ctx.wait("two", token=OWN, on_token=on_token)]

    flow = one_step(handler)
    url = f"sqlite:///{tmp_path}/runs.db"

    def stored() -> bytes:
        return b"".join(path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file())

    async with open_engine(url, flow) as engine, engine.events("workflow.waiting") as parked:
        handle = await engine.start(flow)
        await anext(parked)
        assert b"findable" in stored()
        assert tokens[0].encode() not in stored()
        await engine.resume(tokens[0], 1)
        await anext(parked)
        assert tokens[1] == OWN
        assert OWN.encode() not in stored()
        await engine.resume(OWN, 2)
        assert await handle.result() == [1, 2]
    assert not any(token.encode() in stored() for token in tokens)


@in_virtual_time
async def test_bad_tokens():
    """Proves that an unknown, altered, used, expired, withdrawn or cancelled token is TokenInvalid, without
    telling which, for resume and withdraw, and that nothing is answered by it."""
    tokens: list[str] = []

    async def handler(ctx):
        async def on_token(token: str) -> None:
            tokens.append(token)

        try:
            return await ctx.wait("look", on_token=on_token, timeout=10)
        except (WaitTimedOut, WaitWithdrawn) as error:
            return type(error).__name__

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        used, expired, withdrawn, cancelled, live = [await engine.start(flow) for _ in range(5)]
        await idle()
        by_run = dict(zip([used, expired, withdrawn, cancelled, live], tokens, strict=True))
        await engine.resume(by_run[used], "first")
        await engine.withdraw(by_run[withdrawn], "no need")
        await cancelled.cancel()
        await live.pause()
        await trio.sleep(11)
        assert await expired.result() == "WaitTimedOut"
        assert await withdrawn.result() == "WaitWithdrawn"
        good = by_run[live]
        altered = good[:-1] + ("A" if good[-1] != "A" else "B")
        bad = [
            by_run[used],
            by_run[expired],
            by_run[withdrawn],
            by_run[cancelled],
            altered,
            good + "x",
            good[:-1],
            "unknown",
            "",
        ]
        messages = set()
        for token in bad:
            for verb in (engine.resume, engine.withdraw):
                with pytest.raises(TokenInvalid) as caught:
                    await verb(token, None)
                messages.add(str(caught.value))
        assert len(messages) == 1
        assert (await live.get()).steps["step"].wait is not None
        assert await used.result() == "first"


@in_virtual_time
async def test_a_token_answers_its_own_wait_only():
    """Proves that the token of an earlier wait of a step does not answer the later one, nor another run's."""
    tokens: dict[str, str] = {}

    async def handler(ctx):
        async def tell(token: str) -> None:
            tokens[f"{ctx.input}{len(tokens)}"] = token

        return [await ctx.wait("one", on_token=tell), await ctx.wait("two", on_token=tell)]

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        a = await engine.start(flow, "a")
        await idle()
        b = await engine.start(flow, "b")
        await idle()
        await engine.resume(tokens["a0"], "a one")
        await idle()
        with pytest.raises(TokenInvalid):
            await engine.resume(tokens["a0"], "again")
        assert {wait.run_id: wait.reason for wait in await engine.pending()} == {a.id: "two", b.id: "one"}
        await engine.resume(tokens["a2"], "a two")
        assert await a.result() == ["a one", "a two"]
        assert (await at_rest(b)).status == "waiting"


@in_virtual_time
async def test_withdrawing():
    """Proves that a withdrawn wait raises `WaitWithdrawn` with the reason, by token and by handle, once; and that
    neither a sleep nor a finished wait can be withdrawn."""
    tokens: list[str] = []

    async def handler(ctx):
        async def tell(token: str) -> None:
            tokens.append(token)

        if ctx.input == "sleep":
            await ctx.sleep(10)
        try:
            return await ctx.wait("look", on_token=tell)
        except WaitWithdrawn as error:
            return [str(error), error.meta["reason"]]

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        one, two, three = [await engine.start(flow, value) for value in ("token", "handle", "sleep")]
        await idle()
        await engine.withdraw(tokens[0], "moved on")
        text, reason = await one.result()
        assert ("moved on" in text, reason) == (True, "moved on")
        with pytest.raises(InvalidState):
            await three.withdraw()
        await two.withdraw()
        assert (await two.result())[1] is None
        with pytest.raises(InvalidState):
            await two.withdraw()


# Payloads


@pytest.mark.parametrize(
    ("returns", "good", "bad"),
    [
        (bool, True, "yes"),
        (str | None, None, 3),
        (Verdict, {"grade": "good"}, {"grade": "middling"}),
        (list[int], [1, 2], [1, "2"]),
        (dict[str, float], {"a": 1.5}, ["a"]),
    ],
)
@pytest.mark.parametrize("answerer", ["worker", "client", "token"])
def test_a_payload_that_does_not_fit(returns, good, bad, answerer):
    """Proves that the answerer is refused and the wait stays open, also when it is a client engine that has
    never seen the workflow; then the right payload arrives in its type."""
    tokens: list[str] = []
    received: list[Any] = []

    async def scenario() -> None:
        async def handler(ctx):
            async def tell(token: str) -> None:
                tokens.append(token)

            received.append(await ctx.wait("look", returns=returns, on_token=tell))

        store, flow = MemoryStore(), one_step(handler)
        async with open_engine(store, flow) as engine, open_engine(store, worker=False) as client:
            handle = await engine.start(flow)
            before = await at_rest(handle)
            answering = engine if answerer == "worker" else client

            async def answer(payload: Any) -> None:
                if answerer == "token":
                    await answering.resume(tokens[0], payload)
                else:
                    await answering.run(handle.id).resume(payload)

            with pytest.raises(ValidationError) as caught:
                await answer(bad)
            assert caught.value.code == "workflow.validation_error"
            assert await handle.get() == before
            await answer(good)
            assert (await handle.wait()).status == "done"

    in_virtual_time(scenario)()
    assert received == [msgspec.convert(good, returns)]


@in_virtual_time
async def test_a_person_must_say_something():
    """Proves that answering a human wait by handle needs a payload, and that None is one."""

    async def handler(ctx):
        return [await ctx.wait("look")]

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        with pytest.raises(ValidationError):
            await handle.resume()
        assert (await handle.get()).status == "waiting"
        await handle.resume(None)
        assert await handle.result() == [None]


@in_virtual_time
async def test_an_unstorable_answer():
    """Proves that an answer which cannot be stored is refused to the answerer."""

    async def handler(ctx):
        return await ctx.wait("look")

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        with pytest.raises(ValidationError):
            await handle.resume(object())
        assert (await handle.get()).status == "waiting"


# Which wait is meant


@in_virtual_time
async def test_resume_where_nothing_waits():
    """Proves that a draft, a running step, another step than the waiting one and a backoff are InvalidState."""
    flow: Workflow[Any, Any] = Workflow("flow")

    @flow.step(retry_delay=10, jitter=0)
    async def busy(ctx):
        await trio.sleep(1)
        if ctx.attempt == 1:
            raise OSError("once more")

    @flow.step
    async def gate(ctx):
        return await ctx.wait("look")

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow, delay=5)

        async def refused(**options: Any) -> str:
            with pytest.raises(InvalidState) as caught:
                await handle.resume("x", **options)
            assert caught.value.action == "resume"
            return str(caught.value.meta["status"])

        assert await refused() == "draft"
        await trio.sleep(5.5)
        assert await refused() == "running"
        await trio.sleep(2)
        assert await refused() == "waiting"
        await trio.sleep(20)
        assert await refused(step="busy") == "waiting"
        await handle.resume("x", step=gate)
        assert await handle.result() == "x"


@in_virtual_time
async def test_resume_where_several_wait():
    """Proves that while two waits of a handler are open only a token says which is meant."""

    async def handler(ctx):
        async def fail(token: str) -> None:
            raise OSError("not told")

        async def answer(token: str) -> None:
            assert sorted(wait.reason for wait in await engine.pending()) == ["one", "two"]
            for options in ({}, {"step": "step"}):
                with pytest.raises(InvalidState, match="2 waits"):
                    await engine.run(ctx.run_id).resume("which?", **options)
            await engine.resume(token, "the second")

        with suppress(OSError):
            await ctx.wait("one", on_token=fail)
        return await ctx.wait("two", on_token=answer)

    flow = one_step(handler, attempts=1)
    async with open_engine("memory:", flow) as engine:
        assert await (await engine.start(flow)).result() == "the second"


# Answer against deadline


async def race(answered: list[str], refused: list[str], handle: RunHandle) -> None:
    try:
        await handle.resume("answer")
        answered.append("answer")
    except InvalidState:
        refused.append("answer")


@pytest.mark.parametrize(("at", "winner"), [(9.999, "answer"), (10.001, "expiry"), (10.0, None)])
@pytest.mark.parametrize("first", ["sleeper", "run"])
def test_an_answer_against_the_deadline(at, winner, first):
    """Proves that of an answer and the expiry exactly one wins: the acknowledged answer is returned, or the
    answerer is refused and the wait timed out; also when both come in the same instant."""
    winners: list[str] = []

    async def scenario() -> None:
        async def handler(ctx):
            try:
                return await ctx.wait("look", timeout=10)
            except WaitTimedOut:
                return "expiry"

        flow = one_step(handler)
        async with open_engine("memory:", flow) as engine:
            answered: list[str] = []
            refused: list[str] = []

            async def answer_late() -> None:
                await trio.sleep_until(at)
                await race(answered, refused, handle)

            async with trio.open_nursery() as nursery:
                handle = engine.run("the-run")
                if first == "sleeper":
                    nursery.start_soon(answer_late)
                    await idle()
                await engine.start(flow, run_id="the-run")
                if first == "run":
                    await idle()
                    nursery.start_soon(answer_late)
            result = await handle.result()
            assert (answered, refused) == ((["answer"], []) if result == "answer" else ([], ["answer"]))
            winners.append(result)
            entry = [e.detail for e in await handle.timeline() if e.kind == "waited"]
            assert entry == [f"look: {'value' if result == 'answer' else 'timed_out'}"]

    for _ in range(15):
        in_virtual_time(scenario)()
    assert winner is None or set(winners) == {winner}


@pytest.mark.parametrize("verb", ["resume", "token", "withdraw"])
def test_a_late_answer_wins_until_the_expiry_is_committed(verb):
    """Proves that while no worker has recorded the expiry an answer still counts, however late."""

    async def scenario() -> None:
        async def handler(ctx):
            try:
                return await ctx.wait("look", timeout=10, token=OWN)
            except (WaitTimedOut, WaitWithdrawn) as error:
                return type(error).__name__

        store, flow = MemoryStore(), one_step(handler)
        async with open_engine(store, flow) as engine:
            handle = await engine.start(flow)
            await idle()
        await trio.sleep(1000)
        async with open_engine(store, worker=False) as client:
            if verb == "resume":
                await client.run(handle.id).resume("late")
            elif verb == "token":
                await client.resume(OWN, "late")
            else:
                await client.withdraw(OWN)
        async with open_engine(store, flow) as engine:
            expected = "WaitWithdrawn" if verb == "withdraw" else "late"
            assert await engine.run(handle.id).result() == expected

    in_virtual_time(scenario)()


@in_virtual_time
async def test_a_deadline_that_passes_while_the_token_is_told():
    """Proves that a wait whose time is up before its handler has unwound times out without parking, and that an
    answer before that still counts."""

    async def handler(ctx):
        async def slow(token: str) -> None:
            await trio.sleep(20)
            if ctx.input == "answered":
                await engine.resume(token, "late")

        try:
            return await ctx.wait("look", timeout=10, on_token=slow)
        except WaitTimedOut:
            return trio.current_time()

    flow = one_step(handler)
    async with open_engine("memory:", flow) as engine:
        assert await (await engine.start(flow)).result() == pytest.approx(20)
        assert await (await engine.start(flow, "answered")).result() == "late"


# Paused


@pytest.mark.parametrize("answered", [False, True])
def test_a_deadline_that_passes_while_paused(answered):
    """Proves that a paused run's wait does not time out: it can be answered after its time, or else fires at
    unpause."""

    async def scenario() -> None:
        async def handler(ctx):
            try:
                return await ctx.wait("look", timeout=10)
            except WaitTimedOut:
                return trio.current_time()

        flow = one_step(handler)
        async with open_engine("memory:", flow) as engine:
            handle = await engine.start(flow)
            await trio.sleep(5)
            await handle.pause()
            await trio.sleep(95)
            run = await handle.get()
            assert (run.status, run.due_at) == ("waiting", None)
            assert run.steps["step"].wait is not None
            if answered:
                await handle.resume("while paused")
                await trio.sleep(10)
                assert (await handle.get()).paused
            await handle.unpause()
            assert await handle.result() == ("while paused" if answered else pytest.approx(100))

    in_virtual_time(scenario)()


@in_virtual_time
async def test_a_paused_retry_and_a_paused_signal():
    """Proves that while paused no attempt begins and a signal is taken but enters no handler."""
    entries: list[str] = []

    async def handler(ctx):
        entries.append(ctx.input)
        if ctx.input == "retry" and ctx.attempt == 1:
            raise OSError("once more")
        return await ctx.wait_for("go") if ctx.input == "signal" else "retried"

    flow = one_step(handler, retry_delay=10, jitter=0)
    async with open_engine("memory:", flow) as engine:
        retrying, hearing = await engine.start(flow, "retry"), await engine.start(flow, "signal")
        await idle()
        await retrying.pause()
        await hearing.pause()
        await engine.emit("go", "heard")
        await trio.sleep(100)
        assert sorted(entries) == ["retry", "signal"]
        assert (await hearing.get()).steps["step"].wait is None
        await retrying.unpause()
        await hearing.unpause()
        assert [await run.result() for run in (retrying, hearing)] == ["retried", "heard"]
