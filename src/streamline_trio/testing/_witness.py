"""What must hold of every run, seen from three sides: stored documents, calls of handlers, published events."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import trio
import trio.testing
from msgspec.structs import replace

from streamline_trio._core.broadcasts import BROADCASTS, BroadcastDoc, decode_broadcast
from streamline_trio._core.documents import Record, RunDoc, StepDoc, active_key
from streamline_trio._core.plan import Plan
from streamline_trio._core.status import FINISHED_STEP, SETTLED
from streamline_trio._core.store import Applied, Delete, Insert, PutSide, Route, Update, Write
from streamline_trio._core.tenancy import stored_id
from streamline_trio._runtime.context import StepContext
from streamline_trio._runtime.driver import Driver
from streamline_trio._runtime.engine import Engine
from streamline_trio._runtime.worker import WORKERS
from streamline_trio.testing._laws import check_growth, check_state
from streamline_trio.testing._laws_of_children import Offspring
from streamline_trio.testing._laws_of_flow import Flow, is_refused_draft
from streamline_trio.testing._laws_of_versions import LiveVersions, check_migration, is_migration, route_of
from streamline_trio.testing._wrapped_store import Act, WrappedStore


class Entry(NamedTuple):
    """One call of a handler."""

    run: str
    step: str
    generation: int
    attempt: int
    fence: int
    finished_before: bool


class Body:
    """A handler that is running now."""

    __slots__ = ("driver", "entry")

    def __init__(self, entry: Entry, driver: Driver) -> None:
        self.entry: Entry = entry
        self.driver: Driver = driver

    @property
    def is_live(self) -> bool:
        """Whether its process lives and has not given the run up: it may still be unwinding."""
        gone = getattr(self.driver.services.store, "is_gone", False)
        return not gone and self.driver.abort_reason != "lost"


writing: ContextVar[object] = ContextVar("streamline_trio_testing_writing", default=None)
"""The store object through which an engine makes the present call, where several share a witness."""


class Witness(WrappedStore):
    """Around a store that survives: keeps every version of every run, and what handlers and listeners saw.

    What must never happen is gathered in `wrong`, since an assertion inside the engine would be its business.
    """

    def __init__(self, inner: Any, *, limit: int = 3, plans: Mapping[Route, Plan] | None = None) -> None:
        super().__init__(inner)
        self.limit: int = limit
        self.plans: Mapping[Route, Plan] = plans or {}
        self.versions: dict[str, list[RunDoc]] = {}
        self.deleted: set[str] = set()
        self.refused: set[str] = set()
        """Of the deleted, the drafts that got no slot: as if they had never been started."""
        self.entries: list[Entry] = []
        self.effects: list[tuple[Any, ...]] = []
        self.wrong: list[str] = []
        self.revived: set[str] = set()
        self.events: defaultdict[str, list[Any]] = defaultdict(list)
        self.hops: Counter[tuple[str, str]] = Counter()
        self.arrived: Counter[tuple[str, bytes]] = Counter()
        """How often each payload from outside was accepted by a run: it answered a wait, or was kept."""
        self.endings: Counter[str] = Counter()
        """How calls of handlers ended, and what was going on."""
        self.takeovers: Counter[str] = Counter()
        """What runs were doing when another version took them over; leases given up for want of a version."""
        self._inside: defaultdict[str, list[Body]] = defaultdict(list)
        self._keys: dict[str, str] = {}
        self._offspring = Offspring(self.run, self.deleted, self.revived)
        self._live = LiveVersions()
        self.flow: Flow = Flow(self.run, lambda: self.plans)
        self.beside: dict[tuple[str, str], bytes] = {}
        """The side documents as they are stored now, by kind and key."""
        self.of_broadcasts: list[Callable[[BroadcastDoc], list[str]]] = []
        """What is to judge every stored broadcast."""
        self._processes: dict[str, object] = {}
        """By worker id, whose it is."""

    # --- documents -----------------------------------------------------------------------------------------

    async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
        reply = await act()
        if name == "write":
            for write, verdict in zip(args[0], reply, strict=True):
                if isinstance(verdict, Applied):
                    self._applied(write)
        return reply

    def _applied(self, write: Write) -> None:
        if isinstance(write, Insert | Update):
            self._stored(write)
        elif isinstance(write, Delete):
            self._deleted(write.run_id)
        elif isinstance(write, PutSide):
            self.hops["", write.kind] += 1
            self.wrong += self.flow.side(write)
            if write.body is None:
                self.beside.pop((write.kind, write.key), None)
            else:
                self.beside[write.kind, write.key] = write.body
            if write.kind == BROADCASTS and write.body is not None:
                doc = decode_broadcast(write.body)
                for law in self.of_broadcasts:
                    self.wrong += law(doc)
            if write.kind == WORKERS:
                self._live.worker(write)
                self._processes.setdefault(write.key, writing.get())

    def _deleted(self, run_id: str) -> None:
        self.deleted.add(run_id)
        self.flow.forget(self.run(run_id))
        if is_refused_draft(self.run(run_id)):
            self.refused.add(run_id)
            self.flow.counts["slot: refused, and removed"] += 1
        elif self.run(run_id).head.status not in SETTLED:
            self.wrong.append(f"{run_id}: was deleted though it had not settled")

    def _stored(self, write: Insert | Update) -> None:
        after = write.run if isinstance(write, Insert) else write.after
        versions = self.versions.setdefault(after.id, [])
        if isinstance(write, Insert) and after.id in self.refused:
            versions.clear()
            self.refused.discard(after.id)
            self.deleted.discard(after.id)
        before = versions[-1] if versions else None
        if isinstance(write, Update) and write.before != before:
            self.wrong.append(f"{after.id}: revision {after.head.revision} was decided on what was not stored")
        if after.id in self.deleted:
            self.wrong.append(f"{after.id}: was written after it was deleted")
        if before is not None:
            self._compare(before, after)
            self._check_empty(before, after)
            self._count_ending(before, after)
        self.hops["" if before is None else before.head.status, after.head.status] += 1
        self._follow_messages(before, after)
        self._check_key(after)
        for step_id, step in after.steps.items():
            if step.failures > self.limit:
                self.wrong.append(f"{after.id}: step {step_id} failed {step.failures} times")
        plan = self.plans.get(route_of(after))
        if plan is not None:
            self._judge(lambda: check_state(after, plan), after)
        versions.append(after)
        self.wrong += self._live.run(before, after)
        self.wrong += self._offspring.follow(before, after)
        self.wrong += self.flow.run(before, after)
        self._check_code(before, after)

    def _check_code(self, before: RunDoc | None, after: RunDoc) -> None:
        """Who takes a run has its version. Leases are given up for want of it."""
        routes = routes_of(writing.get())
        if routes is None:
            return
        old = None if before is None else before.head.lease
        new, is_here = after.head.lease, route_of(after) in routes
        if new is not None and new != old and not is_here:
            self.wrong.append(f"{after.id}: was taken by a process that does not have {after.head.version}")
        if before is None:
            return
        if is_migration(before, after):
            self.takeovers.update(_rests(before))
        counted = after.head.recoveries > before.head.recoveries
        foreign = old is not None and self._processes.get(old.worker) is not writing.get()
        goes_on = after.head.status in {"running", "waiting"} and after.id not in self.revived
        if foreign and new != old and not counted and goes_on:
            self.wrong.append(f"{after.id}: was taken from {old} by another process, and that was not counted")
        if foreign and counted and not is_here:
            self.takeovers["lease given up" if after.head.status not in SETTLED else "ended by a lapse"] += 1

    def _check_empty(self, before: RunDoc, after: RunDoc) -> None:
        """A worker gives a lease up when the handler has unwound: else another would run beside it."""
        lease = before.head.lease
        if lease is None or lease == after.head.lease:
            return
        for body in self._inside[after.id]:
            driver = body.driver
            mine = driver.services.store is writing.get() and driver.writer.fence == lease.fence
            if mine and body.is_live:
                self.wrong.append(f"{after.id}: its lease was given up while a body was live: {body.entry}")

    def _count_ending(self, before: RunDoc, after: RunDoc) -> None:
        step = before.head.current_step or ""
        if before.head.lease is None or before.step(step).status != "running":
            return
        ended = after.step(step).status
        if ended != "running":
            during = "a pause" if before.head.paused else ""
            during = "a drain" if getattr(writing.get(), "is_leaving", False) else during
            self.endings[f"{ended} during {during}" if during else ended] += 1

    def _judge(self, law: Callable[[], None], run: RunDoc) -> None:
        try:
            law()
        except AssertionError as error:
            self.wrong.append(
                f"{run.id} revision {run.head.revision}: {str(error) or 'a law of stored runs is broken'}"
            )

    def _compare(self, before: RunDoc, after: RunDoc) -> None:
        old, new = before.head, after.head
        if new.revision != old.revision + 1:
            self.wrong.append(f"{after.id}: revision {old.revision} was followed by {new.revision}")
        if new.fence < old.fence or (new.lease is not None and new.lease.fence != new.fence):
            self.wrong.append(f"{after.id}: fence {old.fence} was followed by {new.fence}, lease {new.lease}")
        if old.lease is not None and new.lease is not None and old.lease != new.lease and new.fence <= old.fence:
            self.wrong.append(f"{after.id}: another lease under the same fence")
        if old.status in SETTLED and new.status != old.status and after.id not in self.revived:
            self.wrong.append(f"{after.id}: went from {old.status} to {new.status}")
        if old.cancel_requested and old.status not in SETTLED and new.status == "done":
            self.wrong.append(f"{after.id}: is done though it was being cancelled")
        if is_migration(before, after):
            self._judge(lambda: check_migration(before, after), after)
        else:
            self._compare_steps(before, after)
        self._compare_parts(before, after)
        self._judge(lambda: check_growth(before, after), after)

    def _compare_steps(self, before: RunDoc, after: RunDoc) -> None:
        for step_id, step in before.steps.items():
            then = after.step(step_id)
            if step.status in FINISHED_STEP and then.generation == step.generation:
                if not _is_same(step, then):
                    self.wrong.append(f"{after.id}: step {step_id} had finished and was changed")
                if _is_undone(step) and then.compensation != step.compensation:
                    self.wrong.append(f"{after.id}: step {step_id} was undone and was changed")

    def _compare_parts(self, before: RunDoc, after: RunDoc) -> None:
        for step_id, step in after.steps.items():
            if before.head.paused and after.head.paused and _calls(step) > _calls(before.step(step_id)):
                self.wrong.append(f"{after.id}: step {step_id} began while the run was paused")
        for key, record in before.records.items():
            kept = after.records.get(key, record)
            same = kept.outcome and (kept.ask, kept.opened_at) == (record.ask, record.opened_at)
            if record.outcome and same and (kept.outcome, kept.value) != (record.outcome, record.value):
                self.wrong.append(f"{after.id}: the outcome of {key} was replaced")

    def _follow_messages(self, before: RunDoc | None, after: RunDoc) -> None:
        """No message leaves the inbox but to answer a wait, each one wait."""
        old_inbox = {} if before is None else before.inbox
        taken = [record.value for record in _answered(before, after) if record.value is not None]
        left = [message.payload for number, message in old_inbox.items() if number not in after.inbox]
        for value in left:
            if value not in taken:
                self.wrong.append(f"{after.id}: a signal left the inbox and answered nothing")
        came = [message.payload for number, message in after.inbox.items() if number not in old_inbox]
        for value in [*came, *(value for value in taken if value not in left)]:
            self.arrived[after.id, value] += 1

    def _check_key(self, after: RunDoc) -> None:
        """One active run per idempotency key."""
        key = active_key(after)
        if key is None:
            return
        holder = self._keys.get(key, after.id)
        if holder != after.id and active_key(self.run(holder)) == key and holder not in self.deleted:
            self.wrong.append(f"{after.id} and {holder} are active with one idempotency key")
        self._keys[key] = after.id

    def run(self, run_id: str) -> RunDoc:
        """The newest version."""
        return self.versions[run_id][-1]

    # --- handlers ------------------------------------------------------------------------------------------

    @contextmanager
    def inside(self, ctx: StepContext[Any, Any]) -> Generator[Body]:
        """Around the body of a handler."""
        driver: Driver = ctx._driver  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - shipped with it
        run = driver.run
        step = run.step(ctx.step_id)
        stored = self.run(run.id).step(ctx.step_id)
        over = _is_undone(stored) if driver.is_undoing else stored.status in FINISHED_STEP
        over = over and stored.generation == step.generation
        name = f"undoing {ctx.step_id}" if driver.is_undoing else ctx.step_id
        entry = Entry(run.id, name, step.generation, ctx.attempt, run.head.fence, over)
        body = Body(entry, driver)
        routes = routes_of(driver.services.store)
        if routes is not None and Route(ctx.workflow, ctx.version) not in routes:
            self.wrong.append(f"a body of {ctx.version} runs where that version is not: {entry}")
        if over:
            self.wrong.append(f"a finished step was called again: {entry}")
        others = self._inside[run.id]
        self.wrong += [f"two bodies at once: {one.entry} and {entry}" for one in others if one.is_live]
        self.entries.append(entry)
        others.append(body)
        try:
            yield body
        finally:
            others.remove(body)

    def effect(self, ctx: StepContext[Any, Any], *what: Any) -> None:
        """Something that a handler did to the world."""
        self.effects.append((ctx.run_id, ctx.step_id, *what))

    # --- events --------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def listening(self, engine: Engine) -> AsyncGenerator[None]:
        """Keep what the engine publishes while the block lasts."""
        async with trio.open_nursery() as nursery, engine.events() as events:
            hear = self.listener()

            async def listen() -> None:
                async for event in events:
                    hear(event)

            nursery.start_soon(listen)
            try:
                yield
            finally:
                with trio.CancelScope(shield=True):
                    await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()

    def listener(self) -> Callable[[Any], None]:
        """What one engine's listener calls with each event."""
        last: dict[str, int] = {}

        def hear(event: Any) -> None:
            self.heard(event)
            if not event.revision:
                return
            run_id = stored_id(event.tenant, event.run_id)
            if event.revision < last.get(run_id, 0):
                self.wrong.append(f"{event.name} of revision {event.revision} came after later ones")
            last[run_id] = event.revision

        return hear

    def heard(self, event: Any) -> None:
        """Check one event against what is stored by now."""
        if not event.revision:
            return
        run_id = stored_id(event.tenant, event.run_id)
        versions = self.versions.get(run_id, [])
        version = next((run for run in versions if run.head.revision == event.revision), None)
        if version is None:
            self.wrong.append(f"{event.name} of revision {event.revision} is of no commit")
        elif (holds := _TRUE_OF.get(event.name)) is not None and not holds(version, event):
            self.wrong.append(f"{event.name} of revision {event.revision} is not so")
        heard = self.events[run_id]
        if event.name not in {"step.progress", "step.stream", "step.waiting"} and event in heard:
            self.wrong.append(f"{event.name} of revision {event.revision} came twice")
        heard.append(event)

    def check(self) -> None:
        """Nothing of what must never happen has happened."""
        assert not self.wrong, "\n".join(self.wrong)


