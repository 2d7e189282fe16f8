"""The state diagrams in the documentation are what the tables say.

Write them anew with `.venv/bin/python -m tests.docs.test_diagrams`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from streamline_trio._core.status import RUN_TRANSITIONS, SETTLED, STEP_TRANSITIONS

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "states.md"
DIAGRAM = re.compile(r"<!-- (?P<name>\w+) -->\n```mermaid\n.*?^```$", re.MULTILINE | re.DOTALL)
FINISHED = frozenset({"done", "failed", "skipped"})


def diagram(name: str, first: str, table: Mapping[Any, frozenset[Any]], last: frozenset[Any]) -> str:
    """The table as a Mermaid state diagram, between its marker and the end of its block."""
    edges = [f"    {source} --> {target}" for source in table for target in table if target in table[source]]
    ends = [f"    {status} --> [*]" for status in table if status in last]
    lines = [f"<!-- {name} -->", "```mermaid", "stateDiagram-v2", f"    [*] --> {first}", *edges, *ends, "```"]
    return "\n".join(lines)


def diagrams() -> dict[str, str]:
    return {
        "run": diagram("run", "draft", RUN_TRANSITIONS, SETTLED),
        "step": diagram("step", "pending", STEP_TRANSITIONS, FINISHED),
    }


def with_diagrams(page: str) -> str:
    """The page with the diagrams that belong into it."""
    return DIAGRAM.sub(lambda found: diagrams()[found["name"]], page)


@pytest.mark.parametrize("name", ["run", "step"])
def test_the_diagram_is_what_the_table_says(name):
    """Proves that readers see the transitions that the engine checks every change against."""
    found = {match["name"]: match[0] for match in DIAGRAM.finditer(PAGE.read_text(encoding="utf-8"))}
    assert found[name] == diagrams()[name], "write the diagrams anew: python -m tests.docs.test_diagrams"


def test_a_diagram_that_differs_is_found():
    """Proves that a changed edge is seen, and that writing anew repairs it."""
    page = PAGE.read_text(encoding="utf-8")
    changed = page.replace("    done --> running\n", "")
    assert changed != page
    assert with_diagrams(changed) == page


if __name__ == "__main__":
    PAGE.write_text(with_diagrams(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
