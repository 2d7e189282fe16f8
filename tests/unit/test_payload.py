"""Values as bytes: what can be stored, how it comes back, and what is said when it cannot."""

import inspect
import io
import math
import pathlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Flag, IntEnum, StrEnum
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Optional, TypedDict

import attrs
import msgspec
import pytest
import whenever
from hypothesis import given
from hypothesis import strategies as st

from streamline_trio._core.errors import ValidationError
from streamline_trio._core.payload import (
    ISO_TYPES,
    NULL,
    Decoder,
    convert_input,
    decoder,
    encode,
    rebuild,
)


class Colour(StrEnum):
    red = "r"
    blue = "b"


class Level(IntEnum):
    low = 1
    high = 2


class Mode(Flag):
    read = 1
    write = 2


class Item(msgspec.Struct, frozen=True):
    name: str
    count: int = 1
    labels: list[str] = []


class Tree(msgspec.Struct):
    value: int
    children: "list[Tree]" = []


class Card(msgspec.Struct, tag=True):
    number: str


class Cash(msgspec.Struct, tag=True):
    amount: Decimal


class Keyed(TypedDict):
    key: str
    extra: NotRequired[int]


class Point(NamedTuple):
    x: int
    y: int = 0


@dataclass
class Order:
    id: uuid.UUID
    lines: list[Item] = field(default_factory=list)
    note: str | None = None


@attrs.define
class Parcel:
    weight: float
    fragile: bool = False


@attrs.define
class Sealed:
    _secret: int


class Window(msgspec.Struct):
    opens: whenever.Instant
    zone: whenever.ZonedDateTime | None = None
    path: pathlib.PurePosixPath | None = None


class Picky(msgspec.Struct):
    value: int

    def __post_init__(self) -> None:
        if self.value == 13:
            raise KeyError("thirteen")


class Obliging:
    """Has every attribute that it is asked for."""

    def __getattr__(self, name: str) -> int:
        return 1


WHENEVER_VALUES = [
    whenever.Instant.from_utc(2024, 2, 29, 12, nanosecond=123_456_789),
    whenever.ZonedDateTime(2024, 10, 27, 2, 30, tz="Europe/Paris", disambiguation="later"),
    whenever.OffsetDateTime(2024, 1, 1, offset=whenever.TimeDelta(hours=5, minutes=30)),
    whenever.PlainDateTime(2024, 1, 1, 23, 59, nanosecond=1),
    whenever.Date(2024, 2, 29),
    whenever.Time(23, 59, 59, nanosecond=999_999_999),
    whenever.TimeDelta(hours=-3, nanoseconds=1),
    whenever.YearMonth(2024, 2),
    whenever.MonthDay(2, 29),
    whenever.ItemizedDelta(days=3, hours=4),
    whenever.ItemizedDateDelta(months=1, days=3),
    whenever.IsoWeekDate(2024, 9, whenever.Weekday.THURSDAY),
]

TYPED_VALUES: list[tuple[Any, Any]] = [
    (None, None),
    (None, type(None)),
    (None, str | None),
    ("x", Optional[str]),  # noqa: UP045 - the form is what is tested
    (3, Annotated[int, msgspec.Meta(ge=3)]),
    ("b", Literal["a", "b", 1, None]),  # noqa: PYI061 - the form is what is tested
    (True, Literal[True]),
    ([Item(name="a")], list[Item]),
    ({"a": Item(name="a", count=0)}, dict[str, Item]),
    ({1: "a", -1: "b"}, dict[int, str]),
    ({(1, 2): 3}, dict[tuple[int, int], int]),
    ({1, 2}, set[int]),
    (frozenset({"a"}), frozenset[str]),
    ({Item(name="a").name: Point(1, 2)}, dict[str, Point]),
    ((1, "a"), tuple[int, str]),
    ((1, 2, 3), tuple[int, ...]),
    (Tree(value=1, children=[Tree(value=2)]), Tree),
    (Card(number="1"), Card | Cash),
    (Cash(amount=Decimal("1.10")), Card | Cash | None),
    ({"key": "k"}, Keyed),
    (Point(1), Point),
    (Order(id=uuid.UUID(int=5), lines=[Item(name="a")]), Order),
    (Parcel(weight=1.5), Parcel),
    (Colour.blue, Colour),
    (Level.high, Level),
    (Mode.read | Mode.write, Mode),
    ({Colour.red: Level.low}, dict[Colour, Level]),
    (b"\x00\xff", bytes),
    (bytearray(b"x"), bytearray),
    (Decimal("0.30"), Decimal),
    (uuid.UUID(int=7), uuid.UUID),
    (datetime(2024, 1, 1, 12, 30, 1, 5), datetime),  # noqa: DTZ001 - the naive form is what is tested
    (datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=2))), datetime),
    (date(2024, 1, 1), date),
    (time(1, 2, 3), time),
    (timedelta(days=-1, microseconds=3), timedelta),
    (2**64 - 1, int),
    (-(2**63), int),
    (math.inf, float),
    (Window(opens=whenever.Instant.from_utc(2024, 1, 1), path=pathlib.PurePosixPath("/a/b")), Window),
    ({whenever.Date(2024, 1, 1): 1}, dict[whenever.Date, int]),
    (pathlib.Path("a") / "b", pathlib.Path),
    *((value, type(value)) for value in WHENEVER_VALUES),
]

