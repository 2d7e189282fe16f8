"""How long a failed step waits for its next attempt.

Truncated exponential backoff with proportional jitter: before attempt n+1 a step waits
``min(delay * factor ** (n - 1), max_delay)``, spread evenly over ``± jitter`` of that, so
that runs which failed together do not come back together. The cap is applied before the
jitter, so the longest wait is ``max_delay * (1 + jitter)``. The scheme is the one of the
Ethernet collision backoff (IEEE 802.3) with the jitter of "Exponential Backoff And Jitter"
(AWS Architecture Blog, 2015); numbers and names are those of the original engine.
"""

from __future__ import annotations

import math

import msgspec

from streamline_trio._core.errors import ValidationError

_NAMED_FACTORS = {"exponential": 2.0, "linear": 1.0, "fixed": 1.0}


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How often a step is tried and how long it waits in between; durations in seconds."""

    attempts: int = 3
    """Calls in total, the first one included."""
    delay: float = 1.0
    """The wait after the first failure."""
    factor: float = 2.0
    """What each further failure multiplies the wait by."""
    max_delay: float = 60.0
    """No wait is longer than this, before jitter."""
    jitter: float = 0.3
    """The part of the wait by which chance shortens or lengthens it."""

    def delay_after(self, failures: int, roll: float) -> float:
        """Seconds to wait after this many failures in a row (from 1).

        `roll` is the chance: a number from 0 up to, not including, 1, drawn evenly.
        """
        wait = self._unspread(failures)
        return max(0.0, wait * (1.0 + self.jitter * (2.0 * roll - 1.0)))

    def _unspread(self, failures: int) -> float:
        if self.delay <= 0.0:
            return 0.0
        try:
            wait = self.delay * self.factor ** (failures - 1)
        except OverflowError:
            return self.max_delay
        return min(wait, self.max_delay)


def backoff_factor(backoff: str | float) -> float:
    """The factor that a step's `backoff` stands for.

    `"exponential"` doubles; `"linear"` and `"fixed"` both keep the wait constant, as in the
    original engine; a number of 1 or more is the factor itself. Anything else is a
    `ValidationError`.
    """
    if isinstance(backoff, str):
        factor = _NAMED_FACTORS.get(backoff)
        if factor is not None:
            return factor
    elif _is_number(backoff) and backoff >= 1 and math.isfinite(backoff):
        return float(backoff)
    raise ValidationError(
        f"backoff must be 'exponential', 'linear', 'fixed' or a number of 1 or more, not {backoff!r}"
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
