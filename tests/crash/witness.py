"""Waiting for what no event tells of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio


async def until(holds: Callable[[], Any], *, within: float = 60.0, pause: float = 0.01) -> None:
    """Wait until something holds; for what no event tells of."""
    with trio.fail_after(within):
        while not holds():  # noqa: ASYNC110 - it is for what no event tells of
            await trio.sleep(pause)
