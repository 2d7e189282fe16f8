"""Types as stored data: a shape accepts and refuses what the type it describes does."""

import inspect
import os
import pathlib
import subprocess
import sys
import typing
import uuid
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag, IntEnum
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, Optional, TypedDict, TypeVar

import attrs
import msgspec
import pytest
import whenever
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from streamline_trio._core.errors import ValidationError
from streamline_trio._core.payload import ISO_TYPES, NULL, decoder, encode
from streamline_trio._core.shapes import Leaf, Shape, check, describe

T = TypeVar("T")


class Colour(Enum):
    red = "r"
    blue = "b"


class Level(IntEnum):
    low = 1
    high = 2


class Mode(Flag):
    read = 1
    write = 2


class Lenient(Enum):
    known = "known"
    other = "other"

    @classmethod
    def _missing_(cls, _value: object) -> "Lenient":
        return cls.other


class Item(msgspec.Struct, frozen=True):
    name: str
    count: int = 1


class Picky(msgspec.Struct):
    name: str

    def __post_init__(self) -> None:
        if self.name == "a":
            raise ValueError("not a")


class Tree(msgspec.Struct):
    value: int
    left: "Tree | None" = None
    children: "list[Tree]" = []


class Closed(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    first_name: str
    last_name: str | msgspec.UnsetType = msgspec.UNSET


class Card(msgspec.Struct, tag=True, tag_field="kind"):
    number: str


class Cash(msgspec.Struct, tag="cash", tag_field="kind"):
    amount: Decimal
    change: "Card | Cash | None" = None


class Numbered(msgspec.Struct, tag=7):
    x: int


class Packed(msgspec.Struct, array_like=True):
    x: int
    y: str = ""


class TightlyPacked(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=True):
    x: int


class Boxed(msgspec.Struct, Generic[T]):
    content: T
    next: "Boxed[T] | None" = None


class Keyed(TypedDict):
    key: str
    extra: NotRequired[int]


Dashed = TypedDict("Dashed", {"a-b": int, "class": str})


class Point(NamedTuple):
    x: int
    y: int = 0


@dataclass(frozen=True)
class Spot:
    x: int
    tag: str = ""


@dataclass
class Order:
    id: uuid.UUID
    lines: list[Item] = field(default_factory=list)
    parent: "Order | None" = None


@attrs.define
class Parcel:
    weight: float
    fragile: bool = False


TYPES: list[Any] = [
    Any,
    object,
    None,
    bool,
    int,
    float,
    str,
    bytes,
    bytearray,
    memoryview,
    datetime,
    date,
    time,
    timedelta,
    uuid.UUID,
    Decimal,
    msgspec.Raw,
    msgspec.msgpack.Ext,
    int | None,
    int | str | None,
    float | bool | list[int] | dict[str, int],
    Any | None,
    list,
    list[int],
    tuple[()],
    tuple[int, ...],
    tuple[int, str],
    set[int],
    frozenset[tuple[int, int]],
    dict,
    dict[int, str],
    dict[tuple[int, ...], str],
    dict[Item, int],
    dict[Spot, int],
    dict[date, int],
    typing.Sequence[typing.Mapping[str, int]],
    Literal["a", 1, None],  # noqa: PYI061 - the form is what is tested
    Literal[True],
    Literal["a"] | Literal["b"],  # noqa: PYI030 - the form is what is tested
    Colour,
    Colour | int | None,
    Level,
    Mode,
    Lenient,
    Lenient | None,
    list[Picky],
    set[list[int]],
    Annotated[int, Meta(ge=0, lt=10)],
    Annotated[int, Meta(gt=0, le=10, multiple_of=2)],
    Annotated[float, Meta(ge=0.5)],
    Annotated[str, Meta(min_length=1, max_length=2)],
    Annotated[str, Meta(pattern="^a+$")],
    Annotated[bytes, Meta(max_length=1)],
    Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)],
    Annotated[set[int], Meta(max_length=1)],
    Annotated[dict[str, int], Meta(min_length=1)],
    Annotated[datetime, Meta(tz=True)],
    Annotated[datetime, Meta(tz=False)],
    Optional[Annotated[int, Meta(description="how many", ge=1)]],  # noqa: UP045 - pyright reads no other
    Item,
    list[Item],
    dict[str, Item | None],
    Tree,
    Closed,
    Card,
    Card | Cash,
    Numbered,
    Numbered | Point | None,
    Packed,
    TightlyPacked,
    Packed | Keyed,
    Boxed[int],
    Boxed[str],
    Boxed,
    Keyed,
    Dashed,
    Point,
    Point | Item,
    Spot,
    Order,
    Order | list[int],
    Parcel,
    whenever.Instant,
    whenever.Date | None,
    dict[whenever.Date, whenever.TimeDelta],
    pathlib.PurePosixPath,
]

# Their own code refuses what their shape cannot know.
BY_CODE = [Mode, list[Picky], set[list[int]]]

