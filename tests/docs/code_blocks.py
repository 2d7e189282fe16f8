"""The Python examples of a Markdown page."""

import dataclasses
import re
from pathlib import Path

FENCE = re.compile(r"^```python(?P<words>[^\n]*)\n(?P<code>.*?)^```\s*?$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


@dataclasses.dataclass(frozen=True)
class Block:
    """One example. One that begins with ```` ```python no-run ```` is only compiled."""

    code: str
    line: int  # of the page
    runs: bool


def blocks(text: str) -> list[Block]:
    return [
        Block(
            found["code"],
            text.count("\n", 0, found.start("code")) + 1,
            "no-run" not in found["words"].split(),
        )
        for found in FENCE.finditer(text)
    ]


def run(page: Path, namespace: dict[str, object]) -> int:
    """Run the examples of the page, one after the other, in one namespace; return how many there are.

    A traceback shows the page and its own line numbers.
    """
    examples = blocks(page.read_text(encoding="utf-8"))
    for block in examples:
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        if block.runs:
            exec(code, namespace)  # noqa: S102 - running what the page shows is the point
    return len(examples)


def links(text: str) -> list[str]:
    """The files that the page links to."""
    return [target for target in LINK.findall(text) if "://" not in target]
