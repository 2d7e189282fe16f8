"""The outputs of a run's steps, as attributes and as a mapping."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple


class Found(NamedTuple):
    """An output that is there, whatever its value."""

    value: Any


class OutputsView(Mapping[str, Any]):
    """Lazy and read-only. Keys are all declared steps in order; one that is not done has None."""

    __slots__ = ("_find", "_steps")

    def __init__(self, steps: tuple[str, ...], find: Callable[[str], Found | None]) -> None:
        self._steps = steps
        self._find = find

    def __getitem__(self, step: str) -> Any:
        if step not in self._steps:
            raise KeyError(step)
        found = self._find(step)
        return None if found is None else found.value

    def __getattr__(self, step: str) -> Any:
        try:
            return self[step]
        except KeyError:
            raise AttributeError(f"the workflow has no step {step!r}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)
