"""Joins (PAR): a step starts several runs at once and waits for as many of them as its policy needs."""

from collections import Counter
from typing import Any

import pytest
import trio

from streamline_trio import (
    Branch,
    BranchResult,
    InvalidState,
    JoinFailed,
    JoinResult,
    MemoryStore,
    NonRetriable,
    RunFailed,
    StepContext,
    SuspensionMismatch,
    ValidationError,
    Workflow,
    open_engine,
)
from tests.scenarios.worlds import at_rest, idle, in_virtual_time, one_step

Context = StepContext[Any, Any]

work: Workflow[Any, Any] = Workflow("work", input=tuple[float, int])


@work.step(attempts=1)
async def take_time(ctx: StepContext[tuple[float, int], Any]) -> int:
    seconds, value = ctx.input
    await ctx.sleep(seconds)
    if value < 0:
        raise NonRetriable(f"{value} is negative")
    return value * 10


def branch(seconds: float, value: int) -> Branch[Any]:
    """A branch that takes so long; it fails if the value is negative."""
    return Branch(work, (seconds, value))


def joining(branches: dict[str, Branch[Any]], seen: list[Any], *args: Any, **options: Any) -> Workflow[Any, Any]:
    """One step that joins the branches and keeps the result."""

    async def step(ctx: Context) -> None:
        seen.append(await ctx.join(branches, *args, **options))

    return one_step(step, attempts=1)


async def joined(branches: dict[str, Branch[Any]], *args: Any, **options: Any) -> tuple[JoinResult, Counter[Any]]:
    """The result of a join, and how its branches stood when nothing moved any more."""
    seen = list[Any]()
    parent = joining(branches, seen, *args, **options)
    async with open_engine("memory:", parent, work) as engine:
        run = await engine.start(parent)
        settled = await run.wait(1000)
        assert settled.status == "done", settled.error
        await trio.sleep(1000)
        statuses = Counter(child.status for child in await engine.find(parent=run))
    (result,) = seen
    return result, statuses


def brief(result: JoinResult) -> tuple[str, bool, dict[str, Any]]:
    found = {key: each.output if each.status == "done" else each.status for key, each in result.branches.items()}
    return result.policy, result.satisfied, found


@in_virtual_time
async def test_all_runs_its_branches_at_once_and_keeps_their_order():
    """S130: branches overlap in time, and the result holds them in the order of the mapping."""
    began = trio.current_time()
    result, _ = await joined({"a": branch(3, 1), "b": branch(1, 2), "c": branch(2, 3)})
    assert brief(result) == ("all", True, {"a": 10, "b": 20, "c": 30})
    assert list(result.branches) == ["a", "b", "c"]
    assert trio.current_time() - began < 1000 + 3.5


@in_virtual_time
async def test_all_fails_fast_with_the_message_of_the_branch():
    """S131: the first branch that fails ends the join by `JoinFailed` with its message; the rest is cancelled."""
    failures = list[JoinFailed]()

    async def step(ctx: Context) -> None:
        try:
            await ctx.join({"good": branch(1, 1), "bad": branch(2, -7), "slow": branch(500, 1)})
        except JoinFailed as failure:
            failures.append(failure)
            raise

    parent = one_step(step)
    async with open_engine("memory:", parent, work) as engine:
        run = await engine.start(parent)
        began = trio.current_time()
        with pytest.raises(RunFailed, match="branch 'bad' failed: -7 is negative") as raised:
            await run.result(1000)
        assert trio.current_time() - began < 3
        assert raised.value.run.error.code == "workflow.join_failed"
        assert raised.value.run.steps["step"].attempts == 1
        await idle()
        assert Counter(child.status for child in await engine.find(parent=run)) == {
            "done": 1,
            "failed": 1,
            "cancelled": 1,
        }
    result = failures[0].result
    assert brief(result) == ("all", False, {"good": 10, "bad": "failed"})
    assert result.branches["bad"].error.message == "-7 is negative"


@in_virtual_time
async def test_any_takes_the_first_success_and_cancels_the_losers():
    """S132: the first branch that is done satisfies `any`; those still under way are cancelled."""
    result, statuses = await joined({"bad": branch(1, -1), "fast": branch(2, 1), "slow": branch(500, 2)}, "any")
    assert brief(result) == ("any", True, {"bad": "failed", "fast": 10})
    assert statuses == {"failed": 1, "done": 1, "cancelled": 1}


