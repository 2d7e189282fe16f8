"""What is read from a handler's signature."""

# ruff: noqa: ARG002, ARG003, ARG004, ARG005 - stand-ins have the parameters of their protocol

from __future__ import annotations

import functools
from collections.abc import Awaitable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any, Generic, Never, NoReturn, TypeVar

import msgspec
import pytest
import typing_extensions
from msgspec import UNSET

from streamline_trio._core.errors import DefinitionError
from streamline_trio._core.signature import read_handler

if TYPE_CHECKING:
    from decimal import Decimal as Unseen

InT = TypeVar("InT")
StT = typing_extensions.TypeVar("StT", default=InT)
OutT = typing_extensions.TypeVar("OutT", default=Any)


class StepContext(Generic[InT, StT, OutT]):
    pass


class In(msgspec.Struct):
    number: int


class State(msgspec.Struct):
    total: int = 0


def read(handler, **options):
    return read_handler(handler, workflow="order", step="charge", **options)


async def asynchronous(ctx: StepContext[In, State]) -> list[State]:
    return []


def synchronous(ctx: StepContext[In]) -> int:
    return 1


def silent(ctx):
    return 1


def test_an_async_handler_is_read():
    """Proves that output, input and state types come from string annotations."""
    info = read(asynchronous)
    assert (info.is_async, info.returns) == (True, list[State])
    assert (info.input_type, info.state_type) == (In, State)
    assert info.decoder.type == list[State]


def test_a_sync_handler_is_read():
    """Proves that one parameter of StepContext stands for input and state."""
    info = read(synchronous)
    assert (info.is_async, info.returns, info.input_type, info.state_type) == (False, int, In, In)


def test_a_handler_without_annotations_is_plain():
    """Proves that nothing told means Any for the output and nothing for the context."""
    info = read(silent)
    assert (info.is_async, info.returns, info.input_type, info.state_type) == (False, Any, UNSET, UNSET)


async def _never(ctx) -> Never:
    raise AssertionError


async def _no_return(ctx) -> NoReturn:
    raise AssertionError


def _none(ctx) -> None:
    return None


def _awaitable(ctx) -> Awaitable[int]:
    raise AssertionError


def _coroutine(ctx) -> Coroutine[Any, Any, State]:
    raise AssertionError


def _annotated(ctx: Annotated[StepContext[In, State], "x"]) -> Annotated[int, msgspec.Meta(ge=0)]:
    return 1


def test_special_return_annotations():
    """Proves what functions that never return, return nothing, or return an awaitable give."""
    assert read(_never).returns is Any
    assert read(_no_return).returns is Any
    assert read(_none).returns is type(None)
    assert (read(_awaitable).returns, read(_awaitable).is_async) == (int, True)
    assert (read(_coroutine).returns, read(_coroutine).is_async) == (State, True)
    assert read(_annotated).returns == Annotated[int, msgspec.Meta(ge=0)]
    assert read(_annotated).state_type is State


def test_returns_wins_over_the_annotation():
    """Proves that a type given by hand is taken, whatever the annotation says."""
    assert read(asynchronous, returns=dict[str, int]).returns == dict[str, int]
    assert read(asynchronous, returns=None).decoder.decode(b"\xc0", what="x") is None


def test_a_type_hidden_in_a_function_is_told():
    """Proves that an unresolvable output type names the cause and the remedy, and that `returns=` is one."""

    class Local(msgspec.Struct):
        pass

    async def handler(ctx: StepContext[In, State]) -> Local:
        raise AssertionError

    with pytest.raises(DefinitionError, match=r"local to a function cannot be seen.*pass returns=") as caught:
        read(handler)
    assert "workflow 'order', step 'charge'" in str(caught.value)
    assert "'Local'" in str(caught.value)
    assert read(handler, returns=Local).returns is Local


def test_a_type_hidden_in_another_type_is_told():
    """Proves that a class whose own fields cannot be resolved is refused when it is defined."""

    class Inner(msgspec.Struct):
        pass

    class Outer(msgspec.Struct):
        inner: Inner

    with pytest.raises(DefinitionError, match=r"cannot be stored.*Inner"):
        read(silent, returns=Outer)


def test_a_local_type_the_handler_closes_over_is_seen():
    """Proves that variables of enclosing functions count when the handler uses them."""

    class Local(msgspec.Struct):
        pass

    async def handler(ctx: StepContext[Local, State]) -> list[Local]:
        return [Local()]

    info = read(handler)
    assert (info.returns, info.input_type) == (list[Local], Local)