def routes_of(store: object) -> frozenset[Route] | None:
    """The versions that the process behind this store object has, if it says so."""
    routes: frozenset[Route] | None = getattr(store, "routes", None)
    return routes


def _rests(run: RunDoc) -> list[str]:
    """What a run at rest has come to, in words of what its step has asked for."""
    steps = run.steps.values()
    return [
        f"taken over: {run.head.status}",
        *sorted({f"taken over with a {record.kind}" for record in run.records.values()}),
        *(["taken over with parts of a step"] if run.pieces else []),
        *(["taken over before a retry"] if any(step.retry_at is not None for step in steps) else []),
        *(["taken over with what can be undone"] if any(step.undoable for step in steps) else []),
    ]


def _is_same(step: StepDoc, then: StepDoc) -> bool:
    """Whether a finished step is as it was, but for its undoing, and for an older output that was pinned."""
    pinned = then.pinned is not None
    output = step.output if pinned else then.output
    pin = {"pinned": step.pinned, "pinned_at": step.pinned_at}
    return replace(then, compensation=step.compensation, output=output, **pin) == step


def _is_undone(step: StepDoc) -> bool:
    return step.compensation is not None and step.compensation.status == "done"


def _calls(step: StepDoc) -> int:
    """Of its handler and of its compensation."""
    return step.attempts + (0 if step.compensation is None else step.compensation.attempts)


