"""What a simulated world is about: workflows, the runs to start, what the outside says, what must hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from streamline_trio import ValidationError
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import Record, RunDoc
from streamline_trio.testing._world_choices import Chooser

if TYPE_CHECKING:
    from streamline_trio.testing._world import World


class Start(msgspec.Struct, frozen=True):
    """A run that somebody starts at some time; with a key, perhaps several times and at once."""

    workflow: Workflow[Any, Any]
    input: Any = None
    idempotency_key: str | None = None
    delay: float | None = None
    priority: int = 0


class Scenario:
    """The content of one simulated world; make a new one for each.

    Args:
        workflows: what the workers can run. All handlers must be async: time cannot be held for threads.
        starts: the runs that are started, each once at least.
        answers: what people answer, by the reason of the wait.
        signals: what may be signalled, by the name of the signal.
        check: called after every schedule, when every run has settled; raises `AssertionError`.
        verbs: what clients do besides starting, answering and signalling: ``cancel``, ``pause``, ``unpause``,
            ``retry``, ``rewind``, ``withdraw``, ``delete``, ``drive``, ``watch`` and ``look``.
        lease: of the workers, in seconds.
        poll_interval: of the workers, in seconds.
        max_recoveries: how many recoveries in a row a run survives.
    """

    def __init__(
        self,
        *workflows: Workflow[Any, Any],
        starts: Sequence[Start] = (),
        answers: Mapping[str, Sequence[Any]] | None = None,
        signals: Mapping[str, Sequence[Any]] | None = None,
        check: Callable[[World], None] | None = None,
        verbs: Sequence[str] = ("cancel", "pause", "unpause", "retry", "watch", "look"),
        lease: float = 9.0,
        poll_interval: float = 3.0,
        max_recoveries: int = 5,
    ) -> None:
        if not workflows or (type(self) is Scenario and not starts):
            raise ValidationError("a scenario has workflows, and starts of runs")
        self.workflows: tuple[Workflow[Any, Any], ...] = workflows
        self.starts: list[Start] = list(starts)
        self.answers: Mapping[str, Sequence[Any]] = answers or {}
        self.signals: Mapping[str, Sequence[Any]] = signals or {}
        self.verbs: tuple[str, ...] = tuple(verbs)
        self.lease: float = lease
        self.poll_interval: float = poll_interval
        self.max_recoveries: int = max_recoveries
        self._check = check

    def begin(self, world: World) -> None:
        """The world begins."""

    def answer(self, record: Record, chooser: Chooser) -> Any:
        """What a person answers to this wait."""
        if record.reason not in self.answers:
            raise LookupError(f"the scenario has no answer to {record.reason!r}")
        return chooser.one_of(self.answers[record.reason])

    def signal(self, name: str, chooser: Chooser) -> Any:
        """The payload of a signal of this name."""
        if name not in self.signals:
            raise LookupError(f"the scenario has no signal {name!r}")
        return chooser.one_of(self.signals[name])

    def tokens(self) -> Sequence[tuple[str, str]]:
        """The tokens that handlers have passed on so far, each with its run."""
        return ()

    def may_fail(self, run: RunDoc) -> bool:
        """Whether a run may fail as this one did."""
        del run
        return True

    def check(self, world: World) -> None:
        """What else must hold once every run has settled; raises `AssertionError`."""
        if self._check is not None:
            self._check(world)
