"""The reference page lists what can be imported, and nothing else."""

import inspect
import re
from pathlib import Path

import pytest

import streamline_trio
import streamline_trio.testing
from streamline_trio import Engine, RunHandle, StepContext, open_engine
from streamline_trio._core.compensation import CompensationSettings
from streamline_trio._core.definition import WorkflowOptions
from streamline_trio._core.options import StepSettings

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "api.md"
SECTION = re.compile(r"^##+ (?P<title>[^\n]+)\n(?P<body>.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| (?P<names>`[^|]+) \|", re.MULTILINE)
WORD = re.compile(r"(\w+)(?:\(\))?`")
MEMBERS = {"Engine": Engine, "RunHandle": RunHandle, "StepContext": StepContext}


def listed(page: str) -> dict[str, list[str]]:
    """The names in the first column, by section."""
    return {
        section["title"]: [name for row in ROW.finditer(section["body"]) for name in WORD.findall(row["names"])]
        for section in SECTION.finditer(page)
    }


@pytest.fixture
def sections():
    return listed(PAGE.read_text(encoding="utf-8"))


def test_every_public_name_has_one_line(sections):
    """Proves that the reference and `__all__` agree, each name once."""
    apart = {*MEMBERS, "Beside it", *(title for title in sections if title.startswith("Options"))}
    names = [name for title, found in sections.items() if title not in apart for name in found]
    assert sorted(names) == sorted(streamline_trio.__all__)


def test_every_name_for_tests_has_one_line():
    """Proves that the reference and `streamline_trio.testing` agree, each name once."""
    listed_ones = re.findall(
        r"^\| `streamline_trio\.testing\.(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(listed_ones) == sorted(streamline_trio.testing.__all__)


@pytest.mark.parametrize("title", MEMBERS)
def test_every_public_member_has_one_line(title, sections):
    """Proves that what users call on these objects is listed."""
    own = (vars(kind) for kind in MEMBERS[title].__mro__ if kind.__module__.startswith("streamline_trio"))
    members = {name for each in own for name in each if not name.startswith("_")}
    assert sorted(sections[title]) == sorted(members)


def test_every_option_has_one_line(sections):
    """Proves that the tables of options are those that are accepted."""
    of_engine = inspect.signature(open_engine).parameters.keys() - {"store", "workflows"}
    assert sorted(sections["Options of a workflow"]) == sorted({"input", "state", *WorkflowOptions.__annotations__})
    assert sorted(sections["Options of a step"]) == sorted({"id", *StepSettings.__annotations__})
    assert sorted(sections["Options of a compensation"]) == sorted(CompensationSettings.__annotations__)
    assert sorted(sections["Options of an engine"]) == sorted(of_engine)


def test_a_missing_name_is_found():
    """Proves that the page is read as it is written: names, calls, and several in one row."""
    page = "## A\n\n| Name | Is |\n|---|---|\n| `x` | a |\n| `await y()` | `z` |\n| `k`, `l` | m |\n## B\n"
    assert listed(page) == {"A": ["x", "y", "k", "l"], "B": []}
