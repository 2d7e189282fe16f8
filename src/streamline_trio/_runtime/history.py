"""Outputs that later runs of a step have replaced: read, and taken up again."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import whenever

from streamline_trio._core import payload
from streamline_trio._core.checking import is_whole
from streamline_trio._core.documents import StepDoc
from streamline_trio._core.durations import instant_of
from streamline_trio._core.errors import StepNotFound, ValidationError
from streamline_trio._core.happenings import OutputPinned
from streamline_trio._core.step import Step, step_id_of
from streamline_trio._runtime.entry import Entry


class OutputVersion(msgspec.Struct, frozen=True, kw_only=True):
    """An output that a later run of the step has replaced: made at `at`, after so many calls of the handler.

    Versions count from 1, also past those that are no longer kept.
    """

    version: int
    output: Any
    at: whenever.Instant
    attempts: int = 0


_plain = payload.decoder(Any)


def output_versions(doc: StepDoc, step_id: str, decoder: payload.Decoder | None) -> tuple[OutputVersion, ...]:
    """A step's history, oldest first; in the declared type if that is at hand."""
    return tuple(
        OutputVersion(
            version=each.version,
            output=(decoder or _plain).decode(each.output, what=f"output {each.version} of {step_id}"),
            at=instant_of(each.at),
            attempts=each.attempts,
        )
        for each in doc.history
    )


def pinning(version: object, step_id: str, **holder: Any) -> OutputPinned:
    """The wish for an earlier output; `ValidationError` for what is no version."""
    if not is_whole(version, 1):
        raise ValidationError(f"a version is a whole number of at least 1, not {version!r}", version=version)
    return OutputPinned(step=step_id, version=cast("int", version), **holder)


class Histories(Entry):
    """Of this run's steps, as far as their `keep_outputs` allows."""

    __slots__ = ()

    def output_history(self, step: Step[Any] | str | None = None) -> list[OutputVersion]:
        """Earlier outputs of a step (of this one without `step`), oldest first; no I/O.

        They are there if the step has `keep_outputs` and was reset by goto or rewind after it had finished.
        Raises `StepNotFound`.
        """
        step_id = self._known_step_id(step)
        decoder = self._workflow.steps[step_id].decoder
        return list(output_versions(self._driver.run.step(step_id), step_id, decoder))

    async def pin_output(self, version: int, step: Step[Any] | str | None = None) -> None:
        """Make an output of a finished step's history its output again; idempotent.

        Durable when it returns; atomic; a cancel point. The output that it replaces is not added to the history.
        Raises `ValidationError` for a version that is not there, `StepNotFound`, and `InvalidState` for a step that
        is not done: of the step that runs, return the output instead.
        """
        wanted = pinning(version, self._known_step_id(step), **self._held)
        await self._driver.commit(wanted)

    def _known_step_id(self, step: Step[Any] | str | None) -> str:
        step_id = self._step.id if step is None else step_id_of(step)
        if step_id not in self._workflow.steps:
            raise StepNotFound(f"workflow {self.workflow} has no step {step_id!r}", step=step_id)
        return step_id
