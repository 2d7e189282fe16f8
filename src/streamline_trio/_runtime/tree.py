"""A run with its descendants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from streamline_trio._core.checking import is_whole
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.store import RunQuery
from streamline_trio._runtime.snapshot import Run

if TYPE_CHECKING:
    from streamline_trio._runtime.machinery import Machinery

MOST_RUNS = 10_000


class RunTree(msgspec.Struct, frozen=True, kw_only=True):
    """A run and its children, oldest first; `truncated`: it has more of them than were asked for."""

    run: Run
    children: tuple[RunTree, ...] = ()
    truncated: bool = False


class _Node:
    """A run whose children are being gathered."""

    def __init__(self, run: RunDoc) -> None:
        self.run = run
        self.children: list[_Node] = []
        self.is_truncated = False


async def tree_of(machinery: Machinery, run_id: str, *, depth: int, limit: int) -> RunTree:
    """Level by level, so that what is left out is what is farthest away."""
    if not is_whole(depth, 0):
        raise ValidationError(f"tree: depth is a whole number from 0, not {depth!r}")
    if not is_whole(limit, 1, MOST_RUNS):
        raise ValidationError(f"tree: limit is a whole number from 1 to {MOST_RUNS}, not {limit!r}")
    root = _Node(await machinery.load(run_id))
    room, level = limit - 1, [root]
    for below in range(depth + 1):
        for node in level:
            # Below the last level one is enough to tell that there are more.
            wanted = 0 if below == depth else room
            found = await _children(machinery, node.run.id, wanted + 1)
            node.is_truncated = len(found) > wanted
            node.children = [_Node(run) for run in found[:wanted]]
            room -= len(node.children)
        level = [child for node in level for child in node.children]
    return await _built(machinery, root)


async def _children(machinery: Machinery, run_id: str, limit: int) -> list[RunDoc]:
    store, query = machinery.services.store, RunQuery(parent=run_id)
    return await machinery.services.read(lambda: store.find(query, sort="created_at", limit=limit, after=None))


async def _built(machinery: Machinery, node: _Node) -> RunTree:
    children = [await _built(machinery, child) for child in node.children]
    return RunTree(run=await machinery.view(node.run), children=tuple(children), truncated=node.is_truncated)
