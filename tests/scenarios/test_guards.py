"""Guards: they may refuse a step or a scatter key, and fail closed (S440 to S442)."""

from typing import Any

import pytest
import trio

from streamline_trio import (
    EngineError,
    Guard,
    GuardCall,
    GuardRefused,
    Middleware,
    Run,
    StepContext,
    Workflow,
    open_engine,
)
from streamline_trio._runtime.guards import guarded
from tests.scenarios.worlds import idle, in_virtual_time, settled

Context = StepContext[Any, Any, Any]


def one_guarded(*guards: object, calls: list[str] | None = None, **options: Any) -> Workflow[Any, Any]:
    """One step under guards."""
    flow: Workflow[Any, Any] = Workflow("flow", guards=guards)

    async def step(_ctx: Context) -> str:
        if calls is not None:
            calls.append("handler")
        return "done"

    flow.add_step("step", step, **options)
    return flow


def _raises(_call: GuardCall) -> bool:
    raise ZeroDivisionError("the budget service is down")


async def _raises_later(_call: GuardCall) -> bool:
    await trio.lowlevel.checkpoint()
    raise OSError("the budget service is down")


async def _suspends(call: GuardCall) -> bool:
    await call.ctx.wait("who decides?")
    return True


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda _: "budget exceeded", "budget exceeded"),
        (lambda _: False, "no reason"),
        (lambda _: 1, "answered 1"),
        (lambda _: 0, "answered 0"),
        (lambda _: "", "answered ''"),
        (lambda _: {"allow": True}, "allow"),
        (_raises, "the budget service is down"),
        (_raises_later, "the budget service is down"),
        (_suspends, "wait"),
    ],
)
@in_virtual_time
async def test_a_guard_that_does_not_allow(answer, told):
    """S440: whatever is not True or None refuses, a raised error too: the handler is not called, nothing is
    retried, and the reason is in the error."""
    calls: list[str] = []
    run = await settled(one_guarded(Guard(before=answer, name="budget"), calls=calls, attempts=3))
    assert (run.status, run.steps["step"].status, run.steps["step"].attempts, calls) == ("failed", "failed", 1, [])
    assert run.error is not None
    assert (run.error.code, run.error.step) == ("workflow.guard_refused", "step")
    assert told in run.error.message
    assert "budget" in run.error.message


class Unprintable:
    """An answer that says nothing of itself."""

    def __repr__(self) -> str:
        raise RuntimeError("nobody knows")


class Stopped(BaseException):
    """No `Exception`, as the cancellations of other frameworks are."""


class Unknown(Unprintable, Exception):
    """An error that says nothing of itself."""


def _stops(_call: GuardCall) -> bool:
    raise Stopped("the budget service is down")


def _raises_unknown(_call: GuardCall) -> bool:
    raise Unknown


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda _: Unprintable(), "answered <Unprintable>"),
        (_raises_unknown, "raised <Unknown>"),
        (_stops, "the budget service is down"),
    ],
)
@in_virtual_time
async def test_a_guard_that_answers_strange_things(answer, told):
    """Proves that an answer or error that cannot be printed, or is no `Exception`, refuses as any other does."""
    run = await settled(one_guarded(Guard(before=answer, name="budget"), attempts=3))
    assert (run.status, run.steps["step"].attempts) == ("failed", 1)
    assert run.error is not None
    assert run.error.code == "workflow.guard_refused"
    assert told in run.error.message


async def _allows_later(_call: GuardCall) -> None:
    await trio.sleep(1)


@pytest.mark.parametrize("answer", [lambda _: True, lambda _: None, _allows_later])
@in_virtual_time
async def test_a_guard_that_allows(answer):
    """S440: True and None allow, at once or later."""
    assert (await settled(one_guarded(Guard(before=answer)))).output == "done"


@in_virtual_time
async def test_the_first_refusal_wins():
    """S440: guards are asked in order, and none after one that refuses; those that were asked are told the end."""
    asked: list[str] = []

    def guard(name: str, answer: Any) -> Guard:
        def before(_call: GuardCall) -> Any:
            asked.append(name)
            return answer

        def after(_call: GuardCall, _result: Any, error: BaseException | None, _duration: float) -> None:
            asked.append(f"{name} told {type(error).__name__}")

        return Guard(before=before, after=after, name=name)

    run = await settled(one_guarded(guard("a", None), guard("b", "no"), guard("c", "never")))
    assert asked == ["a", "b", "a told GuardRefused", "b told GuardRefused"]
    assert "refused by b: no" in str(run.error)


