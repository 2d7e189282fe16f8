"""What was tried: counted over schedules, told as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


class Summary:
    """Counts by kind: moves of the director, faults by call, verbs by outcome, transitions, events."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.longest: int = 0

    def count(self, kind: str, what: str, times: int = 1) -> None:
        """Note something."""
        self.counts[kind, what] += times

    def add(self, other: Summary) -> None:
        """Take another summary in."""
        self.counts.update(other.counts)
        self.longest = max(self.longest, other.longest)

    def of(self, kind: str) -> Mapping[str, int]:
        """What was counted of one kind, most frequent first."""
        found = {what: times for (of, what), times in self.counts.items() if of == kind}
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    def __str__(self) -> str:
        lines = [f"longest schedule: {self.longest} moves"]
        for kind in sorted({kind for kind, _ in self.counts}):
            counts = self.of(kind)
            lines.append(f"{kind} ({sum(counts.values())})")
            lines += [f"  {times:>9}  {what}" for what, times in counts.items()]
        return "\n".join(lines)
