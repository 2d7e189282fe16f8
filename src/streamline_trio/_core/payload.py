"""User values as opaque bytes.

Inputs, states, outputs, signal payloads and checkpoints travel through the engine as msgpack bytes. They
become Python objects only where user code sees them, and user code always sees `decode(encode(value))`, live
or recovered: the same types, and nothing shared that could be changed behind the engine's back.

What can be stored is what msgspec can (plain data, dates, `Decimal`, `UUID`, enums, `Struct`, dataclasses,
attrs, `NamedTuple`, `TypedDict`), the types of `whenever` and paths. What comes back is ruled by the declared
type: under `Any` a tuple or a set is a list, and a type that is stored as text is that text. Aware datetimes
come back in UTC.
"""

from __future__ import annotations

import dataclasses
import inspect
import reprlib
from collections.abc import Callable, Iterator
from datetime import date, datetime
from functools import lru_cache
from pathlib import PurePath
from typing import Any, NamedTuple, TypeAlias, final

import msgspec
import msgspec.inspect as mi
import whenever

from streamline_trio._core.errors import ValidationError

Payload: TypeAlias = bytes
"""A value in msgpack."""

_ISO_NAMES = (
    "Date",
    "Instant",
    "IsoWeekDate",
    "ItemizedDateDelta",
    "ItemizedDelta",
    "MonthDay",
    "OffsetDateTime",
    "PlainDateTime",
    "Time",
    "TimeDelta",
    "YearMonth",
    "ZonedDateTime",
)
# Not every release of `whenever` has all of them.
ISO_TYPES: dict[str, Any] = {name: getattr(whenever, name) for name in _ISO_NAMES if hasattr(whenever, name)}
"""The types of `whenever`, by the name that stored shapes use; each is stored as its ISO text."""

_ISO_CLASSES = frozenset(ISO_TYPES.values())

# msgspec takes these, but not their subclasses (numpy.float64): such a value is stored as its base.
_BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, lambda value: bytes(memoryview(value))),
    (datetime, lambda value: datetime.combine(value.date(), value.timetz())),
    (date, lambda value: date(value.year, value.month, value.day)),
)

_STEPS_TOLD = 24


def _to_storable(value: Any) -> Any:
    if type(value) in _ISO_CLASSES:
        return value.format_iso()
    if isinstance(value, PurePath):
        return str(value)
    for base, convert in _BASES:
        if isinstance(value, base):
            return convert(value)
    raise TypeError(f"cannot store {_a(value)}")


def _from_stored(type_: type[Any], value: Any) -> Any:
    if type_ is object:
        return value
    if not isinstance(value, str):
        raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
    return type_.parse_iso(value) if type_ in _ISO_CLASSES else type_(value)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_to_storable)


def encode(value: object, *, what: str) -> Payload:
    """The bytes of `value`; `what` says in an error which value it is ("the output of step 'pay'").

    Raises `ValidationError` with the path of the first part that cannot be stored.
    """
    try:
        return _ENCODER.encode(value)
    except Exception as error:
        path, why = _first_unstorable(value) or ("$", _told(error))
        raise ValidationError(f"{what}: {path}: {why}", what=what, path=path) from error


NULL: Payload = encode(None, what="None")
"""The bytes of `None`."""


@final
class Decoder:
    """Rebuilds values of one type from their bytes; may be shared between threads.

    Raises `TypeError` when values of the type cannot be rebuilt. `type` is the type asked for, `Any` where
    there was no annotation (`inspect.Parameter.empty`).
    """

    __slots__ = ("_decode", "type")

    def __init__(self, type_: Any) -> None:
        self.type: Any = Any if type_ is inspect.Parameter.empty else type_
        type_tree(self.type)
        self._decode = msgspec.msgpack.Decoder(self.type, dec_hook=_from_stored).decode

    def __repr__(self) -> str:
        return f"Decoder({self.type!r})"

    def decode(self, payload: bytes, *, what: str) -> Any:
        """The value in `payload`. Raises `ValidationError` with the path of what does not fit the type."""
        try:
            return self._decode(payload)
        except Exception as error:  # the constructor of a user's class may raise anything
            text = _told(error)
            path = text.rpartition(" - at ")[2].replace("`", "") if " - at `" in text else "$"
            raise ValidationError(f"{what}: {text}", what=what, path=path) from error


def decoder(type_: Any) -> Decoder:
    """The decoder of a type, made once per type. Raises `TypeError` for a type that cannot be rebuilt."""
    try:
        hash(type_)
    except TypeError:
        return Decoder(type_)
    return _cached_decoder(type_)


@lru_cache(maxsize=1024)
def _cached_decoder(type_: Any) -> Decoder:
    return Decoder(type_)


def rebuild(value: object, type_: Any, *, what: str) -> Any:
    """`value` as it will be read back: decoded as `type_` from its bytes. Raises `ValidationError`."""
    return decoder(type_).decode(encode(value, what=what), what=what)


def convert_input(value: object, type_: Any, *, what: str) -> Payload:
    """The bytes of `value` as a `type_`, with defaults filled in.

    `value` is an instance, or plain data that fits (a dict for a `Struct`). Raises `ValidationError`.
    """
    return encode(rebuild(value, type_, what=what), what=what)