@in_virtual_time
async def test_what_a_guard_is_asked_about():
    """Proves that a guard sees run, workflow, step, attempt, tenant, no key for a step, and the input."""
    calls: list[GuardCall] = []
    flow: Workflow[Any, Any] = Workflow("flow", guards=[Guard(before=calls.append)])

    @flow.step(attempts=2, retry_delay=0)
    async def step(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise OSError("once")

    run = await settled(flow, {"cents": 5})
    assert [(call.run_id, call.workflow, call.step, call.attempt) for call in calls] == [
        (run.id, "flow", "step", 1),
        (run.id, "flow", "step", 2),
    ]
    assert {(call.key, call.tenant) for call in calls} == {(None, None)}
    assert calls[0].ctx.input == {"cents": 5}


@in_virtual_time
async def test_a_guard_is_asked_once_in_each_attempt():
    """Proves that guards are asked in every attempt, not when the handler is entered again after a wait; `after`
    comes once too, for the entry in which the attempt ends."""
    notes: list[str] = []
    observer = Guard(
        before=lambda call: notes.append(f"before {call.attempt}"),
        after=lambda call, result, error, duration: notes.append(
            f"after {call.attempt} {result} {error} {duration:g}"
        ),
    )
    flow: Workflow[Any, Any] = Workflow("flow", guards=[observer])

    @flow.step(attempts=2, retry_delay=0)
    async def step(ctx: Context) -> str:
        await ctx.sleep(5)
        await trio.sleep(2)
        await ctx.sleep(5)
        if ctx.attempt == 1:
            raise OSError("once")
        return "done"

    run = await settled(flow)
    assert run.output == "done"
    assert notes == ["before 1", "after 1 None once 2", "before 2", "after 2 done None 2"]


@in_virtual_time
async def test_what_after_is_told():
    """S442: the result without an error, or the error without a result, and the seconds it took."""
    told: list[tuple[str, Any, Any, float]] = []

    async def after(call: GuardCall, result: Any, error: BaseException | None, duration: float) -> None:
        await trio.lowlevel.checkpoint()
        told.append((call.step, result, repr(error) if error else None, duration))

    flow: Workflow[Any, Any] = Workflow("flow", guards=[Guard(after=after)])

    @flow.step
    async def ok(_ctx: Context) -> str:
        await trio.sleep(0.01)
        return "fine"

    @flow.step(attempts=1, timeout=3)
    async def bad(_ctx: Context) -> None:
        await trio.sleep(60)

    run = await settled(flow)
    assert run.status == "failed"
    (first, second) = told
    assert first[:3] == ("ok", "fine", None)
    assert first[3] == pytest.approx(0.01)
    assert second[:2] == ("bad", None)
    assert "StepTimeout" in second[2]
    assert second[3] == pytest.approx(3)


@in_virtual_time
async def test_an_after_that_fails_or_hangs():
    """S442: what `after` raises is reported with the context `guard`, and reaches nobody; it is bounded too."""

    async def hang(*_: object) -> None:
        await trio.sleep_forever()

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    flow = one_guarded(Guard(after=hang), Guard(after=fail))
    async with open_engine("memory:", flow) as engine:
        errors: list[EngineError] = []
        engine.on("engine.error", errors.append)
        run = await (await engine.start(flow)).wait()
        await trio.sleep(10)
    assert run.output == "done"
    assert [(error.context, error.error.partition("(")[0]) for error in errors] == [
        ("guard", "TimeoutError"),
        ("guard", "RuntimeError"),
    ]


@in_virtual_time
async def test_a_guard_that_hangs_is_the_steps_time():
    """Proves that a guard that never answers fails the attempt by the step's timeout: it does not allow."""
    calls: list[str] = []

    async def hang(_call: GuardCall) -> None:
        await trio.sleep_forever()

    run = await settled(one_guarded(Guard(before=hang), calls=calls, timeout=3, attempts=2, retry_delay=0))
    assert (run.status, run.steps["step"].attempts, calls) == ("failed", 2, [])
    assert run.error is not None
    assert run.error.code == "workflow.step.timeout"


async def keyed(*guards: object, again: bool = False) -> tuple[list[str], Run]:
    """A step that runs three keys under the guards, as a scatter does; the keys that ran, and the run."""
    ran: list[str] = []
    flow: Workflow[Any, Any] = Workflow("flow", guards=guards)

    @flow.step(attempts=1)
    async def step(ctx: Context) -> list[str]:
        driver = ctx._driver
        errors: list[GuardRefused] = []

        async def one(key: str) -> str:
            await trio.lowlevel.checkpoint()
            ran.append(key)
            return key.upper()

        results = []
        for key in ("a", "blocked", "c"):

            async def call(key: str = key) -> str:
                return await one(key)

            try:
                results.append(await guarded(driver, ctx, key, call, again=again))
            except GuardRefused as refused:
                errors.append(refused)
        if errors:
            raise errors[0]
        return results

    return ran, await settled(flow)


@in_virtual_time
async def test_a_guard_can_refuse_one_key():
    """S441: of the keys a, blocked and c only the one that is refused does not run, and the run fails for it."""
    told: list[tuple[Any, ...]] = []
    guard = Guard(
        before=lambda call: "not this one" if call.key == "blocked" else None,
        after=lambda call, result, error, _: told.append((call.key, result, type(error).__name__)),
        name="keys",
    )
    ran, run = await keyed(guard)
    assert ran == ["a", "c"]
    assert (run.status, run.steps["step"].attempts) == ("failed", 1)
    assert run.error is not None
    assert "key blocked" in run.error.message
    assert "not this one" in run.error.message
    assert told == [
        ("a", "A", "NoneType"),
        ("blocked", None, "GuardRefused"),
        ("c", "C", "NoneType"),
        (None, None, "GuardRefused"),
    ]


@in_virtual_time
async def test_a_key_that_goes_on_after_a_wait():
    """Proves that a key which was allowed before it waited is not asked again, and its end is told."""
    told: list[Any] = []
    guard = Guard(
        before=lambda call: call.key != "blocked", after=lambda call, result, *_: told.append((call.key, result))
    )
    ran, run = await keyed(guard, again=True)
    assert (ran, run.output) == (["a", "blocked", "c"], ["A", "BLOCKED", "C"])
    assert told[:3] == [("a", "A"), ("blocked", "BLOCKED"), ("c", "C")]


@in_virtual_time
async def test_without_guards_nothing_is_between():
    """S442: without guards a call is just called."""
    ran, run = await keyed()
    assert (ran, run.output) == (["a", "blocked", "c"], ["A", "BLOCKED", "C"])


@in_virtual_time
async def test_a_suspension_passes_through():
    """Proves that a suspension inside a guarded call is no end of it: `after` is not called for it."""
    told: list[Any] = []
    flow: Workflow[Any, Any] = Workflow("flow", guards=[Guard(after=lambda call, *_: told.append(call.key))])

    @flow.step
    async def step(ctx: Context) -> Any:
        async def call() -> Any:
            return await ctx.wait("go?")

        return await guarded(ctx._driver, ctx, "key", call)

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        assert told == []
        await handle.resume("go")
        assert await handle.result() == "go"
        await idle()
    assert told == ["key", None]


class Subclassed(Guard):
    name = "subclassed"

    async def before(self, call: GuardCall) -> bool:
        return call.step != "step"


class Foreign:
    """No class of ours: only what it needs."""

    def before(self, call: GuardCall) -> str | None:
        return f"no {call.step} today"


@pytest.mark.parametrize(("guard", "name"), [(Subclassed(), "subclassed"), (Foreign(), "Foreign")])
@in_virtual_time
async def test_other_ways_to_make_a_guard(guard, name):
    """Proves that a subclass and an object of one's own are asked too, and named in the error."""
    run = await settled(one_guarded(guard))
    assert run.status == "failed"
    assert f"refused by {name}" in str(run.error)


@in_virtual_time
async def test_middleware_is_told_of_a_refusal():
    """Proves that a refused attempt is a failed one to middleware, and was announced before guards were asked."""
    notes: list[str] = []

    middleware = Middleware(
        before_step=lambda _: notes.append("before"),
        on_step_error=lambda _, error: notes.append(type(error).__name__),
    )

    def before(_call: GuardCall) -> bool:
        notes.append("asked")
        return False

    flow: Workflow[Any, Any] = Workflow("flow", guards=[Guard(before=before)], middleware=[middleware])
    flow.add_step("step", lambda _: notes.append("handler"))
    assert (await settled(flow)).status == "failed"
    assert notes == ["before", "asked", "GuardRefused"]
