"""Retries and backoff: scenarios S043 to S064."""

import itertools
import json
from typing import Any

import pytest
import trio

from streamline_trio import (
    DefinitionError,
    MemoryStore,
    NonRetriable,
    Run,
    StepContext,
    StepOptions,
    StepRetryScheduled,
    StepSpec,
    ValidationError,
    WaitTimedOut,
    Workflow,
    open_engine,
    testing,
)
from tests.scenarios.worlds import at_rest, between, in_virtual_time, settled


def failing(times: int, calls: list[float], error: Exception | None = None, **options: Any) -> Workflow[Any, Any]:
    """One step that fails so many times and then returns its attempt; it notes when it was called."""
    workflow: Workflow[Any, Any] = Workflow("failing")

    @workflow.step(**options)
    async def work(ctx: StepContext) -> int:
        calls.append(trio.current_time())
        if len(calls) <= times:
            raise error or RuntimeError(f"failure {len(calls)}")
        return ctx.attempt

    return workflow


def waits(calls: list[float]) -> list[float]:
    """The time between the calls, to the millisecond."""
    return [round(later - earlier, 3) for earlier, later in itertools.pairwise(calls)]


@pytest.mark.parametrize("attempts", [3, 4])
@in_virtual_time
async def test_a_step_succeeds_on_its_third_attempt(attempts):
    """S043: two failures within the limit end well, after exactly three calls."""
    calls: list[float] = []
    run = await settled(failing(2, calls, attempts=attempts))
    assert (run.status, run.output, len(calls)) == ("done", 3, 3)


@in_virtual_time
async def test_every_delay_parks_the_run_durably():
    """S044, S045: a retry is waited for in the store, whatever its delay: the run is parked with its step pending
    and a due time, and costs its worker nothing. (The original waits for short delays in memory.)"""
    for delay in (0.05, 10.0, 86_400.0):
        calls: list[float] = []
        workflow = failing(1, calls, retry_delay=delay, max_retry_delay=86_400, jitter=0)
        async with open_engine("memory:", workflow) as engine:
            handle = await engine.start(workflow)
            run = await at_rest(handle)
            assert (run.status, run.lease) == ("waiting", None)
            step = run.steps["work"]
            assert (step.status, step.attempts) == ("pending", 1)
            assert between(step.started_at, step.retry_at) == delay
            assert run.due_at == step.retry_at
            assert step.error is not None
            assert step.error.message == "failure 1"
            assert (await engine.stats()).driving == 0
            assert (await handle.wait()).status == "done"
        assert waits(calls) == [delay]


@in_virtual_time
async def test_whoever_comes_retries_when_it_is_due():
    """S045: another worker picks a parked retry up when it is due, and not before."""
    store = MemoryStore()
    calls: list[float] = []
    workflow = failing(1, calls, retry_delay=10, jitter=0)
    async with open_engine(store, workflow, worker=False) as engine:
        handle = await engine.start(workflow)
        assert (await handle.drive()).status == "waiting"
        assert (await handle.drive()).status == "waiting"
        await trio.sleep(4)
    async with open_engine(store, workflow) as engine:
        assert (await engine.run(handle.id).wait()).status == "done"
    assert waits(calls) == [10]


@in_virtual_time
async def test_a_retry_without_delay_does_not_park():
    """S044: with no delay the same worker tries again at once, without giving the run away."""
    calls: list[float] = []
    workflow = failing(2, calls, retry_delay=0)
    async with open_engine("memory:", workflow, worker=False) as engine:
        run = await (await engine.start(workflow)).drive()
    assert (run.status, run.fence, waits(calls)) == ("done", 1, [0, 0])


@in_virtual_time
async def test_each_step_has_its_own_budget():
    """S046: one step's failures do not count for another; the run fails with the step that runs out."""
    workflow, calls = Workflow("budgets"), []

    @workflow.step(attempts=5)
    async def step1(ctx: StepContext) -> None:
        calls.append("step1")
        if ctx.attempt < 3:
            raise RuntimeError

    @workflow.step(attempts=2)
    async def step2(ctx: StepContext) -> None:
        calls.append("step2")
        raise RuntimeError("always")

    run = await settled(workflow)
    assert calls == ["step1"] * 3 + ["step2"] * 2
    assert (run.status, run.steps["step1"].status, run.steps["step2"].status) == ("failed", "done", "failed")
    assert (run.steps["step1"].attempts, run.steps["step2"].attempts) == (3, 2)


