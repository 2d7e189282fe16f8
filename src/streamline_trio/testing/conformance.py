"""The conformance suite for stores: a store that passes every check can carry the engine.

::

    from streamline_trio.testing.conformance import conformance_tests

    @pytest.mark.parametrize("check", conformance_tests(MyStore), ids=str)
    def test_conformance(check):
        trio.run(check)

Each check makes a fresh store with the factory, opens it, and raises `NotConformant` where a numbered condition
of the `Store` protocol is not kept. Two hooks let more be checked: `spoil` damages a stored run, `twin` gives a
second store object on the same content. Condition 8 cannot be seen from outside: test it with faults of your
own driver.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from streamline_trio._core.store import Store
from streamline_trio.testing import (
    _conformance_batches,
    _conformance_beside,
    _conformance_content,
    _conformance_guards,
    _conformance_queues,
    _conformance_reads,
    _conformance_turns,
)
from streamline_trio.testing._conformance_base import REGISTERED, Check, NotConformant, Subject

__all__ = ["CHECKS", "BoundCheck", "Check", "NotConformant", "Subject", "conformance_tests"]

# Importing them registers their checks.
_MODULES = (
    _conformance_batches,
    _conformance_guards,
    _conformance_content,
    _conformance_reads,
    _conformance_turns,
    _conformance_queues,
    _conformance_beside,
)

CHECKS: tuple[Check, ...] = tuple(
    sorted(REGISTERED, key=lambda check: (check.condition is None, check.condition or 0))
)


@dataclass(frozen=True)
class BoundCheck:
    """A check and the store it is to be run on."""

    check: Check
    subject: Subject

    def __str__(self) -> str:
        return str(self.check)

    async def __call__(self) -> None:
        """Run the check."""
        await self.check(self.subject)


def conformance_tests(
    factory: Callable[[], Store],
    *,
    spoil: Callable[[Store, str], Awaitable[None]] | None = None,
    twin: Callable[[Store], Store] | None = None,
) -> list[BoundCheck]:
    """The checks that the given hooks allow, bound to the store, for `pytest.mark.parametrize`.

    Args:
        factory: gives a new, unopened store without any content, at each call.
        spoil: makes the stored run of this id undecodable, behind the store's back.
        twin: gives a second, unopened store object on the content of the first.
    """
    subject = Subject(factory, spoil, twin)
    hooks = {None, *(name for name in ("spoil", "twin") if getattr(subject, name) is not None)}
    return [BoundCheck(check, subject) for check in CHECKS if check.needs in hooks]
