"""What a simulated world is about: workflows, the runs to start, what the outside says, what must hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec

from streamline_trio import ValidationError
from streamline_trio._core.checking import is_a
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import Record, RunDoc
from streamline_trio.testing._world_choices import Chooser

if TYPE_CHECKING:
    from streamline_trio.testing._world import World
    from streamline_trio.testing._world_node import Node

VERBS = (
    "cancel",
    "pause",
    "unpause",
    "retry",
    "rewind",
    "fork",
    "withdraw",
    "reject",
    "delete",
    "drive",
    "watch",
    "look",
)


class ScenarioMistake(ValidationError):
    """Whoever wrote the scenario left something out, or says what makes no sense."""


class Start(msgspec.Struct, frozen=True):
    """A run that somebody starts at some time; with a key, perhaps several times and at once."""

    workflow: Workflow[Any, Any]
    input: Any = None
    idempotency_key: str | None = None
    delay: float | None = None
    priority: int = 0
    tenant: str | None = None


class Scenario:
    """The content of one simulated world; make a new one for each.

    Args:
        workflows: what the workers can run. All handlers must be async: time cannot be held for threads. Of
            several versions of one workflow each worker has the oldest, the newest or all, as in a rolling deploy;
            a start is of the newest that its worker has.
        starts: the runs that are started, each once at least.
        answers: what people answer, by the reason of the wait.
        signals: what may be signalled, by the name of the signal.
        check: called after every schedule, when every run has settled; raises `AssertionError`.
        verbs: what clients do besides starting, answering and signalling: ``cancel``, ``pause``, ``unpause``,
            ``retry``, ``rewind``, ``fork``, ``withdraw``, ``reject``, ``delete``, ``drive``, ``watch`` and
            ``look``.
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
        for number, start in enumerate(starts):
            _check_start(start, number, workflows)
        _check_said(answers, "answers")
        _check_said(signals, "signals")
        _check_verbs(verbs)
        self.workflows: tuple[Workflow[Any, Any], ...] = workflows
        self.starts: list[Start] = list(starts)
        self.answers: Mapping[str, Sequence[Any]] = answers or {}
        self.signals: Mapping[str, Sequence[Any]] = signals or {}
        self.verbs: tuple[str, ...] = tuple(verbs)
        self.lease: float = lease
        self.poll_interval: float = poll_interval
        self.max_recoveries: int = max_recoveries
        self._check = check

    def versions(self, noise: int) -> Sequence[Workflow[Any, Any]]:
        """What the workers of one world can run; `noise` is a number of that world."""
        del noise
        return self.workflows

    def begin(self, world: World) -> None:
        """The world begins."""

    def answer(self, record: Record, chooser: Chooser) -> Any:
        """What a person answers to this wait."""
        if record.reason not in self.answers:
            raise LookupError(f"the scenario has none: give it with Scenario(answers={{{record.reason!r}: [...]}})")
        return chooser.one_of(self.answers[record.reason])

    def signal(self, name: str, chooser: Chooser) -> Any:
        """The payload of a signal of this name."""
        if name not in self.signals:
            raise LookupError(
                f"the scenario has no such signal: give it with Scenario(signals={{{name!r}: [...]}})"
            )
        return chooser.one_of(self.signals[name])

    def input_of(self, start: Start) -> Any:
        """What one start is given."""
        return start.input

    def names(self, run_id: str | None) -> Sequence[str]:
        """The signals that may be sent to a run, or to all."""
        del run_id
        return sorted(self.signals)

    def act(self, world: World, node: Node, verb: str) -> bool:
        """Let a client do something of this scenario's own; False if the verb is none of them."""
        del world, node, verb
        return False

    def is_over(self, world: World) -> bool:
        """Whether nothing more is to come of it, all runs having settled."""
        del world
        return True

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


def _check_start(start: object, number: int, workflows: Sequence[Workflow[Any, Any]]) -> None:
    if not isinstance(start, Start):
        raise ValidationError(f"starts[{number}] is a Start, not {start!r}")
    if not is_a(start.workflow, Workflow):
        raise ValidationError(f"starts[{number}] is of a Workflow, not of {start.workflow!r}")
    if not any(start.workflow is workflow for workflow in workflows):
        known = ", ".join(map(repr, workflows))
        raise ValidationError(f"starts[{number}] is of {start.workflow!r}, and the scenario is about {known}")
    try:
        start.workflow.input_payload(start.input)
    except ValidationError as error:
        raise ValidationError(f"starts[{number}]: {error}") from error


def _check_said(said: object, what: str) -> None:
    """By name or reason, at least one value each."""
    if said is None:
        return
    if not is_a(said, Mapping):
        raise ValidationError(f"{what}= is a mapping, not {said!r}")
    for name, values in cast("Mapping[Any, Any]", said).items():
        if not isinstance(name, str):
            raise ValidationError(f"{what}= is given by text, not by {name!r}")
        if not is_a(values, Sequence) or isinstance(values, str | bytes):
            raise ValidationError(f"{what}[{name!r}] is a list of what may be said, not {values!r}")
        if not values:
            raise ValidationError(f"{what}[{name!r}] is empty: nothing could be said")


def _check_verbs(verbs: Sequence[str]) -> None:
    for verb in verbs:
        if verb not in VERBS:
            raise ValidationError(f"verbs= has {verb!r}; the verbs are {', '.join(VERBS)}")
