"""The one form in which a definition is refused: workflow, step and option by name."""

from __future__ import annotations

from streamline_trio._core.errors import DefinitionError


def refusal(reason: str, *, workflow: str, step: str | None = None, option: str | None = None) -> DefinitionError:
    """The error that says what is wrong with which option of which step of which workflow."""
    place = f"workflow {workflow!r}"
    if step is not None:
        place += f", step {step!r}"
    if option is not None:
        place += f", option {option!r}"
    return DefinitionError(f"{place}: {reason}", workflow=workflow, step=step, option=option)
