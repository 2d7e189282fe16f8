"""The suite's own runner: a test that looks green did run, on the clock it asked for, within its deadline."""

import pathlib
import time

import hypothesis
import pytest
import sniffio
import trio
from hypothesis import strategies as st

pytest_plugins = ["pytester"]

CONFTEST = pathlib.Path(__file__).parents[1] / "conftest.py"
CONFIG = """
[pytest]
markers =
    virtual_time
    deadline(seconds)
filterwarnings = error
"""


@pytest.fixture(params=[1, 2])
def number(request):
    return request.param


async def test_an_async_test_runs_under_trio_with_its_fixtures(number):
    """Proves that async tests run on trio and are given their fixtures."""
    assert sniffio.current_async_library() == "trio"
    await trio.lowlevel.checkpoint()
    assert number in {1, 2}


@pytest.mark.virtual_time
async def test_virtual_time_skips_what_nobody_works_in():
    """Proves that a year of sleep takes no time under `virtual_time`."""
    began, virtual = time.monotonic(), trio.current_time()
    await trio.sleep(365 * 86_400)
    assert trio.current_time() - virtual == pytest.approx(365 * 86_400)
    assert time.monotonic() - began < 5


@hypothesis.given(delay=st.floats(0, 1e6))
@pytest.mark.virtual_time
async def test_a_property_may_be_async(delay):
    """Proves that `@given` works on async tests, each example in a trio.run of its own."""
    began = trio.current_time()
    await trio.sleep(delay)
    assert trio.current_time() - began == pytest.approx(delay)


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A suite of its own with this suite's conftest."""
    monkeypatch.setenv("HYPOTHESIS_PROFILE", "ci")
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makeini(CONFIG)
    return pytester


@pytest.mark.parametrize(
    "body",
    [
        "await trio.lowlevel.checkpoint(); assert False, 'planted'",
        "async with trio.open_nursery() as n: n.start_soon(trio.sleep, 0); raise ValueError('planted')",
    ],
)
def test_a_failing_async_test_fails(suite, body):
    """Proves that a failure inside an async test reaches the report: no test passes without having run."""
    suite.makepyfile(f"import trio\nasync def test_planted():\n    {body}")
    suite.runpytest_subprocess().assert_outcomes(failed=1)


def test_a_failing_async_property_fails(suite):
    """Proves that an async property is really called."""
    suite.makepyfile("""
        from hypothesis import given, strategies as st
        @given(st.integers())
        async def test_planted(i):
            assert i < 100
    """)
    suite.runpytest_subprocess().assert_outcomes(failed=1)


@pytest.mark.parametrize(
    ("marks", "body"),
    [
        ("@pytest.mark.deadline(0.5)", "await trio.sleep_forever()"),
        ("@pytest.mark.deadline(0.5)", "while True: pass"),
        ("@pytest.mark.virtual_time\n@pytest.mark.deadline(0.5)", "while True: await trio.sleep(1)"),
    ],
)
def test_a_test_that_never_ends_fails_at_its_deadline(suite, marks, body):
    """Proves that tests asleep, busy, or skipping for ever fail at the deadline, and the suite goes on."""
    suite.makepyfile(
        f"import pytest, trio\n{marks}\nasync def test_planted():\n    {body}\ndef test_next():\n    pass"
    )
    suite.runpytest_subprocess().assert_outcomes(failed=1, passed=1)
