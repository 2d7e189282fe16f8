"""Signals: named, typed messages that a run waits for."""

from __future__ import annotations

from typing import Any, Generic, Never, TypeVar, overload

from typing_extensions import TypeForm

from streamline_trio._core import payload
from streamline_trio._core.errors import DefinitionError, ValidationError

T = TypeVar("T")

MAX_NAME = 200


class Signal(Generic[T]):
    """A message's name and the type of its payload; immutable.

    The name is 1 to 200 printable characters without white space. A payload is seen by the
    run as rebuilt in `type`; without one, as plain data.
    """

    __slots__ = ("decoder", "name", "type")

    name: str
    type: Any
    decoder: payload.Decoder
    """Reads stored payloads of this signal."""

    @overload
    def __init__(self: Signal[Any], name: str) -> None: ...
    @overload
    def __init__(self, name: str, type: TypeForm[T]) -> None: ...
    def __init__(self, name: str, type: object = Any) -> None:
        fault = _fault_of(name)
        if fault is not None:
            raise DefinitionError(fault, signal=str(name))
        try:
            decoder = payload.decoder(type)
        except TypeError as error:
            raise DefinitionError(
                f"signal {name!r}: its type {type!r} cannot be stored: {error}", signal=name
            ) from error
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "type", type)
        object.__setattr__(self, "decoder", decoder)

    def __setattr__(self, name: str, value: object) -> Never:
        raise AttributeError(f"a Signal cannot be changed: {name}")

    def __delattr__(self, name: str) -> Never:
        raise AttributeError(f"a Signal cannot be changed: {name}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Signal, (self.name, self.type)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Signal):
            return NotImplemented
        return self.name == other.name and self.type == other.type

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"Signal({self.name!r}, {getattr(self.type, '__name__', self.type)})"


def signal_name(signal: Signal[Any] | str) -> str:
    """The name of a signal given as such or by name; a bad name is a `ValidationError`."""
    if isinstance(signal, Signal):
        return signal.name
    fault = _fault_of(signal)
    if fault is not None:
        raise ValidationError(fault, signal=str(signal))
    return signal


def _fault_of(name: object) -> str | None:
    if not isinstance(name, str):
        return f"a signal's name must be text, not {name!r}"
    if not 1 <= len(name) <= MAX_NAME:
        return f"a signal's name has 1 to {MAX_NAME} characters, but {name[:MAX_NAME]!r} has {len(name)}"
    if not name.isprintable() or any(map(str.isspace, name)):
        return f"a signal's name has neither white space nor control characters, unlike {name!r}"
    return None
