"""Who goes next: the director chooses a move whenever every task of the world is blocked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio
import trio.testing

from streamline_trio.testing._world_gate import Call, Release
from streamline_trio.testing._world_node import Node

if TYPE_CHECKING:
    from streamline_trio.testing._world import World

Move = Callable[[], Awaitable[None]]

MOVES = 110
MOST_NODES = 6
MOST_ALIVE = 3

_FAULTS: tuple[tuple[Release, int], ...] = (("go, hold the reply", 3), ("fail before", 2), ("fail after", 4))
_SKEWS = (0, 700, -700, 20_000, -20_000)


class Director:
    """Makes the moves of one schedule. Which kinds of moves it makes at all is chosen first."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.moves: int = 0
        chooser = world.chooser
        self._budget = chooser.one_of((MOVES, MOVES // 3, MOVES * 2 // 3, MOVES * 2))
        verbs = [
            ("answer", 5),
            ("signal", 4),
            ("token", 3),
            ("broadcast", 2),
            *((v, 1) for v in world.scenario.verbs),
        ]
        self._verbs = [("start", 4), *((verb, weight) for verb, weight in verbs if chooser.below(3))]
        self._table: list[tuple[Move, int]] = [(self._go, 30), (self._all_go, 25), (self._ask, 22)]
        for move, weight in (
            (self._pass_time, 12),
            (self._fault, 10),
            (self._hold, 4),
            (self._thaw, 4),
            (self._freeze, 2),
            (self._open, 4),
            (self._crash, 2),
            (self._leave, 2),
            (self._skew, 1),
            (self._drop_client, 2),
        ):
            if chooser.below(3):
                self._table.append((move, weight))

    async def direct(self) -> None:
        """Make moves until they are used up, the record ends, or a law is broken."""
        world = self._world
        while self.moves < self._budget and not world.chooser.is_exhausted and not world.is_spoilt:
            await trio.testing.wait_all_tasks_blocked()
            self.moves += 1
            await world.chooser.weighted(self._table)()

    # --- calls ---------------------------------------------------------------------------------------------

    def _ready(self) -> list[Call]:
        frozen = {node.name for node in self._world.nodes if node.is_frozen}
        return [call for call in self._world.gate.parked.values() if not call.held and call.node not in frozen]

    def _worth_failing(self) -> list[Call]:
        """Mostly writes, of which there are fewer."""
        ready = self._ready()
        writes = [call for call in ready if call.name == "write"]
        return writes if writes and self._world.chooser.below(3) else ready

    async def _go(self) -> None:
        """One call goes on; if there is none, the next timer fires."""
        ready = self._ready()
        if not ready:
            self._to_next_deadline()
            return
        self._release(self._world.chooser.one_of(ready), "go")

    async def _all_go(self) -> None:
        """Everything that is parked and not held goes on, and time passes if there is nothing."""
        ready = self._ready()
        if not ready:
            self._to_next_deadline()
        for call in ready:
            self._release(call, "go")

    async def _fault(self) -> None:
        ready = self._worth_failing()
        if ready:
            call = self._world.chooser.one_of(ready)
            release = self._world.chooser.weighted(_FAULTS)
            self._release(call, "fail after" if call.replied else release)

    def _release(self, call: Call, release: Release) -> None:
        world = self._world
        beat = call.number if call.is_beat and release == "go" else None
        world.note(call.node, "call {}: {}: {}", call.number, _Frozen(str(call)), release, beat=beat)
        if release != "go":
            world.summary.count("faults", f"{release}: {'beat' if call.is_beat else call.name}")
            world.summary.count("kinds of faults", "lost beat" if call.is_beat else release)
        call.let_go(release)

    async def _hold(self) -> None:
        """A call is delayed until somebody thaws it."""
        ready = self._worth_failing()
        if ready:
            call = self._world.chooser.one_of(ready)
            call.held = True
            self._world.note(call.node, "call {}: {} is held", call.number, _Frozen(str(call)))
            self._count("held call")

    async def _freeze(self) -> None:
        node = self._one_alive()
        if node is not None:
            node.is_frozen = True
            self._world.note(node.name, "freezes")
            self._count("frozen worker")

    async def _thaw(self) -> None:
        """What was held or frozen may go on, however late."""
        for node in self._world.nodes:
            if node.is_frozen:
                node.is_frozen = False
                self._world.note(node.name, "thaws")
        for call in self._world.gate.parked.values():
            call.held = False

    # --- time ----------------------------------------------------------------------------------------------

    async def _pass_time(self) -> None:
        lease = self._world.scenario.lease
        seconds = self._world.chooser.one_of((0.0, 0.1, 1.0, lease / 3, lease + 0.1, 3 * lease))
        if seconds:
            self._jump(seconds)
        else:
            self._to_next_deadline()

    def _to_next_deadline(self) -> None:
        seconds = trio.lowlevel.current_statistics().seconds_to_next_deadline
        if seconds == float("inf"):
            seconds = 1.0
        self._jump(max(seconds, 0.0) + 0.001)

    def _jump(self, seconds: float) -> None:
        self._world.clock.jump(seconds)
        self._world.note("", "time passes: {:.3f} s", seconds)
        if seconds > self._world.scenario.lease:
            self._count("more than a lease passes")

    async def _skew(self) -> None:
        node = self._one_alive()
        if node is not None:
            node.clock.skew = self._world.chooser.one_of(_SKEWS)
            self._world.note(node.name, "has its clock wrong by {} ms", node.clock.skew)
            self._count("clock set wrong")

    # --- workers -------------------------------------------------------------------------------------------

    def _one_alive(self) -> Node | None:
        alive = [node for node in self._world.nodes if node.is_alive]
        return self._world.chooser.one_of(alive) if alive else None

    async def _open(self) -> None:
        nodes = self._world.nodes
        if len(nodes) < MOST_NODES and sum(node.is_alive for node in nodes) < MOST_ALIVE:
            self._world.open_node()
            self._count("worker opened")

    async def _crash(self) -> None:
        """A worker dies, with its parked calls carried out or not."""
        world = self._world
        node = self._one_alive()
        if node is None:
            return
        if world.chooser.below(2):
            for call in list(world.gate.parked.values()):
                if call.node == node.name and not call.replied:
                    self._release(call, "go, hold the reply")
            await trio.testing.wait_all_tasks_blocked()
            self._count("crash with its calls carried out")
        else:
            self._count("crash with its calls lost")
        world.note(node.name, "crashes while {}", node.state)
        self._count(f"crash while {node.state}")
        await world.kill(node)

    async def _leave(self) -> None:
        node = self._one_alive()
        if node is not None and node.state == "open":
            node.leave()
            self._world.note(node.name, "leaves")
            self._count("worker left")

    # --- clients -------------------------------------------------------------------------------------------

    async def _ask(self) -> None:
        world = self._world
        serving = [node for node in world.nodes if node.state == "open"]
        if not serving:
            if not any(node.state == "opening" for node in world.nodes) and len(world.nodes) < MOST_NODES:
                world.open_node()
            return
        node = world.chooser.one_of(serving)
        starts, asked = world.scenario.starts, len(world.clients.book.started)
        verb = "start" if not asked else world.chooser.weighted(self._verbs)
        if verb == "start" and asked >= 2 * len(starts):
            verb = world.chooser.weighted(self._verbs[1:]) if self._verbs[1:] else "look"
        world.clients.act(node, verb)

    async def _drop_client(self) -> None:
        world = self._world
        if world.asking:
            number = world.chooser.one_of(sorted(world.asking))
            world.asking[number].cancel()
            world.note("", "client {} gives up", number)
            self._count("client gives up")

    def _count(self, kind: str) -> None:
        self._world.summary.count("kinds of faults", kind)


class _Frozen(str):
    """Text as it was when it was noted."""

    __slots__ = ()
