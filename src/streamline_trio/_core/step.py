"""A step: a handler with an id, its options and the type of its output."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

from typing_extensions import Unpack

from streamline_trio._core import payload
from streamline_trio._core.checking import is_text
from streamline_trio._core.compensation import Compensation, CompensationSettings, read_compensation
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.options import ResolvedOptions
from streamline_trio._core.plan import StepPlan
from streamline_trio._core.refusal import refusal
from streamline_trio._core.signature import HandlerInfo

OutT_co = TypeVar("OutT_co", covariant=True)
UndoT = TypeVar("UndoT", bound=Callable[[Any], Any])

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
        self.compensation: Compensation | None = None
        """How it is undone, if it can be."""
        self._is_sealed = False
        functools.update_wrapper(self, handler, updated=())

    def __call__(self, ctx: Any, /) -> Any:
        return self.handler(ctx)

    @overload
    def compensate(self, handler: UndoT, /) -> UndoT: ...
    @overload
    def compensate(self, **options: Unpack[CompensationSettings]) -> Callable[[UndoT], UndoT]: ...
    def compensate(self, *handlers: Any, **options: Any) -> Any:
        """Say how to undo this step: ``@charge.compensate`` or ``@charge.compensate(attempts=5)``.

        The handler, sync or async, takes the step's context, in which `ctx.output(step)` is what it undoes, and it
        must not suspend. It is called if the run fails after the step is done, newest step first, until it returns
        or has failed `attempts` times; with `when="started"` also if the step itself failed half-way. It is given
        back as it is, for unit tests. `timeout` and `retry_delay` are in seconds. Raises `DefinitionError`.
        """

        def decorate(handler: Any, /) -> Any:
            if self._is_sealed or self.compensation is not None:
                why = "it has a compensation already" if self.compensation else "the workflow is sealed"
                raise refusal(why, workflow=self.workflow_id, step=self.id, option="compensate")
            self.compensation = read_compensation(handler, options, workflow=self.workflow_id, step=self.id)
            return handler

        return decorate(*handlers) if handlers else decorate

    def seal(self) -> StepPlan:
        """Make the step final; what is stored of its definition."""
        self._is_sealed = True
        return self.plan

    @property
    def plan(self) -> StepPlan:
        """What is stored of this step's definition."""
        options = self.options
        return StepPlan(
            id=self.id,
            retry=options.retry,
            timeout=options.timeout,
            keep_outputs=options.keep_outputs,
            compensation=None if self.compensation is None else self.compensation.plan,
        )

    def __repr__(self) -> str:
        returns = getattr(self.returns, "__name__", None) or repr(self.returns)
        return f"<Step {self.workflow_id}/{self.id} -> {returns}>"
