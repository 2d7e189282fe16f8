"""Durable fan-out inside a step: `ctx.scatter`."""

from collections import Counter
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from streamline_trio import (
    InvalidState,
    MemoryStore,
    NonRetriable,
    RunFailed,
    Signal,
    StepContext,
    SuspensionError,
    SuspensionMismatch,
    ValidationError,
    WaitTimedOut,
    Workflow,
    open_engine,
)
from streamline_trio.testing import crash
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, one_step, passing, settled

Ctx = StepContext[Any, Any]
go = Signal("go", int)


class Charge(msgspec.Struct):
    cents: int


def giving(value: Any) -> Any:
    """An async function without arguments that gives this."""

    async def fn() -> Any:
        await trio.lowlevel.checkpoint()
        return value

    return fn


def after(seconds: float, value: Any = None) -> Any:
    """An async function that takes its time, in the worker."""

    async def fn() -> Any:
        await trio.sleep(seconds)
        return value

    return fn


# --- results ---------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_results_are_keyed_in_the_order_of_the_mapping():
    """S123. Proves that each key has its value, whatever the order in which they end, sync functions too."""

    async def step(ctx: Ctx) -> list[Any]:
        found = await ctx.scatter({"c": after(3, {"a": 1}), "a": after(1, [1, 2]), "b": lambda: (3,)})
        return [list(found), found]

    run = await settled(one_step(step))
    assert run.output == [["c", "a", "b"], {"c": {"a": 1}, "a": [1, 2], "b": [3]}]


@in_virtual_time
async def test_no_key_and_one_key():
    """S124. Proves that an empty mapping gives {} and one key its value."""

    async def step(ctx: Ctx) -> list[Any]:
        return [await ctx.scatter({}), await ctx.scatter({"only": giving(42)})]

    assert (await settled(one_step(step))).output == [{}, {"only": 42}]


@pytest.mark.parametrize(("keys", "cap"), [(3, 2), (20, 3), (5, 1)])
@in_virtual_time
async def test_at_most_so_many_at_once(keys, cap):
    """S125. Proves that `concurrency` bounds how many run, that all of them run, and start in order."""
    running, peak, started = 0, 0, list[str]()

    async def step(ctx: Ctx) -> Any:
        def fn(name: str) -> Any:
            async def call() -> str:
                nonlocal running, peak
                running += 1
                peak = max(peak, running)
                started.append(name)
                await trio.sleep(1)
                running -= 1
                return name

            return call

        return await ctx.scatter({name: fn(name) for name in map(str, range(keys))}, concurrency=cap)

    run = await settled(one_step(step))
    assert run.output == {name: name for name in map(str, range(keys))}
    assert peak == cap
    assert started == list(map(str, range(keys)))


@in_virtual_time
async def test_unbounded_keys_start_in_order_too():
    """Proves that also without a cap the functions are called in the order of the mapping."""
    started: list[int] = []

    async def step(ctx: Ctx) -> None:
        await ctx.scatter({str(n): partial(started.append, n) for n in range(50)})

    await settled(one_step(step))
    assert started == list(range(50))


@in_virtual_time
async def test_results_come_back_in_the_type_asked_for():
    """Proves that results are rebuilt as `returns`, live and recovered, and plain without it."""
    kinds: list[list[type]] = []

    async def step(ctx: Ctx) -> None:
        typed = await ctx.scatter({"a": giving(Charge(5))}, returns=Charge)
        plain = await ctx.scatter({"a": giving(Charge(5))})
        kinds.append([type(typed["a"]), type(plain["a"])])
        if ctx.attempt == 1:
            raise ValueError("once more")

    assert (await settled(one_step(step, retry_delay=0))).status == "done"
    assert kinds == [[Charge, dict]] * 2


