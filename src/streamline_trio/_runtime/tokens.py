"""Tokens that answer a wait: only their digests are stored."""

from __future__ import annotations

import hashlib

from streamline_trio._core.checking import is_text
from streamline_trio._core.errors import ValidationError

_SHORTEST = 16
_LONGEST = 1000


_BETWEEN = b"\xff"
"""No UTF-8 text contains this byte, so a tenant's digests are never those of a token by itself."""


def digest_of(token: str, tenant: str | None = None) -> str:
    """SHA-256 in hex. Looking a digest up reveals nothing of other tokens, so no comparison leaks time.

    Tokens that handlers choose are each tenant's own: two tenants may choose the same one. A minted token is like
    no other, and is known without its tenant.
    """
    text = token.encode()
    if tenant is not None:
        text = _BETWEEN + tenant.encode() + _BETWEEN + text
    return hashlib.sha256(text).hexdigest()


def check_token(token: str) -> str:
    """A caller's own token must be long enough not to be guessed."""
    if not is_text(token, _LONGEST, _SHORTEST):
        raise ValidationError(f"a token has {_SHORTEST} to {_LONGEST} characters")
    return token