@in_virtual_time
async def test_defaults_of_the_workflow_hold_where_a_step_says_nothing():
    """S047: the workflow's defaults apply to a step, what the step says wins, and the rest is built in.
    (Here a definition holds the resolved numbers.)"""
    calls: list[float] = []
    defaults = StepOptions(attempts=4, retry_delay=0.05, backoff="fixed", jitter=0)
    workflow: Workflow[Any, Any] = Workflow("defaults", defaults=defaults)

    async def work(ctx: StepContext) -> None:
        calls.append(trio.current_time())
        raise RuntimeError

    plain = workflow.add_step("plain", work)
    own = workflow.add_step("own", work, attempts=2, retry_delay=7)
    assert (plain.options.attempts, plain.options.retry_delay, plain.options.timeout) == (4, 0.05, None)
    assert (own.options.attempts, own.options.retry_delay, own.options.backoff) == (2, 7, 1.0)
    assert (await settled(workflow)).status == "failed"
    assert waits(calls) == [0.05, 0.05, 0.05]


@in_virtual_time
async def test_the_built_in_limits():
    """S048: without any setting a step is called three times, 1 s and 2 s apart, 30 % more or less."""
    for _ in range(20):
        calls: list[float] = []
        run = await settled(failing(9, calls))
        first, second = waits(calls)
        assert run.status == "failed"
        assert 0.7 <= first <= 1.3
        assert 1.4 <= second <= 2.6


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"retry_delay": 1}, [1, 2, 4, 8]),
        ({"retry_delay": 1, "max_retry_delay": 5}, [1, 2, 4, 5]),
        ({"retry_delay": 30}, [30, 60, 60, 60]),
        ({"retry_delay": 0.5, "backoff": 1}, [0.5, 0.5, 0.5, 0.5]),
        ({"retry_delay": 0}, [0, 0, 0, 0]),
        ({"backoff": "exponential"}, [1, 2, 4, 8]),
        ({"backoff": "linear"}, [1, 1, 1, 1]),
        ({"backoff": "fixed"}, [1, 1, 1, 1]),
        ({"backoff": 3}, [1, 3, 9, 27]),
        ({"backoff": 1.5}, [1, 1.5, 2.25, 3.375]),
    ],
)
@in_virtual_time
async def test_backoff_arithmetic(options, expected):
    """S049, S051: without jitter the waits are base times factor to the power, capped; names stand for factors."""
    calls: list[float] = []
    run = await settled(failing(4, calls, attempts=5, jitter=0, **options))
    assert (run.status, waits(calls)) == ("done", expected)


@in_virtual_time
async def test_jitter_stays_within_its_part_and_varies():
    """S050: fifty first waits with 30 % jitter lie between 0.7 and 1.3 s and are not all the same."""
    found: set[float] = set()
    for _ in range(50):
        calls: list[float] = []
        await settled(failing(1, calls, retry_delay=1, jitter=0.3))
        found.update(waits(calls))
    assert 0.7 <= min(found) < max(found) <= 1.3
    assert len(found) > 10


@in_virtual_time
async def test_the_error_goes_when_a_retry_succeeds():
    """S052: a step that ends well has no error left, and its attempts and output."""
    calls: list[float] = []
    run = await settled(failing(1, calls))
    step = run.steps["work"]
    assert (step.status, step.attempts, step.error, step.output, step.retry_at) == ("done", 2, None, 2, None)
    assert run.error is None


class Declined(Exception):
    retriable = False
    code = "INSUFFICIENT_FUNDS"


@in_virtual_time
async def test_an_error_may_refuse_to_be_retried():
    """S053: an error with `retriable = False` fails its step at the first call, and keeps its message and code."""
    calls: list[float] = []
    run = await settled(failing(9, calls, Declined("no money left"), attempts=5))
    assert (run.status, len(calls), run.steps["work"].attempts) == ("failed", 1, 1)
    assert run.error is not None
    assert (run.error.message, run.error.code, run.error.type) == (
        "no money left",
        "INSUFFICIENT_FUNDS",
        "Declined",
    )


