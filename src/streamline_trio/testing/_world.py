"""A simulated world: workers in one `trio.run` whose every store call is parked, and a director who chooses.

The director acts whenever every task is blocked: it lets a parked call go on (or fail, or take effect without
an answer), moves time, kills, freezes and opens workers, sets their clocks wrong, and lets clients act. When
its moves are used up the faults stop, time runs, the outside answers what is still waited for, and everything
must come to rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

import trio
import trio.testing

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.durations import instant_millis
from streamline_trio._core.status import SETTLED
from streamline_trio._core.store import Route
from streamline_trio._runtime.care import LOOKS_PER_LEASE
from streamline_trio._runtime.clock import Chance, VirtualClock
from streamline_trio.stores.memory import MemoryStore
from streamline_trio.testing._laws_of_flow import PATIENCE
from streamline_trio.testing._scheduler import same_order
from streamline_trio.testing._time import START
from streamline_trio.testing._witness import Witness
from streamline_trio.testing._world_choices import Chooser
from streamline_trio.testing._world_clients import Clients, handle_on
from streamline_trio.testing._world_director import Director
from streamline_trio.testing._world_gate import Call, Gate, GatedStore
from streamline_trio.testing._world_judging import judge, judge_broadcasts
from streamline_trio.testing._world_node import Node, SkewedClock, observed
from streamline_trio.testing._world_scenario import Scenario, ScenarioMistake
from streamline_trio.testing._world_summary import Summary
from streamline_trio.testing._world_versions import Deploy, Has, retire, routes_of_all

_LONGEST_CALM = 3_000
_MOST_CALLS = 50_000
_LONG = 60.0
_LONGEST_LEAVE = 300.0


class _Note(NamedTuple):
    """Something that happened, to be told perhaps."""

    at: float
    who: str
    text: str
    args: tuple[Any, ...]
    beat: int | None


def _folded(notes: Iterable[_Note]) -> Iterator[str]:
    for is_beat, group in groupby(notes, lambda note: note.beat is not None):
        told = list(group)
        beats = len({note.beat for note in told})
        if is_beat and beats > 1:
            yield f"t=+{told[-1].at:.2f}s     ... {beats} beats"
        else:
            yield from (f"t=+{note.at:.2f}s {note.who:3} {note.text.format(*note.args)}" for note in told)


class World:
    """One schedule of one scenario. What went wrong is in `wrong`, what happened in `lines()`."""

    def __init__(
        self,
        make: Callable[[Chooser], Scenario],
        chooser: Chooser,
        *,
        around_store: Callable[[Any], Any] | None = None,
    ) -> None:
        self.chooser: Chooser = chooser
        self.summary: Summary = Summary()
        self.noise: int = chooser.below(1 << 16)
        self.scenario: Scenario = make(chooser)
        store = MemoryStore(exclusive=False)
        self.witness: Witness = Witness(store if around_store is None else around_store(store), limit=1000)
        versions = self.scenario.versions(self.noise)
        self.deploy: Deploy = Deploy(versions, self.noise)
        self.deploy.workflows = tuple(observed(workflow, self.witness, self.deploy) for workflow in versions)
        self.witness.plans = {
            Route(workflow.id, workflow.version): workflow.plan for workflow in self.deploy.workflows
        }
        self.gate: Gate = Gate(self._told, most=_MOST_CALLS, too_many=self._stop)
        self.nodes: list[Node] = []
        self.asking: dict[int, trio.CancelScope] = {}
        self.clients: Clients = Clients(self)
        self.clock: trio.testing.MockClock = trio.testing.MockClock()
        self.mistake: ScenarioMistake | None = None
        """What the author of the scenario left out or got wrong; `run` raises it."""
        self._notes: list[_Note] = []
        self._meddled: set[tuple[str, str]] = set()
        self._unserved: dict[str, int] = {}
        self._nursery: trio.Nursery | None = None
        self._right_time: VirtualClock | None = None
        self._options: dict[str, Any] = {
            "lease": self.scenario.lease,
            "poll_interval": self.scenario.poll_interval,
            "max_recoveries": self.scenario.max_recoveries,
        }
        self._locks = not chooser.one_in(3)
        self._hints = not chooser.one_in(3)
        self._rough_start = chooser.one_in(4)
        self._first_nodes = 1 + chooser.below(2)
        self._capacity = chooser.one_of((1000, 1000, 2, 1))
        self._drain = chooser.one_of((2.0, 0.0, 10.0))

    @property
    def wrong(self) -> list[str]:
        """The laws that were broken."""
        return self.witness.wrong

    @property
    def is_spoilt(self) -> bool:
        """Whether there is nothing more to find out: a law was broken, or the scenario makes no sense."""
        return bool(self.wrong) or self.mistake is not None

    def run(self) -> None:
        """Play the whole schedule. Raises `ValidationError` for a mistake of whoever wrote the scenario."""
        self.scenario.begin(self)
        with same_order(self.noise):
            trio.run(self._main, clock=self.clock)
        if self.mistake is not None:
            raise self.mistake
        if not self.wrong:
            self._judge_settled()
        self._sum_up()

    def lines(self) -> list[str]:
        """The schedule, a line for each thing that happened; beats in a row that got through share one."""
        return [f"{number:4} {line}" for number, line in enumerate(_folded(self._notes), 1)]

    def note(self, who: str, text: str, *args: Any, beat: int | None = None) -> None:
        """Tell of something, formatted only when it is read; `beat`: the call of a beat that gets through."""
        self._notes.append(_Note(trio.current_time(), who, text, args, beat))

    def _told(self, call: Call, what: str) -> None:
        beat = call.number if call.is_beat and what == "applied" else None
        if self.gate.is_open:
            self.note(call.node, "call {}: {}: {}", call.number, call, what, beat=beat)
        else:
            self.note(call.node, "    call {}: {}", call.number, what, beat=beat)

    def _stop(self) -> None:
        """Something goes on and on without a step towards an end; as no time need pass, no clock would stop it."""
        assert self._nursery is not None
        self.wrong.append(f"it does not come to an end: the store was called {_MOST_CALLS} times")
        self._nursery.cancel_scope.cancel()

    # --- playing -------------------------------------------------------------------------------------------

    async def _main(self) -> None:
        self._right_time = VirtualClock(instant_millis(START, what="start"), self.clock)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await self._begin()
                director = Director(self)
                await director.direct()
                self.summary.longest = director.moves
                if not self.is_spoilt:
                    await self._calm()
            except ScenarioMistake as mistake:
                self.mistake = mistake
            except Exception as error:  # noqa: BLE001 - told like every other finding, with the schedule
                self.wrong.append(f"the world ended with {error!r}")
            await self._end()

    async def _begin(self) -> None:
        """The first workers, mostly open and past their first look before anything goes wrong."""
        self.gate.is_open = not self._rough_start
        for _ in range(self._first_nodes):
            self.open_node()
            await trio.testing.wait_all_tasks_blocked()
        self.gate.is_open = False

    def open_node(self, has: Has | None = None) -> Node:
        """One more worker, with the versions that it is the turn of, or with these."""
        assert self._nursery is not None
        assert self._right_time is not None
        name, clock = f"w{len(self.nodes) + 1}", SkewedClock(self._right_time)
        has = self.deploy.turn(len(self.nodes)) if has is None else has
        workflows = self.deploy.given(has)
        routes = routes_of_all(workflows)
        store = GatedStore(self.witness, self.gate, name, routes=routes, locks=self._locks, hints=self._hints)
        options = {**self._options, "max_concurrent_runs": self._capacity, "drain_timeout": self._drain}
        node = Node(name, store, workflows, self.witness, self.deploy, clock=clock, options=options)
        self.nodes.append(node)
        self.note(name, f"opens, and has {has} versions" if self.deploy.is_mixed else "opens")
        self._nursery.start_soon(node.live, Chance(self.noise * 1000 + len(self.nodes)))
        return node

    async def kill(self, node: Node) -> None:
        """A worker's process is gone."""
        assert self._nursery is not None
        await node.die()
        self._nursery.start_soon(node.vanish)

    # --- coming to rest ------------------------------------------------------------------------------------

    async def _calm(self) -> None:
        """No more faults: everything comes to rest, and what waits on the outside is answered."""
        self.note("", "the faults stop")
        for node in self.nodes:
            node.is_frozen, node.clock.skew = False, 0
        self.gate.open()
        self.clock.autojump_threshold = 0
        if self.deploy.retires:
            await retire(self)
        await self.serve("all")
        await self._claim_all()
        await self._settle_all()
        self.wrong.extend(judge_broadcasts(self))

    async def serve(self, has: Has) -> None:
        """See that there is a worker with these versions."""
        routes = routes_of_all(self.deploy.given(has))
        while not any(node.state == "open" and node.store.routes >= routes for node in self.nodes):
            if not any(node.state == "opening" and node.store.routes >= routes for node in self.nodes):
                self.open_node(has)
            await trio.sleep(1)

    async def _claim_all(self) -> None:
        """Whatever could go on when the faults stopped has gone on after a lease, a look at workers and a poll."""
        stuck = self.movable()
        await trio.sleep(self.scenario.lease * (1 + 1 / LOOKS_PER_LEASE) + self.scenario.poll_interval)
        for run_id, revision in stuck.items() if self.has_room else ():
            if self.is_left(run_id, revision):
                self.wrong.append(f"{run_id}: nobody went on with it in time after the last fault")

    @property
    def has_room(self) -> bool:
        """Whether one worker could take every run."""
        return self._capacity >= len(self.witness.versions)

    def is_left(self, run_id: str, revision: int) -> bool:
        """Whether a run is as it was, and nobody drives it."""
        run = self.witness.run(run_id)
        return run_id not in self.witness.deleted and run.head.revision == revision and not self._is_held(run)

    def movable(self) -> dict[str, int]:
        """The runs that could go on, with their revisions."""
        runs = [self.witness.run(run_id) for run_id in self.witness.versions]
        return {run.id: run.head.revision for run in runs if self._is_due(run)}

    def _is_due(self, run: RunDoc) -> bool:
        assert self._right_time is not None
        head = run.head
        if head.lease is not None:
            return not self._is_held(run)
        return head.due_at is not None and head.due_at <= self._right_time.now()

    def _is_held(self, run: RunDoc) -> bool:
        """Whether a living worker drives it."""
        lease = run.head.lease
        workers = {node.engine.worker_id for node in self.nodes if node.is_alive and node.engine is not None}
        return lease is not None and lease.worker in workers

    async def _settle_all(self) -> None:
        """Until every run has settled; the outside helps those that are at rest."""
        for _ in range(_LONGEST_CALM):
            if self._meddle():
                await trio.sleep(1)
            left = self._left()
            self._watch_slots(over=not left)
            is_over = not left and not self.witness.flow.left_over() and self.scenario.is_over(self)
            if self.is_spoilt or (is_over and not self.clients.book.watching):
                return
            for run in left:
                if run.head.lease is None and run.head.due_at is None:
                    await self.help(run)
            self._skip_idle(left)
            await trio.sleep(1)
        left = self._left()
        self.wrong.extend(f"{run.id}: does not come to rest, and is {run.head.status}" for run in left)
        if not left and self.clients.book.watching:
            self.wrong.append("who waits for runs that have settled is not told")
        elif not left:
            self.wrong.append("what was to come of it has not come")

    def _watch_slots(self, *, over: bool) -> None:
        """No slot is free for long while somebody waits for it, and none is taken by nobody when all is over."""
        assert self._right_time is not None
        flow, now = self.witness.flow, self._right_time.now()
        found: dict[str, str] = {}
        for bucket, run_id in flow.unserved().items():
            found[f"{run_id}: waits for a slot of {bucket!r}, and one is free"] = bucket
        for bucket, ids in flow.left_over().items() if over else ():
            found[f"{', '.join(ids)}: have slots of {bucket!r}, and do not hold them"] = bucket
        self._unserved = {text: self._unserved.get(text, now) for text in found}
        for text, since in self._unserved.items():
            if now > max(since, flow.errands_due(found[text], self.witness.versions)) + PATIENCE:
                self.wrong.append(text)

    def _meddle(self) -> bool:
        """What fails is mostly undone after the faults: once for each run somebody may cancel or retry that."""
        node = next((node for node in self.nodes if node.state == "open"), None)
        has_asked = False
        if node is None:
            return has_asked
        for run in map(self.witness.run, list(self.witness.versions)):
            verb = {"compensating": "cancel", "compensation_failed": "retry"}.get(run.head.status)
            if verb not in self.scenario.verbs or (run.id, verb) in self._meddled or run.id in self.witness.deleted:
                continue
            self._meddled.add((run.id, verb))
            if self.chooser.one_in(4 if verb == "cancel" else 2):
                self.clients.ask(node, run.id, verb)
                has_asked = True
        return has_asked

    def _left(self) -> list[RunDoc]:
        return [run for run in map(self.witness.run, self.witness.versions) if not self._is_over(run)]

    def _skip_idle(self, left: list[RunDoc]) -> None:
        """When all that is left sleeps for long, so does the machine: no polls for hours."""
        assert self._right_time is not None
        if not left or any(run.head.lease is not None or run.head.due_at is None or run.outbox for run in left):
            return
        pause = min(run.head.due_at or 0 for run in left) - self._right_time.now()
        if pause > 1000 * _LONG:
            self.clock.jump(pause / 1000)

    def _is_over(self, run: RunDoc) -> bool:
        """It has settled, and nothing is left to be done elsewhere: what a dead worker had taken up comes late."""
        return run.id in self.witness.deleted or (run.head.status in SETTLED and not run.outbox)

    async def help(self, run: RunDoc) -> None:
        """Do what a run at rest waits for."""
        node = next((node for node in self.nodes if node.state == "open"), None)
        if node is None or node.engine is None:
            return
        handle, clients = handle_on(node, run.id), self.clients
        waits = [record for record in clients.open_waits(run.id) if record.kind in {"human", "signal"}]
        if run.head.paused:
            await handle.unpause()
        elif waits and waits[0].approval and "reject" in self.scenario.verbs and self.chooser.one_in(3):
            self.clients.ask(node, run.id, "reject")
        elif waits and waits[0].kind == "human":
            value = clients.draw_answer(run.id, waits[0])
            with clients.asked(f"answer {run.id} with {value!r}"):
                await clients.answer(node, run.id, value, wait=waits[0].name or None)
        elif waits:
            id = f"s{len(clients.book.signals) + 1}"
            name = waits[0].signal
            value = clients.draw_signal(run.id, name)
            clients.book.signals[run.id, id] = name, value
            with clients.asked(f"signal {name} to {run.id}: {value!r}"):
                await clients.emit(node, run.id, id)

    # --- the end -------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """Leave every engine, or end them all when something is wrong already."""
        self.gate.open()
        self.clock.autojump_threshold = 0
        if not self.is_spoilt:
            for node in self.nodes:
                node.leave()
            with trio.move_on_after(_LONGEST_LEAVE):
                while any(node.is_alive for node in self.nodes):  # noqa: ASYNC110 - time is skipped
                    await trio.sleep(1)
        left = [node for node in self.nodes if node.is_alive]
        if left and not self.is_spoilt:
            self.wrong.append(f"{', '.join(node.name for node in left)}: leaving does not end")
        for node in left:
            await self.kill(node)

    def _judge_settled(self) -> None:
        for run_id in self.witness.versions:
            if self.witness.run(run_id).head.lease is not None and run_id not in self.witness.deleted:
                self.wrong.append(f"{run_id}: is leased though every engine was left")
        self.wrong.extend(judge(self))
        try:
            self.scenario.check(self)
        except AssertionError as error:
            self.wrong.append(str(error) or "the check of the scenario failed")
        except Exception as error:  # noqa: BLE001 - it is a finding, with a schedule to see it again
            self.wrong.append(f"the check of the scenario raised {error!r}")

    def _sum_up(self) -> None:
        summary, witness = self.summary, self.witness
        summary.count("in all", "schedules")
        summary.count("in all", "store calls", self.gate.calls)
        for (before, after), times in witness.hops.items():
            kind = (
                "transitions" if before or after in SETTLED or after in {"draft", "running"} else "side documents"
            )
            summary.count(kind, f"{before or 'new'} -> {after}", times)
        for what, times in {**self.deploy.counts, **witness.takeovers}.items():
            summary.count("versions", what, times)
        for what, times in witness.flow.counts.items():
            summary.count("flow", what, times)
        for circumstance, times in witness.endings.items():
            summary.count("ends of calls", circumstance, times)
        for run_id in witness.versions:
            head = witness.run(run_id).head
            summary.count("runs", head.status + (" (dead letter)" if head.dead_lettered else ""))
            summary.count("in all", "take-overs", head.recoveries)
        for events in witness.events.values():
            for event in events:
                summary.count("events", event.name)
