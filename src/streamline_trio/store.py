"""What a store of one's own is written against: the `Store` protocol and the values that cross it.

The protocol's module tells the numbered conditions; `streamline_trio.testing.conformance_tests` checks them.
"""

from __future__ import annotations

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.store import (
    TENANTS_AT_ONCE,
    AppendRows,
    Applied,
    Corrupt,
    Cursor,
    Delete,
    Failed,
    Hint,
    Insert,
    KeyTaken,
    PutSide,
    Quarantine,
    Refused,
    Route,
    RunQuery,
    SideDoc,
    Store,
    Sweeper,
    Tally,
    Update,
    Verdict,
    Write,
)

__all__ = [
    "TENANTS_AT_ONCE",
    "AppendRows",
    "Applied",
    "Corrupt",
    "Cursor",
    "Delete",
    "Failed",
    "Hint",
    "Insert",
    "KeyTaken",
    "PutSide",
    "Quarantine",
    "Refused",
    "Route",
    "RunDoc",
    "RunQuery",
    "SideDoc",
    "Store",
    "Sweeper",
    "Tally",
    "Update",
    "Verdict",
    "Write",
]