@pytest.mark.parametrize(
    ("fns", "options"),
    [
        ({1: giving(1)}, {}),
        ({"a": 1}, {}),
        ([giving(1)], {}),
        ({"a" * 501: giving(1)}, {}),
        ({"\ud800": giving(1)}, {}),
        ({"a": giving(1)}, {"concurrency": 0}),
        ({"a": giving(1)}, {"concurrency": True}),
        ({"a": giving(1)}, {"name": ""}),
        ({"a": giving(1)}, {"returns": type(go)}),
        ({"a": giving("text")}, {"returns": int}),
    ],
)
@in_virtual_time
async def test_what_makes_no_sense_is_refused(fns, options):
    """Proves that arguments and results of a wrong kind are a `ValidationError`, which is not retried."""

    async def step(ctx: Ctx) -> Any:
        return await ctx.scatter(fns, **options)

    run = await settled(one_step(step))
    assert run.error is not None
    assert (run.status, run.error.code, run.steps["step"].attempts) == ("failed", ValidationError.code, 1)


@in_virtual_time
async def test_a_result_that_is_too_large_fails_its_key():
    """Proves that results obey the step's `max_payload_bytes`."""

    async def step(ctx: Ctx) -> Any:
        return await ctx.scatter({"a": giving("x" * 200), "b": giving(1)})

    run = await settled(one_step(step, max_payload_bytes=100))
    assert run.error is not None
    assert (run.status, run.error.code) == ("failed", "workflow.payload_too_large")


# --- failures --------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_key_that_fails_fails_the_step():
    """S127. Proves that with one attempt a failed key fails the run, and the other is not lost on the way."""
    calls: list[str] = []

    async def step(ctx: Ctx) -> None:
        async def bad() -> None:
            raise ValueError("bad")

        await ctx.scatter({"bad": bad, "ok": lambda: calls.append("ok")})

    run = await settled(one_step(step, attempts=1))
    assert (run.status, calls) == ("failed", ["ok"])
    assert run.error is not None
    assert "bad" in run.error.message


@in_virtual_time
async def test_the_first_failure_in_time_is_raised_when_all_have_ended():
    """Proves that failures stop no other key; the first one is raised as it is, with notes of the others."""
    ended: list[str] = []
    raised: list[BaseException] = []
    late, early = ValueError("late"), KeyError("early")

    async def step(ctx: Ctx) -> None:
        async def fails(seconds: float, error: Exception) -> None:
            await trio.sleep(seconds)
            raise error

        async def works() -> None:
            await trio.sleep(5)
            ended.append("works")

        try:
            await ctx.scatter({"x": lambda: fails(2, late), "y": lambda: fails(1, early), "z": works})
        except (ValueError, KeyError) as error:
            raised.append(error)

    assert (await settled(one_step(step))).status == "done"
    assert raised == [early]
    assert raised[0].__notes__ == ["raised by scatter key 'y'", "scatter key 'x' failed too: ValueError: late"]
    assert ended == ["works"]


@in_virtual_time
async def test_a_retry_runs_only_what_has_not_finished():
    """Proves that the keys that have finished are not called by the next attempt, nor after `handle.retry`."""
    calls: Counter[str] = Counter()

    async def step(ctx: Ctx) -> Any:
        def fn(name: str) -> Any:
            calls[name] += 1
            if name == "b" and calls[name] < 4:
                raise ValueError("not yet")
            return name

        return await ctx.scatter({name: partial(fn, name) for name in "abc"})

    async with open_engine("memory:", workflow := one_step(step, attempts=2, retry_delay=1)) as engine:
        handle = await engine.start(workflow, None)
        with pytest.raises(RunFailed):
            await handle.result()
        assert calls == {"a": 1, "b": 2, "c": 1}
        await handle.retry()
        assert await handle.result() == {"a": "a", "b": "b", "c": "c"}
    assert calls == {"a": 1, "b": 4, "c": 1}


@in_virtual_time
async def test_a_failure_that_must_not_be_retried_is_not():
    """Proves that the rules of retries see the key's own error."""

    async def step(ctx: Ctx) -> None:
        def bad() -> None:
            raise NonRetriable("no")

        await ctx.scatter({"a": bad})

    run = await settled(one_step(step))
    assert (run.status, run.steps["step"].attempts) == ("failed", 1)


