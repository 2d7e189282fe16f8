"""Worlds of flow control: drawn programs with limits, throttles, debounces, triggers and signals that cancel.

Their runs belong to tenants in most worlds, who use the same ids and keys; schedules start some of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from streamline_trio._core import payload as payloads
from streamline_trio._core.broadcasts import BROADCASTS, broadcast_key, decode_broadcast
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import ConcurrencyLimitReached, RunNotFound
from streamline_trio._core.recurrence import Recurrence
from streamline_trio._core.schedules import SCHEDULES, ScheduleDoc
from streamline_trio._core.start_options import CancelOn, Concurrency, Debounce, Throttle, Trigger
from streamline_trio._core.store import SideDoc
from streamline_trio._core.tenancy import public_id, stored_id, tenant_of
from streamline_trio._runtime.schedule_firing import decode_schedule
from streamline_trio.testing._world_choices import Chooser
from streamline_trio.testing._world_clients import in_scope
from streamline_trio.testing._world_drawing import (
    OLDER,
    Program,
    Rules,
    draw_children,
    draw_program,
    draw_short_program,
)
from streamline_trio.testing._world_programs import Programs
from streamline_trio.testing._world_scenario import VERBS, Scenario, Start

if TYPE_CHECKING:
    from streamline_trio.testing._world import World
    from streamline_trio.testing._world_node import Node

GO, STOP = "go", "stop"
"""The signals that start runs, and that cancel them."""
OWN_VERBS = ("burst", "burst", "stray", "schedule")
"""What clients do here besides: several starts at once, reaching for another tenant's run, making a schedule."""
_KEYS = ("a", "b")
_FIRINGS = 3
_INTERVAL = 7.0
_STRAYS = ("get", "cancel", "pause", "rewind", "retry", "emit", "resume", "fork", "find")


def draw_flows(chooser: Chooser) -> Scenario:
    """A scenario of one or two workflows with rules for their starts, and of those that they start."""
    programs = [_draw_program(chooser, f"p{number}") for number in range(1 + chooser.below(2))]
    child, grandchild = draw_children(chooser)
    rules = (Rules(), _draw_limit(chooser), _draw_rate(chooser))[chooser.below(3)]
    return Flows(programs, (replace(child, rules=rules), grandchild), chooser)


def _draw_program(chooser: Chooser, id: str) -> Program:
    draw = draw_program if chooser.one_in(3) else draw_short_program
    return replace(draw(chooser, id), rules=_draw_rules(chooser))


def _draw_rules(chooser: Chooser) -> Rules:
    limited, rated, quiet = _draw_limit(chooser), _draw_rate(chooser), _draw_quiet(chooser)
    both = replace(limited, rate=rated.rate, window=rated.window)
    late = replace(limited, quiet=quiet.quiet, longest=quiet.longest)
    options = ((limited, 4), (rated, 3), (quiet, 3), (both, 1), (late, 1), (Rules(), 1))
    return replace(
        chooser.weighted(options),
        keyed=chooser.one_in(2),
        triggered=chooser.one_in(2),
        cancelled=chooser.one_of(("", "matches", "all")),
    )


def _draw_limit(chooser: Chooser) -> Rules:
    return Rules(limit=chooser.one_of((1, 1, 2)), when_full=chooser.one_of(("queue", "queue", "reject")))


def _draw_rate(chooser: Chooser) -> Rules:
    return Rules(rate=chooser.one_of((1, 2)), window=chooser.one_of((10.0, 3.0, 40.0)))


def _draw_quiet(chooser: Chooser) -> Rules:
    return Rules(quiet=chooser.one_of((2.0, 8.0)), longest=chooser.one_of((0, 10.0)))


