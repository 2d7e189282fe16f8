"""One entry of one handler, as the verbs of its context need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamline_trio._core.definition import Workflow
from streamline_trio._core.errors import LeaseLost
from streamline_trio._core.step import Step
from streamline_trio._runtime.suspension import Suspender

if TYPE_CHECKING:
    from streamline_trio._runtime.driver import Driver


class Entry:
    """Who drives the run, which step it is, and how its handler is unwound."""

    __slots__ = ("__weakref__", "_driver", "_frames", "_step", "_suspender", "_workflow")

    def __init__(self, driver: Driver, step: Step[Any], suspender: Suspender) -> None:
        self._driver = driver
        self._step = step
        self._suspender = suspender
        self._workflow: Workflow[Any, Any] = driver.workflow
        self._frames = 0

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._driver.run.public_id

    @property
    def workflow(self) -> str:
        """The workflow's id."""
        return self._driver.run.origin.workflow

    def _require_current(self) -> None:
        """A thread that was abandoned, or a task left in the background, writes nothing any more."""
        if self._suspender.ended:
            raise LeaseLost(
                f"this call of step {self._step.id} of run {self.run_id} has ended: its context is void",
                run_id=self.run_id,
                step=self._step.id,
            )

    @property
    def _held(self) -> dict[str, Any]:
        self._require_current()
        return {"worker": self._driver.writer.worker, "fence": self._driver.writer.fence}