# --- crashes ---------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_after_a_crash_only_unfinished_keys_run():
    """S129. Proves that a worker that dies in the third of four keys costs a second call of that key alone."""
    store, calls = MemoryStore(), Counter[str]()
    held = trio.Event()

    async def step(ctx: Ctx) -> Any:
        async def call(name: str) -> str:
            calls[name] += 1
            if name == "c" and calls[name] == 1:
                held.set()
                await trio.sleep_forever()
            return name

        return await ctx.scatter({name: partial(call, name) for name in "abcd"}, concurrency=1)

    workflow = one_step(step)
    async with open_engine(store, workflow) as engine:
        handle = await engine.start(workflow, None)
        await held.wait()
        await crash(engine)
    async with open_engine(store, workflow) as engine:
        run = await engine.run(handle.id).wait()
        assert run.output == {name: name for name in "abcd"}
        assert run.steps["step"].attempts == 2
    assert calls == {"a": 1, "b": 1, "c": 2, "d": 1}


@in_virtual_time
async def test_each_finished_key_is_progress():
    """Proves that a run that finishes a key in each life is never given up, however many lives it takes."""
    store, calls = MemoryStore(), Counter[str]()
    lives = 12

    async def step(ctx: Ctx) -> Any:
        async def call(name: str) -> str:
            calls[name] += 1
            if calls[name] == 1:
                dying.set()
                await trio.sleep_forever()
            return name

        return await ctx.scatter({str(n): partial(call, str(n)) for n in range(lives)}, concurrency=1)

    workflow = one_step(step)
    dying = trio.Event()
    async with open_engine(store, workflow, max_recoveries=2) as engine:
        handle = await engine.start(workflow, None)
        await dying.wait()
        await crash(engine)
    for _ in range(lives - 1):
        dying = trio.Event()
        async with open_engine(store, workflow, max_recoveries=2) as engine:
            await dying.wait()
            await crash(engine)
    async with open_engine(store, workflow, max_recoveries=2) as engine:
        run = await engine.run(handle.id).wait()
    assert (run.status, run.recoveries) == ("done", lives)


@in_virtual_time
async def test_nothing_is_left_when_the_step_is_left():
    """Proves that pieces and records go in the write that leaves the step, when it finishes and when it goes."""
    store = MemoryStore()

    async def step(ctx: Ctx) -> Any:
        async def sleeps() -> int:
            await ctx.sleep(1)
            return 1

        await ctx.scatter({"a": sleeps, "b": giving(2)})
        if ctx.idempotency_key().endswith("step"):
            await ctx.goto("step")
        return "done"

    workflow = one_step(step)
    passing(workflow, "next")
    async with open_engine(store, workflow) as engine:
        handle = await engine.start(workflow, None)
        await handle.wait()
        document = await store.load(handle.id)
    assert document is not None
    assert (document.pieces, document.records) == ({}, {})
    assert document.step("step").generation == 1


@pytest.mark.parametrize("how", ["rewind", "goto"])
@in_virtual_time
async def test_a_step_that_is_reset_forgets_its_keys(how):
    """Proves that rewind and goto call every key again."""
    calls: Counter[str] = Counter()

    async def step(ctx: Ctx) -> Any:
        def call(name: str) -> None:
            calls[name] += 1

        await ctx.scatter({name: partial(call, name) for name in "ab"})
        if how == "goto" and calls["a"] == 1:
            await ctx.goto("step")

    async with open_engine("memory:", workflow := one_step(step)) as engine:
        handle = await engine.start(workflow, None)
        await handle.wait()
        if how == "rewind":
            await handle.rewind("step")
            await handle.wait()
    assert calls == {"a": 2, "b": 2}


# --- several of them -------------------------------------------------------------------------------------------


@in_virtual_time
async def test_scatters_one_after_the_other_do_not_mix():
    """Proves that equal keys of several scatters have values of their own (the original mixes them up)."""

    async def step(ctx: Ctx) -> Any:
        found = [await ctx.scatter({"k": giving(n)}) for n in range(3)]
        return [*found, await ctx.scatter({"k": giving(7)}, name="x"), await ctx.scatter({"k": giving(8)})]

    assert (await settled(one_step(step))).output == [{"k": 0}, {"k": 1}, {"k": 2}, {"k": 7}, {"k": 8}]


