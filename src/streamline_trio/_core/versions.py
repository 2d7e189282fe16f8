"""The order of versions: by number, pre-releases before their release."""

from __future__ import annotations

import re

from streamline_trio._core.naming import is_version

_PARTS = re.compile(r"v?(?P<numbers>\d+(?:\.\d+)*)(?:-(?P<pre>[^+]*))?(?:\+(?P<build>.*))?", re.ASCII)

Identifier = tuple[int, int, str]
VersionKey = tuple[bool, tuple[int, ...], bool, tuple[Identifier, ...], str]


def version_key(version: str) -> VersionKey:
    """What versions sort by: 2.0.0 before 10.0.0, 2.0.0-rc.1 before 2.0.0.

    Numbers that are missing are zeros, what follows a `+` does not count. Versions that say the same in other words
    stand in the order of their texts; what is no version comes before all that are.
    """
    if not is_version(version):
        return (False, (), False, (), version)
    parts = _PARTS.fullmatch(version)
    assert parts is not None, "every version has this form"
    numbers = [int(number) for number in parts["numbers"].split(".")]
    while len(numbers) > 1 and not numbers[-1]:
        numbers.pop()
    pre = parts["pre"]
    identifiers = () if pre is None else tuple(_identifier(text) for text in re.split(r"[.-]", pre))
    return (True, tuple(numbers), pre is None, identifiers, version)


def _identifier(text: str) -> Identifier:
    """Numbers by value and before words, as Semantic Versioning orders them."""
    return (0, int(text), "") if text.isdecimal() else (1, 0, text)