@in_virtual_time
async def test_non_retriable_stops_retries():
    """S054: `NonRetriable` fails its step at the first call, with its message; the class says so itself."""
    calls: list[float] = []
    run = await settled(failing(9, calls, NonRetriable("card stolen"), attempts=5))
    assert (run.status, len(calls)) == ("failed", 1)
    assert run.error is not None
    assert (run.error.message, run.error.code) == ("card stolen", "workflow.non_retriable")
    assert NonRetriable.retriable is False


@in_virtual_time
async def test_through_503_and_429_to_200():
    """S055: what an attempt writes before it fails is there for the next one, and for the next step."""
    workflow, answers = Workflow("payment", state=lambda _: {"status": 0}), iter([503, 429, 200])

    @workflow.step
    async def pay(ctx: StepContext) -> str:
        status = next(answers)
        await ctx.set(status=status)
        if status != 200:
            raise OSError(f"HTTP {status}")
        await ctx.set(response="paid")
        return "paid"

    @workflow.step
    async def validate(ctx: StepContext) -> Any:
        return ctx.state["status"]

    run = await settled(workflow)
    assert (run.status, run.output, run.steps["pay"].attempts) == ("done", 200, 3)
    assert run.state == {"status": 200, "response": "paid"}


@in_virtual_time
async def test_degrading_on_the_last_attempt():
    """S056: a handler that reads its attempt may give up gracefully at the last one."""
    workflow = Workflow("degrading", state=lambda _: {"used_cache": False})

    @workflow.step(attempts=3)
    async def fetch(ctx: StepContext) -> str:
        if ctx.attempt < 3:
            raise OSError("down")
        await ctx.set(used_cache=True)
        return "cached"

    run = await settled(workflow)
    assert (run.status, run.output, run.state, run.steps["fetch"].attempts) == (
        "done",
        "cached",
        {"used_cache": True},
        3,
    )


@in_virtual_time
async def test_retry_and_checkpoint_make_a_loop():
    """S057: a checkpoint survives the attempts, so that a step may go on where it failed."""
    workflow, executions = Workflow("loop"), []

    @workflow.step(attempts=5)
    async def process(ctx: StepContext) -> None:
        counter = ctx.checkpoint_value(int, default=0) + 1
        executions.append(f"process-{counter}")
        await ctx.checkpoint(counter)
        if counter < 3:
            raise RuntimeError("not yet")

    workflow.add_step("finish", lambda _: executions.append("done"))
    run = await settled(workflow)
    assert (run.status, executions) == ("done", ["process-1", "process-2", "process-3", "done"])


class Wordless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError(), "RuntimeError"),
        (Exception(None), "None"),
        (KeyError(5), "5"),
        (Wordless(), "Wordless"),
        (StopAsyncIteration(), "StopAsyncIteration"),
        (ExceptionGroup("odd", [ValueError()]), "ValueError"),
    ],
    ids=repr,
)
@in_virtual_time
async def test_odd_errors_fail_cleanly(error, message):
    """S058: an error without text, or that cannot be told, fails its run with a message all the same."""
    calls: list[float] = []
    run = await settled(failing(9, calls, error, attempts=1))
    assert (run.status, len(calls)) == ("failed", 1)
    assert run.error is not None
    assert (run.error.message, run.error.code) == (message, "workflow.step.failed")


@in_virtual_time
async def test_an_error_before_the_first_await_is_a_normal_failure():
    """S059: parsing invalid JSON in a handler, async or sync, fails the run with the parser's message."""
    for handler in (parse, parse_in_thread):
        workflow = Workflow("parsing")
        workflow.add_step("parse", handler, attempts=1)
        run = await settled(workflow)
        assert run.status == "failed"
        assert run.error is not None
        assert (run.error.type, run.error.message[:9]) == ("JSONDecodeError", "Expecting")


async def parse(ctx: StepContext) -> Any:
    return json.loads("{nope")


def parse_in_thread(ctx: StepContext) -> Any:
    return json.loads("nope")


@in_virtual_time
async def test_each_scheduled_retry_is_told_with_its_time():
    """S060: every retry is told once, with its due time, the attempt that failed and the limit."""
    calls: list[float] = []
    workflow = failing(2, calls, retry_delay=0.05, jitter=0)
    async with open_engine("memory:", workflow) as engine, engine.events("step.retry_scheduled") as events:
        run = await (await engine.start(workflow)).wait()
    told: list[Any] = [event async for event in events]
    assert all(isinstance(event, StepRetryScheduled) for event in told)
    assert [(event.step, event.attempt, event.attempts, event.message) for event in told] == [
        ("work", 1, 3, "failure 1"),
        ("work", 2, 3, "failure 2"),
    ]
    assert [between(run.created_at, event.retry_at) for event in told] == [0.05, 0.15]


