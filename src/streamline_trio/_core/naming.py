"""What ids, versions and tags may look like."""

from __future__ import annotations

import re

ID_RULE = "1 to 100 letters, digits, '-' or '_'"
VERSION_RULE = "a version such as '2', '1.4' or '2.0.0-rc.1', of at most 50 characters"
TAG_RULE = "1 to 100 printable characters"

_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_VERSION = re.compile(r"v?\d+(\.\d+)*([-+][0-9A-Za-z]+([.+-][0-9A-Za-z]+)*)?", re.ASCII)
_MAX_VERSION = 50
_MAX_TAG = 100


def is_id(value: object) -> bool:
    """Whether this may be the id of a workflow or step."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def is_version(value: object) -> bool:
    """Whether this may be the version of a workflow."""
    return isinstance(value, str) and len(value) <= _MAX_VERSION and _VERSION.fullmatch(value) is not None


def is_tag(value: object) -> bool:
    """Whether this may be a tag."""
    return isinstance(value, str) and 1 <= len(value) <= _MAX_TAG and value.isprintable()
