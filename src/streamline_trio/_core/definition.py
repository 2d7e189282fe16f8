"""Workflows: a name, a version, typed input and state, and steps in the order they run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeAlias, TypedDict, cast, overload

from msgspec import UNSET
from typing_extensions import TypeForm, TypeVar, Unpack

from streamline_trio._core import payload
from streamline_trio._core.durations import Duration
from streamline_trio._core.errors import DefinitionError, ValidationError
from streamline_trio._core.hooks import Hooks, guards_of, hooks_of, middleware_of
from streamline_trio._core.initial_state import InitialState
from streamline_trio._core.naming import ID_RULE, TAG_RULE, VERSION_RULE, is_id, is_tag, is_version
from streamline_trio._core.options import (
    Given,
    StepOptions,
    StepOptionsDict,
    StepSettings,
    StepSpec,
    checked,
    limit,
    payload_limit,
    resolved,
    truth,
    whole,
)
from streamline_trio._core.outputs import check_outputs
from streamline_trio._core.plan import Plan, make_plan
from streamline_trio._core.refusal import refusal
from streamline_trio._core.signals import Signal
from streamline_trio._core.signature import Handler, read_handler, takes_one_argument
from streamline_trio._core.start_options import (
    CancelOn,
    Concurrency,
    Debounce,
    StartRules,
    Throttle,
    Trigger,
    cancel_on_of,
    concurrency_of,
    debounce_of,
    throttle_of,
    triggers_of,
)
from streamline_trio._core.step import Step

InputT = TypeVar("InputT", default=Any)
StateT = TypeVar("StateT", default=InputT)
R = TypeVar("R")
_I = TypeVar("_I")
_S = TypeVar("_S")

MAX_STEPS = 10_000
MAX_STEP_LOGS = 1_000_000


class StepDecorator(Protocol):
    """What `Workflow.step(**options)` gives: it makes a `Step` of a handler."""

    @overload
    def __call__(self, handler: Callable[[Any], Coroutine[Any, Any, R]], /) -> Step[R]: ...
    @overload
    def __call__(self, handler: Callable[[Any], R], /) -> Step[R]: ...


StepsMap: TypeAlias = Mapping[str, Handler | StepSpec]

Migrate: TypeAlias = Callable[[Any], Any]
"""Gives the `Run` of another version as this version takes it over, or None; sync or async."""


class WorkflowOptions(TypedDict, total=False):
    """The options of a workflow that do not bear on its type parameters."""

    version: str
    steps: StepsMap | None
    outputs: Any
    defaults: StepOptions | None
    timeout: Duration | None
    max_payload_bytes: int | None
    max_step_logs: int
    compensate_on_cancel: bool
    tags: Iterable[str]
    middleware: Iterable[object]
    guards: Iterable[object]
    migrate: Migrate | None
    concurrency: Concurrency | None
    throttle: Throttle | None
    debounce: Debounce | None
    trigger: Trigger | Iterable[Trigger] | None
    cancel_on: Iterable[Signal[Any] | str | CancelOn]


class Workflow(Generic[InputT, StateT]):
    """The definition of a workflow; steps run in the order they are defined.

    `input` is any type msgspec can convert. `state` makes the first state of a run from its
    input; without it the state begins as a copy of the input. `timeout` (seconds) bounds a
    whole run, `max_payload_bytes` each output, checkpoint and result of `once`,
    `max_step_logs` the kept log lines of a run. With `compensate_on_cancel` a cancelled run is
    undone like a failed one. `middleware` observes the steps, `guards` may refuse them. `migrate`
    is asked to take over runs of versions that no live worker has. `concurrency`, `throttle` and
    `debounce` limit its starts, `trigger` (one or several) starts runs, `cancel_on` ends them.
    Everything invalid raises `DefinitionError`.
    """

    @overload
    def __init__(
        self: Workflow[Any, Any], id: str, *, state: None = None, **options: Unpack[WorkflowOptions]
    ) -> None: ...
    @overload
    def __init__(
        self: Workflow[Any, _S],
        id: str,
        *,
        state: Callable[[Any], _S],
        **options: Unpack[WorkflowOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: Workflow[_I, _I],
        id: str,
        *,
        input: TypeForm[_I],
        state: None = None,
        **options: Unpack[WorkflowOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        id: str,
        *,
        input: TypeForm[InputT],
        state: Callable[[InputT], StateT],
        **options: Unpack[WorkflowOptions],
    ) -> None: ...
    def __init__(
        self,
        id: str,
        *,
        input: Any = Any,
        state: Callable[[Any], Any] | None = None,
        version: str = "1.0.0",
        steps: StepsMap | None = None,
        outputs: Any = None,
        defaults: StepOptions | None = None,
        timeout: Duration | None = None,
        max_payload_bytes: int | None = None,
        max_step_logs: int = 1000,
        compensate_on_cancel: bool = False,
        tags: Iterable[str] = (),
        middleware: Iterable[object] = (),
        guards: Iterable[object] = (),
        migrate: Migrate | None = None,
        concurrency: Concurrency | None = None,
        throttle: Throttle | None = None,
        debounce: Debounce | None = None,
        trigger: Trigger | Iterable[Trigger] | None = None,
        cancel_on: Iterable[Signal[Any] | str | CancelOn] = (),
    ) -> None:
        if not is_id(id):
            raise DefinitionError(f"workflow {id!r}: its id must be {ID_RULE}", workflow=str(id))
        self.id = id
        self.version: str = self._checked("version", version, _version)
        self.timeout: float | None = self._checked("timeout", timeout, limit)
        self.max_payload_bytes: int | None = self._checked("max_payload_bytes", max_payload_bytes, payload_limit)
        self.max_step_logs: int = self._checked("max_step_logs", max_step_logs, _step_logs)
        self.compensate_on_cancel: bool = self._checked("compensate_on_cancel", compensate_on_cancel, truth)
        self.tags: tuple[str, ...] = self._checked("tags", tags, _tags)
        self.middleware: tuple[object, ...] = self._checked("middleware", middleware, middleware_of)
        self.guards: tuple[object, ...] = self._checked("guards", guards, guards_of)
        self.hooks: Hooks | None = hooks_of(self.middleware, self.guards)
        """What its middleware and guards want to be called with; None if there are none."""
        self.migrate: Migrate | None = self._checked("migrate", migrate, _migrate)
        self.rules: StartRules = StartRules(
            concurrency=self._checked("concurrency", concurrency, concurrency_of),
            throttle=self._checked("throttle", throttle, throttle_of),
            debounce=self._checked("debounce", debounce, debounce_of),
            triggers=self._checked("trigger", trigger, triggers_of),
            cancel_on=self._checked("cancel_on", cancel_on, cancel_on_of),
        )
        """What it says about its starts."""
        if throttle is not None and debounce is not None:
            raise refusal("throttle and debounce exclude each other", workflow=id, option="throttle")
        self.input_decoder: payload.Decoder = self._checked("input", input, payload.decoder)
        self.outputs_type = outputs
        self._defaults = self._checked_defaults(defaults)
        self._state = InitialState(state, workflow=id, input_decoder=self.input_decoder)
        self._steps: dict[str, Step[Any]] = {}
        self.steps: Mapping[str, Step[Any]] = MappingProxyType(self._steps)
        """The steps by id, in the order they run."""
        self._plan: Plan | None = None
        if steps is not None:
            self._take(steps)

    @property
    def input_type(self) -> Any:
        """The type of inputs; Any when none was given."""
        return self.input_decoder.type

    @property
    def sealed(self) -> bool:
        """Whether the definition is final."""
        return self._plan is not None

    @property
    def plan(self) -> Plan:
        """The stored form of the definition; `DefinitionError` before `seal`."""
        if self._plan is None:
            raise refusal("it is not sealed yet, so it has no plan", workflow=self.id)
        return self._plan

    @overload
    def step(self, handler: Callable[[Any], Coroutine[Any, Any, R]], /) -> Step[R]: ...
    @overload
    def step(self, handler: Callable[[Any], R], /) -> Step[R]: ...
    @overload
    def step(self, **options: Unpack[StepOptionsDict[StateT]]) -> StepDecorator: ...
    def step(self, *handlers: Any, **options: Any) -> Any:
        """Make a function the next step: ``@workflow.step`` or ``@workflow.step(attempts=5)``.

        The id is the function's name unless `id` is given. A sync function runs in a thread.
        """

        def decorate(handler: Handler, /) -> Step[Any]:
            return self._add(getattr(handler, "__name__", None), handler, options)

        return decorate(*handlers) if handlers else decorate

    @overload
    def add_step(
        self,
        id: str,
        handler: Callable[[Any], Coroutine[Any, Any, R]],
        **options: Unpack[StepSettings[StateT]],
    ) -> Step[R]: ...
    @overload
    def add_step(
        self, id: str, handler: Callable[[Any], R], **options: Unpack[StepSettings[StateT]]
    ) -> Step[R]: ...
    def add_step(self, id: str, handler: Any, **options: Any) -> Any:
        """Make a function the next step, under this id; of another `Step` only its handler is taken."""
        return self._add(id, handler, options)

    def seal(self) -> Plan:
        """Make the definition final and compute its plan; a second time only returns it.

        Raises `DefinitionError` for a workflow without steps, for steps unlike `outputs`
        and for steps whose annotations disagree about a state that nothing else types.
        """
        if self._plan is None:
            if not self._steps:
                raise refusal("it has no steps", workflow=self.id)
            self._check_outputs()
            self._state.learn(self._annotated_states())
            self._plan = make_plan(
                workflow=self.id,
                version=self.version,
                steps=tuple(step.seal() for step in self._steps.values()),
                timeout=self.timeout,
                max_step_logs=self.max_step_logs,
                compensate_on_cancel=self.compensate_on_cancel,
                **self.rules.plans(),
            )
        return self._plan

    def input_payload(self, value: object) -> bytes:
        """The input as it is stored; `ValidationError` when it does not fit the input type."""
        return payload.convert_input(value, self.input_type, what=f"the input of workflow {self.id!r}")

    def initial_state(self, input_payload: bytes) -> bytes:
        """The first state of a run with this stored input, as it is stored.

        `ValidationError`, with the cause chained, when the state function fails or what it
        gives cannot be stored.
        """
        return self._state.initial(input_payload)

    def state_decoder(self, input_payload: bytes) -> payload.Decoder:
        """The decoder of this workflow's states; the input serves to find the type, if need be."""
        return self._state.decoder(input_payload)

    def __repr__(self) -> str:
        return f"<Workflow {self.id} {self.version}: {', '.join(self._steps) or 'no steps'}>"

    def _take(self, steps: object) -> None:
        if not isinstance(steps, Mapping):
            raise refusal(f"must map ids to handlers, not {steps!r}", workflow=self.id, option="steps")
        for step_id, entry in cast("StepsMap", steps).items():
            spec = entry if isinstance(entry, StepSpec) else StepSpec(entry)
            if spec.given.get("id", step_id) != step_id:
                raise refusal("its id is the key in the map", workflow=self.id, step=step_id, option="id")
            self._add(step_id, spec.handler, spec.given)
        self._check_outputs()

    def _annotated_states(self) -> dict[str, Any]:
        told = [(step.id, step.state_type) for step in self._steps.values()]
        undo = ((step.id, step.compensation) for step in self._steps.values())
        told += [(f"{id} (its compensation)", how.state_type) for id, how in undo if how is not None]
        return {step_id: type_ for step_id, type_ in told if type_ is not UNSET}

    def _check_outputs(self) -> None:
        if self.outputs_type is not None:
            check_outputs(self.outputs_type, self._steps, workflow=self.id)

    def _add(self, name: object, handler: Any, given: Given) -> Step[Any]:
        id = given.get("id", name)
        if not is_id(id):
            raise refusal(
                f"its id must be {ID_RULE}" + (", given with id=" if name is None else ""),
                workflow=self.id,
                step=None if id is None else str(id),
                option="id",
            )
        self._check_room(id)
        options = checked(given, workflow=self.id, step=id)
        function = handler.handler if isinstance(handler, Step) else handler
        step: Step[Any] = Step(
            id,
            workflow_id=self.id,
            handler=function,
            options=resolved({"max_payload_bytes": self.max_payload_bytes}, self._defaults, options),
            info=read_handler(
                function,
                workflow=self.id,
                step=id,
                returns=options.get("returns", UNSET),
            ),
        )
        self._steps[id] = step
        return step

    def _check_room(self, id: str) -> None:
        if self._plan is not None:
            raise refusal("the workflow is sealed: no step can be added", workflow=self.id, step=id)
        if id in self._steps:
            raise refusal("there is a step of this id already", workflow=self.id, step=id, option="id")
        if len(self._steps) >= MAX_STEPS:
            raise refusal(f"a workflow has at most {MAX_STEPS} steps", workflow=self.id, step=id)

    def _checked_defaults(self, defaults: object) -> Given:
        if defaults is None:
            return {}
        if not isinstance(defaults, StepOptions):
            raise refusal(f"must be StepOptions(...), not {defaults!r}", workflow=self.id, option="defaults")
        return checked(defaults.given, workflow=self.id)

    def _checked(self, option: str, value: Any, check: Callable[[Any], R]) -> R:
        try:
            return check(value)
        except (ValidationError, TypeError) as fault:
            raise refusal(str(fault), workflow=self.id, option=option) from fault


def _version(value: object) -> str:
    if not is_version(value):
        raise ValidationError(f"must be {VERSION_RULE}, not {value!r}")
    return cast("str", value)


def _migrate(value: Any) -> Migrate | None:
    if value is not None and not (callable(value) and takes_one_argument(value)):
        raise ValidationError(f"must be a function of a run, not {value!r}")
    return cast("Migrate | None", value)


def _step_logs(value: object) -> int:
    return whole(value, least=0, most=MAX_STEP_LOGS)


def _tags(value: object) -> tuple[str, ...]:
    tags = None if isinstance(value, str) or not isinstance(value, Iterable) else tuple(cast("Any", value))
    if tags is None or not all(map(is_tag, tags)):
        raise ValidationError(f"must be a sequence of texts of {TAG_RULE}, not {value!r}")
    return tags
