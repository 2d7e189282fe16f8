"""The orders, and what must become of each of them."""

from __future__ import annotations

import csv
import zlib
from pathlib import Path
from typing import Literal

import msgspec

APPROVAL_FROM = 30_000
"""From this many cents on, a person has to agree."""

TOO_MUCH = 300_000
"""From this many cents on, the person does not agree."""

NO_CREDIT = "0002"
"""The provider declines the card that ends so."""

_REFUSED = 0.08

_SHIPPED = Path(__file__).with_name("orders.csv")
_CHECKOUT = Path(__file__).parents[3] / "examples" / "orders" / "orders.csv"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `orders.csv`."""

    order_id: str
    customer: str
    email: str
    city: str
    sku: str
    item: str
    quantity: int
    unit_cents: int
    card: str

    @property
    def cents(self) -> int:
        """What there is to pay."""
        return self.quantity * self.unit_cents


class Outcome(msgspec.Struct, frozen=True):
    """How a run ends; `step` is the one that fails it."""

    status: Literal["done", "failed", "compensated"]
    step: str | None = None


def expected(order: Order) -> Outcome:
    """How the run of this order must end, whatever happens to workers."""
    if order.quantity < 1 or not order.city:
        return Outcome("failed", "validate")
    if order.cents >= TOO_MUCH:
        return Outcome("failed", "approve")
    if order.card == NO_CREDIT:
        return Outcome("failed", "charge")
    if not has_carrier(order):
        return Outcome("compensated", "ship")
    return Outcome("done")


def has_carrier(order: Order) -> bool:
    """Whether somebody takes the parcel; if not, that turns out at the very end."""
    return share(order.order_id, "carrier") >= _REFUSED


def share(order_id: str, what: str) -> float:
    """A number in [0, 1) that looks random and is the same in every process and on every day."""
    return zlib.crc32(f"{order_id} {what}".encode()) / 2**32


def read_orders() -> list[Order]:
    """All orders: beside this module in an installed package, under `examples/` in a checkout."""
    path = _SHIPPED if _SHIPPED.exists() else _CHECKOUT
    with path.open(encoding="utf-8", newline="") as lines:
        return [msgspec.convert(row, Order, strict=False) for row in csv.DictReader(lines)]
