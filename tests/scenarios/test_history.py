"""Earlier outputs of a step: kept on request, read, and taken up again (S175 to S181)."""

from typing import Any

import msgspec
import pytest
import trio

from streamline_trio import (
    DefinitionError,
    InvalidState,
    MemoryStore,
    OutputVersion,
    RunHandle,
    StepContext,
    StepNotFound,
    StepOptions,
    ValidationError,
    Workflow,
    open_engine,
)
from streamline_trio._core.codec import split
from tests.scenarios.worlds import at_rest, idle, in_virtual_time

Context = StepContext[Any, Any]


class Draft(msgspec.Struct, frozen=True):
    gen: int


def drafting(keep: int | None = 5, **options: Any) -> Workflow[Any, Any]:
    """generate (gen 1, 2, 3, ... on successive calls), then read what it gave."""
    flow: Workflow[Any, Any] = Workflow("drafting", state=lambda _: {"gen": 0}, **options)

    async def generate(ctx: Context) -> Draft:
        await ctx.set(gen=ctx.state["gen"] + 1)
        return Draft(ctx.state["gen"])

    async def read(ctx: Context) -> Any:
        return ctx.output("generate").gen

    kept: Any = {} if keep is None else {"keep_outputs": keep}
    flow.add_step("generate", generate, **kept)
    flow.add_step("read", read)
    return flow


async def generated(handle: RunHandle, times: int) -> RunHandle:
    """The run, after so many generations."""
    await handle.wait()
    for _ in range(times - 1):
        await handle.rewind("generate")
        await handle.wait()
    return handle


async def history(handle: RunHandle, step: str = "generate") -> list[tuple[int, Any]]:
    return [(version.version, version.output) for version in (await handle.get()).steps[step].history]


@in_virtual_time
async def test_generations_are_kept_in_order():
    """S176: after each rewind the output is the new one and the history has those before, oldest first, as they
    were: in their type, with the time they were made at and the attempts they took."""
    flow = drafting()
    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        made = [(await handle.wait()).steps["generate"].ended_at]
        assert await history(handle) == []
        for gen in (2, 3):
            await trio.sleep(60)
            await handle.rewind("generate")
            run = await handle.wait()
            made.append(run.steps["generate"].ended_at)
            assert (run.steps["generate"].output, run.output) == (Draft(gen), gen)
            assert await history(handle) == [(number, Draft(number)) for number in range(1, gen)]
        kept = (await handle.get()).steps["generate"].history
        assert made[1] is not None
        assert kept[1] == OutputVersion(version=2, output=Draft(2), at=made[1], attempts=1)
        assert [version.at for version in kept] == made[:2]


@pytest.mark.parametrize(
    ("keep", "kept"), [(1, [3]), (2, [2, 3]), (3, [1, 2, 3]), (9, [1, 2, 3]), (0, []), (None, [])]
)
@in_virtual_time
async def test_the_history_is_bounded(keep, kept):
    """S177, S181: the newest so many are kept, the oldest go first; without the option not even a field is."""
    flow, store = drafting(keep), MemoryStore()
    async with open_engine(store, flow) as engine:
        handle = await generated(await engine.start(flow), 4)
        assert await handle.output("generate") == Draft(4)
        assert await history(handle) == [(number, Draft(number)) for number in kept]
        stored = await store.load(handle.id)
    assert stored is not None
    assert (b"history" in split(stored)["step/generate"]) == bool(kept)


@pytest.mark.parametrize("where", ["outside", "inside"])
@in_virtual_time
async def test_an_earlier_output_is_taken_up_again(where):
    """S178: the step has the old output again and says which version it is; the history stays as it is, and other
    steps are not run again. It is idempotent, from outside and from a handler."""
    flow = drafting()
    pinned: list[Any] = []

    @flow.step
    async def choose(ctx: Context) -> Any:
        if where == "inside" and len(ctx.output_history("generate")) == 2:
            for _ in range(2):
                await ctx.pin_output(1, "generate")
            pinned.append((ctx.output("generate"), [version.output for version in ctx.output_history("generate")]))
        return len(ctx.output_history())

    async with open_engine("memory:", flow) as engine:
        handle = await generated(await engine.start(flow), 3)
        if where == "outside":
            before = await handle.get()
            await handle.pin_output(1, "generate")
            once = await handle.get()
            await handle.pin_output(1, flow.steps["generate"])
            assert await handle.get() == once
            assert once.revision == before.revision + 1
        else:
            assert pinned == [(Draft(1), [Draft(1), Draft(2)])]
        run = await handle.get()
    assert (run.status, run.steps["generate"].output, run.steps["generate"].pinned) == ("done", Draft(1), 1)
    assert [version.version for version in run.steps["generate"].history] == [1, 2]
    assert run.steps["read"].output == 3


