"""The documentation runs: every Python example of every page, in order, in one namespace a page."""

import sys
import types
from pathlib import Path

import pytest

from tests.docs import code_blocks

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.fixture
def namespace(monkeypatch, tmp_path):
    """A fresh module to run a page in (annotations are looked up in their module), in an empty directory."""
    module = types.ModuleType("docs_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    return vars(module)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_the_page_run(page, namespace):
    """Proves that what this page shows works as shown."""
    assert code_blocks.run(page, namespace) == page.read_text().count("```python")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_the_page_lead_somewhere(page):
    """Proves that each relative link of this page names a file that exists."""
    assert [link for link in code_blocks.links(page.read_text()) if not (page.parent / link).exists()] == []


PLANTED = """\
# A page

```python
x = 1
```

```python no-run
x = undefined
```

```python
assert x == 2
```
"""


def test_a_broken_example_fails_with_its_own_line(tmp_path, namespace):
    """Proves that examples run, share a namespace, and that a failure names the page and its line."""
    page = tmp_path / "page.md"
    page.write_text(PLANTED)
    with pytest.raises(AssertionError) as failed:
        code_blocks.run(page, namespace)
    last = failed.traceback[-1]
    assert (Path(last.path), last.lineno + 1) == (page, 12)
    assert namespace["x"] == 1


def test_a_broken_link_is_found():
    """Proves that relative links are found, with and without a fragment, and absolute ones left alone."""
    text = "[a](b.md) [c](../d/e.md#f) [g](https://example.org) [h](#i)"
    assert code_blocks.links(text) == ["b.md", "../d/e.md"]