@in_virtual_time
async def test_a_name_is_taken_once():
    """Proves that two scatters of one name in one step are refused."""

    async def step(ctx: Ctx) -> Any:
        await ctx.scatter({"k": giving(1)}, name="x")
        await ctx.scatter({"k": giving(2)}, name="x")

    run = await settled(one_step(step))
    assert run.error is not None
    assert run.error.code == SuspensionError.code


@pytest.mark.parametrize("keys", [("a/b", "a", "a~1b"), ("a:b", "a", ""), ("x/timer#0", "x", "scatter#0:x/")])
@in_virtual_time
async def test_any_text_is_a_key(keys):
    """Proves that slashes, colons and tildes in keys and names lead to no other key's place."""

    async def step(ctx: Ctx) -> Any:
        def fn(key: str) -> Any:
            async def call() -> Any:
                await ctx.sleep(1)
                return [key, await ctx.scatter({key: giving(key)}, name=key or "-")]

            return call

        return await ctx.scatter({key: fn(key) for key in keys}, name="a:b/c")

    run = await settled(one_step(step))
    assert run.output == {key: [key, {key: key}] for key in keys}


@in_virtual_time
async def test_a_scatter_in_a_scatter():
    """Proves that a nested key that suspends parks the step, and that finished ones are not called again."""
    calls: Counter[str] = Counter()

    async def step(ctx: Ctx) -> Any:
        async def leaf(name: str) -> str:
            calls[name] += 1
            if name.endswith("z"):
                await ctx.sleep(10)
            calls[name + " end"] += 1
            return name

        async def branch(name: str) -> Any:
            return await ctx.scatter({k: partial(leaf, name + k) for k in "yz"})

        return await ctx.scatter({name: partial(branch, name) for name in "ab"})

    run = await settled(one_step(step))
    assert run.output == {"a": {"y": "ay", "z": "az"}, "b": {"y": "by", "z": "bz"}}
    assert run.steps["step"].attempts == 1
    assert calls == {"ay": 1, "az": 2, "by": 1, "bz": 2, "ay end": 1, "az end": 1, "by end": 1, "bz end": 1}


@in_virtual_time
async def test_a_checkpoint_in_a_key_and_after_it():
    """S158. Proves that checkpoints work beside a scatter and within it, also after one that has failed.

    The original gives the one slot to the scatter; here slots have names of their own (S157 is decided otherwise).
    """

    async def step(ctx: Ctx) -> Any:
        async def bad() -> None:
            await ctx.checkpoint("in the key", name="k")
            raise ValueError("bad")

        try:
            await ctx.scatter({"a": bad})
        except ValueError:
            await ctx.checkpoint("after")
        return [ctx.checkpoint_value(name="k"), ctx.checkpoint_value()]

    assert (await settled(one_step(step))).output == ["in the key", "after"]


# --- keys that suspend -----------------------------------------------------------------------------------------


@in_virtual_time
async def test_when_every_key_sleeps_the_step_parks():
    """Proves that sleeping keys hold no lease, that each wakes at its time, and that no other is called then."""
    calls: Counter[str] = Counter()

    async def step(ctx: Ctx) -> Any:
        async def call(name: str, seconds: float) -> str:
            calls[name] += 1
            await ctx.sleep(seconds)
            return name

        return await ctx.scatter({name: partial(call, name, s) for s, name in enumerate("abcd", 1)})

    workflow = one_step(step)
    async with open_engine("memory:", workflow) as engine:
        handle = await engine.start(workflow, None)
        run = await at_rest(handle)
        assert (run.status, run.lease, run.revision) == ("waiting", None, 2)
        assert (await handle.wait()).output == {name: name for name in "abcd"}
    assert calls == dict.fromkeys("abcd", 2)


