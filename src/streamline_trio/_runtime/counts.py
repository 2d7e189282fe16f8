"""What one engine has done since it was opened, for `Engine.stats`."""

from __future__ import annotations

from dataclasses import dataclass

from streamline_trio._core.documents import RunDoc


@dataclass(kw_only=True)
class Counts:
    """Grow only: `claims` of runs to drive, `recoveries` of runs whose worker was gone, what care has removed."""

    claims: int = 0
    recoveries: int = 0
    expired: int = 0
    swept: int = 0

    def claimed(self, before: RunDoc, after: RunDoc) -> None:
        """A claim of ours was applied; it may have settled the run instead."""
        self.claims += after.head.lease is not None
        self.recoveries += after.head.recoveries - before.head.recoveries