@in_virtual_time
async def test_losers_may_be_kept():
    """Proves that with cancel_losers=False they go on to their own end, also when their parent has settled."""
    result, statuses = await joined({"fast": branch(2, 1), "slow": branch(500, 2)}, "any", cancel_losers=False)
    assert brief(result) == ("any", True, {"fast": 10})
    assert statuses == {"done": 2}


@in_virtual_time
async def test_settled_collects_failures():
    """S133: `settled` waits for all of them, and failures are results as well."""
    result, _ = await joined({"ok": branch(1, 1), "fail": branch(2, -1)}, "settled")
    assert brief(result) == ("settled", True, {"ok": 10, "fail": "failed"})


@pytest.mark.parametrize(("first", "satisfied"), [(-1, False), (1, True)])
@in_virtual_time
async def test_race_is_over_with_the_first_that_settles(first, satisfied):
    """S134: `race` resolves with the first branch, satisfied only if that is done; others are not in the result."""
    result, statuses = await joined({"slow": branch(200, 2), "first": branch(20, first)}, "race")
    assert brief(result) == ("race", satisfied, {"first": 10 if satisfied else "failed"})
    assert statuses["cancelled"] == 1


@in_virtual_time
async def test_any_without_a_success_resolves_too():
    """S135: when no branch is done `any` resolves all the same, unsatisfied."""
    result, _ = await joined({"a": branch(1, -1), "b": branch(2, -2)}, "any")
    assert brief(result) == ("any", False, {"a": "failed", "b": "failed"})


@in_virtual_time
async def test_a_join_of_nothing_does_not_wait():
    """Proves that no branches is a result at once: satisfied where nothing had to succeed."""
    for policy, satisfied in (("all", True), ("settled", True), ("any", False), ("race", False)):
        result, _ = await joined({}, policy)
        assert brief(result) == (policy, satisfied, {})


@in_virtual_time
async def test_cancelling_the_parent_cancels_the_running_branches():
    """S139: the parent and its running branches are cancelled, the one that has finished is not touched."""
    parent = joining({"a": branch(1, 1), "b": branch(500, 2), "c": branch(600, 3)}, [])
    async with open_engine("memory:", parent, work) as engine:
        run = await engine.start(parent)
        await trio.sleep(10)
        wait = (await run.get()).steps["step"].wait
        assert wait is not None
        assert (wait.kind, wait.policy, wait.branches, wait.started, wait.ended) == ("join", "all", 3, 3, 1)
        assert [found.id for found in await engine.find(waiting="join")] == [run.id]
        finished = (await engine.get(f"{wait.child}-0")).revision
        await run.cancel()
        await idle()
        assert (await run.get()).status == "cancelled"
        assert [(await engine.get(f"{wait.child}-{place}")).status for place in range(3)] == [
            "done",
            "cancelled",
            "cancelled",
        ]
        assert (await engine.get(f"{wait.child}-0")).revision == finished


@pytest.mark.parametrize("concurrency", [1, 2, 5])
@in_virtual_time
async def test_at_most_so_many_branches_are_under_way(concurrency):
    """Proves that `concurrency` bounds the branches under way, and that all of them run, once each."""
    live, most, order = 0, 0, list[int]()

    async def count(ctx: Context) -> None:
        nonlocal live, most
        live, most = live + 1, max(most, live + 1)
        order.append(ctx.input)
        await trio.sleep(1 + ctx.input % 3)
        live -= 1

    counted: Workflow[Any, Any] = Workflow("counted", input=int)
    counted.add_step("count", count)
    seen = list[Any]()
    parent = joining({f"b{n}": Branch(counted, n) for n in range(11)}, seen, concurrency=concurrency)
    async with open_engine("memory:", parent, counted) as engine:
        run = await engine.start(parent)
        assert (await run.wait(1000)).status == "done"
        assert await engine.count(parent=run) == 11
    assert most == concurrency
    assert sorted(order) == list(range(11))
    assert seen[0].satisfied


@in_virtual_time
async def test_branches_that_are_not_started_never_are():
    """Proves that a join that is over starts no further branch, and gives no result of those not started."""
    branches = {f"b{n}": branch(1, -1 if n == 1 else 1) for n in range(9)}
    result, statuses = await joined(branches, "race", concurrency=2)
    assert set(result.branches) <= {"b0", "b1"}
    assert sum(statuses.values()) == 2


