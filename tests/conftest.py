"""How tests run: async tests under trio, each within a deadline, Hypothesis by profile.

Fixtures are plain functions; what an async test needs opened it opens itself with `async with`.
"""

import functools
import inspect
import os
import re
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import hypothesis
import pytest
import trio
import trio.testing

DEADLINE = 60.0
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
LATER = 1.1  # an async test is cancelled first by its own deadline, which tells more than the alarm

_COMMON: dict[str, Any] = {
    "deadline": None,  # the deadline below is for the whole test, not for one example
    "suppress_health_check": [hypothesis.HealthCheck.too_slow],
    "print_blob": True,
}
hypothesis.settings.register_profile("ci", derandomize=True, database=None, **_COMMON)
hypothesis.settings.register_profile("dev", **_COMMON)
hypothesis.settings.register_profile("deep", max_examples=10_000, stateful_step_count=200, **_COMMON)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "dev")
hypothesis.settings.load_profile(PROFILE)


def deadline_of(item: pytest.Item) -> float:
    """Wall seconds that the test may take."""
    marker = item.get_closest_marker("deadline")
    seconds = DEADLINE if marker is None else float(marker.args[0])
    return seconds * 100 if PROFILE == "deep" else seconds


@contextmanager
def alarm(seconds: float, nodeid: str) -> Iterator[None]:
    """Fail what runs inside after this much wall time, also when it never lets trio run."""
    if not hasattr(signal, "SIGALRM"):  # Windows has only the deadline of trio
        yield
        return

    def ring(_signum: int, _frame: object) -> None:
        pytest.fail(f"{nodeid} took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def pytest_make_parametrize_id(config: pytest.Config, val: object) -> str | None:
    """An id without addresses: every worker process must collect the same tests."""
    del config
    text = repr(val)
    return _ADDRESS.sub("", text) if _ADDRESS.search(text) else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with alarm(deadline_of(item) * LATER, item.nodeid):
        return (yield)


def under_trio(
    function: Callable[..., Coroutine[Any, Any, None]], *, virtual: bool, seconds: float
) -> Callable[..., None]:
    """The async function as a plain one, on virtual time or within a deadline in wall time."""

    @functools.wraps(function)
    def run(*args: object, **kwargs: object) -> None:
        if virtual:
            clock = trio.testing.MockClock(autojump_threshold=0)
            trio.run(functools.partial(function, *args, **kwargs), clock=clock)
            return

        async def within_deadline() -> None:
            with trio.move_on_after(seconds) as scope:
                await function(*args, **kwargs)
            if scope.cancelled_caught:
                pytest.fail(f"took more than {seconds:g} s and was cancelled")

        trio.run(within_deadline)

    return run


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test, also one under `@given`, with `trio.run`."""
    to_plain = functools.partial(
        under_trio,
        virtual=pyfuncitem.get_closest_marker("virtual_time") is not None,
        seconds=deadline_of(pyfuncitem),
    )
    test = pyfuncitem.obj
    property_test = getattr(test, "hypothesis", None)
    if property_test is not None:
        # Each example is a trio.run of its own; Hypothesis itself calls the test as a plain function.
        if inspect.iscoroutinefunction(property_test.inner_test):
            property_test.inner_test = to_plain(property_test.inner_test)
        return None
    if not inspect.iscoroutinefunction(test):
        return None
    fixtures = pyfuncitem.funcargs
    names = pyfuncitem._fixtureinfo.argnames  # as pytest's own implementation of this hook does
    to_plain(test)(**{name: fixtures[name] for name in names})
    return True


@pytest.fixture(scope="session")
def mongo_server() -> Iterator[str]:
    """The URL of a MongoDB server, started for this process when the first test asks for it."""
    from tests import mongo_server

    with mongo_server.temporary() as url:
        yield url


@pytest.fixture
def databases(mongo_server: str) -> Iterator[Any]:
    """Fresh databases of the test's own."""
    from tests.mongo_server import Databases

    found = Databases(mongo_server)
    yield found
    found.drop()
