"""The built-in predicates over a state."""

# ruff: noqa: ARG005, PLW0108 - stand-ins have the parameters of their protocol

import functools
from dataclasses import dataclass

import msgspec
import pytest

from streamline_trio._core import conditions
from streamline_trio._core.conditions import (
    all_,
    any_,
    equals,
    greater,
    has,
    in_,
    less,
    not_,
    not_equals,
)
from streamline_trio._core.errors import DefinitionError


class State(msgspec.Struct):
    value: int = 15
    status: str = "active"
    data: str | msgspec.UnsetType | None = "test"


@dataclass
class Plain:
    value: int = 15
    status: str = "active"
    data: str | None = "test"


STATES = [State(), Plain(), {"value": 15, "status": "active", "data": "test"}]


@pytest.mark.parametrize("state", STATES, ids=lambda state: type(state).__name__)
@pytest.mark.parametrize(
    ("predicate", "verdict"),
    [
        (has("data"), True),
        (has("absent"), False),
        (equals("status", "active"), True),
        (equals("status", "inactive"), False),
        (not_equals("status", "inactive"), True),
        (not_equals("status", "active"), False),
        (greater("value", 10), True),
        (greater("value", 20), False),
        (less("value", 20), True),
        (less("value", 10), False),
        (greater("value", 15), False),
        (less("value", 15), False),
        (in_("status", ("active", "new")), True),
        (in_("status", {"new"}), False),
        (all_(has("data"), greater("value", 10)), True),
        (all_(has("data"), greater("value", 20)), False),
        (any_(has("absent"), greater("value", 10)), True),
        (any_(has("absent"), greater("value", 20)), False),
        (not_(has("absent")), True),
        (not_(has("data")), False),
        (all_(), True),
        (any_(), False),
        (all_(lambda state: True, not_(any_(has("absent"), equals("value", 1)))), True),
    ],
)
def test_the_conditions_of_the_original(state, predicate, verdict):
    """S016: proves each helper and their combinations, over attributes and over mapping keys."""
    assert predicate(state) is verdict


@pytest.mark.parametrize(
    "predicate", [equals("x", None), greater("x", -1), less("x", 1), in_("x", [None, 1]), has("x")]
)
def test_a_missing_key_is_false(predicate):
    """S016: proves that a key which is missing or unset compares as false."""
    assert predicate({}) is False
    assert predicate(State()) is False


def test_a_missing_key_differs_from_everything():
    """Proves that `not_equals` is the opposite of `equals`, for missing keys too."""
    assert not_equals("x", 1)({}) is True


def test_none_and_unset_are_absent_for_has():
    """S016: proves that a value of None, or an unset field, is not there."""
    assert has("data")({"data": None}) is False
    assert has("data")(State(data=msgspec.UNSET)) is False
    assert equals("data", None)({"data": None}) is True
    assert in_("data", [None])({"data": None}) is True


@pytest.mark.parametrize(("found", "bound"), [("abc", 3), (None, 3), ([1], 3)])
def test_what_cannot_be_compared_is_false(found, bound):
    """S016: proves that a comparison of unlike types is false instead of an error."""
    assert greater("value", bound)({"value": found}) is False
    assert less("value", bound)({"value": found}) is False


def test_combinations_stop_at_the_first_answer():
    """Proves that later predicates are not asked once the verdict is known."""

    def never(state):
        raise AssertionError("asked in vain")

    assert all_(has("absent"), never)({}) is False
    assert any_(equals("a", 1), never)({"a": 1}) is True


async def _later(state):
    return True


@pytest.mark.parametrize("combine", [all_, any_, not_])
def test_async_conditions_cannot_be_combined(combine):
    """Proves that an async predicate, always truthy if not awaited, is refused at once."""
    with pytest.raises(DefinitionError, match="async condition"):
        combine(_later)
    with pytest.raises(DefinitionError, match="async condition"):
        combine(functools.partial(_later))
    with pytest.raises(TypeError, match="async condition"):
        combine(lambda state: _later(state))({})
    with pytest.raises(DefinitionError, match="function of the state"):
        combine("status")


def test_the_export_list_is_complete():
    """Proves that the public names are exactly those of the contract."""
    assert conditions.__all__ == sorted(conditions.__all__)
    assert set(conditions.__all__) == {
        "all_",
        "any_",
        "equals",
        "greater",
        "has",
        "in_",
        "less",
        "not_",
        "not_equals",
    }