@in_virtual_time
async def test_a_key_waits_while_another_runs():
    """Proves that a person's answer, a signal and a timeout each reach their key while a sibling runs on."""
    order: list[str] = []
    parked, release = trio.Event(), trio.Event()

    async def step(ctx: Ctx) -> Any:
        async def asks() -> int:
            answer: int = await ctx.wait("how many?", returns=int)
            order.append("answered")
            return answer

        async def listens() -> int:
            payload = await ctx.wait_for(go)
            order.append("heard")
            return payload

        async def gives_up() -> str:
            try:
                await ctx.wait("ever?", timeout=30)
            except WaitTimedOut:
                order.append("timed out")
                return "nobody"
            return "somebody"

        async def runs() -> str:
            parked.set()
            await release.wait()
            order.append("ran")
            return "ran"

        return await ctx.scatter({"asks": asks, "listens": listens, "gives up": gives_up, "runs": runs})

    workflow = one_step(step)
    async with open_engine("memory:", workflow) as engine:
        handle = await engine.start(workflow, None)
        await parked.wait()
        run = await at_rest(handle)
        assert (run.status, run.lease is None) == ("running", False)
        await engine.emit(go, 7, run=handle)
        await idle()
        assert order == ["heard"]
        await trio.sleep(40)
        assert order == ["heard", "timed out"]
        await handle.resume(3)
        await idle()
        assert order == ["heard", "timed out", "answered"]
        release.set()
        assert await handle.result() == {"asks": 3, "listens": 7, "gives up": "nobody", "runs": "ran"}
        assert (await handle.get()).steps["step"].attempts == 1


@in_virtual_time
async def test_a_message_that_came_before_is_taken_by_its_key():
    """Proves that a key's wait takes what is in the inbox, while a sibling runs."""
    heard: list[int] = []

    async def step(ctx: Ctx) -> Any:
        async def listens() -> None:
            heard.append(await ctx.wait_for(go))

        await trio.sleep(1)
        await ctx.scatter({"a": listens, "b": after(100)})

    workflow = one_step(step)
    async with open_engine("memory:", workflow) as engine:
        handle = await engine.start(workflow, None)
        await engine.emit(go, 5, run=handle)
        await trio.sleep(50)
        assert heard == [5]
        await handle.result()


@in_virtual_time
async def test_nothing_times_out_while_the_run_is_paused():
    """Proves that a pause keeps the times of waiting keys from coming, and that they come when it ends."""
    ended: list[str] = []

    async def step(ctx: Ctx) -> Any:
        async def sleeps() -> None:
            await ctx.sleep(10)
            ended.append("slept")

        await ctx.scatter({"a": sleeps, "b": after(100)})

    workflow = one_step(step)
    async with open_engine("memory:", workflow) as engine:
        handle = await engine.start(workflow, None)
        await idle()
        await handle.pause()
        await trio.sleep(50)
        assert ended == []
        await handle.unpause()
        await idle()
        assert ended == ["slept"]
        assert (await handle.wait()).status == "done"


@in_virtual_time
async def test_a_step_that_parks_with_some_keys_wakes_for_any_of_them():
    """Proves that a run parked on several keys goes on with the one that is answered and waits on for the other."""
    calls: Counter[str] = Counter()
    tokens: dict[str, str] = {}

    async def step(ctx: Ctx) -> Any:
        async def asks(name: str) -> int:
            calls[name] += 1

            async def told(token: str) -> None:
                tokens[name] = token

            answer: int = await ctx.wait(name, returns=int, on_token=told)
            return answer

        return await ctx.scatter({name: partial(asks, name) for name in "ab"})

    workflow = one_step(step)
    async with open_engine("memory:", workflow) as engine:
        handle = await engine.start(workflow, None)
        assert (await at_rest(handle)).status == "waiting"
        await engine.resume(tokens["b"], 2)
        assert (await at_rest(handle)).status == "waiting"
        assert calls == {"a": 1, "b": 2}
        await engine.resume(tokens["a"], 1)
        assert await handle.result() == {"a": 1, "b": 2}
    assert calls == {"a": 2, "b": 2}


@in_virtual_time
async def test_a_failure_beside_a_wait():
    """Proves that a key that fails beside one that waits fails the attempt, and that the next one waits on."""
    calls: Counter[str] = Counter()

    async def step(ctx: Ctx) -> Any:
        async def waits() -> int:
            calls["waits"] += 1
            answer: int = await ctx.wait("?", returns=int)
            return answer

        async def fails() -> str:
            calls["fails"] += 1
            if calls["fails"] == 1:
                await trio.sleep(1)
                raise ValueError("once")
            return "worked"

        return await ctx.scatter({"waits": waits, "fails": fails})

    workflow = one_step(step, retry_delay=5, jitter=0)
    async with open_engine("memory:", workflow) as engine:
        handle = await engine.start(workflow, None)
        await trio.sleep(2)
        await handle.resume(4)
        assert await handle.result() == {"waits": 4, "fails": "worked"}
        assert (await handle.get()).steps["step"].attempts == 2
    assert calls == {"waits": 2, "fails": 2}


