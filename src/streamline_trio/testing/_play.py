"""Playing a scenario: once with a chosen mishap, or with each one that can happen to it."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import timedelta
from itertools import takewhile
from typing import Any, Generic, NamedTuple, TypeVar, get_args
from weakref import WeakSet

import trio

from streamline_trio import Engine, MemoryStore, Run, RunHandle, Store, ValidationError, Workflow
from streamline_trio._core.checking import is_a
from streamline_trio._core.durations import seconds_of
from streamline_trio.testing._mishaps import CrashAt, FailCall, LoseLeaseAt, Mishap, MishapMissed, check_mishap
from streamline_trio.testing._scheduler import same_order
from streamline_trio.testing._stage import Stage
from streamline_trio.testing._time import run
from streamline_trio.testing._wrapped_store import WrappedStore

T = TypeVar("T")

_LONGEST_VIRTUAL = 365 * 86_400.0
_LONGEST_REAL = 60.0
_MOST_POINTS = 10_000
_POLL = 0.05
_LOOK = 0.01
_RARER = 0.05

_logger = logging.getLogger("streamline_trio.play")
_logger.setLevel(logging.ERROR)  # mishaps are what its engines would warn of, hundreds of times in one test
_played: WeakSet[Any] = WeakSet()
_STANDING = ("waiting", "done", "failed", "cancelled", "compensated", "compensation_failed")


class _Played(NamedTuple, Generic[T]):
    value: T
    struck: str | None


def play(
    scenario: Callable[[Engine], Awaitable[T]],
    *workflows: Workflow[Any, Any],
    mishap: Mishap | None = None,
    store: Callable[[], Store] = MemoryStore,
    timeout: float | None = None,
    **options: Any,
) -> T:
    """Call `scenario(engine)` with an engine as `open_stage` gives it, in a trio run of its own; what it returns.

    On memory stores time is skipped, as by `run`. The scenario should begin with a clean world: whatever its
    handlers change outside is the caller's to reset.

    Args:
        scenario: what the outside does, and what must come of it. It may raise.
        workflows: what the workers run.
        mishap: what goes wrong. `MishapMissed` is raised if that could not happen.
        store: gives a fresh store.
        timeout: after how many seconds the play fails with `trio.TooSlowError`: a year of skipped time, or a
            minute where time cannot be skipped.
        options: of `open_engine`, for all engines. Without a `logger`, only errors are logged.
    """
    check_mishap(mishap, [step for workflow in workflows for step in workflow.steps])
    played = _play(scenario, workflows, mishap, store, timeout, options)
    if mishap is not None and played.struck is None:
        raise MishapMissed(f"{mishap!r} did not happen: the scenario never came to that point")
    return played.value


def sweep(
    scenario: Callable[[Engine], Awaitable[object]],
    *workflows: Workflow[Any, Any],
    mishaps: Sequence[type[Mishap]] = (FailCall, CrashAt, LoseLeaseAt),
    store: Callable[[], Store] = MemoryStore,
    timeout: float | None = None,
    **options: Any,
) -> list[Mishap]:
    """Play a scenario undisturbed, and again with each mishap of these kinds, one a play, at every point there is.

    Workers crash and lose their leases at the beginning and end of each step; then points are counted up (store
    call or write 0, 1, 2..., each before and after it was carried out) until the scenario passes untouched. What
    the scenario raises is raised, with a note that names the mishap, for `play` to repeat. What it returns must
    equal what it returned undisturbed, else `AssertionError`. Gives the mishaps that were played.

    Args:
        scenario: is called once a play, with the engine; it begins with a clean world.
        workflows: what the workers run.
        mishaps: the kinds. `DeliverTwice` must be asked for: it is the callers' fault as often as the workflow's.
        store: gives a fresh store for each play. On stores other than memory, time is real: hundreds of plays
            sleep as long as the workflow says.
        timeout: seconds for each play, as in `play`.
        options: of `open_engine`, for all engines.
    """
    if not is_a(mishaps, Collection) or not mishaps or any(kind not in get_args(Mishap) for kind in mishaps):
        raise ValidationError(f"mishaps= is a list of kinds such as [CrashAt], not {mishaps!r}")

    def played(mishap: Mishap | None) -> _Played[object]:
        return _play(scenario, workflows, mishap, store, timeout, options)

    wanted = played(None).value

    def is_touched(mishap: Mishap) -> bool:
        value, struck = played(mishap)
        if value != wanted:
            error = AssertionError(f"the scenario returned {value!r}; undisturbed it returns {wanted!r}")
            error.add_note(_note(mishap, struck))
            raise error
        return struck is not None

    swept: list[Mishap] = []
    for kind in mishaps:
        steps = [step for workflow in workflows for step in workflow.steps]
        swept += [mishap for step in steps for mishap in kind.at_step(step) if is_touched(mishap)]
        for variant in kind.variants:
            points = (kind.at(number, variant) for number in range(_MOST_POINTS))
            swept += takewhile(is_touched, points)
    return swept


def _play(  # noqa: PLR0917 - those of `play`, in its order
    scenario: Callable[[Engine], Awaitable[T]],
    workflows: tuple[Workflow[Any, Any], ...],
    mishap: Mishap | None,
    store: Callable[[], Store],
    timeout: float | None,
    options: dict[str, Any],
) -> _Played[T]:
    made = _fresh(store)
    skips = _skips_time(made)
    longest = timeout if timeout is not None else _LONGEST_VIRTUAL if skips else _LONGEST_REAL
    options = {"logger": _logger, **({} if made.exclusive else {"poll_interval": _POLL}), **options}
    stage = Stage(made, workflows, options, mishap)

    async def main() -> T:
        with trio.move_on_after(longest):
            async with stage.opened() as engine:
                return await scenario(engine)
        raise trio.TooSlowError(
            f"the scenario did not end within {longest:g} s of {'skipped' if skips else 'real'} time;"
            " timeout= gives it another limit"
        )

    try:
        with same_order():
            value = run(main) if skips else trio.run(main)
        return _Played(value, stage.struck)
    except BaseException as error:
        error.add_note(_note(mishap, stage.struck))
        raise


def _note(mishap: Mishap | None, struck: str | None) -> str:
    if mishap is None:
        return "the scenario was undisturbed"
    return f"{struck or 'not yet'}; to repeat it alone: play(..., mishap={mishap!r})"


def _fresh(make: Callable[[], Store]) -> Store:
    """A store that no play has had before."""
    made = make()
    if not is_a(made, Store):
        raise ValidationError(f"store= is a function that gives a store, and it gives {made!r}")
    inner = _innermost(made)
    if inner in _played:
        raise ValidationError(
            f"store= gives a store that another play has had ({inner!r}): it must make a fresh one for each,"
            " as `lambda: MemoryStore()` does and `lambda: one_store` does not"
        )
    _played.add(inner)
    return made


def _skips_time(store: Store) -> bool:
    """Whether nothing of the store happens outside of trio's clock."""
    return isinstance(_innermost(store), MemoryStore)


def _innermost(store: Any) -> Any:
    while isinstance(store, WrappedStore):
        store = store.inner
    return store


async def parked(handle: RunHandle, timeout: float | timedelta | None = None) -> Run:
    """The run, once it waits for something (a person, a signal, a timer, a retry) or has settled.

    What a test needs between starting a run and answering it. It looks at the stored run from time to time, at
    first every 10 ms, later less often. Raises `TimeoutError` after `timeout` seconds. A cancel point.
    """
    began = trio.current_time()
    with trio.move_on_after(math.inf if timeout is None else seconds_of(timeout, what="timeout")):
        while True:
            seen = await handle.get()
            if seen.status in _STANDING:
                return seen
            await trio.sleep(_LOOK + (trio.current_time() - began) * _RARER)
    raise TimeoutError(f"run {handle.id} neither waited nor settled within {timeout} s")
