"""What stores share of the queue of due runs: who is next in turn, and how many are passed over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.due import due_since
from streamline_trio._core.store import TENANTS_AT_ONCE

T = TypeVar("T")


def waits_since(run: RunDoc) -> int | None:
    """Since when the run wants a worker, or from when it will; None if it wants none."""
    return None if run.head.lease is not None else due_since(run.origin, run.head)


def skipped(found: Sequence[T], limit: int) -> Sequence[T]:
    """Pass over what was asked for beyond the limit: the last ones are given, and all if there are no more."""
    return found[max(0, len(found) - limit) :]


def most_tenants(limit: int) -> int:
    """Of how many tenants a look gives runs."""
    return min(limit, TENANTS_AT_ONCE)


def in_turn(tenants: Iterable[str | None], after: str | None) -> list[str | None]:
    """Tenants in the order of their turns: the names after this one, those without, the names up to it."""
    names = sorted({tenant for tenant in tenants if tenant is not None})
    later = names if after is None else [name for name in names if name > after]
    nameless = [None] if None in tenants else []
    return [*later, *nameless, *names[: len(names) - len(later)]]


def dealt(hands: Sequence[Sequence[T]], limit: int) -> list[T]:
    """One of each in turn, and again, until there are so many."""
    longest = max(map(len, hands), default=0)
    rounds = (hand[place] for place in range(min(longest, limit)) for hand in hands if place < len(hand))
    return [card for card, _ in zip(rounds, range(limit), strict=False)]
