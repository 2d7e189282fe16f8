"""What the scatters, loops and emissions of one entry keep of their step, and how it is committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from streamline_trio._core import payload
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.happenings import Happening, PieceSaved
from streamline_trio._core.step import Step
from streamline_trio._runtime.limits import check_size
from streamline_trio._runtime.suspension import Suspender

if TYPE_CHECKING:
    from streamline_trio._runtime.driver import Driver


class Pieces:
    """The hand of one entry on its run; `held` says under which lease, and refuses when the entry has ended."""

    __slots__ = ("_held", "_step", "driver", "suspender")

    def __init__(
        self, driver: Driver, step: Step[Any], suspender: Suspender, held: Callable[[], dict[str, Any]]
    ) -> None:
        self.driver: Driver = driver
        self.suspender: Suspender = suspender
        self._step = step
        self._held = held

    @property
    def run(self) -> RunDoc:
        """The run as last committed or read."""
        return self.driver.run

    @property
    def step(self) -> str:
        """The step's id."""
        return self._step.id

    @property
    def attempt(self) -> int:
        """Which call of the handler this is."""
        return self.run.step(self.step).attempts

    def encoded(self, value: Any, what: str, decoder: payload.Decoder) -> bytes:
        """The value as it is stored; refused if it is too large, or could not be read back."""
        stored = payload.encode(value, what=f"{what} of step {self.step}")
        check_size(stored, self.driver.max_payload(self._step), self.driver, self.step, what)
        if decoder.type is not Any:
            decoder.decode(stored, what=what)
        return stored

    async def commit(self, kind: Callable[..., Happening], **fields: Any) -> RunDoc:
        """Commit what happened in this step."""
        return await self.driver.commit(kind(step=self.step, **fields, **self._held()))

    async def save(
        self, path: str, value: bytes, *, within: str | None = None, round: int = 0, done: bool = True
    ) -> None:
        """Keep a piece; what lies in the frame `within` is forgotten in the same write."""
        held = self._held()
        known = self.suspender.known(self.run)
        records = () if within is None else known.records.take(within)
        pieces = () if within is None else known.pieces.take(within)
        happening = PieceSaved(
            step=self.step, path=path, value=value, round=round, done=done, records=records, pieces=pieces, **held
        )
        await self.driver.commit(happening)
        known.pieces.add(path)