@in_virtual_time
async def test_branches_may_wait_and_be_answered():
    """Proves that a branch that parks on a person holds the join up, and ends it with the answer."""
    asking: Workflow[Any, Any] = Workflow("asking")

    @asking.step
    async def ask(ctx: Context) -> int:
        answer: int = await ctx.wait("how many?", returns=int)
        return answer

    seen = list[Any]()
    parent = joining({"a": Branch(asking), "b": Branch("asking")}, seen)
    async with open_engine("memory:", parent, asking) as engine:
        run = await engine.start(parent)
        await idle()
        for place, child in enumerate(await engine.find(parent=run, sort="created_at")):
            assert child.parent is not None
            await engine.run(child.id).resume(child.parent.index + 5)
            assert (place, child.parent.branch) in {(0, "a"), (0, "b"), (1, "a"), (1, "b")}
        assert (await run.wait()).status == "done"
    assert brief(seen[0]) == ("all", True, {"a": 5, "b": 6})


@in_virtual_time
async def test_a_join_is_not_answered_by_hand():
    """Proves that `resume` on a run that waits for branches is refused: it says what is waited for."""
    parent = joining({"a": branch(50, 1)}, [])
    async with open_engine("memory:", parent, work) as engine:
        run = await engine.start(parent)
        await at_rest(run)
        with pytest.raises(InvalidState, match="it waits for its branches"):
            await run.resume(5)


@in_virtual_time
async def test_what_is_no_join_is_refused():
    """Proves that policy, concurrency, keys and branches are checked before anything is started."""
    refused = list[str]()

    async def step(ctx: Context) -> None:
        good = {"a": branch(1, 1)}
        wrong: list[tuple[Any, dict[str, Any]]] = [
            (good, {"policy": "most"}),
            (good, {"concurrency": 0}),
            ([branch(1, 1)], {}),
            ({1: branch(1, 1)}, {}),
            ({"a": work}, {}),
            ({"a": Branch(work, "text")}, {}),
        ]
        for branches, options in wrong:
            try:
                await ctx.join(branches, **options)
            except ValidationError as error:
                refused.append(str(error))

    parent = one_step(step)
    async with open_engine("memory:", parent, work) as engine:
        run = await engine.start(parent)
        assert (await run.wait()).status == "done"
        assert await engine.count(parent=run) == 0
    assert len(refused) == 6


@in_virtual_time
async def test_other_branches_within_one_attempt_are_a_mismatch():
    """Proves that a handler that asks for other branches when it is entered again is told so, not misled."""
    entries = list[int]()

    async def step(ctx: Context) -> None:
        entries.append(1)
        await ctx.join({f"b{len(entries)}": branch(5, 1)})

    parent = one_step(step, attempts=1)
    async with open_engine("memory:", parent, work) as engine:
        settled = await (await engine.start(parent)).wait(100)
    assert settled.error is not None
    assert settled.error.type == SuspensionMismatch.__name__


@in_virtual_time
async def test_a_branch_that_was_cancelled_tells_why():
    """Proves that a cancelled branch is a result with its reason, by which one sees that nothing broke."""
    seen = list[Any]()
    parent = joining({"a": branch(50, 1), "b": branch(60, 2)}, seen, "settled")
    async with open_engine("memory:", parent, work) as engine:
        run = await engine.start(parent)
        wait = (await at_rest(run)).steps["step"].wait
        assert wait is not None
        await engine.run(f"{wait.child}-1").cancel("too dear")
        await run.wait(100)
    cancelled: BranchResult = seen[0].branches["b"]
    assert (cancelled.status, cancelled.error and cancelled.error.message) == ("cancelled", "too dear")


@in_virtual_time
async def test_a_result_is_replayed_as_it_was():
    """Proves that a join that is over gives the same result when the handler is entered again later."""
    seen = list[Any]()

    async def step(ctx: Context) -> None:
        seen.append(await ctx.join({"a": branch(1, 1), "b": branch(9, 2)}, "race"))
        await ctx.sleep(100)
        seen.append(await ctx.join({"c": branch(1, 3)}, name="second"))

    parent = one_step(step)
    async with open_engine("memory:", parent, work) as engine:
        await (await engine.start(parent)).wait(1000)
    assert [brief(result) for result in seen] == [("race", True, {"a": 10})] * 3 + [("all", True, {"c": 30})]


@in_virtual_time
async def test_branches_that_a_retry_reads_are_not_deleted():
    """Proves that `delete` leaves the branches of a failed run that has their outputs still to read."""
    outputs = list[Any]()

    async def step(ctx: Context) -> None:
        result = await ctx.join({"a": branch(1, 1), "b": branch(1, 2)})
        outputs.append([found.output for found in result.branches.values()])
        if len(outputs) == 1:
            raise ValueError("once")

    parent = one_step(step, attempts=1)
    async with open_engine("memory:", parent, work) as engine:
        run = await engine.start(parent)
        assert (await run.wait()).status == "failed"
        assert await engine.delete(workflow="work") == 0
        await run.retry()
        assert (await run.wait()).status == "done"
        assert outputs == [[10, 20]] * 2
        outputs.clear()
        await (await engine.start(parent)).wait()
        assert await engine.delete(status="failed") == 1
        assert await engine.delete() == 5, "with its parent a branch may go"


