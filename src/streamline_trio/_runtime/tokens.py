"""Tokens that answer a wait: only their digests are stored."""

from __future__ import annotations

import hashlib

from streamline_trio._core.checking import is_text
from streamline_trio._core.errors import ValidationError

_SHORTEST = 16
_LONGEST = 1000


def digest_of(token: str) -> str:
    """SHA-256 in hex. Looking a digest up reveals nothing of other tokens, so no comparison leaks time."""
    return hashlib.sha256(token.encode()).hexdigest()


def check_token(token: str) -> str:
    """A caller's own token must be long enough not to be guessed."""
    if not is_text(token, _LONGEST, _SHORTEST):
        raise ValidationError(f"a token has {_SHORTEST} to {_LONGEST} characters")
    return token
