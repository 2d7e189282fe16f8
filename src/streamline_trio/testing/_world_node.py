"""One worker of a simulated world: an engine with a clock of its own behind a gate of its own, which can die."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from types import MappingProxyType
from typing import Any, Literal, cast

import msgspec
import trio

from streamline_trio._core.definition import Workflow
from streamline_trio._core.errors import StoreUnavailable
from streamline_trio._core.step import Step
from streamline_trio._runtime.clock import Chance, VirtualClock
from streamline_trio._runtime.engine import Engine
from streamline_trio._runtime.opening import open_engine
from streamline_trio._runtime.snapshot import Run
from streamline_trio.testing._crash import crash
from streamline_trio.testing._witness import Witness
from streamline_trio.testing._world_gate import GatedStore
from streamline_trio.testing._world_versions import Deploy, playing

State = Literal["opening", "open", "closing", "gone", "closed"]

QUIET = logging.getLogger("streamline_trio.testing.world")
QUIET.disabled = True


class SkewedClock:
    """Wall time as one machine has it."""

    def __init__(self, right: VirtualClock) -> None:
        self.skew: int = 0
        self._right = right

    def now(self) -> int:
        """Milliseconds since the epoch, and what this clock is wrong by."""
        return self._right.now() + self.skew


class Node:
    """A worker from its opening to its end."""

    def __init__(
        self,
        name: str,
        store: GatedStore,
        workflows: Sequence[Workflow[Any, Any]],
        witness: Witness,
        deploy: Deploy,
        *,
        clock: SkewedClock,
        options: dict[str, Any],
    ) -> None:
        self.name: str = name
        self.store: GatedStore = store
        self.clock: SkewedClock = clock
        self.state: State = "opening"
        self.is_frozen: bool = False
        self.engine: Engine | None = None
        self._workflows = workflows
        self._witness = witness
        self._deploy = deploy
        self._options = options
        self._leaving = trio.Event()
        self._scope = trio.CancelScope()
        self._clients: trio.Nursery | None = None

    @property
    def is_alive(self) -> bool:
        """Whether its process lives."""
        return self.state in {"opening", "open", "closing"}

    async def live(self, chance: Chance) -> None:
        """The task of this worker."""
        playing.set(self.name)
        try:
            with self._scope:
                async with open_engine(
                    self.store,
                    *self._workflows,
                    clock=self.clock,
                    chance=chance,
                    logger=QUIET,
                    name=self.name,
                    **self._options,
                ) as engine:
                    engine.on("*", self._witness.listener())
                    if self._deploy.is_mixed:  # else nothing differs, not even by a task
                        engine.on("engine.error", lambda event: self._deploy.heard(self.name, event))
                    await self._serve(engine)
        except StoreUnavailable as error:
            if self.engine is not None:
                self._witness.wrong.append(f"{self.name}: leaving the engine raised {error!r}")
        except Exception as error:  # noqa: BLE001 - whatever else comes out of an engine is a finding
            self._witness.wrong.append(f"{self.name}: the engine raised {error!r}")
        finally:
            self.state = "gone" if self.store.is_gone else "closed"

    async def _serve(self, engine: Engine) -> None:
        self.engine = engine
        if self.state == "opening":
            self.state = "open"
        async with trio.open_nursery() as clients:
            self._clients = clients
            await self._leaving.wait()
            self._clients = None
            clients.cancel_scope.cancel()

    def ask(self, client: Callable[[], Awaitable[None]]) -> bool:
        """Let a client act through this engine, in this process; False if it does not serve."""
        if self._clients is None or self.state != "open":
            return False
        self._clients.start_soon(client)
        return True

    def leave(self) -> None:
        """Begin to leave the engine's block."""
        if self.state == "open":
            self.state = "closing"
        self.store.is_leaving = True
        self._leaving.set()

    async def die(self) -> None:
        """End as a process does that is killed: from here on nothing of it reaches the store."""
        self.state = "gone"
        self.store.cut()
        engine = self.engine
        if engine is None:
            self._scope.cancel()
            return
        worker = engine._machinery.worker.held_id  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        if worker is not None:
            await self.store.inner.drop_worker(worker)
        if self._clients is not None:
            self._clients.cancel_scope.cancel()

    async def vanish(self) -> None:
        """Let what is left of a dead process unwind."""
        if self.engine is not None:
            await crash(self.engine)
        self._leaving.set()


def observed(workflow: Workflow[Any, Any], witness: Witness, deploy: Deploy) -> Workflow[Any, Any]:
    """The same workflow, with the witness around each call of a handler, and of `migrate`."""
    workflow.seal()
    twin = copy.copy(workflow)
    steps = {step.id: _observed_step(step, witness) for step in workflow.steps.values()}
    twin._steps = steps  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - a twin for tests
    twin.steps = MappingProxyType(steps)
    if workflow.migrate is not None:
        twin.migrate = _observed_migrate(workflow.migrate, witness, deploy)
    return twin


def _observed_migrate(inner: Callable[[Run], Any], witness: Witness, deploy: Deploy) -> Callable[[Run], Any]:
    async def migrate(run: Run) -> Run | None:
        wrong = deploy.asked(run)
        witness.wrong += [] if wrong is None else [wrong]
        try:
            given: Any = inner(run)
            if inspect.isawaitable(given):
                given = await given
        except Exception:
            deploy.refuses(run)
            raise
        if given is None:
            deploy.refuses(run)
        return cast("Run | None", given)

    return migrate


def _observed_step(step: Step[Any], witness: Witness) -> Step[Any]:
    if not step.is_async:
        raise ValueError(f"{step!r}: a simulated world has no threads, so its handlers must be async")
    twin = copy.copy(step)
    twin.handler = _observed_handler(step.handler, witness)
    compensation = step.compensation
    if compensation is not None:
        if not compensation.is_async:
            raise ValueError(f"the compensation of {step!r}: a simulated world has no threads")
        twin.compensation = msgspec.structs.replace(
            compensation, handler=_observed_handler(compensation.handler, witness)
        )
    return twin


def _observed_handler(inner: Callable[[Any], Any], witness: Witness) -> Callable[[Any], Any]:
    async def handler(ctx: Any) -> Any:
        with witness.inside(ctx):
            return await inner(ctx)

    return handler
