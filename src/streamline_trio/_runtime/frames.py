"""Where in a step something is: paths of scatter keys and iterations, and what lies under each.

    timer#0                          the handler's first sleep
    scatter#0:eu                     what key `eu` of the first scatter came to
    scatter#0:eu/=approval           a wait named `approval` inside that key
    scatter#0:eu/loop=pages:3/emit#0 an emission in iteration 3 of a loop named `pages` inside that key

A frame is one line of calls that is counted by itself: the handler, a scatter key, an iteration. Its prefix ends
with a slash. User text is escaped as in JSON pointers (RFC 6901), in names the colon too, so that no two frames
share a path. What is not a composite never begins with `scatter` or `loop`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

CompositeKind = Literal["scatter", "loop"]
_COMPOSITES = ("scatter", "loop")


def escape(key: str) -> str:
    """A text as one segment of a path."""
    return key.replace("~", "~0").replace("/", "~1")


def composite(kind: CompositeKind, name: str | None, ordinal: int) -> str:
    """The segment of a scatter or loop, before its key or round."""
    return f"{kind}#{ordinal}" if name is None else f"{kind}={escape(name).replace(':', '~2')}"


def frames_of(path: str) -> Iterator[str]:
    """The prefixes of the frames that the path lies in, outermost first; not the handler's own."""
    end = 0
    while path.startswith(_COMPOSITES, end):
        slash = path.find("/", end)
        if slash < 0:
            return
        end = slash + 1
        yield path[:end]


def frame_of(path: str) -> str:
    """The prefix of the innermost frame that the path lies in; the handler's own is empty."""
    prefix = ""
    for inner in frames_of(path):
        prefix = inner
    return prefix


def is_in_line(path: str, prefix: str) -> bool:
    """Whether what lies under the frame is met by its own line of calls, in no scatter further in."""
    start = len(prefix)
    for inner in frames_of(path):
        if len(inner) > start:
            if path.startswith("scatter", start):
                return False
            start = len(inner)
    return True


class Frame:
    """The calls of one line so far: how many, of which kind, under which names."""

    __slots__ = ("keys", "ordinals", "places", "prefix")

    def __init__(self, prefix: str) -> None:
        self.prefix: str = prefix
        self.keys: set[str] = set()
        self.ordinals: dict[str, int] = {}
        self.places: int = 0

    def ordinal(self, kind: str) -> int:
        """How many of this kind there were before."""
        ordinals = self.ordinals
        ordinal = ordinals.get(kind, 0)
        ordinals[kind] = ordinal + 1
        return ordinal

    def place(self) -> int:
        """How many suspensions, scatters and loops there were before."""
        place, self.places = self.places, self.places + 1
        return place


class Subtrees:
    """Paths by the frames they lie in, so that all under one frame are found without a look at the others."""

    __slots__ = ("_under",)

    def __init__(self, paths: Iterable[str]) -> None:
        self._under: dict[str, set[str]] = {}
        for path in paths:
            self.add(path)

    def add(self, path: str) -> None:
        """Enter a path; twice is once."""
        for prefix in frames_of(path):
            self._under.setdefault(prefix, set()).add(path)

    def of(self, prefix: str) -> Iterable[str]:
        """All under the frame."""
        return self._under.get(prefix, ())

    def take(self, prefix: str) -> tuple[str, ...]:
        """Take out all under the frame, in order."""
        under = self._under.get(prefix)
        if under is None:
            return ()
        taken = tuple(sorted(under))
        for path in taken:
            for frame in frames_of(path):
                self._discard(frame, path)
        return taken

    def _discard(self, frame: str, path: str) -> None:
        under = self._under[frame]
        under.discard(path)
        if not under:
            del self._under[frame]
