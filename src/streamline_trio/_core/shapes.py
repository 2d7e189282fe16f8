"""Types described as stored data.

A process that has no classes of an application (a client, the CLI, a worker of another version) can still
check that a payload fits: `describe` writes down what a type accepts, `check` builds an equivalent type from
that and decodes the payload with it.

A shape accepts whatever `payload.decoder(type)` accepts, and refuses what it refuses, apart from the code it
cannot carry: `__post_init__` and other constructors, and the hashing that a set or a key asks of its items.
An enum that finds members by code of its own (`_missing_`, flags) is described by the kind of its values, a
path as text. Recursive types keep their recursion. Names of classes are not kept, so renaming a class leaves
its shape as it is, except where the name is the tag.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from collections import namedtuple
from functools import lru_cache
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    TypeAlias,
    TypedDict,
    Union,
    assert_never,
    cast,
)

import msgspec
import msgspec.inspect as mi

from streamline_trio._core.errors import ValidationError
from streamline_trio._core.payload import ISO_TYPES, Decoder, decoder, type_tree

Limits: TypeAlias = dict[str, bool | int | float | str]
"""The arguments of a `msgspec.Meta`."""

_LIMITS = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern", "tz")


class _Stored(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    pass


class _Node(_Stored, frozen=True, tag_field="t"):
    pass


class Leaf(_Node, frozen=True, tag="leaf"):
    """A value without parts; a kind that is not known here is as good as `Any`."""

    kind: str
    limits: Limits = {}


class Choice(_Node, frozen=True, tag="choice"):
    """One of some values: a literal, or an enum by its values."""

    values: tuple[bool | int | str | None, ...]


class Many(_Node, frozen=True, tag="many"):
    """Any number of items of one kind: a list, a set, a tuple of any length."""

    item: Node
    limits: Limits = {}


class Row(_Node, frozen=True, tag="row"):
    """A tuple of fixed length."""

    items: tuple[Node, ...]


class Table(_Node, frozen=True, tag="table"):
    """A dict."""

    key: Node
    value: Node
    limits: Limits = {}


class Either(_Node, frozen=True, tag="either"):
    """A union."""

    options: tuple[Node, ...]


class Ref(_Node, frozen=True, tag="ref"):
    """A record, by its place in `Shape.records`; so a record can hold itself."""

    record: int


Node: TypeAlias = Leaf | Choice | Many | Row | Table | Either | Ref


class Part(_Stored, frozen=True):
    """A field of a record."""

    name: str
    node: Node
    required: bool = True


class Record(_Stored, frozen=True):
    """A class with fields, of the kind that decides how it is stored."""

    kind: Literal["struct", "dataclass", "typeddict", "namedtuple"]
    parts: tuple[Part, ...]
    tag_field: str | None = None
    tag: str | int | None = None
    array_like: bool = False
    forbid_unknown: bool = False


class Shape(_Stored, frozen=True):
    """A whole type."""

    root: Node
    records: tuple[Record, ...] = ()


_SIMPLE: tuple[tuple[str, type[mi.Type], Any], ...] = (
    ("null", mi.NoneType, type(None)),
    ("bool", mi.BoolType, bool),
    ("int", mi.IntType, int),
    ("float", mi.FloatType, float),
    ("str", mi.StrType, str),
    ("bytes", mi.BytesType, bytes),
    ("bytes", mi.ByteArrayType, bytes),
    ("bytes", mi.MemoryViewType, bytes),
    ("datetime", mi.DateTimeType, dt.datetime),
    ("date", mi.DateType, dt.date),
    ("time", mi.TimeType, dt.time),
    ("timedelta", mi.TimeDeltaType, dt.timedelta),
    ("uuid", mi.UUIDType, uuid.UUID),
    ("decimal", mi.DecimalType, decimal.Decimal),
    ("ext", mi.ExtType, msgspec.msgpack.Ext),
    ("raw", mi.RawType, msgspec.Raw),
)
_KINDS: dict[type[mi.Type], str] = {node: kind for kind, node, _ in _SIMPLE}
_LEAVES: dict[str, Any] = {kind: type_ for kind, _, type_ in _SIMPLE} | ISO_TYPES

_RECORD_KINDS: dict[type[mi.Type], Literal["struct", "dataclass", "typeddict", "namedtuple"]] = {
    mi.StructType: "struct",
    mi.DataclassType: "dataclass",
    mi.TypedDictType: "typeddict",
    mi.NamedTupleType: "namedtuple",
}


def describe(type_: Any) -> bytes:
    """The shape of a type: equal types give equal bytes in every process.

    Raises `TypeError` for a type whose values cannot be rebuilt from stored data.
    """
    describer = _Describer()
    root = describer.node(type_tree(decoder(type_).type))
    records = tuple(describer.records[index] for index in range(len(describer.records)))
    return msgspec.msgpack.encode(Shape(root=root, records=records))


def check(shape: bytes, payload: bytes, *, what: str) -> None:
    """Raise `ValidationError`, with the path, unless `payload` fits `shape`.

    A shape of a later release that holds what is not known here accepts what `Any` does.
    """
    try:
        checker = _checker(shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValidationError(f"{what}: its stored shape cannot be read: {error}", what=what) from error
    checker.decode(payload, what=what)


@lru_cache(maxsize=256)
def _checker(shape: bytes) -> Decoder:
    try:
        stored = msgspec.msgpack.decode(shape, type=Shape)
    except msgspec.ValidationError:
        return decoder(Any)
    try:
        return Decoder(_rebuilt(stored))
    except (TypeError, ValueError):
        return decoder(Any)


class _Describer:
    def __init__(self) -> None:
        self.records: dict[int, Record] = {}
        self._places: dict[int, int] = {}

    def node(self, tree: mi.Type) -> Node:  # noqa: PLR0911 - a line per kind
        match tree:
            case mi.Metadata():
                return self.node(tree.type)
            case mi.LiteralType():
                return Choice(values=tuple(tree.values))
            case mi.EnumType():
                return _enum(tree.cls)
            case mi.CollectionType():
                return Many(item=self.node(tree.item_type), limits=_limits(tree))
            case mi.TupleType():
                return Row(items=tuple(self.node(item) for item in tree.item_types))
            case mi.DictType():
                return Table(key=self.node(tree.key_type), value=self.node(tree.value_type), limits=_limits(tree))
            case mi.UnionType():
                # typing may hand out an equal union in another order, so its order says nothing.
                return Either(options=tuple(self.node(option) for option in sorted(tree.types, key=_option_order)))
            case mi.StructType() | mi.DataclassType() | mi.TypedDictType() | mi.NamedTupleType():
                return self._reference(tree)
            case mi.CustomType():
                return Leaf(kind=_custom_kind(tree.cls))
            case _:
                return Leaf(kind=_KINDS.get(type(tree), "any"), limits=_limits(tree))

    def _reference(self, tree: Any) -> Ref:
        place = self._places.get(id(tree))
        if place is None:
            place = self._places[id(tree)] = len(self._places)
            self.records[place] = Record(
                kind=_RECORD_KINDS[type(tree)],
                parts=tuple(self._part(field) for field in tree.fields),
                tag_field=getattr(tree, "tag_field", None),
                tag=getattr(tree, "tag", None),
                array_like=getattr(tree, "array_like", False),
                forbid_unknown=getattr(tree, "forbid_unknown_fields", False),
            )
        return Ref(record=place)

    def _part(self, field: mi.Field) -> Part:
        return Part(name=field.encode_name, node=self.node(field.type), required=field.required)


def _limits(tree: mi.Type) -> Limits:
    limits = {name: getattr(tree, name, None) for name in _LIMITS}
    return {name: limit for name, limit in limits.items() if limit is not None}


def _enum(cls: type[enum.Enum]) -> Choice | Leaf:
    values = tuple(member.value for member in cls.__members__.values())
    if _missing(cls) is not _missing(enum.Enum):
        return Leaf(kind="int" if isinstance(values[0], int) else "str")
    return Choice(values=values)


def _missing(cls: type[enum.Enum]) -> object:
    return getattr(cls._missing_, "__func__", None)


def _option_order(tree: mi.Type) -> tuple[str, str]:
    return type(tree).__name__, str(getattr(tree, "cls", ""))


def _custom_kind(cls: type[Any]) -> str:
    if cls is object:
        return "any"
    return cls.__name__ if ISO_TYPES.get(cls.__name__) is cls else "str"


def _rebuilt(shape: Shape) -> Any:
    """A type that accepts what the shape says. Records begin empty, since they may hold each other."""
    classes = [_empty_class(record) for record in shape.records]
    for cls, record in zip(classes, shape.records, strict=True):
        cls.__annotations__ = {
            name: _type(part.node, classes) for name, part in zip(cls.__annotations__, record.parts, strict=True)
        }
    return _type(shape.root, classes)


def _empty_class(record: Record) -> Any:
    """A class with the record's fields in order, each still `Any`; frozen, since it may be a key."""
    match record.kind:
        case "struct":
            return _empty_struct(record)
        case "dataclass":
            fields = [(part.name, Any, _dataclass_field(part)) for part in record.parts]
            return dataclasses.make_dataclass("Row", fields, frozen=True, kw_only=True)
        case "typeddict":
            keys = {part.name: Required[Any] if part.required else NotRequired[Any] for part in record.parts}
            return cast("Any", TypedDict)("Row", keys)
        case "namedtuple":
            return _empty_namedtuple(record)