VALUES: list[Any] = [
    None, True, False, 0, 1, 2, 3, 7, 10, -1, 1.0, 0.25, 2**64 - 1,
    "", "a", "b", "aa", "aaa", "r", "b", "known", "2024-01-01", "PT3H", "1.10", str(uuid.UUID(int=1)),
    "2024-01-01T00:00:00Z", "2024-01-01T00:00:00", "01:02:03",
    b"", b"x", b"xy", msgspec.msgpack.Ext(5, b"x"),
    datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1), date(2024, 1, 1), time(1), timedelta(hours=3),  # noqa: DTZ001
    [], [1], [-1], [1, 2], [1, 1], [1, "x"], [1, "x", 2], ["a"], [[1, 2]], [None],
    ["TightlyPacked", 1], ["TightlyPacked", 1, 2], [{"name": "a"}], [{"a": 1}], [{"a": "x"}],
    {}, {"a": 1}, {"a": "x"}, {"a": None}, {1: "a"}, {(1, 2): "a"}, {(1, "x"): "a"}, {"2024-01-01": 1},
    {"2024-01-01": "PT3H"}, {"a": {"name": "x"}}, {"a": {"name": 1}},
    {"name": "a"}, {"name": "a", "count": 2}, {"name": "a", "count": "2"}, {"name": None}, {"count": 1},
    {"name": "a", "unknown": 1},
    {"value": 1}, {"value": 1, "left": {"value": 2, "left": None}}, {"value": 1, "left": {"value": "x"}},
    {"value": 1, "children": [{"value": 2, "children": [{"value": 3}]}]},
    {"value": 1, "children": [{"value": 2, "children": [{"value": None}]}]},
    {"firstName": "a"}, {"firstName": "a", "lastName": "b"}, {"firstName": "a", "lastName": None},
    {"first_name": "a"}, {"firstName": "a", "unknown": 1},
    {"kind": "Card", "number": "1"}, {"kind": "Card"}, {"kind": "cash", "amount": "1.1"}, {"number": "1"},
    {"kind": "cash", "amount": "1.1", "change": {"kind": "Card", "number": "1"}},
    {"kind": "cash", "amount": "1.1", "change": {"kind": "Coin"}}, {"kind": "Coin"},
    {"type": 7, "x": 1}, {"type": 8, "x": 1}, {"x": 1}, {"x": 1, "tag": "t"}, {"x": "1"},
    {"content": 1}, {"content": "a"}, {"content": 1, "next": {"content": 2}},
    {"content": 1, "next": {"content": "a"}},
    {"key": "k"}, {"key": "k", "extra": 1}, {"key": "k", "extra": "1"}, {"key": "k", "more": 1}, {"key": 1},
    {"a-b": 1, "class": "x"}, {"a-b": 1}, {"a-b": "1", "class": "x"},
    {"id": str(uuid.UUID(int=1))}, {"id": "x"},
    {"id": str(uuid.UUID(int=1)), "lines": [{"name": "a"}], "parent": {"id": str(uuid.UUID(int=2))}},
    {"id": str(uuid.UUID(int=1)), "lines": [{"name": 1}]},
    {"id": str(uuid.UUID(int=1)), "parent": {"id": 3}},
    {"weight": 1.5}, {"weight": 1, "fragile": True}, {"weight": "1"},
    {Item(name="a"): 1}, {Item(name="a"): "1"}, {Spot(x=1): 1},
]  # fmt: skip

integers = st.integers(-(2**63), 2**64 - 1)
KEYS = [key for value in VALUES if isinstance(value, dict) for key in value if isinstance(key, str)]
words = st.text(max_size=3) | st.sampled_from(KEYS)
plain_data = st.recursive(
    st.sampled_from(VALUES[:36]) | integers | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
    max_leaves=10,
)
SHAPES = {index: describe(type_) for index, type_ in enumerate(TYPES)}


def verdict(act, *arguments):
    """The path that the value is refused at, or None when it is accepted."""
    try:
        act(*arguments, what="x")
    except ValidationError as error:
        return error.meta["path"]
    return None


def assert_agreement(index, payload):
    by_type = verdict(decoder(TYPES[index]).decode, payload)
    by_shape = verdict(check, SHAPES[index], payload)
    if TYPES[index] in BY_CODE:
        assert by_type is not None or by_shape is None
    else:
        assert by_shape == by_type


@pytest.mark.parametrize("index", range(len(TYPES)), ids=lambda index: str(TYPES[index])[:50])
def test_a_shape_agrees_with_its_type(index):
    """For every type form a shape accepts what its type does, and refuses the rest at the same path."""
    for value in VALUES:
        assert_agreement(index, encode(value, what="x"))


@given(index=st.sampled_from(range(len(TYPES))), value=plain_data)
def test_a_shape_agrees_with_its_type_on_any_data(index, value):
    """Whatever plain data is offered, shape and type give the same verdict."""
    assert_agreement(index, encode(value, what="x"))


@given(
    value=st.recursive(
        st.builds(Tree, value=integers, left=st.none(), children=st.just([])),
        lambda inner: st.builds(Tree, value=integers, left=st.none() | inner, children=st.lists(inner, max_size=2)),
        max_leaves=8,
    )
)
def test_a_recursive_value_fits_the_shape_of_its_type(value):
    """A recursive value of any form fits its recursive shape."""
    check(describe(Tree), encode(value, what="x"), what="x")


