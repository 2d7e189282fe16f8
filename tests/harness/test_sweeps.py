"""Mishaps: each happens where it was asked for, a sweep finds every point, and planted bugs are caught."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio

from streamline_trio import (
    Engine,
    LeaseLost,
    MemoryStore,
    RunHandle,
    Signal,
    SqliteStore,
    StepContext,
    Store,
    StoreUnavailable,
    ValidationError,
    Workflow,
)
from streamline_trio.testing import (
    CrashAt,
    DeliverTwice,
    FailCall,
    FaultyStore,
    LoseLeaseAt,
    MishapMissed,
    Scenario,
    SimulationFailed,
    Start,
    World,
    _play,
    crash_here,
    lose_lease_here,
    open_stage,
    parked,
    play,
    run,
    simulate,
    sweep,
)
from tests.crash.faulty_store import BrokenStore

EVERY = (FailCall, CrashAt, LoseLeaseAt, DeliverTwice)
approved = Signal("approved", str)


@pytest.fixture(params=["memory", "shared memory", "sqlite"])
def store(request, tmp_path) -> Callable[[], Store]:
    """Gives a fresh store at each call."""
    numbers = itertools.count()
    makers: dict[str, Callable[[], Store]] = {
        "memory": MemoryStore,
        "shared memory": lambda: MemoryStore(exclusive=False),
        "sqlite": lambda: SqliteStore(tmp_path / f"{next(numbers)}.db"),
    }
    return makers[request.param]


class Bank:
    """A payment provider that knows idempotency keys, and a workflow that charges there."""

    def __init__(self, *, with_key: bool) -> None:
        self.charges: list[tuple[str, int]] = []
        self.before: Callable[[], Any] | None = None
        self.after: Callable[[], Any] | None = None
        self.with_key = with_key
        self.order: Workflow[Any, Any] = Workflow("order", input=int)
        self.order.add_step("review", self._review)
        self.order.add_step("charge", self._charge)
        self.order.add_step("ship", self._ship)

    async def _review(self, ctx: StepContext[int]) -> str:
        return await ctx.wait_for(approved)

    async def _charge(self, ctx: StepContext[int]) -> None:
        await self.charge(ctx.input, key=ctx.idempotency_key() if self.with_key else None)

    async def _ship(self, ctx: StepContext[int]) -> str:
        await ctx.checkpoint("packed")
        return "shipped"

    async def charge(self, cents: int, key: str | None) -> None:
        if self.before is not None:
            await self.before()
        charge = (key or f"charge {len(self.charges)}", cents)
        if charge not in self.charges:
            self.charges.append(charge)
        if self.after is not None:
            await self.after()

    async def pays(self, engine: Engine) -> list[int]:
        """The scenario: begins with a clean world."""
        self.charges.clear()
        handle = await engine.start(self.order, 4200, run_id="o-1")
        await engine.emit(approved, "ana", run=handle, id="mail 7")
        assert await handle.result() == "shipped"
        return [cents for _key, cents in self.charges]


def test_a_sound_workflow_passes_every_sweep(store):
    """Proves that nothing the engine promises to bear breaks a workflow that is written for it."""
    bank = Bank(with_key=True)
    played = sweep(bank.pays, bank.order, mishaps=EVERY, store=store)
    assert {type(mishap) for mishap in played} == set(EVERY)


def test_a_charge_that_is_not_idempotent_is_caught(store):
    """Proves that a crash between the charge and its commit is found, and told in words that lead there."""
    bank = Bank(with_key=False)
    with pytest.raises(AssertionError, match=r"returned \[4200, 4200\]; undisturbed it returns \[4200\]") as caught:
        sweep(bank.pays, bank.order, store=store)
    (note,) = caught.value.__notes__
    assert "the worker died before its write" in note
    assert "step charge running -> done" in note
    assert "play(..., mishap=CrashAt(step='charge'))" in note


@pytest.mark.parametrize("mishap", [CrashAt(step="charge"), LoseLeaseAt(step="charge")])
def test_a_chosen_mishap_happens_where_it_was_asked_for(store, mishap):
    """Proves that a crash or a lost lease at the end of a step calls its handler again, and no other."""
    bank = Bank(with_key=False)
    assert play(bank.pays, bank.order, store=store) == [4200]
    assert play(bank.pays, bank.order, mishap=mishap, store=store) == [4200, 4200]
    assert play(bank.pays, bank.order, mishap=msgspec.structs.replace(mishap, step="ship"), store=store) == [4200]


@pytest.mark.parametrize(
    ("mishap", "attempts"),
    [
        (CrashAt(step="charge", on="begin"), 1),
        (CrashAt(step="charge", on="begin", when="after"), 2),
        (CrashAt(step="charge", when="before"), 2),
        (CrashAt(step="charge", when="after"), 1),
        (LoseLeaseAt(step="charge", on="begin"), 1),
        (LoseLeaseAt(step="charge"), 2),
    ],
)
def test_the_points_of_a_step(store, mishap, attempts):
    """Proves that before and after, beginning and end, are the four moments that they say."""
    bank = Bank(with_key=True)

    async def scenario(engine: Engine) -> int:
        await bank.pays(engine)
        return (await engine.get("o-1")).steps["charge"].attempts

    assert play(scenario, bank.order, mishap=mishap, store=store) == attempts


@pytest.mark.parametrize(
    "mishap",
    [FailCall(999), CrashAt(write=999), LoseLeaseAt(write=999), DeliverTwice(9)],
)
def test_a_mishap_that_does_not_happen_is_told(mishap):
    """Proves that a play with a slip of the pen in it does not look like a success."""
    bank = Bank(with_key=True)
    with pytest.raises(MishapMissed, match="did not happen"):
        play(bank.pays, bank.order, mishap=mishap)


@pytest.mark.parametrize("kind", [CrashAt, LoseLeaseAt])
def test_a_step_that_nobody_has_is_refused(kind):
    """Proves that a misspelt step is told as such."""
    bank = Bank(with_key=True)
    with pytest.raises(ValidationError, match="no workflow here has a step 'chrage'"):
        play(bank.pays, bank.order, mishap=kind(step="chrage"))


def test_a_stage_tells_of_a_mishap_that_did_not_happen():
    """Proves that leaving the stage is no success if what was to go wrong did not."""
    bank = Bank(with_key=True)

    async def main() -> None:
        async with open_stage(MemoryStore(), bank.order, mishap=CrashAt(write=999)) as engine:
            await bank.pays(engine)

    with pytest.raises(MishapMissed, match="did not happen"):
        run(main)


wrong: Any = {"on": "middle", "when": "during", "write": "1", "call": "1", "again": "sometime", "kind": CrashAt}


@pytest.mark.parametrize(
    "make",
    [
        lambda: CrashAt(step="charge", on=wrong["on"]),
        lambda: CrashAt(step="charge", when=wrong["when"]),
        lambda: CrashAt(write=wrong["write"]),
        lambda: CrashAt(write=-1),
        lambda: LoseLeaseAt(write=1, on=wrong["when"]),
        lambda: FailCall(0, wrong["again"]),
        lambda: FailCall(wrong["call"]),
        lambda: DeliverTwice(0, wrong["again"]),
        lambda: DeliverTwice(True),
        lambda: FaultyStore(MemoryStore(), {1}, wrong["when"]),
        lambda: play(Bank(with_key=True).pays, Bank(with_key=True).order, mishap=wrong["kind"]),
        lambda: sweep(Bank(with_key=True).pays, Bank(with_key=True).order, mishaps=[]),
        lambda: sweep(Bank(with_key=True).pays, Bank(with_key=True).order, mishaps=wrong["kind"](write=0)),
        lambda: simulate(lambda _chooser: Scenario(Workflow("w"), starts=[]), schedules=0),
        Scenario,
    ],
)
def test_a_slip_of_the_pen_is_refused(make):
    """Proves that what is misspelt or empty does not pass as a success."""
    with pytest.raises(ValidationError):
        make()


@pytest.mark.parametrize("kind", [CrashAt, LoseLeaseAt])
def test_a_mishap_names_one_point(kind):
    """Proves that a point without a name, or with two, is refused at once."""
    with pytest.raises(ValidationError, match="either write= or step="):
        kind()
    with pytest.raises(ValidationError, match="either write= or step="):
        kind(write=1, step="a")


def test_the_process_may_die_on_the_spot(store):
    """Proves that `crash_here` ends the worker there, once, and that the run goes on elsewhere."""
    bank = Bank(with_key=False)
    bank.after = crash_here
    assert play(bank.pays, bank.order, store=store) == [4200, 4200]
    bank.before, bank.after = crash_here, None
    assert play(bank.pays, bank.order, store=store) == [4200]


def test_a_lease_may_be_lost_on_the_spot(store):
    """Proves that `lose_lease_here` lets another take over while the first goes on: without a key, both pay."""
    for with_key, wanted in ((False, [4200, 4200]), (True, [4200])):
        bank = Bank(with_key=with_key)
        bank.before = lose_lease_here
        assert play(bank.pays, bank.order, store=store) == wanted


def test_what_is_written_without_the_lease_is_refused(store):
    """Proves that the handler which lost its run is told so, and that what it wanted to keep is not kept."""
    workflow: Workflow[Any, Any] = Workflow("w")
    seen: list[str] = []

    @workflow.step
    async def step(ctx: StepContext[Any, Any]) -> str:
        me = f"call {len(seen)}"
        seen.append(me)
        await lose_lease_here()
        try:
            await ctx.set(by=me)
        except LeaseLost:
            seen.append(f"{me} lost")
            raise
        return me

    async def scenario(engine: Engine) -> tuple[str, Any]:
        handle = await engine.start(workflow, {})
        return await handle.result(), (await handle.get()).state

    assert play(scenario, workflow, store=store) == ("call 1", {"by": "call 1"})
    assert seen == ["call 0", "call 1", "call 0 lost"]


def test_the_one_that_lost_its_run_is_seen_to_the_end():
    """Proves that what the first worker still does is done before the run goes on elsewhere."""
    workflow: Workflow[Any, Any] = Workflow("w")
    seen: list[int] = []

    @workflow.step
    async def step(ctx: StepContext[Any, Any]) -> None:
        first = not seen
        seen.append(1)
        await lose_lease_here()
        if first:
            await trio.sleep(3)
            seen.append(2)

    async def scenario(engine: Engine) -> list[int]:
        seen.clear()
        await (await engine.start(workflow)).result()
        return list(seen)

    assert play(scenario, workflow) == [1, 2, 1]


@pytest.mark.parametrize("verb", [crash_here, lose_lease_here])
async def test_verbs_of_the_stage_need_one(verb):
    """Proves that a stand-in that dies on purpose says so when nobody is there to take over."""
    with pytest.raises(LookupError, match=f"{verb.__name__}.. is for handlers that run in `play`"):
        await verb()
    async with open_stage("memory:", counting()[0]):
        with pytest.raises(LookupError, match=f"{verb.__name__}.. was called by the scenario, which is no worker"):
            await verb()
    with pytest.raises(LookupError, match=f"{verb.__name__}.. is for handlers that run in `play`"):
        await verb()


def test_where_one_engine_does_all_none_can_take_over():
    """Proves that the verbs say why they cannot be had beside a store that fails."""
    workflow: Workflow[Any, Any] = Workflow("w")

    @workflow.step(attempts=1)
    async def step(_ctx: StepContext[Any, Any]) -> None:
        await crash_here()

    async def scenario(engine: Engine) -> str:
        error = (await (await engine.start(workflow)).wait()).error
        return "" if error is None else error.message

    told = play(scenario, workflow, mishap=FailCall(0))
    assert "crash_here(): with FailCall(call=0) there is one engine only" in told


# --- deliveries ----------------------------------------------------------------------------------------------


def four_eyes(*, checks: bool) -> Workflow[Any, Any]:
    """Two people must agree; without `checks`, one who is heard twice will do."""
    workflow: Workflow[Any, Any] = Workflow("payout")

    @workflow.step
    async def first(ctx: StepContext[Any, Any]) -> str:
        return await ctx.wait("first approval", returns=str)

    @workflow.step
    async def second(ctx: StepContext[Any, Any]) -> str:
        name = "second approval"
        while (who := await ctx.wait("second approval", returns=str, name=name)) == ctx.output(first) and checks:
            name += "'"
        return who

    return workflow


async def one_approves(engine: Engine) -> str:
    handle = await engine.start("payout", run_id="p-1")
    await parked(handle)
    await handle.resume("ana")
    return (await parked(handle)).status


@pytest.mark.parametrize("by_name", [False, True])
def test_a_wait_answered_twice_is_caught(store, by_name):
    """Proves that an answer delivered again, when the next wait is open, is found; and not where it is refused."""
    scenario = one_approves if not by_name else _through_a_fresh_handle
    sweep(scenario, four_eyes(checks=True), mishaps=[DeliverTwice], store=store)
    with pytest.raises(AssertionError, match="returned 'done'; undisturbed it returns 'waiting'") as caught:
        sweep(scenario, four_eyes(checks=False), mishaps=[DeliverTwice], store=store)
    assert "delivery 1 (handle.resume) came again later;" in caught.value.__notes__[0]


async def _through_a_fresh_handle(engine: Engine) -> str:
    await parked(await engine.start("payout", run_id="p-1"))
    await engine.run("p-1").resume("ana")
    return (await parked(engine.run("p-1"))).status


def counting() -> tuple[Workflow[Any, Any], list[str]]:
    """A workflow that takes two signals, and what it took."""
    workflow: Workflow[Any, Any] = Workflow("counting")
    taken: list[str] = []

    @workflow.step
    async def take(ctx: StepContext[Any, Any]) -> None:
        first = await ctx.wait_for(approved)
        taken[:] = [first]
        taken.append(await ctx.wait_for(approved))

    return workflow, taken


@pytest.mark.parametrize(("again", "id", "wanted"), [("at once", None, 2), ("later", None, 2), ("later", "m-1", 1)])
def test_a_signal_delivered_twice_counts_twice_unless_it_has_an_id(store, again, id, wanted):
    """Proves that the sweep shows what an id is for."""
    workflow, taken = counting()

    async def scenario(engine: Engine) -> int:
        taken.clear()
        handle = await engine.start(workflow, run_id="r")
        await parked(handle)
        await engine.emit(approved, "ana", run=handle, id=id)
        await parked(handle)
        return len(taken)

    assert play(scenario, workflow, mishap=DeliverTwice(1, again), store=store) == wanted


@pytest.mark.parametrize(
    ("again", "options", "runs"),
    [
        ("at once", {}, 2),
        ("at once", {"idempotency_key": "k"}, 1),
        ("later", {"idempotency_key": "k"}, 2),
        ("later", {"run_id": "r"}, 1),
    ],
)
def test_a_start_delivered_twice(store, again, options, runs):
    """Proves that a start without a key is doubled, that a key holds while the run lives, and an id for ever."""
    workflow: Workflow[Any, Any] = Workflow("w")

    @workflow.step
    async def step(ctx: StepContext[Any, Any]) -> str:
        return "done"

    async def scenario(engine: Engine) -> int:
        await (await engine.start(workflow, **options)).result()
        return await engine.count()

    assert play(scenario, workflow, mishap=DeliverTwice(0, again), store=store) == runs


def test_tokens_are_good_for_one_delivery(store):
    """Proves that answers and withdrawals by token or handle are deliveries, and that a used token is refused."""
    workflow: Workflow[Any, Any] = Workflow("w")
    tokens: list[str] = []

    @workflow.step
    async def step(ctx: StepContext[Any, Any]) -> str:
        async def keep(token: str) -> None:
            tokens.append(token)

        return await ctx.wait("go?", returns=str, on_token=keep)

    async def parks(engine: Engine) -> RunHandle:
        handle = await engine.start(workflow, run_id="r")
        await parked(handle)
        return handle

    async def answered(engine: Engine) -> str:
        handle = await parks(engine)
        await engine.resume(tokens[-1], "yes")
        return (await handle.wait()).status

    async def withdrawn(engine: Engine) -> str:
        handle = await parks(engine)
        await engine.withdraw(tokens[-1], "no")
        return (await handle.wait()).status

    async def withdrawn_by_handle(engine: Engine) -> str:
        handle = await parks(engine)
        await handle.withdraw()
        return (await handle.wait()).status

    for scenario in (answered, withdrawn, withdrawn_by_handle):
        assert len(sweep(scenario, workflow, mishaps=[DeliverTwice], store=store)) == 4


# --- the sweep itself ----------------------------------------------------------------------------------------


def test_a_sweep_plays_every_point_before_and_after_on_a_fresh_store():
    """Proves that points are counted up without a gap, until the scenario passes untouched."""
    bank = Bank(with_key=True)
    stores: list[MemoryStore] = []

    def fresh() -> MemoryStore:
        stores.append(MemoryStore())
        return stores[-1]

    played = sweep(bank.pays, bank.order, store=fresh)
    for kind, whens in ((FailCall, ("before", "after")), (CrashAt, ("before", "after"))):
        for when in whens:
            found = [
                getattr(m, "call", getattr(m, "write", None))
                for m in played
                if isinstance(m, kind) and m.when == when
            ]
            numbers = [number for number in found if number is not None]
            assert numbers == list(range(len(numbers)))
            assert len(numbers) > 4
    for step in ("review", "charge", "ship"):
        for on, when in itertools.product(("begin", "end"), ("before", "after")):
            assert any(isinstance(m, CrashAt) and (m.step, m.on, m.when) == (step, on, when) for m in played) or (
                step,
                on,
            ) == ("review", "begin")
    assert len(stores) > len(played)


def test_a_sweep_does_not_bury_its_report(caplog):
    """Proves that the warnings which mishaps bring about are not logged."""
    bank = Bank(with_key=True)
    sweep(bank.pays, bank.order)
    assert caplog.records == []


def test_a_sweep_is_the_same_each_time():
    """Proves that call number k is the same call in every play, so that none is missed and each can be repeated."""
    bank = Bank(with_key=True)
    mishaps = sweep(bank.pays, bank.order)

    def struck() -> list[str | None]:
        return [_play._play(bank.pays, (bank.order,), mishap, MemoryStore, None, {}).struck for mishap in mishaps]

    assert struck() == struck() == struck()


@pytest.mark.parametrize("kind", [CrashAt, LoseLeaseAt])
def test_a_failing_scenario_is_raised_as_it_is_with_the_mishap(kind):
    """Proves that what a scenario raises keeps its type and text, and that the note says how to repeat it."""
    bank = Bank(with_key=True)

    async def scenario(engine: Engine) -> None:
        await bank.pays(engine)
        if (await engine.get("o-1")).recoveries:
            raise KeyError("planted")

    with pytest.raises(KeyError) as caught:
        sweep(scenario, bank.order, mishaps=[kind])
    (note,) = caught.value.__notes__
    mishap = eval(note.partition("mishap=")[2][:-1])  # noqa: S307 - the note is meant to be pasted
    with pytest.raises(KeyError) as again:
        play(scenario, bank.order, mishap=mishap)
    assert again.value.__notes__ == [note]


def test_a_scenario_that_fails_undisturbed_says_so():
    """Proves that a broken scenario is not taken for a mishap."""

    async def scenario(engine: Engine) -> None:
        raise KeyError("planted")

    with pytest.raises(KeyError) as caught:
        sweep(scenario, Bank(with_key=True).order)
    assert caught.value.__notes__ == ["the scenario was undisturbed"]


def test_a_scenario_that_hangs_ends(store):
    """Proves that a play in which nothing can happen any more fails, at once where time skips."""
    workflow, _taken = counting()

    async def scenario(engine: Engine) -> None:
        await (await engine.start(workflow)).result()

    with pytest.raises(trio.TooSlowError, match=r"did not end within 0.3 s of (skipped|real) time; timeout= gives"):
        play(scenario, workflow, store=store, timeout=0.3)
    if store is MemoryStore:
        with pytest.raises(trio.TooSlowError, match=r"within 3.1536e\+07 s of skipped time"):
            play(scenario, workflow)


def test_a_store_is_played_on_once():
    """Proves that a store that another play has changed is refused, also behind a wrapper."""
    workflow, _taken = counting()

    async def scenario(_engine: Engine) -> None:
        pass

    one = MemoryStore()
    with pytest.raises(ValidationError, match="a store that another play has had"):
        sweep(scenario, workflow, store=lambda: one)
    with pytest.raises(ValidationError, match="a store that another play has had"):
        play(scenario, workflow, store=lambda: FaultyStore(one))
    with pytest.raises(ValidationError, match="a function that gives a store, and it gives 'memory:'"):
        play(scenario, workflow, store=lambda: "memory:")  # type: ignore[arg-type, return-value]


def test_a_sweep_takes_only_kinds_of_mishaps():
    """Proves that a mishap in the place of its kind is told at once."""
    with pytest.raises(ValidationError, match="a list of kinds"):
        sweep(Bank(with_key=True).pays, mishaps=[CrashAt(write=1)])  # type: ignore[list-item]


def test_a_store_that_fails_for_good_fails_the_play():
    """Proves that an error of the stage itself comes out plain, not wrapped in groups."""
    broken = BrokenStore(MemoryStore())
    broken.broken = True
    with pytest.raises(StoreUnavailable):
        play(Bank(with_key=True).pays, Bank(with_key=True).order, store=lambda: broken)


def test_a_stage_may_be_opened_in_a_test_of_ones_own():
    """Proves that `open_stage` takes what `open_engine` takes, and its body's error comes out unchanged."""
    bank = Bank(with_key=False)

    async def main() -> None:
        async with open_stage("memory:", bank.order, mishap=CrashAt(step=bank.order.steps["charge"])) as engine:
            assert await bank.pays(engine) == [4200, 4200]
            raise KeyError("planted")

    with pytest.raises(KeyError, match="planted"):
        run(main)


