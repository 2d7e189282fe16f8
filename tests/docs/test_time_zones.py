"""The table of examples on the page about time zones, worked out."""

import itertools
import re
from pathlib import Path

import pytest
import whenever

from streamline_trio import Recurrence

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "time-zones.md"
ROW = re.compile(
    r"^\| (?:`(?P<rule>[^|]+)` \| (?P<zone>\w+/\w+) |\| )\| (?P<occurrence>\d[^|]+\|[^|]+)\|([^|]*)\|$",
    re.MULTILINE,
)
CALL = re.compile(r"(?P<kind>\w+)\((?P<arguments>.*)\)")


def groups(page: str) -> list[tuple[str, str, list[str]]]:
    """Rule, zone and rows of each group; a row as it stands on the page, without spaces at its ends."""
    found: list[tuple[str, str, list[str]]] = []
    for row in ROW.finditer(page):
        if row["rule"]:
            found.append((row["rule"], row["zone"], []))
        found[-1][2].append(" | ".join(cell.strip() for cell in f"{row['occurrence']}|{row[4]}".split("|")))
    return found


def recurrence(rule: str, zone: str) -> Recurrence:
    call = CALL.fullmatch(rule)
    assert call
    arguments = eval(f"[{call['arguments']}]", {"__builtins__": {}})  # noqa: S307 - a page of this repository
    made = getattr(Recurrence, call["kind"])(*arguments, zone)
    assert isinstance(made, Recurrence)
    return made


EXAMPLES = groups(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("rule", "zone", "rows"), EXAMPLES, ids=[f"{rule} {zone}" for rule, zone, _ in EXAMPLES])
def test_the_examples_are_true(rule, zone, rows):
    """Proves that each row is what the rule gives: local time, instant, gap or fold."""
    first = whenever.Instant.parse_iso(rows[0].split(" | ")[1])
    found = recurrence(rule, zone).occurrences(first.subtract(seconds=1))
    assert [
        f"{each.local} | {str(each.at).replace('T', ' ')} | {'gap' * each.gap}{'fold' * each.fold}"
        for each in itertools.islice(found, len(rows))
    ] == rows


def test_every_row_is_read():
    """Proves that no row of the table escapes the test above."""
    table = PAGE.read_text(encoding="utf-8").split("## Examples")[1].split("A test works out")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert sum(len(rows) for _, _, rows in EXAMPLES) == len(lines) > 30
