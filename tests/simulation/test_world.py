"""The simulated world: what CI plays, and that it can fail, repeat itself and make its findings small."""

import itertools
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from streamline_trio import ValidationError, Workflow
from streamline_trio._core.status import RUN_TRANSITIONS
from streamline_trio.testing import (
    Chooser,
    Scenario,
    SimulationFailed,
    Start,
    Summary,
    World,
    replay,
    simulate,
)
from streamline_trio.testing import _world as worlds
from streamline_trio.testing import world as command
from streamline_trio.testing._world_choices import shrink
from streamline_trio.testing._world_drawing import KINDS
from streamline_trio.testing._world_programs import draw_programs
from streamline_trio.testing._world_scenario import VERBS
from tests.simulation.planted import PLANTED
from tests.simulation.regressions import REGRESSIONS

CHUNKS = 18
A_CHUNK = 160
BASE = int(os.environ.get("WORLD_SEED", "0"))  # other schedules than those of CI
COMMAND = "python -m streamline_trio.testing.world --schedules 1 --seed {seed}"


@pytest.mark.deadline(150)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_schedule_breaks_a_law(chunk):
    """Proves that under these schedules nothing acknowledged is lost and nothing forbidden happens."""
    summary = simulate(draw_programs, schedules=A_CHUNK, seed=BASE + chunk * A_CHUNK, command=COMMAND)
    assert summary.of("in all")["schedules"] == A_CHUNK


@pytest.mark.deadline(150)
def test_the_schedules_meet_every_kind_of_fault_verb_operation_and_transition():
    """Proves that what the schedules of CI are to find is in them: nothing is green because it is not tried."""
    summary = Summary()
    summary.add(simulate(draw_programs, schedules=500, seed=BASE))
    assert {kind for kind, _ in KINDS} <= set(summary.of("operations"))
    verbs = {text.partition(" ")[0] for text in summary.of("verbs") if text.endswith("acknowledged")}
    assert {*VERBS, "start", "signal", "broadcast", "answer", "token"} <= verbs
    assert {
        "clock set wrong",
        "client gives up",
        "crash while closing",
        "crash while open",
        "crash while opening",
        "crash with its calls carried out",
        "crash with its calls lost",
        "fail after",
        "fail before",
        "frozen worker",
        "go, hold the reply",
        "held call",
        "lost beat",
        "more than a lease passes",
        "worker left",
        "worker opened",
    } <= set(summary.of("kinds of faults"))
    assert {"duplicate signal", "late signal", "fail after: write", "fail before: write"} <= set(
        summary.of("faults")
    )
    possible = {f"{source} -> {target}" for source, targets in RUN_TRANSITIONS.items() for target in targets}
    possible -= {"failed -> compensating"}  # two hops of one write
    assert possible <= set(summary.of("transitions"))
    assert {"done", "failed", "cancelled"} <= set(summary.of("runs"))
    assert summary.of("in all")["take-overs"] > 0
    assert summary.of("ends of calls")["done during a pause"] >= 2
    assert summary.of("ends of calls")["done during a drain"] >= 2
    meets_every_kind_of_deploy(summary)


def meets_every_kind_of_deploy(summary):
    """Runs are taken over from wherever they rest, refused, and released where nobody has their version."""
    assert {
        "same",
        "renamed",
        "renamed all",
        "added last",
        "added before",
        "dropped",
        "refuses: none",
        "refuses: error",
        "refuses: field",
    } <= set(summary.of("other versions"))
    versions = summary.of("versions")
    assert {"taken over: draft", "taken over: running", "taken over: waiting"} <= set(versions)
    assert {"taken over with parts of a step", "taken over with what can be undone"} <= set(versions)
    assert sum(times for what, times in versions.items() if what.startswith("taken over with a ")) >= 5
    assert versions["refused"] >= 3
    assert versions["lease given up"] >= 3
    assert versions["asked"] > versions["refused"]
    assert summary.of("events")["workflow.migrated"] >= 10


@pytest.mark.parametrize("name", REGRESSIONS)
def test_a_schedule_that_once_failed_does_not(name):
    """Proves that recorded findings stay fixed."""
    replay(draw_programs, REGRESSIONS[name])


@pytest.mark.deadline(150)
@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.__name__)
def test_a_planted_fault_is_found_and_made_small(planted):
    """Proves that the laws bite: a store with this fault is found out, in a schedule that replays."""
    with pytest.raises(SimulationFailed) as found:
        simulate(draw_programs, schedules=400, seed=1, around_store=planted, tries=150)
    failed = found.value
    assert failed.wrong
    assert len(failed.choices) <= failed.found_with
    with pytest.raises(SimulationFailed) as again:
        replay(draw_programs, failed.choices, around_store=planted)
    assert again.value.lines == failed.lines


def lines_of(seed):
    world = World(draw_programs, Chooser.seeded(seed))
    world.run()
    return world.lines()


def test_a_seed_is_one_schedule():
    """Proves that a seed, and the record of its choices, say all that happens."""
    world = World(draw_programs, Chooser.seeded(7))
    world.run()
    assert lines_of(7) == world.lines()
    assert lines_of(8) != world.lines()
    assert replay(draw_programs, world.chooser.taken).lines() == world.lines()


def test_a_seed_is_one_schedule_in_every_process():
    """Proves that neither hashes of texts nor addresses decide anything."""
    seeds = [3, 11, 42]
    imports = "import json; from tests.simulation.test_world import lines_of"
    program = f"{imports}; print(json.dumps([lines_of(seed) for seed in {seeds}]))"
    told = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for hashes in ("1", "2")
    ]
    assert json.loads(told[0]) == json.loads(told[1]) == [lines_of(seed) for seed in seeds]


