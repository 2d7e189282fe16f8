"""Reading handlers: whether they are async, what they return, what their context is typed as.

Each annotation is evaluated by itself, with the function's globals and the variables it
closes over, so that one which cannot be resolved does not take the others with it.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Never, NoReturn, TypeAlias, TypeVar, cast

import msgspec
from msgspec import UNSET, UnsetType

from streamline_trio._core import payload
from streamline_trio._core.refusal import refusal

Handler: TypeAlias = Callable[[Any], Any]

_CONTEXT = "StepContext"
AWAITABLES = (collections.abc.Awaitable, collections.abc.Coroutine)


class HandlerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a step's handler says about itself."""

    is_async: bool
    returns: Any
    """The type of its output; Any when nothing says it."""
    decoder: payload.Decoder
    """Reads stored outputs of this type."""
    input_type: Any | UnsetType = UNSET
    """The first parameter of its `StepContext` annotation."""
    state_type: Any | UnsetType = UNSET
    """The second one."""


def read_handler(handler: Handler, *, workflow: str, step: str, returns: Any = UNSET) -> HandlerInfo:
    """Read a step's handler; `returns` is the output type the user gave, if any.

    Raises `DefinitionError` for what cannot be a handler, for a return annotation that
    cannot be resolved while `returns` is not given, and for a type that cannot be stored.
    """
    fault = _fault_of(handler)
    if fault is not None:
        raise refusal(fault, workflow=workflow, step=step)
    is_async = is_coroutine_function(handler)
    if returns is UNSET:
        try:
            returns = return_type(handler)
        except UnresolvedAnnotation as error:
            raise refusal(
                f"the return annotation {error} "
                "(a class local to a function cannot be seen from here): pass returns=",
                workflow=workflow,
                step=step,
            ) from error
        if typing.get_origin(returns) in AWAITABLES:
            is_async, returns = True, typing.get_args(returns)[-1]
    input_type, state_type = context_types(handler)
    return HandlerInfo(
        is_async=is_async,
        returns=_plain(returns),
        decoder=_decoder_of(_plain(returns), workflow=workflow, step=step),
        input_type=input_type,
        state_type=state_type,
    )


class UnresolvedAnnotation(Exception):
    """An annotation names something that cannot be found."""


def takes_one_argument(function: Callable[..., Any]) -> bool:
    """Whether it can be called with one positional argument; True when nobody can tell."""
    signature = _signature(function, follow_wrapped=False)
    if signature is None:
        return True
    try:
        signature.bind(None)
    except TypeError:
        return False
    return True


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine; sees through partials, wrappers and `__call__`."""
    return any(map(inspect.iscoroutinefunction, _layers(function)))


def return_type(function: Callable[..., Any]) -> Any:
    """Its return annotation, resolved; Any without one. `UnresolvedAnnotation` when it cannot be."""
    signature = _signature(function)
    if signature is None or signature.return_annotation is inspect.Signature.empty:
        return Any
    return _resolved(signature.return_annotation, function)


def first_parameter_type(function: Callable[..., Any]) -> Any | None:
    """The annotation of its first parameter, resolved; None without one. Raises `UnresolvedAnnotation`."""
    signature = _signature(function)
    first = next(iter(signature.parameters.values()), None) if signature is not None else None
    if first is None or first.annotation is inspect.Parameter.empty:
        return None
    return _resolved(first.annotation, function)


def context_types(handler: Handler) -> tuple[Any | UnsetType, Any | UnsetType]:
    """Input and state type of the handler's ``ctx: StepContext[...]``; UNSET where untold."""
    signature = _signature(handler)
    first = next(iter(signature.parameters.values()), None) if signature is not None else None
    if first is None or first.annotation is inspect.Parameter.empty:
        return UNSET, UNSET
    try:
        annotation = _resolved(first.annotation, handler)
    except UnresolvedAnnotation:
        return UNSET, UNSET
    if typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    if getattr(typing.get_origin(annotation), "__name__", None) != _CONTEXT:
        return UNSET, UNSET
    arguments: list[Any] = list(typing.get_args(annotation))
    state = arguments[1] if len(arguments) > 1 else arguments[0]
    if isinstance(state, TypeVar):
        state = arguments[0]
    return _told(arguments[0]), _told(state)


def _told(argument: Any) -> Any | UnsetType:
    return UNSET if argument is Any or isinstance(argument, TypeVar) else argument


def _plain(returns: Any) -> Any:
    """A function that never returns normally has no output to type."""
    return Any if returns in (Never, NoReturn) else returns


def _fault_of(handler: object) -> str | None:
    if not callable(handler):
        return f"the handler must be a function of the step context, not {handler!r}"
    if isinstance(handler, type):
        return f"the handler must be a function, but {handler!r} is a class"
    called = _unpartial(handler)
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        return f"the handler {handler!r} is a generator; a step returns its output"
    if not takes_one_argument(handler):
        return f"the handler {handler!r} must take exactly one argument, the step context"
    return None


def _decoder_of(returns: Any, *, workflow: str, step: str) -> payload.Decoder:
    try:
        return payload.decoder(returns)
    except TypeError as error:
        raise refusal(
            f"an output of type {returns!r} cannot be stored: {error}",
            workflow=workflow,
            step=step,
            option="returns",
        ) from error


_FORMAT: dict[str, Any] = {}
if sys.version_info >= (3, 14):
    import annotationlib

    # Annotations are evaluated when they are asked for: names that are unknown stay references.
    _FORMAT = {"annotation_format": annotationlib.Format.FORWARDREF}


def _signature(function: Callable[..., Any], *, follow_wrapped: bool = True) -> inspect.Signature | None:
    try:
        return inspect.signature(function, follow_wrapped=follow_wrapped, **_FORMAT)
    except (ValueError, TypeError):
        return None


def _unpartial(function: Any) -> Any:
    """The plain function that a partial, a bound method or a callable object comes down to."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        elif inspect.ismethod(function):
            function = function.__func__
        elif inspect.isroutine(function) or isinstance(function, type):
            return function
        else:
            call = getattr(cast("Any", type(function)), "__call__", None)  # noqa: B004 - the method itself is wanted
            if not isinstance(call, types.FunctionType):
                return function
            function = call


def _layers(function: Any) -> list[Any]:
    """The plain function and those that it wraps, outermost first."""
    layers: list[Any] = []
    while function is not None:
        inner = _unpartial(function)
        if any(inner is layer for layer in layers):
            break
        layers.append(inner)
        function = getattr(function, "__wrapped__", None) or getattr(inner, "__wrapped__", None)
    return layers


def _resolved(annotation: Any, function: Callable[..., Any]) -> Any:
    """Evaluate one annotation where the innermost function was written."""
    inner = _layers(function)[-1]
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(
            holder,
            globalns=getattr(inner, "__globals__", {}),
            localns=_closure_of(inner),
            include_extras=True,
        )["it"]
    except Exception as error:
        raise UnresolvedAnnotation(f"{annotation!r} cannot be resolved: {error}") from error


def _closure_of(function: Any) -> dict[str, Any]:
    """The variables a function closes over that have a value by now."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    found: dict[str, Any] = {}
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            continue
    return found