integers = st.integers(-(2**63), 2**64 - 1)
items = st.builds(Item, count=integers)
trees = st.recursive(
    st.builds(Tree, value=integers, children=st.just([])),
    lambda inner: st.builds(Tree, value=integers, children=st.lists(inner, max_size=3)),
    max_leaves=10,
)
plain_leaves = (
    st.none()
    | st.booleans()
    | integers
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.just(UTC))
)
plain_keys = st.text() | integers
plain_data = st.recursive(
    plain_leaves,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(plain_keys, inner, max_size=5),
    max_leaves=40,
)


def refusal(value: object) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        encode(value, what="the input")
    return caught.value


@given(value=plain_data)
def test_plain_data_comes_back_unchanged(value):
    """Any plain data, falsy and nested values too, comes back equal and of the same type (S037)."""
    back = decoder(Any).decode(encode(value, what="x"), what="x")
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("value", [None, False, 0, 0.0, "", b"", [], {}, [None], {"": {"": []}}])
def test_falsy_values_come_back_unchanged(value):
    """A falsy value is a value: it comes back as itself, not as nothing (S037)."""
    back = rebuild(value, Any, what="x")
    assert back == value
    assert type(back) is type(value)


def test_deeply_nested_data_comes_back_unchanged():
    """Hundreds of levels of nesting come back as they were (S037)."""
    value: Any = 0
    for _ in range(300):
        value = {"down": [value]} if isinstance(value, list) else [value]
    assert rebuild(value, Any, what="x") == value


@pytest.mark.parametrize(("value", "type_"), TYPED_VALUES, ids=lambda part: repr(part)[:40])
def test_a_typed_value_comes_back_unchanged(value, type_):
    """A value of every supported type form comes back equal and of its own type."""
    back = rebuild(value, type_, what="x")
    assert back == value
    assert type(back) is type(value)


@given(value=items | trees)
def test_structs_come_back_unchanged(value):
    """Any Struct the annotations allow comes back equal, nested and recursive ones too."""
    assert rebuild(value, type(value), what="x") == value


@given(value=st.builds(Order, lines=st.lists(items)))
def test_dataclasses_come_back_unchanged(value):
    """Any dataclass the annotations allow comes back equal, with the Structs in it."""
    assert rebuild(value, Order, what="x") == value


@given(value=st.lists(st.builds(Card) | st.builds(Cash, amount=st.decimals(allow_nan=False))))
def test_tagged_unions_come_back_unchanged(value):
    """Each member of a tagged union comes back as the class it was."""
    assert rebuild(value, list[Card | Cash], what="x") == value


@given(
    moment=st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29)),  # noqa: DTZ001
    nanosecond=st.integers(0, 999),
)
def test_instants_come_back_to_the_nanosecond(moment, nanosecond):
    """An Instant loses nothing on its way through ISO text."""
    base = whenever.Instant(moment.replace(tzinfo=UTC))
    instant = base.add(nanoseconds=nanosecond)
    assert rebuild(instant, whenever.Instant, what="x") == instant


def test_every_kind_of_whenever_value_is_covered():
    """The values tried here are of every class that payloads know from whenever."""
    assert {type(value) for value in WHENEVER_VALUES} == set(ISO_TYPES.values())


def test_nan_is_stored():
    """NaN is a float like any other."""
    assert math.isnan(rebuild(math.nan, float, what="x"))


def test_null_is_the_payload_of_none():
    """NULL is what None encodes to."""
    assert encode(None, what="x") == NULL
    assert decoder(None).decode(NULL, what="x") is None