def test_shrinking_leaves_out_and_lowers():
    """Proves that a record becomes the simplest that still fails."""
    assert shrink([9, 3, 50, 7, 8], lambda choices: any(choice >= 20 for choice in choices)) == [20]


def test_the_command_says_what_was_tried(capsys):
    """Proves that the search from the command line ends well and with a table."""
    assert command.main(["--seed", "5", "--schedules", "3"]) == 0
    told = capsys.readouterr().out
    assert "6  schedules" in told
    assert "scatter" in told
    assert "throttle: begins" in told


def test_beats_in_a_row_share_a_line():
    """Proves that a schedule tells of its faults, and not at length of workers that are alive."""
    told = [line for seed in range(8) for line in lines_of(seed)]
    folded = [line for line in told if line.endswith(" beats")]
    assert any(line.partition("... ")[2] == "2 beats" for line in folded)
    following = itertools.pairwise(told)
    assert not any(one.endswith(" beats") and other.endswith(" beats") for one, other in following)


def test_a_scenario_of_several_versions_is_a_deploy():
    """Proves that workers differ, that runs stay on the version they began with, and that all come to rest."""
    versions = ("1.0.0", "1.5.0", "2.0.0")
    has: set[tuple[str, ...]] = set()

    def make(_chooser):
        workflows = [Workflow("order", version=version) for version in versions]
        for workflow in workflows:
            workflow.add_step(f"s{workflow.version[0]}", returns_nothing)
        return Scenario(*workflows, starts=[Start(workflows[0])] * 2, check=check)

    def check(world):
        has.update(tuple(sorted(route.version for route in node.store.routes)) for node in world.nodes)
        for runs in world.witness.versions.values():
            assert len({run.head.version for run in runs}) == 1

    summary = simulate(make, schedules=60)
    assert has == {("1.0.0",), ("2.0.0",), versions}
    assert summary.of("versions")["lease given up"] > 0
    assert "asked" not in summary.of("versions")


# --- whoever writes a scenario makes mistakes ----------------------------------------------------------------


ORDER: Any = "order"


def asking(**said):
    """A scenario of one run that waits for a person, for a signal, and returns both."""

    def make(_chooser):
        workflow = Workflow("order", input=dict)

        @workflow.step
        async def ask(ctx):
            return await ctx.wait("agree?", returns=bool), await ctx.wait_for("paid")

        return Scenario(workflow, **{"starts": [Start(workflow, {})], **said})

    return make


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({}, "run r1 waits for an answer to 'agree?', but the scenario has none: give it with Scenario(answers="),
        (
            {"answers": {"agree?": [True]}},
            "to be sent to run r1, but the scenario has no such signal",
        ),
        (
            {"answers": {"agree?": ["perhaps"]}, "signals": {"paid": [1]}},
            "the scenario lets a client answer r1 with 'perhaps', which the engine refuses",
        ),
        ({"answers": {"agree?": []}}, "answers['agree?'] is empty"),
        ({"answers": {"agree?": "yes"}}, "answers['agree?'] is a list of what may be said, not 'yes'"),
        ({"signals": {1: [1]}}, "signals= is given by text, not by 1"),
        ({"signals": ["paid"]}, "signals= is a mapping, not ['paid']"),
        ({"verbs": ["cancle"]}, "verbs= has 'cancle'; the verbs are cancel, pause"),
        ({"starts": ["order"]}, "starts[0] is a Start, not 'order'"),
        ({"starts": [Start(ORDER)]}, "starts[0] is of a Workflow, not of 'order'"),
        ({"starts": [Start(Workflow("other"))]}, "starts[0] is of <Workflow other 1.0.0: no steps>, and the"),
    ],
)
def test_a_mistake_of_the_author_is_no_broken_law(said, told):
    """Proves that a scenario that makes no sense is told as that, naming what and where."""
    with pytest.raises(ValidationError) as mistake:
        simulate(asking(**said), schedules=30)
    assert told in str(mistake.value)


def test_a_wrong_input_names_its_start():
    """Proves that an input that the workflow does not take is found before anything is played."""

    def make(_chooser):
        workflow = Workflow("order", input=int)
        workflow.add_step("s", returns_nothing)
        return Scenario(workflow, starts=[Start(workflow, 1), Start(workflow, "one")])

    with pytest.raises(ValidationError, match=r"starts\[1\]: "):
        simulate(make, schedules=1)


async def returns_nothing(_ctx):
    pass


def test_a_mistake_says_with_which_seed_it_is_met():
    """Proves that a mistake that shows itself only now and then can be seen again."""
    with pytest.raises(ValidationError) as mistake:
        simulate(asking(), schedules=30)
    (note,) = mistake.value.__notes__
    seed = int(note.partition("with seed ")[2].partition(";")[0])
    with pytest.raises(ValidationError, match="agree"):
        simulate(asking(), schedules=1, seed=seed)


def test_a_run_that_goes_round_for_ever_is_told_and_not_waited_for(monkeypatch):
    """Proves that what never ends, and lets no time pass, is found with its schedule instead of hanging."""
    monkeypatch.setattr(worlds, "_MOST_CALLS", 2_000)

    def make(_chooser):
        workflow = Workflow("round", input=dict)

        @workflow.step
        async def again(ctx):
            await ctx.goto("again")

        return Scenario(workflow, starts=[Start(workflow, {})])

    with pytest.raises(SimulationFailed, match="it does not come to an end: the store was called 2000 times"):
        simulate(make, schedules=1, tries=0)