@pytest.mark.parametrize("name", sorted(ISO_TYPES))
def test_times_are_checked_by_their_own_rules(name):
    """A shape knows every type of whenever, and refuses text that is not one of its values."""
    with pytest.raises(ValidationError):
        check(describe(ISO_TYPES[name]), encode("nothing like it", what="x"), what="x")


@given(value=plain_data)
def test_any_accepts_everything(value):
    """The shape of Any, and of a missing annotation, accepts all plain data."""
    payload = encode(value, what="x")
    check(describe(Any), payload, what="x")
    check(describe(inspect.Parameter.empty), payload, what="x")


def test_a_refusal_names_the_value_and_the_path():
    """A payload that does not fit is refused with whose it is and where."""
    payload = encode({"kind": "cash", "amount": "1", "change": {"kind": "Card", "number": 5}}, what="x")
    with pytest.raises(
        ValidationError, match=r"the input: Expected `str`, got `int` - at `\$.change.number`"
    ) as caught:
        check(describe(Card | Cash), payload, what="the input")
    assert caught.value.meta == {"what": "the input", "path": "$.change.number"}


def test_damaged_payloads_are_refused():
    """Bytes that are no payload do not fit even the shape of Any."""
    with pytest.raises(ValidationError, match="the input: "):
        check(describe(Any), b"\xc1", what="the input")


def test_a_type_that_cannot_be_rebuilt_has_no_shape():
    """A type that no decoder can be made for has no shape either."""
    with pytest.raises(TypeError, match="cannot be the type of a stored value"):
        describe(list[complex])


def test_a_shape_does_not_tell_class_names():
    """Renaming a class leaves its shape as it is."""
    renamed = msgspec.defstruct("Renamed", [("name", str), ("count", int, 5)])
    assert describe(renamed) == describe(Item)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Item, msgspec.defstruct("Item", [("name", str), ("count", int)])),
        (int, Annotated[int, Meta(ge=0)]),
        (list[int], tuple[int, int]),
        (Card, Cash),
        (Literal[1], Literal[True]),
        (int, int | None),
    ],
    ids=repr,
)
def test_different_types_have_different_shapes(one, other):
    """A change of what is accepted changes the shape."""
    assert describe(one) != describe(other)


def test_the_order_of_a_union_does_not_matter():
    """Equal unions have equal shapes."""
    assert describe(int | str | None) == describe(None | str | int)
    assert describe(Card | Cash) == describe(Cash | Card)


def test_shapes_are_the_same_in_every_process():
    """Equal types give equal bytes under another hash seed."""
    code = "import tests.unit.test_shapes as t; print(''.join(shape.hex() for shape in t.SHAPES.values()))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


def test_a_shape_survives_without_the_classes():
    """A process that never saw the classes checks with the stored bytes alone."""
    payload = encode({"value": 1, "left": {"value": "x"}}, what="x")
    code = (
        f"from streamline_trio._core.shapes import check\ncheck({describe(Tree)!r}, {payload!r}, what='the input')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
        capture_output=True,
        text=True,
    )
    assert "ValidationError: the input: Expected `int`, got `str` - at `$.left.value`" in done.stderr


@pytest.mark.parametrize(
    "shape",
    [
        msgspec.msgpack.encode(Shape(root=Leaf(kind="quaternion", limits={"ge": 1}))),
        msgspec.msgpack.encode({"root": {"t": "stream", "of": 3}}),
        msgspec.msgpack.encode(Shape(root=Leaf(kind="bool", limits={"min_length": 1}))),
    ],
    ids=["kind", "node", "limit"],
)
def test_a_shape_of_a_later_release_accepts_everything(shape):
    """A shape that holds what this release does not know refuses nothing."""
    check(shape, encode({"a": 1}, what="x"), what="x")


@pytest.mark.parametrize("shape", [b"", b"\xc1", b"\x81", b"\x81\xa1\xff"])
def test_a_damaged_shape_is_told(shape):
    """Bytes that are no shape raise an error that says so."""
    with pytest.raises(ValidationError, match="the input: its stored shape cannot be read"):
        check(shape, NULL, what="the input")


def test_a_stored_shape_still_means_the_same():
    """What this release writes is read by later ones, so its form is pinned here."""
    first = {"name": "firstName", "node": {"t": "leaf", "kind": "str"}}
    last = {"name": "lastName", "node": {"t": "leaf", "kind": "str"}, "required": False}
    record = {"kind": "struct", "parts": [first, last], "forbid_unknown": True}
    stored = msgspec.msgpack.encode({"root": {"t": "ref", "record": 0}, "records": [record]})
    assert describe(Closed) == stored
    check(stored, encode(Closed(first_name="a"), what="x"), what="x")
    with pytest.raises(ValidationError, match="missing required field `firstName`"):
        check(stored, encode({}, what="x"), what="x")
