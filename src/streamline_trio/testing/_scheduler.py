"""The order in which trio runs tasks that are ready at the same time."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import trio

_scheduler: Any = getattr(getattr(trio, "_core", None), "_run", None)


@contextmanager
def same_order(seed: int = 0) -> Generator[None]:
    """What runs inside is scheduled the same way each time, so that call number k is always the same call.

    Trio shuffles; this goes by the two knobs that it keeps for pytest-trio. Without them nothing is changed.
    """
    dice = getattr(_scheduler, "_r", None)
    sorts: bool | None = getattr(_scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", None)
    if dice is None or sorts is None:
        yield
        return
    before = dice.getstate()
    dice.seed(seed)
    _scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # noqa: SLF001 - there is no public knob
    try:
        yield
    finally:
        _scheduler._ALLOW_DETERMINISTIC_SCHEDULING = sorts  # noqa: SLF001 - there is no public knob
        dice.setstate(before)
