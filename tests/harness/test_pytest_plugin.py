"""The pytest plugin that ships: fixtures for suites that want them, and nothing for those that do not."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]

USED = """
import pytest
import trio
from streamline_trio import Workflow, open_engine

nap = Workflow("nap", input=int)

@nap.step
async def sleep(ctx):
    await ctx.sleep(ctx.input)
    return "rested"

@pytest.fixture
def days():
    return 365

async def test_a_year_passes(virtual_time, memory_store, days):
    began = trio.current_time()
    async with open_engine(memory_store, nap) as engine:
        assert await (await engine.start(nap, days * 86_400)).result() == "rested"
    assert trio.current_time() - began >= days * 86_400

async def test_on_sqlite(real_time, sqlite_store, tmp_path):
    async with open_engine(sqlite_store, nap) as engine:
        assert await (await engine.start(nap, 0)).result() == "rested"
    assert (tmp_path / "runs.db").exists()

def test_by_hand(virtual_time):
    async def main(seconds):
        await trio.sleep(seconds)
        return seconds
    assert virtual_time(main, 3600) == 3600

def test_stores_are_fresh(memory_store):
    async def main():
        async with open_engine(memory_store, nap) as engine:
            return await engine.count()
    assert trio.run(main) == 0

class TestInAClass:
    async def test_method(self, virtual_time):
        await trio.sleep(3600)
"""


def test_async_tests_run_in_the_time_they_ask_for(pytester):
    """Proves that asking for a fixture is all that an async test needs, with pytest alone."""
    pytester.makepyfile(USED)
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=5)


def test_a_failing_test_fails(pytester):
    """Proves that no test passes without having run, and that pytest explains its assertion."""
    pytester.makepyfile("async def test_planted(virtual_time):\n    x = 1\n    assert x == 2")
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 1 == 2*"])


@pytest.mark.parametrize("arguments", [("-p", "no:anyio"), ("-p", "anyio")])
def test_other_suites_are_left_alone(pytester, arguments):
    """Proves that async tests which ask for none of the fixtures are as they were, and nothing is imported."""
    pytester.makepyfile(
        """
        import sys
        def test_plain():
            assert "streamline_trio" not in sys.modules
        async def test_async():
            pass
        """
    )
    result = pytester.runpytest_subprocess(*arguments)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*async def functions are not natively supported*"])


def test_anyio_runs_its_own_tests_with_our_stores(pytester):
    """Proves that a test which anyio runs is given our stores, and told when it asks for two runners."""
    pytester.makepyfile(
        """
        import pytest
        import sniffio
        from streamline_trio import Workflow, open_engine

        flow = Workflow("flow")

        @flow.step
        async def step(ctx):
            return "done"

        @pytest.fixture
        def anyio_backend():
            return "trio"

        @pytest.mark.anyio
        async def test_theirs(memory_store):
            async with open_engine(memory_store, flow) as engine:
                assert await (await engine.start(flow)).result() == "done"

        async def test_ours(virtual_time, memory_store):
            async with open_engine(memory_store, flow) as engine:
                assert await (await engine.start(flow)).result() == "done"

        @pytest.mark.anyio
        async def test_both(virtual_time):
            pass
        """
    )
    result = pytester.runpytest_subprocess("-p", "anyio")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*virtual_time runs this test itself, so it cannot be used with anyio_backend*"])


def test_anyio_on_asyncio_is_not_disturbed(pytester):
    """Proves that a suite on asyncio under anyio runs as without the plugin."""
    pytester.makepyfile(
        """
        import asyncio
        import pytest

        @pytest.mark.anyio
        @pytest.mark.parametrize("anyio_backend", ["asyncio"])
        async def test_theirs():
            await asyncio.sleep(0)
        """
    )
    pytester.runpytest_subprocess("-p", "anyio", "-W", "error").assert_outcomes(passed=1)


def test_misuse_is_told(pytester):
    """Proves that two times, or skipped time on SQLite, are refused with a reason."""
    pytester.makepyfile(
        """
        async def test_two(virtual_time, real_time): ...
        async def test_sqlite(virtual_time, sqlite_store): ...
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*cannot be used with real_time*", "*time cannot be skipped on SQLite*"])


def test_fixtures_of_the_same_name_are_theirs(pytester):
    """Proves that a suite which has a fixture of one of these names keeps it, and its own runner."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def virtual_time():
            return "mine"

        def test_plain(virtual_time):
            assert virtual_time == "mine"

        async def test_async(virtual_time):
            pass
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*async def functions are not natively supported*"])


def test_the_plugin_is_light():
    """Proves that what every pytest run imports is pytest and no more than it has imported itself."""
    program = (
        "import sys, pytest; before = set(sys.modules); import pytest_streamline_trio;"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['pytest_streamline_trio']"


def test_the_entry_point_leads_to_it():
    """Proves that an installed package has its plugin."""
    (found,) = [point for point in entry_points(group="pytest11") if point.name == "streamline_trio"]
    assert found.value == "pytest_streamline_trio"
