"""The pytest plugin of streamline_trio: stores, and the time that an async test runs in.

pytest imports this in every suite of everybody who has the package installed, so it stands beside the package and
imports it only when a fixture is asked for. A test that asks for none of the fixtures is left alone.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from streamline_trio import MemoryStore, SqliteStore

_TIMES = ("virtual_time", "real_time")


class Time:
    """What runs an async function: `streamline_trio.testing.run` or `trio.run`."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def __call__(self, async_fn: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        """Run it, from a test that is not async."""
        return self._run(async_fn, *args, **options)


@pytest.fixture
def memory_store() -> MemoryStore:
    """A fresh store in memory."""
    from streamline_trio import MemoryStore  # noqa: PLC0415 - only suites that use it pay for it

    return MemoryStore()


@pytest.fixture
def sqlite_store(request: pytest.FixtureRequest, tmp_path: Path) -> SqliteStore:
    """A fresh store in a SQLite file of the test's own directory. Its time cannot be skipped."""
    from streamline_trio import SqliteStore  # noqa: PLC0415 - only suites that use it pay for it

    if "virtual_time" in request.fixturenames:
        pytest.fail("time cannot be skipped on SQLite, which works in threads: ask for real_time", pytrace=False)
    return SqliteStore(tmp_path / "runs.db")


@pytest.fixture
def virtual_time(request: pytest.FixtureRequest) -> Time:
    """An async test that asks for this runs on trio, on skipped time; others call it with an async function."""
    from streamline_trio.testing import run  # noqa: PLC0415 - only suites that use it pay for it

    _check_alone(request, "virtual_time")
    return Time(run)


@pytest.fixture
def real_time(request: pytest.FixtureRequest) -> Time:
    """An async test that asks for this runs on trio; others call it with an async function."""
    import trio  # noqa: PLC0415 - only suites that use it pay for it

    _check_alone(request, "real_time")
    return Time(trio.run)


def _check_alone(request: pytest.FixtureRequest, own: str) -> None:
    """Nobody else may run the test."""
    others = [name for name in (*_TIMES, "anyio_backend") if name != own and name in request.fixturenames]
    if others and inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        pytest.fail(
            f"{own} runs this test itself, so it cannot be used with {others[0]}:"
            f" drop one of them, or call {own}(async_function) in a test that is not async",
            pytrace=False,
        )


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test that asked for a time."""
    times = [pyfuncitem.funcargs.get(name) for name in _TIMES]
    ours = [time for time in times if isinstance(time, Time)]
    if not ours or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters.keys() & pyfuncitem.funcargs.keys()
    ours[0](functools.partial(pyfuncitem.obj, **{name: pyfuncitem.funcargs[name] for name in names}))
    return True
