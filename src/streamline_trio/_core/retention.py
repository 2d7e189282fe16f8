"""How long settled runs are kept."""

from __future__ import annotations

from dataclasses import dataclass

from streamline_trio._core.durations import Duration, seconds_of, to_millis
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.status import RunStatus

COVERED: dict[str, tuple[RunStatus, ...]] = {
    "done": ("done",),
    "failed": ("failed", "compensation_failed", "compensated"),
    "cancelled": ("cancelled",),
}
"""Which statuses each option speaks for; together they are all in which a run can rest."""


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How long settled runs are kept before workers remove them, in seconds or as a `timedelta`; None: for good.

    `failed` also speaks for `compensation_failed` and `compensated`: those ended otherwise than was meant, and
    somebody may want to look. The time counts from when the run settled, or was last changed after that.
    `ValidationError` for what is no duration above zero.
    """

    done: Duration | None = None
    failed: Duration | None = None
    cancelled: Duration | None = None

    def __post_init__(self) -> None:
        for name in COVERED:
            kept = getattr(self, name)
            if kept is not None and seconds_of(kept, what=f"retention of {name} runs") <= 0:
                raise ValidationError(
                    f"retention of {name} runs must be more than nothing, not {kept!r}; None keeps them for good"
                )

    def ages(self) -> dict[RunStatus, int]:
        """After how many milliseconds runs are to go, by status; those that are kept for good are not in it."""
        found: dict[RunStatus, int] = {}
        for name, statuses in COVERED.items():
            kept = getattr(self, name)
            if kept is not None:
                age = to_millis(seconds_of(kept, what=f"retention of {name} runs"))
                found |= dict.fromkeys(statuses, age)
        return found