class Flows(Programs):
    """Drawn programs with rules for their starts."""

    def __init__(self, programs: Sequence[Program], children: Sequence[Program], chooser: Chooser) -> None:
        super().__init__(programs, children, chooser)
        self.verbs = (*VERBS, *OWN_VERBS)
        self.signals = {"s": (), "t": (), GO: (), STOP: ()}
        self.met: Counter[str] = Counter()
        self.tenants: Sequence[str | None] = chooser.one_of(((None,), ("t1", "t2"), ("t1", "t2")))
        self.starts = [self._draw_start(chooser) for _ in range(3 + chooser.below(3))]
        self._schedules: set[tuple[str | None, str]] = set()

    def _draw_start(self, chooser: Chooser) -> Start:
        workflow = chooser.one_of([one for one in self.workflows if one.id.startswith("p")])
        start = Start(
            workflow,
            {"count": 0, "key": chooser.one_of((*_KEYS, _KEYS[0]))},
            idempotency_key=chooser.one_of((None, None, None, "k")),
            delay=chooser.one_of((None, None, None, 4.0)),
            priority=chooser.one_of((0, 0, 5)),
            tenant=chooser.one_of(self.tenants),
        )
        # Several starts become one run: that has neither the key of each nor the time of each.
        return replace(start, idempotency_key=None, delay=None) if workflow.rules.debounce is not None else start

    def _limits(self, program: Program) -> dict[str, Any]:
        rules = program.rules
        key, limits = (_key if rules.keyed else None), dict[str, Any]()
        if rules.limit:
            limits["concurrency"] = Concurrency(rules.limit, key, rules.when_full)
        if rules.rate:
            limits["throttle"] = Throttle(rules.rate, rules.window, key)
        if rules.quiet:
            limits["debounce"] = Debounce(rules.quiet, key, rules.longest or None)
        if rules.triggered:
            limits["trigger"] = Trigger(GO)
        if rules.cancelled:
            limits["cancel_on"] = [CancelOn(STOP, {"key": "key"} if rules.cancelled == "matches" else {})]
        return limits

    def input_of(self, start: Start) -> Any:
        """Every start has another number."""
        return {**start.input, "number": self.next_value()}

    def names(self, run_id: str | None) -> Sequence[str]:
        """To one run only what it waits for, or what ends it."""
        return ("s", "t", STOP) if run_id is not None else ("s", GO, STOP, "t", GO)

    def signal(self, name: str, chooser: Chooser) -> Any:
        """The input of a run to start, or what to match."""
        if name not in {GO, STOP}:
            return super().signal(name, chooser)
        return {"count": 0, "key": chooser.one_of(_KEYS), "number": self.next_value()}

    def may_fail(self, run: RunDoc) -> bool:
        """Also for want of a slot, where nobody waits to be told."""
        error = run.head.error
        if error is not None and error.code == ConcurrencyLimitReached.code:
            return self.program_of(run).rules.when_full == "reject"
        return super().may_fail(run)

    # --- what clients do -----------------------------------------------------------------------------------

    def act(self, world: World, node: Node, verb: str) -> bool:
        """Starts that come at once, calls in another tenant's scope, and schedules."""
        if verb == "burst":
            start = world.chooser.one_of(self.starts)
            for _ in range(2 + world.chooser.below(2)):
                world.clients.start(node, start)
        elif verb == "stray":
            self._stray(world, node)
        elif verb == "schedule":
            self._schedule(world, node)
        return verb in OWN_VERBS

    def _schedule(self, world: World, node: Node) -> None:
        start = world.chooser.one_of(self.starts)
        engine, id = in_scope(node, start.tenant), f"of-{start.workflow.id}"
        rule = Recurrence.every(_INTERVAL, count=_FIRINGS, catch_up=_FIRINGS)

        async def act() -> None:
            await engine.schedule(start.workflow.id, {"count": 0, "key": "a"}, every=rule, id=id)
            self._schedules.add((start.tenant, id))

        world.clients.begin(node, "schedule", f"schedule {start.workflow.id}", act)

    def _stray(self, world: World, node: Node) -> None:
        """Name a run of one tenant in the scope of another."""
        known = [run_id for run_id in world.witness.versions if tenant_of(run_id) is not None]
        if not known:
            return
        run_id, verb = world.chooser.one_of(known), world.chooser.one_of(_STRAYS)
        other = next(tenant for tenant in self.tenants if tenant != tenant_of(run_id))
        if _is_taken(world, other, run_id):
            return
        what = f"{verb} {public_id(run_id)}, which is {tenant_of(run_id)}'s, as {other}"
        world.clients.begin(node, "stray", what, lambda: self._reach(world, node, other, run_id, verb))

    async def _reach(self, world: World, node: Node, tenant: str | None, run_id: str, verb: str) -> None:
        engine, name = in_scope(node, tenant), public_id(run_id)
        if verb == "find":
            page = await engine.find()
            if any(run.tenant != tenant for run in page.items):
                world.witness.wrong.append(f"{tenant} sees runs of {[run.tenant for run in page.items]}")
            return
        handle, namesake, book = engine.run(name), stored_id(tenant, name), world.clients.book
        # A run of that name may be started meanwhile: then this was asked of it.
        book.cancels.add(namesake)
        book.issued[namesake, payloads.encode(0, what="answer")] += 1
        world.witness.revived.add(namesake)
        try:
            if verb == "emit":
                await engine.emit("s", 0, run=name)
            elif verb == "resume":
                await handle.resume(0)
            elif verb in {"rewind", "fork"}:
                await getattr(handle, verb)("s0")
            else:
                await getattr(handle, verb)()
        except RunNotFound:
            self.met["another tenant's run is not found"] += 1
            return
        if _is_taken(world, tenant, run_id):
            return
        world.witness.wrong.append(f"{run_id}: {verb} reached it in the scope of {tenant}")

    # --- what must come of it ------------------------------------------------------------------------------

    def is_over(self, world: World) -> bool:
        """Whether every broadcast has been carried out, and every schedule has fired for the last time."""
        beside = world.witness.beside
        carried_out = all(decode_broadcast(body).done for (kind, _), body in beside.items() if kind == BROADCASTS)
        return carried_out and not any(doc.due or doc.pending or doc.queued for doc in _schedules_of(world))

    def check(self, world: World) -> None:
        """Besides, that triggers and schedules have started what they were to start, once."""
        super().check(world)
        first = [versions[0] for versions in world.witness.versions.values() if versions]
        self._check_buckets(world)
        self._check_triggers(world, first)
        self._check_schedules(world, first)
        for what, times in self.met.items():
            world.summary.count("flow", what, times)

    def _check_buckets(self, world: World) -> None:
        """Each run is counted where its input says."""
        for versions in world.witness.versions.values():
            run = versions[-1]
            slot, throttle, rules = run.head.slot, run.head.throttle, self.program_of(run).rules
            key = _key(msgspec.msgpack.decode(run.origin.input)) if rules.keyed else ""
            wanted = (run.origin.tenant, run.origin.workflow, key)
            for bucket in (slot and slot.bucket, throttle and throttle.bucket):
                scope, _, rest = (bucket or "").partition("\n")
                told = (scope[1:] or None, *rest.split("\n"))
                assert bucket is None or told == wanted, f"{run.id}: is counted in {told}, and belongs to {wanted}"

    def _check_triggers(self, world: World, first: Sequence[RunDoc]) -> None:
        started: defaultdict[tuple[str, str], list[RunDoc]] = defaultdict(list)
        for run in first:
            if run.origin.emission:
                started[run.origin.emission, run.origin.workflow].append(run)
        for (key, workflow), runs in started.items():
            assert len(runs) == 1, f"{key!r} has started {[run.id for run in runs]} of {workflow}"
            self.met["triggered runs"] += 1
        sent = [one for one in world.clients.book.broadcasts if one.name == GO]
        for name in dict.fromkeys(one.id for one in self.workflows):
            rules = self.programs[name, OLDER].rules
            if not rules.triggered or rules.quiet or rules.when_full == "reject":
                continue
            for one in sent:
                runs = started[broadcast_key(one.tenant, GO, one.id), name]
                assert runs, f"{one.id} was acknowledged, and has started no run of {name}"
                assert runs[0].origin.input == one.payload, f"{runs[0].id}: has not the payload of {one.id}"
                assert runs[0].origin.tenant == one.tenant, f"{runs[0].id}: is not of the tenant of {one.id}"

    def _check_schedules(self, world: World, first: Sequence[RunDoc]) -> None:
        fired: defaultdict[tuple[str | None, str], list[int]] = defaultdict(list)
        for run in first:
            scheduled = run.origin.scheduled
            if scheduled is not None and scheduled.schedule:
                fired[run.origin.tenant, scheduled.schedule].append(scheduled.at)
        known = {(doc.tenant, doc.id): doc for doc in _schedules_of(world)}
        assert self._schedules <= set(known), f"schedules are lost of {self._schedules}"
        for name, doc in known.items():
            times, rules = sorted(fired[name]), self.programs[doc.workflow, OLDER].rules
            assert len(set(times)) == len(times) <= _FIRINGS, f"{name}: has fired at {times}"
            if not rules.quiet and rules.when_full != "reject":
                assert len(times) == doc.fired, f"{name}: has fired at {times}, and counts {doc.fired}"
                assert doc.fired == _FIRINGS, f"{name}: has ended after {doc.fired} firings"
            self.met["scheduled runs"] += len(times)
            self.met["firings missed"] += doc.missed


def _is_taken(world: World, tenant: str | None, run_id: str) -> bool:
    """Whether the tenant has, or may have, a run of the same name."""
    return stored_id(tenant, public_id(run_id)) in {*world.clients.book.started, *world.witness.versions}


def _schedules_of(world: World) -> list[ScheduleDoc]:
    """As they are stored now."""
    sides = [SideDoc(kind, key, 1, body) for (kind, key), body in world.witness.beside.items()]
    return [decode_schedule(side) for side in sides if side.kind == SCHEDULES]


def _key(input: Any) -> str:
    return str(input.get("key", _KEYS[0]))