def _empty_struct(record: Record) -> Any:
    names = [f"f{index}" for index in range(len(record.parts))]
    fields = [
        (name, Any) if part.required else (name, Any, None) for name, part in zip(names, record.parts, strict=True)
    ]
    return msgspec.defstruct(
        "Row",
        cast("Any", fields),
        frozen=True,
        kw_only=True,
        rename={name: part.name for name, part in zip(names, record.parts, strict=True)},
        tag_field=record.tag_field,
        tag=record.tag,
        array_like=record.array_like,
        forbid_unknown_fields=record.forbid_unknown,
    )


def _empty_namedtuple(record: Record) -> Any:
    names = [f"f{index}" for index in range(len(record.parts))]
    defaults = [None for part in record.parts if not part.required]
    cls: Any = namedtuple("Row", names, defaults=defaults)  # type: ignore[misc]  # noqa: PYI024 - has defaults
    cls.__annotations__ = dict.fromkeys(names, Any)
    return cls


def _dataclass_field(part: Part) -> Any:
    return dataclasses.field() if part.required else dataclasses.field(default=None)


def _type(node: Node, classes: list[Any]) -> Any:  # noqa: PLR0911 - a line per kind
    match node:
        case Leaf():
            return _limited(_LEAVES.get(node.kind, Any), node.limits)
        case Choice():
            return cast("Any", Literal)[node.values]
        case Many():
            # A tuple takes what a list or a set takes, and unlike them it may hold or be a key.
            return _limited(cast("Any", tuple)[_type(node.item, classes), ...], node.limits)
        case Row():
            return cast("Any", tuple)[tuple(_type(item, classes) for item in node.items)]
        case Table():
            pair = _type(node.key, classes), _type(node.value, classes)
            return _limited(cast("Any", dict)[pair], node.limits)
        case Either():
            return cast("Any", Union)[tuple(_type(option, classes) for option in node.options)]
        case Ref():
            return classes[node.record]
        case _:
            assert_never(node)


def _limited(type_: Any, limits: Limits) -> Any:
    if not limits or type_ is Any:
        return type_
    return cast("Any", Annotated)[type_, msgspec.Meta(**cast("dict[str, Any]", limits))]