@in_virtual_time
async def test_keys_that_wait_make_room():
    """Proves that a key that waits does not count against `concurrency`."""

    async def step(ctx: Ctx) -> Any:
        async def waits(seconds: float) -> None:
            await ctx.sleep(seconds)

        await ctx.scatter({str(n): lambda: waits(100) for n in range(10)}, concurrency=2)
        return "done"

    workflow = one_step(step)
    async with open_engine("memory:", workflow) as engine:
        handle = await engine.start(workflow, None)
        begun = trio.current_time()
        await handle.result()
        assert trio.current_time() - begun < 101


@pytest.mark.parametrize("handled", [True, False])
@in_virtual_time
async def test_what_cleanup_sees_of_a_suspension(handled):
    """Proves that a key's `finally` runs when it unwinds, and that swallowing the cancellation is an error."""
    cleaned: list[str] = []

    async def step(ctx: Ctx) -> Any:
        async def tidy() -> str:
            try:
                await ctx.sleep(10)
            except trio.Cancelled:
                if not handled:
                    return "swallowed"
                raise
            finally:
                cleaned.append("tidied")
            return "slept"

        return await ctx.scatter({"a": tidy, "b": after(20)})

    run = await settled(one_step(step, attempts=1))
    if handled:
        assert (run.output, cleaned) == ({"a": "slept", "b": None}, ["tidied", "tidied"])
    else:
        assert run.error is not None
        assert (run.error.code, cleaned) == (SuspensionError.code, ["tidied"])


@pytest.mark.parametrize("sibling", [20, 0])
@in_virtual_time
async def test_a_key_that_asks_for_something_else_is_caught(sibling):
    """Proves that a key called again within an attempt must ask for the same, in the scatter and after parking."""
    calls: Counter[str] = Counter()

    async def step(ctx: Ctx) -> Any:
        async def turns() -> None:
            calls["turns"] += 1
            await (ctx.sleep(1) if calls["turns"] == 1 else ctx.wait("?"))

        await ctx.scatter({"a": turns, "b": after(sibling)})

    run = await settled(one_step(step))
    assert run.error is not None
    assert run.error.type == SuspensionMismatch.__name__


# --- where it cannot be called ---------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["child", "shielded", "thread"])
@in_virtual_time
async def test_where_it_cannot_unwind_it_is_refused(where):
    """Proves that a scatter is refused before a key is called where the handler could not be unwound."""
    calls: list[int] = []

    async def asynchronous(ctx: Ctx) -> None:
        async def scatter() -> None:
            await ctx.scatter({"a": lambda: calls.append(1)})

        if where == "child":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(scatter)
        else:
            with trio.CancelScope(shield=True):
                await scatter()

    def sync(ctx: Ctx) -> None:
        async def scatter() -> None:
            await ctx.scatter({"a": lambda: calls.append(1)})

        trio.from_thread.run(scatter)

    handler: Any = sync if where == "thread" else asynchronous
    run = await settled(one_step(handler))
    assert run.error is not None
    assert (run.error.code, calls) == (SuspensionError.code, [])


@in_virtual_time
async def test_goto_in_a_key_is_refused():
    """Proves that a key cannot leave the step for all the others."""

    async def step(ctx: Ctx) -> None:
        await ctx.scatter({"a": lambda: ctx.goto("step")})

    run = await settled(one_step(step))
    assert run.error is not None
    assert run.error.code == SuspensionError.code
    assert "scatter key" in run.error.message