def type_tree(type_: Any) -> mi.Type:
    """A type as msgspec describes it. Raises `TypeError` if its values could not be rebuilt."""
    try:
        tree = mi.type_info(type_)
    except NameError as error:
        hint = "annotations are looked up in the module, where a class local to a function is not seen"
        raise TypeError(f"{type_!r} cannot be the type of a stored value: {error} ({hint})") from error
    except Exception as error:
        raise TypeError(f"{type_!r} cannot be the type of a stored value: {error}") from error
    for node in _nodes(tree):
        if why := _not_rebuildable(node):
            raise TypeError(f"{type_!r} cannot be the type of a stored value: {why}")
    return tree


def _nodes(tree: mi.Type) -> Iterator[mi.Type]:
    """Every node once: a recursive type refers to its own node."""
    seen: set[int] = set()
    pending: list[Any] = [tree]
    while pending:
        node = pending.pop()
        kind = _class_of(node)
        if kind is tuple:
            pending.extend(node)
        elif kind is mi.Field:
            pending.append(node.type)
        elif isinstance(node, mi.Type) and id(node) not in seen:
            seen.add(id(node))
            yield node
            pending.extend(getattr(node, name) for name in node.__struct_fields__)


def _not_rebuildable(node: mi.Type) -> str | None:
    if isinstance(node, mi.CustomType) and not _is_known(node.cls):
        return f"a {node.cls!r} cannot be rebuilt from stored data"
    if isinstance(node, mi.DataclassType) and hasattr(node.cls, "__attrs_attrs__"):
        # msgspec leaves these out when it encodes, so the value would be lost without a word.
        private = [field.name for field in node.fields if field.name.startswith("_")]
        return f"attrs does not store the private field {private[0]!r} of {node.cls!r}" if private else None
    return None


def _is_known(cls: Any) -> bool:
    return cls is object or cls in _ISO_CLASSES or (isinstance(cls, type) and issubclass(cls, PurePath))


def _class_of(value: object) -> type[Any]:
    return type(value)


class _Part(NamedTuple):
    """A part of a value, with the way that leads to it."""

    value: Any
    step: str
    whole: _Part | None

    def ancestors(self) -> Iterator[_Part]:
        part = self.whole
        while part is not None:
            yield part
            part = part.whole

    def path(self) -> str:
        steps = [part.step for part in (self, *self.ancestors())][::-1]
        if len(steps) > _STEPS_TOLD:
            steps[_STEPS_TOLD // 2 : -_STEPS_TOLD // 2] = ["…"]
        return "".join(steps)


def _first_unstorable(value: object) -> tuple[str, str] | None:
    """Path and fault of the first part that cannot be stored; no recursion, since `value` may be a cycle."""
    pending = [_Part(value, "$", None)]
    seen: dict[int, object] = {}
    while pending:
        part = pending.pop()
        if id(part.value) in seen:
            if any(part.value is ancestor.value for ancestor in part.ancestors()):
                return part.path(), "cannot store a value that contains itself"
            continue
        inner = _inner_parts(part.value)
        if inner is None:
            if fault := _fault(part.value):
                return part.path(), fault
            continue
        seen[id(part.value)] = part.value
        pending.extend(_Part(child, step, part) for step, child in reversed(inner))
    return None


def _inner_parts(value: Any) -> list[tuple[str, Any]] | None:
    """The parts of a container with the step that leads to each, or None for a leaf."""
    kind = _class_of(value)
    if issubclass(kind, dict):
        return [part for key, item in value.items() for part in ((".<key>", key), (_key_step(key), item))]
    if issubclass(kind, list | tuple):
        return [(f"[{index}]", item) for index, item in enumerate(value)]
    if issubclass(kind, set | frozenset):
        return [("[...]", item) for item in value]
    names = None if isinstance(value, type) else _field_names(value)
    if names is None:
        return None
    parts = [(f".{name}", getattr(value, name, msgspec.UNSET)) for name in names]
    return [(step, part) for step, part in parts if part is not msgspec.UNSET]


def _field_names(value: Any) -> list[str] | None:
    if isinstance(value, msgspec.Struct):
        return list(value.__struct_fields__)
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value)]
    attributes: Any = getattr(_class_of(value), "__attrs_attrs__", None)
    return None if attributes is None else [attribute.name for attribute in attributes]


def _key_step(key: Any) -> str:
    if isinstance(key, str) and key.isidentifier():
        return f".{key}"
    return f"[{reprlib.repr(key)}]" if isinstance(key, str | bytes | int | float | None) else "[...]"


def _fault(leaf: Any) -> str | None:
    try:
        _ENCODER.encode(leaf)
    except TypeError:
        return f"cannot store {_a(leaf)}"
    except OverflowError:
        return "cannot store an integer outside -2**63 to 2**64 - 1"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return f"cannot store this {type(leaf).__name__}: {error}"
    return None


def _a(value: Any) -> str:
    """How an unstorable value is called in an error; a class is told from its instances."""
    if value is msgspec.UNSET:
        return "UNSET outside a field"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _told(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error) if isinstance(error, msgspec.MsgspecError) else f"{type(error).__name__}: {error}"