@pytest.mark.parametrize("delay", [0.001, 3 * 86_400])
def test_parked_returns_when_the_run_stands(delay):
    """Proves that `parked` sees waits and ends soon after, also after days, and gives up when it is told to."""
    workflow: Workflow[Any, Any] = Workflow("w")

    @workflow.step
    async def step(ctx: StepContext[Any, Any]) -> None:
        await trio.sleep(delay)
        await ctx.wait_for(approved)

    async def scenario(engine: Engine) -> None:
        handle = await engine.start(workflow)
        with pytest.raises(TimeoutError, match="neither waited nor settled"):
            await parked(handle, timeout=delay / 2)
        assert (await parked(handle)).status == "waiting"
        assert trio.current_time() <= delay * 1.1 + 0.02
        await engine.emit(approved, "x", run=handle)
        assert (await parked(handle)).status in {"waiting", "done"}

    play(scenario, workflow)


def test_a_process_dies_below_a_shield_too():
    """Proves that a handler which shields its payment can be crashed in the middle of it."""
    order = Workflow[None, None]("shielded")
    calls = []

    @order.step
    async def pay(ctx: StepContext[None]) -> int:
        with trio.CancelScope(shield=True):
            calls.append(ctx.attempt)
            await crash_here()
        return len(calls)

    async def scenario(engine: Engine) -> None:
        assert await (await engine.start(order, None)).result() == 2

    play(scenario, order, timeout=60)
    assert calls == [1, 2]


def test_a_check_that_raises_is_a_finding():
    """Proves that a scenario's check may raise anything: it comes with the schedule that led there."""
    order = Workflow[None, None]("checked")

    @order.step
    async def pay(ctx: StepContext[None]) -> None:
        """Nothing."""

    def check(world: World) -> None:
        raise KeyError("r1")

    with pytest.raises(SimulationFailed, match="the check of the scenario raised KeyError"):
        simulate(lambda _chooser: Scenario(order, starts=[Start(order)], check=check), schedules=1, tries=5)
