"""Calls that must type-check, in mypy and pyright, both strict."""

from typing import assert_type

import msgspec


class Order(msgspec.Struct, frozen=True):
    order_id: str
    cents: int = 0


assert_type(Order("o-1").cents, int)
assert_type(msgspec.json.decode(b"{}", type=Order), Order)
