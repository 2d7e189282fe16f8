"""What the demo prints: what happens as it happens, and a table at the end."""

from __future__ import annotations

from typing import Protocol, Self

import msgspec

from streamline_trio import StreamlineError

_EVERY = 2.0


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome. Durations are in seconds."""

    orders: int
    settled: int
    done: int
    failed: int
    compensated: int
    steps: int
    undone: int
    retries: int
    approvals: int
    recoveries: int
    lost: int
    rerun: int
    effects: int
    repeated: int
    steps_per_second: float
    recovered_after_kill: float | None
    recovered_after_ready: float | None
    all_recovered_after_kill: float | None
    seconds: float
    problems: list[str]

    @property
    def held(self) -> bool:
        """Whether every promise was kept."""
        return not self.problems and not self.lost and not self.rerun


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far it is."""

    seconds: float
    orders: int
    by_status: dict[str, int]
    effects: dict[str, int]
    retries: int
    approvals: int
    steps_per_second: float

    @property
    def settled(self) -> int:
        """Runs that have come to rest."""
        return sum(self.by_status.get(status, 0) for status in ("done", "failed", "compensated"))


class View(Protocol):
    """Where the demo says what happens."""

    def __enter__(self) -> Self:
        """Begin to show."""
        ...

    def __exit__(self, *_: object) -> None:
        """Nothing more comes."""
        ...

    def happened(self, seconds: float, what: str) -> None:
        """Something worth a line."""
        ...

    def update(self, now: Progress) -> None:
        """Several times a second."""
        ...


class Quiet:
    """Says nothing."""

    def __enter__(self) -> Self:
        """Begin to show."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing more comes."""

    def happened(self, seconds: float, what: str) -> None:
        """Something worth a line."""

    def update(self, now: Progress) -> None:
        """Several times a second."""


class Plain(Quiet):
    """Lines, for logs and pipes."""

    def __init__(self) -> None:
        self._told = 0.0

    def happened(self, seconds: float, what: str) -> None:
        """Something worth a line."""
        print(f"{seconds:6.1f} s  {what}", flush=True)

    def update(self, now: Progress) -> None:
        """Every two seconds a line."""
        if now.seconds - self._told < _EVERY:
            return
        self._told = now.seconds
        statuses = ", ".join(f"{count} {status}" for status, count in now.by_status.items() if count)
        self.happened(now.seconds, f"{now.settled}/{now.orders} orders settled ({statuses})")


def open_view(*, plain: bool, quiet: bool, terminal: bool) -> View:
    """The view that fits; the live one needs rich."""
    if quiet:
        return Quiet()
    if plain or not terminal:
        return Plain()
    try:
        from streamline_trio.demo.live import Live  # noqa: PLC0415 - rich is an extra
    except ModuleNotFoundError as error:
        raise StreamlineError("the live view needs rich: install streamline-trio[cli], or use --plain") from error
    return Live()


def table(figures: Figures) -> str:
    """The figures for people."""
    rows = [
        ("orders", f"{figures.orders}"),
        ("runs settled", f"{figures.settled} ({_ends(figures)})"),
        ("charged orders that could not be shipped", f"{figures.compensated} compensated, {_refunds(figures)}"),
        ("steps finished, and undone", f"{figures.steps}, {figures.undone}"),
        ("calls of the provider retried", f"{figures.retries}"),
        ("approvals answered by token", f"{figures.approvals}"),
        ("side effects in the ledger", f"{figures.effects}"),
        ("runs recovered from the killed worker", f"{figures.recoveries}"),
        ("unfinished steps repeated, same key", f"{figures.repeated}"),
        ("runs lost", f"{figures.lost}"),
        ("finished steps run again", f"{figures.rerun}"),
        ("first run taken over", _after(figures.recovered_after_kill, "the kill")),
        ("", _after(figures.recovered_after_ready, "the new process was ready")),
        ("all runs taken over", _after(figures.all_recovered_after_kill, "the kill")),
        ("steps per second, at the demo's pace", f"{figures.steps_per_second:.0f}"),
        ("seconds in all", f"{figures.seconds:.1f}"),
    ]
    wide = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{wide}}  {value}".rstrip() for name, value in rows)


def _ends(figures: Figures) -> str:
    return f"{figures.done} done, {figures.failed} failed as they must, {figures.compensated} compensated"


def _refunds(figures: Figures) -> str:
    return "the ledger disagrees" if figures.problems else "each refunded once"


def _after(seconds: float | None, what: str) -> str:
    return "never" if seconds is None else f"{seconds:.2f} s after {what}"