@in_virtual_time
async def test_one_failing_branch_of_a_nursery_fails_the_step():
    """S061: an error in a handler's own nursery fails the step, with the message of the member that failed."""
    workflow = Workflow("gather")

    async def fetch(url: str) -> None:
        await trio.sleep(0.01)
        if url == "b":
            raise OSError(f"{url} is down")
        await trio.sleep(60)

    @workflow.step(attempts=1)
    async def both(ctx: StepContext) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, "a")
            nursery.start_soon(fetch, "b")

    run = await settled(workflow)
    assert (run.status, run.steps["both"].status, run.steps["both"].duration) == ("failed", "failed", 0.01)
    assert run.error is not None
    assert run.error.message == "b is down"


@pytest.mark.parametrize(
    ("members", "calls_expected"),
    [
        ([OSError("a"), ValueError("b")], 3),
        ([OSError("a"), NonRetriable("b")], 1),
        ([OSError("a"), ExceptionGroup("deep", [Declined("b")])], 1),
    ],
    ids=["all retriable", "one is not", "a deep one is not"],
)
@in_virtual_time
async def test_a_group_is_retried_when_each_member_would_be(members, calls_expected):
    """Proves that one non-retriable member of a group makes the whole non-retriable."""
    calls: list[float] = []
    run = await settled(failing(9, calls, ExceptionGroup("several", members)))
    assert (run.status, len(calls)) == ("failed", calls_expected)
    assert run.error is not None
    assert "a" in run.error.message
    assert "b" in run.error.message


@in_virtual_time
async def test_a_handler_reads_its_attempt():
    """S062: `ctx.attempt` is 1 at the first call and 2 at the second; a re-entry after a wait does not count."""
    workflow, seen = Workflow("counting"), []

    @workflow.step
    async def work(ctx: StepContext) -> None:
        seen.append(ctx.attempt)
        await ctx.sleep(1)
        seen.append(ctx.attempt)
        if ctx.attempt == 1:
            raise RuntimeError

    run = await settled(workflow)
    # Entered, entered again after the sleep; the second attempt has the sleep's outcome at once.
    assert (run.status, seen, run.steps["work"].attempts) == ("done", [1, 1, 1, 2, 2], 2)


# --- which failures are tried again ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry_on", "error", "calls_expected"),
    [
        (OSError, ConnectionError("x"), 3),
        (OSError, ValueError("x"), 1),
        ((OSError, ValueError), ValueError("x"), 3),
        ((), ValueError("x"), 1),
        (lambda error: "again" in str(error), ValueError("again"), 3),
        (lambda error: "again" in str(error), ValueError("enough"), 1),
        (lambda error: error.missing, ValueError("x"), 1),
        (Exception, ValidationError("x"), 1),
        (ValidationError, ValidationError("x"), 3),
        (Exception, NonRetriable("x"), 1),
        (NonRetriable, NonRetriable("x"), 1),
    ],
)
@in_virtual_time
async def test_retry_on_says_which_failures_are_tried_again(retry_on, error, calls_expected):
    """Proves that `retry_on` takes a type, a tuple or a predicate, and that `NonRetriable` beats it."""
    calls: list[float] = []
    run = await settled(failing(9, calls, error, retry_on=retry_on))
    assert (run.status, len(calls)) == ("failed", calls_expected)


