"""Limits on payloads: scenarios S484 to S488."""

import logging
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from streamline_trio import MemoryStore, StepContext, ValidationError, Workflow, open_engine
from streamline_trio._core.store import Failed, Update, Verdict, Write
from tests.scenarios.worlds import at_rest, in_virtual_time, settled

MIB = 1 << 20


@in_virtual_time
async def test_an_output_over_the_cap_fails_the_step_at_once():
    """S484: an output over `max_payload_bytes` is not retried, not stored, and named with its sizes."""
    workflow: Workflow[Any, Any] = Workflow("capped", max_payload_bytes=1000)
    workflow.add_step("big", lambda _: "x" * 5000)
    workflow.add_step("after", lambda _: None)
    run = await settled(workflow)
    assert (run.status, run.steps["big"].attempts, run.steps["big"].output) == ("failed", 1, None)
    assert run.steps["after"].status == "pending"
    assert run.error is not None
    assert run.error.code == "workflow.payload_too_large"
    for told in ("big", run.id, "5003", "1000", "reference"):
        assert told in run.error.message


@pytest.mark.parametrize("how", ["checkpoint", "once"])
@in_virtual_time
async def test_a_checkpoint_over_the_cap_fails_the_step_at_once(how):
    """S484: a checkpoint, or a result of `once`, over the cap fails the step there: nothing after it runs."""
    workflow: Workflow[Any, Any] = Workflow("capped", max_payload_bytes=1000)
    reached: list[str] = []

    @workflow.step
    async def save(ctx: StepContext) -> None:
        await ctx.checkpoint("small")
        if how == "checkpoint":
            await ctx.checkpoint("x" * 5000)
        else:
            await ctx.once("key", lambda: "x" * 5000)
        reached.append("after")

    run = await settled(workflow)
    assert (run.status, run.steps["save"].attempts, reached) == ("failed", 1, [])
    assert run.steps["save"].checkpoints == {"default": "small"}
    assert run.error is not None
    assert run.error.code == "workflow.payload_too_large"


@in_virtual_time
async def test_a_step_has_a_cap_of_its_own():
    """Proves that a step's `max_payload_bytes` wins over the workflow's, to either side."""
    workflow: Workflow[Any, Any] = Workflow("own", max_payload_bytes=100)
    workflow.add_step("wider", lambda _: "x" * 500, max_payload_bytes=1000)
    workflow.add_step("none", lambda _: "x" * 5000, max_payload_bytes=None)
    workflow.add_step("inherits", lambda _: "x" * 50)
    workflow.add_step("narrower", lambda _: "x" * 50, max_payload_bytes=10)
    run = await settled(workflow)
    assert [step.status for step in run.steps.values()] == ["done", "done", "done", "failed"]


@in_virtual_time
async def test_without_a_cap_a_large_output_only_warns(caplog):
    """S485: 2 MB without a cap are stored, with a warning that names run and step; up to 1 MiB there is none."""
    workflow: Workflow[Any, Any] = Workflow("large")
    workflow.add_step("below", lambda _: b"x" * (MIB - 10))
    workflow.add_step("above", lambda _: "x" * 2_000_000)
    with caplog.at_level(logging.WARNING, "streamline_trio"):
        run = await settled(workflow)
    assert run.status == "done"
    assert len(run.output) == 2_000_000
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert run.id in warning.getMessage()
    assert "step above" in warning.getMessage()


@pytest.mark.parametrize(
    "value", ["x" * 500, "ü" * 500, "€" * 500, "🙂" * 500, {"a": [1, 2.5, None]}, b"\x00" * 99]
)
@in_virtual_time
async def test_exactly_at_the_cap_is_allowed(value):
    """S486: the size is that of the encoded value in bytes, not characters; equal is allowed, one more is not."""
    size = len(msgspec.msgpack.encode(value))
    for cap, status in ((size, "done"), (size - 1, "failed")):
        workflow: Workflow[Any, Any] = Workflow("exact", max_payload_bytes=cap)
        workflow.add_step("give", lambda _: value)
        assert (await settled(workflow)).status == status


@in_virtual_time
async def test_seventeen_megabytes_are_stored():
    """S487: our stores have no document limit of 16 MB: a large output is stored and read back."""
    workflow: Workflow[Any, Any] = Workflow("huge")
    workflow.add_step("give", lambda _: b"x" * 17_000_000)
    run = await settled(workflow)
    assert (run.status, len(run.output)) == ("done", 17_000_000)


class SmallDocuments(MemoryStore):
    """A store that refuses any run with more than so many bytes in one value."""

    limit = 10_000

    async def write(self, batch: Sequence[Write]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for write in batch:
            if isinstance(write, Update) and self._is_large(write):
                error = ValidationError(f"run {write.after.id!r} is larger than a document may be")
                verdicts.append(Failed(error))
            else:
                verdicts += await super().write([write])
        return verdicts

    def _is_large(self, write: Update) -> bool:
        run = write.after
        outputs = [step.output or b"" for step in run.steps.values()]
        return any(len(value) > self.limit for value in (run.state, *outputs, *run.checkpoints.values()))


@in_virtual_time
async def test_what_the_store_refuses_fails_the_run_clearly():
    """S487: where the store cannot hold an output the run fails with the store's words and is not stuck."""
    workflow: Workflow[Any, Any] = Workflow("refused")
    workflow.add_step("give", lambda _: "x" * 20_000)
    run = await settled(workflow, None, SmallDocuments())
    assert (run.status, run.lease, run.steps["give"].attempts) == ("failed", None, 1)
    assert run.error is not None
    assert "larger than a document may be" in run.error.message
    assert run.error.step == "give"


@in_virtual_time
async def test_a_refused_state_write_leaves_the_state_as_it_was():
    """S487, S488: a `ctx.set` that the store refuses raises in the handler, is not seen by it afterwards, and
    does not get in the way of the next one."""
    workflow: Workflow[Any, Any] = Workflow("refused-state", state=lambda _: {"small": 0})

    @workflow.step
    async def write(ctx: StepContext) -> Any:
        with pytest.raises(ValidationError, match="larger than a document"):
            await ctx.set(big="x" * 20_000)
        assert ctx.state == {"small": 0}
        await ctx.set(small=1)
        return ctx.state

    run = await settled(workflow, None, SmallDocuments())
    assert run.error is None
    assert (run.status, run.output, run.state) == ("done", {"small": 1}, {"small": 1})


@in_virtual_time
async def test_answers_and_state_are_not_capped():
    """S488: the cap is on what a step makes: outputs, checkpoints and results of `once`. Answers, the input and
    the state are not capped (the original's rule)."""
    workflow: Workflow[Any, Any] = Workflow("uncapped", max_payload_bytes=1000)

    @workflow.step
    async def gate(ctx: StepContext) -> int:
        await ctx.set(text="x" * 5000)
        return len(await ctx.wait("a long answer")) + len(ctx.state["text"]) + len(ctx.input["given"])

    async with open_engine("memory:", workflow) as engine:
        handle = await engine.start(workflow, {"given": "x" * 5000})
        assert (await at_rest(handle)).status == "waiting"
        await handle.resume("x" * 5000)
        assert await handle.result() == 15_000
