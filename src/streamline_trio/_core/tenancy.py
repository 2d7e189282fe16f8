"""Tenants: whose a run is, and how that tells the ids of runs apart.

Ids belong to tenants: two of them may use the same one. So a run of a tenant is stored under its id, a mark and the
tenant, and a run without a tenant under its id alone. Neither ids nor tenants contain the mark, therefore nothing
that one tenant can write names a run of another, and a read by id needs no check that could be forgotten.

Everything that callers see shows the id that they know (`public_id`), beside the tenant.
"""

from __future__ import annotations

from hashlib import sha256

from streamline_trio._core.errors import ValidationError

MARK = "\u241f"
"""The symbol for a unit separator: one that can be seen in logs and database tools, and that nobody needs."""

TENANT_RULE = f"1 to 200 printable characters, without {MARK!r}"

_LONGEST = 200
_AFTER_MARK = chr(ord(MARK) + 1)


def check_tenant(tenant: object) -> str:
    """The tenant's name; `ValidationError` for what cannot be one."""
    if isinstance(tenant, str) and 1 <= len(tenant) <= _LONGEST and tenant.isprintable() and MARK not in tenant:
        return tenant
    raise ValidationError(f"a tenant is a text of {TENANT_RULE}, not {repr(tenant)[:100]}")


def stored_id(tenant: str | None, run_id: str) -> str:
    """Under which id a run is stored that its tenant calls `run_id`."""
    return run_id if tenant is None else f"{run_id}{MARK}{tenant}"


def public_id(stored: str) -> str:
    """What the tenant calls the run."""
    return stored.partition(MARK)[0]


def told_id(stored: str) -> str:
    """What an operator is told who has to find the run: its id, and whose it is."""
    tenant = tenant_of(stored)
    return public_id(stored) if tenant is None else f"{public_id(stored)} of tenant {tenant!r}"


def tenant_of(stored: str) -> str | None:
    """Whose run is stored under this id."""
    _, mark, tenant = stored.partition(MARK)
    return tenant if mark else None


def unique_name(tenant: str | None, run_id: str) -> str:
    """What tells a run from those of all tenants, in the characters of its id: it may go into a header."""
    return run_id if tenant is None else f"{run_id}@{sha256(tenant.encode()).hexdigest()[:16]}"


def namesakes_range(run_id: str) -> tuple[str, str]:
    """The stored ids of all tenants' runs of this name are from the first up to but without the second."""
    return run_id + MARK, run_id + _AFTER_MARK