@in_virtual_time
async def test_what_is_pinned_is_read_by_later_steps():
    """S178: a run that waits goes on with the pinned output, also one that somebody holds."""
    flow = drafting()

    @flow.step
    async def gate(ctx: Context) -> Any:
        await ctx.wait("publish?")
        return ctx.output("generate")

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await idle()
        await handle.rewind("generate")
        await idle()
        await handle.pin_output(1, "generate")
        assert (await at_rest(handle)).status == "waiting"
        await handle.resume(1)
        assert await handle.result() == {"gen": 1}


@in_virtual_time
async def test_a_run_that_another_process_drives():
    """Proves that pinning reaches the handler that is running elsewhere: its next look at the output sees it."""
    store, flow = MemoryStore(exclusive=False), drafting()
    entered, may_look = trio.Event(), trio.Event()
    seen: list[Any] = []

    @flow.step
    async def look(ctx: Context) -> None:
        if len(ctx.output_history("generate")) == 1:
            seen.append(ctx.output("generate"))
            entered.set()
            await may_look.wait()
            seen.append(ctx.output("generate"))

    async with open_engine(store, flow) as engine, open_engine(store, worker=False) as client:
        handle = await engine.start(flow)
        await handle.wait()
        await handle.rewind("generate")
        await entered.wait()
        await client.run(handle.id).pin_output(1, "generate")
        await trio.sleep(2)
        may_look.set()
        assert (await handle.wait()).status == "done"
    assert seen == [Draft(2), Draft(1)]


@pytest.mark.parametrize("cancelled", ["settled", "asked"])
@in_virtual_time
async def test_a_cancelled_run_keeps_its_outputs(cancelled):
    """S179: a run that is cancelled, or about to be, refuses: the output stays what it was."""
    flow = drafting()
    unwinding = trio.Event()

    @flow.step
    async def last(ctx: Context) -> None:
        if len(ctx.output_history("generate")) == 1:
            try:
                await trio.sleep_forever()
            finally:
                if cancelled == "asked":
                    with trio.CancelScope(shield=True):
                        await unwinding.wait()

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await handle.wait()
        await handle.rewind("generate")
        await idle()
        await handle.cancel()
        await idle()
        before = await handle.get()
        assert before.status == ("running" if cancelled == "asked" else "cancelled")
        with pytest.raises(InvalidState):
            await handle.pin_output(1, "generate")
        assert (await handle.get()).steps["generate"].output == Draft(2)
        unwinding.set()
        assert (await handle.wait()).status == "cancelled"


@in_virtual_time
async def test_what_cannot_be_pinned():
    """Proves that unknown steps and versions, steps that are not done and what is no version are refused, and
    that nothing changes; the message names what there is."""
    flow = drafting()
    refused: list[str] = []

    @flow.step
    async def own(ctx: Context) -> None:
        for step in (None, "own", "never"):
            with pytest.raises(InvalidState) as caught:
                await ctx.pin_output(1, step)
            refused.append(str(caught.value))
        for name in ("nowhere", "x" * 50):
            with pytest.raises(StepNotFound):
                await ctx.pin_output(1, name)
            with pytest.raises(StepNotFound):
                ctx.output_history(name)

    @flow.step(skip_if=lambda _: True)
    async def never(_ctx: Context) -> None: ...

    async with open_engine("memory:", flow) as engine:
        handle = await generated(await engine.start(flow), 3)
        before = await handle.get()
        with pytest.raises(ValidationError, match=r"no output 7 .* 1, 2"):
            await handle.pin_output(7, "generate")
        with pytest.raises(ValidationError, match="none"):
            await handle.pin_output(1, "read")
        with pytest.raises(StepNotFound):
            await handle.pin_output(1, "nowhere")
        with pytest.raises(InvalidState):
            await handle.pin_output(1, "never")
        for version in (0, -1, True, "1", 1.0):
            with pytest.raises(ValidationError):
                await handle.pin_output(version, "generate")  # type: ignore[arg-type]  # that is the point
        assert await handle.get() == before
    assert all("not done" in text for text in refused)


