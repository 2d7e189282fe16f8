"""Logging: scenarios S553 to S560."""

import io
import json
import logging
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import trio

from streamline_trio import LogLine, MemoryStore, StepContext, ValidationError, Workflow, open_engine, testing
from streamline_trio._core.store import AppendRows, Failed, Verdict, Write
from tests.scenarios.worlds import at_rest, between, in_virtual_time


async def logged(workflow: Workflow[Any, Any], store: Any = "memory:", **options: Any) -> list[LogLine]:
    """The lines of one run that must end well."""
    async with open_engine(store, workflow, **options) as engine:
        handle = await engine.start(workflow)
        assert (await handle.wait()).status == "done"
        return await handle.logs()


@in_virtual_time
async def test_log_lines_are_stored_with_step_attempt_and_data():
    """S553: the lines of all steps are kept in order of time, with step, attempt and data."""
    workflow: Workflow[Any, Any] = Workflow("chatty")

    @workflow.step
    async def one(ctx: StepContext) -> None:
        ctx.log("begins")
        await trio.sleep(0.3)
        ctx.log("ends", rows=3, nested={"a": [1]})

    @workflow.step(jitter=0)
    async def two(ctx: StepContext) -> None:
        ctx.log("tries")
        if ctx.attempt == 1:
            raise OSError

    @workflow.step
    async def three(ctx: StepContext) -> None:
        ctx.log("last")

    lines = await logged(workflow)
    assert [(line.step, line.attempt, line.message) for line in lines] == [
        ("one", 1, "begins"),
        ("one", 1, "ends"),
        ("two", 1, "tries"),
        ("two", 2, "tries"),
        ("three", 1, "last"),
    ]
    assert lines[1].data == {"rows": 3, "nested": {"a": [1]}}
    assert [between(lines[0].at, line.at) for line in lines] == [0, 0.3, 0.3, 1.3, 1.3]


@in_virtual_time
async def test_only_the_newest_lines_are_kept():
    """S554: of 25 lines over two steps under a limit of 10 the last 10 remain, in order."""
    workflow: Workflow[Any, Any] = Workflow("ring", max_step_logs=10)
    numbers = iter(range(25))

    @workflow.step
    async def one(ctx: StepContext) -> None:
        for _ in range(12):
            ctx.log(f"log-{next(numbers)}")

    @workflow.step
    async def two(ctx: StepContext) -> None:
        for number in numbers:
            ctx.log(f"log-{number}")

    assert [line.message for line in await logged(workflow)] == [f"log-{number}" for number in range(15, 25)]


@pytest.mark.parametrize(("limit", "kept"), [({}, 1000), ({"max_step_logs": 0}, 0)])
@in_virtual_time
async def test_how_many_lines_are_kept(limit, kept):
    """S554: a thousand lines are kept by default; none with a limit of 0."""
    workflow: Workflow[Any, Any] = Workflow("many", **limit)

    @workflow.step
    async def chatter(ctx: StepContext) -> None:
        for number in range(1250):
            ctx.log(f"log-{number}")

    assert [line.message for line in await logged(workflow)] == [f"log-{n}" for n in range(1250 - kept, 1250)]


@in_virtual_time
async def test_data_cannot_pass_for_what_the_engine_says():
    """S555: data named like the line's own fields stays data."""
    workflow: Workflow[Any, Any] = Workflow("forger")
    forged = {"run_id": "r", "step": "s", "attempt": 99, "at": 0, "message": "m", "data": 1, "self": 2}

    @workflow.step
    async def work(ctx: StepContext) -> None:
        ctx.log("true", **forged)

    (line,) = await logged(workflow)
    assert (line.step, line.attempt, line.message, line.data) == ("work", 1, "true", forged)


@in_virtual_time
async def test_what_cannot_be_stored_is_logged_as_text():
    """Proves that `ctx.log` never fails: data that cannot be stored is told as its repr."""
    workflow: Workflow[Any, Any] = Workflow("odd")

    @workflow.step
    async def work(ctx: StepContext) -> None:
        ctx.log("odd", thing=object, count=2**70)

    (line,) = await logged(workflow)
    assert line.data == {"thing": "<class 'object'>", "count": str(2**70)}


@in_virtual_time
async def test_the_lines_of_a_long_step_are_seen_while_it_runs():
    """Proves that buffered lines are stored within a second or at `heartbeat`, and at once for who asks here."""
    store = MemoryStore()
    workflow: Workflow[Any, Any] = Workflow("long")
    beat = trio.Event()

    @workflow.step
    async def work(ctx: StepContext) -> None:
        ctx.log("first")
        await trio.sleep(60)
        ctx.log("second")
        await ctx.heartbeat()
        beat.set()
        await trio.sleep(60)
        ctx.log("third")
        await trio.sleep(0.5)

    async with open_engine(store, workflow) as engine, open_engine(store, worker=False) as reader:
        handle = await engine.start(workflow)
        elsewhere = reader.run(handle.id)
        await trio.sleep(0.1)
        assert [line.message for line in await handle.logs()] == ["first"]
        await beat.wait()
        await at_rest(handle)
        assert [line.message for line in await elsewhere.logs()] == ["first", "second"]
        await handle.wait()
        assert [line.message for line in await elsewhere.logs()] == ["first", "second", "third"]


