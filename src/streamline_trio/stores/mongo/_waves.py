"""The order in a batch: writes go together unless one must see what the other did.

Each write reads or changes things: a run, a key, a side document, a ring of rows. It belongs to the first wave
after those of the batch that it shares a changed thing with. Almost every batch is a single wave.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import NamedTuple

from streamline_trio._core.store import Delete, Quarantine
from streamline_trio.stores.mongo._changes import Ready, RowsPush, RunInsert, RunUpdate, SidePut

_KEYS = "keys"  # which of them a removed run held is not known beforehand


class _Things(NamedTuple):
    changed: tuple[Hashable, ...]
    read: tuple[Hashable, ...] = ()


class Waves:
    """Sorts writes into waves, in the order of the batch."""

    def __init__(self) -> None:
        self._changed: dict[Hashable, int] = {}
        self._read: dict[Hashable, int] = {}

    def number(self, write: Ready) -> int:
        """The wave of the next write."""
        things = _things(write)
        wave = 1 + max((*self._after(things),), default=-1)
        for thing in things.changed:
            self._changed[thing] = wave
        for thing in things.read:
            self._read[thing] = max(wave, self._read.get(thing, -1))
        return wave

    def _after(self, things: _Things) -> Iterable[int]:
        for thing in (*things.changed, *things.read):
            yield self._changed.get(thing, -1)
        for thing in things.changed:
            yield self._read.get(thing, -1)


def _things(write: Ready) -> _Things:
    match write:
        case RunInsert() | RunUpdate():
            keys = (*write.keys.gained, *write.keys.lost)
            return _Things((("run", write.run_id), *keys), (_KEYS,) if keys else ())
        case Delete(run_id):
            return _Things((("run", run_id), _KEYS))
        case Quarantine(run_id):
            return _Things((("run", run_id),))
        case SidePut():
            return _Things((("side", write.id),))
        case RowsPush():
            return _Things((("rows", write.id),), (("run", write.run_id),))