@in_virtual_time
async def test_failed_parents_go_with_their_branches():
    """Proves that one call of `delete` takes a failed run and the branches that only it kept."""

    async def step(ctx: Context) -> None:
        await ctx.join({"a": branch(1, 1)})
        raise ValueError

    parent = one_step(step, attempts=1)
    async with open_engine("memory:", parent, work) as engine:
        await (await engine.start(parent)).wait()
        assert await engine.delete() == 2


@in_virtual_time
async def test_losers_that_are_kept_outlive_their_parent():
    """Proves that a loser that has not begun yet goes on also when its parent is done and was deleted."""
    idle_work: Workflow[Any, Any] = Workflow("idle-work")
    idle_work.add_step("rest", _rest)
    branches = {"fast": branch(1, 1), "late": Branch(idle_work)}
    parent = joining(branches, [], "race", cancel_losers=False)
    store = MemoryStore()
    async with open_engine(store, parent, work) as engine:
        await (await engine.start(parent)).wait()
        (late,) = (await engine.find(workflow="idle-work")).items
        assert await engine.delete(workflow="flow") == 1
    async with open_engine(store, idle_work) as engine:
        assert (await engine.run(late.id).wait(10)).status == "done"


async def _rest(_ctx: Context) -> None: ...


@in_virtual_time
async def test_a_branch_that_is_rewound_after_the_join_is_missed() -> None:
    """Proves that a step which is called again after its join never sees None in place of what a branch gave."""
    branch = one_step(_late)
    seen: list[Any] = []
    parent: Workflow[Any, Any] = Workflow("reader")

    @parent.step(attempts=1)
    async def read(ctx: Context) -> None:
        joined = await ctx.join({"a": Branch(branch, 1)})
        seen.append(joined.branches["a"].output)
        await ctx.wait("go?")

    async with open_engine("memory:", branch, parent) as engine:
        handle = await engine.start(parent)
        await trio.sleep(20)
        (child,) = (await engine.find(parent=handle)).items
        await engine.run(child.id).rewind("step")
        await handle.resume("x")
        ended = await handle.wait()
    assert seen == [1]
    assert ended.error is not None
    assert ended.error.code == "workflow.output_missing"


async def _late(ctx: Context) -> int:
    await ctx.sleep(10)
    number: int = ctx.input
    return number


@in_virtual_time
async def test_what_was_done_before_a_failed_join_is_undone() -> None:
    """S131, S219: Proves that a branch that fails turns the parent back, and that earlier steps are undone once."""
    undone: list[str] = []
    flow: Workflow[Any, Any] = Workflow("careful")
    branch = one_step(_fails, attempts=1)

    @flow.step
    async def prepare(_ctx: Context) -> str:
        return "prepared"

    @prepare.compensate
    async def clean(ctx: Context) -> None:
        undone.append(ctx.output(prepare))

    @flow.step(attempts=1)
    async def fan_out(ctx: Context) -> None:
        await ctx.join({"bad": Branch(branch, 1)})

    @flow.step
    async def never(_ctx: Context) -> None:
        undone.append("it ran")

    async with open_engine("memory:", flow, branch) as engine:
        ended = await (await engine.start(flow)).wait()
    assert (ended.status, undone) == ("compensated", ["prepared"])
    assert ended.error is not None
    assert ended.error.code == "workflow.join_failed"
    assert "no such thing" in ended.error.message


async def _fails(_ctx: Context) -> None:
    raise ValueError("no such thing")


@in_virtual_time
async def test_a_branch_of_an_engine_elsewhere_waits_for_its_worker() -> None:
    """S138: the original parked for ever without a word; here another engine's workflow is started, and its worker
    drives it. A text that names no workflow is refused at once."""
    store, branch = MemoryStore(), one_step(_fails, attempts=1)
    parent: Workflow[Any, Any] = Workflow("parent")

    @parent.step(attempts=1)
    async def fan_out(ctx: Context) -> str:
        joined = await ctx.join({"a": Branch(branch, 1)}, policy="settled")
        return joined.branches["a"].status

    async with open_engine(store, parent) as mine:
        handle = await mine.start(parent)
        await idle()
        async with open_engine(store, branch):
            assert await handle.result() == "failed"
