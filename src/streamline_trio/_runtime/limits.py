"""How large a payload may be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamline_trio._core.errors import PayloadTooLarge

if TYPE_CHECKING:
    from streamline_trio._runtime.driver import Driver

WARN_ABOVE = 1 << 20


def too_large(size: int, limit: int, run_id: str, step: str, what: str) -> PayloadTooLarge:
    """What is raised for a payload of so many bytes."""
    return PayloadTooLarge(
        f"{what} of step {step} in run {run_id} has {size} bytes, more than its"
        f" max_payload_bytes of {limit}: keep the data elsewhere and return a reference",
        step=step,
        run_id=run_id,
        size=size,
        limit=limit,
    )


def check_size(stored: bytes, limit: int | None, driver: Driver, step: str, what: str) -> None:
    """Raise `PayloadTooLarge` above the limit (bytes, as stored); warn above 1 MiB."""
    size = len(stored)
    if limit is not None and size > limit:
        raise too_large(size, limit, driver.run.public_id, step, what)
    if size > WARN_ABOVE:
        driver.services.logger.warning(
            "%s of step %s in run %s has %d bytes: better keep large data elsewhere",
            what,
            step,
            driver.run.origin.id,
            size,
        )
