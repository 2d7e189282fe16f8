"""What a benchmark is, and how its figures are put together and shown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from benchmarks.places import Place

S = TypeVar("S")
Figures = dict[str, Any]
Row = Sequence[str | float]


@dataclass(frozen=True, kw_only=True)
class Benchmark(Generic[S]):
    """One measurement: how it is taken at a given size, and how its figures look as a table.

    The first row is the heading. `quick` is a size at which it only proves that it works. On MongoDB the sizes
    are others: what the server of the tests does in about a minute.
    """

    name: str
    title: str
    measure: Callable[[Place, S, int], Awaitable[Figures]]
    table: Callable[[Figures], Iterable[Row]]
    normal: S
    quick: S
    mongodb: S
    mongodb_quick: S | None = None
    full: S | None = None
    rounds: int = 5
    needs_processes: bool = False


def median(values: Iterable[float]) -> float:
    """The middle of what the rounds gave."""
    return statistics.median(values)


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest of the values that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def rounded(value: float, digits: int = 4) -> float:
    """Only the digits that mean something."""
    return value if value == 0 or not math.isfinite(value) else float(f"{value:.{digits}g}")


def shown(title: str, rows: Iterable[Row]) -> str:
    """A table for people; the first column is left-aligned."""
    texts = [[_text(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in texts
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([title, "", *("  " + line.rstrip() for line in lines), ""])


def _text(cell: str | float) -> str:
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int) or abs(cell) >= 1000:
        return f"{cell:,.0f}"
    return f"{cell:.3g}"
