"""The scope that handlers of a run share for as long as that makes no difference."""

import math

import pytest
import trio

from streamline_trio import testing
from streamline_trio._runtime import handler_scope
from streamline_trio._runtime.handler_scope import HandlerScope


def enter(scope: HandlerScope, deadline: float = math.inf) -> trio.CancelScope:
    opened = scope.open(deadline)
    with scope:
        pass
    return opened


def test_it_is_kept_when_a_handler_leaves_it_as_it_was() -> None:
    async def main() -> None:
        scope = HandlerScope()
        assert enter(scope) is enter(scope)
        scope.close()
        assert trio.current_effective_deadline() == math.inf

    testing.run(main)


def test_it_is_not_kept_once_it_was_cancelled() -> None:
    async def main() -> None:
        scope = HandlerScope()
        first = scope.open(math.inf)
        with scope:
            first.cancel()
        await trio.lowlevel.checkpoint()  # would raise in the cancelled scope
        assert enter(scope) is not first
        scope.close()

    testing.run(main)


@pytest.mark.parametrize(("deadline", "following"), [(1e9, math.inf), (math.inf, 1e9)])
def test_it_is_not_kept_with_a_deadline(deadline: float, following: float) -> None:
    async def main() -> None:
        scope = HandlerScope()
        first = enter(scope, deadline)
        second = scope.open(following)
        assert second is not first
        assert trio.current_effective_deadline() == following
        scope.close()

    testing.run(main)


def test_a_scope_that_a_handler_left_open_is_an_error_and_gone() -> None:
    async def main() -> None:
        scope = HandlerScope()
        scope.open(math.inf)
        with pytest.raises(RuntimeError, match="Cancel scope stack corrupted"), scope:
            trio.move_on_after(0).__enter__()
        enter(scope)
        assert trio.current_effective_deadline() == math.inf
        scope.close()

    testing.run(main)


def test_an_error_closes_it() -> None:
    async def main() -> None:
        scope = HandlerScope()
        first = scope.open(math.inf)
        with pytest.raises(ValueError, match="no"), scope:
            raise ValueError("no")
        assert enter(scope) is not first
        scope.close()

    testing.run(main)


def test_it_is_never_kept_where_trio_does_not_tell_which_scope_is_the_innermost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handler_scope, "_innermost", lambda: None)

    async def main() -> None:
        scope = HandlerScope()
        assert enter(scope) is not enter(scope)

    testing.run(main)


def test_trio_tells_which_scope_is_the_innermost() -> None:
    async def main() -> None:
        before = getattr(trio.lowlevel.current_task(), handler_scope.INNERMOST)
        assert before is not None
        async with trio.open_nursery():
            assert getattr(trio.lowlevel.current_task(), handler_scope.INNERMOST) is not before

    testing.run(main)