def _answered(before: RunDoc | None, after: RunDoc) -> list[Record]:
    """The waits that this change gave a value, from outside."""
    old = {} if before is None else before.records
    return [
        record
        for key, record in after.records.items()
        if record.outcome in {"value", "fired"}
        and record.kind not in {"child", "join"}
        and (key not in old or old[key].outcome is None or old[key].opened_at != record.opened_at)
    ]


def _end(event: Any, status: str) -> set[str]:
    """Where the run is after it; a claim may find at once that nothing can be undone."""
    return {"compensating", "compensation_failed"} if event.compensating else {status}


_TRUE_OF: dict[str, Callable[[RunDoc, Any], bool]] = {
    "workflow.completed": lambda run, _event: run.head.status == "done",
    "workflow.failed": lambda run, event: run.head.status in _end(event, "failed"),
    "workflow.cancelled": lambda run, event: run.head.status in _end(event, "cancelled"),
    "workflow.compensating": lambda run, _event: run.head.status in {"compensating", "compensation_failed"},
    "workflow.compensated": lambda run, _event: run.head.status == "compensated",
    "workflow.compensation_failed": lambda run, _event: run.head.status == "compensation_failed",
    "step.compensated": lambda run, event: _is_undone(run.step(event.step)),
    "workflow.waiting": lambda run, _event: run.head.status == "waiting",
    "workflow.dead_lettered": lambda run, _event: run.head.dead_lettered,
    "step.completed": lambda run, event: run.step(event.step).status == "done",
    "step.started": lambda run, event: run.step(event.step).attempts >= event.attempt,
}
