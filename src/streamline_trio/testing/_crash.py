"""Ending an engine as a crash does."""

from __future__ import annotations

from streamline_trio._runtime.engine import Engine


async def crash(engine: Engine) -> None:
    """End the engine at once, as if its process had died: nothing is drained, handed back or written.

    Its leases stay in the store; its lock is released, as the operating system would. Handlers are cancelled
    (a task cannot be made to vanish), but nothing they do afterwards is written. Leaving the engine's block
    does nothing more.
    """
    await engine._machinery.crash()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - the runtime's own support
