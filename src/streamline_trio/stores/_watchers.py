"""Listeners of a store, and the life of the trio run they belong to."""

from __future__ import annotations

from collections.abc import Callable

import trio

from streamline_trio._core.store import Hint


class Watchers:
    """Calls listeners in the trio run that each was added in, and forgets those whose run is over."""

    def __init__(self) -> None:
        self._listeners: dict[object, tuple[Callable[[Hint], None], trio.lowlevel.TrioToken]] = {}

    def add(self, listener: Callable[[Hint], None]) -> Callable[[], None]:
        """Begin to call the listener; the result ends it, at the latest with this trio run."""
        mark = object()
        self._listeners[mark] = listener, trio.lowlevel.current_trio_token()

        def remove() -> None:
            self._listeners.pop(mark, None)

        return remove

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def tell(self, hint: Hint) -> None:
        """Call every listener; those of this trio run at once."""
        self._tell(hint, trio.lowlevel.current_trio_token())

    def tell_from_thread(self, hint: Hint) -> None:
        """Have every listener called soon; for a thread that is in no trio run."""
        self._tell(hint, None)

    def _tell(self, hint: Hint, here: trio.lowlevel.TrioToken | None) -> None:
        for mark, (listener, token) in list(self._listeners.items()):
            if token is here:
                listener(hint)
                continue
            try:
                token.run_sync_soon(self._call, mark, hint)
            except trio.RunFinishedError:
                self._listeners.pop(mark, None)  # another trio run may have noticed it first

    def _call(self, mark: object, hint: Hint) -> None:
        """In the run of the listener: it may have ended meanwhile."""
        if (entry := self._listeners.get(mark)) is not None:
            entry[0](hint)


def has_ended(token: trio.lowlevel.TrioToken) -> bool:
    """Whether the trio run of this token is over."""
    if token is trio.lowlevel.current_trio_token():
        return False
    try:
        token.run_sync_soon(_nothing)
    except trio.RunFinishedError:
        return True
    return False


def _nothing() -> None: ...
