"""The clients of a simulated world, and the book of what they asked and what was acknowledged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from streamline_trio._core import payload as payloads
from streamline_trio._core.approvals import rejection
from streamline_trio._core.documents import Record, RunDoc
from streamline_trio._core.errors import (
    ConcurrencyLimitReached,
    InvalidState,
    RunNotFound,
    StepNotFound,
    StoreUnavailable,
    TokenInvalid,
    ValidationError,
    WorkflowNotFound,
)
from streamline_trio._core.status import SETTLED
from streamline_trio._core.tenancy import public_id, stored_id, tenant_of
from streamline_trio._runtime.engine import Engine
from streamline_trio._runtime.handle import RunHandle
from streamline_trio.testing._laws import TURNED_BACK
from streamline_trio.testing._laws_of_versions import route_of
from streamline_trio.testing._world_node import Node
from streamline_trio.testing._world_promises import Broadcast, Bumps, SignalsThatCancel, check_refusal
from streamline_trio.testing._world_scenario import ScenarioMistake, Start

if TYPE_CHECKING:
    from streamline_trio.testing._world import World

REFUSALS = (InvalidState, RunNotFound, StepNotFound, TokenInvalid)
Payload = tuple[str, bytes]


_MEANT_FOR: dict[str, Callable[[RunDoc], bool]] = {
    "retry": lambda run: run.head.status in {"failed", "compensation_failed"},
    "cancel": lambda run: run.head.status == "compensating",
    "reject": lambda run: any(record.is_open and record.approval for record in run.records.values()),
}


def in_scope(node: Node, tenant: str | None) -> Engine:
    """The engine of a node as a tenant has it, or as everybody."""
    engine = node.engine
    assert engine is not None
    return engine if tenant is None else engine.scoped(tenant)


def handle_on(node: Node, run_id: str) -> RunHandle:
    """A handle on the run that is stored under this id, as its tenant has it."""
    return in_scope(node, tenant_of(run_id)).run(public_id(run_id))


class Book:
    """Who asked for what, and what was acknowledged."""

    def __init__(self) -> None:
        self.started: list[str] = []
        """Ids under which runs were asked to start, applied or not."""
        self.acknowledged_starts: set[str] = set()
        self.key_holders: list[tuple[str, str]] = []
        self.issued: Counter[Payload] = Counter()
        self.acknowledged: Counter[Payload] = Counter()
        self.signals: dict[tuple[str | None, str], tuple[str, Any]] = {}
        """Name and payload of each signal by its target and id."""
        self.acknowledged_signals: set[tuple[str | None, str]] = set()
        self.broadcasts: list[Broadcast] = []
        """Those that were acknowledged."""
        self.senders: dict[str, str | None] = {}
        """In whose scope each broadcast was emitted, by its id."""
        self.issued_to_all: Counter[bytes] = Counter()
        self.cancels: set[str] = set()
        self.doomed: dict[str, int] = {}
        """Runs that must end cancelled, since the revision at which that was acknowledged."""
        self.withdrawals: set[str] = set()
        self.deletes: set[tuple[str | None, str]] = set()
        """Of which tenant and workflow runs were to be deleted."""
        self.watching: int = 0


class Clients:
    """What clients do; each verb is a coroutine that acts through the engine of a node."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.book: Book = Book()
        self.bumps: Bumps = Bumps(world.witness)
        self.cancelling: SignalsThatCancel = SignalsThatCancel(world.witness)
        self._asked = 0

    def act(self, node: Node, verb: str) -> None:
        """Begin to ask for something; what is drawn is drawn now."""
        chooser = self.world.chooser
        if verb == "start":
            self.start(node, chooser.one_of(self.world.scenario.starts))
            return
        if verb == "broadcast":
            self._broadcast(node)
            return
        if self.world.scenario.act(self.world, node, verb):
            return
        if not self.book.started:
            return
        self.ask(node, chooser.one_of(self._candidates(verb)), verb)

    def ask(self, node: Node, run_id: str, verb: str) -> None:
        """Begin to ask something of a run."""
        makers: dict[str, Callable[[Node, str], tuple[str, Callable[[], Awaitable[None]]] | None]] = {
            "answer": self._answer,
            "token": self._token,
            "signal": self._signal,
            "withdraw": self._withdraw,
            "reject": self._reject,
            "rewind": self._rewind,
            "fork": self._fork,
            "cancel": self._cancel,
            "watch": self._watch,
            "delete": self._delete,
            "look": self._look,
        }
        made = makers[verb](node, run_id) if verb in makers else self._plain(node, run_id, verb)
        if made is not None:
            self._ask(node, verb, *made)

    def _candidates(self, verb: str) -> list[str]:
        """The runs that this may be asked of; often those for which it means something."""
        is_meant, versions = _MEANT_FOR.get(verb), self.world.witness.versions
        known = self._known()
        if is_meant is None:
            return known
        fitting = [run_id for run_id in known if run_id in versions and is_meant(versions[run_id][-1])]
        return fitting if fitting and self.world.chooser.one_in(2) else known

    def _known(self) -> list[str]:
        """The runs that were asked for, and those that others have started."""
        started = set(self.book.started)
        return [*self.book.started, *(run_id for run_id in self.world.witness.versions if run_id not in started)]

    def begin(self, node: Node, verb: str, what: str, act: Callable[[], Awaitable[None]]) -> None:
        """Begin to ask for something of a scenario's own."""
        self._ask(node, verb, what, act)

    def start(self, node: Node, start: Start) -> None:
        """Begin to start a run."""
        self._ask(node, "start", *self._start(node, start))

    def _ask(self, node: Node, verb: str, what: str, act: Callable[[], Awaitable[None]]) -> None:
        world = self.world
        self._asked += 1
        number = self._asked
        scope = trio.CancelScope()

        async def client() -> None:
            with scope:
                outcome = await self._outcome(act, what)
                world.summary.count("verbs", f"{verb} {outcome}")
                world.note(node.name, "client {}: {} is {}", number, verb, outcome)
            world.asking.pop(number, None)

        if node.ask(client):
            world.asking[number] = scope
            world.note(node.name, "client {}: {}", number, what)

    async def _outcome(self, act: Callable[[], Awaitable[None]], what: str) -> str:
        marks = self.world.witness.flow.marks()
        try:
            return await self._answered(act, what)
        except ConcurrencyLimitReached as error:
            wrong = check_refusal(self.world.witness, error, marks)
            self.world.witness.wrong += [] if wrong is None else [f"{what}: {wrong}"]
            return "refused (ConcurrencyLimitReached)"

    async def _answered(self, act: Callable[[], Awaitable[None]], what: str) -> str:
        try:
            with self.asked(what):
                await act()
        except StoreUnavailable:
            return "unknown"
        except REFUSALS as error:
            return f"refused ({type(error).__name__})"
        except ConcurrencyLimitReached:
            raise
        except ScenarioMistake as mistake:
            self.world.mistake = mistake
            return "a mistake"
        except WorkflowNotFound as error:
            if not self.world.deploy.is_mixed:
                self.world.witness.wrong.append(f"a client saw {error!r}")
            return "refused (WorkflowNotFound)"
        except Exception as error:  # noqa: BLE001 - whatever else a client sees is a finding
            self.world.witness.wrong.append(f"a client saw {error!r}")
            return "broken"
        return "acknowledged"

    # --- what the scenario says ----------------------------------------------------------------------------

    @contextmanager
    def asked(self, what: str) -> Generator[None]:
        """Around a verb: what the engine refuses as making no sense is the scenario's mistake."""
        try:
            yield
        except ValidationError as error:
            raise ScenarioMistake(
                f"the scenario lets a client {what}, which the engine refuses: {error}"
            ) from error

    def draw_answer(self, run_id: str, record: Record) -> Any:
        """What the scenario answers to this wait."""
        what = f"run {run_id} waits for an answer to {record.reason!r}"
        return self._drawn(what, lambda: self.world.scenario.answer(record, self.world.chooser))

    def draw_signal(self, run_id: str | None, name: str) -> Any:
        """What the scenario sends with this signal."""
        what = f"signal {name!r} is to be sent to {'all' if run_id is None else f'run {run_id}'}"
        return self._drawn(what, lambda: self.world.scenario.signal(name, self.world.chooser))

    def _drawn(self, what: str, draw: Callable[[], Any]) -> Any:
        try:
            return draw()
        except Exception as error:
            raise ScenarioMistake(f"{what}, but {error}") from error

    # --- starting ------------------------------------------------------------------------------------------

    def _start(self, node: Node, start: Start) -> tuple[str, Callable[[], Awaitable[None]]]:
        tenant = start.tenant
        run_id = f"r{self._started_in(tenant) + 1}"
        self.book.started.append(stored_id(tenant, run_id))
        engine = in_scope(node, tenant)
        key, value = start.idempotency_key, self.world.scenario.input_of(start)

        async def act() -> None:
            with self.bumps.call(start.workflow, value) as call:
                handle = await engine.start(
                    start.workflow.id,
                    value,
                    run_id=run_id,
                    idempotency_key=key,
                    delay=start.delay,
                    priority=start.priority,
                )
                stored = stored_id(tenant, handle.id)
                call.acknowledged(stored)
            self.book.acknowledged_starts.add(stored)
            if key is not None:
                self.book.key_holders.append((stored, key))

        return f"start {run_id} of {start.workflow.id}" + ("" if key is None else f" under key {key}"), act

    def _started_in(self, tenant: str | None) -> int:
        """How many have been asked for; of one tenant where all have one, so that they use the same ids."""
        if None in self._tenants():
            return len(self.book.started)
        return sum(tenant_of(one) == tenant for one in self.book.started)

    # --- answering -----------------------------------------------------------------------------------------

    def open_waits(self, run_id: str) -> list[Record]:
        """What the run waits for, as it is stored now."""
        versions = self.world.witness.versions.get(run_id)
        return [] if not versions else [record for record in versions[-1].records.values() if record.is_open]

    def _answer(self, node: Node, run_id: str) -> tuple[str, Callable[[], Awaitable[None]]] | None:
        waits = [record for record in self.open_waits(run_id) if record.kind == "human"]
        if not waits:
            return None
        value = self.draw_answer(run_id, waits[0])
        wait = waits[0].name or None
        return f"answer {run_id} with {value!r}", lambda: self.answer(node, run_id, value, wait=wait)

    async def answer(
        self, node: Node, run_id: str, value: Any, *, token: str | None = None, wait: str | None = None
    ) -> None:
        """Answer the open wait of this name, or the one of the token."""
        key = run_id, payloads.encode(value, what="answer")
        self.book.issued[key] += 1
        if token is None:
            await handle_on(node, run_id).resume(value, wait=wait)
        else:
            await in_scope(node, tenant_of(run_id)).resume(token, value)
        self.book.acknowledged[key] += 1

    def _token(self, node: Node, run_id: str) -> tuple[str, Callable[[], Awaitable[None]]] | None:
        tokens = self.world.scenario.tokens()
        if not tokens:
            return None
        run_id, token = self.world.chooser.one_of(tokens)
        waits = [record for record in self.open_waits(run_id) if record.kind == "human"]
        if not waits:
            return None
        value = self.draw_answer(run_id, waits[0])
        return f"answer {run_id} by token with {value!r}", lambda: self.answer(node, run_id, value, token=token)

    def _reject(self, node: Node, run_id: str) -> tuple[str, Callable[[], Awaitable[None]]] | None:
        handle = handle_on(node, run_id)
        if not any(record.approval for record in self.open_waits(run_id)):
            return None

        async def act() -> None:
            key = run_id, rejection("so chosen")
            self.book.issued[key] += 1
            await handle.reject("so chosen")
            self.book.acknowledged[key] += 1

        return f"reject what {run_id} asks for", act

    def _withdraw(self, node: Node, run_id: str) -> tuple[str, Callable[[], Awaitable[None]]] | None:
        handle = handle_on(node, run_id)
        if not any(record.kind == "human" for record in self.open_waits(run_id)):
            return None

        async def act() -> None:
            self.book.withdrawals.add(run_id)
            await handle.withdraw("so chosen")

        return f"withdraw what {run_id} waits for", act

    # --- signals -------------------------------------------------------------------------------------------

    def _signal(self, node: Node, run_id: str) -> tuple[str, Callable[[], Awaitable[None]]] | None:
        return self._emission(node, run_id)

    def _broadcast(self, node: Node) -> None:
        made = self._emission(node, None)
        if made is not None:
            self._ask(node, "broadcast", *made)

    def _emission(self, node: Node, run_id: str | None) -> tuple[str, Callable[[], Awaitable[None]]] | None:
        scenario, chooser = self.world.scenario, self.world.chooser
        if not scenario.signals:
            return None
        known = [id for target, id in self.book.signals if target == run_id]
        if known and chooser.one_in(3):
            id = known[-1]
            self.world.summary.count("faults", "duplicate signal")
        else:
            id = f"s{len(self.book.signals) + 1}"
            name = chooser.one_of(scenario.names(run_id))
            self.book.signals[run_id, id] = name, self.draw_signal(run_id, name)
            if run_id is None:
                self.book.senders[id] = chooser.one_of(self._tenants())
        name, value = self.book.signals[run_id, id]
        target = "all" if run_id is None else run_id
        return f"signal {name} {id} to {target}: {value!r}", lambda: self.emit(node, run_id, id)

    def _tenants(self) -> list[str | None]:
        """Who starts runs here."""
        return list(dict.fromkeys(start.tenant for start in self.world.scenario.starts)) or [None]

    async def emit(self, node: Node, run_id: str | None, id: str) -> None:
        """Emit a signal of the book."""
        tenant = self.book.senders.get(id) if run_id is None else tenant_of(run_id)
        engine = in_scope(node, tenant)
        name, value = self.book.signals[run_id, id]
        stored = payloads.encode(value, what="signal")
        versions = self.world.witness.versions
        if run_id is not None and run_id in versions and versions[run_id][-1].head.status in SETTLED:
            self.world.summary.count("faults", "late signal")
        before = {other: found[-1].head.revision for other, found in versions.items()}
        if run_id is None:
            self.book.issued_to_all[stored] += 1
        elif (run_id, id) not in self.book.acknowledged_signals:
            self.book.issued[run_id, stored] += 1
        sent = self.cancelling.sent(name, stored, run_id, tenant, id)
        await engine.emit(name, value, run=None if run_id is None else public_id(run_id), id=id)
        if run_id is None:
            self.book.broadcasts.append(Broadcast(name, stored, tenant, id, before))
        elif self.cancelling.cancels(sent):
            self.world.witness.wrong += self.cancelling.acknowledged(sent)
        elif (run_id, id) not in self.book.acknowledged_signals:
            self.book.acknowledged_signals.add((run_id, id))
            self.book.acknowledged[run_id, stored] += 1

    # --- steering ------------------------------------------------------------------------------------------

    def _cancel(self, node: Node, run_id: str) -> tuple[str, Callable[[], Awaitable[None]]]:
        handle, witness = handle_on(node, run_id), self.world.witness

        async def act() -> None:
            self.book.cancels.add(run_id)
            known = len(witness.versions.get(run_id, ()))
            await handle.cancel("so chosen")
            run = witness.run(run_id)
            seen = witness.versions[run_id][max(known - 1, 0) :]
            # Where it had settled at some moment of the call, this was a no-op, whatever has revived it since.
            if not any(version.head.status in SETTLED for version in seen):
                self.book.doomed.setdefault(run_id, run.head.revision)
                if not run.head.cancel_requested and run.head.status not in self._ends_of_cancel(run):
                    witness.wrong.append(f"{run_id}: a cancellation was acknowledged and is not stored")

        return f"cancel {run_id}", act

    def _ends_of_cancel(self, run: RunDoc) -> set[str]:
        """Where a cancellation leads."""
        plan = self.world.witness.plans[route_of(run)]
        return set(TURNED_BACK) if plan.compensate_on_cancel else {"cancelled"}

    def _rewind(self, node: Node, run_id: str) -> tuple[str, Callable[[], Awaitable[None]]] | None:
        handle, witness = handle_on(node, run_id), self.world.witness
        versions = witness.versions.get(run_id)
        if not versions or not versions[-1].steps:
            return None
        step = self.world.chooser.one_of(list(versions[-1].steps))

        async def act() -> None:
            witness.revived.add(run_id)
            await handle.rewind(step)

        return f"rewind {run_id} to {step}", act

    def _fork(self, node: Node, run_id: str) -> tuple[str, Callable[[], Awaitable[None]]] | None:
        handle, versions = handle_on(node, run_id), self.world.witness.versions.get(run_id)
        if not versions or not versions[-1].steps:
            return None
        step = self.world.chooser.one_of(list(versions[-1].steps))

        async def act() -> None:
            forked = await handle.fork(step)
            self.book.acknowledged_starts.add(stored_id(tenant_of(run_id), forked.id))

        return f"fork {run_id} from {step}", act

    def _plain(self, node: Node, run_id: str, verb: str) -> tuple[str, Callable[[], Awaitable[None]]]:
        handle = handle_on(node, run_id)

        async def act() -> None:
            if verb == "retry":
                self.world.witness.revived.add(run_id)
            await getattr(handle, verb)()

        return f"{verb} {run_id}", act

    def _delete(self, node: Node, run_id: str) -> tuple[str, Callable[[], Awaitable[None]]] | None:
        tenant, run = tenant_of(run_id), self.world.witness.versions.get(run_id)
        engine = in_scope(node, tenant)
        if not run or run[-1].head.status not in SETTLED:
            return None
        workflow, status = run[-1].origin.workflow, run[-1].head.status

        async def act() -> None:
            self.book.deletes.add((tenant, workflow))
            await engine.delete(workflow=workflow, status=status)

        return f"delete {status} runs of {workflow}", act

    # --- reading -------------------------------------------------------------------------------------------

    def _watch(self, node: Node, run_id: str) -> tuple[str, Callable[[], Awaitable[None]]]:
        handle, witness = handle_on(node, run_id), self.world.witness

        async def act() -> None:
            self.book.watching += 1
            try:
                seen = await handle.wait()
            finally:
                self.book.watching -= 1
            if not any(run.head.status == seen.status for run in witness.versions[run_id]):
                witness.wrong.append(f"{run_id}: who waited was told {seen.status}, which it never was")

        return f"wait for {run_id}", act

    def _look(self, node: Node, run_id: str) -> tuple[str, Callable[[], Awaitable[None]]]:
        handle, engine = handle_on(node, run_id), in_scope(node, tenant_of(run_id))
        witness = self.world.witness

        async def act() -> None:
            known = witness.versions.get(run_id, [])
            before = known[-1].head.revision if known else 0
            seen = await handle.get()
            if seen.revision < before:
                witness.wrong.append(f"{run_id}: a reader saw revision {seen.revision} after {before}")
            await handle.logs()
            await engine.pending()

        return f"look at {run_id}", act
