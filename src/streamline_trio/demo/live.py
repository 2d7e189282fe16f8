"""The live view, for terminals. Needs rich, which is an extra."""

from __future__ import annotations

from typing import Self

from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streamline_trio.demo.show import Progress

_COLOURS = {
    "done": "green",
    "running": "cyan",
    "waiting": "yellow",
    "draft": "white",
    "failed": "red",
    "compensating": "magenta",
    "compensated": "blue",
}


class Live:
    """Bars by status, counts from the ledger, and above them what has happened."""

    def __init__(self, console: Console | None = None) -> None:
        self._live = RichLive(console=console, refresh_per_second=10, transient=True)

    def __enter__(self) -> Self:
        """Begin to show."""
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing more comes."""
        self._live.__exit__(None, None, None)

    def happened(self, seconds: float, what: str) -> None:
        """Something worth a line, above the bars."""
        self._live.console.print(Text(f"{seconds:6.1f} s  {what}"))

    def update(self, now: Progress) -> None:
        """Draw anew."""
        self._live.update(Group(Text(), _statuses(now), Text(), _numbers(now)))


def _statuses(now: Progress) -> Table:
    grid = Table.grid(padding=(0, 1))
    for status, colour in _COLOURS.items():
        count = now.by_status.get(status, 0)
        bar = ProgressBar(total=now.orders, completed=count, width=40, complete_style=colour, finished_style=colour)
        grid.add_row(f"  {status}", bar, f"{count}")
    return grid


def _numbers(now: Progress) -> Text:
    ledger = "  ".join(f"{step} {count}" for step, count in now.effects.items())
    return Text(
        f"  {now.seconds:.1f} s   {now.steps_per_second:.0f} steps/s   {now.retries} retries"
        f"   {now.approvals} approvals answered\n  ledger   {ledger}"
    )