def test_without_a_type_other_types_come_back_as_plain_data():
    """Under Any a container is a list, and what is stored as text is that text."""
    value = {"pair": (1, 2), "day": date(2024, 1, 1), "colour": Colour.red, "item": Item(name="a")}
    assert rebuild(value, Any, what="x") == {
        "pair": [1, 2],
        "day": "2024-01-01",
        "colour": "r",
        "item": {"name": "a", "count": 1, "labels": []},
    }


def test_a_missing_annotation_means_any():
    """A parameter without annotation gives the decoder of plain data."""
    assert decoder(inspect.Parameter.empty).type is Any
    assert decoder(object).decode(encode([1], what="x"), what="x") == [1]


def test_subclasses_of_plain_types_are_stored_as_their_base():
    """A subclass of a plain type is stored by its value, whatever its own __str__ says."""

    class Text(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "something else"

    class Number(int):
        pass

    class Real(float):
        pass

    class Blob(bytes):
        pass

    class Moment(datetime):
        pass

    class Day(date):
        pass

    moment = Moment(2024, 1, 1, tzinfo=UTC)
    value = [Text("a"), Number(3), Real(1.5), Blob(b"q"), moment, Day(2024, 1, 1)]
    assert rebuild(value, Any, what="x") == ["a", 3, 1.5, b"q", moment, "2024-01-01"]


def test_what_comes_back_shares_nothing_with_what_went_in():
    """Changing the value after it was rebuilt does not change what was rebuilt."""
    value = {"a": [1]}
    back = rebuild(value, Any, what="x")
    value["a"].append(2)
    assert back == {"a": [1]}


def generator() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("value", "path", "why"),
    [
        (object(), "$", "cannot store an object"),
        ([Obliging()], "$[0]", "cannot store an Obliging"),
        (
            {"items": [1, 2, {"file": io.TextIOWrapper(io.BytesIO())}]},
            "$.items[2].file",
            "cannot store a TextIOWrapper",
        ),
        ([generator()], "$[0]", "cannot store a generator"),
        (Item, "$", "cannot store the class Item"),
        ({"a b": 1j}, "$['a b']", "cannot store a complex"),
        ({3: lambda: None}, "$[3]", "cannot store a function"),
        ({"x": {object(): 1}}, "$.x.<key>", "cannot store an object"),
        ({(1, 2): object()}, "$[...]", "cannot store an object"),
        ({object}, "$[...]", "cannot store the class object"),
        (Item(name=object()), "$.name", "cannot store an object"),  # type: ignore[arg-type]
        (Order(id=uuid.UUID(int=1), lines=[1, object()]), "$.lines[1]", "cannot store an object"),  # type: ignore[list-item]
        (Parcel(weight=object()), "$.weight", "cannot store an object"),  # type: ignore[arg-type]
        ((1, (2, msgspec.UNSET)), "$[1][1]", "cannot store UNSET outside a field"),
        ([2**64], "$[0]", "cannot store an integer outside -2**63 to 2**64 - 1"),
        ([-(2**63) - 1], "$[0]", "cannot store an integer outside -2**63 to 2**64 - 1"),
        ({"t": "\ud800"}, "$.t", "surrogates not allowed"),
    ],
)
def test_a_value_that_cannot_be_stored_fails_with_its_path(value, path, why):
    """What cannot be stored fails at once, naming whose value it is, where in it, and what it is (S566)."""
    error = refusal(value)
    assert str(error).startswith(f"the input: {path}: ")
    assert why in str(error)
    assert error.meta == {"what": "the input", "path": path}


def test_a_cycle_fails_with_its_path():
    """A value that contains itself is refused, naming where (S566)."""
    value: dict[str, Any] = {"ok": [1], "items": [{}]}
    value["items"][0]["again"] = value
    assert str(refusal(value)) == "the input: $.items[0].again: cannot store a value that contains itself"


def test_shared_parts_are_no_cycle():
    """The same list twice in a value is stored twice."""
    shared = [1]
    assert rebuild([shared, shared], Any, what="x") == [[1], [1]]
    assert refusal([shared, shared, object()]).meta["path"] == "$[2]"


@pytest.mark.parametrize("leaf", [None, object()])
def test_too_deep_nesting_fails_shortly(leaf):
    """Nesting beyond what can be stored is refused with a message of bounded length (S566)."""
    value: Any = [leaf]
    for _ in range(100_000):
        value = [value]
    message = str(refusal(value))
    assert "nested too deeply" in message or "[0]…[0]" in message
    assert len(message) < 200
    while value and isinstance(value, list):
        value = value.pop()  # so that freeing it does not recurse