# --- being stopped ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "timeout", "run timeout", "drain"])
@in_virtual_time
async def test_being_stopped_while_keys_run(how):
    """Proves that a cancel, a timeout and a drain reach every key, and that finished ones are not called again."""
    calls: Counter[str] = Counter()
    cleaned: list[str] = []
    store = MemoryStore()

    async def step(ctx: Ctx) -> Any:
        async def quick() -> None:
            calls["quick"] += 1

        async def sleeps() -> None:
            calls["sleeps"] += 1
            await ctx.sleep(1000)

        async def slow() -> None:
            calls["slow"] += 1
            try:
                await trio.sleep(50 if calls["slow"] == 1 else 1)
            finally:
                cleaned.append("slow")

        await ctx.scatter({"quick": quick, "slow": slow, "sleeps": sleeps})

    options: dict[str, Any] = {"timeout": 20, "retry_delay": 0} if how == "timeout" else {}
    workflow: Workflow[Any, Any] = Workflow("flow", timeout=20 if how == "run timeout" else None)
    workflow.add_step("step", step, **options)
    async with open_engine(store, workflow, drain_timeout=0) as engine:
        handle = await engine.start(workflow, None)
        await trio.sleep(10)
        assert calls == {"quick": 1, "slow": 1, "sleeps": 1}
        if how == "cancel":
            await handle.cancel()
            assert (await handle.wait()).status == "cancelled"
        elif how == "run timeout":
            run = await handle.wait()
            assert run.error is not None
            assert run.error.code == "workflow.timeout"
        elif how == "timeout":
            assert (await handle.wait()).status == "done"
    if how == "drain":
        async with open_engine(store, workflow) as engine:
            run = await engine.run(handle.id).wait()
            assert (run.status, run.steps["step"].attempts, run.recoveries) == ("done", 1, 0)
    assert calls["quick"] == 1
    assert cleaned == ["slow"] * calls["slow"]


@in_virtual_time
async def test_a_scatter_in_a_cancel_scope_of_the_handler():
    """Proves that a handler may give up on a scatter by a scope of its own, and go on."""

    async def step(ctx: Ctx) -> Any:
        async def sleeps() -> None:
            await ctx.sleep(1000)

        with trio.move_on_after(5):
            await ctx.scatter({"a": after(1000), "b": sleeps, "c": giving(1)})
        await ctx.sleep(3)
        return await ctx.scatter({"a": giving(2)}, name="second")

    run = await settled(one_step(step))
    assert run.output == {"a": 2}


@in_virtual_time
async def test_predicates_are_not_asked_again_once_a_key_is_done():
    """Proves that a step that has finished a key is not skipped afterwards, however the state has changed."""

    async def step(ctx: Ctx) -> Any:
        await ctx.scatter({"a": lambda: ctx.set(off=True)})
        if ctx.attempt == 1:
            raise ValueError("once")
        return "ran"

    workflow = one_step(step, skip_if=lambda state: state.get("off", False), retry_delay=0)
    run = await settled(workflow, {})
    assert (run.status, run.output) == ("done", "ran")


@in_virtual_time
async def test_who_answers_says_which_of_several_waits() -> None:
    """Proves that one of several open waits is answered by its name, or by its key as `pending` lists it."""

    async def step(ctx: StepContext[Any, Any]) -> Any:
        async def ask(name: str | None) -> str:
            answer: str = await ctx.wait("word?", returns=str, name=name)
            return answer

        return await ctx.scatter({"a": partial(ask, "first"), "b": partial(ask, None), "c": partial(ask, None)})

    workflow = one_step(step)
    async with open_engine("memory:", workflow) as engine:
        handle = await engine.start(workflow)
        await idle()
        waits = {wait.name or wait.key: wait.key for wait in (await engine.pending()).items}
        assert list(waits) == ["first", "scatter#0:b/human#0", "scatter#0:c/human#0"]
        with pytest.raises(InvalidState, match="3 waits are open: say which"):
            await handle.resume("x")
        with pytest.raises(InvalidState, match="under the name or key 'second'"):
            await handle.resume("x", wait="second")
        with pytest.raises(ValidationError, match="a wait is told by its name or key"):
            await handle.resume("x", wait="")
        await handle.resume("A", wait="first")
        await handle.resume("C", wait=waits["scatter#0:c/human#0"])
        await handle.resume("B")
        assert await handle.result() == {"a": "A", "b": "B", "c": "C"}
