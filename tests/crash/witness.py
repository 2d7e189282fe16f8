"""What must hold of every run, seen from three sides: stored documents, calls of handlers, published events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import trio

from streamline_trio import Engine, StepContext
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.status import FINISHED_STEP, SETTLED
from streamline_trio._core.store import Applied, Insert, Update
from tests.crash.faulty_store import Act, WrappedStore


class Entry(NamedTuple):
    """One call of a handler."""

    run: str
    step: str
    generation: int
    attempt: int
    fence: int
    finished_before: bool


class Witness(WrappedStore):
    """Around a store that survives: keeps every version of every run, and what handlers and listeners saw.

    What must never happen is gathered in `wrong`, since an assertion inside the engine would be its business.
    """

    def __init__(self, inner: Any, *, limit: int = 3) -> None:
        super().__init__(inner)
        self.limit = limit
        self.versions: dict[str, list[RunDoc]] = {}
        self.entries: list[Entry] = []
        self.effects: list[tuple[Any, ...]] = []
        self.wrong: list[str] = []
        self.revived: set[str] = set()
        self.events: defaultdict[str, list[Any]] = defaultdict(list)
        self._inside: dict[str, Any] = {}

    # --- documents -----------------------------------------------------------------------------------------

    async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
        verdicts = await act()
        if name == "write":
            for write, verdict in zip(args[0], verdicts, strict=True):
                if isinstance(verdict, Applied) and isinstance(write, Insert | Update):
                    self._stored(write)
        return verdicts

    def _stored(self, write: Insert | Update) -> None:
        after = write.run if isinstance(write, Insert) else write.after
        versions = self.versions.setdefault(after.id, [])
        if versions:
            self._compare(versions[-1], after)
        for step_id, step in after.steps.items():
            if step.failures > self.limit:
                self.wrong.append(f"{after.id}: step {step_id} failed {step.failures} times")
        versions.append(after)

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
        for step_id, step in before.steps.items():
            then = after.step(step_id)
            if step.status in FINISHED_STEP and then.generation == step.generation and then != step:
                self.wrong.append(f"{after.id}: step {step_id} had finished and was changed")

    def run(self, run_id: str) -> RunDoc:
        """The newest version."""
        return self.versions[run_id][-1]

    # --- handlers ------------------------------------------------------------------------------------------

    @contextmanager
    def inside(self, ctx: StepContext[Any, Any]) -> Iterator[None]:
        """Around the body of a handler."""
        run = ctx._driver.run
        step = run.step(ctx.step_id)
        stored = self.run(run.id).step(ctx.step_id)
        over = stored.status in FINISHED_STEP and stored.generation == step.generation
        entry = Entry(run.id, ctx.step_id, step.generation, step.attempts, run.head.fence, over)
        if over:
            self.wrong.append(f"a finished step was called again: {entry}")
        if run.id in self._inside:
            self.wrong.append(f"two bodies at once: {self._inside[run.id]} and {entry}")
        self.entries.append(entry)
        self._inside[run.id] = entry
        try:
            yield
        finally:
            del self._inside[run.id]

    def effect(self, ctx: StepContext[Any, Any], *what: Any) -> None:
        """Something that a handler did to the world."""
        self.effects.append((ctx.run_id, ctx.step_id, *what))

    # --- events --------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def listening(self, engine: Engine) -> AsyncIterator[None]:
        """Keep what the engine publishes while the block lasts."""
        async with trio.open_nursery() as nursery, engine.events() as events:

            async def listen() -> None:
                last: dict[str, int] = {}
                async for event in events:
                    self.heard(event)
                    if event.revision < last.get(event.run_id, 0):
                        self.wrong.append(f"{event.name} of revision {event.revision} came after later ones")
                    last[event.run_id] = event.revision

            nursery.start_soon(listen)
            try:
                yield
            finally:
                with trio.CancelScope(shield=True):
                    await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()

    def heard(self, event: Any) -> None:
        """Check one event against what is stored by now."""
        if not event.revision:
            return
        versions = self.versions.get(event.run_id, [])
        version = next((run for run in versions if run.head.revision == event.revision), None)
        if version is None:
            self.wrong.append(f"{event.name} of revision {event.revision} is of no commit")
        elif (holds := _TRUE_OF.get(event.name)) is not None and not holds(version, event):
            self.wrong.append(f"{event.name} of revision {event.revision} is not so")
        heard = self.events[event.run_id]
        if event.name not in {"step.progress", "step.stream"} and event in heard:
            self.wrong.append(f"{event.name} of revision {event.revision} came twice")
        heard.append(event)

    def check(self) -> None:
        """Nothing of what must never happen has happened."""
        assert self.wrong == []


_TRUE_OF: dict[str, Callable[[RunDoc, Any], bool]] = {
    "workflow.completed": lambda run, _event: run.head.status == "done",
    "workflow.failed": lambda run, _event: run.head.status == "failed",
    "workflow.cancelled": lambda run, _event: run.head.status == "cancelled",
    "workflow.waiting": lambda run, _event: run.head.status == "waiting",
    "workflow.dead_lettered": lambda run, _event: run.head.dead_lettered,
    "step.completed": lambda run, event: run.step(event.step).status == "done",
    "step.started": lambda run, event: run.step(event.step).attempts >= event.attempt,
}


async def until(holds: Callable[[], Any], *, within: float = 60.0, pause: float = 0.01) -> None:
    """Wait until something holds; for what no event tells of."""
    with trio.fail_after(within):
        while not holds():  # noqa: ASYNC110 - it is for what no event tells of
            await trio.sleep(pause)
