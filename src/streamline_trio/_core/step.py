"""A step: a handler with an id, its options and the type of its output."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from streamline_trio._core import payload
from streamline_trio._core.checking import is_text
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.options import ResolvedOptions
from streamline_trio._core.plan import StepPlan
from streamline_trio._core.signature import HandlerInfo

OutT_co = TypeVar("OutT_co", covariant=True)

_LONGEST_ID = 100


def step_id_of(step: object) -> str:
    """The id meant by a handle or an id; `ValidationError` for anything else."""
    if isinstance(step, Step):
        return step.id
    if not is_text(step, _LONGEST_ID):
        raise ValidationError(f"a step is named by its handle or its id, not by {step!r}")
    return str(step)


class Step(Generic[OutT_co]):
    """A handle on a step, made by `Workflow.step` or `Workflow.add_step`.

    Calling it calls the handler with the context as it is, for unit tests: a sync handler
    gives its result, an async one an awaitable of it.
    """

    def __init__(
        self,
        id: str,
        *,
        workflow_id: str,
        handler: Callable[[Any], Any],
        options: ResolvedOptions,
        info: HandlerInfo,
    ) -> None:
        self.id = id
        self.workflow_id = workflow_id
        self.handler = handler
        self.options = options
        self.is_async: bool = info.is_async
        self.has_predicates: bool = options.skip_if is not None or options.run_if is not None
        self.returns: Any = info.returns
        self.decoder: payload.Decoder = info.decoder
        self.state_type: Any = info.state_type
        """The state its context is annotated with, UNSET when it is not."""
        functools.update_wrapper(self, handler, updated=())

    def __call__(self, ctx: Any, /) -> Any:
        return self.handler(ctx)

    @property
    def plan(self) -> StepPlan:
        """What is stored of this step's definition."""
        options = self.options
        return StepPlan(id=self.id, retry=options.retry, timeout=options.timeout, keep_outputs=options.keep_outputs)

    def __repr__(self) -> str:
        returns = getattr(self.returns, "__name__", None) or repr(self.returns)
        return f"<Step {self.workflow_id}/{self.id} -> {returns}>"
