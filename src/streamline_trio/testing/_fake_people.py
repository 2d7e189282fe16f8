"""The parts of a fake context that concern people and their second thoughts: approvals, and earlier outputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import trio
import whenever
from typing_extensions import TypeVar

from streamline_trio import (
    Approved,
    InvalidState,
    OutputVersion,
    Rejected,
    Step,
    StepContext,
    TimedOut,
    ValidationError,
    WaitTimedOut,
    WaitWithdrawn,
    Withdrawn,
)
from streamline_trio._core.checking import check_reason, is_whole
from streamline_trio._core.step import step_id_of
from streamline_trio._runtime.tokens import check_token
from streamline_trio.testing._fake_answers import Answers, Asked

InputT = TypeVar("InputT", default=Any)
StateT = TypeVar("StateT", default=InputT)
OutputsT = TypeVar("OutputsT", default=Any)

Stored = tuple[bytes, Any]
"""A value in storage, and its decoder."""


class FakePeople(StepContext[InputT, StateT, OutputsT]):
    """Approvals are answered like waits; histories are those that the test has given."""

    now: whenever.Instant
    asked: list[Asked]
    _answers: Answers
    _histories: dict[str, list[Stored]]
    _outputs: dict[str, Stored]

    @abstractmethod
    def _note(self, asked: Asked) -> None: ...

    @abstractmethod
    def _times_out_at(self, timeout: float | timedelta | None) -> whenever.Instant | None: ...

    @abstractmethod
    def _known(self, step: Step[Any] | str) -> Step[Any] | None: ...

    @abstractmethod
    def _stored_output(self, step: Step[Any] | str, value: Any) -> Stored: ...

    def _set_history(self, history: Mapping[Any, Sequence[Any]] | None) -> None:
        self.pins: list[tuple[str, int]] = []
        self._histories = {
            step_id_of(step): [self._stored_output(step, value) for value in values]
            for step, values in (history or {}).items()
        }

    async def request_approval(
        self,
        reason: str,
        *,
        returns: Any = Any,
        timeout: float | timedelta | None = None,
        name: str | None = None,
        token: str | None = None,
        meta: Mapping[str, Any] | None = None,
        on_token: Callable[[str], Awaitable[object]] | None = None,
    ) -> Any:
        """The answer given under the name or reason: an `Approved`, `Rejected`, `Withdrawn` or `TimedOut`.

        `NotGiven` without one, `ValidationError` for any other answer. `WaitTimedOut` and `WaitWithdrawn` are taken
        for `TimedOut()` and `Withdrawn()`.
        """
        check_reason(reason, "the reason of an approval")
        known = f"token-of-wait-{len(self.asked):04}" if token is None else check_token(token)
        asked = Asked(
            kind="human",
            name=name,
            reason=reason,
            due_at=self._times_out_at(timeout),
            meta=None if meta is None else dict(meta),
            token=known if on_token is not None or token is not None else None,
            approval=True,
        )
        self._note(asked)
        await trio.lowlevel.checkpoint()
        if on_token is not None:
            await on_token(known)
        try:
            return self._answers.take(asked, Approved[returns] | Rejected | Withdrawn | TimedOut, self.step_id)
        except WaitTimedOut:
            return TimedOut()
        except WaitWithdrawn as error:
            return Withdrawn(error.meta.get("reason"))

    def output_history(self, step: Step[Any] | str | None = None) -> list[OutputVersion]:
        """The outputs given as `history`, as versions from 1 on."""
        step_id = self._step_of_history(step)
        return [
            OutputVersion(
                version=version,
                output=decoder.decode(stored, what=f"output {version} of {step_id}"),
                at=self.now,
                attempts=1,
            )
            for version, (stored, decoder) in enumerate(self._histories.get(step_id, ()), start=1)
        ]

    async def pin_output(self, version: int, step: Step[Any] | str | None = None) -> None:
        """Make an output of the given history that of the step, and note it in `pins`."""
        step_id = self._step_of_history(step)
        await trio.lowlevel.checkpoint()
        if step_id not in self._outputs:
            raise InvalidState(
                f"cannot pin an output of step {step_id}: it is not done",
                action="pin an output of",
                status="running",
            )
        kept = self._histories.get(step_id, [])
        if not is_whole(version, 1, len(kept)):
            raise ValidationError(f"step {step_id} has no output {version!r} in its history", step=step_id)
        self._outputs[step_id] = kept[version - 1]
        self.pins.append((step_id, version))

    def _step_of_history(self, step: Step[Any] | str | None) -> str:
        if step is None:
            return self.step_id
        self._known(step)
        return step_id_of(step)