def test_a_payload_nested_too_deeply_is_refused():
    """Foreign bytes that nest beyond the stack raise ValidationError instead of RecursionError."""
    with pytest.raises(ValidationError, match="the input: nested too deeply"):
        decoder(Any).decode(b"\x91" * 100_000 + NULL, what="the input")


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\xa1\xff", NULL + NULL, b"\x93\x01"])
def test_bytes_that_are_no_payload_are_refused(payload):
    """Damaged bytes raise ValidationError, whatever is wrong with them."""
    with pytest.raises(ValidationError, match="the state: "):
        decoder(Any).decode(payload, what="the state")


@pytest.mark.parametrize(
    ("value", "type_", "path"),
    [
        ("x", int, "$"),
        ({"name": "a", "count": "1"}, Item, "$.count"),
        ({"value": 1, "children": [{"value": None}]}, Tree, "$.children[0].value"),
        ([1, 2], tuple[int], "$"),
        ("green", Colour, "$"),
        ({"a": {"b": 1}}, dict[str, dict[int, int]], "key in $[...]"),
        ({"type": "Cheque"}, Card | Cash, "$.type"),
        ({"opens": "yesterday"}, Window, "$.opens"),
        (1, whenever.Instant, "$"),
        (1, pathlib.Path, "$"),
        (1, bool, "$"),
        (1.0, int, "$"),
        ({"value": 13}, Picky, "$"),
    ],
)
def test_a_value_that_does_not_fit_its_type_fails_with_its_path(value, type_, path):
    """What does not fit its declared type is refused strictly, naming where."""
    with pytest.raises(ValidationError, match="the output of 'pay': ") as caught:
        rebuild(value, type_, what="the output of 'pay'")
    assert caught.value.meta == {"what": "the output of 'pay'", "path": path}


def test_input_may_be_an_instance_or_plain_data():
    """An instance and the dict that describes it give the same payload, with the defaults filled in."""
    of_instance = convert_input(Item(name="a"), Item, what="x")
    assert of_instance == convert_input({"name": "a"}, Item, what="x")
    assert decoder(Any).decode(of_instance, what="x") == {"name": "a", "count": 1, "labels": []}


def test_input_is_stored_in_its_declared_type():
    """An int given for a float is stored as a float, and fields that the type does not have are dropped."""
    assert convert_input(1, float, what="x") == encode(1.0, what="x")
    assert convert_input({"name": "a", "other": 1}, Item, what="x") == encode(Item(name="a"), what="x")


def test_input_that_does_not_fit_is_refused():
    """Input of another type is refused with the name of the value."""
    with pytest.raises(ValidationError, match=r"the input: Object missing required field `name`"):
        convert_input({}, Item, what="the input")


@pytest.mark.parametrize(
    "type_",
    [complex, list[complex], Iterator[int], whenever.Instant | str, "Item", 5, Card | Order, type],
    ids=repr,
)
def test_a_type_that_cannot_be_rebuilt_is_refused(type_):
    """A type whose values could not come back is refused before any value is stored."""
    with pytest.raises(TypeError, match="cannot be the type of a stored value"):
        decoder(type_)


def test_private_fields_of_attrs_are_refused():
    """attrs classes with private fields are refused, since these fields would silently not be stored."""
    with pytest.raises(TypeError, match="does not store the private field '_secret'"):
        decoder(dict[str, Sealed])


def test_an_annotation_that_cannot_be_looked_up_is_explained():
    """A field whose annotation names nothing in the module says where names are looked up."""

    class Broken(msgspec.Struct):
        part: "Missing"  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(TypeError, match="class local to a function is not seen"):
        decoder(Broken)


def test_decoders_are_made_once_per_type():
    """The same type gives the same decoder; types that only look equal do not."""
    assert decoder(list[Item]) is decoder(list[Item])
    assert decoder(Literal[1]) is not decoder(Literal[True])
    assert decoder(str | None).type == str | None
    assert repr(decoder(int)) == "Decoder(<class 'int'>)"


def test_an_unhashable_type_has_a_decoder():
    """A type that cannot be a cache key is decoded all the same."""
    made = decoder(Annotated[int, []])
    assert isinstance(made, Decoder)
    assert made.decode(encode(3, what="x"), what="x") == 3