# --- the engine's logger ---------------------------------------------------------------------------------------


def chatty(calls: list[str] | None = None) -> Workflow[Any, Any]:
    workflow: Workflow[Any, Any] = Workflow("chatty")

    @workflow.step
    async def talk(ctx: StepContext) -> None:
        ctx.log("hello from the step", user="ada")

    return workflow


@pytest.fixture
def logger():
    """A logger of the test's own, that tells nobody else."""
    logger = logging.getLogger("tests.log")
    logger.propagate = False
    yield logger
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.disabled = False


@pytest.mark.parametrize(
    ("level", "disabled", "shown"),
    [
        (logging.DEBUG, False, True),
        (logging.INFO, False, True),
        (logging.WARNING, False, False),
        (logging.CRITICAL + 1, False, False),
        (logging.INFO, True, False),
    ],
)
@in_virtual_time
async def test_levels_are_those_of_the_logger(logger, level, disabled, shown):
    """S556: step lines go to the engine's logger at INFO; its level, or disabling it, silences them. The run
    keeps them all the same. (Levels and switch are those of `logging` here.)"""
    stream = io.StringIO()
    logger.addHandler(logging.StreamHandler(stream))
    logger.setLevel(level)
    logger.disabled = disabled
    lines = await logged(chatty(), logger=logger)
    assert ("hello from the step" in stream.getvalue()) is shown
    assert len(lines) == 1


class AsJson(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        told = {"level": record.levelname, "message": record.getMessage(), "timestamp": record.created}
        if record.exc_info:
            told["stack"] = self.formatException(record.exc_info)
        return json.dumps(told)


@in_virtual_time
async def test_the_format_is_the_program_s(logger):
    """S557, S558: whoever opens the engine gives it a logger with any handler and format; lines name run and
    step, errors come with their stack."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(AsJson())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    workflow = chatty()

    def broken(event: Any) -> None:
        raise RuntimeError("listener down")

    async with open_engine("memory:", workflow, logger=logger) as engine:
        engine.on("workflow.completed", broken)
        run = await (await engine.start(workflow)).wait()
        await trio.sleep(1)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines[0]["level"] == "INFO"
    assert lines[0]["message"] == f"{run.id}/talk: hello from the step"
    error = lines[-1]
    assert error["level"] == "ERROR"
    assert "RuntimeError: listener down" in error["stack"]


@in_virtual_time
async def test_without_a_logger_the_library_s_own_is_used(caplog):
    """S558: the default is the logger `streamline_trio`, to which the library adds no handler."""
    with caplog.at_level(logging.INFO, "streamline_trio"):
        await logged(chatty())
    assert [record.name for record in caplog.records] == ["streamline_trio"]
    assert logging.getLogger("streamline_trio").handlers == []


# --- trouble ---------------------------------------------------------------------------------------------------


class NoRows(MemoryStore):
    """A store on which rows cannot be written."""

    async def write(self, batch: Sequence[Write]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for write in batch:
            if isinstance(write, AppendRows):
                verdicts.append(Failed(ValidationError("no rows today")))
            else:
                verdicts += await super().write([write])
        return verdicts


@in_virtual_time
async def test_lines_that_cannot_be_written_fail_nobody(caplog):
    """S559: a run whose lines the store refuses ends well; the loss is warned about."""
    workflow: Workflow[Any, Any] = Workflow("unheard")

    @workflow.step
    async def talk(ctx: StepContext) -> None:
        ctx.log("one")
        await ctx.heartbeat()
        ctx.log("two")

    with caplog.at_level(logging.WARNING, "streamline_trio"):
        assert await logged(workflow, NoRows()) == []
    assert any("no rows today" in record.getMessage() for record in caplog.records)


@in_virtual_time
async def test_lines_after_a_crash():
    """S560: the lines of finished steps outlive a crash; those of the step that was cut short may be lost."""
    store = MemoryStore()
    workflow: Workflow[Any, Any] = Workflow("cut-short")
    calls: list[int] = []

    @workflow.step
    async def finished(ctx: StepContext) -> None:
        ctx.log("finished")

    @workflow.step
    async def cut(ctx: StepContext) -> None:
        ctx.log("cut", call=len(calls))
        calls.append(1)
        if len(calls) == 1:
            await trio.sleep_forever()

    async with open_engine(store, workflow) as engine:
        handle = await engine.start(workflow)
        while not calls:
            await trio.lowlevel.checkpoint()
        await testing.crash(engine)
    async with open_engine(store, workflow) as engine:
        assert (await engine.run(handle.id).wait()).status == "done"
        lines = await engine.run(handle.id).logs()
    assert [(line.step, line.attempt) for line in lines if line.data != {"call": 0}] == [
        ("finished", 1),
        ("cut", 2),
    ]


async def test_threads_log_too():
    """Proves that lines from many threads at once all arrive, each whole."""
    workflow: Workflow[Any, Any] = Workflow("threads")

    @workflow.step
    def talk(ctx: StepContext) -> None:
        threads = [threading.Thread(target=ctx.log, args=(f"t{number}",)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    async with open_engine("memory:", workflow) as engine:
        handle = await engine.start(workflow)
        assert (await handle.wait()).status == "done"
        assert sorted(line.message for line in await handle.logs()) == sorted(f"t{n}" for n in range(20))