@pytest.mark.parametrize(("retry_on", "calls_expected"), [(Exception, 1), (WaitTimedOut, 2)])
@in_virtual_time
async def test_a_wait_that_timed_out_is_retried_only_by_name(retry_on, calls_expected):
    """Proves that `WaitTimedOut` fails the step at once unless `retry_on` names it; then the wait is asked anew."""
    workflow, tries = Workflow("waiting"), []

    @workflow.step(attempts=2, retry_delay=0, retry_on=retry_on)
    async def gate(ctx: StepContext) -> None:
        try:
            await ctx.wait("somebody", timeout=10)
        except WaitTimedOut:
            tries.append(trio.current_time())
            raise

    began = trio.current_time()
    run = await settled(workflow)
    assert run.status == "failed"
    assert run.error is not None
    assert run.error.code == "workflow.wait.timed_out"
    assert [at - began for at in tries] == [10 * number for number in range(1, calls_expected + 1)]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("attempts", 0),
        ("attempts", 1.5),
        ("attempts", True),
        ("retry_delay", -1),
        ("backoff", "sometimes"),
        ("backoff", 0.5),
        ("max_retry_delay", float("nan")),
        ("jitter", 2),
        ("timeout", 0),
        ("retry_on", "OSError"),
        ("retry_on", KeyboardInterrupt),
        ("skip_if", lambda: True),
        ("run_if", 5),
        ("max_payload_bytes", 0),
        ("retries", 3),
    ],
)
def test_invalid_options_are_told_at_definition(option, value):
    """Proves that an invalid option raises `DefinitionError` naming workflow, step and option, however given."""
    wrong: dict[str, Any] = {option: value}

    async def work(ctx: StepContext) -> None: ...

    with pytest.raises(DefinitionError, match=rf"'?flow'?.*'?work'?.*{option}"):
        Workflow("flow").add_step("work", work, **wrong)
    with pytest.raises(DefinitionError, match=rf"'?flow'?.*'?work'?.*{option}"):
        Workflow("flow", steps={"work": StepSpec(work, **wrong)})
    with pytest.raises(DefinitionError, match=rf"'?flow'?.*{option}"):
        Workflow("flow", defaults=StepOptions(**wrong))


# --- crashes ---------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_attempts_survive_a_restart():
    """S063: failures counted before a crash count after it: three calls in all, in two processes."""
    store = MemoryStore()
    calls: list[float] = []
    workflow = failing(9, calls, retry_delay=60, jitter=0)
    async with open_engine(store, workflow) as engine:
        handle = await engine.start(workflow)
        assert (await at_rest(handle)).status == "waiting"
        await testing.crash(engine)
    assert len(calls) == 1
    async with open_engine(store, workflow) as engine:
        run = await engine.run(handle.id).wait()
    assert (run.status, run.steps["work"].attempts, waits(calls)) == ("failed", 3, [60, 60])
    # Nobody held it when its worker died, so nothing had to be recovered.
    assert run.recoveries == 0


@in_virtual_time
async def test_a_crash_during_a_backoff_delays_nothing():
    """S064: the run a dead process leaves behind is waiting with its due time; the retry happens once, elsewhere,
    at that time, as the next attempt."""
    store = MemoryStore()
    calls: list[float] = []
    workflow = failing(1, calls, retry_delay=2, jitter=0)
    async with open_engine(store, workflow) as engine:
        handle = await engine.start(workflow)
        await at_rest(handle)
        await testing.crash(engine)
    stored = await store.load(handle.id)
    assert stored is not None
    assert (stored.head.status, stored.head.lease) == ("waiting", None)
    assert stored.head.due_at == stored.head.updated_at + 2000
    async with (
        open_engine(store, workflow) as one,
        open_engine(store, workflow) as other,
        one.events("step.started") as by_one,
        other.events("step.started") as by_other,
    ):
        run = await one.run(handle.id).wait()
    begun: list[Any] = [event async for event in by_one] + [event async for event in by_other]
    assert [event.attempt for event in begun] == [2]
    assert (run.status, run.output, waits(calls)) == ("done", 2, [2])


@in_virtual_time
async def test_a_crash_is_no_failure_of_the_step():
    """Proves that calls a crash cut short count as attempts but not as failures: the limit is on failures."""
    store, workflow, attempts = MemoryStore(), Workflow("crashing"), []

    @workflow.step(attempts=2, retry_delay=0)
    async def work(ctx: StepContext) -> None:
        attempts.append(ctx.attempt)
        if len(attempts) <= 3:
            await trio.sleep_forever()
        raise RuntimeError("really")

    run: Run | None = None
    run_id = "crashing"
    for life in range(4):
        async with open_engine(store, workflow) as engine:
            if life == 0:
                await engine.start(workflow, run_id=run_id)
            if life < 3:
                await at_rest(engine.run(run_id))
                await testing.crash(engine)
            else:
                run = await engine.run(run_id).wait()
    assert run is not None
    assert (run.status, run.recoveries, attempts) == ("failed", 3, [1, 2, 3, 4, 5])
    assert run.error is not None
    assert run.error.message == "really"