def test_one_unresolvable_annotation_does_not_hide_the_others():
    """Proves that a context type known only to type checkers leaves the output type readable."""

    async def handler(ctx: StepContext[Unseen, State]) -> State:
        return State()

    info = read(handler)
    assert (info.returns, info.input_type, info.state_type) == (State, UNSET, UNSET)


def test_any_tells_nothing_about_the_context():
    """Proves that Any as a parameter of StepContext counts as untold."""

    def handler(ctx: StepContext[In, Any]) -> int:
        return 1

    def bare(ctx: StepContext) -> int:  # type: ignore[type-arg]
        return 1

    assert (read(handler).input_type, read(handler).state_type) == (In, UNSET)
    assert (read(bare).input_type, read(bare).state_type) == (UNSET, UNSET)


class Methods:
    async def bound(self, ctx: StepContext[In, State]) -> State:
        return State()

    @staticmethod
    def static(ctx: StepContext[In, State]) -> State:
        return State()

    @classmethod
    async def of_class(cls, ctx: StepContext[In, State]) -> State:
        return State()

    async def __call__(self, ctx: StepContext[In, State]) -> State:
        return State()


async def _with_more(prefix: str, ctx: StepContext[In, State], *, flag: bool = False) -> State:
    return State()


def _logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def _injected(function):
    @functools.wraps(function)
    async def wrapper(ctx):
        return await function("db", ctx)

    return wrapper


@pytest.mark.parametrize(
    ("handler", "is_async"),
    [
        (Methods().bound, True),
        (Methods.static, False),
        (Methods.of_class, True),
        (Methods(), True),
        (functools.partial(_with_more, "x"), True),
        (functools.partial(functools.partial(_with_more, flag=True), "x"), True),
        (functools.partial(Methods()), True),
        (_logged(asynchronous), True),
        (_logged(_logged(Methods().bound)), True),
        (functools.partial(_logged(_with_more), "x"), True),
        (functools.lru_cache(Methods.static), False),
    ],
)
def test_every_kind_of_callable_is_read(handler, is_async):
    """Proves that methods, partials, wrappers and callable objects are read like functions."""
    info = read(handler)
    assert info.is_async is is_async
    if info.returns != list[State]:
        assert info.returns is State
    assert (info.input_type, info.state_type) == (In, State)


def test_a_wrapper_may_hide_parameters():
    """Proves that a decorator which supplies arguments counts with its own parameters."""
    info = read(_injected(_with_more))
    assert (info.is_async, info.returns) == (True, State)


def _generator(ctx):
    yield 1


async def _async_generator(ctx):
    yield 1


class _Yields:
    def __call__(self, ctx):
        yield 1


@pytest.mark.parametrize(
    ("handler", "why"),
    [
        ("charge", "must be a function of the step context"),
        (None, "must be a function of the step context"),
        (State, "is a class"),
        (lambda: None, "exactly one argument"),
        (lambda one, two: None, "exactly one argument"),
        (lambda *, ctx: None, "exactly one argument"),
        (_with_more, "exactly one argument"),
        (functools.partial(silent, 1), "exactly one argument"),
        (Methods.bound, "exactly one argument"),
        (_generator, "is a generator"),
        (_async_generator, "is a generator"),
        (functools.partial(_generator), "is a generator"),
        (_Yields(), "is a generator"),
    ],
)
def test_what_cannot_be_a_handler_is_refused(handler, why):
    """Proves that wrong arity, classes and generators are refused when they are defined."""
    with pytest.raises(DefinitionError, match=f"workflow 'order', step 'charge': .*{why}"):
        read(handler)


def test_more_parameters_with_defaults_are_fine():
    """Proves that only a call with the context alone has to work."""
    assert read(lambda ctx, retries=3, *rest, flag=False: None).returns is Any
    assert read(len).returns is Any


@pytest.mark.parametrize("returns", [complex, list[complex], "int ||", type])
def test_an_output_type_that_cannot_be_stored_is_refused(returns):
    """Proves that the decoder is made at definition time, so that no run finds out."""
    with pytest.raises(DefinitionError, match="cannot be stored") as caught:
        read(silent, returns=returns)
    assert caught.value.meta["option"] == "returns"