@in_virtual_time
async def test_equal_outputs_are_kept_once():
    """Proves that an output equal to the newest in the history is not kept twice, nor one taken from there."""
    flow: Workflow[Any, Any] = Workflow("flow")
    outputs = iter(["a", "a", "b", "b", "c", "d"])
    flow.add_step("generate", lambda _: next(outputs), keep_outputs=9)
    async with open_engine("memory:", flow) as engine:
        handle = await generated(await engine.start(flow), 5)
        assert await history(handle) == [(1, "a"), (2, "b")]
        await handle.pin_output(1, "generate")
        assert await handle.result() == "a"
        await handle.rewind("generate")
        run = await handle.wait()
        assert (run.output, run.steps["generate"].pinned) == ("d", None)
        assert await history(handle) == [(1, "a"), (2, "b")]


@in_virtual_time
async def test_only_outputs_are_kept():
    """Proves that neither a step that failed, nor one that was skipped, nor one reset before its end is kept."""
    flow: Workflow[Any, Any] = Workflow("flow")
    mood = "first"

    @flow.step(keep_outputs=9, attempts=1, skip_if=lambda _: mood == "skip")
    async def moody(ctx: Context) -> str:
        if mood == "fail":
            raise OSError("this time")
        if mood == "wait":
            await ctx.wait("for whom?")
        return mood

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await handle.wait()
        for mood in ("fail", "skip", "wait", "last"):  # noqa: B007 - the handler reads it
            await handle.rewind("moody")
            await idle()
        run = await handle.wait()
    assert (run.output, [version.output for version in run.steps["moody"].history]) == ("last", ["first"])


@in_virtual_time
async def test_goto_keeps_outputs_too():
    """Proves that a loop of steps by goto leaves the outputs of its rounds in the history."""
    flow: Workflow[Any, Any] = Workflow("flow", defaults=StepOptions(keep_outputs=2))

    async def draft(ctx: Context) -> int:
        history = ctx.output_history()
        return history[-1].version if history else 0

    async def review(ctx: Context) -> list[int]:
        if ctx.output("draft") < 3:
            await ctx.goto("draft")
        return [version.output for version in ctx.output_history("draft")]

    flow.add_step("draft", draft)
    flow.add_step("review", review)
    async with open_engine("memory:", flow) as engine:
        assert await (await engine.start(flow)).result() == [1, 2]


@pytest.mark.parametrize("keep", [-1, 1.5, True, "2", None, 1001])
def test_what_is_no_number_to_keep(keep):
    """Proves that only a whole number from 0 to 1000 is accepted, for a step and for all."""
    flow: Workflow[Any, Any] = Workflow("flow")
    with pytest.raises(DefinitionError, match="keep_outputs"):
        flow.add_step("step", lambda _: 1, keep_outputs=keep)
    with pytest.raises(DefinitionError, match="keep_outputs"):
        Workflow("flow", defaults=StepOptions(keep_outputs=keep))


@in_virtual_time
async def test_the_timeline_tells_of_outputs_and_waits():
    """Proves that replaced and pinned outputs and waits that a rewind has closed are in the timeline."""
    flow = drafting()

    @flow.step
    async def gate(ctx: Context) -> Any:
        return await ctx.wait("publish?")

    async with open_engine("memory:", flow) as engine:
        handle = await engine.start(flow)
        await trio.sleep(1)
        await handle.rewind("generate")
        await trio.sleep(1)
        await handle.pin_output(1, "generate")
        told = [(entry.kind, entry.step, entry.detail) for entry in await handle.timeline()]
    assert ("replaced", "generate", "output 1") in told
    assert ("pinned", "generate", "output 1") in told
    assert ("waited", "gate", "publish?: dropped") in told
    assert ("waiting", "gate", "publish?") in told
